//! The maps in memory, with the kernel's rules: capacities, and no slot outside the array.

use lb_common::{abi::MAX_BACKEND_ID, backend::BackendStats, outcome::Outcome};
use std::sync::{Arc, Mutex, PoisonError};

use super::{ApplyError, Dataplane, Refused};
use crate::{
    config::spec::Limits,
    plan::tables::{Op, ServiceKey, Tables},
};

/// Maps in memory. Clones share them, so that a test can look while the controller has one.
#[derive(Debug, Clone)]
pub struct Memory {
    tables: Arc<Mutex<Tables>>,
    limits: Limits,
}

impl Memory {
    /// Empty maps of these sizes.
    pub fn new(limits: Limits) -> Self {
        Self { tables: Arc::default(), limits }
    }

    /// What they hold.
    pub fn tables(&self) -> Tables {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes them behind the controller's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Tables)) {
        change(&mut self.tables.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn refusal(&self, tables: &Tables, op: &Op) -> Option<&'static str> {
        match op {
            Op::PutBackend(id, _)
                if u32::from(*id) >= self.limits.backends.min(u32::from(MAX_BACKEND_ID) + 1) =>
            {
                Some("E2BIG: no such index")
            }
            Op::WriteRing(base, ring) if base + ring.len() as u32 > self.limits.slots => {
                Some("E2BIG: no such index")
            }
            Op::PutService(key, _) if !tables.services.contains_key(key) => {
                let is_v4 = |k: &ServiceKey| matches!(k, ServiceKey::V4(_));
                let used = tables.services.keys().filter(|k| is_v4(k) == is_v4(key)).count();
                (used >= self.limits.services as usize).then_some("E2BIG: the map is full")
            }
            _ => None,
        }
    }
}

impl Dataplane for Memory {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = self.refusal(&tables, op) {
            return Err(ApplyError { op: op.to_string(), reason: reason.into() });
        }
        op.apply_to(&mut tables);
        Ok(())
    }

    fn snapshot(&self, _expected: &Tables) -> Result<Tables, ApplyError> {
        Ok(self.tables())
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        Ok(self.tables())
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        Ok(Refused::default())
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        Ok(vec![BackendStats::default(); ids.len()])
    }

    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError> {
        Ok([0; Outcome::ALL.len()])
    }
}
