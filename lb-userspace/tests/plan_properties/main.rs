//! Properties of compile and diff over random histories, and of the engine over failing maps.

mod adoption;
mod engine;
mod safety;
mod slots;
mod world;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::backend::Backend;
use lb_userspace::{
    config::spec::{AdminState, OnAllDown},
    controller::engine::{Engine, ReconcileError},
    dataplane::memory::Memory,
    plan::{
        compile::Compiled,
        diff::{diff, services_go_first},
        records,
        tables::{Op, ServiceKey, Tables, address},
    },
};
use proptest::{collection::vec, prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use safety::{Watched, violations};
use slots::Watch;
use world::{Change, World, change, tell_word, walk};

const QUARANTINE: Duration = Duration::from_mins(1);
const NONE: Vec<String> = Vec::new();

/// An engine over maps in memory.
struct Machine {
    engine: Engine,
    watched: Watched,
}

impl Machine {
    fn new() -> Self {
        Self::limited(&World::new())
    }

    /// With the limits of this world.
    fn limited(world: &World) -> Self {
        let watched = Watched::new(Memory::new(world.spec.limits));
        let engine = Engine::new(Arc::new(world.spec.clone()), Box::new(watched.clone()));
        Self { engine, watched }
    }

    /// Does what a change asks for; `None` if not all of the world fits: the rest of it is done. Hands out the tables
    /// before, and the operations.
    fn follow(&mut self, world: &World) -> Option<(Compiled, Tables, Vec<Op>)> {
        world.tell(&mut self.engine);
        self.reconcile(world.now)
    }

    fn reconcile(&mut self, now: Instant) -> Option<(Compiled, Tables, Vec<Op>)> {
        let before = self.watched.memory.tables();
        self.watched.take_done();
        let fits = match self.engine.reconcile(now) {
            Ok(_) => true,
            Err(ReconcileError::Capacity(_)) => false,
            Err(error) => panic!("{error}"),
        };
        fits.then(|| (self.engine.compiled().clone(), before, self.watched.take_done()))
    }

    /// Follows a history, and what it says besides the world's state.
    fn change(&mut self, world: &mut World, change: &Change) -> Option<(Compiled, Tables, Vec<Op>)> {
        world.change(change);
        world.tell(&mut self.engine);
        tell_word(&mut self.engine, change);
        match change {
            Change::Walk(number) => {
                let walk = walk(&self.engine, *number, world.now);
                self.engine.on_walk(walk);
            }
            Change::RefusedPin => self.watched.refuse_pin(),
            _ => {}
        }
        self.reconcile(world.now)
    }
}

/// What is wrong with the maps after some prefix of the operations.
fn prefix_violations(before: &Tables, ops: &[Op]) -> Vec<String> {
    let mut tables = before.clone();
    let mut found = Vec::new();
    for op in ops {
        op.apply_to(&mut tables);
        found.extend(violations(&tables).into_iter().map(|what| format!("after `{op}`: {what}")));
    }
    found
}

/// Service keys of both tables that are missing after some prefix.
fn gaps(before: &Tables, after: &Tables, ops: &[Op]) -> Vec<ServiceKey> {
    let stays = |key: &&ServiceKey| after.services.contains_key(key);
    let staying: Vec<ServiceKey> = before.services.keys().filter(stays).copied().collect();
    let mut tables = before.clone();
    let mut missing = Vec::new();
    for op in ops {
        op.apply_to(&mut tables);
        missing.extend(staying.iter().filter(|key| !tables.services.contains_key(key)));
    }
    missing
}

/// Every service entry has its address's marker.
fn unmarked(tables: &Tables) -> Vec<ServiceKey> {
    let marker = |key: &ServiceKey| match *key {
        ServiceKey::V4(k) => ServiceKey::new(k.address.into(), 0, 0),
        ServiceKey::V6(k) => ServiceKey::new(k.address.into(), 0, 0),
    };
    tables.services.keys().filter(|key| !tables.services.contains_key(&marker(key))).copied().collect()
}

fn slots_that_differ(before: &Tables, base: u32, changes: &[(u32, lb_common::slot::Slot)]) -> bool {
    let ring = &before.rings[&base];
    !changes.is_empty() && changes.iter().all(|(index, slot)| ring[*index as usize] != *slot)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every prefix of every plan is safe, and the whole of it leads to the tables wanted.
    #[test]
    fn a_plan_is_safe_at_every_moment(changes in vec(change(), 1..30)) {
        let (mut world, mut machine) = (World::new(), Machine::new());
        for change in changes {
            let Some((compiled, before, ops)) = machine.change(&mut world, &change) else { continue };
            let wanted = &compiled.tables;
            prop_assert_eq!(diff(wanted, wanted), vec![]);
            for ops in [ops.clone(), services_go_first(ops.clone())] {
                let mut tables = before.clone();
                for op in &ops {
                    op.apply_to(&mut tables);
                }
                prop_assert!(&tables == wanted, "{tables}\ninstead of\n{wanted}");
                prop_assert_eq!(prefix_violations(&before, &ops), Vec::<String>::new());
                prop_assert_eq!(gaps(&before, wanted, &ops), vec![]);
            }
            let mut tables = before.clone();
            for op in &ops {
                if let Op::WriteSlots(base, changes) = op {
                    prop_assert!(slots_that_differ(&tables, *base, changes), "{op} changes what does not differ");
                }
                op.apply_to(&mut tables);
                prop_assert_eq!(unmarked(&tables), vec![]);
            }
            if let Change::Health(..) = change {
                prop_assert!(ops.len() <= 3, "a verdict took {ops:?}");
            }
            prop_assert_eq!(holes(&machine.engine), NONE);
        }
    }

    /// A backend keeps its id while it stays or leaves; no two have the same; a freed one rests.
    #[test]
    fn ids_are_stable_unique_and_rest(changes in vec(change(), 1..60)) {
        let (mut world, mut machine) = (World::new(), Machine::new());
        let mut known: BTreeMap<Server, u16> = BTreeMap::new();
        let mut freed: BTreeMap<u16, Instant> = BTreeMap::new();
        for change in changes {
            machine.change(&mut world, &change);
            let tables = machine.engine.applied();
            let ids = ids(tables);
            prop_assert_eq!(ids.len(), tables.backends.len(), "two have the same owner");
            prop_assert!(!tables.backends.contains_key(&0));
            for (server, id) in &ids {
                if let Some(was) = known.get(server) {
                    prop_assert_eq!(was, id);
                } else if let Some(since) = freed.get(id) {
                    prop_assert!(world.now - *since >= QUARANTINE, "id {} rested too short", id);
                }
            }
            freed.extend(known.values().filter(|id| !tables.backends.contains_key(id)).map(|id| (*id, world.now)));
            known = ids;
        }
    }

    /// Balancers with the same file choose alike, whatever they went through and however the file is ordered.
    #[test]
    fn the_choice_depends_on_the_pool_alone(changes in vec(change(), 1..40)) {
        let (mut world, mut machine) = (World::new(), Machine::new());
        // An operator's word is one balancer's.
        for change in changes.iter().filter(|change| !matches!(change, Change::Admin(..))) {
            machine.change(&mut world, change);
        }
        let Some((compiled, ..)) = machine.follow(&world) else { return Ok(()) };
        world.reverse();
        let (other, ..) = Machine::new().follow(&world).expect("it fits where there is no past");
        let checksums = |compiled: &Compiled| -> BTreeMap<Arc<str>, String> {
            compiled.services.iter().map(|s| (Arc::clone(&s.name), s.checksum().to_owned())).collect()
        };
        prop_assert_eq!(checksums(&compiled), checksums(&other));
    }

    /// Slots change by their rules alone; and no total ever falls.
    #[test]
    fn slots_keep_the_rules(changes in vec(change(), 1..60)) {
        let (mut world, mut machine) = (World::new(), Machine::new());
        let (mut watch, mut sent) = (Watch::default(), 0);
        for change in changes {
            let before = machine.watched.memory.tables();
            match change {
                Change::Walk(number) => watch.walked(walk(&machine.engine, number, world.now)),
                Change::RefusedPin => watch.refused(world.now),
                _ => {}
            }
            machine.change(&mut world, &change);
            prop_assert_eq!(watch.violations(&machine.engine, &before, world.now), NONE);
            let total = total(&machine.engine);
            prop_assert!(total >= sent, "{total} after {sent}: {change:?}");
            sent = total;
        }
    }
}

/// A backend, whatever it is called.
type Server = (Arc<str>, IpAddr);

fn ids(tables: &Tables) -> BTreeMap<Server, u16> {
    let id = |(id, backend): (&u16, &Backend)| {
        let service = records::service(tables.records.get(id)?)?;
        Some(((service, address(backend)), *id))
    };
    tables.backends.iter().filter_map(id).collect()
}

/// Packets of all time.
fn total(engine: &Engine) -> u64 {
    let ids: Vec<u16> = engine.applied().backends.keys().copied().collect();
    let stats = engine.dataplane().backend_stats(&ids).expect("memory can be read");
    stats.iter().map(|s| s.packets).sum::<u64>() + engine.left_behind_packets()
}

/// Slots without a backend where there is one to take them, and the other way round.
fn holes(engine: &Engine) -> Vec<String> {
    let mut found = Vec::new();
    for (service, compiled) in engine.spec().services.iter().zip(&engine.compiled().services) {
        let nobody = compiled.ring().iter().filter(|slot| slot.current() == 0).count();
        let has_eligible = compiled.backends.iter().any(|b| b.eligible);
        let uses_all = service.on_all_down == OnAllDown::UseAll;
        if has_eligible && nobody > 0 || !has_eligible && !uses_all && nobody < compiled.ring().len() {
            found.push(format!("{}: {nobody} of {} slots are nobody's", service.name, compiled.ring().len()));
        }
    }
    found
}

/// Every way that a slot can go is gone in some history: the rules above are no rules of what never happens.
#[test]
fn slots_go_every_way() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::new();
    for _ in 0..100 {
        let (mut world, mut machine, mut watch) = (World::new(), Machine::new(), Watch::default());
        for change in vec(change(), 30..60).new_tree(&mut runner).expect("no filter").current() {
            let before = machine.watched.memory.tables();
            machine.change(&mut world, &change);
            watch.violations(&machine.engine, &before, world.now);
        }
        for (way, times) in watch.seen {
            *seen.entry(way).or_insert(0) += times;
        }
    }
    for way in [
        ("settled", "settled"),
        ("settled", "moving"),
        ("moving", "moving"),
        ("moving", "pinned"),
        ("pinned", "pinned"),
        ("pinned", "moving"),
        ("pinned", "settled"),
    ] {
        assert!(seen.get(&way).is_some_and(|times| *times > 50), "{way:?} among {seen:?}");
    }
}

/// A history in which everything happens once.
fn story() -> Vec<Change> {
    vec![
        Change::Service(0),
        Change::Service(1),
        Change::Health(0, 1),
        Change::Unwell(0, 2),
        Change::Admin(1, 1, AdminState::Drain),
        Change::Health(1, 1),
        Change::Exchange(1),
        Change::Backend(0, 4),
        Change::RingSize(0, 2),
        Change::NextHop(0, None),
        Change::NextHop(0, Some((2, 3))),
        Change::Backend(0, 0),
        Change::Seconds(50),
        Change::Backend(0, 0),
        Change::Unwell(0, 2),
        Change::Backend(0, 0),
        Change::Walk(0),
        Change::Seconds(60),
        Change::RefusedPin,
        Change::Walk(1),
        Change::Seconds(100),
        Change::Walk(0),
        Change::Listen(1, 1),
        Change::Device(2),
        Change::Device(2),
        Change::Service(1),
        Change::Service(0),
    ]
}

/// Plans of the story in an order of our own; what the checker says of each step.
fn story_in_order(reorder: impl Fn(Vec<Op>) -> Vec<Op>) -> Vec<(Change, Vec<String>)> {
    let (mut world, mut machine) = (World::new(), Machine::new());
    let mut found = Vec::new();
    for change in story() {
        let (_, before, ops) = machine.change(&mut world, &change).expect("the story fits");
        found.push((change, prefix_violations(&before, &reorder(ops))));
    }
    found
}

fn is_bad(steps: &[(Change, Vec<String>)], wanted: fn(&Change) -> bool) -> bool {
    steps.iter().any(|(change, found)| wanted(change) && !found.is_empty())
}

#[test]
fn the_story_is_safe() {
    for (change, found) in story_in_order(|ops| ops) {
        assert_eq!(found, Vec::<String>::new(), "{change:?}");
    }
}

/// The control: other orders are unsafe, and the checker sees it.
#[test]
fn control_other_orders_are_unsafe() {
    let reversed = story_in_order(|ops| ops.into_iter().rev().collect());
    assert!(is_bad(&reversed, |c| matches!(c, Change::Service(_))), "a service before its ring");
    assert!(
        is_bad(&reversed, |c| matches!(c, Change::RingSize(..))),
        "the old ring before the new is in force"
    );
    assert!(is_bad(&reversed, |c| matches!(c, Change::Backend(..))), "a backend after its slots");
    assert!(is_bad(&reversed, |c| matches!(c, Change::NextHop(..))), "a next hop taken from under the slots");

    let is_removal = |op: &Op| {
        matches!(op, Op::DeleteService(_) | Op::ClearRing(..) | Op::DeleteBackend(_) | Op::DeleteDevice(_))
    };
    let break_first = story_in_order(|mut ops| {
        ops.sort_by_key(|op| !is_removal(op));
        ops
    });
    assert!(is_bad(&break_first, |c| matches!(c, Change::Seconds(_))), "a backend removed before its slots");
    assert!(is_bad(&break_first, |c| matches!(c, Change::RingSize(..))), "a ring removed before its service");

    let without_backends = |mut ops: Vec<Op>| {
        ops.retain(|op| !matches!(op, Op::PutBackend(..)));
        ops
    };
    assert!(is_bad(&story_in_order(without_backends), |c| matches!(c, Change::Service(_))));
}

/// The control for keys: a service that is deleted and put again is seen to be missing.
#[test]
fn control_a_gap_is_seen() {
    let (mut world, mut machine) = (World::new(), Machine::new());
    world.change(&Change::Service(0));
    let (compiled, ..) = machine.follow(&world).expect("it fits");
    let key = *compiled.tables.services.keys().next_back().expect("a service");
    let ops = [Op::DeleteService(key), Op::PutService(key, compiled.tables.services[&key])];
    assert_eq!(gaps(&compiled.tables, &compiled.tables, &ops), vec![key]);
}

/// The control for overlaps and for what `violations` reads of rings.
#[test]
fn control_bad_tables_are_seen() {
    let (mut world, mut machine) = (World::new(), Machine::new());
    world.change(&Change::Service(0));
    let (compiled, ..) = machine.follow(&world).expect("it fits");
    let good = compiled.tables;
    assert_eq!(violations(&good), Vec::<String>::new());
    let bad = |change: fn(&mut Tables)| {
        let mut tables = good.clone();
        change(&mut tables);
        violations(&tables)
    };
    assert_eq!(bad(|t| t.rings.clear()).len(), 1);
    assert_eq!(bad(|t| drop(t.rings.insert(0, t.rings[&0][1..].into()))).len(), 1);
    assert_eq!(bad(|t| drop(t.rings.insert(100, [lb_common::slot::Slot::EMPTY].into()))).len(), 1);
    assert_eq!(bad(|t| t.backends.retain(|id, _| *id != 1)).len(), 1);
    assert_eq!(
        bad(|t| t.backends.values_mut().for_each(|b| b.flags &= !lb_common::backend::BACKEND_ROUTED)).len(),
        3
    );
    assert_eq!(bad(|t| drop(t.records.remove(&1))).len(), 1);
    let moving = |t: &mut Tables| {
        let base = t.rings[&0].to_vec();
        t.rings.insert(0, base.iter().map(|s| lb_common::slot::Slot::moving(s.current(), 9)).collect());
    };
    assert_eq!(bad(moving).len(), 1, "previous is not there");
    let dead = |t: &mut Tables| {
        let usable = lb_common::backend::BACKEND_USABLE;
        t.backends.insert(9, Backend { flags: t.backends[&1].flags & !usable, ..t.backends[&1] });
        t.records.insert(9, t.records[&1].clone());
        let base = t.rings[&0].to_vec();
        t.rings.insert(0, base.iter().map(|s| lb_common::slot::Slot::moving(s.current(), 9)).collect());
    };
    assert_eq!(bad(dead).len(), 1, "previous is dead");
    assert_eq!(bad(|t| t.devices.clear()).len(), 3);
}
