//! The controller of xlb.

pub mod config;
pub mod dataplane;
pub mod plan;
