//! The real program with maps that a test writes itself: one slot, backends by number, pins.

#![expect(clippy::unwrap_used, reason = "for tests: one that cannot go on fails")]

use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use lb_common::{
    backend::{BACKEND_PRESENT, BACKEND_ROUTED, BACKEND_USABLE, Backend, BackendStats},
    flow::{FlowKey, Pin, widened},
    outcome::Outcome,
    service::{FORWARD_L2, FORWARD_NONE, Service},
    slot::Slot,
};
use lb_userspace::{
    config::spec::Limits,
    dataplane::{
        Dataplane as _,
        bpf::{self, BpfMaps, BpfProgram, SweepParts},
    },
    plan::tables::{Op, ServiceKey},
};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::{
    flows::open,
    packet::Packet,
    prog::{LO, OWN_MAC},
};

/// Index in `RING` of the only slot.
pub const SLOT: u32 = 5;
/// Ids of backends are at most this.
pub const IDS: u16 = 8;

/// See the module.
pub struct Raw {
    maps: BpfMaps,
    program: BpfProgram,
    /// The flow table.
    pub flows: HashMap<MapData, FlowKey, Pin>,
    parts: SweepParts,
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its outcome.
    pub outcome: Outcome,
    /// The XDP action.
    pub action: u32,
    /// The backend that it went to.
    pub backend: Option<u16>,
    /// Whether that was counted as a connection.
    pub is_connection: bool,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

impl Raw {
    /// With room for so many pins. This thread stays on its CPU from here on: rates are limited on each.
    pub fn new(flows: u32) -> Self {
        stay_on_this_cpu();
        let limits = Limits { services: 16, backends: u32::from(IDS) + 1, slots: 16, flows };
        let (maps, mut program) = bpf::load(&limits).unwrap_or_else(|e| panic!("{e}"));
        let parts = program.take_sweep_parts().unwrap();
        let flows = open(&parts);
        Self { maps, program, flows, parts }
    }

    /// Listens on an address with any port, TCP and UDP; `flags` are `SERVICE_*`.
    pub fn listen(&mut self, address: IpAddr, flags: u8) {
        let service = Service {
            hash_key: 7,
            ring_base: SLOT,
            ring_size: 1,
            forward: FORWARD_L2,
            flags,
            reserved: [0; 6],
        };
        for protocol in [6, 17] {
            self.apply(&Op::PutService(ServiceKey::new(address, 0, protocol), service));
        }
        let address = ServiceKey::new(address, 0, 0);
        self.apply(&Op::PutService(address, Service { forward: FORWARD_NONE, ..Service::ADDRESS }));
    }

    /// A backend whose next hop is known, and which is not dead, or is.
    pub fn put_backend(&mut self, id: u16, is_usable: bool) {
        assert!((1..=IDS).contains(&id));
        let usable = if is_usable { BACKEND_USABLE } else { 0 };
        let flags = BACKEND_PRESENT | BACKEND_ROUTED | usable;
        let backend = Backend { next_hop: mac(id), own: OWN_MAC, ifindex: LO, flags, ..Backend::NONE };
        self.apply(&Op::PutBackend(id, backend));
    }

    /// The slot's word.
    pub fn set_slot(&mut self, slot: Slot) {
        self.apply(&Op::WriteSlots(SLOT, vec![(0, slot)]));
    }

    fn apply(&mut self, op: &Op) {
        self.maps.apply(op).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The flow's pin.
    pub fn pin(&self, key: &FlowKey) -> Option<Pin> {
        self.flows.get(key, 0).ok()
    }

    /// Makes a pin, rewrites it or deletes it.
    pub fn set_pin(&mut self, key: &FlowKey, pin: Option<Pin>) {
        match pin {
            Some(pin) => self.flows.insert(key, pin, 0).unwrap(),
            // It may not be there.
            None => drop(self.flows.remove(key)),
        }
    }

    /// All pins.
    pub fn pins(&self) -> Vec<(FlowKey, Pin)> {
        self.flows.iter().map(Result::unwrap).collect()
    }

    /// New pins refused so far.
    pub fn refused(&self) -> u64 {
        let refused = self.maps.refused_pins().unwrap();
        refused.tcp + refused.udp
    }

    /// New UDP pins that this CPU may still make.
    pub fn udp_room(&self) -> u64 {
        self.parts.udp_room().unwrap().into_iter().max().unwrap()
    }

    /// Runs the program, without a look at the counters: fast.
    pub fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let run = self.program.run_packet(frame, None).unwrap_or_else(|e| panic!("{e}"));
        (run.action, run.frame)
    }

    /// Runs the program, and reads off the counters what it did: exactly one thing.
    pub fn send(&mut self, frame: &[u8]) -> Sent {
        let before = self.counters();
        let (action, frame) = self.run(frame);
        let after = self.counters();
        let mut outcomes = Outcome::ALL.into_iter().filter(|o| {
            let at = *o as usize;
            assert!(after.0[at] - before.0[at] <= 1);
            after.0[at] != before.0[at]
        });
        let outcome = outcomes.next();
        assert_eq!(outcomes.next(), None, "one outcome a packet");
        let more = |at: usize| (before.1[at], after.1[at]);
        let mut backends = (1..=IDS).zip(0..).filter(|(_, at)| more(*at).0.packets != more(*at).1.packets);
        let backend = backends.next();
        assert_eq!(backends.next(), None, "one backend a packet");
        assert_ne!(outcome.is_some(), backend.is_some(), "sent or not");
        let is_connection = backend.is_some_and(|(_, at)| {
            let (before, after) = more(at);
            assert_eq!(after.packets, before.packets + 1);
            after.connections != before.connections
        });
        let outcome = outcome.unwrap_or(Outcome::Forwarded);
        Sent { outcome, action, backend: backend.map(|(id, _)| id), is_connection, frame }
    }

    fn counters(&self) -> ([u64; Outcome::ALL.len()], Vec<BackendStats>) {
        let ids: Vec<u16> = (1..=IDS).collect();
        (self.maps.outcomes().unwrap(), self.maps.backend_stats(&ids).unwrap())
    }
}

/// The next hop's MAC of a backend.
pub fn mac(id: u16) -> [u8; 6] {
    let [high, low] = id.to_be_bytes();
    [2, 0xaa, 0, 0, high, low]
}

/// Keeps this thread on the CPU that it is on.
pub fn stay_on_this_cpu() {
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    sched_setaffinity(None, &one).unwrap();
}

/// The key of a flow between these addresses and ports.
pub fn key(source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> FlowKey {
    let wide = |address| match address {
        IpAddr::V4(a) => widened(a.octets()),
        IpAddr::V6(a) => a.octets(),
    };
    let ([a, b], [c, d]) = (source.1.to_be_bytes(), destination.1.to_be_bytes());
    FlowKey::new(wide(source.0), wide(destination.0), [a, b, c, d], protocol)
}

/// A packet between two addresses, TCP without flags or UDP, and its flow's key.
pub fn flow(source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> (Packet, FlowKey) {
    let packet = Packet::ip(source.0, destination.0);
    let packet = match protocol {
        6 => packet.tcp(source.1, destination.1),
        _ => packet.udp(source.1, destination.1),
    };
    (packet, key(source, destination, protocol))
}
