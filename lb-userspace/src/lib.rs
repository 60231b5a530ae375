//! The controller of xlb.

pub mod config;
pub mod net;
