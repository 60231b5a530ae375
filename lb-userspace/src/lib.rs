//! The controller of xlb: file -> spec -> tables -> plan -> dataplane, and health, next hops, the API around it.

pub mod api;
pub mod cli;
pub mod config;
pub mod controller;
pub mod dataplane;
pub mod flows;
pub mod health;
pub mod logging;
pub mod net;
pub mod plan;
