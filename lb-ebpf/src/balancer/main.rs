//! The balancer: one XDP program, a pure function of the packet and the maps.
//!
//! [`balance`] decides and rewrites; the one `match` here turns what it says into an XDP action and counts it.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the xdp macro adds a public function without any")]
#![expect(clippy::needless_pass_by_value, reason = "the xdp macro passes the context so")]

mod answer;
mod balance;
mod forward;
mod maps;
mod sweep;
mod track;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{outcome::Outcome, parse::Bytes as _};
use lb_ebpf::packet::Frame;

/// Entry point, see [`lb_common::abi::PROGRAM`].
#[xdp(frags)]
pub fn xlb(ctx: XdpContext) -> u32 {
    // Of nearly all packets the offsets are constants.
    let outcome = match Frame::new(&ctx).read(12).map(u16::from_be_bytes) {
        Some(0x0800) => balance::plain4(&ctx),
        Some(0x86dd) => balance::plain6(&ctx),
        _ => None,
    };
    match outcome {
        Some(outcome) => action(outcome),
        None => xlb_any(ctx.ctx),
    }
}

/// All other packets. A *global* function: the verifier checks it once by itself, and what it needs in registers and on the
/// stack does not burden the others.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xlb_any(ctx: *mut xdp_md) -> u32 {
    action(balance::any(&XdpContext::new(ctx)))
}

/// Counts what became of the packet, and says so to the kernel.
#[inline(always)]
fn action(outcome: Outcome) -> u32 {
    if !outcome.is_sent() {
        maps::count(outcome);
    }
    match outcome {
        Outcome::Forwarded | Outcome::Rejected => xdp_action::XDP_TX,
        Outcome::Redirected => xdp_action::XDP_REDIRECT,
        Outcome::PassNotOurs => xdp_action::XDP_PASS,
        Outcome::DropMalformed
        | Outcome::DropBadSource
        | Outcome::DropFragment
        | Outcome::DropNoBackend
        | Outcome::DropNoNextHop
        | Outcome::DropNoDevice
        | Outcome::DropNoHeadroom
        | Outcome::DropLost => xdp_action::XDP_DROP,
    }
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
