//! The controller's API: what it says about itself, and what one may ask of it.
//!
//! The API owns no state. It puts [`handle::Request`]s into the controller's mailbox and turns the answers into HTTP:
//! everything on a Unix socket (mode 0600), reading only on TCP. `model` is the JSON of both, and of the command.

pub mod client;
pub mod events;
#[cfg(test)]
pub mod fake;
pub mod handle;
pub mod metrics;
pub mod model;
mod reply;
mod routes;
pub mod server;
pub mod socket;
