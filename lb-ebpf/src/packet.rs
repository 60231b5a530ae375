//! The packet in the kernel's memory: the only file that does arithmetic on pointers.
//!
//! Each access compares with `data_end` first; the verifier proves that it does.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use core::ptr;
use lb_common::{
    checksum,
    parse::{Bytes, Plain},
};

/// The linear part of a packet. Stale after [`adjust_head`]: make a new one.
#[derive(Clone, Copy)]
pub struct Frame {
    data: usize,
    data_end: usize,
    ctx: *mut xdp_md,
}

impl Frame {
    /// The packet of this run of the program.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { data: ctx.data(), data_end: ctx.data_end(), ctx: ctx.ctx }
    }

    /// Address of `len` bytes at `at`, if they lie inside.
    #[inline(always)]
    fn pointer(&self, at: usize, len: usize) -> Option<usize> {
        let start = self.data + at;
        (start + len <= self.data_end).then_some(start)
    }

    /// Overwrites the bytes at `at`; `None` if they do not lie inside.
    #[inline(always)]
    pub fn write<T: Plain>(&self, at: usize, value: T) -> Option<()> {
        let start = self.pointer(at, size_of::<T>())?;
        // SAFETY: inside the packet, as just compared; unaligned; the program owns the packet while it runs.
        unsafe { (start as *mut T).write_unaligned(value) };
        Some(())
    }
}

impl Frame {
    /// Folded one's complement sum of the `N` bytes at `at`, see [`lb_common::checksum`]; `None` if they do not lie
    /// inside. `N` is a multiple of four.
    #[inline(always)]
    pub fn sum<const N: u32>(&self, at: usize) -> Option<u16> {
        const { assert!(N.is_multiple_of(4)) };
        let start = self.pointer(at, N as usize)?;
        // SAFETY: inside the packet, as just compared; the helper only reads, and takes no bytes from null with size 0.
        let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, start as *mut u32, N, 0) };
        Some(checksum::fold(sum as u32))
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn read<T: Plain>(&self, at: usize) -> Option<T> {
        let start = self.pointer(at, size_of::<T>())?;
        // SAFETY: inside the packet, as just compared; `Plain` takes any bytes; unaligned.
        Some(unsafe { (start as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn has(&self, len: usize) -> bool {
        self.data + len <= self.data_end
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        if self.data + len <= self.data_end {
            return true;
        }
        // SAFETY: `ctx` is the context that the kernel passed to this run.
        len as u64 <= unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }
}

/// Moves the packet's start by `delta` bytes: negative makes room in front, positive cuts. `None` if it cannot.
#[inline(always)]
pub fn adjust_head(ctx: &XdpContext, delta: i32) -> Option<Frame> {
    // SAFETY: `ctx` is the context that the kernel passed to this run.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } == 0).then(|| Frame::new(ctx))
}
