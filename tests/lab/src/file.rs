//! The configuration files of tests: one service `web` over the lab's servers.

use std::fmt::Write as _;

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendLine {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its weight.
    pub weight: u32,
    /// `active`, `drain` or `disabled`.
    pub state: &'static str,
}

/// A file, to be changed and written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// More keys of the file, a line each: `hash_seed: 9`.
    pub keys: Vec<String>,
    /// More keys of the service, a line each: `tracking: never`.
    pub service_keys: Vec<String>,
    /// The service's backends.
    pub backends: Vec<BackendLine>,
    /// More services, each as it stands in the file.
    pub services: Vec<String>,
}

impl ConfigFile {
    /// Backends `s1` to `s<n>` at their addresses in the lab: `network` is `10.88.0.`, behind a router `10.89.0.`.
    ///
    /// A server's death is known after about half a second.
    pub fn new(network: &str, backends: u32) -> Self {
        let backend = |n| BackendLine {
            name: format!("s{n}"),
            address: format!("{network}{}", 10 + n),
            weight: 100,
            state: "active",
        };
        let backends = (1..=backends).map(backend).collect();
        Self { keys: Vec::new(), service_keys: Vec::new(), backends, services: Vec::new() }
    }

    /// The same with one more key of the service.
    #[must_use]
    pub fn with(mut self, service_key: &str) -> Self {
        self.service_keys.push(service_key.to_owned());
        self
    }

    /// The same with one more key of the file.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.keys.push(key.to_owned());
        self
    }

    /// A backend by name, to be changed; it must be there.
    pub fn backend(&mut self, name: &str) -> &mut BackendLine {
        let found = self.backends.iter_mut().find(|backend| backend.name == name);
        found.unwrap_or_else(|| panic!("no backend {name} in the file"))
    }

    /// What to write.
    pub fn text(&self) -> String {
        let mut text = String::from("interfaces: [eth0]\nadmin: {listen: off}\n");
        for key in &self.keys {
            let _ = writeln!(text, "{key}");
        }
        text += "services:
  - name: web
    listen:
      - 192.0.2.10:80/tcp
      - \"[2001:db8::10]:80/tcp\"
      - 192.0.2.10:7/tcp
      - \"[2001:db8::10]:7/tcp\"
    forward: l2
    health: {type: http, path: /healthz, port: 80, interval: 200ms, timeout: 200ms, fall: 2, rise: 2}
";
        for key in &self.service_keys {
            let _ = writeln!(text, "    {key}");
        }
        text += "    backends:\n";
        for BackendLine { name, address, weight, state } in &self.backends {
            let _ = writeln!(
                text,
                "      - {{name: {name}, address: \"{address}\", weight: {weight}, state: {state}}}"
            );
        }
        for service in &self.services {
            let _ = writeln!(text, "  - {service}");
        }
        text
    }
}
