//! (spec, health, next hops) -> tables -> ordered operations. Pure: no I/O, no clock, no aya.
//!
//! ```text
//! Spec + Health + NextHops --compile--> Tables --diff(applied)--> Vec<Op>
//! ```
//!
//! `ids.rs` keeps backend ids stable, `slots.rs` gives each ring its place, `ring.rs` fills it, `slow_start.rs`
//! raises weights in steps, `compile.rs` puts the tables together, `diff.rs` orders the operations: make before break.

pub mod compile;
pub mod diff;
pub mod ids;
pub mod ring;
pub mod slots;
pub mod slow_start;
pub mod tables;
