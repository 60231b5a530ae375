//! What is pinned in bpffs, by bpf(2).

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::device::{bpf, bpf_call};

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// A pinned link and the program behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedLink {
    /// The link's id: it lives as long as the link.
    pub id: u32,
    /// The program's id: another one after each load.
    pub program: u32,
    /// The program's tag: another one if its instructions differ.
    pub tag: [u8; 8],
}

/// `BPF_OBJ_GET` part of `union bpf_attr`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `BPF_OBJ_GET_INFO_BY_FD` part of `union bpf_attr`.
#[repr(C)]
struct ObjGetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The leading part of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
}

/// The leading part of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
}

impl PinnedLink {
    /// Reads the link of `interface` under a pin directory, whatever the layout's version.
    pub fn of(pin_dir: &Path, interface: &str) -> Result<Self> {
        let name = format!("link-{interface}");
        let versions = std::fs::read_dir(pin_dir).with_context(|| format!("read {}", pin_dir.display()))?;
        let mut paths = versions.filter_map(|entry| Some(entry.ok()?.path().join(&name)));
        let path = paths.find(|path| path.exists());
        let path = path.with_context(|| format!("no {name} under {}", pin_dir.display()))?;
        Self::read(&path).with_context(|| format!("read the link {}", path.display()))
    }

    fn read(path: &Path) -> io::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let fd = bpf(BPF_OBJ_GET, &ObjGet { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })?;
        let link: LinkInfo = info(&fd)?;
        let program: ProgramInfo = info(&bpf(BPF_PROG_GET_FD_BY_ID, &link.program)?)?;
        Ok(Self { id: link.id, program: program.id, tag: program.tag })
    }
}

/// What the kernel says about an object: as much of it as `T` has room for.
fn info<T: Default>(object: &OwnedFd) -> io::Result<T> {
    let mut info = T::default();
    let attr = ObjGetInfo {
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        info_len: size_of::<T>() as u32,
        info: &raw mut info as u64,
    };
    bpf_call(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info)
}
