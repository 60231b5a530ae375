//! **Slow start**: a backend that is new or has recovered reaches its weight in ten steps. Pure: `now` is a parameter.
//!
//! Ten levels, from one tenth of the weight to all of it, evenly spread over `slow_start`: the first at once, the last
//! when it is over. Weights in force are counted in tenths ([`LEVELS`] times the file's), so that even a weight of 1
//! has ten levels, and an edited weight counts at once in proportion.
//!
//! **Who starts slowly**: whoever becomes eligible, whatever for. Not those who are there when the controller starts, or
//! when a service is new: where everybody is slow, nobody is. Weights are relative, hence the only eligible backend gets
//! everything on any level, and backends that recover together share as if they were warm.
//!
//! **The ring** of the whole pool stays that of the full weights: [`ring::build`] with the weights in force would move
//! slots between others, too, and most when a backend returns ([`ring::refill`] had given its slots to others than
//! `build` leaves them to). A backend on level `f` keeps that part of its own slots; the rest is handed out like the slots of
//! those who are away, by the weights in force. So everybody gets just the share that these ask for: of its share
//! `s` by full weight it keeps `f x s`, and of what is free it gets a part in proportion to `f x s`. See [`fill`].
//!
//! Slots of 65,537 that move without need while one of 100 equal backends recovers, in all ten steps: 1.2 % of them, with
//! `build` 3.9 %; in the worst step 0.2 %, with `build` 0.9 %.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ids::Owner,
    ring::{self, Member},
};

/// How many levels there are; a warm backend is on this one, a cold one on 1.
pub const LEVELS: u32 = 10;

/// How far a backend has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Tenths of the weight that are in force: 1 to [`LEVELS`].
    pub tenths: u32,
    /// When the next level begins; `None` on the last one.
    pub next: Option<Instant>,
}

impl Level {
    /// The whole weight is in force.
    pub const WARM: Self = Self { tenths: LEVELS, next: None };

    /// At `now`, for a backend that became eligible at `since`.
    pub fn at(since: Instant, slow_start: Duration, now: Instant) -> Self {
        let reached = |level: u32| since + slow_start.mul_f64(f64::from(level - 1) / f64::from(LEVELS - 1));
        let tenths = (2..=LEVELS).rev().find(|level| reached(*level) <= now).unwrap_or(1);
        Self { tenths, next: (tenths < LEVELS).then(|| reached(tenths + 1)) }
    }
}

/// Backends of a service that become eligible within this part of `slow_start` go through the levels together: each
/// step costs a ring.
const TOGETHER: u32 = 40;

/// Since when backends are eligible.
#[derive(Debug, Clone, Default)]
pub struct SlowStart {
    eligible: BTreeMap<Owner, Since>,
    /// By service: when the last of them began that did not join another.
    latest: BTreeMap<Arc<str>, Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Since {
    /// Before anyone looked: it is warm.
    Always,
    /// It may not be warm yet.
    Then(Instant),
}

impl SlowStart {
    /// It is eligible at `now`. If that is new, it starts slowly; with `warm` it counts as eligible for ever.
    pub fn note_eligible(&mut self, owner: &Owner, slow_start: Duration, warm: bool, now: Instant) {
        if self.eligible.contains_key(owner) {
            return;
        }
        let since = if warm {
            Since::Always
        } else {
            let latest = self.latest.entry(Arc::clone(&owner.service)).or_insert(now);
            if now.saturating_duration_since(*latest) > slow_start / TOGETHER {
                *latest = now;
            }
            Since::Then(*latest)
        };
        self.eligible.insert(owner.clone(), since);
    }

    /// It is not eligible: when it is again, it starts slowly.
    pub fn note_away(&mut self, owner: &Owner) {
        self.eligible.remove(owner);
    }

    /// Forgets those that are no longer in the file.
    pub fn retain(&mut self, keep: impl Fn(&Owner) -> bool) {
        self.eligible.retain(|owner, _| keep(owner));
        let Self { eligible, latest } = self;
        let services: BTreeSet<&str> = eligible.keys().map(|owner| &*owner.service).collect();
        latest.retain(|service, _| services.contains(&**service));
    }

    /// How far it has come. What is not eligible has no level; it counts as warm.
    pub fn level(&self, owner: &Owner, slow_start: Duration, now: Instant) -> Level {
        match self.eligible.get(owner) {
            Some(Since::Then(since)) => Level::at(*since, slow_start, now),
            Some(Since::Always) | None => Level::WARM,
        }
    }
}

/// A backend that takes new connections, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Starter {
    /// With the file's weight.
    pub member: Member,
    /// [`Level::tenths`].
    pub tenths: u32,
}

impl Starter {
    /// What is in force of its weight, in tenths of the file's weights: its share of the sum is the share it gets.
    pub fn weight_in_force(&self) -> u32 {
        self.member.weight * self.tenths
    }
}

/// The ring of these backends, in proportion to their weights in force. `whole` is the ring of the whole pool by full
/// weights. With all on one level it is what [`ring::refill`] makes of them.
///
/// One backend's step up moves slots to it, and next to none between others.
pub fn fill(whole: &[u16], eligible: &[Starter]) -> Vec<u16> {
    let most = eligible.iter().map(|starter| starter.tenths).max().unwrap_or(LEVELS);
    if eligible.iter().all(|starter| starter.tenths == most) {
        let members: Vec<Member> = eligible.iter().map(|starter| starter.member).collect();
        return ring::refill(whole, &members);
    }
    let weigh = |s: &Starter| Member { weight: s.weight_in_force(), ..s.member };
    let members: Vec<Member> = eligible.iter().map(weigh).collect();
    ring::refill(&thin(whole, eligible, most), &members)
}

/// Takes from each that is below the highest level the part of its slots that it is below it.
fn thin(whole: &[u16], eligible: &[Starter], most: u32) -> Vec<u16> {
    /// 2^32 / golden ratio: its multiples spread evenly, however many of them there are.
    const SPREAD: u32 = 0x9e37_79b9;
    let highest = eligible.iter().map(|starter| starter.member.id).max().unwrap_or(0);
    // For each id: what multiples it keeps those slots below, and the multiple of its next slot.
    let mut keeps = vec![(u64::MAX, 0u32); usize::from(highest) + 1];
    for starter in eligible {
        keeps[usize::from(starter.member.id)].0 = (u64::from(starter.tenths) << 32) / u64::from(most);
    }
    let keep = |id: &u16| match keeps.get_mut(usize::from(*id)) {
        Some((below, multiple)) => {
            *multiple = multiple.wrapping_add(SPREAD);
            if u64::from(*multiple) < *below { *id } else { 0 }
        }
        None => *id,
    };
    whole.iter().map(keep).collect()
}

#[cfg(test)]
mod tests;
