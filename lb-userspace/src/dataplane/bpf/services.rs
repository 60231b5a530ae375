//! The maps of services: [`layout`] says what stands where, here it stands in the kernel.

mod layout;

use std::{io, os::fd::BorrowedFd, sync::atomic::Ordering};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use lb_common::{
    abi::maps,
    lookup::{Entry, line_bits},
    service::Service,
};

use self::layout::{Family, Layout, Place};
use super::{
    error::{LoadError, chain},
    maps::{map, map_memory},
    sys,
};
use crate::{dataplane::mmap::LineMemory, plan::tables::ServiceKey};

/// The services of both families.
pub(super) struct Services {
    v4: Half,
    v6: Half,
}

/// The services of one family.
struct Half {
    layout: Layout,
    place: Kernel,
}

struct Kernel {
    lines: LineMemory,
    entries: Array<MapData, Entry>,
}

impl Services {
    /// Takes the maps out of a loaded object; they were made for `limit` services. They are taken for empty.
    pub(super) fn take(ebpf: &mut Ebpf, limit: u32) -> Result<Self, LoadError> {
        let mut half = |family, lines, entries| {
            let map_lines = |fd: BorrowedFd<'_>| LineMemory::map(fd, line_bits(limit));
            let lines = map_memory(ebpf, lines, "map the lines of services into memory", map_lines)?;
            let place = Kernel { lines, entries: map(ebpf, entries)? };
            Ok::<_, LoadError>(Half { layout: Layout::new(family, limit), place })
        };
        Ok(Self {
            v4: half(Family::V4, maps::LINES4, maps::SERVICES4)?,
            v6: half(Family::V6, maps::LINES6, maps::SERVICES6)?,
        })
    }

    /// Takes over what an earlier controller left in the maps.
    pub(super) fn adopt(&mut self) -> io::Result<()> {
        for half in [&mut self.v4, &mut self.v6] {
            let entries = half.entries()?;
            half.layout.adopt(&half.place, &entries);
        }
        Ok(())
    }

    /// Adds a service or replaces its entry.
    pub(super) fn put(&mut self, key: &ServiceKey, service: &Service) -> Result<(), String> {
        let half = self.half(key);
        half.layout.put(&mut half.place, key, service)
    }

    /// Removes a service, if it is there.
    pub(super) fn delete(&mut self, key: &ServiceKey) {
        let half = self.half(key);
        half.layout.delete(&half.place, key);
    }

    /// The services that packets find.
    pub(super) fn read(&self) -> io::Result<Vec<(ServiceKey, Service)>> {
        let mut all = Vec::new();
        for half in [&self.v4, &self.v6] {
            all.extend(half.layout.services(&half.place, &half.entries()?));
        }
        Ok(all)
    }

    fn half(&mut self, key: &ServiceKey) -> &mut Half {
        match key {
            ServiceKey::V4(_) => &mut self.v4,
            ServiceKey::V6(_) => &mut self.v6,
        }
    }
}

impl Half {
    /// All entries; none where no word leads to any.
    fn entries(&self) -> io::Result<Vec<Entry>> {
        if !self.layout.has_words(&self.place) {
            return Ok(Vec::new());
        }
        sys::read_array(&self.place.entries, Entry::NONE)
    }
}

impl Place for Kernel {
    fn word(&self, at: usize) -> u64 {
        self.lines.words()[at].load(Ordering::Acquire)
    }

    fn set_word(&self, at: usize, word: u64) {
        // Whoever reads the word finds the entry that was written before.
        self.lines.words()[at].store(word, Ordering::Release);
    }

    fn set_entry(&mut self, index: u32, entry: &Entry) -> Result<(), String> {
        self.entries.set(index, *entry, 0).map_err(|e| chain(&e))
    }
}
