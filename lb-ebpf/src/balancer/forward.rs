//! How a packet reaches its backend: one function a mode.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::{BACKEND_IPV6, Backend},
    checksum,
    outcome::Outcome,
    parse::Bytes,
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

const OUTER4: usize = 20;
const OUTER6: usize = 40;
/// IP protocol numbers of IPv4 and IPv6 as payload.
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
/// Of outer headers.
const HOP_LIMIT: u8 = 64;

/// Makes the packet one for the backend's next hop.
#[inline(always)]
pub fn rewrite(ctx: &XdpContext, service: &Service, backend: &Backend, inner: &Inner) -> Result<(), Outcome> {
    if service.forward != FORWARD_IPIP {
        return write_macs(&Frame::new(ctx), backend).ok_or(Outcome::DropNoHeadroom);
    }
    if backend.flags & BACKEND_IPV6 == 0 { ipip4(ctx, backend, inner) } else { ipip6(ctx, backend, inner) }
        .ok_or(Outcome::DropNoHeadroom)
}

/// Sets destination and source MAC.
#[inline(always)]
fn write_macs(frame: &Frame, backend: &Backend) -> Option<()> {
    let [a, b, c, d, e, f] = backend.next_hop;
    let [g, h, i, j, k, l] = backend.own;
    frame.write(0, [a, b, c, d, e, f, g, h, i, j, k, l])
}

/// Puts an IPv4 header in front (RFC 2003, RFC 4213).
#[inline(always)]
fn ipip4(ctx: &XdpContext, backend: &Backend, inner: &Inner) -> Option<()> {
    let frame = make_room::<OUTER4>(ctx, backend, inner, [0x08, 0x00])?;
    let total = inner.ip_len + OUTER4 as u16;
    let protocol = if inner.ipv6 { IPV6_IN_IP } else { IPV4_IN_IP };
    let [c0, c1] = checksum::finish_header4(backend.outer_sum, inner.tos, total, protocol).to_ne_bytes();
    let [l0, l1] = total.to_be_bytes();
    let [s0, s1, s2, s3, ..] = backend.outer_source;
    let [d0, d1, d2, d3, ..] = backend.address;
    frame.write(
        inner.at,
        [0x45, inner.tos, l0, l1, 0, 0, 0x40, 0, HOP_LIMIT, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3],
    )
}

/// Puts an IPv6 header in front (RFC 2473). The flow label is the flow's hash (RFC 6438).
#[inline(always)]
fn ipip6(ctx: &XdpContext, backend: &Backend, inner: &Inner) -> Option<()> {
    let frame = make_room::<OUTER6>(ctx, backend, inner, [0x86, 0xdd])?;
    let protocol = if inner.ipv6 { IPV6_IN_IP } else { IPV4_IN_IP };
    let [v0, v1, v2, v3] = (6 << 28 | u32::from(inner.tos) << 20 | inner.hash >> 12).to_be_bytes();
    let [l0, l1] = inner.ip_len.to_be_bytes();
    frame.write(inner.at, [v0, v1, v2, v3, l0, l1, protocol, HOP_LIMIT])?;
    frame.write(inner.at + 8, backend.outer_source)?;
    frame.write(inner.at + 24, backend.address)
}

/// Moves the packet's start by `N` bytes and writes the link header there, VLAN tags included, so that `N` bytes are
/// free at `inner.at`.
#[inline(always)]
fn make_room<const N: usize>(
    ctx: &XdpContext,
    backend: &Backend,
    inner: &Inner,
    ethertype: [u8; 2],
) -> Option<Frame> {
    let frame = packet::adjust_head(ctx, -(N as i32))?;
    // Tags stand behind the MACs; the last two bytes of the link header name the payload.
    let tags = inner.at - 14;
    if tags >= 4 {
        let first: [u8; 4] = frame.read(N + 12)?;
        frame.write(12, first)?;
        if tags >= 8 {
            let second: [u8; 4] = frame.read(N + 16)?;
            frame.write(16, second)?;
        }
    }
    frame.write(inner.at - 2, ethertype)?;
    write_macs(&frame, backend)?;
    Some(frame)
}
