//! Backends as the program sees them.

use core::mem::offset_of;

use crate::parse::Plain;

/// One backend: where its packets go next. One cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Backend {
    /// MAC of the next hop: destination of frames.
    pub next_hop: [u8; 6],
    /// MAC of the interface they leave by: source of frames.
    pub own: [u8; 6],
    /// Index of that interface.
    pub ifindex: u32,
    /// The backend's address; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Source of outer headers, of the same family; IPv4 in the first four bytes.
    pub outer_source: [u8; 16],
    /// One's complement sum, not folded, of the outer IPv4 header's constant words (all but TOS, total length and
    /// protocol); see [`crate::checksum`]. Zero for IPv6.
    pub outer_sum: u32,
    /// `BACKEND_*` flags.
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

/// The entry is in use.
pub const BACKEND_PRESENT: u32 = 1 << 0;
/// `address` is IPv6.
pub const BACKEND_IPV6: u32 = 1 << 1;
/// `next_hop`, `own` and `ifindex` are known.
pub const BACKEND_ROUTED: u32 = 1 << 2;
/// It is not dead: flows may go to it. (A draining backend is usable, and so is one that is down on layer 7 only.)
pub const BACKEND_USABLE: u32 = 1 << 3;

/// The first twelve bytes of a frame: [`Backend::next_hop`], [`Backend::own`]. In words that the compiler keeps in registers:
/// byte arrays it copies byte by byte, or with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, packed)]
pub struct Macs(u64, u32);

// SAFETY: integers, packed.
unsafe impl Plain for Macs {}

impl Backend {
    /// Of a frame to the next hop.
    #[inline(always)]
    pub const fn macs(&self) -> Macs {
        const { assert!(offset_of!(Self, next_hop) == 0 && offset_of!(Self, own) == 6) };
        let words = core::ptr::from_ref(self).cast::<u64>();
        // SAFETY: the first twelve bytes of an entry that is aligned to eight.
        unsafe { Macs(words.read(), words.add(1).cast::<u32>().read()) }
    }

    /// An entry that is not in use.
    pub const NONE: Self = Self {
        next_hop: [0; 6],
        own: [0; 6],
        ifindex: 0,
        address: [0; 16],
        outer_source: [0; 16],
        outer_sum: 0,
        flags: 0,
        reserved: [0; 2],
    };
}

/// What one CPU has sent to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BackendStats {
    /// Packets sent.
    pub packets: u64,
    /// Bytes of them, from the IP header on, as they came in.
    pub bytes: u64,
    /// New connections sent: TCP SYNs, and datagrams that got a pin.
    pub connections: u64,
    /// Zero; makes an entry half a cache line.
    pub reserved: u64,
}

const _: () = assert!(size_of::<Backend>() == 64);
const _: () = assert!(size_of::<BackendStats>() == 32);
