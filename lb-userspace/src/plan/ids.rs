//! Backend ids: stable as long as a backend lives, reused only after a quarantine.
//!
//! A packet in flight, or a slot read a moment ago, may still name an id when its backend has left the tables; the
//! quarantine keeps it from meaning somebody else then.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt as _};

use super::ring::Identity;

/// Who has an id: a server of a service, by what makes it that server. Its name may change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Name of the service.
    pub service: Arc<str>,
    /// Address and port.
    pub identity: Identity,
}

/// Every id is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {0} backend ids are in use or were a moment ago; raise limits.backends, or wait")]
pub struct NoId(pub u32);

/// Which backend has which id.
#[derive(Debug, Clone)]
pub struct Ids {
    capacity: u32,
    quarantine: Duration,
    /// Hashed: every backend is looked up within the millisecond that a verdict has.
    owners: HashMap<Owner, u16>,
    next: u32,
    resting: VecDeque<(Instant, u16)>,
}

impl Ids {
    /// Ids from 1 to `capacity - 1`; a freed one rests for `quarantine`.
    pub fn new(capacity: u32, quarantine: Duration) -> Self {
        Self { capacity, quarantine, owners: HashMap::new(), next: 1, resting: VecDeque::new() }
    }

    /// The owner's id, a new one if it has none.
    pub fn get(&mut self, owner: &Owner, now: Instant) -> Result<u16, NoId> {
        if let Some(id) = self.owners.get(owner) {
            return Ok(*id);
        }
        let rested = self.resting.front().is_some_and(|(since, _)| now - *since >= self.quarantine);
        // Fresh ids first: the longer one rests, the better.
        let id = if self.next < self.capacity {
            self.next += 1;
            (self.next - 1) as u16
        } else if rested {
            self.resting.pop_front().map(|(_, id)| id).ok_or(NoId(self.capacity - 1))?
        } else {
            return Err(NoId(self.capacity - 1));
        };
        self.owners.insert(owner.clone(), id);
        Ok(id)
    }

    /// The owner has this id already: another run of the controller gave it. An owner that has one keeps it.
    pub fn adopt(&mut self, owner: Owner, id: u16) {
        self.next = self.next.max(u32::from(id) + 1);
        self.owners.entry(owner).or_insert(id);
    }

    /// After all were adopted: the ids below the highest that nobody has rest first.
    pub fn rest_unowned(&mut self, now: Instant) {
        let owned: BTreeSet<u16> = self.owners.values().copied().collect();
        self.resting.extend((1..self.next as u16).filter(|id| !owned.contains(id)).map(|id| (now, id)));
    }

    /// Frees the ids of all but these.
    pub fn retain(&mut self, used: &BTreeSet<u16>, now: Instant) {
        let mut freed = Vec::new();
        self.owners.retain(|_, id| {
            let keep = used.contains(id);
            if !keep {
                freed.push(*id);
            }
            keep
        });
        freed.sort_unstable();
        self.resting.extend(freed.into_iter().map(|id| (now, id)));
    }

    /// How many are owned.
    pub fn count(&self) -> usize {
        self.owners.len()
    }

    /// Whether it has one.
    pub fn has(&self, owner: &Owner) -> bool {
        self.owners.contains_key(owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(last: u8) -> Owner {
        Owner { service: "web".into(), identity: Identity { address: [10, 0, 0, last].into(), port: None } }
    }

    #[test]
    fn an_id_stays_and_is_reused_only_after_the_quarantine() {
        let start = Instant::now();
        let mut ids = Ids::new(3, Duration::from_mins(1));
        assert_eq!(ids.get(&owner(1), start), Ok(1));
        assert_eq!(ids.get(&owner(2), start), Ok(2));
        assert_eq!(ids.get(&owner(1), start), Ok(1));
        ids.retain(&BTreeSet::from([2]), start);
        assert_eq!(ids.get(&owner(3), start + Duration::from_secs(59)), Err(NoId(2)));
        assert_eq!(ids.get(&owner(3), start + Duration::from_mins(1)), Ok(1));
        assert_eq!(ids.get(&owner(2), start), Ok(2));
    }

    #[test]
    fn adopted_ids_stay_and_the_gaps_between_them_rest() {
        let start = Instant::now();
        let mut ids = Ids::new(6, Duration::from_mins(1));
        ids.adopt(owner(1), 4);
        ids.rest_unowned(start);
        assert_eq!(ids.get(&owner(1), start), Ok(4));
        assert_eq!(ids.get(&owner(2), start), Ok(5), "never used before");
        assert_eq!(ids.get(&owner(3), start), Err(NoId(5)));
        assert_eq!(ids.get(&owner(3), start + Duration::from_mins(1)), Ok(1));
    }

    #[test]
    fn another_service_on_the_same_server_has_another_id() {
        let now = Instant::now();
        let mut ids = Ids::new(10, Duration::ZERO);
        let other = Owner { service: "mail".into(), ..owner(1) };
        assert_ne!(ids.get(&owner(1), now), ids.get(&other, now));
    }
}
