//! The kernel's maps behind one trait, with three implementations: `bpf` (the kernel), `memory` (its rules, for tests)
//! and `faulty` (any of them, failing on purpose).

pub mod bpf;
pub mod faulty;
pub mod memory;
pub mod mmap;
pub mod objects;

use lb_common::{backend::BackendStats, outcome::Outcome};

use crate::plan::tables::{Op, Tables};

/// An operation that the maps refused.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct ApplyError {
    /// The operation, as it displays.
    pub op: String,
    /// The kernel's word for it.
    pub reason: String,
}

/// New pins that were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// Of TCP flows: one without its pin is known by where its slot's previous connections go.
    pub tcp: u64,
    /// Of UDP flows.
    pub udp: u64,
}

/// The maps. Owned by the controller's task alone.
pub trait Dataplane: Send {
    /// Performs one operation. May be repeated after a failure.
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError>;

    /// What the maps hold of what `expected` names, and everything that it does not name: for drift and orphans.
    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError>;

    /// Everything that the maps hold: of another run of the controller.
    fn adopt(&self) -> Result<Tables, ApplyError>;

    /// New pins that were refused since the maps were made, over all CPUs.
    fn refused_pins(&self) -> Result<Refused, ApplyError>;

    /// What has been sent to these backends since each was put, over all CPUs.
    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError>;

    /// Packets by outcome since the maps were made, over all CPUs. Sent packets are counted by backend instead.
    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError>;
}
