//! The dead answer: the packet is turned into what tells its client that nobody can serve the flow.
//!
//! The headers are [`lb_common::answer`]'s; here they are written into the packet.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    answer::{self, ICMP_LEN, PROTOCOLS, QUOTE4, QUOTE6, Segment, TCP_LEN},
    flow::{ANSWERS_PER_WINDOW, RATE_WINDOW_NS},
    outcome::Outcome,
    parse::{self, Bytes, Packet, Parsed, TCP_RST, UDP},
};
use lb_ebpf::packet::{Frame, adjust_head};

use crate::{maps, track::header_at};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

/// Answers the IPv4 packet at `at` instead of sending it on.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext, at: usize) -> Outcome {
    outcome(xlb_answer4(ctx.ctx, at as u32))
}

/// Answers the IPv6 packet at `at` instead of sending it on.
#[inline(always)]
pub fn ipv6(ctx: &XdpContext, at: usize) -> Outcome {
    outcome(xlb_answer6(ctx.ctx, at as u32))
}

#[inline(always)]
fn outcome(left: u32) -> Outcome {
    if left == 0 { Outcome::Rejected } else { Outcome::DropLost }
}

/// Two *global* functions, see `track.rs`: they parse the packet again instead of being passed what is known of it. 0 if
/// the packet is the answer now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xlb_answer4(ctx: *mut xdp_md, at: u32) -> u32 {
    let (ctx, at) = (XdpContext::new(ctx), header_at(at));
    let frame = Frame::new(&ctx);
    let answered = match parse::ipv4(&frame, at) {
        Parsed::Packet(packet) if may_answer() => match packet.protocol {
            UDP => unreachable4(&ctx, at, &packet),
            _ => reset4(&ctx, &frame, at, &packet),
        },
        _ => None,
    };
    u32::from(answered.is_none())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xlb_answer6(ctx: *mut xdp_md, at: u32) -> u32 {
    let (ctx, at) = (XdpContext::new(ctx), header_at(at));
    let frame = Frame::new(&ctx);
    let answered = match parse::ipv6(&frame, at) {
        Parsed::Packet(packet) if may_answer() => match packet.protocol {
            UDP => unreachable6(&ctx, at, &packet),
            _ => reset6(&ctx, &frame, at, &packet),
        },
        _ => None,
    };
    u32::from(answered.is_none())
}

/// What the RST has to know of the segment; a RST is not answered.
#[inline(always)]
fn segment<A>(frame: &Frame, at: usize, packet: &Packet<A>) -> Option<Segment> {
    if packet.tcp_flags & TCP_RST != 0 {
        return None;
    }
    let tcp = at + usize::from(packet.ip_header_len);
    let [offset, ..]: [u8; 2] = frame.read(tcp + 12)?;
    let headers = u32::from(packet.ip_header_len) + u32::from(offset >> 4) * 4;
    Some(Segment {
        ports: packet.ports,
        sequence: u32::from_be_bytes(frame.read(tcp + 4)?),
        acknowledged: u32::from_be_bytes(frame.read(tcp + 8)?),
        flags: packet.tcp_flags,
        payload: u32::from(packet.ip_len) - headers,
    })
}

#[inline(always)]
fn reset4(ctx: &XdpContext, frame: &Frame, at: usize, packet: &Packet<[u8; 4]>) -> Option<()> {
    let segment = segment(frame, at, packet)?;
    let frame = cut(ctx, at + IPV4_LEN + TCP_LEN)?;
    turn_macs(&frame)?;
    let addresses = frame.sum::<8>(at + 12)?;
    frame.write(at + IPV4_LEN, answer::reset(&segment, addresses))?;
    frame.write(at, answer::header4(packet.source, packet.destination, PROTOCOLS.0, TCP_LEN))
}

#[inline(always)]
fn reset6<A>(ctx: &XdpContext, frame: &Frame, at: usize, packet: &Packet<A>) -> Option<()> {
    let segment = segment(frame, at, packet)?;
    let frame = cut(ctx, at + IPV6_LEN + TCP_LEN)?;
    turn_macs(&frame)?;
    let addresses = frame.sum::<32>(at + 8)?;
    frame.write(at + IPV6_LEN, answer::reset(&segment, addresses))?;
    write6(&frame, at, at, PROTOCOLS.0, TCP_LEN)
}

#[inline(always)]
fn unreachable4(ctx: &XdpContext, at: usize, packet: &Packet<[u8; 4]>) -> Option<()> {
    // With options in front the ports would not be quoted, and the client could not tell which flow is meant.
    if usize::from(packet.ip_header_len) != IPV4_LEN {
        return None;
    }
    let frame = make_room::<{ IPV4_LEN + ICMP_LEN }>(ctx, at, QUOTE4)?;
    turn_macs(&frame)?;
    frame.write(at, answer::header4(packet.source, packet.destination, PROTOCOLS.1, ICMP_LEN + QUOTE4))?;
    let quote = frame.sum::<{ QUOTE4 as u32 }>(at + IPV4_LEN + ICMP_LEN)?;
    frame.write(at + IPV4_LEN, answer::unreachable4(quote))
}

#[inline(always)]
fn unreachable6<A>(ctx: &XdpContext, at: usize, packet: &Packet<A>) -> Option<()> {
    if usize::from(packet.ip_header_len) != IPV6_LEN {
        return None;
    }
    let frame = make_room::<{ IPV6_LEN + ICMP_LEN }>(ctx, at, QUOTE6)?;
    turn_macs(&frame)?;
    let quoted = at + IPV6_LEN + ICMP_LEN;
    let addresses = frame.sum::<32>(quoted + 8)?;
    let quote = frame.sum::<{ QUOTE6 as u32 }>(quoted)?;
    frame.write(at + IPV6_LEN, answer::unreachable6(addresses, quote))?;
    write6(&frame, at, quoted, PROTOCOLS.2, ICMP_LEN + QUOTE6)
}

/// The IPv6 header of an answer to the packet whose header stands at `answered`, maybe in the same place.
#[inline(always)]
fn write6(frame: &Frame, at: usize, answered: usize, protocol: u8, len: usize) -> Option<()> {
    let source: [u8; 16] = frame.read(answered + 8)?;
    let destination: [u8; 16] = frame.read(answered + 24)?;
    frame.write(at, answer::header6(protocol, len))?;
    frame.write(at + 8, destination)?;
    frame.write(at + 24, source)
}

/// Back to where it came from.
#[inline(always)]
fn turn_macs(frame: &Frame) -> Option<()> {
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = frame.read(0)?;
    frame.write(0, [g, h, i, j, k, l, a, b, c, d, e, f])
}

/// The frame with a length of `len`, which is not more than it has.
#[inline(always)]
fn cut(ctx: &XdpContext, len: usize) -> Option<Frame> {
    // SAFETY: the context that the kernel passed to this run.
    let delta = unsafe { len as i32 - bpf_xdp_get_buff_len(ctx.ctx) as i32 };
    // SAFETY: as above.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } == 0).then(|| Frame::new(ctx))
}

/// Cuts the packet to `quoted` bytes from its IP header on, and puts `N` bytes in front of that header, the link header
/// with its tags before them.
#[inline(always)]
fn make_room<const N: usize>(ctx: &XdpContext, at: usize, quoted: usize) -> Option<Frame> {
    cut(ctx, at + quoted)?;
    let frame = adjust_head(ctx, -(N as i32))?;
    let macs: [u8; 12] = frame.read(N)?;
    frame.write(0, macs)?;
    // EtherType, with up to two tags in front.
    let mut moved = 12;
    while moved < 20 && moved + 2 < at {
        let word: [u8; 4] = frame.read(N + moved)?;
        frame.write(moved, word)?;
        moved += 4;
    }
    // `moved` is `at - 2` now; a negative offset from `at` is more than the verifier follows.
    let ethertype: [u8; 2] = frame.read(N + moved)?;
    frame.write(moved, ethertype)?;
    Some(frame)
}

/// Whether this CPU may answer another packet now: whoever floods us with forged ones must not have us flood others.
#[inline(always)]
fn may_answer() -> bool {
    let Some(stats) = maps::pin_stats() else { return false };
    // SAFETY: the helper takes no argument.
    let window = unsafe { bpf_ktime_get_coarse_ns() } / RATE_WINDOW_NS;
    if stats.window != window {
        (stats.window, stats.in_window, stats.answers_in_window) = (window, 0, 0);
    }
    stats.answers_in_window += 1;
    stats.answers_in_window <= ANSWERS_PER_WINDOW
}
