//! The bench's traffic: a source, a sink, and a program that only sends back, to compare with.
//!
//! `generate` is run by BPF_PROG_TEST_RUN with live frames, as if they had come in by the sink's interface, and sends
//! them out of it. What comes back is counted by `sink`.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the xdp macro adds a public function without any")]
#![expect(clippy::needless_pass_by_value, reason = "the xdp macro passes the context so")]

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::PerCpuArray,
    programs::XdpContext,
};
use core::ptr;
use lb_common::{checksum, parse::Bytes};
use lb_ebpf::packet::Frame;

/// How many flows there are; the bench sets it. At least 1.
#[unsafe(no_mangle)]
static FLOWS: u32 = 1;
/// Destination and source MAC: the first eight bytes, and the other four. The bench sets them.
#[unsafe(no_mangle)]
static MACS_HEAD: u64 = 0;
/// See [`MACS_HEAD`].
#[unsafe(no_mangle)]
static MACS_TAIL: u32 = 0;

/// The flow whose turn it is.
#[map]
static NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// Frames that arrived at the sink.
#[map]
static SEEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The service, and its port.
const TO: [u8; 4] = [192, 0, 2, 10];
const PORT: u16 = 80;
/// 198.18.0.0/15, for benchmarks (RFC 2544): 2^17 addresses; more flows take more ports.
const FROM: u32 = 0xc612_0000;
const ADDRESSES: u32 = 1 << 17;
const FIRST_PORT: u16 = 40_000;

/// IPv4 and TCP without options or data, don't fragment, 64 hops.
const LENGTH: u16 = 40;
const TTL: u8 = 64;
const TCP: u8 = 6;
/// The protocol number of a tunnel that carries IPv4.
const IPIP: u8 = 4;
/// Offset of the sequence number to the end: 5 words, ACK, a window of 512.
const TCP_REST: [u8; 16] = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 2, 0, 0, 0, 0, 0];

/// Entry point of the source.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    match write(&Frame::new(&ctx)) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Writes all of the headers: the kernel gives out the same memory again as the last one left it.
///
/// TCP's checksum stays 0: nobody looks at it on the way to the sink.
#[inline(always)]
fn write(frame: &Frame) -> Option<()> {
    // SAFETY: statics that are written before the program is loaded; volatile, as the compiler knows nothing of that.
    let (flows, head, tail) = unsafe {
        (
            ptr::read_volatile(&raw const FLOWS),
            ptr::read_volatile(&raw const MACS_HEAD),
            ptr::read_volatile(&raw const MACS_TAIL),
        )
    };
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: this CPU's entry, and nothing else on it runs this program meanwhile.
    let flow = unsafe {
        let flow = *next;
        *next = if flow + 1 < flows { flow + 1 } else { 0 };
        flow
    };
    let source = (FROM | (flow & (ADDRESSES - 1))).to_be_bytes();
    let port = (FIRST_PORT + (flow / ADDRESSES) as u16).to_be_bytes();
    frame.write(0, head.to_ne_bytes())?;
    frame.write(8, tail.to_ne_bytes())?;
    let length = LENGTH.to_be_bytes();
    frame.write(12, [0x08, 0x00, 0x45, 0x00, length[0], length[1], 0, 0, 0x40, 0x00, TTL, TCP])?;
    let sum = checksum::finish_header4(
        checksum::outer_header4(TTL, [0; 4], TO) + checksum::words4(source),
        0,
        LENGTH,
        TCP,
    );
    frame.write(24, sum.to_ne_bytes())?;
    frame.write(26, source)?;
    frame.write(30, TO)?;
    frame.write(34, port)?;
    frame.write(36, PORT.to_be_bytes())?;
    frame.write(38, TCP_REST)
}

/// Entry point of the sink.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    if is_ours(&Frame::new(&ctx)) != Some(true) {
        return xdp_action::XDP_PASS;
    }
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        // SAFETY: this CPU's entry, and nothing else on it runs this program meanwhile.
        unsafe { *seen += 1 };
    }
    xdp_action::XDP_DROP
}

/// Whether it is for the service, or in a tunnel.
#[inline(always)]
fn is_ours(frame: &Frame) -> Option<bool> {
    let ethertype: [u8; 2] = frame.read(12)?;
    let [protocol]: [u8; 1] = frame.read(23)?;
    let to: [u8; 4] = frame.read(30)?;
    Some(ethertype == [0x08, 0x00] && (protocol == IPIP || to == TO))
}

/// Entry point of what a balancer is compared with: sends the source's packets back as they came.
#[xdp]
pub fn reflect(ctx: XdpContext) -> u32 {
    if is_ours(&Frame::new(&ctx)) == Some(true) { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
}

/// The kernel refuses some helpers to programs without a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A panic that could be reached would be an endless loop, which the verifier refuses: so there is none.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
