//! The parser: the same code in the program, in host tests and in the fuzzer.
//!
//! It reads through [`Bytes`], which copies checked pieces, so nothing here touches a pointer. Offsets are variable:
//! up to two VLAN tags, IPv4 options, up to eight IPv6 extension headers (RFC 8200, section 4.1).
//!
//! What is malformed is only *reported* together with the destination: whether it is dropped depends on whether that
//! address is a service's.

use crate::hash::halves;
use network_types::{ip::Ipv4Hdr, ip::Ipv6Hdr, udp::UdpHdr};

/// A packet's bytes.
pub trait Bytes {
    /// Copies a `T` that starts at `at`; `None` if it does not lie wholly inside the packet.
    fn read<T: Plain>(&self, at: usize) -> Option<T>;

    /// Whether [`Self::read`] reaches so many bytes.
    fn has(&self, len: usize) -> bool;

    /// Whether the whole frame, also the parts that [`Self::read`] cannot reach, has at least `len` bytes.
    fn holds(&self, len: usize) -> bool;
}

/// Types that any bytes form.
///
/// # Safety
/// Every bit pattern must be a valid value, and there must be no padding.
pub unsafe trait Plain: Copy {}

// SAFETY: arrays of bytes; the headers of network-types 0.2 are `repr(C)` structs of byte arrays.
unsafe impl<const N: usize> Plain for [u8; N] {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Plain for Ipv6Hdr {}
// SAFETY: as above.
unsafe impl Plain for UdpHdr {}

/// IP protocol numbers.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// TCP flag bits (RFC 9293, section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// Opens a connection.
pub const TCP_SYN: u8 = 0x02;
/// Aborts one.
pub const TCP_RST: u8 = 0x04;
/// Acknowledges.
pub const TCP_ACK: u8 = 0x10;

/// Extension headers walked at most.
pub const EXTENSIONS_MAX: usize = 8;

/// Where the IP header starts, by family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// IPv4 at this offset.
    Ipv4(usize),
    /// IPv6 at this offset.
    Ipv6(usize),
    /// Anything else.
    Other,
}

/// A TCP or UDP packet that is what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, destination port, network order.
    pub ports: [u8; 4],
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// TCP flag bits; 0 for UDP.
    pub tcp_flags: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Bytes from the IP header on.
    pub ip_len: u16,
    /// Bytes of the IP header, options and extension headers included.
    pub ip_header_len: u16,
}

impl<A> Packet<A> {
    /// Whether it opens a connection: SYN without ACK.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Destination port, network order.
    #[inline(always)]
    pub fn destination_port(&self) -> [u8; 2] {
        [self.ports[2], self.ports[3]]
    }
}

/// What the IP packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<A> {
    /// TCP or UDP, sound.
    Packet(Packet<A>),
    /// To this destination, and broken or in pieces.
    Bad(A, Bad),
    /// Neither TCP nor UDP, or too short to have a destination.
    NotOurs,
}

/// Why a packet cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// A length, version or flag that cannot be.
    Malformed,
    /// A fragment: its ports may not be there.
    Fragment,
}

/// Of the Ethernet header without tags.
pub(crate) const ETH_LEN: usize = 14;
pub(crate) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

const fn is_vlan(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, [0x81, 0x00] | [0x88, 0xa8])
}

/// Finds the IP header behind Ethernet and up to two VLAN tags (IEEE 802.1Q, 802.1ad).
#[inline(always)]
pub fn network(bytes: &(impl Bytes + ?Sized)) -> Network {
    let Some(eth) = bytes.read::<[u8; ETH_LEN]>(0) else { return Network::Other };
    let mut ethertype = [eth[12], eth[13]];
    let mut at = ETH_LEN;
    if is_vlan(ethertype) {
        let Some([_, _, a, b]) = bytes.read::<[u8; 4]>(at) else { return Network::Other };
        (ethertype, at) = ([a, b], at + 4);
        if is_vlan(ethertype) {
            let Some([_, _, a, b]) = bytes.read::<[u8; 4]>(at) else { return Network::Other };
            (ethertype, at) = ([a, b], at + 4);
        }
    }
    match ethertype {
        ETHERTYPE_IPV4 => Network::Ipv4(at),
        ETHERTYPE_IPV6 => Network::Ipv6(at),
        _ => Network::Other,
    }
}

/// Parses the IPv4 packet at `at` (RFC 791).
#[inline(always)]
pub fn ipv4(bytes: &(impl Bytes + ?Sized), at: usize) -> Parsed<[u8; 4]> {
    let Some(ip) = bytes.read::<Ipv4Hdr>(at) else { return Parsed::NotOurs };
    let bad = |why| Parsed::Bad(ip.dst_addr, why);
    if ip.proto != TCP && ip.proto != UDP {
        return Parsed::NotOurs;
    }
    let header = usize::from(ip.vihl & 0x0f) * 4;
    let total = u16::from_be_bytes(ip.tot_len);
    let fits = ip.vihl >> 4 == 4 && header >= 20 && usize::from(total) >= header;
    if !fits || !bytes.holds(at + usize::from(total)) {
        return bad(Bad::Malformed);
    }
    // More fragments, or an offset; "don't fragment" and the reserved bit do not matter.
    if u16::from_be_bytes(ip.frags) & 0x3fff != 0 {
        return bad(Bad::Fragment);
    }
    match transport(bytes, ip.proto, at + header, usize::from(total) - header) {
        Some((ports, tcp_flags)) => Parsed::Packet(Packet {
            source: ip.src_addr,
            destination: ip.dst_addr,
            ports,
            protocol: ip.proto,
            tcp_flags,
            tos: ip.tos,
            ip_len: total,
            ip_header_len: header as u16,
        }),
        None => bad(Bad::Malformed),
    }
}

/// Parses the IPv6 packet at `at` (RFC 8200).
#[inline(always)]
pub fn ipv6(bytes: &(impl Bytes + ?Sized), at: usize) -> Parsed<[u8; 16]> {
    let Some(ip) = bytes.read::<Ipv6Hdr>(at) else { return Parsed::NotOurs };
    let bad = |why| Parsed::Bad(ip.dst_addr, why);
    let payload = u16::from_be_bytes(ip.payload_len);
    let end = at + 40 + usize::from(payload);
    let (protocol, l4) = match skip_extensions(bytes, ip.next_hdr, at + 40) {
        Ok(found) => found,
        Err(Skip::NotOurs) => return Parsed::NotOurs,
        Err(Skip::Bad(why)) => return bad(why),
    };
    let [first, second, ..] = ip.vcf;
    if first >> 4 != 6 || !bytes.holds(end) || l4 > end || payload > u16::MAX - 40 {
        return bad(Bad::Malformed);
    }
    match transport(bytes, protocol, l4, end - l4) {
        Some((ports, tcp_flags)) => Parsed::Packet(Packet {
            source: ip.src_addr,
            destination: ip.dst_addr,
            ports,
            protocol,
            tcp_flags,
            tos: first << 4 | second >> 4,
            ip_len: payload + 40,
            ip_header_len: (l4 - at) as u16,
        }),
        None => bad(Bad::Malformed),
    }
}

enum Skip {
    NotOurs,
    Bad(Bad),
}

/// Walks the extension headers; answers the upper protocol, if it is TCP or UDP, and where it starts.
#[inline(always)]
fn skip_extensions(bytes: &(impl Bytes + ?Sized), first: u8, start: usize) -> Result<(u8, usize), Skip> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let (mut next, mut at) = (first, start);
    for _ in 0..=EXTENSIONS_MAX {
        if next == TCP || next == UDP {
            return Ok((next, at));
        }
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return Err(Skip::NotOurs);
        }
        let Some([following, length, a, b]) = bytes.read::<[u8; 4]>(at) else {
            return Err(Skip::Bad(Bad::Malformed));
        };
        match next {
            // An atomic fragment (RFC 6946) is a whole packet; the low three bits but M are reserved.
            FRAGMENT if u16::from_be_bytes([a, b]) & 0xfff9 != 0 => return Err(Skip::Bad(Bad::Fragment)),
            FRAGMENT => at += 8,
            // Type 0 is deprecated: it multiplies traffic (RFC 5095).
            ROUTING if a == 0 => return Err(Skip::Bad(Bad::Malformed)),
            AUTHENTICATION => at += (usize::from(length) + 2) * 4,
            _ => at += (usize::from(length) + 1) * 8,
        }
        next = following;
    }
    Err(Skip::Bad(Bad::Malformed))
}

/// Whether no TCP segment has these flags.
#[inline(always)]
pub(crate) const fn is_odd(flags: u8) -> bool {
    flags & TCP_SYN != 0 && flags & (TCP_FIN | TCP_RST) != 0
}

/// Ports and TCP flags of the `len` bytes of TCP or UDP at `at`; `None` if they cannot be.
#[inline(always)]
fn transport(bytes: &(impl Bytes + ?Sized), protocol: u8, at: usize, len: usize) -> Option<([u8; 4], u8)> {
    if protocol == TCP {
        let tcp = bytes.read::<[u8; 20]>(at)?;
        let header = usize::from(tcp[12] >> 4) * 4;
        let flags = tcp[13];
        (header >= 20 && header <= len && !is_odd(flags)).then_some(([tcp[0], tcp[1], tcp[2], tcp[3]], flags))
    } else {
        let udp = bytes.read::<[u8; 8]>(at)?;
        let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        (length >= 8 && length <= len).then_some(([udp[0], udp[1], udp[2], udp[3]], 0))
    }
}

/// Whether no packet to `destination`, a service address, may come from `source` (RFC 1122, section 3.2.1.3; RFC 6890).
#[inline(always)]
pub fn is_bad_source4(source: [u8; 4], destination: [u8; 4]) -> bool {
    matches!(source[0], 0 | 127 | 224..) || u32::from_ne_bytes(source) == u32::from_ne_bytes(destination)
}

/// As [`is_bad_source4`], for IPv6: unspecified, loopback, multicast, or the service's own address.
#[inline(always)]
pub fn is_bad_source6(source: [u8; 16], destination: [u8; 16]) -> bool {
    let ([high, low], to) = (halves(source), halves(destination));
    (high == 0 && low & !1u64.to_be() == 0) || high.to_be() >> 56 == 0xff || [high, low] == to
}

/// A frame in memory, for tests, models and tools.
impl Bytes for [u8] {
    fn read<T: Plain>(&self, at: usize) -> Option<T> {
        let bytes = self.get(at..at.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` has the size of `T`; `Plain` promises that any bytes form a value; unaligned.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn has(&self, len: usize) -> bool {
        len <= self.len()
    }

    fn holds(&self, len: usize) -> bool {
        len <= self.len()
    }
}
