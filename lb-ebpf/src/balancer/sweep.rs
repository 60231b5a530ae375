//! The sweeper's hand: a program that is attached nowhere. The controller walks the flow table and runs this on the
//! pins that are to go, so that the last look at a pin and its deletion are nanoseconds apart.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{flow::SWEEP_BATCH, parse::Bytes as _};
use lb_ebpf::packet::Frame;

use crate::maps;

/// Entry point, see [`lb_common::abi::SWEEP_PROGRAM`]. The "packet" starts with the number of items in `SWEEP`, a
/// `u32`.
#[xdp]
pub fn xlb_sweep(ctx: XdpContext) -> u32 {
    let Some(count) = Frame::new(&ctx).read(0).map(u32::from_ne_bytes) else {
        return xdp_action::XDP_ABORTED;
    };
    for index in 0..SWEEP_BATCH {
        if index >= count {
            break;
        }
        maps::sweep(index);
    }
    xdp_action::XDP_PASS
}
