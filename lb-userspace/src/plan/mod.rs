//! (spec, health, next hops) -> tables -> ordered operations. Pure: no I/O, no clock, no aya.
//!
//! ```text
//! Spec + Health + NextHops --compile--> Tables --diff(applied)--> Vec<Op>
//! ```
//!
//! `ids.rs` keeps backend ids stable, `slots.rs` gives each ring its place, `ring.rs` says who is to have each slot,
//! `slow_start.rs` raises weights in steps, `rings.rs` leads the slots there without losing a connection, `records.rs`
//! writes down what a restart has to know, `compile.rs` puts the tables together, `diff.rs` orders the operations: make
//! before break.

pub mod compile;
pub mod diff;
pub mod ids;
pub mod records;
pub mod ring;
pub mod rings;
pub mod slots;
pub mod slow_start;
pub mod tables;
