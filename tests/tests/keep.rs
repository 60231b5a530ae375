//! What happens to connections when the pool changes: the engine's slots, the real program, its flow table. In the
//! controls nothing is tracked, or a backend is dead, and connections break.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::{
    flow::{FlowKey, Pin},
    outcome::Outcome,
    slot::SlotState,
};
use lb_lab::root_or_skip;
use lb_tests::{
    flows::now_ns,
    packet::{Packet, Tcp},
    prog::{Prog, XDP_TX},
    raw::{flow, stay_on_this_cpu},
};
use lb_userspace::{
    config::spec::AdminState,
    controller::known::Verdict,
    health::{BackendRef, Health, Reason},
};

const SECOND: u64 = 1_000_000_000;
const CONFIG: &str = "
interfaces: [lo]
hash_seed: 7
limits: {slots: 1024, backends: 64, flows: 4096}
services:
  - {name: web, listen: ['192.0.2.10:80/tcp'], forward: l2, ring_size: 251, tracking: auto, health: {type: none},
     backends: [{name: s1, address: 10.0.0.1}, {name: s2, address: 10.0.0.2}, {name: s3, address: 10.0.0.3}]}
";
/// Ports of clients that were there first.
const OLD: std::ops::Range<u16> = 1000..1300;
/// Ports of clients that come afterwards.
const NEW: std::ops::Range<u16> = 2000..2300;

fn connection(port: u16) -> (Packet, FlowKey) {
    let [client, service] = ["203.0.113.7", "192.0.2.10"].map(|a| a.parse::<IpAddr>().unwrap());
    flow((client, port), (service, 80), 6)
}

fn syn(port: u16) -> Vec<u8> {
    connection(port).0.syn().build()
}

fn data(port: u16) -> Vec<u8> {
    connection(port).0.ack(1).payload(b"hello").build()
}

/// Number of the backend that a frame goes to (of `s2`: 2); `None` if it goes to none.
fn to(prog: &mut Prog, frame: &[u8]) -> Option<u8> {
    let (action, out) = prog.send(frame);
    (action == XDP_TX && out[..5] == [2, 0xaa, 10, 0, 0]).then(|| out[5])
}

fn open(prog: &mut Prog, ports: std::ops::Range<u16>) -> BTreeMap<u16, u8> {
    ports.map(|port| (port, to(prog, &syn(port)).expect("somebody is there"))).collect()
}

/// Connections whose data no longer goes where it went.
fn broken(prog: &mut Prog, connections: &BTreeMap<u16, u8>) -> usize {
    connections.iter().filter(|(port, backend)| to(prog, &data(**port)) != Some(**backend)).count()
}

fn of(connections: &BTreeMap<u16, u8>, backend: u8) -> BTreeSet<u16> {
    connections.iter().filter(|(_, b)| **b == backend).map(|(port, _)| *port).collect()
}

fn s2() -> BackendRef {
    BackendRef { service: "web".into(), backend: "s2".into() }
}

fn set_admin(prog: &mut Prog, state: AdminState) {
    prog.engine.set_admin(s2(), state);
    prog.reconcile();
}

fn states(prog: &Prog) -> BTreeMap<&'static str, usize> {
    let mut states = BTreeMap::new();
    for slot in prog.engine.applied().rings.values().next().unwrap().iter() {
        *states.entry(slot.state().name()).or_default() += 1;
    }
    states
}

/// The ports of the clients that have pins, by the number of the backend that they are pinned to.
fn pinned(prog: &Prog) -> BTreeMap<u16, u8> {
    let number = |id: u16| prog.engine.applied().backends[&id].address[3];
    prog.pins()
        .into_iter()
        .map(|(key, pin)| (u16::from_be_bytes([key.ports[0], key.ports[1]]), number(pin.backend)))
        .collect()
}

/// Opens connections, lets `change` happen, and answers how many of them are broken then.
fn broken_by(config: &str, change: impl Fn(&mut Prog)) -> usize {
    let mut prog = Prog::new(config);
    let old = open(&mut prog, OLD);
    change(&mut prog);
    broken(&mut prog, &old)
}

/// As [`broken_by`] without tracking.
fn broken_without_tracking(change: impl Fn(&mut Prog)) -> usize {
    broken_by(&CONFIG.replace("tracking: auto", "tracking: never"), change)
}

#[test]
fn a_drain_breaks_nothing_until_its_deadline() {
    if !root_or_skip() {
        return;
    }
    let mut prog = Prog::new(CONFIG);
    let old = open(&mut prog, OLD);
    assert_eq!(broken(&mut prog, &old), 0);
    assert_eq!(prog.pins(), [], "settled slots have none");
    let drained = of(&old, 2);
    assert!(drained.len() > 60, "{drained:?}");

    set_admin(&mut prog, AdminState::Drain);
    let moving = states(&prog)[SlotState::Moving.name()];
    assert!((83..=85).contains(&moving), "a third of 251 moves: {moving}");
    assert_eq!(broken(&mut prog, &old), 0);
    assert_eq!(pinned(&prog), drained.iter().map(|port| (*port, 2)).collect(), "seen, and pinned");
    let new = open(&mut prog, NEW);
    assert_eq!(of(&new, 2), BTreeSet::new());
    let pins = pinned(&prog);
    assert!(pins.len() > drained.len() + 60);
    assert!(new.iter().all(|(port, backend)| pins.get(port).is_none_or(|pin| pin == backend)));
    assert_eq!(broken(&mut prog, &old) + broken(&mut prog, &new), 0);
    prog.sweep();
    assert_eq!(pinned(&prog), pins, "nothing goes while slots move");
    assert_eq!(broken(&mut prog, &old) + broken(&mut prog, &new), 0);

    // Who is left is reset at the deadline, and nobody else notices.
    prog.reconcile_at(Instant::now() + Duration::from_mins(5) + Duration::from_secs(1));
    assert_eq!(states(&prog)[SlotState::Pinned.name()], moving);
    for port in &drained {
        prog.send_counted(&data(*port), Outcome::Rejected);
    }
    assert_eq!(pinned(&prog).values().filter(|backend| **backend == 2).count(), 0);
    let others: BTreeMap<u16, u8> = old.into_iter().filter(|(port, _)| !drained.contains(port)).collect();
    assert_eq!(broken(&mut prog, &others) + broken(&mut prog, &new), 0);

    assert_eq!(broken_by(CONFIG, |prog| set_admin(prog, AdminState::Drain)), 0);
    let control = broken_without_tracking(|prog| set_admin(prog, AdminState::Drain));
    assert_eq!(control, drained.len());
}

#[test]
fn another_weight_or_another_backend_breaks_nothing() {
    if !root_or_skip() {
        return;
    }
    let four = "{name: s3, address: 10.0.0.3}, {name: s4, address: 10.0.0.4}";
    for (from, to) in [
        ("address: 10.0.0.2}", "address: 10.0.0.2, weight: 10}"),
        ("address: 10.0.0.2}", "address: 10.0.0.2, weight: 900}"),
        ("{name: s3, address: 10.0.0.3}", four),
        (", {name: s3, address: 10.0.0.3}", ""),
    ] {
        let change = |tracking: &'static str| {
            move |prog: &mut Prog| {
                let wanted = CONFIG.replace(from, to).replace("tracking: auto", tracking);
                assert_ne!(wanted, CONFIG);
                prog.set_spec(&wanted);
            }
        };
        assert_eq!(broken_by(CONFIG, change("tracking: auto")), 0, "{to}");
        assert!(broken_without_tracking(change("tracking: never")) > 30, "{to}");
    }
}

#[test]
fn who_is_back_gets_new_connections_and_no_old_ones() {
    if !root_or_skip() {
        return;
    }
    let mut prog = Prog::new(CONFIG);
    prog.set_health("web", "s2", Health::Down);
    let old = open(&mut prog, OLD);
    assert_eq!(of(&old, 2), BTreeSet::new());
    prog.set_health("web", "s2", Health::Up);
    assert_eq!(broken(&mut prog, &old), 0);
    let new = open(&mut prog, NEW);
    let pins = pinned(&prog);
    assert!(of(&new, 2).len() > 60);
    assert!(of(&new, 2).iter().all(|port| pins[port] == 2));
    assert_eq!(broken(&mut prog, &old) + broken(&mut prog, &new), 0);

    let control = |prog: &mut Prog| {
        prog.set_health("web", "s2", Health::Down);
        let old = open(prog, OLD);
        prog.set_health("web", "s2", Health::Up);
        broken(prog, &old)
    };
    assert!(control(&mut Prog::new(&CONFIG.replace("tracking: auto", "tracking: never"))) > 60);
}

#[test]
fn a_dead_backends_connections_are_told_and_go_on_elsewhere() {
    if !root_or_skip() {
        return;
    }
    let mut prog = Prog::new(CONFIG);
    let old = open(&mut prog, OLD);
    set_admin(&mut prog, AdminState::Drain);
    assert_eq!(broken(&mut prog, &old), 0);
    prog.set_health("web", "s2", Health::Down);
    let (lost, kept): (BTreeMap<u16, u8>, BTreeMap<u16, u8>) = old.iter().partition(|(_, b)| **b == 2);
    assert!(lost.len() > 60);
    for port in lost.keys() {
        let key = connection(*port).1;
        assert!(prog.flows.get(&key, 0).is_ok());
        let (_, answer) = prog.send_counted(&data(*port), Outcome::Rejected);
        assert_eq!(answer[47] & Tcp::RST, Tcp::RST);
        assert!(prog.flows.get(&key, 0).is_err(), "the pin is gone");
        let again = to(&mut prog, &syn(*port)).unwrap();
        assert_ne!(again, 2);
        assert_eq!(to(&mut prog, &data(*port)), Some(again));
    }
    assert_eq!(broken(&mut prog, &kept), 0);
}

/// It is there but unwell, or asks to be left alone: no new connection, and the old ones stay.
#[test]
fn who_is_down_on_layer_7_only_keeps_its_connections() {
    if !root_or_skip() {
        return;
    }
    let fails = |cause| {
        move |prog: &mut Prog| {
            prog.engine.set_verdict(s2(), Verdict { health: Health::Down, cause });
            prog.reconcile();
            let new = open(prog, NEW);
            assert_eq!(of(&new, 2), BTreeSet::new(), "{cause:?}");
            assert_eq!(broken(prog, &new), 0, "{cause:?}");
        }
    };
    for cause in [Reason::L7Status(503), Reason::L7Timeout, Reason::L7Invalid] {
        assert_eq!(broken_by(CONFIG, fails(cause)), 0, "{cause:?}");
    }
    for cause in [Reason::L4Timeout, Reason::L4Refused, Reason::L6Invalid] {
        assert!(broken_by(CONFIG, fails(cause)) > 60, "{cause:?}: it is dead");
    }
}

#[test]
fn a_slot_that_moved_back_follows_its_pins_until_none_is_left() {
    if !root_or_skip() {
        return;
    }
    let mut prog = Prog::new(CONFIG);
    let old = open(&mut prog, OLD);
    set_admin(&mut prog, AdminState::Drain);
    assert_eq!(broken(&mut prog, &old), 0);
    let new = open(&mut prog, NEW);
    prog.engine.set_admin(s2(), AdminState::Active);
    // Pinned since two seconds ago, as far as the engine knows.
    prog.reconcile_at(Instant::now().checked_sub(Duration::from_secs(2)).unwrap());
    assert!(!states(&prog).contains_key(SlotState::Moving.name()));
    assert_eq!(broken(&mut prog, &old) + broken(&mut prog, &new), 0);
    let before = pinned(&prog);
    let newest = open(&mut prog, 3000..3300);
    assert!(of(&newest, 2).len() > 60);
    assert_eq!(pinned(&prog), before, "a pinned slot gets no more pins");

    prog.sweep();
    // Pins to where the slot points anyway are gone; the rest holds its slots.
    let left = pinned(&prog);
    assert!(!left.is_empty() && left.values().all(|backend| *backend != 2));
    assert!(states(&prog)[SlotState::Pinned.name()] > 0);
    assert_eq!(broken(&mut prog, &old) + broken(&mut prog, &new) + broken(&mut prog, &newest), 0);

    // They end; 10 s later nothing is left to hold anything.
    for port in left.keys() {
        let frame = connection(*port).0.ack(1).fin().build();
        assert_eq!(to(&mut prog, &frame), Some(left[port]));
    }
    for (key, pin) in prog.pins() {
        assert_eq!(pin.closing, 1);
        let earlier = Pin { last_seen_ns: now_ns() - 11 * SECOND, ..pin };
        prog.flows.insert(key, earlier, 0).unwrap();
    }
    prog.sweep();
    assert_eq!(prog.pins(), []);
    assert_eq!(states(&prog), BTreeMap::from([(SlotState::Settled.name(), 251)]));
    assert_eq!(broken(&mut prog, &old), 0);
}

/// What the flow table refuses belongs to previous, then and later.
#[test]
fn a_full_table_breaks_nothing() {
    if !root_or_skip() {
        return;
    }
    stay_on_this_cpu();
    let mut prog = Prog::new(&CONFIG.replace("flows: 4096", "flows: 64"));
    let old = open(&mut prog, OLD);
    set_admin(&mut prog, AdminState::Drain);
    let new = open(&mut prog, NEW);
    assert_eq!(prog.pins().len(), 64);
    let refused = of(&new, 2);
    assert!(refused.len() > 10, "refused ones go to the draining one: {refused:?}");
    let before = prog.engine.dataplane().refused_pins().unwrap().tcp;
    assert_eq!(before, refused.len() as u64);
    assert_eq!(broken(&mut prog, &old) + broken(&mut prog, &new), 0);
    assert_eq!(prog.pins().len(), 64);
    assert!(prog.engine.dataplane().refused_pins().unwrap().tcp > before, "the old ones' pins, too");

    // A stale pin is rewritten all the same: its client uses the port again.
    let (key, pin) = prog.pins()[0];
    let stale = Pin { last_seen_ns: now_ns() - 2 * SECOND, closing: 1, ..pin };
    prog.flows.insert(key, stale, 0).unwrap();
    let port = u16::from_be_bytes([key.ports[0], key.ports[1]]);
    assert_eq!(to(&mut prog, &syn(port)), Some(new[&port]));
    let after = prog.flows.get(&key, 0).unwrap();
    assert_eq!((after.closing, after.backend), (0, pin.backend));
    assert!(after.last_seen_ns > stale.last_seen_ns + SECOND);
    assert_eq!(prog.pins().len(), 64);
}

/// It has no SYN: a flow stays where its first datagram went, until that backend dies; then it goes on elsewhere.
#[test]
fn udp_flows_stay_until_their_backend_dies() {
    if !root_or_skip() {
        return;
    }
    stay_on_this_cpu();
    let udp = CONFIG.replace("80/tcp", "80/udp");
    let datagram = |port: u16| {
        let [client, service] = ["203.0.113.7", "192.0.2.10"].map(|a| a.parse::<IpAddr>().unwrap());
        flow((client, port), (service, 80), 17).0.payload(b"hello").build()
    };
    let send = |prog: &mut Prog, ports: std::ops::Range<u16>| -> BTreeMap<u16, u8> {
        ports.map(|port| (port, to(prog, &datagram(port)).expect("somebody is there"))).collect()
    };
    let mut prog = Prog::new(&udp);
    let old = send(&mut prog, OLD);
    assert_eq!(pinned(&prog), old);
    set_admin(&mut prog, AdminState::Drain);
    assert_eq!(send(&mut prog, OLD), old);
    assert_eq!(of(&send(&mut prog, NEW), 2), BTreeSet::new());
    prog.set_health("web", "s2", Health::Down);
    let after = send(&mut prog, OLD);
    assert_eq!(of(&after, 2), BTreeSet::new());
    assert!(old.iter().all(|(port, backend)| *backend == 2 || after[port] == *backend));
    assert_eq!(send(&mut prog, OLD), after);

    // The control.
    let mut prog = Prog::new(&udp.replace("tracking: auto", "tracking: never"));
    let old = send(&mut prog, OLD);
    set_admin(&mut prog, AdminState::Drain);
    assert_ne!(send(&mut prog, OLD), old);
    assert_eq!(prog.pins(), []);
}
