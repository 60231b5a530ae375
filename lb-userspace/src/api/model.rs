//! The JSON of the API. Names and their order are DESIGN section 4's; what this version adds stands after them.
//!
//! Counters never fall while a controller lives. Shares are fractions of one. Times are seconds unless a name says
//! otherwise.

use std::{borrow::Cow, fmt, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};

pub use super::reply::{
    AdminReply, Change, ErrorBody, ErrorDetail, Event, EventKind, EventsReply, PlanReply, ReloadReply,
    ServicePlan,
};
use crate::config::spec::AdminState;

/// What the controller and its data path are doing: `GET /api/v1/status`, `xlb status --json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The file in force, and what became of the last reload.
    pub config: ConfigStatus,
    /// Where the data path is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// In the file's order.
    pub services: Vec<ServiceStatus>,
    /// Packets by outcome.
    pub outcomes: Outcomes,
    /// The process that answers.
    pub controller: ControllerStatus,
    /// The flow table.
    // A controller of an earlier version, asked by a later command in the middle of an upgrade, has none.
    #[serde(default)]
    pub flows: FlowStatus,
}

/// The file in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// As given to `xlb run`.
    pub path: String,
    /// Counts the configurations that came into force; the first is 1.
    pub generation: u64,
    /// Reloads tried since the controller started, good or bad.
    pub reloads: u64,
    /// Why the last reload failed or which change it held; null when it succeeded.
    pub last_error: Option<String>,
    /// Changes that wait for consent, each with the way to give it.
    pub held: Vec<String>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// The kernel's name.
    pub name: String,
    /// How the program is attached.
    pub mode: InterfaceMode,
    /// Why it is not better: the reason for `generic` or `detached`.
    pub note: Option<String>,
}

/// How the program is attached to an interface now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceMode {
    /// In the driver.
    Native,
    /// In the network stack: works everywhere, costs more.
    Generic,
    /// Not at all: the interface is missing, or attaching failed and is tried again.
    Detached,
}

impl fmt::Display for InterfaceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Detached => "detached",
        })
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// As in the file.
    pub name: String,
    /// As in the file: `192.0.2.10:80/tcp`.
    pub listen: Vec<String>,
    /// `l2`, `ipip`, ...
    pub forward: String,
    /// Slots.
    pub ring_size: u32,
    /// Of the ring as the kernel has it; equal on balancers that choose alike.
    pub table_checksum: String,
    /// Sent to backends, those that have left included.
    pub packets: u64,
    /// Likewise; of the packets as they came, from the IP header on.
    pub bytes: u64,
    /// New connections sent: SYNs; first packets of a tracked UDP flow.
    pub connections: u64,
    /// Slots with a previous backend that still keeps its connections.
    pub moving_slots: u32,
    /// As old as [`FlowStatus::swept_s`] says.
    pub pins: u64,
    /// In the file's order.
    pub backends: Vec<BackendStatus>,
    /// Backends that left the file and drain. One may have the name of a backend that the file has now.
    pub leaving: Vec<BackendStatus>,
    /// How many of `backends` may take new connections.
    pub eligible: u32,
    /// Over the last few seconds; null before there are two readings.
    pub packets_per_s: Option<f64>,
    /// Likewise.
    pub bytes_per_s: Option<f64>,
    /// Likewise.
    pub connections_per_s: Option<f64>,
}

/// One backend of one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// As in the file.
    pub name: String,
    /// Of the server.
    pub address: IpAddr,
    /// Null unless the service is `nat`.
    pub port: Option<u16>,
    /// As in the file.
    pub weight: u32,
    /// The administrative state in force.
    #[serde(with = "admin_state")]
    pub state: AdminState,
    /// What the probes say.
    pub health: Health,
    /// Of `health`, in HAProxy's vocabulary: `L7OK 200`, `L4TOUT`.
    pub reason: String,
    /// How long `health` has been so.
    pub since_s: f64,
    /// Slots whose current backend it is.
    pub slots: u32,
    /// Sent to it.
    pub packets: u64,
    /// Likewise.
    pub bytes: u64,
    /// Likewise, new ones.
    pub connections: u64,
    /// To it; as old as [`FlowStatus::swept_s`] says.
    pub pins: u64,
    /// Of new connections: what weight and eligibility ask for.
    pub wanted_share: f64,
    /// Of the service's new connections of the last few seconds; null when there were none.
    pub real_share: Option<f64>,
    /// Over the last few seconds; null before there are two readings.
    pub packets_per_s: Option<f64>,
    /// What the last probe met, in words. Partly a remote text: escape it before printing.
    pub detail: Option<String>,
    /// How long it has been draining, or leaving; null when it does neither.
    pub draining_s: Option<f64>,
    /// Until the deadline of its drain, 0 when that has passed; null when there is none.
    pub drain_left_s: Option<f64>,
}

/// What the probes say of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// No verdict yet.
    #[default]
    Unknown,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
        })
    }
}

/// The process that answers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ControllerStatus {
    /// Of this program.
    pub version: String,
    /// Since it started.
    pub uptime_s: f64,
    /// Its process id.
    pub pid: u32,
    /// Mass failures that are not believed for now, one text each: the tables are held meanwhile.
    #[serde(default)]
    pub guard: Vec<String>,
}

/// The flow table: the pins of all services.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Pins that the last walk over the table found.
    pub pins: u64,
    /// Most that it holds: `limits.flows`.
    pub limit: u32,
    /// New pins that were refused, by the rate, UDP's share or a full table.
    pub refused: u64,
    /// How long ago the last whole walk began: no count of pins is younger. Null before the first has ended.
    pub swept_s: Option<f64>,
    /// Whole walks since the controller started.
    pub sweeps: u64,
}

/// Packets by outcome, in the order of the list of outcomes. JSON: an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes(pub Vec<(Cow<'static, str>, u64)>);

impl Outcomes {
    /// How many packets had the outcome of this name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(known, _)| known == name).map(|&(_, count)| count)
    }
}

impl Serialize for Outcomes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, count) in &self.0 {
            map.serialize_entry(name, count)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Outcomes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> de::Visitor<'de> for InOrder {
            type Value = Outcomes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of counters")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Outcomes, A::Error> {
                let mut outcomes = Vec::new();
                while let Some((name, count)) = map.next_entry::<String, u64>()? {
                    outcomes.push((Cow::Owned(name), count));
                }
                Ok(Outcomes(outcomes))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The spec's `AdminState` as text: the spec's types know nothing of JSON.
pub(crate) mod admin_state {
    use super::{AdminState, Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` asks for this signature")]
    pub fn serialize<S: Serializer>(state: &AdminState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(state)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AdminState, D::Error> {
        let text = String::deserialize(deserializer)?;
        [AdminState::Active, AdminState::Drain, AdminState::Disabled]
            .into_iter()
            .find(|state| state.to_string() == text)
            .ok_or_else(|| de::Error::unknown_variant(&text, &["active", "drain", "disabled"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    /// The example of DESIGN section 4, with the example's keys in the example's order.
    const EXAMPLE: &str = r#"{"config": {"path": "...", "generation": 4, "reloads": 3, "last_error": null,
      "held": []},
     "interfaces": [{"name": "eth0", "mode": "native", "note": null}],
     "services": [{"name": "web", "listen": ["192.0.2.10:80/tcp"], "forward": "l2", "ring_size": 65537,
       "table_checksum": "…", "packets": 0, "bytes": 0, "connections": 0, "moving_slots": 0, "pins": 0,
       "backends": [{"name": "s1", "address": "10.0.0.11", "port": 80, "weight": 100, "state": "active",
         "health": "up", "reason": "L7OK 200", "since_s": 12.5, "slots": 21846, "packets": 0, "bytes": 0,
         "connections": 0, "pins": 0, "wanted_share": 1.0, "real_share": null, "packets_per_s": null,
         "detail": null, "draining_s": null, "drain_left_s": null}],
       "leaving": [], "eligible": 1, "packets_per_s": null, "bytes_per_s": null, "connections_per_s": null}],
     "outcomes": {"forwarded": 0, "pass_not_ours": 0, "drop_malformed": 0},
     "controller": {"version": "0.1.0", "uptime_s": 1.0, "pid": 7, "guard": []},
     "flows": {"pins": 0, "limit": 1048576, "refused": 0, "swept_s": 0.5, "sweeps": 3}}"#;

    /// JSON without the white space between its tokens (the example's strings hold a blank only in `L7OK 200`).
    fn tokens(json: &str) -> String {
        json.split_whitespace().collect::<String>().replace("L7OK200", "L7OK 200")
    }

    #[test]
    fn status_has_the_names_and_the_order_of_the_design() {
        let status: Status = serde_json::from_str(EXAMPLE).unwrap();
        assert_eq!(serde_json::to_string(&status).unwrap(), tokens(EXAMPLE));
    }

    #[test]
    fn a_status_survives_the_round_trip() {
        let status = fake::status();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    /// As a controller of version 0.1.0 writes it.
    #[test]
    fn a_status_of_an_earlier_controller_is_read() {
        // A JSON value keeps no order, which outcomes have.
        let mut status = Status { outcomes: Outcomes::default(), ..fake::status() };
        let mut json = serde_json::to_value(&status).unwrap();
        json.as_object_mut().unwrap().remove("flows");
        json["controller"].as_object_mut().unwrap().remove("guard");
        for list in ["backends", "leaving"] {
            for backend in json["services"][0][list].as_array_mut().unwrap() {
                backend.as_object_mut().unwrap().retain(|key, _| !key.starts_with("drain"));
            }
        }
        status.flows = FlowStatus::default();
        status.controller.guard.clear();
        for backend in status.services.iter_mut().flat_map(|s| s.backends.iter_mut().chain(&mut s.leaving)) {
            (backend.draining_s, backend.drain_left_s) = (None, None);
        }
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }

    #[test]
    fn an_unknown_administrative_state_is_refused_by_name() {
        let error =
            serde_json::from_str::<AdminReply>(r#"{"changed":true,"state":"gone","notes":[]}"#).unwrap_err();
        assert!(error.to_string().contains("unknown variant `gone`"), "{error}");
    }
}
