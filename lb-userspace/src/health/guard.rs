//! The guard against mass failure: when everybody behind an interface falls silent, it is rather the link. Pure: `now` is a
//! parameter.
//!
//! Backends are grouped by the interface that packets to them leave by, whatever their service. A verdict is
//! **doubtful** if it ends the use of a backend and rests on silence alone: time-outs, "no way there", no next hop. A refusal or a
//! layer 7 answer proves the path, so what they say is never doubted. Who was not usable before loses nothing and is not
//! held either.
//!
//! A doubtful verdict is **held** (the backend is treated as before) when
//! 1. no backend of the group, usable or not, has proved the path since the *start* of this backend's first failed probe
//!    (or the loss of its next hop), and
//! 2. servers of at least two addresses in the group are usable and either probed or without next hop. One alone can never be
//!    told from its link; the last of a pool that dies is believed, too. One server in two services is one.
//!
//! So two dead of three are no mass failure: the third has answered since their first failed probes, as it is probed at least as
//! often as it takes them to be found dead. Where it is not (`fall: 1`, a long interval, a next hop lost out of the blue),
//! the likeliest are **asked at once**, eight at a time, and the verdict waits for the first answer: a round trip.
//! The guard **speaks** when there is nobody left to ask.
//!
//! A hold ends
//! - with the doubt: the backend has risen, or a proof was found of what it suffers from;
//! - by an answer of anybody. If who answers was never lost itself, neither was the link, and the verdict is in force at
//!   once. Else the link has come back, and the verdicts are of a time when it was away. So each held backend is probed at
//!   once: who fails again is dead, within one probe's time-out; who answers is held until it has risen. (To let go of
//!   all at the first answer would cut all connections but one server's, just when the link is back.)
//! - by time-out, `guard_timeout` after the verdict that is held. The others of the failure with no longer time-out go
//!   with it, and the group is not guarded until somebody has proved the path again;
//! - when condition 2 no longer holds.

mod look;
mod member;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

pub use self::member::Subject;
use self::{
    look::Look,
    member::{Member, Way},
};
use super::{BackendRef, Health, HealthEvent, Reason};

/// What the guard has to say, aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardEvent {
    /// Index of the interface.
    pub interface: u32,
    /// What happened there.
    pub kind: GuardEventKind,
}

/// What happened to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardEventKind {
    /// All are silent: a mass failure is suspected.
    Began {
        /// Usable ones, all silent.
        backends: usize,
        /// When the first hold ends.
        until: Instant,
    },
    /// The link works: each held backend is probed once more, and what that says is believed.
    Answered {
        /// Who answered first.
        by: BackendRef,
        /// So many are held still.
        held: usize,
    },
    /// It lasts too long to be waited for.
    TimedOut {
        /// So many verdicts are in force now.
        backends: usize,
    },
    /// Nothing is left to hold: they have risen, or they are no longer behind this interface.
    Over,
}

impl GuardEventKind {
    /// The event in words, for an interface of this name. `now` is when it happened.
    pub fn describe(&self, interface: &str, now: Instant) -> String {
        match self {
            Self::Began { backends, until } => format!(
                "mass failure: all {backends} usable backends behind {interface} are silent at once, so the link of \
                 this balancer is suspected; the tables are held for at most {} s, and probing goes on",
                until.saturating_duration_since(now).as_secs_f64().round()
            ),
            Self::Answered { by, held } => format!(
                "mass failure over: {by} behind {interface} has answered; {held} backends are probed once more before \
                 they count as down"
            ),
            Self::TimedOut { backends } => format!(
                "mass failure: nobody behind {interface} has answered in time; {backends} backends count as down now"
            ),
            Self::Over => format!("mass failure over: nothing behind {interface} is held any more"),
        }
    }
}

/// What follows from a look.
#[derive(Debug, Default)]
pub struct Decision {
    /// What is in force, of any backend, is another than before.
    pub changed: bool,
    /// To be said aloud.
    pub events: Vec<GuardEvent>,
    /// Whose every result the guard needs from now on, if that is another set than before.
    pub watch: Option<BTreeSet<BackendRef>>,
    /// Who is to be probed at once, after `watch` was heeded.
    pub probe: Vec<BackendRef>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Guard {
    members: Vec<Member>,
    index: HashMap<BackendRef, usize>,
    groups: BTreeMap<u32, Group>,
    /// Members of which something is new.
    touched: BTreeSet<usize>,
    watched: BTreeSet<BackendRef>,
    /// Groups have other members than when `watched` was made.
    regrouped: bool,
    deadline: Option<Instant>,
}

/// The backends behind one interface.
#[derive(Debug, Default)]
struct Group {
    members: BTreeSet<usize>,
    phase: Phase,
    /// Some are held: all of it is watched, and all proofs are known.
    holds: bool,
    /// It has held until a time-out: no more until somebody proves the path after this.
    spent: Option<Instant>,
    /// Whose proof was the latest when last looked for.
    latest: Option<usize>,
}

/// What was said of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Nothing.
    #[default]
    Quiet,
    /// That all are silent.
    Silent,
    /// And that somebody has answered since.
    Returning,
}

impl Guard {
    /// Watches these from now on, and no others. What is known of one stays known as long as its key and address do.
    pub fn set_subjects(&mut self, subjects: Vec<Subject>) {
        let mut old: HashMap<BackendRef, Member> =
            self.members.drain(..).map(|member| (member.subject.key.clone(), member)).collect();
        let take = |subject: Subject| match old.remove(&subject.key) {
            Some(member) if member.subject.address == subject.address => Member { subject, ..member },
            _ => Member::new(subject),
        };
        self.members = subjects.into_iter().map(take).collect();
        self.index = self.members.iter().zip(0..).map(|(m, at)| (m.subject.key.clone(), at)).collect();
        for group in self.groups.values_mut() {
            group.members.clear();
            group.latest = None;
        }
        for (member, at) in self.members.iter().zip(0..) {
            if let Some(interface) = member.interface {
                self.groups.entry(interface).or_default().members.insert(at);
            }
        }
        self.touched = (0..self.members.len()).collect();
        self.regrouped = true;
    }

    /// News of a backend's health.
    pub fn note_health(&mut self, event: &HealthEvent) {
        if let Some(&at) = self.index.get(&event.key) {
            self.members[at].note(event);
            self.touched.insert(at);
        }
    }

    /// The interface that packets to a backend leave by, or that there is no way to it now. To tell it again costs nothing.
    pub fn note_way(&mut self, key: &BackendRef, interface: Option<u32>, now: Instant) {
        let Some(&at) = self.index.get(key) else { return };
        let member = &mut self.members[at];
        let way = match (interface, member.way) {
            (Some(_), _) => Way::Here,
            (None, Way::Here) => Way::Lost(now),
            (None, known) => known,
        };
        if way == member.way && (interface.is_none() || interface == member.interface) {
            return;
        }
        member.way = way;
        self.touched.insert(at);
        if let Some(interface) = interface
            && let old = member.interface.replace(interface)
            && old != Some(interface)
        {
            if let Some(group) = old.and_then(|old| self.groups.get_mut(&old)) {
                group.members.remove(&at);
            }
            self.groups.entry(interface).or_default().members.insert(at);
            self.regrouped = true;
        }
    }

    /// The health in force, and what it rests on.
    pub fn health(&self, key: &BackendRef) -> (Health, Reason) {
        self.member(key).map_or_else(Default::default, |member| member.in_force)
    }

    /// It is treated as it was before: its last next hop stays in use, and [`Guard::health`] is not its verdict.
    pub fn is_held(&self, key: &BackendRef) -> bool {
        self.member(key).is_some_and(|member| member.hold.is_some())
    }

    /// When [`Guard::decide`] is due although nothing happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn member(&self, key: &BackendRef) -> Option<&Member> {
        self.index.get(key).map(|at| &self.members[*at])
    }

    /// Puts in force what is to be believed. `proved` says when a backend last proved the path. Costs nothing when nothing is
    /// new and nothing due.
    pub fn decide(&mut self, now: Instant, proved: &dyn Fn(&BackendRef) -> Option<Instant>) -> Decision {
        let mut decision = Decision::default();
        let due = self.deadline.is_some_and(|deadline| deadline <= now);
        if self.touched.is_empty() && !due {
            return decision;
        }
        let mut doubtful: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for at in std::mem::take(&mut self.touched) {
            let member = &mut self.members[at];
            match member.interface {
                Some(interface) if member.is_doubtful() => {
                    doubtful.entry(interface).or_default().push(at);
                }
                _ => {
                    member.hold = None;
                    decision.changed |= member.settle(false);
                }
            }
        }
        let mut holders_changed = std::mem::take(&mut self.regrouped);
        for (&interface, group) in &mut self.groups {
            let held = group.holds;
            let news = doubtful.remove(&interface);
            if held || news.is_some() {
                Look::new(interface, group, &mut self.members, now, &mut decision)
                    .decide(news.unwrap_or_default(), proved);
                holders_changed |= group.holds != held;
            }
        }
        self.groups.retain(|_, group| !group.members.is_empty());
        let holding = || self.groups.values().filter(|group| group.holds).flat_map(|group| &group.members);
        let holds = holding().filter_map(|at| self.members[*at].hold);
        self.deadline = holds.map(|hold| hold.until).min();
        if holders_changed {
            let probed = holding().map(|at| &self.members[*at].subject).filter(|subject| subject.probed);
            let watched: BTreeSet<BackendRef> = probed.map(|subject| subject.key.clone()).collect();
            if watched != self.watched {
                self.watched.clone_from(&watched);
                decision.watch = Some(watched);
            }
        }
        decision
    }
}

#[cfg(test)]
mod tests;
