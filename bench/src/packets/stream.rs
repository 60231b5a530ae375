//! Streams of packets, as the driver makes them.

use std::net::IpAddr;

use lb_common::{
    checksum,
    flow::{FlowKey, widened},
    hash,
    parse::{TCP, TCP_ACK, TCP_SYN},
    service::Service,
};

use super::traffic::{self, CLIENTS6, GOLDEN, SERVICES6, Traffic};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Clients, services and servers have IPv4 addresses.
    V4,
    /// They have IPv6 ones.
    V6,
}

impl Family {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Bytes of an IP header.
    pub fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// Packets of TCP flows, without payload: `flows` clients, spread over `services`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Of all addresses.
    pub family: Family,
    /// Clients.
    pub flows: u32,
    /// Services with addresses in a row.
    pub services: u32,
    /// The first one's number, see [`service_address`].
    pub first_service: u32,
    /// SYNs, else ACKs.
    pub is_syn: bool,
}

/// Port of every service.
pub const PORT: u16 = 80;
/// Length of the link header.
pub const ETHERNET: usize = 14;
/// What services' addresses are counted from: the last four bytes, 198.18.0.0 (RFC 2544).
const SERVICES: u32 = 0xc612_0000;
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const TTL: u8 = 64;

/// The address of service number `number`.
pub fn service_address(family: Family, number: u32) -> IpAddr {
    let last = (SERVICES + number).to_be_bytes();
    match family {
        Family::V4 => last.into(),
        Family::V6 => traffic::wide(SERVICES6, last).into(),
    }
}

impl Stream {
    /// ACKs of so many flows to service number 0.
    pub fn new(family: Family, flows: u32) -> Self {
        Self { family, flows, services: 1, first_service: 0, is_syn: false }
    }

    /// As the driver is told.
    pub fn traffic(&self) -> Traffic {
        let mut ethernet = [0; ETHERNET];
        ethernet.copy_from_slice(&self.packet(0)[..ETHERNET]);
        Traffic {
            packets: 0,
            phase: 0,
            flows: self.flows,
            services: self.services,
            first_service: SERVICES + self.first_service,
            len: (ETHERNET + self.ip_len()) as u32,
            header_sum: checksum::words(&self.header4([0; 4], [0; 4], [0; 2])),
            ethernet,
            reserved: [0; 2],
        }
    }

    /// Flows of the first `repeat` packets, in order.
    pub fn sequence(&self, repeat: u32) -> impl Iterator<Item = u32> + use<> {
        let flows = self.flows;
        (0..repeat).map(move |packet| traffic::flow(packet.wrapping_mul(GOLDEN), flows))
    }

    /// Number of the service of a flow.
    pub fn service(&self, flow: u32) -> u32 {
        self.first_service + traffic::service(flow, self.services)
    }

    /// The flow's key in the flow table.
    pub fn key(&self, flow: u32) -> FlowKey {
        let client = traffic::client(flow);
        let (source, destination) = match service_address(self.family, self.service(flow)) {
            IpAddr::V4(service) => (widened(client), widened(service.octets())),
            IpAddr::V6(service) => (traffic::wide(CLIENTS6, client), service.octets()),
        };
        FlowKey::new(source, destination, ports(flow), TCP)
    }

    /// The flow's slot in its service's ring.
    pub fn slot(&self, flow: u32, service: &Service) -> u32 {
        let key = self.key(flow);
        let hash = match self.family {
            Family::V4 => hash::flow4(service.hash_key, last4(key.source), key.ports),
            Family::V6 => hash::flow6(service.hash_key, key.source, key.ports),
        };
        hash::slot(hash, service.ring_size)
    }

    /// A packet of the flow.
    pub fn packet(&self, flow: u32) -> Vec<u8> {
        let key = self.key(flow);
        let mut packet = [OWN_MAC, ROUTER_MAC].concat();
        match self.family {
            Family::V4 => {
                let (source, destination) = (last4(key.source), last4(key.destination));
                let sum = checksum::words(&self.header4(source, destination, [0; 2]));
                packet.extend([0x08, 0x00]);
                packet.extend(self.header4(source, destination, (!checksum::fold(sum)).to_ne_bytes()));
            }
            Family::V6 => {
                packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, TTL]);
                packet.extend(key.source);
                packet.extend(key.destination);
            }
        }
        packet.extend(key.ports);
        let flags = if self.is_syn { TCP_SYN } else { TCP_ACK };
        packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet
    }

    /// Bytes from the IP header on.
    pub fn ip_len(&self) -> usize {
        self.family.header_len() + 20
    }

    fn header4(&self, [a, b, c, d]: [u8; 4], [e, f, g, h]: [u8; 4], [s, t]: [u8; 2]) -> [u8; 20] {
        [0x45, 0, 0, self.ip_len() as u8, 0, 1, 0x40, 0, TTL, TCP, s, t, a, b, c, d, e, f, g, h]
    }
}

fn ports(flow: u32) -> [u8; 4] {
    let ([a, b], [c, d]) = (traffic::client_port(flow), PORT.to_be_bytes());
    [a, b, c, d]
}

fn last4([.., a, b, c, d]: [u8; 16]) -> [u8; 4] {
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use lb_common::parse::{self, Network, Parsed};

    use super::*;

    #[test]
    fn packets_are_what_the_flow_says() {
        let v4 = Stream { services: 3, first_service: 9, ..Stream::new(Family::V4, 1_000) };
        for flow in [0, 1, 999] {
            let (packet, key) = (v4.packet(flow), v4.key(flow));
            assert_eq!(parse::network(&packet[..]), Network::Ipv4(ETHERNET));
            let Parsed::Packet(parsed) = parse::ipv4(&packet[..], ETHERNET) else { panic!("{packet:?}") };
            assert_eq!((widened(parsed.source), widened(parsed.destination)), (key.source, key.destination));
            assert_eq!((parsed.ports, parsed.is_syn()), (key.ports, false));
            let mut header = [0; 20];
            header.copy_from_slice(&packet[ETHERNET..ETHERNET + 20]);
            assert_eq!(checksum::fold(checksum::words(&header)), 0xffff);
        }
        let v6 = Stream { is_syn: true, ..Stream::new(Family::V6, 1_000) };
        let (packet, key) = (v6.packet(5), v6.key(5));
        assert_eq!(parse::network(&packet[..]), Network::Ipv6(ETHERNET));
        let Parsed::Packet(parsed) = parse::ipv6(&packet[..], ETHERNET) else { panic!("{packet:?}") };
        assert_eq!(
            (parsed.source, parsed.destination, parsed.ports),
            (key.source, key.destination, key.ports)
        );
        assert!(parsed.is_syn());
    }

    #[test]
    fn every_flow_and_every_service_has_its_share() {
        for flows in [1, 3, 1_000, 100_000] {
            let stream = Stream { services: 100, ..Stream::new(Family::V4, flows) };
            let mut met = vec![0; flows as usize];
            for flow in stream.sequence(2 * flows) {
                met[flow as usize] += 1;
            }
            assert!(met.iter().all(|&n| (1..=3).contains(&n)), "{flows}: {met:?}");
            let mut of_services = [0; 100];
            (0..flows).for_each(|flow| of_services[stream.service(flow) as usize] += 1);
            let even = flows / 100;
            assert!(of_services.iter().all(|&n| n >= even / 2 && n <= 2 * even + 1), "{of_services:?}");
        }
    }
}
