//! Any dataplane, failing on purpose: for tests of retry and of what a failure leaves behind.

use lb_common::{backend::BackendStats, outcome::Outcome};

use super::{ApplyError, Dataplane, Refused};
use crate::plan::tables::{Op, Tables};

/// Fails some operations of the dataplane inside, by a seeded chance.
#[derive(Debug)]
pub struct Faulty<D> {
    inner: D,
    chance: f64,
    random: fastrand::Rng,
}

impl<D: Dataplane> Faulty<D> {
    /// Each operation fails with probability `chance`; the same seed fails the same ones.
    pub fn new(inner: D, chance: f64, seed: u64) -> Self {
        Self { inner, chance, random: fastrand::Rng::with_seed(seed) }
    }
}

impl<D: Dataplane> Dataplane for Faulty<D> {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        if self.random.f64() < self.chance {
            return Err(ApplyError { op: op.to_string(), reason: "ENOMEM: injected".into() });
        }
        self.inner.apply(op)
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.inner.snapshot(expected)
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        self.inner.adopt()
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        self.inner.refused_pins()
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        self.inner.backend_stats(ids)
    }

    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError> {
        self.inner.outcomes()
    }
}
