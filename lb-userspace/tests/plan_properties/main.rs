//! Properties of compile and diff over random histories, and of the engine over failing maps.

mod engine;
mod safety;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_userspace::plan::{
    compile::{Compiled, Compiler},
    diff::{diff, services_go_first},
    tables::{Op, ServiceKey, Tables},
};
use proptest::{collection::vec, prelude::*};

use safety::violations;
use world::{Change, LIMITS, World, change, key};

const QUARANTINE: Duration = Duration::from_mins(1);

/// A compiler with the tables that were applied last.
struct Machine {
    compiler: Compiler,
    applied: Tables,
}

impl Machine {
    fn new() -> Self {
        Self { compiler: Compiler::new(&LIMITS), applied: Tables::default() }
    }

    /// Compiles and applies; `None` if the world does not fit. Hands out the tables before, and the operations.
    fn follow(&mut self, world: &World) -> Option<(Compiled, Tables, Vec<Op>)> {
        let compiled = world.compile(&mut self.compiler).ok()?;
        let before = std::mem::replace(&mut self.applied, compiled.tables.clone());
        let ops = diff(&before, &compiled.tables);
        self.compiler.settle(&self.applied, world.now);
        Some((compiled, before, ops))
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
            world.change(&change);
            let Some((compiled, before, ops)) = machine.follow(&world) else { continue };
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
        }
    }

    /// A backend keeps its id while it stays; no two have the same; a freed one rests.
    #[test]
    fn ids_are_stable_unique_and_rest(changes in vec(change(), 1..60)) {
        let (mut world, mut machine) = (World::new(), Machine::new());
        let mut known: BTreeMap<(Arc<str>, Arc<str>), u16> = BTreeMap::new();
        let mut freed: BTreeMap<u16, Instant> = BTreeMap::new();
        for change in changes {
            world.change(&change);
            let Some((compiled, ..)) = machine.follow(&world) else { continue };
            let ids = ids(&world, &compiled);
            let unique: BTreeSet<u16> = ids.values().copied().collect();
            prop_assert_eq!(unique.len(), ids.len());
            prop_assert!(!unique.contains(&0));
            for (backend, id) in &ids {
                if let Some(was) = known.get(backend) {
                    prop_assert_eq!(was, id);
                } else if let Some(since) = freed.get(id) {
                    prop_assert!(world.now - *since >= QUARANTINE, "id {} rested too short", id);
                }
            }
            freed.extend(known.values().filter(|id| !unique.contains(id)).map(|id| (*id, world.now)));
            known = ids;
        }
    }

    /// Balancers with the same file choose alike, whatever they went through and however the file is ordered.
    #[test]
    fn the_choice_depends_on_the_pool_alone(changes in vec(change(), 1..40)) {
        let (mut world, mut machine) = (World::new(), Machine::new());
        for change in &changes {
            world.change(change);
            machine.follow(&world);
        }
        let Some((compiled, ..)) = machine.follow(&world) else { return Ok(()) };
        world.reverse();
        let other = world.compile(&mut Compiler::new(&LIMITS)).expect("it fits where there is no past");
        let checksums = |compiled: &Compiled| -> BTreeMap<Arc<str>, String> {
            compiled.services.iter().map(|s| (Arc::clone(&s.name), s.checksum().to_owned())).collect()
        };
        prop_assert_eq!(checksums(&compiled), checksums(&other));
    }
}

fn ids(world: &World, compiled: &Compiled) -> BTreeMap<(Arc<str>, Arc<str>), u16> {
    let services = world.spec.services.iter().zip(&compiled.services);
    let backends =
        services.flat_map(|(s, c)| s.backends.iter().zip(&c.backends).map(move |(b, c)| (s, b, c)));
    backends
        .map(|(service, backend, compiled)| {
            let key = key(service, backend);
            ((key.service, key.backend), compiled.id)
        })
        .collect()
}

/// A history in which everything happens once.
fn story() -> Vec<Change> {
    vec![
        Change::Service(0),
        Change::Service(1),
        Change::Health(0, 1),
        Change::Backend(0, 4),
        Change::RingSize(0, 2),
        Change::NextHop(0, None),
        Change::NextHop(0, Some((2, 3))),
        Change::Backend(0, 0),
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
        world.change(&change);
        let (_, before, ops) = machine.follow(&world).expect("the story fits");
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
    assert!(is_bad(&break_first, |c| matches!(c, Change::Backend(..))), "a backend removed before its slots");
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
    assert_eq!(bad(|t| t.devices.clear()).len(), 3);
}
