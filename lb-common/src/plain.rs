//! The packets that nearly all are: TCP or UDP behind Ethernet and an IP header, without tags, options, extension headers
//! and fragments. Everything stands at a constant place, behind one comparison with the packet's end.
//!
//! What is not plain, broken packets among it, is [`crate::parse`]'s. A packet that is plain says the same there.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::parse::{Bytes, ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Plain, TCP, UDP, is_odd};

/// Offset of a plain packet's IP header.
pub const AT: usize = ETH_LEN;
const IPV4_LEN: u16 = 20;
const IPV6_LEN: u16 = 40;

/// The first bytes of a frame with an IP header `I`. Shorter frames are not plain.
#[derive(Clone, Copy)]
#[repr(C)]
struct Headers<I> {
    macs: [u8; 12],
    ethertype: [u8; 2],
    ip: I,
    transport: Transport,
}

/// The first bytes of TCP or UDP (RFC 9293, section 3.1; RFC 768).
#[derive(Clone, Copy)]
#[repr(C)]
struct Transport {
    ports: [u8; 4],
    udp_length: [u8; 2],
    others: [u8; 6],
    offset: u8,
    flags: u8,
    rest: [u8; 6],
}

const _: () = assert!(size_of::<Headers<Ipv4Hdr>>() == ETH_LEN + 40 && align_of::<Headers<Ipv4Hdr>>() == 1);
const _: () = assert!(size_of::<Headers<Ipv6Hdr>>() == ETH_LEN + 60 && align_of::<Headers<Ipv6Hdr>>() == 1);

// SAFETY: `repr(C)` of types that any bytes form, all of alignment 1.
unsafe impl Plain for Headers<Ipv4Hdr> {}
// SAFETY: as above.
unsafe impl Plain for Headers<Ipv6Hdr> {}

impl Transport {
    /// TCP flag bits, 0 for UDP, if the header can be that of `len` bytes of `protocol`.
    #[inline(always)]
    fn flags(&self, protocol: u8, len: u16) -> Option<u8> {
        if protocol == TCP {
            let header = u16::from(self.offset >> 4) * 4;
            (header >= 20 && header <= len && !is_odd(self.flags)).then_some(self.flags)
        } else {
            let length = u16::from_be_bytes(self.udp_length);
            (protocol == UDP && length >= 8 && length <= len).then_some(0)
        }
    }
}

/// The frame as a plain IPv4 packet.
#[inline(always)]
pub fn ipv4(bytes: &(impl Bytes + ?Sized)) -> Option<Packet<[u8; 4]>> {
    let Headers { ethertype, ip, transport, .. } = bytes.read::<Headers<Ipv4Hdr>>(0)?;
    let total = u16::from_be_bytes(ip.tot_len);
    let is_fragment = u16::from_ne_bytes(ip.frags) & 0x3fffu16.to_be() != 0;
    if u16::from_ne_bytes(ethertype) != u16::from_ne_bytes(ETHERTYPE_IPV4)
        || ip.vihl != 0x45
        || is_fragment
        || total < IPV4_LEN
        || !bytes.has(AT + usize::from(total))
    {
        return None;
    }
    let tcp_flags = transport.flags(ip.proto, total - IPV4_LEN)?;
    Some(Packet {
        source: ip.src_addr,
        destination: ip.dst_addr,
        ports: transport.ports,
        protocol: ip.proto,
        tcp_flags,
        tos: ip.tos,
        ip_len: total,
        ip_header_len: IPV4_LEN,
    })
}

/// The frame as a plain IPv6 packet.
#[inline(always)]
pub fn ipv6(bytes: &(impl Bytes + ?Sized)) -> Option<Packet<[u8; 16]>> {
    let Headers { ethertype, ip, transport, .. } = bytes.read::<Headers<Ipv6Hdr>>(0)?;
    let payload = u16::from_be_bytes(ip.payload_len);
    let [first, second, ..] = ip.vcf;
    if u16::from_ne_bytes(ethertype) != u16::from_ne_bytes(ETHERTYPE_IPV6)
        || first >> 4 != 6
        || payload > u16::MAX - IPV6_LEN
        || !bytes.has(AT + usize::from(IPV6_LEN) + usize::from(payload))
    {
        return None;
    }
    let tcp_flags = transport.flags(ip.next_hdr, payload)?;
    Some(Packet {
        source: ip.src_addr,
        destination: ip.dst_addr,
        ports: transport.ports,
        protocol: ip.next_hdr,
        tcp_flags,
        tos: first << 4 | second >> 4,
        ip_len: payload + IPV6_LEN,
        ip_header_len: IPV6_LEN,
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::parse::{self, Parsed};

    /// Frames that are often plain, and often nearly so.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let headers = prop::collection::vec(any::<u8>(), 94..140);
        let almost =
            (headers, any::<bool>(), prop::sample::select(&[TCP, TCP, UDP, 1][..]), 0u8..20, any::<u8>());
        almost.prop_map(|(mut frame, is_v6, protocol, what, with)| {
            let len = frame.len();
            if is_v6 {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[18..20].copy_from_slice(&(len as u16 - 54).to_be_bytes());
                frame[20] = protocol;
            } else {
                frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
                frame[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
                (frame[20], frame[21], frame[23]) = (0x40, 0, protocol);
            }
            let l4 = if is_v6 { 54 } else { 34 };
            if protocol == UDP {
                frame[l4 + 4..l4 + 6].copy_from_slice(&((len - l4) as u16).to_be_bytes());
            } else {
                (frame[l4 + 12], frame[l4 + 13]) = (0x50, 0x10);
            }
            // One byte that matters is another.
            match what {
                0 => frame[12] = with,
                1 => frame[14] = with,
                2 => frame[16] = with,
                3 => frame[17] = with,
                4 => frame[18] = with,
                5 => frame[19] = with,
                6 => frame[20] = with,
                7 => frame[l4 + 12] = with,
                8 => frame[l4 + 13] = with,
                9 => frame[l4 + 5] = with,
                10 => frame.truncate(usize::from(with) % len),
                _ => {}
            }
            frame
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn a_plain_packet_is_what_the_parser_says_and_no_other_is_plain(frame in frame()) {
            let frame = &frame[..];
            let (four, six) = (ipv4(frame), ipv6(frame));
            if let Some(packet) = four {
                prop_assert_eq!(parse::network(frame), parse::Network::Ipv4(AT));
                prop_assert_eq!(parse::ipv4(frame, AT), Parsed::Packet(packet));
            }
            if let Some(packet) = six {
                prop_assert_eq!(parse::network(frame), parse::Network::Ipv6(AT));
                prop_assert_eq!(parse::ipv6(frame, AT), Parsed::Packet(packet));
            }
            // All that the parser takes is plain, unless it is short or has something in front of its ports.
            if frame.len() >= 74 {
                match parse::network(frame) {
                    parse::Network::Ipv4(AT) => if let Parsed::Packet(p) = parse::ipv4(frame, AT) {
                        prop_assert_eq!(four.is_some(), p.ip_header_len == IPV4_LEN);
                    },
                    parse::Network::Ipv6(AT) => if let Parsed::Packet(p) = parse::ipv6(frame, AT) {
                        prop_assert_eq!(six.is_some(), p.ip_header_len == IPV6_LEN);
                    },
                    _ => prop_assert!(four.is_none() && six.is_none()),
                }
            }
        }
    }
}
