//! The controller of xlb: file -> spec -> tables -> plan -> dataplane, and health, next hops, the API around it.

pub mod config;
pub mod dataplane;
pub mod health;
pub mod plan;
