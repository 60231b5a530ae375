//! Spec and health -> tables -> ordered operations. Pure: no clock, no kernel.

pub mod ring;
