//! The calls of bpf(2) that the sweeper makes and aya has not: reading many entries at once, and running a program
//! with nothing but a few bytes.

use aya::Pod;
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

/// Commands of bpf(2), from `enum bpf_cmd`.
const PROG_TEST_RUN: libc::c_int = 10;
const MAP_LOOKUP_BATCH: libc::c_int = 24;

/// `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: i32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`, as far as it is used; the kernel takes the rest as zero.
#[repr(C)]
struct TestRunAttr {
    prog_fd: i32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<()> {
    // SAFETY: `attr` is the beginning of a `union bpf_attr` and as long as it says. What it points to outlives the call
    // and is as long as the command and the map's shape make it, see the callers.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

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
        let mut attr = BatchAttr {
            in_batch: if cursor.is_some() { std::ptr::from_ref(&from) as u64 } else { 0 },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len() as u32,
            map_fd: map.as_raw_fd(),
            elem_flags: 0,
            flags: 0,
        };
        match bpf(MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => Ok((attr.count, Some(Cursor(next)))),
            // The last entries come along with this.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count, None)),
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
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd(),
        retval: 0,
        data_size_in: data.len() as u32,
        data_size_out: 0,
        data_in: data.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok((attr.retval, Duration::from_nanos(attr.duration.into())))
}
