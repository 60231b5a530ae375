//! The floor: what any balancer with tunnels has to do, and no decision. Reads the headers, puts an outer one of constants
//! in front. No map, no hash, no variable offset: IPv4 in IPv4, IPv6 in IPv6.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    checksum,
    parse::{self, Bytes as _, Network, Parsed, TCP, TCP_FIN, TCP_RST, TCP_SYN},
};
use lb_ebpf::packet::{self, Frame};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

const ETHERNET: usize = 14;
/// Of the outer header.
const HOP_LIMIT: u8 = 64;
const OUTER4: ([u8; 4], [u8; 4]) = ([192, 0, 2, 1], [192, 0, 2, 2]);
const OUTER4_SUM: u32 = checksum::outer_header4(HOP_LIMIT, OUTER4.0, OUTER4.1);
const OUTER6: ([u8; 16], [u8; 16]) = (
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
);

/// Sends the packet through the tunnel; `None` if it is not TCP in plain IPv4 or IPv6.
#[inline(always)]
pub fn encapsulate(ctx: &XdpContext) -> Option<()> {
    let frame = Frame::new(ctx);
    let ethernet: [u8; ETHERNET] = frame.read(0)?;
    match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => ipv4(ctx, &frame),
        [0x86, 0xdd] => ipv6(ctx, &frame),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, frame: &Frame) -> Option<()> {
    let ip: Ipv4Hdr = frame.read(ETHERNET)?;
    let len = u16::from_be_bytes(ip.tot_len);
    let is_fragment = u16::from_be_bytes(ip.frags) & 0x3fff != 0;
    if ip.vihl != 0x45 || ip.proto != TCP || is_fragment || !frame.holds(ETHERNET + usize::from(len)) {
        return None;
    }
    check_tcp(frame, ETHERNET + 20)?;
    write4(ctx, ip.tos, len)
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, frame: &Frame) -> Option<()> {
    let ip: Ipv6Hdr = frame.read(ETHERNET)?;
    let len = u16::from_be_bytes(ip.payload_len).checked_add(40)?;
    let [v0, v1, ..] = ip.vcf;
    if v0 >> 4 != 6 || ip.next_hdr != TCP || !frame.holds(ETHERNET + usize::from(len)) {
        return None;
    }
    check_tcp(frame, ETHERNET + 40)?;
    write6(ctx, v0 << 4 | v1 >> 4, len)
}

/// As [`encapsulate`], after the balancer's parser, which knows VLAN tags, options and extension headers.
#[inline(always)]
pub fn parse_and_encapsulate(ctx: &XdpContext) -> Option<()> {
    let frame = Frame::new(ctx);
    match parse::network(&frame) {
        Network::Ipv4(at @ ETHERNET) => match parse::ipv4(&frame, at) {
            Parsed::Packet(packet) => write4(ctx, packet.tos, packet.ip_len),
            _ => None,
        },
        Network::Ipv6(at @ ETHERNET) => match parse::ipv6(&frame, at) {
            Parsed::Packet(packet) => write6(ctx, packet.tos, packet.ip_len),
            _ => None,
        },
        _ => None,
    }
}

/// Puts an IPv4 header in front of a packet of `len` bytes.
#[inline(always)]
fn write4(ctx: &XdpContext, tos: u8, len: u16) -> Option<()> {
    let frame = make_room::<20>(ctx, [0x08, 0x00])?;
    let total = len + 20;
    let [c0, c1] = checksum::finish_header4(OUTER4_SUM, tos, total, 4).to_ne_bytes();
    let [l0, l1] = total.to_be_bytes();
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = OUTER4;
    frame.write(
        ETHERNET,
        [0x45, tos, l0, l1, 0, 0, 0x40, 0, HOP_LIMIT, 4, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3],
    )
}

/// As [`write4`].
#[inline(always)]
fn write6(ctx: &XdpContext, tos: u8, len: u16) -> Option<()> {
    let frame = make_room::<40>(ctx, [0x86, 0xdd])?;
    let [v0, v1, v2, v3] = (6 << 28 | u32::from(tos) << 20).to_be_bytes();
    let [l0, l1] = len.to_be_bytes();
    frame.write(ETHERNET, [v0, v1, v2, v3, l0, l1, 41, HOP_LIMIT])?;
    frame.write(ETHERNET + 8, OUTER6.0)?;
    frame.write(ETHERNET + 24, OUTER6.1)
}

/// `None` if the header cannot be.
#[inline(always)]
fn check_tcp(frame: &Frame, at: usize) -> Option<()> {
    let tcp: [u8; 20] = frame.read(at)?;
    let is_odd = tcp[13] & TCP_SYN != 0 && tcp[13] & (TCP_FIN | TCP_RST) != 0;
    (tcp[12] >> 4 >= 5 && !is_odd).then_some(())
}

/// Puts a link header of constants and `N` free bytes in front of the packet.
#[inline(always)]
fn make_room<const N: usize>(ctx: &XdpContext, [e0, e1]: [u8; 2]) -> Option<Frame> {
    let frame = packet::adjust_head(ctx, -(N as i32))?;
    frame.write(0, [2, 0xaa, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, e0, e1])?;
    Some(frame)
}
