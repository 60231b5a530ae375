//! The engine over maps that fail, stop half-way or are changed from outside.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::{
    backend::Backend,
    service::Service,
    slot::{Slot, SlotState},
};
use lb_userspace::{
    config::spec::{AdminState, Limits},
    controller::engine::{Engine, ReconcileError},
    dataplane::{Dataplane, faulty::Faulty, memory::Memory},
    plan::tables::{ServiceKey, Tables},
};
use proptest::{
    collection::vec,
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};

use crate::{
    safety::Watched,
    story,
    world::{Change, LIMITS, World, change, tell_word, walk},
};

const NO_VIOLATIONS: Vec<String> = Vec::new();

fn engine(dataplane: impl Dataplane + 'static) -> Engine {
    Engine::new(Arc::new(World::new().spec), Box::new(dataplane))
}

/// Tries until it is done; the failures on the way are the test's.
fn reconcile(engine: &mut Engine, world: &World) -> Result<(), ReconcileError> {
    for _ in 0..1000 {
        match engine.reconcile(world.now) {
            Err(ReconcileError::Apply(_)) => {}
            result => return result.map(drop),
        }
    }
    panic!("a thousand tries were not enough");
}

/// Each engine has read the clocks at a moment of its own.
fn without_clock(mut tables: Tables) -> Tables {
    for record in tables.records.values_mut() {
        let record = Arc::make_mut(record);
        record.drain_since_ns = record.drain_since_ns.min(1);
    }
    tables
}

/// What tables do to packets: ids and places stand for nothing.
fn meaning(tables: &Tables) -> BTreeMap<ServiceKey, (Service, Vec<Option<Backend>>)> {
    let slots = |s: &Service| {
        let ring = tables.rings.get(&s.ring_base).filter(|_| !s.is_address());
        let ring = ring.into_iter().flat_map(|ring| ring.iter());
        ring.map(|slot| tables.backends.get(&slot.current()).copied()).collect()
    };
    tables.services.iter().map(|(key, s)| (*key, (Service { ring_base: 0, ..*s }, slots(s)))).collect()
}

#[test]
fn faults_delay_but_never_change_where_it_ends() {
    let mut runner = TestRunner::deterministic();
    for seed in 0..200 {
        let (plain, watched) = (Memory::new(LIMITS), Watched::new(Memory::new(LIMITS)));
        let mut reference = engine(plain.clone());
        let mut faulty = engine(Faulty::new(watched.clone(), 0.1, seed));
        let mut world = World::new();
        for change in vec(change(), 1..16).new_tree(&mut runner).expect("no filter").current() {
            world.change(&change);
            for engine in [&mut reference, &mut faulty] {
                world.tell(engine);
                tell_word(engine, &change);
                if let Change::Walk(number) = change {
                    let walk = walk(engine, number, world.now);
                    engine.on_walk(walk);
                }
            }
            let fits = reconcile(&mut reference, &world).is_ok();
            assert_eq!(reconcile(&mut faulty, &world).is_ok(), fits, "seed {seed}: {change:?}");
            let (tables, wanted) = (without_clock(watched.memory.tables()), without_clock(plain.tables()));
            assert!(tables == wanted, "seed {seed}: {change:?}:\n{tables}\ninstead of\n{wanted}");
        }
        assert_eq!(watched.take_violations(), NO_VIOLATIONS, "seed {seed}");
    }
}

/// New changes come while the old ones still fail: each is tried once, and only the last until it is done.
#[test]
fn changes_may_overtake_failures() {
    let limits = Limits { services: 1000, backends: 1000, slots: 100_000, ..LIMITS };
    let mut runner = TestRunner::deterministic();
    for seed in 0..50 {
        let watched = Watched::new(Memory::new(limits));
        let mut world = World::new();
        world.spec.limits = limits;
        let mut faulty =
            Engine::new(Arc::new(world.spec.clone()), Box::new(Faulty::new(watched.clone(), 0.2, seed)));
        for change in vec(change(), 1..16).new_tree(&mut runner).expect("no filter").current() {
            world.change(&change);
            world.tell(&mut faulty);
            drop(faulty.reconcile(world.now));
        }
        reconcile(&mut faulty, &world).expect("it fits");
        let plain = Memory::new(limits);
        let mut fresh = Engine::new(Arc::new(world.spec.clone()), Box::new(plain.clone()));
        world.tell(&mut fresh);
        reconcile(&mut fresh, &world).expect("it fits");
        let tables = watched.memory.tables();
        let fresh = plain.tables();
        assert!(meaning(&tables) == meaning(&fresh), "seed {seed}:\n{tables}\ninstead of\n{fresh}");
        let wanted = &faulty.compiled().tables;
        assert!(&tables == wanted, "seed {seed}: something was left behind:\n{tables}\ninstead of\n{wanted}");
        assert_eq!(watched.take_violations(), NO_VIOLATIONS, "seed {seed}");
    }
}

/// Refuses each operation of each step once, alone.
#[test]
fn it_may_stop_after_any_operation() {
    let mut stops = 0;
    for step in 0..story().len() {
        for operations in 0.. {
            let (watched, stopped) = stop(step, operations);
            assert_eq!(watched.take_violations(), NO_VIOLATIONS, "step {step}, operation {operations}");
            if !stopped {
                break;
            }
            stops += 1;
        }
    }
    assert!(stops > 50, "only {stops} operations were refused");
}

/// Plays the story up to and with `step`, of which it does so many operations before one is refused. Whether there
/// was one more to refuse.
fn stop(step: usize, operations: usize) -> (Watched, bool) {
    let watched = Watched::new(Memory::new(LIMITS));
    let plain = Memory::new(LIMITS);
    let (mut engine, mut reference) = (engine(watched.clone()), engine(plain.clone()));
    let mut world = World::new();
    let mut stopped = false;
    for (index, change) in story().into_iter().take(step + 1).enumerate() {
        world.change(&change);
        world.tell(&mut engine);
        world.tell(&mut reference);
        reference.reconcile(world.now).expect("the story fits");
        if index == step {
            watched.refuse_after(operations);
            watched.take_done();
            stopped = engine.reconcile(world.now).is_err();
            assert_eq!(stopped, !watched.is_refusing());
            assert!(!stopped || watched.take_done().len() == operations);
        }
        engine.reconcile(world.now).expect("nothing is refused twice");
        let (tables, wanted) = (without_clock(watched.memory.tables()), without_clock(plain.tables()));
        assert!(tables == wanted, "{change:?} after {operations}:\n{tables}\ninstead of\n{wanted}");
    }
    (watched, stopped)
}

/// Slots stop moving while the maps fail: a walk over the pins of slots that still move there settles none.
#[test]
fn what_moves_in_the_maps_is_not_settled() {
    let watched = Watched::new(Memory::new(LIMITS));
    let mut engine = engine(watched.clone());
    let mut world = World::new();
    let states = |engine: &Engine| {
        let ring = Arc::clone(engine.compiled().services[0].ring());
        [SlotState::Settled, SlotState::Pinned, SlotState::Moving]
            .map(|state| ring.iter().filter(|slot| slot.state() == state).count())
    };
    world.change(&Change::Service(0));
    world.tell(&mut engine);
    engine.reconcile(world.now).expect("it fits");
    let drained = Change::Admin(0, 0, AdminState::Drain);
    tell_word(&mut engine, &drained);
    engine.reconcile(world.now).expect("it fits");
    let [settled, 0, moving] = states(&engine) else { panic!("nothing is pinned yet") };
    tell_word(&mut engine, &Change::Admin(0, 0, AdminState::Active));
    watched.refuse_after(1);
    engine.reconcile(world.now).expect_err("the record passes, the slots are refused");
    let mut walk_after = |seconds| {
        world.change(&Change::Seconds(seconds));
        engine.on_walk(walk(&engine, 0, world.now));
        engine.reconcile(world.now).expect("nothing is refused any more");
        states(&engine)
    };
    assert_eq!(walk_after(5), [settled, moving, 0], "the walk saw pins of slots that moved");
    assert_eq!(walk_after(0), [settled, moving, 0]);
    assert_eq!(walk_after(1), [settled + moving, 0, 0]);
}

/// Three backends up, one service.
fn running() -> (Engine, Memory, World) {
    let memory = Memory::new(LIMITS);
    let mut world = World::new();
    world.change(&Change::Service(0));
    let mut engine = engine(memory.clone());
    world.tell(&mut engine);
    engine.reconcile(world.now).expect("it fits");
    (engine, memory, world)
}

/// What somebody else does to the maps.
type Tamper<'a> = &'a dyn Fn(&mut Tables);

#[test]
fn drift_is_named_and_mended() {
    let ring = |tables: &Tables, change: fn(&mut [Slot])| {
        let mut slots = tables.rings[&0].to_vec();
        change(&mut slots);
        slots.into()
    };
    let service = ServiceKey::new([192, 0, 2, 10].into(), 80, 6);
    let orphan = ServiceKey::new([192, 0, 2, 99].into(), 443, 6);
    let cases: [(Tamper<'_>, &[&str]); 8] = [
        (&|_| {}, &[]),
        (
            &|t| t.services.retain(|key, _| *key != service),
            &["+ service 192.0.2.10:80/6 ring 0 of 101 slots"],
        ),
        (
            &|t| drop(t.rings.insert(0, ring(t, |slots| slots[7..17].fill(Slot::EMPTY)))),
            &["~ ring 0: 10 slots"],
        ),
        (&|t| drop(t.rings.remove(&0)), &["+ ring 0 of 101 slots"]),
        (&|t| t.backends.retain(|id, _| *id != 2), &["+ backend 2 10.0.0.11 via 02:00:00:00:00:01 device 3"]),
        (&|t| t.backends.extend([(9, t.backends[&1])]), &["- backend 9"]),
        (&|t| t.services.extend([(orphan, t.services[&service])]), &["- service 192.0.2.99:443/6"]),
        (&|t| t.devices = [3, 8].into(), &["+ device 2", "- device 8"]),
    ];
    for (tamper, repairs) in cases {
        let (mut engine, memory, world) = running();
        let good = memory.tables();
        memory.tamper(tamper);
        let found = engine.check_drift().expect("memory can be read");
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), repairs);
        assert_eq!(engine.reconcile(world.now).expect("it fits"), repairs.len(), "{repairs:?}");
        assert!(memory.tables() == good, "{repairs:?}: {}", memory.tables());
        assert_eq!(engine.check_drift().expect("memory can be read"), vec![], "{repairs:?}");
    }
}

/// Services that come and services that go do not fit into the map at once: those that go make room.
#[test]
fn a_full_map_is_no_dead_end() {
    let limits = Limits { services: 5, ..LIMITS };
    let watched = Watched::new(Memory::new(limits));
    let mut world = World::new();
    world.spec.limits = limits;
    let mut engine = Engine::new(Arc::new(world.spec.clone()), Box::new(watched.clone()));
    for change in [Change::Service(0), Change::Listen(0, 2), Change::Listen(0, 3), Change::Listen(0, 2)] {
        world.change(&change);
        world.tell(&mut engine);
        engine.reconcile(world.now).expect("it fits");
        assert!(watched.memory.tables() == engine.compiled().tables, "{change:?}");
        assert_eq!(watched.take_violations(), NO_VIOLATIONS);
    }
    world.change(&Change::Service(1));
    world.tell(&mut engine);
    let error = engine.reconcile(world.now).expect_err("six keys do not fit");
    assert_eq!(
        error.to_string(),
        "the services need 6 entries of one address family (one for each port of each listen, and one for each \
         address), and `limits.services` is 5; raise it"
    );
}
