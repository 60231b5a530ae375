//! What is known, and what a new file makes of it. Faults and drift: `tests/plan_properties`.

use std::{path::Path, time::Duration};

use super::*;
use crate::{
    config::{parse, spec::Limits},
    dataplane::memory::Memory,
    net::{NextHop, Unreachable},
};

const THREE: &str = "
    - {name: s1, address: 10.0.0.11}
    - {name: s2, address: 10.0.0.12}
    - {name: s3, address: 10.0.0.13}";

fn spec(backends: &str) -> Arc<Spec> {
    spec_with("l2", backends)
}

fn spec_with(forward: &str, backends: &str) -> Arc<Spec> {
    let text = format!(
        "interfaces: [eth0]\nservices:\n- name: web\n  listen: ['192.0.2.10:80/tcp']\n  forward: {forward}\n  \
         ring_size: 251\n  backends:{backends}\n"
    );
    Arc::new(parse(&text, Path::new("test.yaml")).expect("valid").spec)
}

fn key(backend: &str) -> BackendRef {
    BackendRef { service: "web".into(), backend: backend.into() }
}

fn hop(last: u8, source: [u8; 4]) -> (IpAddr, NextHopState) {
    let hop = NextHop {
        ifindex: 2,
        interface: "eth0".into(),
        mac: [2, 0, 0, 0, 0, last],
        source_mac: [2, 0, 0, 0, 1, 0],
        source: source.into(),
        mtu: 1500,
        gateway: None,
    };
    ([10, 0, 0, last].into(), NextHopState::Resolved(hop))
}

fn without(name: &str) -> String {
    format!("\n{}", THREE.lines().filter(|line| !line.contains(name)).collect::<Vec<_>>().join("\n"))
}

/// All of `THREE` up and reachable.
fn running() -> Engine {
    running_on(Memory::new(Limits::default()))
}

fn running_on(memory: Memory) -> Engine {
    let mut engine = Engine::new(spec(THREE), Box::new(memory));
    engine.set_devices([(2, "eth0".to_owned())].into());
    engine.set_next_hops((11..=14).map(|last| hop(last, [10, 0, 0, 1])).collect());
    for name in ["s1", "s2", "s3"] {
        engine.set_health(key(name), Health::Up);
    }
    engine.reconcile(Instant::now()).expect("it fits");
    engine
}

/// Slots by name, after a reconciliation.
fn slots(engine: &mut Engine) -> Vec<(String, u32)> {
    engine.reconcile(Instant::now()).expect("it fits");
    slots_of(engine.compiled())
}

fn slots_of(compiled: &Compiled) -> Vec<(String, u32)> {
    compiled.services[0].backends.iter().map(|b| (b.name.to_string(), b.slots)).collect()
}

fn counts(engine: &mut Engine) -> Vec<u32> {
    slots(engine).into_iter().map(|(_, slots)| slots).collect()
}

#[test]
fn an_operators_word_survives_reloads_until_the_file_changes_the_state() {
    let mut engine = running();
    engine.set_admin(key("s1"), AdminState::Drain);
    engine.set_spec(spec(&THREE.replace("s2, address", "s2, weight: 50, address")), Instant::now());
    assert_eq!(counts(&mut engine)[0], 0, "an unrelated change leaves it draining");
    engine.set_spec(spec(&THREE.replace("s1, address", "s1, state: drain, address")), Instant::now());
    engine.set_spec(spec(THREE), Instant::now());
    assert_ne!(counts(&mut engine)[0], 0, "the file changed the state there and back");
}

#[test]
fn the_file_wins_where_it_changes_the_state() {
    let mut engine = running();
    engine.set_admin(key("s1"), AdminState::Disabled);
    let new = spec(&THREE.replace("s1, address", "s1, state: drain, address"));
    engine.set_spec(Arc::clone(&new), Instant::now());
    let service = &new.services[0];
    assert_eq!(engine.admin(service, &service.backends[0]), AdminState::Drain);
}

#[test]
fn a_backend_that_left_and_returns_is_as_the_file_says() {
    let mut engine = running();
    let before = counts(&mut engine);
    let id = engine.compiled().services[0].backends[0].id;
    engine.set_admin(key("s1"), AdminState::Drain);
    engine.set_spec(spec(&without("s1")), Instant::now());
    engine.reconcile(Instant::now()).expect("it fits");
    let left = &engine.compiled().services[0].leaving;
    assert_eq!((&*left[0].name, left[0].id, left[0].usable, left[0].moves_away), ("s1", id, true, true));
    engine.set_spec(spec(THREE), Instant::now());
    let new = Arc::clone(engine.spec());
    assert_eq!(engine.admin(&new.services[0], &new.services[0].backends[0]), AdminState::Active);
    assert_eq!(counts(&mut engine), before, "it was probed all the time");
    assert_eq!(engine.compiled().services[0].backends[0].id, id);
    assert!(engine.compiled().services[0].leaving.is_empty());
}

#[test]
fn a_backend_that_left_and_returns_to_drain_goes_on_draining() {
    let mut engine = running();
    let start = Instant::now();
    engine.set_spec(spec(&without("s1")), start);
    engine.reconcile(start).expect("it fits");
    let later = start + Duration::from_secs(100);
    engine.set_spec(spec(&THREE.replace("s1, address", "s1, state: drain, address")), later);
    engine.reconcile(later).expect("it fits");
    assert_eq!(engine.known().drain_since(&key("s1")), Some(start));
    engine.set_spec(spec(&THREE.replace("s1, address", "s1, state: disabled, address")), later);
    engine.reconcile(later).expect("it fits");
    assert_eq!(engine.known().drain_since(&key("s1")), None);
}

#[test]
fn a_backend_that_left_and_returns_disabled_waits_for_a_verdict_when_it_is_enabled() {
    let mut engine = running();
    engine.set_spec(spec(&without("s1")), Instant::now());
    engine.set_spec(spec(&THREE.replace("s1, address", "s1, state: disabled, address")), Instant::now());
    engine.set_spec(spec(THREE), Instant::now());
    assert_eq!(counts(&mut engine)[0], 0);
}

/// Until the network answers, what another run sent packets by is as good as it was.
#[test]
fn an_adopted_way_holds_until_the_network_answers() {
    let memory = Memory::new(spec(THREE).limits);
    let mut first = running_on(memory.clone());
    let before = counts(&mut first);
    let mut engine =
        Engine::adopt(spec(THREE), Box::new(memory), Instant::now()).expect("memory can be read");
    engine.set_devices([(2, "eth0".to_owned())].into());
    assert_eq!(counts(&mut engine), before);
    engine.set_next_hops(
        (11..=14).map(|last| (IpAddr::from([10, 0, 0, last]), NextHopState::Pending)).collect(),
    );
    assert_eq!(counts(&mut engine), before);
    let no_route = || NextHopState::Unreachable(Unreachable::NoRoute);
    engine.set_next_hops(
        [([10, 0, 0, 11].into(), no_route()), ([10, 0, 0, 12].into(), NextHopState::Pending)].into(),
    );
    let after = counts(&mut engine);
    assert!(after[0] == 0 && after[1] > 0 && after[2] > 0, "{after:?}");
    engine.set_next_hops([([10, 0, 0, 11].into(), NextHopState::Pending)].into());
    assert_eq!(counts(&mut engine)[0], 0, "the network has answered");
}

/// A backend that was disabled is none that leaves, though the controller was away when it left the file.
#[test]
fn who_was_disabled_or_dead_does_not_leave_over_a_restart() {
    for (name, is_kept) in [("s1", false), ("s2", false), ("s3", true)] {
        let memory = Memory::new(spec(THREE).limits);
        let mut first = running_on(memory.clone());
        first.set_admin(key("s1"), AdminState::Disabled);
        first.set_health(key("s2"), Health::Down);
        first.reconcile(Instant::now()).expect("it fits");
        let mut engine = Engine::adopt(spec(&without(name)), Box::new(memory), Instant::now()).expect("read");
        engine.set_devices([(2, "eth0".to_owned())].into());
        engine.reconcile(Instant::now()).expect("it fits");
        assert_eq!(engine.compiled().services[0].leaving.len(), usize::from(is_kept), "{name}");
    }
}

/// Nobody is left to name the service of a ring, but connections are pinned in it.
#[test]
fn a_ring_that_names_nobody_is_adopted() {
    let memory = Memory::new(spec(THREE).limits);
    let mut first = running_on(memory.clone());
    first.set_verdict(key("s1"), Verdict { health: Health::Down, cause: Reason::L7Status(503) });
    first.reconcile(Instant::now()).expect("it fits");
    for name in ["s1", "s2", "s3"] {
        first.set_health(key(name), Health::Down);
    }
    first.reconcile(Instant::now()).expect("it fits");
    let before = memory.tables();
    let pinned = before.rings[&0].iter().filter(|slot| slot.current() == 0 && !slot.is_settled()).count();
    assert!(pinned > 80, "{pinned}");
    let mut engine = Engine::adopt(spec(THREE), Box::new(memory.clone()), Instant::now()).expect("read");
    engine.set_devices([(2, "eth0".to_owned())].into());
    engine.reconcile(Instant::now()).expect("it fits");
    assert_eq!(memory.tables().rings, before.rings);
}

/// Three servers are replaced by three others where there are ids for four: they wait, and get them.
#[test]
fn ids_that_are_short_come_free() {
    let limits = Limits { backends: 5, ..Limits::default() };
    let limited = |text: &str| Arc::new(Spec { limits, ..(*spec(text)).clone() });
    let old = limited(THREE);
    let mut engine = Engine::new(Arc::clone(&old), Box::new(Memory::new(limits)));
    engine.set_devices([(2, "eth0".to_owned())].into());
    engine.set_next_hops((11..=26).map(|last| hop(last, [10, 0, 0, 1])).collect());
    let start = Instant::now();
    for name in ["s1", "s2", "s3"] {
        engine.set_health(key(name), Health::Up);
    }
    engine.reconcile(start).expect("it fits");
    let new = limited(&THREE.replace("10.0.0.1", "10.0.0.2"));
    engine.preview(&new, start).expect_err("a reload says so first");
    engine.set_spec(new, start);
    for name in ["s1", "s2", "s3"] {
        engine.set_health(key(name), Health::Up);
    }
    let mut waited = 0;
    loop {
        let now = start + Duration::from_secs(waited);
        let result = engine.reconcile(now);
        let service = &engine.compiled().services[0];
        let slots: u32 = service.backends.iter().map(|b| b.slots).sum();
        assert_eq!(slots, 251, "the one that has an id takes all of it");
        match result {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("all 4 backend ids"), "{error}"),
        }
        assert_eq!(service.leaving.len(), if waited < 300 { 3 } else { 0 }, "after {waited} s");
        waited += 10;
    }
    let (drain, quarantine) = (300, 60);
    assert_eq!(waited, drain + quarantine);
    assert!(engine.compiled().services[0].backends.iter().all(|b| b.id != 0 && b.eligible));
}

/// A larger ring finds no place until its predecessor's neighbour is gone; the old one serves meanwhile.
#[test]
fn a_ring_without_room_stays_as_it_is() {
    let limits = Limits { slots: 600, ..Limits::default() };
    let sized = |size: &str| {
        let spec = (*spec(THREE)).clone();
        let ring_size = size.parse().expect("a number");
        let services = vec![ServiceSpec { ring_size, ..spec.services[0].clone() }];
        Arc::new(Spec { limits, services, ..spec })
    };
    let mut engine = Engine::new(sized("251"), Box::new(Memory::new(limits)));
    engine.set_devices([(2, "eth0".to_owned())].into());
    engine.set_next_hops((11..=14).map(|last| hop(last, [10, 0, 0, 1])).collect());
    for name in ["s1", "s2", "s3"] {
        engine.set_health(key(name), Health::Up);
    }
    engine.reconcile(Instant::now()).expect("it fits");
    engine.set_spec(sized("509"), Instant::now());
    engine.set_health(key("s1"), Health::Down);
    let error = engine.reconcile(Instant::now()).expect_err("251 + 509 slots do not fit");
    assert!(error.to_string().contains("no 509 free slots"), "{error}");
    assert_eq!(slots_of(engine.compiled())[0], ("s1".into(), 0), "a verdict counts all the same");
    let service = engine.applied().services.values().find(|s| !s.is_address()).expect("it stays");
    assert_eq!(service.ring_size, 251);
    engine.set_spec(sized("241"), Instant::now());
    engine.reconcile(Instant::now()).expect("there is room for it");
}

/// A pin that was refused may have been a leaving backend's: it is not forgotten for want of pins.
#[test]
fn a_leaving_backend_is_forgotten_only_where_pins_can_be_made() {
    let mut engine = running();
    let start = Instant::now();
    engine.set_spec(spec(&without("s1")), start);
    engine.reconcile(start).expect("it fits");
    let at = |seconds| start + Duration::from_secs(seconds);
    let walk = |engine: &mut Engine, now: Instant| {
        let walk = crate::flows::Walk::new(engine.sweep_view(), now).finish(now);
        engine.on_walk(walk);
        engine.reconcile(now).expect("it fits");
        engine.take_forgot()
    };
    assert!(!walk(&mut engine, at(29)));
    engine.refused_at = Some(at(29));
    assert!(!walk(&mut engine, at(58)));
    assert!(walk(&mut engine, at(59)));
    assert_eq!(engine.applied().backends.len(), 2);
}

#[test]
fn another_name_changes_nothing() {
    let mut engine = running();
    engine.set_admin(key("s3"), AdminState::Drain);
    let before = slots(&mut engine);
    let ids: Vec<u16> = engine.compiled().services[0].backends.iter().map(|b| b.id).collect();
    engine.set_spec(spec(&THREE.replace("s1", "one").replace("s3", "three")), Instant::now());
    let after = slots(&mut engine);
    assert_eq!(after[0], ("one".into(), before[0].1));
    assert_eq!(after[2], ("three".into(), 0), "it still drains");
    assert_eq!(ids, engine.compiled().services[0].backends.iter().map(|b| b.id).collect::<Vec<_>>());
}

#[test]
fn names_that_are_exchanged_take_nothing_along() {
    let mut engine = running();
    engine.set_health(key("s1"), Health::Down);
    engine.set_admin(key("s2"), AdminState::Drain);
    let exchanged = THREE.replace("s1", "x").replace("s2", "s1").replace("{name: x", "{name: s2");
    engine.set_spec(spec(&exchanged), Instant::now());
    assert_eq!(slots(&mut engine), [("s2".into(), 0), ("s1".into(), 0), ("s3".into(), 251)]);
    engine.set_health(key("s2"), Health::Up);
    let after = counts(&mut engine);
    assert!(after[0] > 0 && after[1] == 0, "10.0.0.11 was down, 10.0.0.12 drains: {after:?}");
}

#[test]
fn a_server_under_anothers_name_is_unknown() {
    let mut engine = running();
    engine.set_spec(spec(&THREE.replace("10.0.0.11", "10.0.0.14")), Instant::now());
    assert_eq!(counts(&mut engine)[0], 0);
}

#[test]
fn a_disabled_backend_waits_for_a_verdict_when_it_is_enabled() {
    let mut engine = running();
    engine.set_admin(key("s1"), AdminState::Disabled);
    engine.set_admin(key("s1"), AdminState::Active);
    assert_eq!(counts(&mut engine)[0], 0);
    engine.set_health(key("s1"), Health::Up);
    assert_ne!(counts(&mut engine)[0], 0);
    engine.set_spec(spec(&THREE.replace("s1, address", "s1, state: disabled, address")), Instant::now());
    engine.set_spec(spec(THREE), Instant::now());
    assert_eq!(counts(&mut engine)[0], 0);
}

#[test]
fn a_preview_counts_new_servers_as_up_and_changes_nothing() {
    let mut engine = running();
    engine.set_health(key("s2"), Health::Down);
    let before = slots(&mut engine);
    let new = spec(&format!("{THREE}\n    - {{name: s4, address: 10.0.0.99}}"));
    let preview = engine.preview(&new, Instant::now()).expect("it fits");
    let slots_then: Vec<u32> = slots_of(&preview).into_iter().map(|(_, slots)| slots).collect();
    assert_eq!(slots_then[1], 0, "who is down stays so");
    assert!(slots_then[3] > 80, "{slots_then:?}");
    assert_eq!(slots(&mut engine), before);
    assert_eq!(engine.spec().services[0].backends.len(), 3);
}

#[test]
fn what_stands_between_us_and_a_backend_is_said() {
    let mut engine = running();
    let address = IpAddr::from([10, 0, 0, 11]);
    assert_eq!(engine.known().obstacle(address), None);
    assert!(engine.known().next_hops_settled());
    engine.set_next_hops([hop(11, [0, 0, 0, 0])].into());
    assert_eq!(engine.known().obstacle(address), None, "l2 needs no source");
    assert!(!engine.known().next_hops_settled(), "s2 has no answer yet");
    assert_eq!(
        engine.known().obstacle([10, 0, 0, 12].into()).expect("unknown"),
        "its next hop is not known yet"
    );
    engine.set_spec(spec_with("ipip", THREE), Instant::now());
    assert_eq!(
        engine.known().obstacle(address).expect("no source"),
        "this host has no address to reach 10.0.0.11 from; give eth0 one"
    );
    assert_eq!(counts(&mut engine), [0, 0, 0]);
    engine.set_devices(BTreeMap::new());
    assert_eq!(
        engine.known().obstacle(address).expect("not ours"),
        "10.0.0.11 is behind eth0, which is not among `interfaces`; add it there"
    );
    engine.set_next_hops([(address, NextHopState::Unreachable(Unreachable::NoRoute))].into());
    assert_eq!(engine.known().obstacle(address).expect("no route"), "10.0.0.11 has no route");
}

/// Memory that counts packets: as many as the id says, of each backend that was ever put; and that fails to say so once.
struct Counting(Memory, std::sync::atomic::AtomicBool);

impl Dataplane for Counting {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.0.apply(op)
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.0.snapshot(expected)
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        self.0.adopt()
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        self.0.refused_pins()
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        if self.1.swap(false, std::sync::atomic::Ordering::Relaxed) {
            return Err(ApplyError { op: "read".into(), reason: "EINTR".into() });
        }
        Ok(ids
            .iter()
            .map(|id| BackendStats { packets: 100 + u64::from(*id), ..Default::default() })
            .collect())
    }

    fn outcomes(&self) -> Result<[u64; lb_common::outcome::Outcome::ALL.len()], ApplyError> {
        self.0.outcomes()
    }
}

#[test]
fn counters_of_a_deleted_backend_stay_though_reading_them_failed_once() {
    let old = spec(THREE);
    let mut engine = Engine::new(Arc::clone(&old), Box::new(Counting(Memory::new(old.limits), true.into())));
    engine.reconcile(Instant::now()).expect("nothing is read yet");
    engine.set_spec(spec("\n    - {name: s2, address: 10.0.0.12}"), Instant::now());
    engine.reconcile(Instant::now()).expect("those that leave keep their flows for a while");
    assert_eq!(engine.applied().backends.len(), 3);
    let later = Instant::now() + old.services[0].drain_timeout;
    engine.reconcile(later).expect_err("the counters cannot be read");
    assert_eq!(engine.applied().backends.len(), 3);
    engine.reconcile(later).expect("they can");
    assert_eq!(engine.applied().backends.len(), 1);
    assert_eq!(engine.left_behind("web").packets, 101 + 103);
    assert_eq!(engine.left_behind_packets(), 204);
    assert_eq!(engine.left_behind("mail"), BackendStats::default());
}

/// Slots that move after each of the verdicts, and after the drain that follows them.
fn moving_after(young: Duration, verdicts: &[&str]) -> Vec<u32> {
    let spec = spec(THREE);
    let mut engine = Engine::new(Arc::clone(&spec), Box::new(Memory::new(spec.limits))).with_young(young);
    engine.set_devices([(2, "eth0".to_owned())].into());
    engine.set_next_hops((11..=14).map(|last| hop(last, [10, 0, 0, 1])).collect());
    let mut now = Instant::now();
    let mut moving = Vec::new();
    let mut after = |engine: &mut Engine| {
        now += Duration::from_millis(50);
        engine.reconcile(now).expect("it fits");
        moving.push(engine.compiled().services[0].moving_slots);
    };
    for name in verdicts {
        engine.set_health(key(name), Health::Up);
        after(&mut engine);
    }
    engine.set_admin(key("s1"), AdminState::Drain);
    after(&mut engine);
    moving
}

#[test]
fn first_verdicts_move_nothing_but_what_comes_after_them_does() {
    let long = Duration::from_secs(2);
    let all = moving_after(long, &["s1", "s2", "s3"]);
    assert_eq!(all[..3], [0, 0, 0]);
    assert!(all[3] > 0, "the drain is no first verdict");
    let with_one_missing = moving_after(long, &["s1", "s2"]);
    assert_eq!(with_one_missing, [0, 0, 0], "s3 may still be about to join");
    // The controls: without, and when it is over.
    let at_once = moving_after(Duration::ZERO, &["s1", "s2", "s3"]);
    assert!(at_once[0] == 0 && at_once[1] > 0 && at_once[2] > 0, "{at_once:?}");
    let over = moving_after(Duration::from_millis(40), &["s1", "s2"]);
    assert!(over[1] > 0 && over[2] > 0, "{over:?}");
}

#[test]
fn what_fits_is_what_can_be_compiled() {
    let engine = running();
    let file = spec(THREE);
    let with = |limits: Limits| {
        let engine = Engine::new(Arc::clone(&file), Box::new(Memory::new(limits)));
        let limited = Arc::new(Spec { limits, ..(*file).clone() });
        let engine = Engine { compiler: Compiler::new(&limits, engine.clock), ..engine };
        let fits = engine.fits(&limited, Instant::now()).map_err(|e| e.to_string());
        let compiles = engine.preview(&limited, Instant::now()).map(drop).map_err(|e| e.to_string());
        assert_eq!(fits, compiles, "{limits:?}");
        fits.is_ok()
    };
    assert!(engine.fits(&file, Instant::now()).is_ok());
    let enough = Limits { services: 2, backends: 4, slots: 251, flows: 1 };
    assert!(with(enough));
    assert!(!with(Limits { services: 1, ..enough }));
    assert!(!with(Limits { backends: 3, ..enough }));
    assert!(!with(Limits { slots: 250, ..enough }));
}
