//! The controller of xlb.

pub mod config;
