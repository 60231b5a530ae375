//! Rings that are likely to be wanted (again).

use super::{Member, build};
use std::{collections::VecDeque, sync::Arc};

/// The last few rings of one service.
///
/// A large ring takes about a millisecond to build, all of which would stand between a verdict and the kernel. But a verdict
/// has its omens: whoever asks for the ring without a backend at its first failed probe finds it ready at the last. A
/// backend that comes back finds the ring from before its death.
#[derive(Debug)]
pub struct RingCache {
    /// The ring asked for last comes first.
    rings: VecDeque<Entry>,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    members: Vec<Member>,
    ring: Arc<[u16]>,
}

impl RingCache {
    /// Keeps so many rings, at least one; each takes 2 bytes a slot.
    pub fn new(capacity: usize) -> Self {
        Self { rings: VecDeque::new(), capacity: capacity.max(1) }
    }

    /// What [`build`] returns, and panics as it does. `members` in another order are found to be others: keep the file's.
    pub fn get(&mut self, members: &[Member], size: u32) -> Arc<[u16]> {
        let found =
            self.rings.iter().position(|entry| entry.ring.len() == size as usize && entry.members == members);
        let entry = found
            .and_then(|at| self.rings.remove(at))
            .unwrap_or_else(|| Entry { members: members.to_vec(), ring: build(members, size).into() });
        let ring = Arc::clone(&entry.ring);
        self.rings.push_front(entry);
        self.rings.truncate(self.capacity);
        ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ring::Identity;

    fn pool(weights: &[u32]) -> Vec<Member> {
        let identity = |id| Identity { address: [10, 0, 0, id as u8].into(), port: None };
        (1..).zip(weights).map(|(id, &weight)| Member { id, identity: identity(id), weight }).collect()
    }

    #[test]
    fn gives_what_build_gives_and_keeps_the_last() {
        let pools = [pool(&[1, 1]), pool(&[1, 2]), pool(&[1, 1, 1])];
        let mut cache = RingCache::new(2);
        let first = cache.get(&pools[0], 251);
        for members in &pools {
            assert_eq!(*cache.get(members, 251), *build(members, 251));
        }
        let kept = cache.get(&pools[1], 251);
        cache.get(&pools[2], 251);
        assert!(Arc::ptr_eq(&kept, &cache.get(&pools[1], 251)), "two are kept");
        assert!(!Arc::ptr_eq(&first, &cache.get(&pools[0], 251)), "not three");
    }

    #[test]
    fn tells_sizes_ids_and_weights_apart() {
        let mut cache = RingCache::new(8);
        let members = pool(&[1, 1]);
        let renumbered = [Member { id: 7, ..members[0] }, members[1]];
        assert_eq!(cache.get(&members, 251).len(), 251);
        assert_eq!(cache.get(&members, 61).len(), 61);
        assert!(cache.get(&renumbered, 251).contains(&7));
    }
}
