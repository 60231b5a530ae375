//! The kernel: the one module of the controller that knows aya.
//!
//! `program.rs` loads and attaches, `maps.rs` writes and reads, `sweep.rs` walks the flow table with what
//! `syscall.rs` has, `decap.rs` is the servers' side, `error.rs` puts the kernel's refusals into words.

mod decap;
mod error;
mod maps;
mod program;
mod sweep;
mod syscall;

pub use decap::Decap;
pub use error::{AttachError, LoadError};
pub use maps::BpfMaps;
pub use program::{Attached, BpfProgram, PacketRun, load};
pub use sweep::{SweepError, SweepHandle, SweepParts, SweepResults};
