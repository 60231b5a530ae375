//! The engine and what it is told, step by step.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    flow::{FlowKey, Pin, widened},
    slot::Slot,
};
use lb_userspace::{
    config::{
        parse,
        spec::{AdminState, Limits, Spec},
    },
    controller::{
        engine::{Engine, ReconcileError},
        known::Verdict,
    },
    dataplane::{faulty::Faulty, memory::Memory},
    flows::{SweepResult, Walk},
    health::{BackendRef, Health, Reason},
    net::{NextHop, NextHopState, Unreachable},
    plan::tables::Op,
};

use crate::safety::Watched;

/// See the module.
pub struct Stage {
    engine: Option<Engine>,
    watched: Watched,
    chance: f64,
    seed: u64,
    next_hops: BTreeMap<IpAddr, NextHopState>,
    devices: BTreeMap<u32, String>,
    now: Instant,
}

impl Stage {
    /// Of whose operations this part fails.
    pub fn new(chance: f64, seed: u64) -> Self {
        let watched = Watched::new(Memory::new(Limits::default()));
        let (next_hops, devices) = Default::default();
        Self { engine: None, watched, chance, seed, next_hops, devices, now: Instant::now() }
    }

    /// Another content of the file.
    pub fn config(&mut self, file: &str) {
        let spec: Arc<Spec> = match parse(file, Path::new("scenario.yaml")) {
            Ok(loaded) => Arc::new(loaded.spec),
            Err(errors) => panic!("{errors}"),
        };
        if let Some(engine) = &mut self.engine {
            engine.set_spec(spec, self.now);
        } else {
            self.engine = Some(Engine::new(spec, Box::new(self.maps())));
        }
        self.reconcile();
    }

    fn maps(&self) -> Faulty<Watched> {
        Faulty::new(self.watched.clone(), self.chance, self.seed)
    }

    /// An event, as a line.
    pub fn step(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.as_slice() {
            ["attach", name, ifindex] => {
                self.devices.insert(ifindex.parse().expect("an index"), name.into());
            }
            ["detach", name] => self.devices.retain(|_, attached| attached != name),
            ["next_hop", address, "unreachable"] => {
                let address = address.parse().expect("an address");
                self.next_hops.insert(address, NextHopState::Unreachable(Unreachable::NoRoute));
            }
            ["next_hop", address, "via", mac, "dev", ifindex, ref source @ ..] => {
                let address = address.parse().expect("an address");
                self.next_hops
                    .insert(address, NextHopState::Resolved(next_hop(address, mac, ifindex, source)));
            }
            ["health", backend, health, ref reason @ ..] => {
                let (health, cause) = match health {
                    "up" => (Health::Up, Reason::L4Ok),
                    "down" => (Health::Down, Reason::L4Timeout),
                    "unknown" => (Health::Unknown, Reason::Init),
                    _ => panic!("{line}: no such health"),
                };
                let told = reason.join(" ");
                let cause = if told.is_empty() { cause } else { told.parse().expect("a reason") };
                self.engine().set_verdict(backend_ref(backend), Verdict { health, cause });
            }
            ["up", ref backends @ ..] => {
                for backend in backends {
                    self.engine().set_health(backend_ref(backend), Health::Up);
                }
            }
            ["started"] => self.engine().set_started(),
            ["restart"] => {
                let (spec, maps) = (Arc::clone(self.engine().spec()), self.maps());
                let engine = Engine::adopt(spec, Box::new(maps), self.now).expect("memory can be read");
                self.engine = Some(engine);
            }
            ["walk", ref pins @ ..] => {
                let walk = walk(self.engine.as_ref().expect("a configuration"), pins, self.now);
                self.engine().on_walk(walk);
            }
            ["refuse", "pin"] => self.watched.refuse_pin(),
            ["admin", backend, state] => {
                let states = [AdminState::Active, AdminState::Drain, AdminState::Disabled];
                let state = states.into_iter().find(|known| known.to_string() == state).expect("a state");
                self.engine().set_admin(backend_ref(backend), state);
            }
            ["wait", seconds] => self.now += Duration::from_secs(seconds.parse().expect("seconds")),
            ["stop", "after", operations] => {
                self.watched.refuse_after(operations.parse().expect("a number"));
                return;
            }
            _ => panic!("{line}: no such step"),
        }
        if self.engine.is_some() {
            self.reconcile();
        }
    }

    /// What a block shall hold.
    pub fn block(&mut self, name: &str) -> Vec<String> {
        let tables = self.watched.memory.tables();
        match name {
            "ops" => {
                let is_record = |op: &Op| matches!(op, Op::PutRecord(..) | Op::DeleteRecord(_));
                let done = self.watched.take_done();
                done.iter().filter(|op| !is_record(op)).map(ToString::to_string).collect()
            }
            "leaving" => {
                let services = &self.engine().compiled().services;
                let leaving = services.iter().flat_map(|s| s.leaving.iter().map(move |b| (s, b)));
                leaving.map(|(s, b)| format!("{}/{} as backend {}", s.name, b.name, b.id)).collect()
            }
            "expect" => tables.to_string().lines().map(ToOwned::to_owned).collect(),
            "outer" => {
                let source = |b: &lb_common::backend::Backend| match b.outer_source {
                    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] => IpAddr::from([a, b, c, d]),
                    octets => IpAddr::from(octets),
                };
                let backends = tables.backends.iter();
                backends
                    .map(|(id, b)| format!("backend {id} from {} sum {:#x}", source(b), b.outer_sum))
                    .collect()
            }
            _ => panic!("{name}: no such block"),
        }
    }

    /// Nothing may be left, and the maps must agree with what is believed of them.
    pub fn end(mut self) {
        let tables = self.watched.memory.tables();
        assert!(tables.is_empty(), "the scenario leaves behind:\n{tables}");
        assert_eq!(self.engine().check_drift().expect("memory can be read"), vec![]);
    }

    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("a scenario begins with a configuration")
    }

    /// As the controller does, again after each failure; unless the scenario wants it to stop.
    fn reconcile(&mut self) {
        let (next_hops, devices) = (self.next_hops.clone(), self.devices.clone());
        self.engine().set_next_hops(next_hops);
        self.engine().set_devices(devices);
        let (now, wants_stop) = (self.now, self.watched.is_refusing());
        for _ in 0..1000 {
            let result = self.engine().reconcile(now);
            assert_eq!(self.watched.take_violations(), Vec::<String>::new());
            match result {
                Ok(_) => {
                    assert!(!wants_stop, "there was nothing to stop");
                    return;
                }
                Err(ReconcileError::Apply(_)) if wants_stop && !self.watched.is_refusing() => return,
                Err(ReconcileError::Apply(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("a thousand tries were not enough");
    }
}

/// A walk over a flow table with such pins: `1x3` are three to backend 1, in the first slots that are not settled
/// and have another current backend.
fn walk(engine: &Engine, pins: &[&str], now: Instant) -> SweepResult {
    let slots: Vec<(u32, Slot)> = engine
        .applied()
        .rings
        .iter()
        .flat_map(|(base, ring)| (*base..).zip(ring.iter().copied()))
        .filter(|(_, slot)| !slot.is_settled())
        .collect();
    let mut walk = Walk::new(engine.sweep_view(), now);
    for pins in pins {
        let (backend, count) = pins.split_once('x').expect("backend x pins");
        let (backend, count) = (backend.parse().expect("a backend"), count.parse().expect("a number"));
        let others = slots.iter().filter(|(_, word)| word.current() != backend);
        let mut found = 0;
        for (slot, word) in others.take(count) {
            let key = FlowKey::new(widened(slot.to_be_bytes()), [0; 16], [0; 4], 6);
            walk.look(&key, &Pin { last_seen_ns: 1, slot: *slot, backend, closing: 0 }, |_| *word, 1);
            found += 1;
        }
        assert_eq!((found, walk.candidates().len()), (count, 0), "these pins cannot be");
    }
    walk.finish(now)
}

fn backend_ref(text: &str) -> BackendRef {
    let (service, backend) = text.split_once('/').expect("service/backend");
    BackendRef { service: service.into(), backend: backend.into() }
}

fn next_hop(address: IpAddr, mac: &str, ifindex: &str, source: &[&str]) -> NextHop {
    let octets: Vec<u8> = mac.split(':').map(|o| u8::from_str_radix(o, 16).expect("a MAC")).collect();
    let source = match source {
        ["from", source] => source.parse().expect("an address"),
        _ if address.is_ipv6() => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        _ => IpAddr::from([10, 0, 0, 1]),
    };
    NextHop {
        ifindex: ifindex.parse().expect("an index"),
        interface: format!("dev{ifindex}"),
        mac: octets.try_into().expect("six octets"),
        source_mac: [2, 0, 0, 0, 1, 0],
        source,
        mtu: 1500,
        gateway: None,
    }
}
