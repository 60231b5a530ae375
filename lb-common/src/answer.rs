//! The dead answer: what a client is told whose flow nobody can serve, so that it tries again at once instead of
//! waiting for an answer that never comes.
//!
//! A TCP segment gets a RST (RFC 9293, section 3.10.7.1), a datagram an ICMP port unreachable (RFC 1122, section
//! 3.2.2.1; RFC 4443, section 3.1), both from the service's address.

use crate::{
    checksum,
    parse::{TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

const TTL: u8 = 64;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Of the segment that is answered.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Source port, destination port, network order.
    pub ports: [u8; 4],
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number; meant only with `TCP_ACK`.
    pub acknowledged: u32,
    /// Its flags.
    pub flags: u8,
    /// Bytes of its payload.
    pub payload: u32,
}

/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;

/// The RST that answers a segment. `addresses`: folded sum of both addresses, of either family.
#[inline(always)]
pub fn reset(segment: &Segment, addresses: u16) -> [u8; TCP_LEN] {
    let [p0, p1, p2, p3] = segment.ports;
    let (sequence, acknowledges, flags) = if segment.flags & TCP_ACK == 0 {
        let syn = u32::from(segment.flags & TCP_SYN != 0);
        let fin = u32::from(segment.flags & TCP_FIN != 0);
        (0, segment.sequence.wrapping_add(segment.payload + syn + fin), TCP_RST | TCP_ACK)
    } else {
        (segment.acknowledged, 0, TCP_RST)
    };
    let [s0, s1, s2, s3] = sequence.to_be_bytes();
    let [a0, a1, a2, a3] = acknowledges.to_be_bytes();
    let mut header = [p2, p3, p0, p1, s0, s1, s2, s3, a0, a1, a2, a3, 5 << 4, flags, 0, 0, 0, 0, 0, 0];
    let length = u32::from((TCP_LEN as u16).to_be()) + u32::from(u16::from_ne_bytes([0, TCP]));
    let [c0, c1] = (!checksum::fold(u32::from(addresses) + length + checksum::words(&header))).to_ne_bytes();
    (header[16], header[17]) = (c0, c1);
    header
}

/// IPv4 header of an answer with `len` bytes behind it.
#[inline(always)]
pub fn header4(client: [u8; 4], service: [u8; 4], protocol: u8, len: usize) -> [u8; 20] {
    let total = len as u16 + 20;
    let sum = checksum::finish_header4(checksum::outer_header4(TTL, service, client), 0, total, protocol);
    let [c0, c1] = sum.to_ne_bytes();
    let [l0, l1] = total.to_be_bytes();
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (service, client);
    [0x45, 0, l0, l1, 0, 0, 0x40, 0, TTL, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3]
}

/// First eight bytes of the IPv6 header of an answer with `len` bytes behind it; the addresses follow.
#[inline(always)]
pub fn header6(protocol: u8, len: usize) -> [u8; 8] {
    let [l0, l1] = (len as u16).to_be_bytes();
    [0x60, 0, 0, 0, l0, l1, protocol, TTL]
}

/// The protocol numbers of answers: to a segment, to an IPv4 and to an IPv6 datagram.
pub const PROTOCOLS: (u8, u8, u8) = (TCP, ICMP, ICMPV6);

/// Bytes of an IPv4 packet that its ICMP error quotes: the header without options and eight bytes (RFC 792).
pub const QUOTE4: usize = 28;
/// Bytes of an IPv6 packet that its ICMP error quotes: the header and eight bytes.
pub const QUOTE6: usize = 48;
/// Bytes of an ICMP header.
pub const ICMP_LEN: usize = 8;

/// ICMP header of a port unreachable: type 3, code 3. `quote` is the folded sum of what is quoted.
#[inline(always)]
pub fn unreachable4(quote: u16) -> [u8; ICMP_LEN] {
    icmp(3, 3, quote.into())
}

/// ICMPv6 header of a port unreachable: type 1, code 4. `addresses` and `quote` are folded sums: of both addresses, and
/// of what is quoted.
#[inline(always)]
pub fn unreachable6(addresses: u16, quote: u16) -> [u8; ICMP_LEN] {
    let length = u32::from(((QUOTE6 + ICMP_LEN) as u16).to_be()) + u32::from(u16::from_ne_bytes([0, ICMPV6]));
    icmp(1, 4, length + u32::from(addresses) + u32::from(quote))
}

#[inline(always)]
fn icmp(kind: u8, code: u8, rest: u32) -> [u8; ICMP_LEN] {
    let [c0, c1] = (!checksum::fold(rest + u32::from(u16::from_ne_bytes([kind, code])))).to_ne_bytes();
    [kind, code, c0, c1, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4Header, Ipv6Header, TcpHeaderSlice};
    use proptest::prelude::*;

    fn segment(ports: [u8; 4], sequence: u32, acknowledged: u32, flags: u8, payload: u16) -> Segment {
        Segment { ports, sequence, acknowledged, flags, payload: payload.into() }
    }

    proptest! {
        #[test]
        fn a_reset_is_acceptable_to_who_sent_the_segment(
            client: [u8; 4], service: [u8; 4], ports: [u8; 4], sequence: u32, acknowledged: u32, flags in 0u8..64,
            payload: u16,
        ) {
            let addresses = checksum::fold(checksum::words(&client) + checksum::words(&service));
            let bytes = reset(&segment(ports, sequence, acknowledged, flags, payload), addresses);
            let tcp = TcpHeaderSlice::from_slice(&bytes).unwrap();
            prop_assert_eq!(tcp.source_port().to_be_bytes(), [ports[2], ports[3]]);
            prop_assert_eq!(tcp.destination_port().to_be_bytes(), [ports[0], ports[1]]);
            prop_assert!(tcp.rst() && !tcp.syn() && !tcp.fin() && tcp.data_offset() == 5);
            if flags & TCP_ACK != 0 {
                prop_assert_eq!((tcp.sequence_number(), tcp.ack()), (acknowledged, false));
            } else {
                let len = u32::from(payload) + u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
                prop_assert_eq!(tcp.sequence_number(), 0);
                prop_assert_eq!((tcp.acknowledgment_number(), tcp.ack()), (sequence.wrapping_add(len), true));
            }
            let sum = tcp.to_header().calc_checksum_ipv4_raw(service, client, &[]).unwrap();
            prop_assert_eq!(tcp.checksum(), sum);
            let ip = Ipv4Header::from_slice(&header4(client, service, TCP, TCP_LEN)).unwrap().0;
            prop_assert_eq!((ip.source, ip.destination, ip.total_len), (service, client, 40));
            prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        }

        #[test]
        fn a_reset_over_ipv6_has_the_right_checksum(client: [u8; 16], service: [u8; 16], ports: [u8; 4], flags in 0u8..64) {
            let addresses = checksum::fold(checksum::words(&client) + checksum::words(&service));
            let bytes = reset(&segment(ports, 7, 9, flags, 3), addresses);
            let tcp = TcpHeaderSlice::from_slice(&bytes).unwrap();
            prop_assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv6_raw(service, client, &[]).unwrap());
            let mut header = [0; 40];
            header[..8].copy_from_slice(&header6(TCP, TCP_LEN));
            let ip = Ipv6Header::from_slice(&header).unwrap().0;
            prop_assert_eq!((ip.payload_length, ip.next_header.0, ip.hop_limit), (20, TCP, TTL));
        }

        #[test]
        fn a_port_unreachable_quotes_with_the_right_checksum(
            client: [u8; 16], service: [u8; 16], quote4: [u8; QUOTE4], quote6 in proptest::array::uniform32(any::<u8>()),
        ) {
            let icmp = std::vec![unreachable4(checksum::fold(checksum::words(&quote4))).to_vec(), quote4.to_vec()].concat();
            let v4 = Icmpv4Slice::from_slice(&icmp).unwrap();
            prop_assert_eq!((v4.type_u8(), v4.code_u8()), (3, 3));
            prop_assert_eq!(v4.checksum(), v4.icmp_type().calc_checksum(v4.payload()));
            let addresses = checksum::fold(checksum::words(&client) + checksum::words(&service));
            let mut quote = [0; QUOTE6];
            quote[..32].copy_from_slice(&quote6);
            let icmp = std::vec![unreachable6(addresses, checksum::fold(checksum::words(&quote))).to_vec(), quote.to_vec()].concat();
            let v6 = Icmpv6Slice::from_slice(&icmp).unwrap();
            prop_assert_eq!((v6.type_u8(), v6.code_u8()), (1, 4));
            prop_assert!(v6.is_checksum_valid(service, client));
        }
    }

    /// The crate that checks the sums notices a wrong one.
    #[test]
    fn a_wrong_checksum_is_noticed() {
        let mut icmp = std::vec![
            unreachable4(checksum::fold(checksum::words(&[7; QUOTE4]))).to_vec(),
            [7; QUOTE4].to_vec()
        ]
        .concat();
        icmp[12] ^= 1;
        let v4 = Icmpv4Slice::from_slice(&icmp).unwrap();
        assert_ne!(v4.checksum(), v4.icmp_type().calc_checksum(v4.payload()));
    }
}
