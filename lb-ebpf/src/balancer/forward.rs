//! How a packet reaches its backend: one function a mode.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::{BACKEND_IPV6, Backend, Macs},
    checksum,
    hash::halves,
    outcome::Outcome,
    parse::{Bytes as _, Plain},
    service::{FORWARD_IPIP, Service},
};
use lb_ebpf::packet::{self, Frame};

/// What the outer header needs to know of the packet.
pub struct Inner {
    /// Offset of the IP header.
    pub at: usize,
    /// Its family.
    pub ipv6: bool,
    /// TOS or traffic class: copied outwards (RFC 2003, section 3.1; RFC 6040 for ECN).
    pub tos: u8,
    /// Bytes from the IP header on.
    pub ip_len: u16,
    /// Hash of the flow: the outer flow label.
    pub hash: u32,
}

/// IP protocol numbers of IPv4 and IPv6 as payload.
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
/// Of outer headers.
const HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;

/// An outer IPv4 header. Fields of more than a byte are in network order; they are words, so that each is one store.
#[derive(Clone, Copy)]
#[repr(C)]
struct Outer4 {
    version: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// An outer IPv6 header, as [`Outer4`].
#[derive(Clone, Copy)]
#[repr(C)]
struct Outer6 {
    version_class_label: u32,
    payload_len: u16,
    next_header: u8,
    hop_limit: u8,
    source: Wide,
    destination: Wide,
}

/// An IPv6 address.
#[derive(Clone, Copy)]
#[repr(C)]
struct Wide(u64, u64);

/// A link header without tags and what follows it.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Framed<H> {
    macs: Macs,
    ethertype: u16,
    header: H,
}

// SAFETY: `repr(C)` without padding, of integers.
unsafe impl Plain for Outer4 {}
// SAFETY: as above.
unsafe impl Plain for Outer6 {}
// SAFETY: as above.
unsafe impl<H: Plain> Plain for Framed<H> {}

const _: () = assert!(size_of::<Framed<Outer4>>() == 34 && size_of::<Framed<Outer6>>() == 54);

/// Makes the packet one for the backend's next hop.
#[inline(always)]
pub fn rewrite(ctx: &XdpContext, service: &Service, backend: &Backend, inner: &Inner) -> Result<(), Outcome> {
    if service.forward != FORWARD_IPIP {
        return Frame::new(ctx).write(0, backend.macs()).ok_or(Outcome::DropNoHeadroom);
    }
    if backend.flags & BACKEND_IPV6 == 0 { ipip4(ctx, backend, inner) } else { ipip6(ctx, backend, inner) }
        .ok_or(Outcome::DropNoHeadroom)
}

/// Puts an IPv4 header in front (RFC 2003, RFC 4213).
#[inline(always)]
fn ipip4(ctx: &XdpContext, backend: &Backend, inner: &Inner) -> Option<()> {
    let total = inner.ip_len + size_of::<Outer4>() as u16;
    let protocol = if inner.ipv6 { IPV6_IN_IP } else { IPV4_IN_IP };
    let narrow = |[a, b, c, d, ..]: [u8; 16]| u32::from_ne_bytes([a, b, c, d]);
    let header = Outer4 {
        version: 0x45,
        tos: inner.tos,
        total_len: total.to_be(),
        id: 0,
        fragment: DONT_FRAGMENT.to_be(),
        ttl: HOP_LIMIT,
        protocol,
        checksum: checksum::finish_header4(backend.outer_sum, inner.tos, total, protocol),
        source: narrow(backend.outer_source),
        destination: narrow(backend.address),
    };
    put_in_front(ctx, backend, inner.at, 0x0800, header)
}

/// Puts an IPv6 header in front (RFC 2473). The flow label is the flow's hash (RFC 6438).
#[inline(always)]
fn ipip6(ctx: &XdpContext, backend: &Backend, inner: &Inner) -> Option<()> {
    let wide = |address| {
        let [high, low] = halves(address);
        Wide(high, low)
    };
    let header = Outer6 {
        version_class_label: (6 << 28 | u32::from(inner.tos) << 20 | inner.hash >> 12).to_be(),
        payload_len: inner.ip_len.to_be(),
        next_header: if inner.ipv6 { IPV6_IN_IP } else { IPV4_IN_IP },
        hop_limit: HOP_LIMIT,
        source: wide(backend.outer_source),
        destination: wide(backend.address),
    };
    put_in_front(ctx, backend, inner.at, 0x86dd, header)
}

/// Moves the packet's start so that `header` fits in front of the IP header at `at`, and writes it and the link header, VLAN
/// tags included.
#[inline(always)]
fn put_in_front<H: Plain>(
    ctx: &XdpContext,
    backend: &Backend,
    at: usize,
    ethertype: u16,
    header: H,
) -> Option<()> {
    let frame = packet::adjust_head(ctx, -(size_of::<H>() as i32))?;
    let (macs, ethertype) = (backend.macs(), ethertype.to_be());
    // Tags stand behind the MACs; the last two bytes of the link header name the payload.
    let tags = at - 14;
    if tags == 0 {
        return frame.write(0, Framed { macs, ethertype, header });
    }
    let first: [u8; 4] = frame.read(size_of::<H>() + 12)?;
    frame.write(12, first)?;
    if tags >= 8 {
        let second: [u8; 4] = frame.read(size_of::<H>() + 16)?;
        frame.write(16, second)?;
    }
    frame.write(at - 2, ethertype)?;
    frame.write(0, macs)?;
    frame.write(at, header)
}
