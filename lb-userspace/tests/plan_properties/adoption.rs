//! Killed between any two operations of a plan: another run of the controller converges to the same maps.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::slot::{Slot, SlotState};
use lb_userspace::{
    config::spec::Limits,
    controller::engine::{Engine, ReconcileError},
    dataplane::{faulty::Faulty, memory::Memory},
    plan::tables::{Ring, Tables},
};
use proptest::{
    collection::vec,
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};

use crate::{
    Machine, NONE, Server, ids,
    safety::Watched,
    story,
    world::{Change, World, change, tell_word},
};

/// Room enough: where ids run short, another run may hand them out in another order.
const LIMITS: Limits = Limits { services: 100, backends: 1000, slots: 10_000, flows: 1024 };

fn world() -> World {
    let mut world = World::new();
    world.spec.limits = LIMITS;
    world
}

/// Another run, over maps that hold `tables`, of which operations fail with this chance.
fn adopt(tables: &Tables, world: &World, change: &Change, chance: f64) -> (Engine, Watched) {
    let watched = Watched::new(Memory::new(LIMITS));
    watched.memory.tamper(|maps| maps.clone_from(tables));
    let maps = Faulty::new(watched.clone(), chance, 7);
    let spec = Arc::new(world.spec.clone());
    let mut engine = Engine::adopt(spec, Box::new(maps), world.now).expect("memory can be read");
    world.tell(&mut engine);
    tell_word(&mut engine, change);
    loop {
        match engine.reconcile(world.now) {
            Ok(_) => return (engine, watched),
            Err(ReconcileError::Apply(_)) if chance > 0.0 => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// What another run made of a slot, and may not. It may think that a move began later.
fn is_worse(slot: Slot, adopted: Slot) -> bool {
    let rank = |slot: Slot| match slot.state() {
        SlotState::Settled => 0,
        SlotState::Pinned => 1,
        SlotState::Moving => 2,
    };
    slot.current() != adopted.current()
        || rank(adopted) < rank(slot)
        || slot.is_moving() && slot.previous() != adopted.previous()
}

fn rings(engine: &Engine) -> BTreeMap<Arc<str>, Ring> {
    engine.compiled().services.iter().map(|s| (Arc::clone(&s.name), Arc::clone(s.ring()))).collect()
}

/// What is wrong with another run that began with the maps as `prefix`.
fn differences(machine: &Machine, adopted: (&Engine, &Watched), prefix: &Tables) -> Vec<String> {
    let (engine, watched) = adopted;
    let mut found = watched.take_violations();
    let maps = watched.memory.tables();
    if maps != engine.compiled().tables {
        found.push(format!("something was left behind:\n{maps}"));
    }
    // Ids of those that were there.
    let (own, theirs) = (ids(machine.engine.applied()), ids(&maps));
    let had: BTreeMap<Server, u16> = ids(prefix);
    for (server, id) in had.iter().filter(|(server, _)| own.contains_key(server)) {
        if theirs.get(server) != Some(id) {
            found.push(format!("{server:?} had id {id} and has {:?}", theirs.get(server)));
        }
    }
    if own.keys().ne(theirs.keys()) {
        found.push(format!("backends {:?} instead of {:?}", theirs.keys(), own.keys()));
    }
    // By what they mean: a backend that had no id before has another one now, perhaps.
    let named = |ids: &BTreeMap<Server, u16>| -> BTreeMap<u16, Server> {
        ids.iter().map(|(server, id)| (*id, server.clone())).collect()
    };
    let (to_server, theirs) = (named(&theirs), &own);
    let translate = |id: u16| to_server.get(&id).and_then(|server| theirs.get(server)).copied().unwrap_or(0);
    let translated = |slot: &Slot| match slot.state() {
        SlotState::Settled => Slot::settled(translate(slot.current())),
        SlotState::Pinned => Slot::pinned(translate(slot.current())),
        SlotState::Moving => Slot::moving(translate(slot.current()), translate(slot.previous())),
    };
    let (own, theirs) = (rings(&machine.engine), rings(engine));
    for (name, ring) in &own {
        let adopted = theirs[name].iter().map(translated);
        let worse = ring.iter().zip(adopted).find(|(slot, adopted)| is_worse(**slot, *adopted));
        found.extend(worse.map(|(slot, adopted)| format!("{name}: {slot:?} became {adopted:?}")));
    }
    found
}

/// Kills the controller between any two operations of each step.
fn killed_everywhere(changes: &[Change], chance: f64) -> usize {
    let mut world = world();
    let mut machine = Machine::limited(&world);
    let mut kills = 0;
    for change in changes {
        let (_, before, ops) = machine.change(&mut world, change).expect("there is room");
        let mut tables = before;
        for after in 0..=ops.len() {
            // What a walk found, and that it is over, is not in the maps before the first operation.
            let (engine, watched) = adopt(&tables, &world, change, chance);
            let found = differences(&machine, (&engine, &watched), &tables);
            assert_eq!(found, NONE, "{change:?}, after {after} of {ops:?}\n{changes:?}");
            kills += 1;
            if let Some(op) = ops.get(after) {
                op.apply_to(&mut tables);
            }
        }
    }
    kills
}

#[test]
fn the_story_survives_a_kill_at_any_moment() {
    let kills = killed_everywhere(&story(), 0.0);
    assert!(kills > 80, "only {kills} kills");
}

#[test]
fn any_history_survives_a_kill_at_any_moment() {
    let mut runner = TestRunner::deterministic();
    for round in 0..60 {
        let changes = vec(change(), 1..30).new_tree(&mut runner).expect("no filter").current();
        killed_everywhere(&changes, if round % 4 == 0 { 0.1 } else { 0.0 });
    }
}

/// The control: maps without records tell nobody whose ids and slots they are.
#[test]
fn control_without_records_connections_are_lost() {
    let mut world = world();
    let mut machine = Machine::limited(&world);
    let drain = Change::Backend(0, 0);
    machine.change(&mut world, &Change::Service(0)).expect("there is room");
    machine.change(&mut world, &drain).expect("there is room");
    let mut tables = machine.watched.memory.tables();
    let kept = adopt(&tables, &world, &drain, 0.0);
    assert_eq!(differences(&machine, (&kept.0, &kept.1), &tables), NONE);
    let full = tables.clone();
    tables.records.clear();
    let lost = adopt(&tables, &world, &drain, 0.0);
    assert_ne!(differences(&machine, (&lost.0, &lost.1), &full), NONE);
}
