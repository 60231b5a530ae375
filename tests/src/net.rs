//! Labs with the real `xlb` in them.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_lab::{ConfigSource, Forward, Lab, LabConfig, ServerProgram, Status, TopologyConfig, wait_for};

/// The xlb under test: `XLB_BIN`, set by `cargo xtask test`, else the one in the target directory.
pub fn xlb() -> PathBuf {
    std::env::var_os("XLB_BIN").map_or_else(
        || {
            lb_lab::beside_this_binary("xlb", "build it with `cargo xtask build`")
                .unwrap_or_else(|e| panic!("{e:#}"))
        },
        PathBuf::from,
    )
}

/// A lab running xlb on this configuration.
pub fn lab(topology: TopologyConfig, config: &str) -> Lab {
    let server = ServerProgram::beside().unwrap_or_else(|e| panic!("{e:#}"));
    let xlb = Some((xlb(), ConfigSource::Text(config.to_owned())));
    Lab::start(LabConfig { topology, xlb, ..LabConfig::new(server) }).unwrap_or_else(|e| panic!("{e:#}"))
}

/// A topology whose servers unwrap IP-in-IP with the product's own command.
pub fn ipip() -> TopologyConfig {
    let decap = [xlb().display().to_string(), "decap".into(), "--interface".into(), "eth0".into()];
    TopologyConfig { forward: Forward::Ipip, decap: Some(decap.to_vec()), ..TopologyConfig::default() }
}

/// What varies between the configurations of the tests.
#[derive(Debug, Clone)]
pub struct Config {
    /// `l2` or `ipip`.
    pub forward: &'static str,
    /// The interfaces.
    pub interfaces: &'static str,
    /// Name, address and further keys (`, weight: 200`) of each backend.
    pub backends: Vec<(String, String, String)>,
}

impl Config {
    /// Backends `s1` to `s<n>` at their addresses in the lab: `network` is `10.88.0.` or `fd88::`.
    pub fn new(network: &str, backends: usize) -> Self {
        let backend = |n| (format!("s{n}"), format!("{network}{}", 10 + n), String::new());
        Self { forward: "l2", interfaces: "[eth0]", backends: (1..=backends).map(backend).collect() }
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = format!(
            "interfaces: {}
admin: {{listen: off}}
services:
  - name: web
    listen:
      - 192.0.2.10:80/tcp
      - \"[2001:db8::10]:80/tcp\"
      - 192.0.2.10:7/tcp
      - \"[2001:db8::10]:7/tcp\"
      - 192.0.2.10:7/udp
      - \"[2001:db8::10]:7/udp\"
    forward: {}
    health: {{type: http, path: /healthz, port: 80, interval: 200ms, timeout: 200ms, fall: 2, rise: 2}}
    backends:
",
            self.interfaces, self.forward
        );
        for (name, address, more) in &self.backends {
            text += &format!("      - {{name: {name}, address: \"{address}\"{more}}}\n");
        }
        text
    }
}

/// Waits until `status` says so; panics with the last one if it does not in time. Answers how long it took.
pub fn wait_status(lab: &Lab, limit: Duration, what: &str, holds: impl Fn(&Status) -> bool) -> Duration {
    let start = Instant::now();
    wait_for(limit, || lab.status().ok().filter(|s| holds(s)))
        .unwrap_or_else(|| panic!("not within {limit:?}: {what}; status: {:?}", lab.status()));
    start.elapsed()
}
