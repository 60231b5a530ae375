//! TCP, UDP and ICMP (RFC 9293, 768, 792, 4443). `Option` fields override what is right.

use etherparse::checksum::Sum16BitWords;
use std::net::IpAddr;

/// What follows the IP headers.
#[derive(Debug, Clone)]
pub enum Transport {
    /// No header, a payload of this protocol.
    None(u8),
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP in IPv4, usually.
    Icmpv4(Icmp),
    /// ICMP in IPv6, usually.
    Icmpv6(Icmp),
}

/// A TCP header.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of RFC 9293")]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    /// `Tcp::SYN | Tcp::ACK` and so on.
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Filled with zeros to a multiple of 4 bytes; at most 40.
    pub options: Vec<u8>,
    /// In units of 4 bytes. The header itself does not change its size.
    pub data_offset: Option<u8>,
    pub checksum: Option<u16>,
}

#[expect(missing_docs, reason = "the names of RFC 9293")]
impl Tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;

    pub(super) fn new(source: u16, destination: u16) -> Self {
        Self {
            source,
            destination,
            seq: 0,
            ack: 0,
            flags: 0,
            window: 65535,
            urgent: 0,
            options: Vec::new(),
            data_offset: None,
            checksum: None,
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        assert!(options.len() <= 40, "TCP has room for 40 bytes of options");
        let data_offset = self.data_offset.unwrap_or((5 + options.len() / 4) as u8);
        let mut header = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        header.extend(self.seq.to_be_bytes());
        header.extend(self.ack.to_be_bytes());
        header.extend([data_offset << 4, self.flags]);
        header.extend(self.window.to_be_bytes());
        header.extend([0, 0]);
        header.extend(self.urgent.to_be_bytes());
        header.extend(options);
        header
    }
}

/// A UDP header.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of RFC 768")]
pub struct Udp {
    pub source: u16,
    pub destination: u16,
    pub length: Option<u16>,
    /// `Some(0)` is none.
    pub checksum: Option<u16>,
}

impl Udp {
    pub(super) fn new(source: u16, destination: u16) -> Self {
        Self { source, destination, length: None, checksum: None }
    }
}

/// An ICMP header.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of RFC 792")]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    /// What follows the checksum.
    pub rest: [u8; 4],
    pub checksum: Option<u16>,
}

impl Transport {
    pub(super) fn protocol(&self) -> u8 {
        match self {
            Self::None(protocol) => *protocol,
            Self::Icmpv4(_) => 1,
            Self::Tcp(_) => 6,
            Self::Udp(_) => 17,
            Self::Icmpv6(_) => 58,
        }
    }

    /// Header and payload, with the checksum of the whole as it is.
    pub(super) fn build(&self, addresses: (IpAddr, IpAddr), payload: &[u8]) -> Vec<u8> {
        let (mut bytes, at, checksum) = match self {
            Self::None(_) => return payload.to_vec(),
            Self::Tcp(tcp) => (tcp.header(), 16, tcp.checksum),
            Self::Udp(udp) => {
                let length = udp.length.unwrap_or((8 + payload.len()) as u16);
                let words = [udp.source, udp.destination, length, 0];
                (words.map(u16::to_be_bytes).concat(), 6, udp.checksum)
            }
            Self::Icmpv4(icmp) | Self::Icmpv6(icmp) => {
                ([&[icmp.kind, icmp.code, 0, 0], &icmp.rest[..]].concat(), 2, icmp.checksum)
            }
        };
        bytes.extend(payload);
        let sum = match self {
            Self::Icmpv4(_) => Sum16BitWords::new(),
            _ => pseudo_header(addresses, self.protocol(), bytes.len()),
        };
        let sum = sum.add_slice(&bytes);
        let right = match self {
            // RFC 768: a sum of zero is sent as all ones.
            Self::Udp(_) => sum.to_ones_complement_with_no_zero(),
            _ => sum.ones_complement(),
        };
        let checksum = checksum.unwrap_or(right.to_be());
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// What a transport checksum covers of IP: RFC 9293, section 3.1; RFC 8200, section 8.1.
fn pseudo_header(addresses: (IpAddr, IpAddr), protocol: u8, len: usize) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    for address in [addresses.0, addresses.1] {
        sum = match address {
            IpAddr::V4(address) => sum.add_4bytes(address.octets()),
            IpAddr::V6(address) => sum.add_16bytes(address.octets()),
        };
    }
    sum.add_4bytes((len as u32).to_be_bytes()).add_2bytes([0, protocol])
}
