//! What the driver sends, as the driver and the harness in `bench/` see it: both compile this file.

/// What the next packets are: the one element of `TRAFFIC`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Traffic {
    /// Packets so far.
    pub packets: u64,
    /// Where in the cycle of flows the next packet is, see [`flow`].
    pub phase: u32,
    /// Flows, each a client of its own.
    pub flows: u32,
    /// Services that the flows are spread over, with addresses in a row.
    pub services: u32,
    /// The last four bytes of the first one's address.
    pub first_service: u32,
    /// Length of a packet.
    pub len: u32,
    /// IPv4: one's complement sum of the header, not folded, without checksum and addresses.
    pub header_sum: u32,
    /// The link header.
    pub ethernet: [u8; 14],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<Traffic>() == 48);

/// The golden ratio of 2^32: its multiples are as far apart as can be, whatever their number.
pub const GOLDEN: u32 = 0x9e37_79b9;

/// The flow at a phase. The phase advances by [`GOLDEN`] a packet, so that flows come evenly and not in a row.
#[inline(always)]
pub const fn flow(phase: u32, flows: u32) -> u32 {
    share(phase, flows)
}

/// Number of the service that a flow is for.
#[inline(always)]
pub const fn service(flow: u32, services: u32) -> u32 {
    share(flow.wrapping_mul(GOLDEN), services)
}

/// Where a number falls among `parts` equal parts of all numbers.
#[inline(always)]
const fn share(number: u32, parts: u32) -> u32 {
    ((number as u64 * parts as u64) >> 32) as u32
}

/// Last four bytes of a flow's client: IPv4 addresses are 10/8.
#[inline(always)]
pub const fn client(flow: u32) -> [u8; 4] {
    (0x0a00_0000 | flow).to_be_bytes()
}

/// Port of a flow's client.
#[inline(always)]
pub const fn client_port(flow: u32) -> [u8; 2] {
    (0xc000 | flow as u16).to_be_bytes()
}

/// What IPv6 addresses of clients start with.
pub const CLIENTS6: [u8; 12] = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0];
/// What IPv6 addresses of services start with.
pub const SERVICES6: [u8; 12] = [0x20, 0x01, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0];

/// An IPv6 address.
#[inline(always)]
pub const fn wide(prefix: [u8; 12], last: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = prefix;
    let [m, n, o, p] = last;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
