//! BPF links on interfaces, and pins, by bpf(2) itself: aya has no call for a link's interface, hides its links' file
//! descriptors, and falls back to attachments that cannot be pinned.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type,
};

/// An XDP program's attachment to an interface. It ends with the last reference to it: file descriptor or pin.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

/// What the kernel says about a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkState {
    /// The link's own id.
    pub id: u32,
    /// The program that runs through it.
    pub program: u32,
    /// The interface, in the network namespace that it was made in; 0 once it is detached, or the interface gone.
    pub ifindex: u32,
}

impl Link {
    /// Attaches a program to an interface of this network namespace.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, native: bool) -> io::Result<Self> {
        let mut attr = empty();
        attr.link_create.__bindgen_anon_1.prog_fd = raw(program);
        attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
        attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
        attr.link_create.flags = if native { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE };
        bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(|fd| Self { fd })
    }

    /// Opens a pinned one.
    pub fn open(pin: &Path) -> io::Result<Self> {
        let path = c_path(pin)?;
        let mut attr = empty();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr).map(|fd| Self { fd })
    }

    /// Puts another program in the place of the present one. No packet sees neither.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = empty();
        attr.link_update.link_fd = raw(self.as_fd());
        attr.link_update.__bindgen_anon_1.new_prog_fd = raw(program);
        bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
    }

    /// Takes the program off the interface, now, whoever else holds the link. It stays as an empty shell.
    pub fn detach(&self) -> io::Result<()> {
        let mut attr = empty();
        attr.link_detach.link_fd = raw(self.as_fd());
        bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
    }

    /// What the kernel says about it; an error if it is no XDP link.
    pub fn state(&self) -> io::Result<LinkState> {
        // SAFETY: plain numbers, for which zero is valid.
        let mut info: bpf_link_info = unsafe { mem::zeroed() };
        let mut attr = empty();
        attr.info.bpf_fd = raw(self.as_fd());
        attr.info.info_len = size_of::<bpf_link_info>() as u32;
        attr.info.info = (&raw mut info) as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        if info.type_ != bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no XDP link"));
        }
        // SAFETY: the kernel has filled the part that belongs to this type; it was zero before.
        let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
        Ok(LinkState { id: info.id, program: info.prog_id, ifindex })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Pins a program, map or link where nothing is yet.
pub(super) fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let path = c_path(at)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(object);
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

fn empty() -> bpf_attr {
    // SAFETY: plain numbers, for which zero is valid; the kernel wants zeros in what a command does not use.
    unsafe { mem::zeroed() }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attributes are of the size given, and what they point to (a path, a buffer of the size given beside
    // it) outlives the call: the callers above hold it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the callers' commands return a new file descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
