//! What `ip` cannot do to a device: checksum offload off (ioctl) and an XDP program that passes (bpf(2)).

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::netns::NetnsHandle;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// `ETHTOOL_STXCSUM` of linux/ethtool.h.
const ETHTOOL_STXCSUM: u32 = 0x17;
/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// Turns tx checksum offload of `device` off, as `ethtool -K DEVICE tx off` does.
///
/// With it on, a packet crosses a veth with a half-made checksum, and what XDP forwards is never completed.
pub fn checksum_offload_off(netns: &NetnsHandle, device: &str) -> Result<()> {
    netns
        .run(|| {
            let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            let mut value = EthtoolValue { cmd: ETHTOOL_STXCSUM, data: 0 };
            // SAFETY: all-zero bytes are a valid ifreq.
            let mut request: libc::ifreq = unsafe { mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(device_name(device)?.as_bytes()) {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_data = (&raw mut value).cast();
            // SAFETY: the request names a device and points to an ethtool_value that outlives the call.
            let result = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        })?
        .with_context(|| format!("turn checksum offload of {device} in {} off", netns.name()))
}

/// The MAC address of a device.
pub fn hardware_address(netns: &NetnsHandle, device: &str) -> Result<[u8; 6]> {
    netns
        .run(|| {
            let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            // SAFETY: all-zero bytes are a valid ifreq.
            let mut request: libc::ifreq = unsafe { mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(device_name(device)?.as_bytes()) {
                *to = from.cast_signed();
            }
            // SAFETY: the request names a device and outlives the call, which fills it.
            if unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: a successful SIOCGIFHWADDR has written this member.
            let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
            Ok(std::array::from_fn(|i| bytes[i].cast_unsigned()))
        })?
        .with_context(|| format!("read the address of {device} in {}", netns.name()))
}

/// A socket for whole frames at `device` of the calling thread's namespace. It receives those of `protocol` (as in
/// an Ethernet header; 0: none).
pub fn packet_socket(device: &str, protocol: u16) -> io::Result<OwnedFd> {
    let index = interface_index(device)?;
    // SAFETY: no pointers. Protocol 0: it receives nothing before it knows its device.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a result of zero or more is a file descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is a sockaddr_ll of this size that outlives the call.
    let bound = unsafe {
        libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// An XDP program that passes everything, attached to a device until it is dropped.
///
/// `XDP_TX` and `XDP_REDIRECT` into a veth arrive only if its peer has a program.
#[derive(Debug)]
pub struct PassLink {
    _link: OwnedFd,
}

/// `BPF_PROG_LOAD` part of `union bpf_attr`, up to the last field used.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// `BPF_LINK_CREATE` part of `union bpf_attr`, up to the last field used.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

impl PassLink {
    /// Loads the program and attaches it in native mode.
    pub fn attach(netns: &NetnsHandle, device: &str) -> Result<Self> {
        netns
            .run(|| {
                let index = interface_index(device)?;
                let program = load_pass()?;
                let attr = LinkCreate {
                    prog_fd: program.as_raw_fd().cast_unsigned(),
                    target_ifindex: index,
                    attach_type: BPF_XDP,
                    flags: XDP_FLAGS_DRV_MODE,
                };
                bpf(BPF_LINK_CREATE, &attr).map(|link| Self { _link: link })
            })?
            .with_context(|| format!("attach a passing XDP program to {device} in {}", netns.name()))
    }
}

/// Loads `r0 = XDP_PASS; exit`.
fn load_pass() -> io::Result<OwnedFd> {
    // struct bpf_insn { u8 code; u8 registers; s16 off; s32 imm }: BPF_ALU64|BPF_MOV|BPF_K r0, 2 and BPF_EXIT.
    let program: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let license = c"MIT";
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    bpf(BPF_PROG_LOAD, &attr)
}

/// bpf(2) for the commands that return a new file descriptor.
pub fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    let fd = bpf_call(command, attr)?;
    // SAFETY: the command's result is a file descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2).
pub fn bpf_call<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is the leading part of the command's bpf_attr (the kernel takes the rest as zero), its size is
    // given, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// The index of a device in the calling thread's namespace.
pub fn interface_index(device: &str) -> io::Result<u32> {
    let name = device_name(device)?;
    // SAFETY: `name` ends in a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// A device's name for the kernel: at most 15 bytes and a zero.
fn device_name(device: &str) -> io::Result<CString> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("no name of a device: {device:?}"));
    CString::new(device).ok().filter(|name| (1..=15).contains(&name.as_bytes().len())).ok_or_else(invalid)
}
