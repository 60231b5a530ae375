//! The kernel: the one module of the controller that knows aya.
//!
//! `program.rs` loads and attaches, `maps.rs` writes and reads, `services.rs` the maps of services, `sweep.rs` walks the flow table, `decap.rs` is the servers'
//! side, `error.rs` puts the kernel's refusals into words, `sys.rs` is bpf(2) where aya has no call. What outlives the
//! controller: `pins.rs` the pin directory, `names.rs` what is called how in it, `adopt.rs` maps of an earlier controller,
//! `shape.rs` whether they can be used, `link.rs` links, `drift.rs` what others changed, `holder.rs` who has a lock.

mod adopt;
mod decap;
mod drift;
mod error;
mod holder;
mod link;
mod maps;
mod names;
mod pins;
mod program;
mod services;
mod shape;
mod sweep;
mod sys;
mod walk;

pub use decap::Decap;
pub use drift::Drift;
pub use error::{AttachError, LoadError, PinError};
pub use link::{Link, LinkState};
pub use maps::BpfMaps;
pub use pins::{Detached, PinDir, detach, on_bpf_fs};
pub use program::{Attached, BpfProgram, Opened, PacketRun, load, open};
pub use shape::Mismatch;
pub use sweep::{SweepError, SweepHandle, SweepParts, SweepResults};
