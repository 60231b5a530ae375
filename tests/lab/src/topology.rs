//! The network: who is where, and which wires run between them.
//!
//! ```text
//!  one bridge                         servers_behind
//!  client .2 --+                      client .2 ----+-- br0 (.1) == router == br1 (.1) --+-- s1 .11
//!              +-- bridge --+-- s1    balancer .5 --+                                    +-- s2 .12
//!  balancer .5 +            +-- s2    balancer eth1 .5 ---------------------------- br1 -+
//!
//! pair
//! client .2 ----- br0 (.1) == router == br1 (.1) --+-- balancer .5, balancer2 .6
//!                                                  +-- s1 .11, s2 .12
//! ```
//!
//! The bridge side is 10.88.0.0/24 and fd88::/64, the second one 10.89.0.0/24 and fd89::/64. The client reaches the
//! service addresses by a route over the balancer; servers have them on `lo`, without ARP, and answer the client
//! directly. The balancer forwards nothing by itself. With a pair, the router has that route, to either or both.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    device::{PassLink, checksum_offload_off},
    netns::{Netns, unique},
    process::{output_text, run_ip},
};

/// The service's IPv4 address in `config/lab.yaml` and in [`TopologyConfig::default`].
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The service's IPv6 address.
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// The last number of the addresses of fixed roles; server N has 10 + N.
const ROUTER: u16 = 1;
const CLIENT: u16 = 2;
const BALANCER: u16 = 5;
/// Servers are 10.x.0.11 to 10.x.0.99.
const MOST_SERVERS: usize = 89;

/// Of the switch when it routes. Hash policy 1: the next hop is chosen by addresses and ports, not by addresses alone.
const ROUTER_SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    ("net/ipv6/fib_multipath_hash_policy", "1"),
];

/// How packets get from the balancer to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forward {
    /// By MAC address.
    #[default]
    L2,
    /// IP in IP: the client's MTU leaves room, and servers need a decapsulator (see [`TopologyConfig::decap`]).
    Ipip,
}

/// What network to build.
#[derive(Debug, Clone)]
pub struct TopologyConfig {
    /// How many servers; named `s1`, `s2`, ...
    pub servers: usize,
    /// The addresses that the balancer serves.
    pub services: Vec<IpAddr>,
    /// Servers are behind the balancer's second interface `eth1` and answer over a router.
    pub servers_behind: bool,
    /// Two balancers beside the servers, and the client behind a router that chooses between them
    /// ([`Topology::set_next_hops`]). Not together with `servers_behind`.
    pub pair: bool,
    /// How packets get to a server.
    pub forward: Forward,
    /// With `ipip`: program and arguments to run on every server, e.g. `xlb decap --interface eth0`.
    pub decap: Option<Vec<String>>,
}

impl Default for TopologyConfig {
    fn default() -> Self {
        Self {
            servers: 3,
            services: vec![SERVICE_V4.into(), SERVICE_V6.into()],
            servers_behind: false,
            pair: false,
            forward: Forward::L2,
            decap: None,
        }
    }
}

/// One host on a bridge.
#[derive(Debug)]
pub struct Host {
    /// Its namespace; its interface there is `eth0`.
    pub netns: Netns,
    /// Its name: `client`, `balancer`, `s1`, ...
    pub name: String,
    /// Its own addresses.
    pub v4: Ipv4Addr,
    /// Its own addresses.
    pub v6: Ipv6Addr,
}

/// The network, removed on drop.
#[derive(Debug)]
pub struct Topology {
    // Programs before namespaces: fields are dropped in order.
    _pass: Vec<PassLink>,
    config: TopologyConfig,
    group: u32,
    switch: Netns,
    client: Host,
    balancers: Vec<Host>,
    servers: Vec<Host>,
}

impl Topology {
    /// Builds it.
    pub fn build(config: TopologyConfig) -> Result<Self> {
        if !crate::is_root() {
            bail!("network namespaces need root: run it with sudo");
        }
        let group = unique();
        let switch = Netns::create(group, "switch")?;
        let mut lines = bridge_lines(0);
        if config.has_router() {
            lines += &bridge_lines(1);
            switch.sysctl(&ROUTER_SETTINGS)?;
        }
        switch.ip_batch(&lines)?;
        let client = host(group, &switch, "client", 0, CLIENT)?;
        let mut balancers = vec![host(group, &switch, "balancer", u16::from(config.pair), BALANCER)?];
        if config.pair {
            balancers.push(host(group, &switch, "balancer2", 1, BALANCER + 1)?);
            // XDP sees frames for any MAC. A network card drops others' frames; here the switch keeps them away, as the
            // frames for a lost balancer would otherwise be flooded to, and served by, the other one.
            let no_flood =
                |host: &Host| format!("link set {} type bridge_slave flood off\n", port(&host.name));
            switch.ip_batch(&balancers.iter().map(no_flood).collect::<String>())?;
        }
        let attach = |balancer: &Host| PassLink::attach(&switch, &port(&balancer.name));
        let mut pass = balancers.iter().map(attach).collect::<Result<Vec<_>>>()?;
        // Without txrehash 0 a sender that loses a packet has the router choose anew: a veth keeps the sender's hash,
        // which no wire does.
        client.sysctl_of_host(&[("net/ipv4/ip_local_port_range", "10000 65000")])?;
        client.netns.ip_batch(&client_lines(&config))?;
        if config.servers_behind {
            connect(&balancers[0].netns, &switch, "eth1", "p-balancer1", 1, BALANCER)?;
            pass.push(PassLink::attach(&switch, "p-balancer1")?);
        }
        let (servers, pair) = (config.servers, config.pair);
        let mut topology =
            Self { _pass: pass, config, group, switch, client, balancers, servers: Vec::new() };
        for _ in 0..servers {
            topology.add_server()?;
        }
        if pair {
            topology.set_next_hops(&["balancer"])?;
        }
        Ok(topology)
    }

    /// Adds the next server (`s4` after three) and returns its name. Nothing runs on it yet.
    pub fn add_server(&mut self) -> Result<String> {
        let number = self.servers.len() + 1;
        if number > MOST_SERVERS {
            bail!("at most {MOST_SERVERS} servers");
        }
        let bridge = u16::from(self.config.has_router());
        let name = format!("s{number}");
        let server = host(self.group, &self.switch, &name, bridge, 10 + number as u16)?;
        // arp_ignore 1: the service's address on lo is not answered for; arp_announce 2: nor asked with.
        server.sysctl_of_host(&[
            ("net/ipv4/conf/all/arp_ignore", "1"),
            ("net/ipv4/conf/all/arp_announce", "2"),
            ("net/core/somaxconn", "4096"),
        ])?;
        server.netns.ip_batch(&server_lines(&self.config))?;
        self.servers.push(server);
        Ok(name)
    }

    /// The client.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// The balancer, of a pair the first; its interface is `eth0`, and `eth1` with `servers_behind`.
    pub fn balancer(&self) -> &Host {
        &self.balancers[0]
    }

    /// All balancers: `balancer`, and `balancer2` of a pair.
    pub fn balancers(&self) -> &[Host] {
        &self.balancers
    }

    /// The servers, `s1` first.
    pub fn servers(&self) -> &[Host] {
        &self.servers
    }

    /// The switch, with a port `p-<host>` for each host.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// What was asked for.
    pub fn config(&self) -> &TopologyConfig {
        &self.config
    }

    /// A host by name: `client`, `balancer`, `s1`, ...
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts().find(|host| host.name == name).with_context(|| {
            format!("no host {name}: there are client, balancer and s1 to s{}", self.servers.len())
        })
    }

    /// Drops everything to and from a host, silently: its link stays up, nobody is told.
    pub fn cut(&self, name: &str) -> Result<()> {
        self.port_state(name, "disabled", "0")
    }

    /// Undoes [`Self::cut`].
    pub fn uncut(&self, name: &str) -> Result<()> {
        self.port_state(name, "forwarding", "3")
    }

    /// Pulls a host's cable out: its own end and the switch's port see that the carrier is gone.
    pub fn unplug(&self, name: &str) -> Result<()> {
        let port = port(&self.host(name)?.name);
        self.switch.ip_batch(&format!("link set {port} down\n"))
    }

    /// Lets the router of a pair send what is for the service to these balancers; by the flow, if there are several.
    pub fn set_next_hops(&self, balancers: &[&str]) -> Result<()> {
        if !self.config.pair {
            bail!("this network has no router between the client and the balancers");
        }
        let hosts = balancers.iter().map(|name| self.host(name)).collect::<Result<Vec<_>>>()?;
        let mut lines = String::new();
        for service in &self.config.services {
            let _ = write!(lines, "route replace {service}");
            for Host { v4, v6, .. } in &hosts {
                let _ = match service {
                    IpAddr::V4(_) => write!(lines, " nexthop via {v4}"),
                    IpAddr::V6(_) => write!(lines, " nexthop via {v6}"),
                };
            }
            lines.push('\n');
        }
        self.switch.ip_batch(&lines)
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.client].into_iter().chain(&self.balancers).chain(&self.servers)
    }

    fn port_state(&self, name: &str, state: &str, number: &str) -> Result<()> {
        let port = port(&self.host(name)?.name);
        let out = output_text(
            "bridge",
            &["-netns", self.switch.name(), "link", "set", "dev", &port, "state", number],
        );
        if !out.is_empty() {
            bail!("set switch port {port} {state}: {}", out.trim());
        }
        Ok(())
    }

    /// Addresses, ports and neighbours, for whoever looks into a failed test.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let ports = output_text("bridge", &["-netns", self.switch.name(), "link"]);
        let _ = writeln!(text, "--- switch {}\n{ports}", self.switch.name());
        for Host { netns, name, .. } in self.hosts() {
            let addresses = output_text("ip", &["-netns", netns.name(), "-brief", "address"]);
            let neighbours = output_text("ip", &["-netns", netns.name(), "neighbour"]);
            let links = output_text("ip", &["-netns", netns.name(), "-stats", "link", "show", "eth0"]);
            let _ = writeln!(text, "--- {name} {}\n{addresses}{neighbours}{links}", netns.name());
        }
        text
    }
}

impl TopologyConfig {
    /// Whether the switch is a router between two bridges.
    fn has_router(&self) -> bool {
        self.servers_behind || self.pair
    }
}

impl Host {
    /// Settings that every host has, and `more`.
    fn sysctl_of_host(&self, more: &[(&str, &str)]) -> Result<()> {
        let common = [("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/eth0/rp_filter", "0")];
        self.netns.sysctl(&[&common, more].concat())
    }
}

/// The switch's port of a host.
fn port(host: &str) -> String {
    format!("p-{host}")
}

/// Address `last` of bridge 0 or 1.
fn v4(bridge: u16, last: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 88 + bridge as u8, 0, last as u8)
}

/// Likewise; `last` is written as in IPv4 (`.11` and `::11`), so its digits are hexadecimal here.
fn v6(bridge: u16, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd88 + bridge, 0, 0, 0, 0, 0, 0, (last / 10) * 16 + last % 10)
}

fn bridge_lines(bridge: u16) -> String {
    let (v4, v6) = (v4(bridge, ROUTER), v6(bridge, ROUTER));
    // A group forward delay of 0: ports forward at once.
    format!(
        "link add br{bridge} type bridge forward_delay 0 mcast_snooping 0\nlink set br{bridge} up\n\
         address add {v4}/24 dev br{bridge}\naddress add {v6}/64 dev br{bridge} nodad\n"
    )
}

fn client_lines(config: &TopologyConfig) -> String {
    let mut lines = String::new();
    let first = if config.pair { ROUTER } else { BALANCER };
    for service in &config.services {
        let _ = match service {
            IpAddr::V4(to) => writeln!(lines, "route add {to}/32 via {}", v4(0, first)),
            IpAddr::V6(to) => writeln!(lines, "route add {to}/128 via {}", v6(0, first)),
        };
    }
    if config.has_router() {
        let _ = writeln!(lines, "route add 10.89.0.0/24 via {}", v4(0, ROUTER));
        let _ = writeln!(lines, "route add fd89::/64 via {}", v6(0, ROUTER));
    }
    if config.forward == Forward::Ipip {
        // Room for an outer IPv6 header, in both directions: the segment size is agreed on.
        lines += "link set eth0 mtu 1440\n";
    }
    lines
}

fn server_lines(config: &TopologyConfig) -> String {
    let mut lines = String::new();
    for service in &config.services {
        let _ = match service {
            IpAddr::V4(address) => writeln!(lines, "address add {address}/32 dev lo"),
            IpAddr::V6(address) => writeln!(lines, "address add {address}/128 dev lo nodad"),
        };
    }
    if config.has_router() {
        let _ = writeln!(lines, "route add default via {}", v4(1, ROUTER));
        let _ = writeln!(lines, "route add default via {}", v6(1, ROUTER));
    }
    lines
}

/// A namespace with `eth0` on a bridge.
fn host(group: u32, switch: &Netns, name: &str, bridge: u16, last: u16) -> Result<Host> {
    let netns = Netns::create(group, name)?;
    connect(&netns, switch, "eth0", &port(name), bridge, last)?;
    Ok(Host { netns, name: name.into(), v4: v4(bridge, last), v6: v6(bridge, last) })
}

/// A wire from a host's `device` to the switch's `port`.
fn connect(host: &Netns, switch: &Netns, device: &str, port: &str, bridge: u16, last: u16) -> Result<()> {
    run_ip(&[
        "link",
        "add",
        device,
        "netns",
        host.name(),
        "type",
        "veth",
        "peer",
        "name",
        port,
        "netns",
        switch.name(),
    ])?;
    checksum_offload_off(host, device)?;
    checksum_offload_off(switch, port)?;
    switch.ip_batch(&format!("link set {port} master br{bridge}\nlink set {port} up\n"))?;
    host.ip_batch(&format!(
        "address add {}/24 dev {device}\naddress add {}/64 dev {device} nodad\nlink set {device} up\n",
        v4(bridge, last),
        v6(bridge, last)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_read_the_same() {
        assert_eq!(v4(0, 11).to_string(), "10.88.0.11");
        assert_eq!(v6(0, 11).to_string(), "fd88::11");
        assert_eq!(v6(1, 99).to_string(), "fd89::99");
    }
}
