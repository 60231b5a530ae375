//! The decapsulator for servers: takes the outer header off IP-in-IP packets from allowed balancers and lets the host's
//! stack have what is inside. For servers whose kernel has no tunnel device. Everything else passes untouched.

#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the xdp macro adds a public function without any")]
#![expect(clippy::needless_pass_by_value, reason = "the xdp macro passes the context so")]

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{LpmTrie, lpm_trie::Key},
    programs::XdpContext,
};
use lb_common::parse::{self, Bytes, Network};
use lb_ebpf::packet::{self, Frame};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

/// Balancers that may send: prefixes of IPv4 sources. A prefix of length 0 allows any.
#[map]
static ALLOW4: LpmTrie<[u8; 4], u8> = LpmTrie::with_max_entries(256, 1 /* BPF_F_NO_PREALLOC */);
/// As [`ALLOW4`], for IPv6.
#[map]
static ALLOW6: LpmTrie<[u8; 16], u8> = LpmTrie::with_max_entries(256, 1 /* BPF_F_NO_PREALLOC */);

/// Entry point.
#[xdp(frags)]
pub fn decap(ctx: XdpContext) -> u32 {
    // What is no tunnel packet for us has its way like what was unwrapped: up the stack.
    let _ = unwrap(&ctx);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn unwrap(ctx: &XdpContext) -> Option<()> {
    let frame = Frame::new(ctx);
    match parse::network(&frame) {
        Network::Ipv4(at) => {
            let outer: Ipv4Hdr = frame.read(at)?;
            // Options and fragments of the outer header are nothing that a balancer sends.
            if outer.vihl != 0x45 || u16::from_be_bytes(outer.frags) & 0x3fff != 0 {
                return None;
            }
            ALLOW4.get(Key::new(32, outer.src_addr))?;
            strip::<20>(ctx, &frame, at, outer.proto)
        }
        Network::Ipv6(at) => {
            let outer: Ipv6Hdr = frame.read(at)?;
            ALLOW6.get(Key::new(128, outer.src_addr))?;
            strip::<40>(ctx, &frame, at, outer.next_hdr)
        }
        Network::Other => None,
    }
}

/// Cuts `N` bytes at `at` out, by moving the link header over them.
#[inline(always)]
fn strip<const N: usize>(ctx: &XdpContext, frame: &Frame, at: usize, protocol: u8) -> Option<()> {
    let ethertype: [u8; 2] = match protocol {
        4 => [0x08, 0x00],
        41 => [0x86, 0xdd],
        _ => return None,
    };
    // The inner version must agree, or the stack would be handed rubbish under a false name.
    let [first]: [u8; 1] = frame.read(at + N)?;
    if first >> 4 != if protocol == 4 { 4 } else { 6 } {
        return None;
    }
    let macs: [u8; 12] = frame.read(0)?;
    let first_tag: [u8; 4] = frame.read(12)?;
    let second_tag: [u8; 4] = frame.read(16)?;
    let frame = packet::adjust_head(ctx, N as i32)?;
    frame.write(0, macs)?;
    if at >= 18 {
        frame.write(12, first_tag)?;
    }
    if at >= 22 {
        frame.write(16, second_tag)?;
    }
    frame.write(at - 2, ethertype)
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
