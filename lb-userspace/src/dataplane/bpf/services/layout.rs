//! What stands where in a family's lines, and in the entries that their words lead to. What a line is and how it is read:
//! [`lb_common::lookup`].
//!
//! Every change is one store of a word, before and after which a reader finds what it should:
//!
//! - **put**: the entry is written at an index that nobody reads, then the word is stored, then the index of the old
//!   value is free. A word stands where a reader looks for it first: at the word that its key had, else at the first
//!   removed or empty one.
//! - **delete**: the word gets index 0, then its index is free. The entry stays as it is: a packet may be reading it.
//! - Free indices are used in the order in which they became free, and there are at least `SPARE_ENTRIES` of them:
//!   whoever still reads an old entry has long done so when it is written again.
//!
//! Others may write to the maps, too. So the words are looked at before each change, and [`Layout::services`] tells what
//! a packet would find, not what should be there.

use std::collections::{BTreeMap, VecDeque};

use lb_common::{
    lookup::{self, Entry, Found, Key, LINE_WORDS, Line, MAX_INDEX, NOBODY, SPARE_ENTRIES, line_bits},
    service::{Service, ServiceKey4, ServiceKey6},
};

use crate::plan::tables::ServiceKey;

/// A family's maps.
pub(super) trait Place {
    /// Word number `at`, counted through all lines.
    fn word(&self, at: usize) -> u64;
    /// Stores a word at once.
    fn set_word(&self, at: usize, word: u64);
    /// Writes an entry.
    fn set_entry(&mut self, index: u32, entry: &Entry) -> Result<(), String>;
}

/// Which maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `LINES4` and `SERVICES4`.
    V4,
    /// `LINES6` and `SERVICES6`.
    V6,
}

/// What stands where in a family's maps.
#[derive(Debug)]
pub(super) struct Layout {
    family: Family,
    bits: u32,
    /// `limits.services`.
    limit: u32,
    /// What this controller put, by its word with index 0.
    held: BTreeMap<u64, Held>,
    /// Indices that nobody holds, the one that has rested longest first.
    free: VecDeque<u32>,
    /// Keys held with any port.
    any_port: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    key: ServiceKey,
    index: u32,
}

/// What a word leads packets to.
struct Led {
    name: u64,
    held: Held,
    service: Service,
}

impl Layout {
    /// Of empty maps that were made for `limit` services.
    pub fn new(family: Family, limit: u32) -> Self {
        let (held, free) = (BTreeMap::new(), (1..=limit + SPARE_ENTRIES).collect());
        Self { family, bits: line_bits(limit), limit, held, free, any_port: 0 }
    }

    /// Adds a service or replaces its entry.
    pub fn put(&mut self, place: &mut impl Place, key: &ServiceKey, service: &Service) -> Result<(), String> {
        let (name, limit) = (name_of(key), self.limit);
        let held = self.held.get(&name.word(0)).copied();
        if let Some(other) = held.filter(|held| held.key != *key) {
            return Err(format!("the lookup cannot tell it from {}; use another address", other.key));
        }
        let full = || format!("the map of services is full with {limit}; raise `limits.services`");
        if held.is_none() && self.held.len() >= limit as usize {
            return Err(full());
        }
        let crowded = "the two lines where its key may stand are full; raise `limits.services`";
        let at = self.spot(place, name).ok_or(crowded)?;
        let index = *self.free.front().ok_or_else(full)?;
        place.set_entry(index, &entry_of(key, service))?;
        self.free.pop_front();
        self.any_port += u64::from(held.is_none() && is_any_port(key));
        self.store_count(place);
        place.set_word(at, name.word(index));
        self.unlink(place, name, Some(at));
        self.held.insert(name.word(0), Held { key: *key, index });
        self.free.extend(held.map(|held| held.index));
        Ok(())
    }

    /// Removes a service, if it is there.
    pub fn delete(&mut self, place: &impl Place, key: &ServiceKey) {
        let name = name_of(key);
        if self.held.get(&name.word(0)).is_some_and(|held| held.key != *key) {
            return;
        }
        self.unlink(place, name, None);
        if let Some(held) = self.held.remove(&name.word(0)) {
            self.free.push_back(held.index);
            self.any_port -= u64::from(is_any_port(key));
        }
        self.store_count(place);
    }

    /// Takes over what an earlier controller left, and removes words that lead nowhere or astray.
    pub fn adopt(&mut self, place: &impl Place, entries: &[Entry]) {
        *self = Self::new(self.family, self.limit);
        let mut is_free = vec![true; self.free.len() + 1];
        for at in 0..self.words() {
            if !leads(place.word(at)) {
                continue;
            }
            match self.led(place, at, entries) {
                Some(led) if is_free.get(led.held.index as usize) == Some(&true) => {
                    is_free[led.held.index as usize] = false;
                    self.any_port += u64::from(is_any_port(&led.held.key));
                    self.held.insert(led.name, led.held);
                }
                _ => place.set_word(at, removed(place.word(at))),
            }
        }
        self.free.retain(|index| is_free[*index as usize]);
        self.store_count(place);
    }

    /// Whether any word leads somewhere.
    pub fn has_words(&self, place: &impl Place) -> bool {
        (0..self.words()).any(|at| leads(place.word(at)))
    }

    /// The services that packets find. One that is not found as it was put is left out, so that it is put again.
    pub fn services(
        &self,
        place: &impl Place,
        entries: &[Entry],
    ) -> impl Iterator<Item = (ServiceKey, Service)> {
        let counts = place.word(self.words()) == self.any_port;
        (0..self.words()).filter_map(move |at| {
            let led = self.led(place, at, entries)?;
            let as_put = self.held.get(&led.name).is_none_or(|held| *held == led.held);
            let key = led.held.key;
            (as_put && (counts || !is_any_port(&key))).then_some((key, led.service))
        })
    }

    /// Words of all lines; the one that follows them is the count of keys with any port.
    fn words(&self) -> usize {
        LINE_WORDS << self.bits
    }

    fn store_count(&self, place: &impl Place) {
        if place.word(self.words()) != self.any_port {
            place.set_word(self.words(), self.any_port);
        }
    }

    /// The places of a key's words, in the order in which a reader looks at them.
    fn line_places(&self, name: Key) -> [std::ops::Range<usize>; 2] {
        name.lines(self.bits).map(|line| {
            let start = line as usize * LINE_WORDS;
            start..start + LINE_WORDS
        })
    }

    /// Whether a word leads to where this controller put it. Others are removed, or somebody else's.
    fn is_held(&self, word: u64) -> bool {
        let name = Key::in_word(word);
        self.held.get(&name.word(0)).is_some_and(|held| name.word(held.index) == word)
    }

    /// Where the key's word goes.
    fn spot(&self, place: &impl Place, name: Key) -> Option<usize> {
        let mut removed = None;
        for at in self.line_places(name).into_iter().flatten() {
            let word = place.word(at);
            if word == 0 {
                return removed.or(Some(at));
            }
            if name.index_in(word).is_some() {
                return Some(at);
            }
            if !self.is_held(word) {
                removed = removed.or(Some(at));
            }
        }
        removed
    }

    /// Lets the key's words lead nowhere, but for the one at `but`. More than one is somebody else's doing.
    fn unlink(&self, place: &impl Place, name: Key, but: Option<usize>) {
        for at in self.line_places(name).into_iter().flatten() {
            let word = place.word(at);
            if Some(at) != but && leads(word) && name.index_in(word).is_some() {
                place.set_word(at, removed(word));
            }
        }
    }

    /// What the word at `at` leads packets to; `None` if no packet gets there by it.
    fn led(&self, place: &impl Place, at: usize, entries: &[Entry]) -> Option<Led> {
        let word = place.word(at);
        let name = Key::in_word(word);
        let index = name.index_in(word).filter(|index| *index != 0)?;
        // A reader that finds this index by another word of the same key finds the same.
        (self.find(place, name) == Found::Entry(index)).then_some(())?;
        let entry = entries.get(index as usize)?;
        let (port, protocol) = (name.port(), name.protocol()?);
        let key = match self.family {
            Family::V4 => ServiceKey::V4(ServiceKey4::new(name.ipv4_address(), port, protocol)),
            Family::V6 => ServiceKey::V6(ServiceKey6::new(entry.address, port, protocol)),
        };
        (name_of(&key) == name).then_some(())?;
        Some(Led { name: name.word(0), held: Held { key, index }, service: entry.service })
    }

    /// Reads as the program does.
    fn find(&self, place: &impl Place, name: Key) -> Found {
        let [first, second] = self.line_places(name);
        let line = |places: std::ops::Range<usize>| {
            Line(std::array::from_fn(|position| place.word(places.start + position)))
        };
        match lookup::find(&line(first), name) {
            Found::Further => lookup::find(&line(second), name),
            found => found,
        }
    }
}

/// Whether a word leads to an entry.
fn leads(word: u64) -> bool {
    word & u64::from(MAX_INDEX) != 0
}

/// What is left of a word. Never an empty one, which would hide the words behind it.
fn removed(word: u64) -> u64 {
    match Key::in_word(word).word(0) {
        0 => NOBODY,
        removed => removed,
    }
}

fn name_of(key: &ServiceKey) -> Key {
    match key {
        ServiceKey::V4(key) => Key::ipv4(key.address, key.port, key.protocol),
        ServiceKey::V6(key) => {
            let [a, b, c, d, e, f, g, h, low @ ..] = key.address;
            let high = [a, b, c, d, e, f, g, h];
            Key::ipv6([high, low].map(u64::from_ne_bytes), key.port, key.protocol)
        }
    }
}

fn entry_of(key: &ServiceKey, service: &Service) -> Entry {
    let mut entry = Entry { service: *service, ..Entry::NONE };
    match key {
        ServiceKey::V4(key) => {
            entry.address[..4].copy_from_slice(&key.address);
            (entry.port, entry.protocol) = (key.port, key.protocol);
        }
        ServiceKey::V6(key) => {
            (entry.address, entry.port, entry.protocol) = (key.address, key.port, key.protocol);
        }
    }
    entry
}

/// The marker of an address has no port either, but nobody looks for it by any port.
fn is_any_port(key: &ServiceKey) -> bool {
    let (port, protocol) = match key {
        ServiceKey::V4(key) => (key.port, key.protocol),
        ServiceKey::V6(key) => (key.port, key.protocol),
    };
    port == [0; 2] && protocol != 0
}

#[cfg(test)]
mod tests;
