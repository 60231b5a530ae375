//! The guard against mass failure, between the verdicts and the tables.

use std::{collections::BTreeMap, time::Instant};

use super::{Controller, known::Verdict};
use crate::{
    api::model::EventKind,
    config::spec::Check,
    health::guard::{GuardEvent, GuardEventKind, Subject},
};

impl Controller {
    /// The guard watches those that are probed, and knows the way to each.
    pub(super) fn follow_subjects(&mut self, now: Instant) {
        let known = self.engine.known();
        let subjects = known.probed().into_iter().map(|(service, key, address)| {
            let Verdict { health, cause } = known.verdict(&key);
            Subject {
                key,
                address,
                probed: service.health.check != Check::None,
                timeout: service.guard_timeout,
                initial: (health, cause),
            }
        });
        self.guard.set_subjects(subjects.collect());
        self.tell_ways(now);
    }

    /// The guard learns by which interface packets to each backend leave.
    pub(super) fn tell_ways(&mut self, now: Instant) {
        let known = self.engine.known();
        for (_, key, address) in known.probed() {
            self.guard.note_way(&key, known.way(address), now);
        }
    }

    /// Lets the guard decide which verdicts are believed, says what it has to say, and asks whom it wants asked.
    pub(super) fn consult_guard(&mut self, now: Instant) {
        let checks = &self.checks;
        let decision = self.guard.decide(now, &|key| checks.proved(key));
        if let Some(watched) = decision.watch {
            self.checks.watch(watched);
        }
        for key in &decision.probe {
            self.checks.probe_now(key);
        }
        for event in decision.events {
            self.say(&event, now);
        }
        // A verdict that is held from the start changes nothing of what is in force, and so does one that was held to
        // the end; but the engine has heard the verdict itself.
        if decision.changed || self.guard.next_deadline().is_some() || self.holds {
            let held = self.engine.known().probed().into_iter().map(|(_, key, _)| key);
            let held: BTreeMap<_, _> = held
                .filter(|key| self.guard.is_held(key))
                .map(|key| {
                    let (health, cause) = self.guard.health(&key);
                    (key, Verdict { health, cause })
                })
                .collect();
            self.holds = !held.is_empty();
            self.engine.set_held(held);
        }
    }

    fn say(&mut self, event: &GuardEvent, now: Instant) {
        let name = self
            .links
            .iter()
            .flatten()
            .find(|(_, link)| link.ifindex == event.interface)
            .map_or_else(|| format!("interface {}", event.interface), |(name, _)| name.clone());
        let text = event.kind.describe(&name, now);
        match event.kind {
            GuardEventKind::Began { .. } => {
                tracing::warn!("{text}");
                self.guard_texts.insert(event.interface, text.clone());
            }
            GuardEventKind::Answered { held, .. } if held > 0 => {
                self.guard_texts.insert(event.interface, text.clone());
            }
            GuardEventKind::Answered { .. } | GuardEventKind::TimedOut { .. } | GuardEventKind::Over => {
                self.guard_texts.remove(&event.interface);
            }
        }
        self.event(EventKind::Health, None, text);
    }
}
