//! The controller of xlb.

pub mod api;
pub mod config;
