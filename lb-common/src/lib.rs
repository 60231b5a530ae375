//! What the kernel program and the controller share: the map types, the packet hash, the slot, the outcomes, the
//! parser and the checksum arithmetic. Nothing here allocates, does I/O or depends on another crate of the project.
//!
//! Rules
//! - **Byte order**: addresses, ports and MACs are byte arrays as they stand in the packet. Every integer is in the
//!   host's order.
//! - **Padding**: none is implicit. Each map type asserts its size; unused bytes are named `reserved` and are zero.
//! - **Versions**: a change of any map's shape or meaning raises [`abi::LAYOUT_VERSION`], which is part of the pin path.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod answer;
pub mod backend;
pub mod checksum;
pub mod flow;
pub mod hash;
pub mod lookup;
pub mod outcome;
pub mod parse;
pub mod plain;
#[cfg(feature = "user")]
mod pod;
pub mod record;
pub mod service;
pub mod slot;
pub mod track;
