//! The health of one backend: a pure state machine over probe results. No I/O, no clock: `now` is a parameter.
//!
//! ```text
//!                 1 pass                       fall fails in a row
//!   +---------+ ---------> +----+ -------------------------------------> +------+
//!   | unknown |            | up |                                        | down |
//!   +---------+            +----+ <------------------------------------- +------+
//!        |                        rise passes in a row                      ^
//!        +------------------------------------------------------------------+
//!                              fall fails in a row
//! ```
//!
//! - A result that agrees with the health resets the count. Nothing leads back to unknown.
//! - `SOCKERR` is our own trouble: it is shown, but it changes no health, no count and no cause.
//! - A backend that is down has a **cause**. Only `fall` failures below layer 7 in a row make it a dead one; until
//!   then a layer 7 failure of the same run is the cause, so one lost SYN cannot cut the flows of a server that said 503.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{
    reason::{Detail, Reason, Verdict},
    schedule::fast_interval,
};
use crate::config::spec::HealthSpec;

/// Whether a backend may take traffic, as far as probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Health {
    /// No verdict yet.
    #[default]
    Unknown,
    /// It answers as it should.
    Up,
    /// It does not.
    Down,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// What one result did to a [`Tracker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The health before it.
    pub previous: Health,
    /// The health is another one now.
    pub changed: bool,
    /// Someone should hear of it: the health, the reason or the cause changed, or it was the first result.
    pub notable: bool,
}

/// The health of one backend, and how sure it is.
#[derive(Debug, Clone)]
pub struct Tracker {
    rise: u32,
    fall: u32,
    interval: Duration,
    health: Health,
    reason: Reason,
    cause: Reason,
    detail: Detail,
    since: Instant,
    round: u64,
    /// Results in a row that speak against the health; below the threshold.
    opposite: u32,
    /// Failures in a row that are not layer 7 only; stops at `fall`.
    dead: u32,
    /// What the cause would be if the backend were down: see the module's third rule.
    blame: Reason,
}

impl Tracker {
    /// A backend nothing is known of.
    pub fn new(spec: &HealthSpec, now: Instant) -> Self {
        Self::adopted(spec, Health::Unknown, Reason::Init, now)
    }

    /// A backend whose health another run of the controller left behind; it is kept until a new verdict.
    /// `reason` becomes the cause, too.
    pub fn adopted(spec: &HealthSpec, health: Health, reason: Reason, now: Instant) -> Self {
        Self {
            rise: spec.rise.max(1),
            fall: spec.fall.max(1),
            interval: spec.interval,
            health,
            reason,
            cause: reason,
            detail: Detail::default(),
            since: now,
            round: 0,
            opposite: 0,
            dead: 0,
            blame: reason,
        }
    }

    /// Goes on with other thresholds: the health stays, counting starts again.
    pub fn respec(&mut self, spec: &HealthSpec) {
        self.rise = spec.rise.max(1);
        self.fall = spec.fall.max(1);
        self.interval = spec.interval;
        self.opposite = 0;
        self.dead = 0;
    }

    /// Takes the result of a probe that ended at `now`.
    pub fn observe(&mut self, reason: Reason, detail: Detail, now: Instant) -> Step {
        let (previous, old_reason, old_cause) = (self.health, self.reason, self.cause);
        self.reason = reason;
        self.detail = detail;
        self.round += 1;
        match reason.verdict() {
            Verdict::Pass => self.pass(reason),
            Verdict::Fail => self.fail(reason),
            Verdict::Unjudged => {}
        }
        let changed = self.health != previous;
        if changed {
            self.since = now;
        }
        let told = (reason, self.cause) == (old_reason, old_cause);
        Step { previous, changed, notable: changed || !told || self.round == 1 }
    }

    fn pass(&mut self, reason: Reason) {
        self.dead = 0;
        match self.health {
            // One success is enough at start: waiting would only prolong an outage.
            Health::Unknown => self.flip(Health::Up, reason),
            Health::Up => {
                self.opposite = 0;
                self.cause = reason;
            }
            Health::Down => {
                self.opposite += 1;
                if self.opposite >= self.rise {
                    self.flip(Health::Up, reason);
                }
            }
        }
    }

    fn fail(&mut self, reason: Reason) {
        if reason.is_layer7_only() {
            self.dead = 0;
            self.blame = reason;
        } else {
            self.dead = (self.dead + 1).min(self.fall);
            if self.dead == self.fall {
                self.blame = reason;
            }
        }
        match self.health {
            Health::Unknown | Health::Up => {
                self.opposite += 1;
                if self.opposite >= self.fall {
                    // `fall` failures in a row hold a layer 7 one or are all below it: `blame` is of this run.
                    self.flip(Health::Down, self.blame);
                }
            }
            Health::Down => {
                self.opposite = 0;
                self.cause = self.blame;
            }
        }
    }

    fn flip(&mut self, health: Health, cause: Reason) {
        self.health = health;
        self.cause = cause;
        self.opposite = 0;
    }

    /// Whether the last results speak against the current health, or against the cause of a `down`.
    pub fn is_wavering(&self) -> bool {
        let dying = self.health == Health::Down && self.cause.is_layer7_only() && self.dead > 0;
        self.opposite > 0 || dying
    }

    /// From the start of the last probe to the start of the next, without jitter: a quarter while the backend is
    /// changing its mind.
    pub fn next_interval(&self) -> Duration {
        if self.is_wavering() { fast_interval(self.interval) } else { self.interval }
    }

    /// The health in force.
    pub fn health(&self) -> Health {
        self.health
    }

    /// The last result, whatever it did.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What the health rests on. Whether a `down` backend's flows may stay is for this to say, not for the reason.
    pub fn cause(&self) -> Reason {
        self.cause
    }

    /// More about the last result.
    pub fn detail(&self) -> &Detail {
        &self.detail
    }

    /// When the health last changed, or tracking began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Results taken.
    pub fn round(&self) -> u64 {
        self.round
    }
}

#[cfg(test)]
mod tests;
