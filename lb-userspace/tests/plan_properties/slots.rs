//! The rules of the slots, written down a second time: what a ring may become from one reconciliation to the next.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_common::{
    backend::BACKEND_USABLE,
    slot::{Slot, SlotState::*},
};
use lb_userspace::{
    config::spec::ServiceSpec,
    controller::engine::Engine,
    flows::{SETTLE_AFTER, SweepResult},
    plan::{compile::CompiledService, tables::Tables},
};

/// What has been seen of the slots so far, ring by ring.
#[derive(Default)]
pub struct Watch {
    /// By slot: since when it moves.
    moving: BTreeMap<u32, Instant>,
    /// By slot: since when it no longer does.
    pinned: BTreeMap<u32, Instant>,
    refused: Option<Instant>,
    walk: Option<SweepResult>,
    /// How often a slot did what: (from, to).
    pub seen: BTreeMap<(&'static str, &'static str), u32>,
}

impl Watch {
    /// The sweeper found something.
    pub fn walked(&mut self, walk: SweepResult) {
        self.walk = Some(walk);
    }

    /// A pin is refused from here on.
    pub fn refused(&mut self, now: Instant) {
        self.refused = Some(now);
    }

    /// What the engine did to the slots against the rules; `before` it, and now.
    pub fn violations(&mut self, engine: &Engine, before: &Tables, now: Instant) -> Vec<String> {
        let mut found = Vec::new();
        for compiled in &engine.compiled().services {
            let Some(service) = engine.spec().services.iter().find(|s| s.name == compiled.name) else {
                continue;
            };
            let old = before.rings.get(&compiled.ring_base).filter(|old| old.len() == compiled.ring().len());
            // A place may get another ring.
            let Some(old) = old.filter(|_| owns(before, engine, compiled)) else {
                self.forget(compiled);
                continue;
            };
            for ((slot, old), new) in (compiled.ring_base..).zip(old.iter()).zip(compiled.ring().iter()) {
                if let Some(why) = self.complaint(engine, service, compiled, (slot, *old, *new), now) {
                    found.push(format!("{} slot {slot}: {old:?} -> {new:?}: {why}", service.name));
                }
                self.note(slot, *old, *new, now);
            }
        }
        self.walk = None;
        found
    }

    fn forget(&mut self, compiled: &CompiledService) {
        let slots = compiled.ring_base..compiled.ring_base + compiled.ring().len() as u32;
        self.moving.retain(|slot, _| !slots.contains(slot));
        self.pinned.retain(|slot, _| !slots.contains(slot));
    }

    fn note(&mut self, slot: u32, old: Slot, new: Slot, now: Instant) {
        *self.seen.entry((old.state().name(), new.state().name())).or_default() += 1;
        if !new.is_moving() {
            self.moving.remove(&slot);
        } else if !old.is_moving() {
            self.moving.insert(slot, now);
        }
        if new.state() != Pinned {
            self.pinned.remove(&slot);
        } else if old.is_moving() {
            self.pinned.insert(slot, now);
        }
    }

    fn complaint(
        &self,
        engine: &Engine,
        service: &ServiceSpec,
        compiled: &CompiledService,
        (slot, old, new): (u32, Slot, Slot),
        now: Instant,
    ) -> Option<&'static str> {
        let (was, same) = (old.previous(), old.current() == new.current());
        let is_usable =
            |id: u16| engine.applied().backends.get(&id).is_some_and(|b| b.flags & BACKEND_USABLE != 0);
        if !moves(service) {
            let is_settled = new.state() == Settled;
            return (!is_settled).then_some("nothing of this service is known by a SYN: it never moves");
        }
        let has_walked = || self.may_settle(slot, compiled);
        match (old.state(), new.state()) {
            (_, Moving) if !is_usable(new.previous()) => Some("previous is dead"),
            (_, Moving) if new.previous() != was => Some("an old connection is previous's"),
            (Moving, Settled) => Some("pins may be left"),
            (Settled, Pinned) => Some("where would the pins be from?"),
            (Settled | Pinned, _) if !new.is_moving() && !same && is_usable(was) => Some("it has to move"),
            (Pinned, Settled) if !has_walked() => Some("pins are left, or may be"),
            (Moving, Pinned) if is_usable(was) && new.current() != was => {
                self.complaint_of_end(engine, service, compiled, slot, was, now)
            }
            _ => None,
        }
    }

    /// A move from a living backend is over: at its deadline, or when all that belonged to it were silent for too long.
    fn complaint_of_end(
        &self,
        engine: &Engine,
        service: &ServiceSpec,
        compiled: &CompiledService,
        slot: u32,
        previous: u16,
        now: Instant,
    ) -> Option<&'static str> {
        let since = self.moving.get(&slot).copied()?;
        let rested = self.refused.map_or(since, |refused| refused.max(since));
        let is_idle = now >= rested + service.idle_timeout.tcp;
        let drain = drain_of(engine, service, compiled, previous);
        let is_over = drain.is_some_and(|since| now >= since + service.drain_timeout);
        (!is_idle && !is_over).then_some("neither its deadline nor the idle timeout has come")
    }

    /// A walk that began long enough after the slot stopped moving found no pin of it.
    fn may_settle(&self, slot: u32, compiled: &CompiledService) -> bool {
        let since = self.pinned.get(&slot);
        self.walk.as_ref().is_some_and(|walk| {
            let pins = walk.slots(compiled.ring_base).get((slot - compiled.ring_base) as usize);
            pins.is_none_or(|n| *n == 0) && since.is_none_or(|since| walk.started >= *since + SETTLE_AFTER)
        })
    }
}

/// Whether the ring in the maps is this service's.
fn owns(before: &Tables, engine: &Engine, compiled: &CompiledService) -> bool {
    let keys = engine.compiled().tables.services.iter().filter(|(_, s)| !s.is_address());
    let mut its = keys.filter(|(_, s)| s.ring_base == compiled.ring_base).map(|(key, _)| key);
    its.any(|key| before.services.get(key).is_some_and(|s| s.ring_base == compiled.ring_base))
}

fn moves(service: &ServiceSpec) -> bool {
    use lb_userspace::config::spec::{Protocol, Tracking};
    service.tracking != Tracking::Never && service.listen.iter().any(|l| l.protocol == Protocol::Tcp)
}

fn drain_of(engine: &Engine, service: &ServiceSpec, compiled: &CompiledService, id: u16) -> Option<Instant> {
    let known = engine.known();
    let named = service.backends.iter().zip(&compiled.backends).find(|(_, c)| c.id == id);
    let left = known.leaving_of(service).iter().zip(&compiled.leaving).find(|(_, c)| c.id == id);
    named
        .and_then(|(b, _)| known.drain_since(&crate::world::key(service, b)))
        .or_else(|| left.map(|(left, _)| left.since))
}

/// The rules hold, and each of them is seen to be broken.
#[test]
fn control_each_broken_rule_is_seen() {
    use crate::{
        Machine,
        world::{Change, World},
    };
    let start = Instant::now();
    let cases: [(Slot, Slot, u64, &str); 7] = [
        (Slot::settled(1), Slot::settled(2), 0, "it has to move"),
        (Slot::pinned(1), Slot::pinned(2), 0, "it has to move"),
        (Slot::settled(1), Slot::pinned(1), 0, "where would"),
        (Slot::moving(1, 2), Slot::settled(1), 0, "pins may be left"),
        (Slot::pinned(1), Slot::settled(1), 0, "pins are left"),
        (Slot::moving(1, 2), Slot::moving(1, 3), 0, "an old connection"),
        (Slot::moving(1, 2), Slot::pinned(1), 149, "neither its deadline"),
    ];
    let mut world = World::new();
    world.change(&Change::Service(0));
    let mut machine = Machine::new();
    machine.follow(&world).expect("it fits");
    let engine = &machine.engine;
    let (service, compiled) = (&engine.spec().services[0], &engine.compiled().services[0]);
    let mut watch = Watch::default();
    watch.moving.insert(7, start);
    let complaint = |watch: &Watch, old, new, seconds| {
        watch.complaint(engine, service, compiled, (7, old, new), start + Duration::from_secs(seconds))
    };
    for (old, new, after, why) in cases {
        let found = complaint(&watch, old, new, after).unwrap_or_else(|| panic!("{old:?} -> {new:?} passes"));
        assert!(found.starts_with(why), "{old:?} -> {new:?}: {found}");
    }
    assert_eq!(complaint(&watch, Slot::moving(1, 2), Slot::pinned(1), 150), None);
    watch.refused(start + Duration::from_secs(1));
    assert!(complaint(&watch, Slot::moving(1, 2), Slot::pinned(1), 150).is_some());
}
