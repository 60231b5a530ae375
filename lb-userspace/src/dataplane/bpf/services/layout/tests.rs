//! Random changes, with a reader that looks after every single store.

use std::cell::{Cell, RefCell};

use lb_common::parse::{TCP, UDP};

use super::*;

/// Maps in memory. Every store is looked at by the reader, if it knows what to find.
struct Maps {
    layout: Layout,
    memory: Memory,
}

struct Memory {
    bits: u32,
    words: RefCell<Vec<u64>>,
    entries: Vec<Entry>,
    /// What the reader has to find, and the one key of which it may find another value.
    model: BTreeMap<ServiceKey, Service>,
    changing: Option<(ServiceKey, Option<Service>)>,
    stores: Cell<u64>,
    /// Indices of the entries written.
    written: Vec<u32>,
    fails: bool,
}

impl Memory {
    fn new(limit: u32) -> Self {
        let bits = line_bits(limit);
        Self {
            bits,
            words: vec![0; ((1 << bits) + 1) * LINE_WORDS].into(),
            entries: vec![Entry::NONE; (limit + SPARE_ENTRIES + 1) as usize],
            model: BTreeMap::new(),
            changing: None,
            stores: Cell::new(0),
            written: Vec::new(),
            fails: false,
        }
    }

    fn line(&self, number: u32) -> Line {
        let start = number as usize * LINE_WORDS;
        Line(std::array::from_fn(|at| self.words.borrow()[start + at]))
    }

    /// As the program reads: both lines, and of IPv6 the whole address.
    fn exact(&self, key: &ServiceKey) -> Option<Service> {
        let name = name_of(key);
        let [first, second] = name.lines(self.bits);
        let found = match lookup::find(&self.line(first), name) {
            Found::Further => lookup::find(&self.line(second), name),
            found => found,
        };
        let Found::Entry(index) = found else { return None };
        let entry = self.entries[index as usize];
        let is_its = !matches!(key, ServiceKey::V6(key) if key.address != entry.address);
        is_its.then_some(entry.service)
    }

    /// As [`Self::exact`], and any-port keys only while they are counted.
    fn read(&self, key: &ServiceKey) -> Option<Service> {
        let counted = self.line(1 << self.bits).0[0] != 0;
        if is_any_port(key) && !counted { None } else { self.exact(key) }
    }

    fn look(&self) {
        for (key, service) in &self.model {
            let found = self.read(key);
            let is_right = match &self.changing {
                Some((changing, new)) if changing == key => found == Some(*service) || found == *new,
                _ => found == Some(*service),
            };
            assert!(is_right, "{key}: {found:?} instead of {service:?}, changing {:?}", self.changing);
        }
        if let Some((key, new)) = self.changing.filter(|(key, _)| !self.model.contains_key(key)) {
            let found = self.read(&key);
            assert!(found.is_none() || found == new, "{key}: {found:?}");
        }
    }
}

impl Place for Memory {
    fn word(&self, at: usize) -> u64 {
        self.words.borrow()[at]
    }

    fn set_word(&self, at: usize, word: u64) {
        self.words.borrow_mut()[at] = word;
        self.stores.set(self.stores.get() + 1);
        self.look();
    }

    fn set_entry(&mut self, index: u32, entry: &Entry) -> Result<(), String> {
        if self.fails {
            return Err("ENOMEM".into());
        }
        self.entries[index as usize] = *entry;
        self.stores.set(self.stores.get() + 1);
        self.written.push(index);
        self.look();
        Ok(())
    }
}

impl Maps {
    fn new(family: Family, limit: u32) -> Self {
        Self { layout: Layout::new(family, limit), memory: Memory::new(limit) }
    }

    fn put(&mut self, key: ServiceKey, service: Service) -> Result<(), String> {
        self.memory.changing = Some((key, Some(service)));
        let done = self.layout.put(&mut self.memory, &key, &service);
        if done.is_ok() {
            self.memory.model.insert(key, service);
        }
        self.settle();
        done
    }

    fn delete(&mut self, key: ServiceKey) {
        self.memory.changing = Some((key, None));
        self.layout.delete(&self.memory, &key);
        self.memory.model.remove(&key);
        self.settle();
    }

    /// After a change all is as the model has it, for the reader, the snapshot and the books alike.
    fn settle(&mut self) {
        if let Some((key, _)) = self.memory.changing.take() {
            assert_eq!(self.memory.read(&key), self.memory.model.get(&key).copied(), "{key}");
        }
        self.memory.look();
        assert_eq!(self.found(), self.memory.model);
        let (held, free) = (self.layout.held.len(), self.layout.free.len());
        assert_eq!(held, self.memory.model.len());
        assert_eq!(held + free, self.memory.entries.len() - 1, "an index was lost");
        assert!(free >= SPARE_ENTRIES as usize);
        let any_port = self.memory.model.keys().filter(|key| is_any_port(key)).count();
        assert_eq!(self.memory.line(1 << self.memory.bits).0[0], any_port as u64);
    }

    fn found(&self) -> BTreeMap<ServiceKey, Service> {
        self.layout.services(&self.memory, &self.memory.entries).collect()
    }

    /// Another controller goes on with the same maps; answers what it changed in them.
    fn hand_over(&mut self) -> u64 {
        let stores = self.memory.stores.get();
        // It does not know yet what should be there.
        let model = std::mem::take(&mut self.memory.model);
        let mut next = Layout::new(self.layout.family, self.layout.limit);
        next.adopt(&self.memory, &self.memory.entries);
        (self.layout, self.memory.model) = (next, model);
        self.memory.stores.get() - stores
    }

    /// What the controller does after each comparison.
    fn repair(&mut self) {
        let model = std::mem::take(&mut self.memory.model);
        let found = self.found();
        for (key, service) in model.iter().filter(|(key, service)| found.get(key) != Some(service)) {
            self.layout.put(&mut self.memory, key, service).unwrap();
        }
        for key in found.keys().filter(|key| !model.contains_key(key)) {
            self.layout.delete(&self.memory, key);
        }
        self.memory.model = model;
        self.settle();
    }
}

fn service(number: u32) -> Service {
    Service { hash_key: u64::from(number), ring_base: number, ring_size: 3, forward: 1, ..Service::ADDRESS }
}

fn key(family: Family, number: u32) -> ServiceKey {
    let [_, a, b, c] = (number / 4).to_be_bytes();
    let (port, protocol) = [([0, 80], TCP), ([0, 0], TCP), ([0, 53], UDP), ([0, 0], 0)][number as usize % 4];
    match family {
        Family::V4 => ServiceKey::V4(ServiceKey4::new([198, a, b, c], port, protocol)),
        Family::V6 => {
            let mut address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b, c];
            address[7] = a;
            ServiceKey::V6(ServiceKey6::new(address, port, protocol))
        }
    }
}

/// Keys that crowd the first `lines` lines.
fn crowd(family: Family, limit: u32, lines: u32, count: usize) -> Vec<ServiceKey> {
    let is_there = |key: &ServiceKey| name_of(key).lines(line_bits(limit)).iter().all(|line| *line < lines);
    (0..).map(|number| key(family, number)).filter(is_there).take(count).collect()
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[test]
fn whoever_reads_between_two_stores_finds_the_old_or_the_new() {
    for (family, seed) in [(Family::V4, 1), (Family::V6, 2), (Family::V4, 3), (Family::V6, 4)] {
        let mut random = fastrand::Rng::with_seed(seed);
        // More keys than their lines have words.
        let keys = crowd(family, 64, 3, 40);
        let mut maps = Maps::new(family, 64);
        let (mut crowded, mut further, mut replaced) = (0, 0, 0);
        for step in 0..5000 {
            let key = keys[random.usize(..keys.len())];
            if random.u32(..5) < 2 {
                maps.delete(key);
                continue;
            }
            let (before, had) = (maps.memory.stores.get(), maps.memory.model.contains_key(&key));
            match maps.put(key, service(step)) {
                Ok(()) => {
                    further += u32::from(is_further(&maps.memory, &key));
                    replaced += u32::from(had);
                }
                Err(text) => {
                    assert!(text.contains("raise `limits.services`"), "{text}");
                    assert_eq!(maps.memory.stores.get(), before);
                    crowded += 1;
                }
            }
            if step % 50 == 0 {
                let (held, any_port) = (maps.layout.held.clone(), maps.layout.any_port);
                assert_eq!(maps.hand_over(), 0, "adoption changed what was right");
                assert_eq!((&maps.layout.held, maps.layout.any_port), (&held, any_port));
                maps.settle();
            }
        }
        assert!(crowded > 10 && further > 100 && replaced > 100, "{crowded} {further} {replaced}");
    }
}

/// Whether the key's first line sends the reader on.
fn is_further(memory: &Memory, key: &ServiceKey) -> bool {
    let name = name_of(key);
    lookup::find(&memory.line(name.lines(memory.bits)[0]), name) == Found::Further
}

#[test]
fn there_is_room_for_all_that_the_limit_allows_and_no_more() {
    for family in FAMILIES {
        let mut maps = Maps::new(family, 512);
        for number in 0..512 {
            maps.layout.put(&mut maps.memory, &key(family, number), &service(number)).unwrap();
            maps.memory.model.insert(key(family, number), service(number));
        }
        maps.settle();
        let refusal = maps.put(key(family, 512), service(512)).unwrap_err();
        assert_eq!(refusal, "the map of services is full with 512; raise `limits.services`");
        maps.put(key(family, 7), service(1000)).unwrap();
        maps.delete(key(family, 8));
        maps.put(key(family, 512), service(512)).unwrap();
    }
}

#[test]
fn a_freed_index_rests() {
    let mut maps = Maps::new(Family::V4, 4);
    let keys: Vec<_> = (0..4).map(|number| key(Family::V4, number)).collect();
    for step in 0..2000 {
        let key = keys[step as usize % 4];
        if step % 5 == 0 {
            maps.delete(key);
        }
        maps.put(key, service(step)).unwrap();
    }
    let mut last = BTreeMap::new();
    for (time, index) in maps.memory.written.iter().enumerate() {
        if let Some(before) = last.insert(*index, time) {
            assert!(time - before > SPARE_ENTRIES as usize, "{index} again after {}", time - before);
        }
    }
    assert_eq!(last.len(), 4 + SPARE_ENTRIES as usize, "not all were used");
}

#[test]
fn a_refused_entry_changes_nothing() {
    let mut maps = Maps::new(Family::V4, 4);
    maps.put(key(Family::V4, 0), service(0)).unwrap();
    maps.memory.fails = true;
    for number in [0, 1] {
        assert_eq!(maps.put(key(Family::V4, number), service(9)), Err("ENOMEM".into()));
    }
    maps.memory.fails = false;
    maps.put(key(Family::V4, 1), service(9)).unwrap();
}

#[test]
fn addresses_that_look_alike_are_refused() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut seen = BTreeMap::new();
    let (first, second) = (0..2_000_000)
        .find_map(|_| {
            let key = ServiceKey::new(std::net::Ipv6Addr::from(random.u128(..)).into(), 443, TCP);
            seen.insert(name_of(&key).word(0), key).map(|other| (other, key))
        })
        .expect("two of so many have the same tag");
    assert_ne!(first, second);
    let mut maps = Maps::new(Family::V6, 16);
    maps.put(first, service(1)).unwrap();
    let refusal = maps.put(second, service(2)).unwrap_err();
    assert!(refusal.contains(&first.to_string()) && refusal.contains("another address"), "{refusal}");
    maps.delete(second);
    maps.delete(first);
    maps.put(second, service(2)).unwrap();
    assert_eq!(maps.memory.read(&first), None);
}

#[test]
fn what_others_write_is_seen_and_mended() {
    for (family, seed) in [(Family::V4, 11), (Family::V6, 12)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let keys = crowd(family, 64, 3, 18);
        let mut maps = Maps::new(family, 64);
        let mut seen = 0;
        for round in 0..2000 {
            let key = keys[random.usize(..keys.len())];
            if random.u32(..4) == 0 {
                maps.delete(key);
            } else {
                maps.put(key, service(round)).unwrap();
            }
            for _ in 0..random.u32(1..4) {
                damage(&mut maps.memory, &mut random);
            }
            let served: BTreeMap<_, _> =
                keys.iter().filter_map(|key| Some((*key, maps.memory.read(key)?))).collect();
            if served != maps.memory.model {
                assert_ne!(
                    maps.found(),
                    maps.memory.model,
                    "packets go astray, and the snapshot says all is well"
                );
                seen += 1;
            }
            if random.bool() {
                maps.hand_over();
            }
            maps.repair();
        }
        assert!(seen > 200, "only {seen} times was anything wrong");
    }
}

/// Someone else writes to the maps, where it hurts.
fn damage(memory: &mut Memory, random: &mut fastrand::Rng) {
    let used = 3 * LINE_WORDS;
    let at = random.usize(..used);
    let mut words = memory.words.borrow_mut();
    match random.u32(..8) {
        0 => words[at] = 0,
        1 => words[at] = random.u64(..),
        2 => words[at] = words[random.usize(..used)],
        3 => words.swap(at, random.usize(..used)),
        4 => words[at] ^= random.u64(..=u64::from(MAX_INDEX)),
        5 => *words.iter_mut().rev().nth(LINE_WORDS - 1).unwrap() = 0,
        6 => words[..used].fill(0),
        _ => {
            let index = (words[at] & u64::from(MAX_INDEX)) as usize;
            if let Some(entry) = memory.entries.get_mut(index) {
                *entry = Entry::NONE;
            }
        }
    }
}

#[test]
fn words_that_lead_astray_go_at_adoption() {
    for family in FAMILIES {
        let mut maps = Maps::new(family, 16);
        maps.put(key(family, 1), service(1)).unwrap();
        let word = |key: ServiceKey, index| name_of(&key).word(index);
        let places = |key: ServiceKey| maps.layout.line_places(name_of(&key)).map(|places| places.start);
        let [other, _] = places(key(family, 5));
        let junk = [word(key(family, 5), 9000), word(key(family, 6), 1), 3];
        maps.memory.words.borrow_mut()[other + 2..other + 5].copy_from_slice(&junk);
        assert!(maps.hand_over() > 0);
        let words = maps.memory.words.borrow().clone();
        let leading = words[..maps.layout.words()].iter().filter(|word| leads(**word)).count();
        assert_eq!(leading, 1);
        assert!(words[other + 2..other + 5].iter().all(|word| *word != 0), "words behind would be hidden");
        maps.settle();
    }
}

#[test]
fn a_count_that_a_crash_left_too_high_is_mended() {
    let mut maps = Maps::new(Family::V4, 16);
    maps.put(key(Family::V4, 1), service(1)).unwrap();
    let at = maps.layout.words();
    maps.memory.words.borrow_mut()[at] = 2;
    assert_eq!(maps.hand_over(), 1);
    maps.settle();
}
