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

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::outcome::Outcome;

/// Entry point, see [`lb_common::abi::PROGRAM`].
#[xdp(frags)]
pub fn xlb(ctx: XdpContext) -> u32 {
    let outcome = balance::balance(&ctx).unwrap_or_else(|refused| refused);
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
