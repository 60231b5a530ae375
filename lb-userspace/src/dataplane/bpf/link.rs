//! BPF links on interfaces, by bpf(2) itself: aya has no call for a link's interface, hides its links' file descriptors,
//! and falls back to attachments that cannot be pinned.

use std::{
    io, mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type,
};

use super::sys::{bpf, bpf_fd, empty, open, raw};

/// An XDP program's attachment to an interface. It ends with the last reference to it: file descriptor or pin.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

/// What the kernel says about a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
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
        open(pin).map(|fd| Self { fd })
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
