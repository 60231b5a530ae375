//! A slot: one entry of a service's consistent-hash table (its ring).
//!
//! One `u32`, so that one store changes it: current backend (15 bits), previous backend (15 bits), `pinned` (1 bit).
//! One bit stays free.

/// One slot word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Slot(u32);

const ID_BITS: u32 = 15;
const ID_MASK: u32 = (1 << ID_BITS) - 1;
const PINNED: u32 = 1 << (2 * ID_BITS);

impl Slot {
    /// A slot that no backend has.
    pub const EMPTY: Self = Self(0);

    /// Settled on a backend: previous = current, no pins. Ids are at most [`crate::abi::MAX_BACKEND_ID`].
    #[inline(always)]
    pub const fn settled(backend: u16) -> Self {
        let id = backend as u32 & ID_MASK;
        Self(id | id << ID_BITS)
    }

    /// The word as it stands in the map.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.0
    }

    /// A word of the map.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// Backend id of new connections; 0 is none.
    #[inline(always)]
    pub const fn current(self) -> u16 {
        (self.0 & ID_MASK) as u16
    }

    /// Backend id of connections from before the last change; 0 is none.
    #[inline(always)]
    pub const fn previous(self) -> u16 {
        (self.0 >> ID_BITS & ID_MASK) as u16
    }

    /// Whether pins of this slot may exist although it does not move.
    #[inline(always)]
    pub const fn is_pinned(self) -> bool {
        self.0 & PINNED != 0
    }

    /// previous = current and no pins: the program reads no flow table.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.current() == self.previous() && !self.is_pinned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_slot_names_its_backend_twice() {
        for id in [0, 1, 2, 0x1234, crate::abi::MAX_BACKEND_ID] {
            let slot = Slot::from_word(Slot::settled(id).to_word());
            assert_eq!((slot.current(), slot.previous()), (id, id));
            assert!(slot.is_settled() && !slot.is_pinned());
        }
    }

    #[test]
    fn fields_do_not_overlap() {
        let all = Slot::from_word(ID_MASK | ID_MASK << ID_BITS | PINNED);
        assert_eq!(all.to_word().count_ones(), 31, "one bit stays free");
        assert!(Slot::from_word(PINNED).is_pinned());
        assert_eq!(Slot::from_word(PINNED).current(), 0);
        assert_eq!(Slot::from_word(ID_MASK << ID_BITS).current(), 0);
        assert!(!Slot::from_word(5 << ID_BITS | 4).is_settled());
    }
}
