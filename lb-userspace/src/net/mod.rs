//! The network around the controller: interfaces, routes and neighbours.
//!
//! `model` has the types, `view` is the pure cache that resolves next hops, `ask` decides when to ask for a neighbour,
//! `decode` reads messages, `kernel` holds the sockets, `watch` is the task over all of it. `nic` says what of a NIC's
//! settings will bite; `ethtool` reads them.

mod ask;
mod decode;
pub mod ethtool;
mod kernel;
pub mod model;
pub mod nic;
#[cfg(test)]
mod test_lab;
mod view;
pub mod watch;

pub use self::{
    model::{AttachedMode, AttachedXdp, LinkInfo, NextHop, NextHopState, Unreachable},
    watch::{NetEvent, NetHandle, NetWatch, Stopped},
};
