//! The slot array in our own memory: a `BPF_F_MMAPABLE` array, mapped shared. One store changes a slot, no system call.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    io,
    os::fd::BorrowedFd,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

/// The mapping. Unmapped on drop; the map itself lives on.
#[derive(Debug)]
pub struct SlotMemory {
    words: *const AtomicU32,
    len: usize,
    bytes: usize,
}

// SAFETY: the pages are shared memory that lives as long as the value; all access is atomic.
unsafe impl Send for SlotMemory {}

impl SlotMemory {
    /// Maps the first `len` words of an mmapable array map. The kernel rounds the size up to pages.
    pub fn map(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        let bytes = (len * size_of::<u32>()).next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)?
        };
        Ok(Self { words: start.cast_const().cast(), len, bytes })
    }

    /// The words. Stores are seen by the program on every CPU; a word is never torn.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has `len` words, is page-aligned, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.words, self.len) }
    }

    /// Stores one word.
    pub fn store(&self, index: u32, word: u32) -> Option<()> {
        self.words().get(index as usize)?.store(word, Ordering::Relaxed);
        Some(())
    }
}

impl Drop for SlotMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size; no reference outlives `self`.
        let _ = unsafe { munmap(self.words.cast_mut().cast(), self.bytes) };
    }
}
