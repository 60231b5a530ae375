//! A slot: one entry of a service's consistent-hash table (its ring), and how it changes.
//!
//! One `u32`, so that one store changes it: current backend (15 bits), previous backend (15 bits), `pinned` (1 bit).
//! One bit stays free.
//!
//! ```text
//!                    another current, the old one lives
//!   +---------+ ------------------------------------------> +--------+ --+ another current:
//!   | settled |                                             | moving |   | previous stays
//!   +---------+ <----------+             +----------------> +--------+ <-+
//!     |     ^              | no pins     | another current,     |
//!     +-----+              | are left    | the old one lives    | previous dies, or is current again,
//!   its backend dies:  +--------+ -------+                      | or the move ends
//!   another takes it   | pinned | <-----------------------------+
//!                      +--------+ --+
//!                           ^       | its backend dies: another takes it
//!                           +-------+
//! ```
//!
//! What a packet meets in each state is [`crate::track::decide`]'s to say.

/// One slot word. The pinned bit stands in moving slots, too: a settled one is known by one bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Slot(u32);

const ID_BITS: u32 = 15;
const ID_MASK: u32 = (1 << ID_BITS) - 1;
const PINNED: u32 = 1 << (2 * ID_BITS);

/// What a slot's state means for the packets that fall on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// previous = current, no pins: the flow table is not read.
    Settled,
    /// previous = current, and flows may be pinned elsewhere.
    Pinned,
    /// Connections older than the change belong to previous.
    Moving,
}

impl SlotState {
    /// Its name in `trace` and in texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Pinned => "pinned",
            Self::Moving => "moving",
        }
    }
}

impl Slot {
    /// A slot that no backend has.
    pub const EMPTY: Self = Self(0);

    const fn new(current: u16, previous: u16, pinned: bool) -> Self {
        let id = current as u32 & ID_MASK;
        Self(id | (previous as u32 & ID_MASK) << ID_BITS | if pinned { PINNED } else { 0 })
    }

    /// Settled on a backend. Ids are at most [`crate::abi::MAX_BACKEND_ID`].
    #[inline(always)]
    pub const fn settled(backend: u16) -> Self {
        Self::new(backend, backend, false)
    }

    /// New connections and old ones to a backend, but for those that are pinned elsewhere.
    pub const fn pinned(backend: u16) -> Self {
        Self::new(backend, backend, true)
    }

    /// On the way from `previous` to `current`, which differ.
    pub const fn moving(current: u16, previous: u16) -> Self {
        Self::new(current, previous, true)
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

    /// No flow of it is pinned: the program reads no flow table.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.0 & PINNED == 0
    }

    /// Whether connections older than the last change go elsewhere than new ones.
    #[inline(always)]
    pub const fn is_moving(self) -> bool {
        self.current() != self.previous()
    }

    /// Which of the three it is.
    pub const fn state(self) -> SlotState {
        if self.is_settled() {
            SlotState::Settled
        } else if self.is_moving() {
            SlotState::Moving
        } else {
            SlotState::Pinned
        }
    }

    /// The slot when `wanted` (0: nobody) is to get its new connections, and `is_usable` says which backends are not
    /// dead. The one transition for all reasons: a pool that changes, a weight, a drain, a death, a return.
    ///
    /// A living previous stays: flows without a pin are its. A dead one gives way, which never clears `pinned`.
    #[must_use]
    #[inline]
    pub fn advance(self, wanted: u16, is_usable: impl Fn(u16) -> bool) -> Self {
        let previous = self.previous();
        if previous != 0 && previous != wanted && is_usable(previous) {
            return Self::moving(wanted, previous);
        }
        // Previous is wanted again, or dead. It was moving or pinned: pins may be left. It was settled: there are none.
        Self::new(wanted, wanted, !self.is_settled())
    }

    /// The move is over: who has not been seen in it has no pin, and goes to current.
    #[must_use]
    pub const fn end_move(self) -> Self {
        Self::new(self.current(), self.current(), !self.is_settled())
    }

    /// No pin is left: a pinned slot becomes settled, another stays as it is.
    #[must_use]
    pub const fn settle(self) -> Self {
        if self.is_moving() { self } else { Self::settled(self.current()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [u16; 4] = [0, 1, 2, 3];

    fn every_slot() -> impl Iterator<Item = Slot> {
        let pairs = ALL.into_iter().flat_map(|c| ALL.into_iter().map(move |p| (c, p)));
        pairs.flat_map(|(c, p)| match (c, p) {
            (c, p) if c == p => std::vec![Slot::settled(c), Slot::pinned(c)],
            // Nobody has no flows: a slot never moves away from nobody.
            (_, 0) => std::vec![],
            (c, p) => std::vec![Slot::moving(c, p)],
        })
    }

    #[test]
    fn a_settled_slot_names_its_backend_twice() {
        for id in [0, 1, 2, 0x1234, crate::abi::MAX_BACKEND_ID] {
            let slot = Slot::from_word(Slot::settled(id).to_word());
            assert_eq!((slot.current(), slot.previous()), (id, id));
            assert_eq!(slot.state(), SlotState::Settled);
            assert_eq!(Slot::pinned(id).state(), SlotState::Pinned);
        }
        assert_eq!(Slot::EMPTY, Slot::settled(0));
    }

    #[test]
    fn fields_do_not_overlap() {
        let max = crate::abi::MAX_BACKEND_ID;
        assert_eq!(Slot::pinned(max).to_word().count_ones(), 31, "one bit stays free");
        let slot = Slot::moving(5, 0x4321);
        assert_eq!((slot.current(), slot.previous(), slot.state()), (5, 0x4321, SlotState::Moving));
    }

    /// Every slot, every wanted backend, every set of usable ones: the rules of the design, one by one.
    #[test]
    fn every_transition_keeps_the_rules() {
        for (old, wanted, usable) in every_slot().flat_map(|slot| {
            ALL.into_iter().flat_map(move |wanted| (0..16u32).map(move |set| (slot, wanted, set)))
        }) {
            let is_usable = |id: u16| id != 0 && usable & 1 << id != 0;
            let new = old.advance(wanted, is_usable);
            let case = std::format!("{old:?} wanted {wanted} usable {usable:04b} -> {new:?}");
            assert_eq!(new.current(), wanted, "{case}");
            // A living previous keeps the flows that have no pin.
            if is_usable(old.previous()) {
                assert_eq!(new.previous(), old.previous(), "{case}");
            } else {
                assert_eq!(new.previous(), wanted, "a dead previous gives way: {case}");
            }
            // Pins may be left wherever they may have been, and come to be only in a move.
            if old.state() != SlotState::Settled {
                assert_ne!(new.state(), SlotState::Settled, "{case}");
            }
            assert_eq!(new.is_moving(), new.state() == SlotState::Moving, "{case}");
            if old.state() == SlotState::Settled && !new.is_moving() {
                assert_eq!(new.state(), SlotState::Settled, "{case}");
            }
            // Doing it again changes nothing; a plan may be repeated.
            assert_eq!(new.advance(wanted, is_usable), new, "{case}");
        }
    }

    #[test]
    fn nothing_changes_where_nothing_is_wanted() {
        for slot in every_slot() {
            assert_eq!(slot.advance(slot.current(), |id| id != 0), slot);
        }
    }

    #[test]
    fn a_move_ends_pinned_and_a_pinned_slot_settles() {
        assert_eq!(Slot::moving(1, 2).end_move(), Slot::pinned(1));
        assert_eq!(Slot::settled(1).end_move(), Slot::settled(1));
        assert_eq!(Slot::pinned(1).settle(), Slot::settled(1));
        assert_eq!(
            Slot::moving(1, 2).settle(),
            Slot::moving(1, 2),
            "flows without a pin are still previous's"
        );
    }

    #[test]
    fn there_and_back_again_is_no_way_around_the_pins() {
        let all = |id: u16| id != 0;
        let moved = Slot::settled(1).advance(2, all);
        assert_eq!(moved, Slot::moving(2, 1));
        assert_eq!(moved.advance(3, all), Slot::moving(3, 1));
        assert_eq!(moved.advance(1, all), Slot::pinned(1));
        assert_eq!(moved.advance(2, |id| id == 2), Slot::pinned(2));
        assert_eq!(Slot::settled(1).advance(2, |id| id == 2), Slot::settled(2));
        assert_eq!(Slot::settled(1).advance(0, all), Slot::moving(0, 1), "a drain of the last one");
    }
}
