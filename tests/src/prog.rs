//! The real program with maps filled by the real controller's engine, for packets through BPF_PROG_TEST_RUN.

use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Arc, time::Instant};

use aya::maps::{HashMap, MapData};
use lb_common::{
    backend::BackendStats,
    flow::{FlowKey, Pin},
    outcome::Outcome,
};
use lb_userspace::{
    config,
    controller::engine::Engine,
    dataplane::bpf::{self, BpfProgram, SweepParts},
    health::{BackendRef, Health},
    net::{NextHop, NextHopState},
};

use crate::flows::open;

/// XDP actions by name.
pub use aya_actions::*;

mod aya_actions {
    /// The packet is dropped.
    pub const XDP_DROP: u32 = 1;
    /// It goes to the host's stack.
    pub const XDP_PASS: u32 = 2;
    /// It goes out by the interface it came in by.
    pub const XDP_TX: u32 = 3;
    /// It goes out by another one.
    pub const XDP_REDIRECT: u32 = 4;
}

/// MAC of the balancer's interface in [`Prog`].
pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Source of outer headers.
pub const OUTER4: [u8; 4] = [10, 0, 0, 2];
/// Source of outer headers.
pub const OUTER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Index of the interface that test packets come in by when nothing else is said: `lo`, which every namespace has.
pub const LO: u32 = 1;

/// The program, its maps, and a shadow of every counter.
pub struct Prog {
    /// What fills the maps.
    pub engine: Engine,
    /// The flow table.
    pub flows: HashMap<MapData, FlowKey, Pin>,
    parts: SweepParts,
    program: BpfProgram,
    outcomes: [u64; Outcome::ALL.len()],
    stats: BTreeMap<u16, BackendStats>,
}

impl Prog {
    /// With this configuration, every backend up, and its next hop at [`next_hop_mac`] behind `lo`.
    pub fn new(yaml: &str) -> Self {
        let spec = config::parse(yaml, Path::new("test.yaml")).unwrap_or_else(|e| panic!("{e}")).spec;
        let (maps, mut program) = bpf::load(&spec.limits).unwrap_or_else(|e| panic!("{e}"));
        let spec = Arc::new(spec);
        let mut engine = Engine::new(Arc::clone(&spec), Box::new(maps));
        engine.set_devices(BTreeMap::from([(LO, "lo".to_owned())]));
        let parts = program.take_sweep_parts().expect("nobody else has taken them");
        let flows = open(&parts);
        let (outcomes, stats) = ([0; Outcome::ALL.len()], BTreeMap::new());
        let mut prog = Self { engine, flows, parts, program, outcomes, stats };
        prog.suppose_all_up();
        prog.reconcile();
        prog
    }

    /// Another configuration; who is new is up.
    pub fn set_spec(&mut self, yaml: &str) {
        let spec = config::parse(yaml, Path::new("test.yaml")).unwrap_or_else(|e| panic!("{e}")).spec;
        self.engine.set_spec(Arc::new(spec), Instant::now());
        self.suppose_all_up();
        self.reconcile();
    }

    /// Every next hop is known, and everybody without a verdict is up.
    fn suppose_all_up(&mut self) {
        let probed = self.engine.known().probed();
        let backends: Vec<_> = probed.into_iter().map(|(_, key, address)| (key, address)).collect();
        let next_hops = backends.iter().map(|(_, a)| (*a, NextHopState::Resolved(next_hop(*a, LO))));
        self.engine.set_next_hops(next_hops.collect());
        for (key, _) in backends {
            if self.engine.health(&key) == Health::Unknown {
                self.engine.set_health(key, Health::Up);
            }
        }
    }

    /// Walks over the flow table as the sweeper does, and does what follows.
    pub fn sweep(&mut self) {
        let walk = self.parts.walk(self.engine.sweep_view(), || false).unwrap_or_else(|e| panic!("{e}"));
        self.engine.on_walk(walk.expect("nobody stopped it"));
        self.reconcile();
    }

    /// All pins.
    pub fn pins(&self) -> Vec<(FlowKey, Pin)> {
        self.flows.iter().map(|pin| pin.unwrap_or_else(|e| panic!("{e}"))).collect()
    }

    /// Brings the maps in line after a change of what the engine knows.
    pub fn reconcile(&mut self) {
        self.reconcile_at(Instant::now());
    }

    /// As [`Self::reconcile`], at another time.
    pub fn reconcile_at(&mut self, now: Instant) {
        self.engine.reconcile(now).unwrap_or_else(|e| panic!("{e}"));
    }

    /// A verdict.
    pub fn set_health(&mut self, service: &str, backend: &str, health: Health) {
        self.engine.set_health(BackendRef { service: service.into(), backend: backend.into() }, health);
        self.reconcile();
    }

    /// Runs the program; answers the XDP action and the packet afterwards. Counters are not looked at.
    pub fn send(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let run =
            self.program.run_packet(frame, None).unwrap_or_else(|e| panic!("run {} bytes: {e}", frame.len()));
        (run.action, run.frame)
    }

    /// As [`Self::send`], and asserts that exactly this outcome was counted, once, and nothing else moved.
    pub fn send_counted(&mut self, frame: &[u8], outcome: Outcome) -> (u32, Vec<u8>) {
        self.sync_counters();
        let before = (self.outcomes, self.sum());
        let sent = self.send(frame);
        self.sync_counters();
        let mut expected = before;
        if outcome.is_sent() {
            expected.1.0 += 1;
        } else {
            expected.0[outcome as usize] += 1;
        }
        let after = (self.outcomes, self.sum());
        assert_eq!(after.0, expected.0, "counters of outcomes, expected {outcome:?}");
        assert_eq!(after.1.0, expected.1.0, "packets sent, expected {outcome:?}");
        sent
    }

    /// Packets and new connections sent to each backend so far, by name.
    pub fn sent_to(&mut self, service: &str) -> BTreeMap<String, (u64, u64)> {
        self.sync_counters();
        let compiled = self.engine.compiled().services.iter().find(|s| &*s.name == service).expect("service");
        let stats = |id| self.stats.get(&id).copied().unwrap_or_default();
        let counts = |id| (stats(id).packets, stats(id).connections);
        compiled.backends.iter().map(|b| (b.name.to_string(), counts(b.id))).collect()
    }

    fn sum(&self) -> (u64, u64, u64) {
        self.stats.values().fold((0, 0, 0), |(p, b, c), s| (p + s.packets, b + s.bytes, c + s.connections))
    }

    fn sync_counters(&mut self) {
        let dataplane = self.engine.dataplane();
        self.outcomes = dataplane.outcomes().unwrap_or_else(|e| panic!("{e}"));
        let ids: Vec<u16> = self.engine.applied().backends.keys().copied().collect();
        let stats = dataplane.backend_stats(&ids).unwrap_or_else(|e| panic!("{e}"));
        self.stats = ids.into_iter().zip(stats).collect();
    }
}

/// The next hop of a backend in [`Prog`].
pub fn next_hop(address: IpAddr, ifindex: u32) -> NextHop {
    NextHop {
        ifindex,
        interface: "lo".into(),
        mac: next_hop_mac(address),
        source_mac: OWN_MAC,
        source: if address.is_ipv4() { OUTER4.into() } else { OUTER6.into() },
        mtu: 1500,
        gateway: None,
    }
}

/// 02:aa and the last four bytes of the address.
pub fn next_hop_mac(address: IpAddr) -> [u8; 6] {
    let last = match address {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => {
            let [.., a, b, c, d] = a.octets();
            [a, b, c, d]
        }
    };
    [2, 0xaa, last[0], last[1], last[2], last[3]]
}
