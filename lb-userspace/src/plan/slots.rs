//! Where each ring stands in the one array of slots: first fit, freed when nothing names it any more.

use std::collections::BTreeMap;

/// No gap is large enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no {wanted} free slots in a row among {capacity}; raise limits.slots (an old ring stays until the new one is in force)"
)]
pub struct NoRoom {
    /// Slots asked for.
    pub wanted: u32,
    /// Slots in all.
    pub capacity: u32,
}

/// Spans of the slot array in use.
#[derive(Debug, Clone)]
pub struct SlotSpace {
    capacity: u32,
    /// First slot -> size.
    spans: BTreeMap<u32, u32>,
}

impl SlotSpace {
    /// All free.
    pub fn new(capacity: u32) -> Self {
        Self { capacity, spans: BTreeMap::new() }
    }

    /// What to say when so many slots find no place.
    pub fn no_room(&self, wanted: u32) -> NoRoom {
        NoRoom { wanted, capacity: self.capacity }
    }

    /// Takes `size` slots in a row; answers the first.
    pub fn take(&mut self, size: u32) -> Result<u32, NoRoom> {
        let mut at = 0;
        for (first, len) in &self.spans {
            if first - at >= size {
                break;
            }
            at = first + len;
        }
        if self.capacity - at < size {
            return Err(self.no_room(size));
        }
        self.spans.insert(at, size);
        Ok(at)
    }

    /// Takes the span that a ring in the maps has.
    pub fn adopt(&mut self, first: u32, size: u32) {
        self.spans.insert(first, size);
    }

    /// Gives a span back.
    pub fn free(&mut self, first: u32) {
        self.spans.remove(&first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_used_and_nothing_overlaps() {
        let mut space = SlotSpace::new(100);
        assert_eq!(space.take(40), Ok(0));
        assert_eq!(space.take(30), Ok(40));
        assert_eq!(space.take(30), Ok(70));
        assert_eq!(space.take(1), Err(NoRoom { wanted: 1, capacity: 100 }));
        space.free(40);
        assert_eq!(space.take(31), Err(NoRoom { wanted: 31, capacity: 100 }));
        assert_eq!(space.take(10), Ok(40));
        assert_eq!(space.take(20), Ok(50));
    }
}
