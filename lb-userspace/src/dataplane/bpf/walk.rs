//! What the sweeper asks of the kernel and aya has not: reading many entries at once, and running a program with nothing
//! but a few bytes.

use aya::Pod;
use aya_obj::generated::bpf_cmd;
use std::{io, os::fd::BorrowedFd, time::Duration};

use super::sys::{bpf, empty, raw};

/// Reads a hash map in portions of whole buckets.
#[derive(Debug)]
pub(super) struct BatchReader<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

/// Where a reader stands: the number of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor(u32);

impl<K: Pod, V: Pod> BatchReader<K, V> {
    /// With room for `capacity` entries; `key` and `value` fill it and mean nothing.
    pub fn new(capacity: usize, key: K, value: V) -> Self {
        Self { keys: vec![key; capacity], values: vec![value; capacity] }
    }

    /// Reads on from `cursor` (`None`: from the start), answers the entries and where to go on; `None` is the end. The
    /// map's keys are `K`, its values `V`.
    ///
    /// Each bucket is read under its lock: its entries are those of one moment. No bucket is read twice.
    pub fn read(
        &mut self,
        map: BorrowedFd<'_>,
        cursor: Option<Cursor>,
    ) -> io::Result<(impl Iterator<Item = (&K, &V)>, Option<Cursor>)> {
        let (count, next) = loop {
            match self.try_read(map, cursor) {
                // One bucket has more entries than there is room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => self.grow(),
                other => break other?,
            }
        };
        let count = count as usize;
        Ok((self.keys[..count].iter().zip(&self.values[..count]), next))
    }

    fn try_read(&mut self, map: BorrowedFd<'_>, cursor: Option<Cursor>) -> io::Result<(u32, Option<Cursor>)> {
        let from = cursor.map_or(0, |Cursor(bucket)| bucket);
        let mut next = 0u32;
        let mut attr = empty();
        attr.batch.map_fd = raw(map);
        attr.batch.count = self.keys.len() as u32;
        attr.batch.keys = self.keys.as_mut_ptr() as u64;
        attr.batch.values = self.values.as_mut_ptr() as u64;
        attr.batch.in_batch = if cursor.is_some() { (&raw const from) as u64 } else { 0 };
        attr.batch.out_batch = (&raw mut next) as u64;
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        // SAFETY: a plain number, which the kernel has set to what it read.
        let count = unsafe { attr.batch.count };
        match result {
            Ok(_) => Ok((count, Some(Cursor(next)))),
            // The last entries come along with this.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((count, None)),
            Err(e) => Err(e),
        }
    }

    fn grow(&mut self) {
        let capacity = 2 * self.keys.len();
        self.keys.resize(capacity, self.keys[0]);
        self.values.resize(capacity, self.values[0]);
    }
}

/// Runs a program once on `data`, which has 14 bytes at least; answers what it returned and how long it took.
pub(super) fn run(program: BorrowedFd<'_>, data: &[u8]) -> io::Result<(u32, Duration)> {
    let mut attr = empty();
    attr.test.prog_fd = raw(program);
    attr.test.data_size_in = data.len() as u32;
    attr.test.data_in = data.as_ptr() as u64;
    attr.test.repeat = 1;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: plain numbers, which the kernel has set.
    let (result, nanoseconds) = unsafe { (attr.test.retval, attr.test.duration) };
    Ok((result, Duration::from_nanos(nanoseconds.into())))
}
