//! Packets for tests, right by default and wrong on demand.
//!
//! [`Packet`] builds a frame layer by layer; each field can be overridden. [`verify`] says whether all lengths and checksums of a
//! frame are right, [`describe`] puts it in one line, [`Generator`] makes random and broken ones. Checksums are computed and
//! checked by etherparse, never by the code under test.
//!
//! ```
//! use lb_tests::packet::{Packet, describe, verify};
//!
//! let syn = Packet::ipv4([203, 0, 113, 7], [192, 0, 2, 10]).tcp(51234, 80).syn().seq(7).build();
//! assert_eq!(verify(&syn), Ok(()));
//! assert!(describe(&syn).ends_with("ipv4 203.0.113.7>192.0.2.10 tcp 51234>80 [S] len 54"));
//! ```

mod ip;
mod random;
#[cfg(test)]
mod tests;
mod transport;
mod verify;

pub use ip::{Extension, Ipv4, Ipv6};
pub use random::Generator;
pub use transport::{Icmp, Tcp, Transport, Udp};
pub use verify::{describe, verify};

use ip::Header;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source of the Ethernet header, unless another is given.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Destination of the Ethernet header, unless another is given.
pub const DESTINATION_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// Ethernet type of a VLAN tag (IEEE 802.1Q).
const TYPE_VLAN: u16 = 0x8100;
/// Ethernet type of an outer VLAN tag (IEEE 802.1ad).
const TYPE_OUTER_VLAN: u16 = 0x88a8;

/// A frame to be. Methods named after a field set it in the layer that was added last and has it.
///
/// Adding a second IP header puts the first around it (IP in IP).
///
/// # Panics
/// Methods panic if no layer has the field: a mistake in the test.
#[derive(Debug, Clone)]
pub struct Packet {
    macs: [[u8; 6]; 2],
    tags: Vec<(u16, u16)>,
    ether_type: Option<u16>,
    headers: Vec<Header>,
    transport: Transport,
    payload: Vec<u8>,
    padding: usize,
}

impl Packet {
    fn new(header: Header) -> Self {
        Self {
            macs: [SOURCE_MAC, DESTINATION_MAC],
            tags: Vec::new(),
            ether_type: None,
            headers: vec![header],
            transport: Transport::None(59),
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// Ethernet and IPv4, without a payload.
    pub fn ipv4(source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        Self::new(Header::V4(Ipv4::new(source.into(), destination.into())))
    }

    /// Ethernet and IPv6, without a payload.
    pub fn ipv6(source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        Self::new(Header::V6(Ipv6::new(source.into(), destination.into())))
    }

    /// Ethernet and the addresses' version of IP.
    ///
    /// # Panics
    /// If they are of different versions.
    pub fn ip(source: IpAddr, destination: IpAddr) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::ipv4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Self::ipv6(source, destination),
            _ => panic!("{source} and {destination} are of different versions"),
        }
    }

    /// Another IPv4 header inside of what is there.
    #[must_use]
    pub fn inner_ipv4(mut self, source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        self.headers.push(Header::V4(Ipv4::new(source.into(), destination.into())));
        self
    }

    /// Another IPv6 header inside of what is there.
    #[must_use]
    pub fn inner_ipv6(mut self, source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        self.headers.push(Header::V6(Ipv6::new(source.into(), destination.into())));
        self
    }

    /// MAC addresses.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.macs = [source, destination];
        self
    }

    /// Adds a VLAN tag inside of those that are there. All but the innermost have type 0x88a8.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        for tag in &mut self.tags {
            tag.0 = TYPE_OUTER_VLAN;
        }
        self.tags.push((TYPE_VLAN, id));
        self
    }

    /// Makes all tags of type 0x8100.
    #[must_use]
    pub fn plain_tags(mut self) -> Self {
        for tag in &mut self.tags {
            tag.0 = TYPE_VLAN;
        }
        self
    }

    /// The Ethernet type before the outermost IP header.
    #[must_use]
    pub fn ether_type(mut self, ether_type: u16) -> Self {
        self.ether_type = Some(ether_type);
        self
    }

    /// TCP with the given ports and no flags.
    #[must_use]
    pub fn tcp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Tcp(Tcp::new(source, destination));
        self
    }

    /// UDP.
    #[must_use]
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp(Udp::new(source, destination));
        self
    }

    /// ICMP of the innermost IP header's version. `rest` is what follows the checksum: id and sequence, or MTU.
    #[must_use]
    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        let icmp = Icmp { kind, code, rest, checksum: None };
        self.transport = match self.innermost() {
            Header::V4(_) => Transport::Icmpv4(icmp),
            Header::V6(_) => Transport::Icmpv6(icmp),
        };
        self
    }

    /// An ICMP error about this frame, quoting the IP packet in it, cut to 1,232 bytes (RFC 4443).
    #[must_use]
    pub fn icmp_error(self, kind: u8, code: u8, rest: [u8; 4], about: &[u8]) -> Self {
        let ip = verify::ip_packet(about).expect("an error is about an IP packet");
        self.icmp(kind, code, rest).payload(&ip[..ip.len().min(1232)])
    }

    /// No transport header: the payload follows IP and is of this protocol. Later fragments are made so.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.transport = Transport::None(protocol);
        self
    }

    /// What follows the transport header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Zeros after the end of the IP packet.
    #[must_use]
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// Changes the innermost IP header, which must be IPv4.
    #[must_use]
    pub fn with_ipv4(mut self, change: impl FnOnce(&mut Ipv4)) -> Self {
        match self.innermost() {
            Header::V4(header) => change(header),
            Header::V6(_) => panic!("the innermost IP header is not IPv4"),
        }
        self
    }

    /// Changes the innermost IP header, which must be IPv6.
    #[must_use]
    pub fn with_ipv6(mut self, change: impl FnOnce(&mut Ipv6)) -> Self {
        match self.innermost() {
            Header::V6(header) => change(header),
            Header::V4(_) => panic!("the innermost IP header is not IPv6"),
        }
        self
    }

    /// Changes the TCP header.
    #[must_use]
    pub fn with_tcp(mut self, change: impl FnOnce(&mut Tcp)) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => change(tcp),
            other => panic!("no TCP header: {other:?}"),
        }
        self
    }

    /// Changes the UDP header.
    #[must_use]
    pub fn with_udp(mut self, change: impl FnOnce(&mut Udp)) -> Self {
        match &mut self.transport {
            Transport::Udp(udp) => change(udp),
            other => panic!("no UDP header: {other:?}"),
        }
        self
    }

    /// Hops left: TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        match self.innermost() {
            Header::V4(header) => header.ttl = ttl,
            Header::V6(header) => header.hop_limit = ttl,
        }
        self
    }

    /// Type of service, or traffic class.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        match self.innermost() {
            Header::V4(header) => header.tos = tos,
            Header::V6(header) => header.traffic_class = tos,
        }
        self
    }

    /// Makes it a fragment at this offset, in units of 8 bytes. With IPv6, adds a fragment header.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool, id: u16) -> Self {
        match self.innermost() {
            Header::V4(header) => {
                (header.fragment_offset, header.more_fragments, header.id) = (offset, more, id);
            }
            Header::V6(header) => {
                header.extensions.push(Extension::Fragment { offset, more, id: id.into() });
            }
        }
        self
    }

    /// Adds an IPv6 extension header.
    #[must_use]
    pub fn extension(self, extension: Extension) -> Self {
        self.with_ipv6(|header| header.extensions.push(extension))
    }

    /// Sets SYN.
    #[must_use]
    pub fn syn(self) -> Self {
        self.with_tcp(|tcp| tcp.flags |= Tcp::SYN)
    }

    /// Sets ACK and the number.
    #[must_use]
    pub fn ack(self, number: u32) -> Self {
        self.with_tcp(|tcp| (tcp.flags, tcp.ack) = (tcp.flags | Tcp::ACK, number))
    }

    /// Sets FIN.
    #[must_use]
    pub fn fin(self) -> Self {
        self.with_tcp(|tcp| tcp.flags |= Tcp::FIN)
    }

    /// Sets RST.
    #[must_use]
    pub fn rst(self) -> Self {
        self.with_tcp(|tcp| tcp.flags |= Tcp::RST)
    }

    /// Sets the sequence number.
    #[must_use]
    pub fn seq(self, number: u32) -> Self {
        self.with_tcp(|tcp| tcp.seq = number)
    }

    /// Overrides the checksum of TCP, UDP or ICMP.
    #[must_use]
    pub fn checksum(mut self, checksum: u16) -> Self {
        match &mut self.transport {
            Transport::None(_) => panic!("no transport header"),
            Transport::Tcp(tcp) => tcp.checksum = Some(checksum),
            Transport::Udp(udp) => udp.checksum = Some(checksum),
            Transport::Icmpv4(icmp) | Transport::Icmpv6(icmp) => icmp.checksum = Some(checksum),
        }
        self
    }

    /// The frame, without FCS.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = [self.macs[1], self.macs[0]].concat();
        for (ether_type, tag) in &self.tags {
            frame.extend(ether_type.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        let ether_type = self.ether_type.unwrap_or_else(|| self.headers[0].ether_type());
        frame.extend(ether_type.to_be_bytes());
        frame.extend(self.build_ip());
        frame.extend(vec![0; self.padding]);
        frame
    }

    /// The IP packet alone, without Ethernet and padding.
    pub fn build_ip(&self) -> Vec<u8> {
        let addresses = self.headers[self.headers.len() - 1].addresses();
        let mut protocol = self.transport.protocol();
        let mut packet = self.transport.build(addresses, &self.payload);
        for header in self.headers.iter().rev() {
            packet = header.build(protocol, &packet);
            protocol = header.protocol();
        }
        packet
    }

    fn innermost(&mut self) -> &mut Header {
        self.headers.last_mut().expect("a packet has at least one IP header")
    }
}
