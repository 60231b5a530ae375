//! IPv4 and IPv6 headers (RFC 791, RFC 8200). `Option` fields override what is right.

use etherparse::checksum::Sum16BitWords;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP header of either version.
#[derive(Debug, Clone)]
pub(super) enum Header {
    V4(Ipv4),
    V6(Ipv6),
}

impl Header {
    /// Number of this protocol in the header around it.
    pub(super) fn protocol(&self) -> u8 {
        match self {
            Self::V4(_) => 4,
            Self::V6(_) => 41,
        }
    }

    pub(super) fn ether_type(&self) -> u16 {
        match self {
            Self::V4(_) => 0x0800,
            Self::V6(_) => 0x86dd,
        }
    }

    /// Source and destination.
    pub(super) fn addresses(&self) -> (IpAddr, IpAddr) {
        match self {
            Self::V4(header) => (header.source.into(), header.destination.into()),
            Self::V6(header) => (header.source.into(), header.destination.into()),
        }
    }

    pub(super) fn build(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::V4(header) => header.build(protocol, payload),
            Self::V6(header) => header.build(protocol, payload),
        }
    }
}

/// An IPv4 header.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of RFC 791")]
pub struct Ipv4 {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    pub ttl: u8,
    /// Filled with zeros to a multiple of 4 bytes; at most 40.
    pub options: Vec<u8>,
    pub version: Option<u8>,
    /// In units of 4 bytes. The header itself does not change its size.
    pub ihl: Option<u8>,
    pub total_length: Option<u16>,
    pub protocol: Option<u8>,
    pub checksum: Option<u16>,
}

impl Ipv4 {
    pub(super) fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            tos: 0,
            id: 0,
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            options: Vec::new(),
            version: None,
            ihl: None,
            total_length: None,
            protocol: None,
            checksum: None,
        }
    }

    /// The checksum covers the header as it is, overrides included: what is broken is broken alone.
    fn build(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let header_len = 20 + options.len();
        assert!(header_len <= 60, "IPv4 has room for 40 bytes of options");
        let ihl = self.ihl.unwrap_or((header_len / 4) as u8);
        let total_length = self.total_length.unwrap_or((header_len + payload.len()) as u16);
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
        let mut packet = vec![self.version.unwrap_or(4) << 4 | ihl, self.tos];
        packet.extend(total_length.to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend((flags | self.fragment_offset).to_be_bytes());
        packet.extend([self.ttl, self.protocol.unwrap_or(protocol), 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(options);
        let sum = Sum16BitWords::new().add_slice(&packet).ones_complement().to_be();
        packet[10..12].copy_from_slice(&self.checksum.unwrap_or(sum).to_be_bytes());
        packet.extend(payload);
        packet
    }
}

/// An IPv6 header with extension headers.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of RFC 8200")]
pub struct Ipv6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    pub hop_limit: u8,
    /// In this order.
    pub extensions: Vec<Extension>,
    pub version: Option<u8>,
    pub payload_length: Option<u16>,
    /// Of the IPv6 header itself.
    pub next_header: Option<u8>,
}

/// An IPv6 extension header. Bodies are filled with zeros to the size that the header's length can say.
#[derive(Debug, Clone)]
pub enum Extension {
    /// Options, without the first two bytes. Empty: `PadN`.
    HopByHop(Vec<u8>),
    /// From the routing type on. Empty: type 0, no segments left.
    Routing(Vec<u8>),
    /// Options, without the first two bytes. Empty: `PadN`.
    DestinationOptions(Vec<u8>),
    /// A fragment.
    Fragment {
        /// In units of 8 bytes.
        offset: u16,
        /// More fragments follow.
        more: bool,
        /// Identification.
        id: u32,
    },
    /// Authentication header (RFC 4302) with this integrity value.
    Authentication(Vec<u8>),
    /// Anything: the bytes of a whole header with its number; the first byte becomes the next header's.
    Raw(u8, Vec<u8>),
}

impl Extension {
    fn number(&self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Fragment { .. } => 44,
            Self::Authentication(_) => 51,
            Self::DestinationOptions(_) => 60,
            Self::Raw(number, _) => *number,
        }
    }

    fn build(&self, next_header: u8) -> Vec<u8> {
        match self {
            Self::HopByHop(body) | Self::DestinationOptions(body) if body.is_empty() => {
                vec![next_header, 0, 1, 4, 0, 0, 0, 0]
            }
            Self::HopByHop(body) | Self::Routing(body) | Self::DestinationOptions(body) => {
                let mut header = [&[next_header, 0], &body[..]].concat();
                header.resize(header.len().next_multiple_of(8), 0);
                header[1] = (header.len() / 8 - 1) as u8;
                header
            }
            Self::Fragment { offset, more, id } => {
                let mut header = vec![next_header, 0];
                header.extend((offset << 3 | u16::from(*more)).to_be_bytes());
                header.extend(id.to_be_bytes());
                header
            }
            Self::Authentication(value) => {
                let mut header = vec![next_header, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
                header.extend(value);
                // RFC 4302, section 2.2: IPv6 keeps headers at multiples of 8 bytes; the length is in units of 4, less 2.
                header.resize(header.len().next_multiple_of(8), 0);
                header[1] = (header.len() / 4 - 2) as u8;
                header
            }
            Self::Raw(_, bytes) => {
                let mut header = bytes.clone();
                if let Some(first) = header.first_mut() {
                    *first = next_header;
                }
                header
            }
        }
    }
}

impl Ipv6 {
    pub(super) fn new(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self {
            source,
            destination,
            traffic_class: 0,
            flow_label: 0,
            hop_limit: 64,
            extensions: Vec::new(),
            version: None,
            payload_length: None,
            next_header: None,
        }
    }

    fn build(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut next = protocol;
        let mut body = payload.to_vec();
        for extension in self.extensions.iter().rev() {
            body = [extension.build(next), body].concat();
            next = extension.number();
        }
        let version = u32::from(self.version.unwrap_or(6));
        let word = version << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        let mut packet = word.to_be_bytes().to_vec();
        packet.extend(self.payload_length.unwrap_or(body.len() as u16).to_be_bytes());
        packet.extend([self.next_header.unwrap_or(next), self.hop_limit]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(body);
        packet
    }
}
