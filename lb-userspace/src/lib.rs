//! The controller of xlb.

pub mod api;
pub mod cli;
pub mod config;
pub mod logging;
