//! What is known of all backends, and what of it nobody has read yet. Pure: `now` is a parameter.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    BackendRef,
    probe::Observation,
    reason::{Detail, Reason, Verdict},
    state::{Health, Tracker},
};
use crate::config::spec::{Check, HealthSpec};

/// When the path to a backend was last proved, see [`Reason::proves_path`], and since when it is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contact {
    /// When the last answer came that proves the path.
    pub proved: Option<Instant>,
    /// Start of the first probe since then that failed without one; `None` if none did.
    pub lost: Option<Instant>,
    /// Start of the last such probe.
    pub failed: Option<Instant>,
    /// When the path was proved for the first time, or for the first time after it was lost.
    pub back: Option<Instant>,
}

impl Contact {
    /// Takes the result of a probe that ended at `now`.
    fn take(&mut self, reason: Reason, latency: Duration, now: Instant) {
        let started = now.checked_sub(latency).unwrap_or(now);
        if reason.proves_path() {
            // Silence after the connection proves no more than that it was made, at the start.
            let proved = Some(if reason == Reason::L7Timeout { started } else { now });
            if self.proved.is_none() || self.lost.is_some() {
                self.back = proved;
            }
            self.proved = proved;
            (self.lost, self.failed) = (None, None);
        } else if reason.verdict() == Verdict::Fail {
            self.lost.get_or_insert(started);
            self.failed = Some(started);
        }
    }
}

/// The latest news of one backend.
#[derive(Debug, Clone)]
pub struct HealthEvent {
    /// Whose.
    pub key: BackendRef,
    /// The health now.
    pub health: Health,
    /// The health when the last event was read.
    pub previous: Health,
    /// The last result; may be `SOCKERR`, or a success while the backend is still down.
    pub reason: Reason,
    /// What the health rests on. Whether a `down` backend is dead is for this to say: `!cause.is_layer7_only()`.
    pub cause: Reason,
    /// More about the last result.
    pub detail: Detail,
    /// When the last result was known.
    pub at: Instant,
    /// How long the probe took.
    pub latency: Duration,
    /// What the results say of the path.
    pub contact: Contact,
    /// `health` differs from `previous`.
    pub changed: bool,
    /// Results so far; 0 where none came from a probe.
    pub round: u64,
}

/// What is known of one backend now, for status and metrics.
#[derive(Debug, Clone)]
pub struct BackendHealth {
    /// The health in force.
    pub health: Health,
    /// The last result.
    pub reason: Reason,
    /// What the health rests on.
    pub cause: Reason,
    /// More about the last result.
    pub detail: Detail,
    /// When the health last changed, or probing began.
    pub since: Instant,
    /// How long the last probe took.
    pub latency: Duration,
    /// What the results say of the path.
    pub contact: Contact,
    /// Results by how they count.
    pub counts: Counts,
}

/// Results of one backend's probes since it became a target, and what they did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Probes that succeeded.
    pub passed: u64,
    /// Probes that the backend failed.
    pub failed: u64,
    /// `SOCKERR`: probes that we failed.
    pub errors: u64,
    /// Changes of the health, the first verdict included.
    pub flips: u64,
}

/// Where a target's health begins.
pub(super) enum Start {
    /// Where the book has it: the server is the same.
    Keep,
    /// Here, and it is another server than before.
    From((Health, Reason)),
}

/// What became of a result.
pub(super) struct Recorded {
    /// Until the next probe, without jitter.
    pub interval: Duration,
    /// There is an unread event now.
    pub news: bool,
}

#[derive(Default)]
pub(super) struct Book {
    entries: BTreeMap<BackendRef, Entry>,
    unread: BTreeMap<BackendRef, HealthEvent>,
    /// Whose every result is news.
    watched: BTreeSet<BackendRef>,
    closed: bool,
}

struct Entry {
    /// Only the task of this epoch may write: an aborted one can be just about to.
    epoch: u64,
    tracker: Tracker,
    latency: Duration,
    contact: Contact,
    counts: Counts,
}

impl Book {
    /// Gives the target `key` to the task of `epoch`. Whether that is news: a first health that was given is none,
    /// but one that takes the place of another is, and so is one that needs no probe.
    pub(super) fn enter(
        &mut self,
        key: &BackendRef,
        epoch: u64,
        spec: &HealthSpec,
        start: Start,
        now: Instant,
    ) -> bool {
        let old = self.entries.remove(key);
        let previous = old.as_ref().map_or(Health::Unknown, |entry| entry.tracker.health());
        let mut entry = match (start, old) {
            (Start::Keep, Some(entry)) => Entry { epoch, ..entry },
            (Start::Keep, None) => Entry::new(epoch, Tracker::new(spec, now)),
            (Start::From((health, cause)), _) => {
                Entry::new(epoch, Tracker::adopted(spec, health, cause, now))
            }
        };
        entry.tracker.respec(spec);
        if spec.check == Check::None {
            entry.tracker = Tracker::adopted(spec, Health::Up, Reason::None, now);
        }
        let health = entry.tracker.health();
        let replaced = previous != Health::Unknown && previous != health;
        // An unread event is brought up to date: it must not tell of a server that is no longer meant.
        let news = spec.check == Check::None || replaced || self.unread.contains_key(key);
        if news {
            publish(&mut self.unread, key, &entry, previous, now);
        }
        self.entries.insert(key.clone(), entry);
        news
    }

    /// Takes the result of a probe that ended at `now`; `None` if `epoch` is no longer this target's.
    pub(super) fn record(
        &mut self,
        key: &BackendRef,
        epoch: u64,
        seen: Observation,
        now: Instant,
    ) -> Option<Recorded> {
        let entry = self.entries.get_mut(key).filter(|entry| entry.epoch == epoch)?;
        match seen.reason.verdict() {
            Verdict::Pass => entry.counts.passed += 1,
            Verdict::Fail => entry.counts.failed += 1,
            Verdict::Unjudged => entry.counts.errors += 1,
        }
        entry.latency = seen.latency;
        entry.contact.take(seen.reason, seen.latency, now);
        let step = entry.tracker.observe(seen.reason, seen.detail, now);
        if step.changed {
            entry.counts.flips += 1;
            let (health, reason, detail) =
                (entry.tracker.health(), entry.tracker.reason(), entry.tracker.detail());
            tracing::debug!(backend = %key, %health, %reason, %detail, "health changed");
        }
        let news = step.notable || self.watched.contains(key);
        if news {
            publish(&mut self.unread, key, entry, step.previous, now);
        }
        Some(Recorded { interval: entry.tracker.next_interval(), news })
    }

    /// From now on every result of these is news, and of no others.
    pub(super) fn watch(&mut self, keys: BTreeSet<BackendRef>) {
        self.watched = keys;
    }

    /// When the path to it was last proved.
    pub(super) fn proved(&self, key: &BackendRef) -> Option<Instant> {
        self.entries.get(key)?.contact.proved
    }

    /// Forgets all other targets, and what is unread of them.
    pub(super) fn retain(&mut self, keep: impl Fn(&BackendRef) -> bool) {
        self.entries.retain(|key, _| keep(key));
        self.unread.retain(|key, _| keep(key));
    }

    pub(super) fn take_unread(&mut self) -> Vec<HealthEvent> {
        std::mem::take(&mut self.unread).into_values().collect()
    }

    pub(super) fn pending(&self) -> usize {
        self.entries.values().filter(|entry| entry.tracker.health() == Health::Unknown).count()
    }

    pub(super) fn view(&self) -> BTreeMap<BackendRef, BackendHealth> {
        self.entries.iter().map(|(key, entry)| (key.clone(), entry.view())).collect()
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

impl Entry {
    fn new(epoch: u64, tracker: Tracker) -> Self {
        Self {
            epoch,
            tracker,
            latency: Duration::ZERO,
            contact: Contact::default(),
            counts: Counts::default(),
        }
    }

    fn view(&self) -> BackendHealth {
        BackendHealth {
            health: self.tracker.health(),
            reason: self.tracker.reason(),
            cause: self.tracker.cause(),
            detail: self.tracker.detail().clone(),
            since: self.tracker.since(),
            latency: self.latency,
            contact: self.contact,
            counts: self.counts,
        }
    }
}

/// Puts the latest news of a backend in place of what is unread of it.
fn publish(
    unread: &mut BTreeMap<BackendRef, HealthEvent>,
    key: &BackendRef,
    entry: &Entry,
    previous: Health,
    at: Instant,
) {
    let previous = unread.get(key).map_or(previous, |overtaken| overtaken.previous);
    let health = entry.tracker.health();
    let event = HealthEvent {
        key: key.clone(),
        health,
        previous,
        reason: entry.tracker.reason(),
        cause: entry.tracker.cause(),
        detail: entry.tracker.detail().clone(),
        at,
        latency: entry.latency,
        contact: entry.contact,
        changed: health != previous,
        round: entry.tracker.round(),
    };
    unread.insert(key.clone(), event);
}
