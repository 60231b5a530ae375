//! What `xlb status --json` says, read by name.

use serde_json::Value;

/// A whole status; the value itself for what has no method here.
#[derive(Debug, Clone, PartialEq)]
pub struct Status(pub Value);

/// One backend of a status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `active`, `drain` or `disabled`.
    pub state: String,
    /// `up`, `down` or `unknown`.
    pub health: String,
    /// Why, in HAProxy's words.
    pub reason: String,
    /// Slots that it is current in.
    pub slots: u64,
    /// New connections sent to it.
    pub connections: u64,
    /// Packets sent to it.
    pub packets: u64,
    /// Pins to it.
    pub pins: u64,
}

impl Status {
    /// The backends of a service in the file's order; none if there is no such service.
    pub fn backends(&self, service: &str) -> Vec<Backend> {
        let list = self.service(service).and_then(|service| service["backends"].as_array());
        list.into_iter().flatten().map(backend).collect()
    }

    /// One backend.
    pub fn backend(&self, service: &str, name: &str) -> Option<Backend> {
        self.backends(service).into_iter().find(|backend| backend.name == name)
    }

    /// Whether the backend exists with this health.
    pub fn has_health(&self, service: &str, name: &str, health: &str) -> bool {
        self.backend(service, name).is_some_and(|backend| backend.health == health)
    }

    /// A number of a service, such as `pins`, `moving_slots` or `connections`; 0 when it is not there.
    pub fn number(&self, service: &str, key: &str) -> u64 {
        self.service(service).and_then(|service| service[key].as_u64()).unwrap_or(0)
    }

    /// A service's `table_checksum`: what the ring is, in one word.
    pub fn checksum(&self, service: &str) -> Option<&str> {
        self.service(service)?["table_checksum"].as_str()
    }

    /// The backends that have left the file and still have connections.
    pub fn leaving(&self, service: &str) -> Vec<Backend> {
        let list = self.service(service).and_then(|service| service["leaving"].as_array());
        list.into_iter().flatten().map(backend).collect()
    }

    /// A service's own object.
    pub fn service(&self, name: &str) -> Option<&Value> {
        self.0["services"].as_array()?.iter().find(|service| service["name"] == name)
    }

    /// The first service's name.
    pub fn first_service(&self) -> Option<&str> {
        self.0["services"][0]["name"].as_str()
    }

    /// How often the configuration in force has changed.
    pub fn generation(&self) -> u64 {
        self.0["config"]["generation"].as_u64().unwrap_or(0)
    }

    /// What was wrong with the last reload.
    pub fn last_error(&self) -> Option<&str> {
        self.0["config"]["last_error"].as_str()
    }

    /// A counter of `outcomes`; 0 when it is not there.
    pub fn outcome(&self, name: &str) -> u64 {
        self.0["outcomes"][name].as_u64().unwrap_or(0)
    }
}

fn backend(value: &Value) -> Backend {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| value[key].as_u64().unwrap_or(0);
    Backend {
        name: text("name"),
        address: text("address"),
        state: text("state"),
        health: text("health"),
        reason: text("reason"),
        slots: number("slots"),
        connections: number("connections"),
        packets: number("packets"),
        pins: number("pins"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_by_name() {
        let status = Status(serde_json::json!({
            "config": {"generation": 4, "last_error": null},
            "services": [{"name": "web", "pins": 5, "table_checksum": "1f", "leaving": [{"name": "s4"}], "backends": [
                {"name": "s1", "health": "up", "reason": "L7OK 200", "slots": 7},
                {"name": "s2", "health": "down", "reason": "L4CON"}]}],
            "outcomes": {"forwarded": 9}
        }));
        assert_eq!(status.generation(), 4);
        assert_eq!(status.last_error(), None);
        assert_eq!(status.backend("web", "s1").unwrap().slots, 7);
        assert!(status.has_health("web", "s2", "down"));
        assert!(!status.has_health("web", "s3", "down") && !status.has_health("dns", "s2", "down"));
        assert_eq!(status.outcome("forwarded"), 9);
        assert_eq!((status.number("web", "pins"), status.number("dns", "pins")), (5, 0));
        assert_eq!((status.checksum("web"), status.checksum("dns")), (Some("1f"), None));
        assert_eq!(status.leaving("web")[0].name, "s4");
    }
}
