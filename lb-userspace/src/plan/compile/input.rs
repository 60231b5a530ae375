//! What the tables are made of.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    config::spec::{BackendSpec, ServiceSpec, Spec},
    plan::records::Note,
};

/// The way to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Interface that its packets leave by.
    pub ifindex: u32,
    /// MAC of the next hop.
    pub next_hop: [u8; 6],
    /// MAC of the interface.
    pub own: [u8; 6],
    /// Source of outer headers, of the backend's family.
    pub outer_source: IpAddr,
}

/// What is known of a backend besides its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub struct Knowledge {
    /// May take new connections, if there is a way to it.
    pub takes_new: bool,
    /// Not dead: flows that it has stay with it.
    pub is_usable: bool,
    /// Its drain has reached its deadline: slots stop moving away from it.
    pub drain_is_over: bool,
    /// Takes connections when nobody may and the service says `use_all`.
    pub is_last_resort: bool,
    /// The way to it, if there is one.
    pub route: Option<Route>,
    /// For the next run of the controller.
    pub note: Note,
}

impl Knowledge {
    /// May take new connections.
    pub fn is_eligible(&self) -> bool {
        self.takes_new && self.route.is_some()
    }
}

/// A backend, and what is known of it.
pub type Known<'a> = (&'a BackendSpec, Knowledge);

/// What the tables are made of, besides what the [`super::Compiler`] remembers.
pub struct Input<'a> {
    /// The configuration.
    pub spec: &'a Spec,
    /// Interfaces that may be redirected to.
    pub devices: BTreeSet<u32>,
    /// What is known of a backend of the file.
    pub known: &'a dyn Fn(&ServiceSpec, &BackendSpec) -> Knowledge,
    /// Backends that have left the file and keep their flows for a while.
    pub leaving: &'a dyn Fn(&ServiceSpec) -> Vec<Known<'a>>,
    /// When a new pin was last refused.
    pub refused_at: Option<Instant>,
    /// Backends that become eligible now were there all the time: no slow start for them.
    pub is_warm: bool,
    /// See [`crate::plan::rings::Wish::young`].
    pub young: Duration,
    /// The time.
    pub now: Instant,
}
