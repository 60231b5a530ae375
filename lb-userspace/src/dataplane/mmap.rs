//! Arrays of the kernel in our own memory: `BPF_F_MMAPABLE` maps, mapped shared. Reading and writing need no system
//! call.

use lb_common::{
    flow::{SWEEP_BATCH, SweepItem},
    lookup::LINE_WORDS,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    ffi::c_void,
    io,
    os::fd::BorrowedFd,
    ptr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Pages shared with the kernel. Unmapped on drop; the map itself lives on.
#[derive(Debug)]
struct Mapping {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the pages are shared memory that lives as long as the value, whichever thread has it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// At least `bytes` of an mmapable array map. The kernel rounds the size up to pages.
    fn new(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)?
        };
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; no reference outlives `self`.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

/// The slot array. One store changes a slot.
#[derive(Debug)]
pub struct SlotMemory {
    mapping: Mapping,
    len: usize,
}

impl SlotMemory {
    /// Maps the first `len` words of `RING`.
    pub fn map(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        Ok(Self { mapping: Mapping::new(fd, len * size_of::<u32>())?, len })
    }

    /// The words. Stores are seen by the program on every CPU; a word is never torn.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has `len` words, is page-aligned, and lives as long as `self`; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.mapping.start.cast_const().cast(), self.len) }
    }

    /// Stores one word.
    pub fn store(&self, index: u32, word: u32) -> Option<()> {
        self.words().get(index as usize)?.store(word, Ordering::Relaxed);
        Some(())
    }
}

/// A family's lines of services. One store adds, replaces or removes one.
#[derive(Debug)]
pub struct LineMemory {
    mapping: Mapping,
    len: usize,
}

impl LineMemory {
    /// Maps all of `LINES4` or `LINES6`: `1 << bits` lines, and the one that follows them.
    pub fn map(fd: BorrowedFd<'_>, bits: u32) -> io::Result<Self> {
        let len = ((1 << bits) + 1) * LINE_WORDS;
        Ok(Self { mapping: Mapping::new(fd, len * size_of::<u64>())?, len })
    }

    /// The words of all lines. Stores are seen by the program on every CPU; a word is never torn.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `len` words, is page-aligned, and lives as long as `self`; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.mapping.start.cast_const().cast(), self.len) }
    }
}

/// What the sweeping program is to delete: `SWEEP`. The program runs only when its caller says so, between
/// [`Self::write`] and [`Self::done`].
#[derive(Debug)]
pub struct SweepMemory(Mapping);

impl SweepMemory {
    /// Maps all of `SWEEP`.
    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Mapping::new(fd, SWEEP_BATCH as usize * size_of::<SweepItem>()).map(Self)
    }

    /// Writes the first items; answers how many there was room for, [`SWEEP_BATCH`] at most.
    pub fn write(&mut self, items: &[SweepItem]) -> u32 {
        let mut count = 0;
        for (index, item) in items.iter().take(SWEEP_BATCH as usize).enumerate() {
            // SAFETY: the mapping has `SWEEP_BATCH` items and is page-aligned. Volatile, since the kernel reads them.
            unsafe { self.0.start.cast::<SweepItem>().add(index).write_volatile(*item) };
            count += 1;
        }
        count
    }

    /// What became of the first `count` items, [`SweepItem::done`].
    pub fn done(&self, count: u32) -> impl Iterator<Item = u32> + '_ {
        (0..count.min(SWEEP_BATCH) as usize).map(|index| {
            // SAFETY: as in `write`; the program has run to its end, so nobody writes. Any bytes are an item.
            unsafe { self.0.start.cast_const().cast::<SweepItem>().add(index).read_volatile() }.done
        })
    }
}
