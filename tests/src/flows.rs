//! The real flow table with pins of a test's choice, and the sweeper on it.

#![expect(clippy::unwrap_used, reason = "for tests: one that cannot go on fails")]

use std::{fs, sync::Arc, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    flow::{FlowKey, Pin, widened},
    slot::Slot,
};
use lb_userspace::{
    config::spec::{Limits, Tracking},
    dataplane::{
        Dataplane as _,
        bpf::{self, BpfMaps, SweepParts},
    },
    flows::{BackendSet, RingView, SweepResult, SweepView},
    plan::tables::Op,
};
use rustix::time::{ClockId, clock_gettime};

/// In nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// IP protocol number.
pub const TCP: u8 = 6;
/// IP protocol number.
pub const UDP: u8 = 17;
/// Slots of the one ring, which begins at 0.
pub const RING: u32 = 65_537;

/// The real maps and program, with one ring.
pub struct Table {
    /// As the controller's.
    pub maps: BpfMaps,
    /// As the sweeper's.
    pub parts: SweepParts,
    /// The flow table, for who stands for the packet path.
    pub flows: HashMap<MapData, FlowKey, Pin>,
}

impl Table {
    /// With room for so many pins and slots.
    pub fn new(flows: u32, slots: u32) -> Self {
        let limits = Limits { services: 16, backends: 64, slots, flows };
        let (maps, mut program) = bpf::load(&limits).unwrap_or_else(|e| panic!("{e}"));
        let parts = program.take_sweep_parts().unwrap();
        assert!(program.take_sweep_parts().is_none(), "there is one sweeper");
        let flows = open(&parts);
        Self { maps, parts, flows }
    }

    /// All slots of the ring.
    pub fn set_slots(&mut self, slot: Slot) {
        self.maps.apply(&Op::WriteRing(0, vec![slot; RING as usize].into())).unwrap();
    }

    /// One slot.
    pub fn set_slot(&mut self, index: u32, slot: Slot) {
        self.maps.apply(&Op::WriteSlots(0, vec![(index, slot)])).unwrap();
    }

    /// Makes a pin, or rewrites it.
    pub fn insert(&mut self, key: FlowKey, pin: Pin) {
        self.flows.insert(key, pin, 0).unwrap();
    }

    /// Whether the flow has a pin.
    pub fn has(&self, key: &FlowKey) -> bool {
        self.flows.get(key, 0).is_ok()
    }

    /// Walks here and now.
    pub fn walk(&mut self, view: SweepView) -> SweepResult {
        self.parts.walk(view, || false).unwrap_or_else(|e| panic!("{e}")).unwrap()
    }
}

/// Another handle of the flow table.
pub fn open(parts: &SweepParts) -> HashMap<MapData, FlowKey, Pin> {
    let fd = parts.flows().try_clone_to_owned().unwrap();
    HashMap::try_from(Map::HashMap(MapData::from_fd(fd).unwrap())).unwrap()
}

/// One ring at 0; backends 1 and 2 live.
pub fn view(tracking: Tracking) -> SweepView {
    let ring =
        RingView { base: 0, size: RING, tracking, idle_tcp_ns: 3600 * SECOND, idle_udp_ns: 60 * SECOND };
    let usable = Arc::new(BackendSet::from_iter([1, 2]));
    SweepView { rings: [ring].into(), usable, udp_limit: 1000, needs_walk: true }
}

/// The flow of client number `number`.
pub fn key(number: u32, protocol: u8) -> FlowKey {
    FlowKey::new(widened(number.to_be_bytes()), widened([192, 0, 2, 10]), [0xc0, 0, 0, 80], protocol)
}

/// A pin seen just now.
pub fn pin(slot: u32, backend: u16) -> Pin {
    Pin { last_seen_ns: now_ns(), slot, backend, closing: 0 }
}

/// The clock of pins, `CLOCK_MONOTONIC` in the kernel's ticks.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * SECOND + now.tv_nsec as u64
}

/// CPU time of the sweeper's thread, while there is one.
pub fn sweeper_cpu() -> Option<Duration> {
    fs::read_dir("/proc/self/task").unwrap().find_map(|task| {
        let task = task.ok()?.path();
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let stat = fs::read_to_string(task.join("schedstat")).ok()?;
        let spent = stat.split_whitespace().next()?.parse().ok()?;
        (name.trim() == "sweeper").then(|| Duration::from_nanos(spent))
    })
}
