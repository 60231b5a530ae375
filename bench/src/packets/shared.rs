//! Maps that the engine has, and the bench too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::{backend::BackendStats, outcome::Outcome};
use lb_userspace::{
    dataplane::{ApplyError, Dataplane, Refused, bpf::BpfMaps},
    plan::tables::{Op, Tables},
};

/// See the module.
#[derive(Clone)]
pub struct Shared(pub Arc<Mutex<BpfMaps>>);

impl Shared {
    /// The maps.
    pub fn maps(&self) -> MutexGuard<'_, BpfMaps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataplane for Shared {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.maps().apply(op)
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.maps().snapshot(expected)
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        self.maps().adopt()
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        self.maps().refused_pins()
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        self.maps().backend_stats(ids)
    }

    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError> {
        self.maps().outcomes()
    }
}
