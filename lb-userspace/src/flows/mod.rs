//! The flow table from the controller's side: which pins go, and what a walk over them found. Pure.
//!
//! ```text
//! controller --SweepView--> sweeper's thread: Walk --candidates--> xlb_sweep (kernel)
//!      ^                                       |  <--what became of each--'
//!      '----------------SweepResult------------'
//! ```
//!
//! `fate.rs` decides about one pin, `walk.rs` about all of them, and counts; `cadence.rs` says when. The effects are
//! [`crate::dataplane::bpf::Sweeper`]'s.
//!
//! What a walk guarantees: the kernel's table is read bucket by bucket, each under its lock, and a pin never changes
//! its bucket. So a pin that was there all the time was seen, exactly once. One that was made during the walk may have
//! been missed: hence [`SETTLE_AFTER`].

mod cadence;
mod fate;
mod walk;

use std::{sync::Arc, time::Duration};

use crate::config::spec::Tracking;
use lb_common::abi::MAX_BACKEND_ID;

pub use cadence::Cadence;
pub use fate::{CLOSED_NS, DropReason, drop_reason};
pub use walk::{SweepResult, Walk, udp_room};

/// A slot is settled by a walk that began so long after it stopped moving: a packet that saw the old word may still
/// have been making its pin.
pub const SETTLE_AFTER: Duration = Duration::from_secs(1);

/// What the sweeper has to know, as it is when a walk is asked for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SweepView {
    /// By first slot; they do not overlap.
    pub rings: Arc<[RingView]>,
    /// Backends that are not dead.
    pub usable: Arc<BackendSet>,
    /// Pins that UDP may hold: half of `limits.flows`.
    pub udp_limit: u64,
    /// Whether pins can come to be: some slot is pinned or moving, or some service pins every flow (UDP, or
    /// `tracking: always`). Without, an empty table is not walked again.
    pub needs_walk: bool,
}

/// The ring of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingView {
    /// Its first slot in `RING`.
    pub base: u32,
    /// Its slots.
    pub size: u32,
    /// The service's.
    pub tracking: Tracking,
    /// TCP pins unseen for longer are dropped, ns.
    pub idle_tcp_ns: u64,
    /// UDP pins unseen for longer are dropped, ns.
    pub idle_udp_ns: u64,
}

impl SweepView {
    /// Place in `rings` of the ring that has a slot.
    pub fn ring_of(&self, slot: u32) -> Option<usize> {
        let at = self.rings.partition_point(|ring| ring.base <= slot).checked_sub(1)?;
        (slot - self.rings[at].base < self.rings[at].size).then_some(at)
    }
}

/// A set of backend ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSet(Box<[u64]>);

impl BackendSet {
    const BITS: usize = u64::BITS as usize;

    /// Whether `id` is in it. No id is never in it.
    pub fn contains(&self, id: u16) -> bool {
        let id = usize::from(id);
        self.0.get(id / Self::BITS).is_some_and(|word| word >> (id % Self::BITS) & 1 != 0)
    }
}

/// Ids beyond [`MAX_BACKEND_ID`], and 0, are left out.
impl FromIterator<u16> for BackendSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ids: I) -> Self {
        let mut words = vec![0; (usize::from(MAX_BACKEND_ID) + 1) / Self::BITS];
        for id in ids {
            let id = usize::from(id);
            if let Some(word) = words.get_mut(id / Self::BITS) {
                *word |= 1 << (id % Self::BITS);
            }
        }
        words[0] &= !1;
        Self(words.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(base: u32, size: u32) -> RingView {
        RingView { base, size, tracking: Tracking::Auto, idle_tcp_ns: 1, idle_udp_ns: 1 }
    }

    #[test]
    fn a_slot_has_the_ring_that_covers_it() {
        let view = SweepView {
            rings: [ring(2, 3), ring(5, 1), ring(10, 2)].into(),
            usable: Arc::new(BackendSet::from_iter([])),
            udp_limit: 0,
            needs_walk: true,
        };
        let found: Vec<_> = (0..14).map(|slot| view.ring_of(slot)).collect();
        let (a, b, c) = (Some(0), Some(1), Some(2));
        assert_eq!(found, [None, None, a, a, a, b, None, None, None, None, c, c, None, None]);
        assert_eq!(view.ring_of(u32::MAX), None);
        assert_eq!(SweepView { rings: [].into(), ..view }.ring_of(0), None);
    }

    #[test]
    fn a_set_has_what_was_put_in_but_not_nobody() {
        let ids = [0, 1, 63, 64, 4095, MAX_BACKEND_ID, u16::MAX];
        let set: BackendSet = ids.into_iter().collect();
        let found: Vec<u16> = (0..=u16::MAX).filter(|id| set.contains(*id)).collect();
        assert_eq!(found, [1, 63, 64, 4095, MAX_BACKEND_ID]);
    }
}
