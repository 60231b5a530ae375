//! The JSON of all answers but the status.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::admin_state;
use crate::config::spec::AdminState;

/// What became of a reload: the answer to `reload` and `apply`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReloadReply {
    /// Whether the file, but for what is held, is in force now. True, too, when nothing had changed.
    pub applied: bool,
    /// In force now.
    pub generation: u64,
    /// What changed, one line each.
    pub changes: Vec<String>,
    /// What waits for consent, each with the way to give it.
    pub held: Vec<String>,
    /// What is wrong with the file, rendered for reading. The running configuration is unchanged then.
    pub errors: Vec<String>,
    /// What is doubtful in it.
    pub warnings: Vec<String>,
}

/// What applying a file would change: the answer to `plan`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanReply {
    /// The file's services, then those that would go.
    pub services: Vec<ServicePlan>,
    /// What would wait for consent, each with the way to give it.
    pub held: Vec<String>,
    /// What is wrong with the file, rendered for reading.
    pub errors: Vec<String>,
    /// What is doubtful in it.
    pub warnings: Vec<String>,
}

/// What would change in one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServicePlan {
    /// As in the file.
    pub name: String,
    /// In one word.
    pub change: Change,
    /// Size of the ring.
    pub slots_total: u32,
    /// Slots that get another current backend.
    pub slots_moved: u32,
    /// Names.
    pub backends_added: Vec<String>,
    /// Names; they drain first.
    pub backends_removed: Vec<String>,
    /// One line each: what changes of which backend.
    pub backends_changed: Vec<String>,
    /// Whether connections on healthy backends stay where they are. False after a change of `hash_seed`, `hash`,
    /// `ring_size` or `forward`, which moves every flow.
    pub flows_stay: bool,
    /// What else there is to know, one line each.
    pub notes: Vec<String>,
}

/// What happens to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// Something of it changes.
    Changed,
    /// Nothing.
    #[default]
    Unchanged,
}

/// The answer to `drain`, `enable` and `disable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminReply {
    /// False when it was so already.
    pub changed: bool,
    /// In force now.
    #[serde(with = "admin_state")]
    pub state: AdminState,
    /// What to know about it, one line each: `web has no eligible backend left`.
    pub notes: Vec<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts events of this controller, from 1, without gaps.
    pub seq: u64,
    /// Wall clock, milliseconds since 1970.
    pub time_unix_ms: u64,
    /// Milliseconds since the controller started, by the monotonic clock: orders and measures, whatever the wall does.
    pub monotonic_ms: u64,
    /// What it is about.
    pub kind: EventKind,
    /// Whose, if it is one service's.
    pub service: Option<String>,
    /// Whose, if it is one backend's.
    pub backend: Option<String>,
    /// What happened. Partly a remote text: escape it before printing.
    pub text: String,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The controller: started, ready, leaving.
    Controller,
    /// The file: applied, refused, held.
    Config,
    /// An operator's drain, enable or disable.
    Admin,
    /// A verdict of the probes.
    Health,
    /// A drain or a move of slots that ended.
    Drain,
    /// The kernel's side: attached, repaired, an operation failed.
    Dataplane,
    /// Routes, neighbours and links.
    Network,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Controller => "controller",
            Self::Config => "config",
            Self::Admin => "admin",
            Self::Health => "health",
            Self::Drain => "drain",
            Self::Dataplane => "dataplane",
            Self::Network => "network",
        })
    }
}

/// The answer to `events`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventsReply {
    /// Oldest first.
    pub events: Vec<Event>,
    /// What to ask `since` for next time. Less than what was asked for: the controller has started anew.
    pub next: u64,
    /// Events between `since` and the first one here that were dropped already.
    pub lost: u64,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs: `not_found`, `refused`, `timeout`, `stopped`, `bad_request`, `forbidden`, `method_not_allowed`.
    pub kind: String,
    /// For people.
    pub message: String,
}
