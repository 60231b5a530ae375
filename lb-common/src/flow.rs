//! Flows and pins: the flow table as the program and the controller see it.

use crate::hash::halves;

/// Key of the flow table: the 5-tuple. One shape for both families: IPv4 addresses are written as IPv4-mapped IPv6
/// ones (RFC 4291, section 2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// The client.
    pub source: [u8; 16],
    /// The service's address.
    pub destination: [u8; 16],
    /// Source port, destination port, network order.
    pub ports: [u8; 4],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// `address` as IPv4-mapped IPv6.
#[inline(always)]
pub const fn widened([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

impl FlowKey {
    /// Key of a flow between widened or IPv6 addresses.
    #[inline(always)]
    pub const fn new(source: [u8; 16], destination: [u8; 16], ports: [u8; 4], protocol: u8) -> Self {
        Self { source, destination, ports, protocol, reserved: [0; 3] }
    }

    /// As [`Self::new`] of widened addresses.
    #[inline(always)]
    pub fn ipv4(source: [u8; 4], destination: [u8; 4], ports: [u8; 4], protocol: u8) -> Self {
        let wide = |address: [u8; 4]| [0, 0xffff_0000 | (u32::from_ne_bytes(address) as u64) << 32];
        Self::of_words(wide(source), wide(destination), ports, protocol)
    }

    /// As [`Self::new`].
    #[inline(always)]
    pub fn ipv6(source: [u8; 16], destination: [u8; 16], ports: [u8; 4], protocol: u8) -> Self {
        Self::of_words(halves(source), halves(destination), ports, protocol)
    }

    /// Five stores of a word each. Written byte by byte, the key would stall the hash function, which reads it in words.
    #[inline(always)]
    const fn of_words([a, b]: [u64; 2], [c, d]: [u64; 2], ports: [u8; 4], protocol: u8) -> Self {
        let rest = u32::from_ne_bytes(ports) as u64 | (protocol as u64) << 32;
        // SAFETY: as large, and as aligned; any bytes are a key.
        unsafe { core::mem::transmute([a, b, c, d, rest]) }
    }
}

const _: () =
    assert!(cfg!(target_endian = "little"), "a flow key's words are put together for such machines only");

/// A pin: holds a flow to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Pin {
    /// When the flow was last seen: `CLOCK_MONOTONIC`, ns, as coarse as the kernel's tick.
    pub last_seen_ns: u64,
    /// Index in `RING` of the slot that the flow falls on.
    pub slot: u32,
    /// The backend's id.
    pub backend: u16,
    /// 1 once a FIN or RST was seen, else 0.
    pub closing: u16,
}

/// What one CPU did to the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PinStats {
    /// The window that `in_window` counts: time / [`RATE_WINDOW_NS`].
    pub window: u64,
    /// Pins asked for in it.
    pub in_window: u64,
    /// New pins of TCP flows that were refused: by the rate, or a full table.
    pub refused: u64,
    /// New pins of UDP flows that were refused: by the rate, UDP's share, or a full table.
    pub refused_udp: u64,
    /// Packets that met the dead answer in it.
    pub answers_in_window: u64,
}

/// New pins and dead answers are limited for each CPU and window of so long: a power of two, so that a shift finds it.
pub const RATE_WINDOW_NS: u64 = 1 << 30;
/// New pins for each CPU and window: 50,000 a second.
pub const PINS_PER_WINDOW: u64 = 50_000 * RATE_WINDOW_NS / 1_000_000_000;
/// Dead answers for each CPU and window: 10,000 a second.
pub const ANSWERS_PER_WINDOW: u64 = 10_000 * RATE_WINDOW_NS / 1_000_000_000;
/// A closing pin that was not seen for so long may be taken by a new connection with the same ports.
pub const REUSE_NS: u64 = 1_000_000_000;

/// A pin to be deleted if it has not changed since it was read: element of `SWEEP`. One cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SweepItem {
    /// Its key.
    pub key: FlowKey,
    /// Its value as it was read.
    pub pin: Pin,
    /// What became of it, one of the `SWEEP_*` constants; written by the program.
    pub done: u32,
    /// Zero.
    pub reserved: u32,
}

/// The program has not come to it.
pub const SWEEP_NOT_DONE: u32 = 0;
/// It was as it had been read, and is deleted.
pub const SWEEP_DELETED: u32 = 1;
/// It is another one by now, and stays.
pub const SWEEP_CHANGED: u32 = 2;
/// It had gone already.
pub const SWEEP_GONE: u32 = 3;

/// Items that one run of the sweeping program handles. While it runs, its CPU handles no packet.
pub const SWEEP_BATCH: u32 = 256;

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<Pin>() == 16);
const _: () = assert!(size_of::<PinStats>() == 40);
const _: () = assert!(size_of::<SweepItem>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_words_is_the_key_of_bytes() {
        let (a, b, ports) = ([203, 0, 113, 7], [192, 0, 2, 10], [0xc0, 1, 0, 80]);
        assert_eq!(FlowKey::ipv4(a, b, ports, 6), FlowKey::new(widened(a), widened(b), ports, 6));
        let (a, b) = (core::array::from_fn(|i| i as u8 + 1), core::array::from_fn(|i| 0xf0 - i as u8));
        assert_eq!(FlowKey::ipv6(a, b, ports, 17), FlowKey::new(a, b, ports, 17));
    }
}
