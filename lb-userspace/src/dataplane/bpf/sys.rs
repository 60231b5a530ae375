//! bpf(2) itself, for what aya has no call for.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, MapData, PerCpuArray},
};
use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Pins a program, map or link where nothing is yet.
pub(super) fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let path = c_path(at)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned program, map or link.
pub(super) fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = c_path(pin)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// All entries of an array map by one system call. `fill` is any value.
pub(super) fn read_array<T: Pod>(map: &Array<MapData, T>, fill: T) -> io::Result<Vec<T>> {
    let mut values = vec![fill; map.len() as usize];
    let read = read_batch(map.map().fd().as_fd(), map.len(), &mut values)?;
    values.truncate(read);
    Ok(values)
}

/// As [`read_array`]: each entry's values of all `cpus` CPUs, one entry after the other. A value has a multiple of 8 bytes.
pub(super) fn read_per_cpu<T: Pod>(
    map: &PerCpuArray<MapData, T>,
    cpus: usize,
    fill: T,
) -> io::Result<Vec<T>> {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let mut values = vec![fill; map.len() as usize * cpus];
    let read = read_batch(map.map().fd().as_fd(), map.len(), &mut values)?;
    values.truncate(read * cpus);
    Ok(values)
}

/// Reads up to `entries` into `values`, which has room for them; answers how many there were.
fn read_batch<T: Pod>(fd: BorrowedFd<'_>, entries: u32, values: &mut [T]) -> io::Result<usize> {
    let mut keys = vec![0u32; entries as usize];
    let mut next = 0u32;
    let mut attr = empty();
    attr.batch.map_fd = raw(fd);
    attr.batch.count = entries;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.out_batch = (&raw mut next) as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // That is its word for the end.
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
        _ => {}
    }
    // SAFETY: a plain number, which the kernel has set to what it read.
    Ok(unsafe { attr.batch.count } as usize)
}

/// Attributes of a command, all zero.
pub(super) fn empty() -> bpf_attr {
    // SAFETY: plain numbers, for which zero is valid; the kernel wants zeros in what a command does not use.
    unsafe { mem::zeroed() }
}

/// A file descriptor as attributes have it.
pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The system call.
pub(super) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attributes are of the size given, and what they point to (a path, a buffer of the size given beside
    // it) outlives the call: the callers above hold it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The system call with a command that answers a new file descriptor.
pub(super) fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the callers' commands return a new file descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
