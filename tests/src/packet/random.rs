//! Random packets from a seed, most of them nearly right: what is wholly random never gets past the first check.

use super::{Extension, Packet, Tcp};
use fastrand::Rng;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A source of frames to given destinations. The same seed gives the same frames.
#[derive(Debug, Clone)]
pub struct Generator {
    rng: Rng,
    destinations: Vec<SocketAddr>,
}

impl Generator {
    /// # Panics
    /// If there is no destination.
    pub fn new(seed: u64, destinations: &[SocketAddr]) -> Self {
        assert!(!destinations.is_empty(), "random packets go somewhere");
        Self { rng: Rng::with_seed(seed), destinations: destinations.to_vec() }
    }

    /// One right frame: [`super::verify`] accepts it.
    pub fn valid(&mut self) -> Vec<u8> {
        self.packet().build()
    }

    /// One frame with a lie in a field, or one to three wounds. By chance it may be right all the same.
    pub fn broken(&mut self) -> Vec<u8> {
        let packet = self.packet();
        if self.rng.bool() {
            return self.lie(packet).build();
        }
        let mut frame = packet.build();
        for _ in 0..self.rng.u8(1..=3) {
            self.wound(&mut frame);
        }
        frame
    }

    /// Valid, broken and wholly random frames, in this order of frequency.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, and callers have no use for an iterator"
    )]
    pub fn next(&mut self) -> Vec<u8> {
        match self.rng.u8(0..16) {
            0..9 => self.valid(),
            9..15 => self.broken(),
            _ => {
                let len = self.rng.usize(14..=128);
                self.bytes(len)
            }
        }
    }

    fn packet(&mut self) -> Packet {
        let at = self.rng.usize(0..self.destinations.len());
        let destination = self.destinations[at];
        let mut packet = match destination.ip() {
            IpAddr::V4(address) => self.ipv4(address),
            IpAddr::V6(address) => self.ipv6(address),
        };
        for _ in 0..self.few(2) {
            packet = packet.vlan(self.rng.u16(1..4095));
        }
        if self.rng.u8(0..16) == 0 {
            packet = packet.inner_ipv4(self.client(), Ipv4Addr::new(198, 51, 100, self.rng.u8(1..255)));
        }
        self.transport(packet, destination.port())
    }

    fn ipv4(&mut self, destination: Ipv4Addr) -> Packet {
        let mut options = vec![1; usize::from(self.few(10)) * 4];
        if let Some(last) = options.last_mut() {
            *last = 0;
        }
        let fragment = self.rng.u8(0..16) == 0;
        let packet = Packet::ipv4(self.client(), destination).with_ipv4(|header| {
            header.options = options;
            header.id = self.rng.u16(..);
            header.tos = self.rng.u8(..);
            header.ttl = self.rng.u8(1..);
            header.dont_fragment = !fragment && self.rng.bool();
        });
        if fragment { packet.fragment(self.rng.u16(0..100), true, self.rng.u16(..)) } else { packet }
    }

    /// Extensions in the order that RFC 8200, section 4.1, recommends: etherparse insists on it.
    fn ipv6(&mut self, destination: Ipv6Addr) -> Packet {
        let source = Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(self.rng.u64(1..)));
        let mut packet = Packet::ipv6(source, destination).ttl(self.rng.u8(1..)).tos(self.rng.u8(..));
        let body = |rng: &mut Rng| vec![0; rng.usize(0..3) * 8 + 6];
        let chance = |rng: &mut Rng| rng.u8(0..12) == 0;
        if chance(&mut self.rng) {
            packet = packet.extension(Extension::HopByHop(Vec::new()));
        }
        if chance(&mut self.rng) {
            packet = packet.extension(Extension::DestinationOptions(body(&mut self.rng)));
        }
        if chance(&mut self.rng) {
            packet = packet.extension(Extension::Routing(body(&mut self.rng)));
        }
        if chance(&mut self.rng) {
            packet = packet.fragment(self.rng.u16(0..100), self.rng.bool(), self.rng.u16(..));
        }
        if chance(&mut self.rng) {
            packet = packet.extension(Extension::Authentication(vec![7; 12]));
        }
        packet
    }

    fn transport(&mut self, packet: Packet, port: u16) -> Packet {
        let source = self.rng.u16(1..);
        let len = if self.rng.bool() { 0 } else { self.rng.usize(0..=1200) };
        let payload = self.bytes(len);
        let packet = match self.rng.u8(0..16) {
            0..9 => {
                let options = vec![1; usize::from(self.few(10)) * 4];
                packet.tcp(source, port).with_tcp(|tcp| {
                    tcp.flags = *[Tcp::SYN, Tcp::ACK, Tcp::ACK | Tcp::PSH, Tcp::FIN | Tcp::ACK, Tcp::RST, 0]
                        .get(self.rng.usize(0..8))
                        .unwrap_or(&Tcp::ACK);
                    tcp.options = options;
                    tcp.seq = self.rng.u32(..);
                    tcp.ack = self.rng.u32(..);
                })
            }
            9..14 => packet.udp(source, port),
            14 => packet.icmp(self.rng.u8(200..=252), self.rng.u8(..), self.rng.u32(..).to_be_bytes()),
            // Reserved for experiments (RFC 3692).
            _ => packet.protocol(253),
        };
        packet.payload(&payload)
    }

    /// A field that claims something else.
    fn lie(&mut self, packet: Packet) -> Packet {
        let (small, word) = (self.rng.u8(0..16), self.word());
        match self.rng.u8(0..6) {
            0 => packet.ether_type(word),
            1 => self.lie_in_ip(packet),
            2 => packet.tcp(word, 80).with_tcp(|tcp| tcp.data_offset = Some(small)),
            3 => packet.udp(word, 80).with_udp(|udp| udp.length = Some(word)),
            4 => packet.udp(word, 80).checksum(word),
            _ => packet.protocol(self.rng.u8(..)),
        }
    }

    fn lie_in_ip(&mut self, mut packet: Packet) -> Packet {
        let (kind, small, byte, word) = (self.rng.u8(0..4), self.rng.u8(0..16), self.rng.u8(..), self.word());
        match packet.innermost() {
            super::Header::V4(header) => match kind {
                0 => header.version = Some(small),
                1 => header.ihl = Some(small),
                2 => header.total_length = Some(word),
                _ => header.protocol = Some(byte),
            },
            super::Header::V6(header) => match kind {
                0 => header.version = Some(small),
                1 => header.payload_length = Some(word),
                2 => header.next_header = Some(byte),
                _ => header.extensions.push(Extension::Raw(
                    *[0, 43, 44, 51, 60, 135].get(usize::from(small)).unwrap_or(&0),
                    vec![0, byte, 0, 0, 0, 0, 0, 0],
                )),
            },
        }
        packet
    }

    /// Damages a frame, mostly in its headers.
    fn wound(&mut self, frame: &mut Vec<u8>) {
        if frame.is_empty() {
            return;
        }
        let at = self.rng.usize(0..frame.len().min(100));
        match self.rng.u8(0..7) {
            0 | 1 => frame[at] ^= 1 << self.rng.u8(0..8),
            2 => frame[at] = [0, 1, 0x7f, 0x80, 0xff, 4, 5, 6][self.rng.usize(0..8)],
            3 => frame[at] = self.rng.u8(..),
            // The program test needs an Ethernet header.
            4 => frame.truncate(self.rng.usize(14..=frame.len().max(14))),
            5 => {
                frame.remove(at);
            }
            _ => frame.insert(at, self.rng.u8(..)),
        }
        frame.resize(frame.len().max(14), 0);
    }

    fn client(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.rng.u8(1..255))
    }

    /// Mostly zero, else up to `most`.
    fn few(&mut self, most: u8) -> u8 {
        if self.rng.u8(0..4) == 0 { self.rng.u8(1..=most) } else { 0 }
    }

    /// A number of an interesting size.
    fn word(&mut self) -> u16 {
        match self.rng.u8(0..4) {
            0 => self.rng.u16(0..64),
            1 => self.rng.u16(0xffc0..),
            2 => self.rng.u16(0..1500),
            _ => self.rng.u16(..),
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.rng.u8(..)).collect()
    }
}
