//! The rings of all services: where each stands, who is to have each slot, and the slot words that lead there without
//! losing a connection.
//!
//! A ring has a **target**, the backend of each slot by consistent hashing, and **words**, what stands in the map. Words
//! follow the target by [`Slot::advance`], and come to rest by [`Slot::end_move`] and [`Slot::settle`]; when, is decided
//! here.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use lb_common::slot::Slot;

use super::{
    ring::{self, Member},
    slots::{NoRoom, SlotSpace},
    slow_start::{self, Starter},
    tables::{Ring, Tables},
};
use crate::flows::{BackendSet, SETTLE_AFTER};

/// What a service wants of its ring.
pub struct Wish<'a> {
    /// The service's name.
    pub name: &'a Arc<str>,
    /// Slots.
    pub size: u32,
    /// All of its backends.
    pub pool: Vec<Member>,
    /// Those that may take new connections.
    pub members: Vec<Starter>,
    /// Ids of those that are not dead, leaving ones included.
    pub usable: Vec<u16>,
    /// Whether its slots move: some of its flows are known by a SYN, and pinned only while they have to be.
    pub moves: bool,
    /// Some of its backends have had no verdict yet. A new ring is then settled at once at each change, for `young` at
    /// most: what moved away from whoever was up first would be led there by a balancer that takes over from another.
    pub is_gathering: bool,
    /// See `is_gathering`.
    pub young: Duration,
    /// Whether a move away from a backend (its id), whose last slot began to move then, is over.
    pub is_over: &'a dyn Fn(u16, Instant) -> bool,
}

/// A ring in force.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its first slot.
    pub base: u32,
    /// Its slots.
    pub size: u32,
    /// Who is to have each slot.
    pub target: Arc<Target>,
    /// What stands in the map, or is about to.
    pub words: Ring,
    whole: Arc<Whole>,
    state: State,
    /// Since when its backends get their first verdicts; `None`: that is over.
    gathering_since: Option<Instant>,
}

/// The ring of a pool as if all of it were eligible.
#[derive(Debug)]
struct Whole {
    members: Vec<Member>,
    ids: Vec<u16>,
}

/// The backend of each slot.
#[derive(Debug)]
pub struct Target {
    /// Those that have slots.
    pub members: Vec<Starter>,
    /// Slots by backend id, up to the last that has any.
    counts: Vec<u32>,
    ids: Vec<u16>,
    checksum: OnceLock<String>,
}

/// How the words stand to the target.
#[derive(Debug, Clone, Default)]
struct State {
    /// Slots that move.
    moving: u32,
    /// Slots that are pinned.
    pinned: u32,
    /// By the backend that slots move away from: when the last of them began.
    moving_since: BTreeMap<u16, Instant>,
    /// When the last slot stopped moving: when the map said so.
    pinned_since: Option<Instant>,
    /// Slots have stopped moving, but in the map they may still move.
    is_stopping: bool,
    /// What the words were made with.
    usable: Vec<u16>,
    moves: bool,
}

/// What became of the slots of a ring. Flat, and counted as they change: 65,537 of them do within the millisecond that
/// a verdict has.
struct Tally {
    moving: u32,
    pinned: u32,
    /// A slot stopped moving.
    stopped: bool,
    /// By backend id: slots began to move away from it.
    began: Vec<bool>,
    /// By backend id: slots move away from it.
    left: Vec<bool>,
}

impl Tally {
    /// For slots that move away from backends with ids up to `last`.
    fn new(last: u16) -> Self {
        let none = vec![false; usize::from(last) + 1];
        Self { moving: 0, pinned: 0, stopped: false, began: none.clone(), left: none }
    }

    fn add(&mut self, old: Slot, new: Slot) {
        if new.is_moving() {
            self.moving += 1;
            let previous = usize::from(new.previous());
            self.began[previous] |= !old.is_moving() || old.previous() != new.previous();
            self.left[previous] = true;
        } else if !new.is_settled() {
            self.pinned += 1;
            self.stopped |= old.is_moving();
        }
    }
}

impl State {
    /// Counts, and when something began.
    fn note(&mut self, tally: &Tally, now: Instant) {
        (self.moving, self.pinned) = (tally.moving, tally.pinned);
        self.is_stopping |= tally.stopped;
        let began = (0u16..).zip(&tally.began).filter(|(_, began)| **began);
        self.moving_since.extend(began.map(|(id, _)| (id, now)));
        self.moving_since.retain(|id, _| tally.left.get(usize::from(*id)).is_some_and(|left| *left));
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Rings {
    space: SlotSpace,
    /// By service name. An entry stays until [`Rings::forget_unused`] finds that nothing names it.
    placed: BTreeMap<Arc<str>, Placed>,
    /// Places of rings that were replaced.
    old_places: Vec<u32>,
}

impl Target {
    fn new(whole: &Whole, members: Vec<Starter>) -> Self {
        let ids = slow_start::fill(&whole.ids, &members);
        // Counted in a flat table: this runs within the millisecond that a verdict has.
        let mut counts = vec![0u32; usize::from(ids.iter().copied().max().unwrap_or(0)) + 1];
        for id in &ids {
            counts[usize::from(*id)] += 1;
        }
        Self { members, counts, ids, checksum: OnceLock::new() }
    }

    /// Slots that a backend is to have.
    pub fn slots_of(&self, id: u16) -> u32 {
        self.counts.get(usize::from(id)).copied().unwrap_or(0)
    }

    /// Equal on balancers that choose alike; see [`ring::table_checksum`].
    pub fn checksum(&self) -> &str {
        self.checksum.get_or_init(|| {
            let members: Vec<Member> = self.members.iter().map(|starter| starter.member).collect();
            ring::table_checksum(&self.ids, &members)
        })
    }
}

impl Placed {
    /// Slots on the way from one backend to another.
    pub fn moving(&self) -> u32 {
        self.state.moving
    }

    /// Slots of which flows may be pinned elsewhere, moving ones included.
    pub fn unsettled(&self) -> u32 {
        self.state.moving + self.state.pinned
    }

    /// Whether slots move away from a backend.
    pub fn moves_from(&self, id: u16) -> bool {
        self.state.moving_since.contains_key(&id)
    }

    /// The words follow the target, the living and the time.
    fn advance(&mut self, wish: &Wish<'_>, now: Instant) {
        let gathers = self.gathering_since.is_some();
        let moves = self.state.moving_since.iter();
        let ended = moves.filter(|(id, since)| (wish.is_over)(**id, **since)).map(|(id, _)| *id);
        // Sets are flat here: 65,537 slots are looked at within the millisecond that a verdict has.
        let ended: BackendSet = ended.collect();
        let usable: BackendSet = wish.usable.iter().copied().collect();
        let mut tally = Tally::new(wish.usable.iter().copied().max().unwrap_or(0));
        let next = |(old, wanted): (&Slot, &u16)| {
            let mut new = Slot::settled(*wanted);
            if wish.moves && !gathers {
                new = old.advance(*wanted, |id| usable.contains(id));
                if new.is_moving() && ended.contains(new.previous()) {
                    new = new.end_move();
                }
            }
            tally.add(*old, new);
            new
        };
        let words: Ring = self.words.iter().zip(&self.target.ids).map(next).collect();
        self.state.note(&tally, now);
        self.state.usable.clone_from(&wish.usable);
        self.state.moves = wish.moves;
        if *words != *self.words {
            self.words = words;
        }
    }

    /// The words of another run of the controller: what moves has only begun to, as far as is known.
    fn adopted(base: u32, words: Ring, now: Instant) -> Self {
        let nobody = Arc::new(Whole { members: Vec::new(), ids: vec![0; words.len()] });
        let target = Arc::new(Target::new(&nobody, Vec::new()));
        let size = words.len() as u32;
        let mut placed = Self {
            base,
            size,
            target,
            words: vec![Slot::EMPTY; words.len()].into(),
            whole: nobody,
            state: State::default(),
            gathering_since: None,
        };
        let mut tally = Tally::new(words.iter().map(|word| word.previous()).max().unwrap_or(0));
        words.iter().for_each(|word| tally.add(Slot::EMPTY, *word));
        placed.state.note(&tally, now);
        placed.words = words;
        (placed.state.pinned_since, placed.state.is_stopping) = (Some(now), false);
        placed
    }
}

impl Rings {
    /// For an array of so many slots.
    pub fn new(slots: u32) -> Self {
        Self { space: SlotSpace::new(slots), placed: BTreeMap::new(), old_places: Vec::new() }
    }

    /// A ring that is in the maps, and the service that it is of, if that is known.
    pub fn adopt(&mut self, service: Option<Arc<str>>, base: u32, words: Ring, now: Instant) {
        self.space.adopt(base, words.len() as u32);
        match service {
            Some(name) if !self.placed.contains_key(&name) => {
                self.placed.insert(name, Placed::adopted(base, words, now));
            }
            _ => self.old_places.push(base),
        }
    }

    /// Whether there are places for rings of these services, beside what is there.
    pub fn have_room<'a>(&self, wanted: impl Iterator<Item = (&'a str, u32)>) -> Result<(), NoRoom> {
        let mut space = self.space.clone();
        let new = wanted.filter(|(service, size)| self.placed.get(*service).is_none_or(|p| p.size != *size));
        new.map(|(_, size)| size).try_for_each(|size| space.take(size).map(drop))
    }

    /// The service's ring as it is wished for, where it stands; made anew only in what differs. Without room for one of
    /// that size it stays as large as it is, if it is there: [`Placed::size`] says.
    pub fn place(&mut self, wish: &Wish<'_>, now: Instant) -> Result<&Placed, NoRoom> {
        let old = self.placed.get(wish.name);
        if old.is_none_or(|placed| placed.size != wish.size) {
            match self.space.take(wish.size) {
                Ok(base) => {
                    self.old_places.extend(old.map(|placed| placed.base));
                    let words = vec![Slot::EMPTY; wish.size as usize].into();
                    let placed = Placed { gathering_since: Some(now), ..Placed::adopted(base, words, now) };
                    self.placed.insert(Arc::clone(wish.name), placed);
                }
                Err(no_room) if old.is_none() => return Err(no_room),
                Err(_) => {}
            }
        }
        let placed = self.placed.get_mut(wish.name).expect("it was there or has just been placed");
        placed.gathering_since = placed.gathering_since.filter(|since| now < *since + wish.young);
        if placed.whole.members != wish.pool {
            placed.whole =
                Arc::new(Whole { ids: ring::build(&wish.pool, placed.size), members: wish.pool.clone() });
            placed.target = Arc::new(Target::new(&placed.whole, wish.members.clone()));
        } else if placed.target.members != wish.members {
            placed.target = Arc::new(Target::new(&placed.whole, wish.members.clone()));
        } else if placed.state.usable == wish.usable
            && placed.state.moves == wish.moves
            && !placed.state.moving_since.iter().any(|(id, since)| (wish.is_over)(*id, *since))
        {
            placed.gathering_since = placed.gathering_since.filter(|_| wish.is_gathering);
            return Ok(placed);
        }
        placed.advance(wish, now);
        // The last of the first verdicts is still one of them.
        placed.gathering_since = placed.gathering_since.filter(|_| wish.is_gathering);
        Ok(placed)
    }

    /// A walk over the flow table that began at `started`: a pinned slot without pins is settled, if it had stopped
    /// moving long enough before. `pins` answers for a ring's first slot with the pins by slot, `None` if it has none.
    pub fn settle<'a>(&mut self, started: Instant, pins: impl Fn(u32) -> Option<&'a [u32]>) {
        for placed in self.placed.values_mut() {
            let state = &mut placed.state;
            let rested = state.pinned_since.is_none_or(|since| started >= since + SETTLE_AFTER);
            if state.pinned == 0 || !rested || state.is_stopping {
                continue;
            }
            let left = pins(placed.base);
            let has_pins = |index: usize| left.is_some_and(|left| left.get(index).is_some_and(|n| *n > 0));
            let settled = |(index, word): (usize, &Slot)| if has_pins(index) { *word } else { word.settle() };
            let words: Ring = placed.words.iter().enumerate().map(settled).collect();
            let is_pinned = |word: &&Slot| !word.is_moving() && !word.is_settled();
            let still = words.iter().filter(is_pinned).count() as u32;
            if still != state.pinned {
                (placed.words, state.pinned) = (words, still);
            }
        }
    }

    /// What to say when a ring of so many slots finds no place.
    pub fn no_room(&self, wanted: u32) -> NoRoom {
        self.space.no_room(wanted)
    }

    /// A service's ring.
    pub fn get(&self, service: &str) -> Option<&Placed> {
        self.placed.get(service)
    }

    /// After `applied`, what was wished for last, is in the maps: frees the places that it does not name.
    pub fn forget_unused(&mut self, applied: &Tables, now: Instant) {
        let space = &mut self.space;
        self.old_places.retain(|base| {
            let used = applied.rings.contains_key(base);
            if !used {
                space.free(*base);
            }
            used
        });
        self.placed.retain(|_, placed| {
            let used = applied.rings.contains_key(&placed.base);
            if !used {
                space.free(placed.base);
            }
            if std::mem::take(&mut placed.state.is_stopping) {
                placed.state.pinned_since = Some(now);
            }
            used
        });
    }
}
