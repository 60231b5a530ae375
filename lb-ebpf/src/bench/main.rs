//! What the bench measures the balancer with.
//!
//! BPF_PROG_TEST_RUN repeats a program without restoring the packet. So it runs a *driver*, which restores the packet,
//! makes it the next flow's and tail-calls the program under test: the balancer, the [`floor`], or a stub. What a
//! program costs is the difference to the stub.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(missing_docs, reason = "the xdp macro adds public functions without any")]
#![expect(clippy::needless_pass_by_value, reason = "the xdp macro passes the context so")]

mod floor;
mod traffic;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::bpf_xdp_get_buff_len,
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};
use core::arch::asm;
use lb_common::checksum;
use lb_ebpf::packet::{self, Frame};

use traffic::{CLIENTS6, GOLDEN, SERVICES6, Traffic};

#[map]
static TRAFFIC: Array<Traffic> = Array::with_max_entries(1, 0);
/// The program under test.
#[map]
static SLOT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The driver for IPv4.
#[xdp(frags)]
pub fn drive4(ctx: XdpContext) -> u32 {
    call(&ctx, prepare4(&ctx))
}

/// The driver for IPv6.
#[xdp(frags)]
pub fn drive6(ctx: XdpContext) -> u32 {
    call(&ctx, prepare6(&ctx))
}

/// What the driver costs alone.
#[xdp(frags)]
pub fn stub(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// What a tunnel costs without any decision.
#[xdp(frags)]
pub fn floor(ctx: XdpContext) -> u32 {
    floor::encapsulate(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

/// The same behind the balancer's parser.
#[xdp(frags)]
pub fn parsing_floor(ctx: XdpContext) -> u32 {
    floor::parse_and_encapsulate(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

#[inline(always)]
fn call(ctx: &XdpContext, prepared: Option<()>) -> u32 {
    if prepared.is_some() {
        // SAFETY: nothing here waits to be dropped.
        unsafe { SLOT.tail_call(ctx, 0) };
    }
    // Not prepared, or nothing in the slot.
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn prepare4(ctx: &XdpContext) -> Option<()> {
    let traffic = traffic()?;
    let frame = restore(ctx, traffic)?;
    let flow = next(traffic);
    let source = traffic::client(flow);
    let destination = destination(traffic, flow);
    let sum = traffic.header_sum + checksum::words4(source) + checksum::words4(destination);
    frame.write(24, (!checksum::fold(sum)).to_ne_bytes())?;
    frame.write(26, source)?;
    frame.write(30, destination)?;
    frame.write(34, traffic::client_port(flow))?;
    count(traffic);
    Some(())
}

#[inline(always)]
fn prepare6(ctx: &XdpContext) -> Option<()> {
    let traffic = traffic()?;
    let frame = restore(ctx, traffic)?;
    let flow = next(traffic);
    frame.write(22, traffic::wide(CLIENTS6, traffic::client(flow)))?;
    frame.write(38, traffic::wide(SERVICES6, destination(traffic, flow)))?;
    frame.write(54, traffic::client_port(flow))?;
    count(traffic);
    Some(())
}

#[inline(always)]
fn traffic() -> Option<&'static mut Traffic> {
    // SAFETY: the harness writes it before it runs the driver, and reads it afterwards.
    TRAFFIC.get_ptr_mut(0).and_then(|traffic| unsafe { traffic.as_mut() })
}

/// Takes off what the last run put in front, and writes the link header, all that programs under test change. The helper
/// is called whatever there is to take off, so that all programs pay for it alike.
#[inline(always)]
fn restore(ctx: &XdpContext, traffic: &Traffic) -> Option<Frame> {
    // SAFETY: the context that the kernel passed to this run.
    let len = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as i32;
    let frame = packet::adjust_head(ctx, len - traffic.len as i32)?;
    frame.write(0, traffic.ethernet)?;
    Some(frame)
}

#[inline(always)]
fn next(traffic: &mut Traffic) -> u32 {
    let phase = traffic.phase;
    traffic.phase = phase.wrapping_add(GOLDEN);
    traffic::flow(phase, traffic.flows)
}

#[inline(always)]
fn destination(traffic: &Traffic, flow: u32) -> [u8; 4] {
    (traffic.first_service + traffic::service(flow, traffic.services)).to_be_bytes()
}

/// Counts the packet. The atomic addition waits until what was written to the packet has left the processor's store
/// buffer: a load of more bytes than one store wrote would stall there, and a program under test would pay for how the
/// driver writes. The bytes of a packet from a NIC are never in that buffer.
#[inline(always)]
fn count(traffic: &mut Traffic) {
    // The target has no atomic types that could add.
    // SAFETY: adds 1 to eight aligned bytes that are this function's alone.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut traffic.packets, in(reg) 1u64) };
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
