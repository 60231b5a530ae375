//! What is planned: files of any size, and an engine that knows the way to all of their backends.
//!
//! `benches/pure.rs` includes this file, too.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use lb_userspace::{
    config::{self, spec::Spec},
    controller::engine::Engine,
    dataplane::Dataplane,
    health::Health,
    net::{NextHop, NextHopState},
    plan::ring::{Identity, Member},
};

/// The default size of a ring.
pub const RING: u32 = 65_537;

/// Members of a ring, of equal weights.
pub fn members(count: u32) -> Vec<Member> {
    let member = |n: u32| Member {
        id: 1 + n as u16,
        identity: Identity { address: address(n), port: None },
        weight: 100,
    };
    (0..count).map(member).collect()
}

/// A file of one service with so many backends, `b0` and on, and a ring of [`RING`] slots.
pub fn one_service(backends: u32) -> String {
    let mut text = String::from(
        "interfaces: [lo]\nadmin: {listen: off}\nservices:\n- name: web\n  listen: [\"192.0.2.10:80/tcp\"]\n  \
         forward: l2\n  health: {type: none}\n  backends:\n",
    );
    for n in 0..backends {
        let _ = writeln!(text, "  - {{name: b{n}, address: {}}}", address(n));
    }
    text
}

/// Addresses of [`thousand_by_ten`]'s backends.
pub const TEN: [Ipv4Addr; 10] = {
    let mut ten = [Ipv4Addr::UNSPECIFIED; 10];
    let mut n = 0;
    while n < 10 {
        ten[n as usize] = Ipv4Addr::new(10, 88, 0, 20 + n);
        n += 1;
    }
    ten
};

/// A file of 1,000 services with ten backends each, rings of 4,093 slots; one backend of the last has this weight.
pub fn thousand_by_ten(weight: u32) -> String {
    let mut text = String::from(
        "interfaces: [eth0]\nadmin: {listen: off}\nlimits: {services: 4096, backends: 16384}\n\
         defaults: {forward: l2, ring_size: 4093, health: {type: none}}\nservices:\n",
    );
    for service in 0..1000 {
        let (c, d) = (service / 250, 1 + service % 250);
        let _ = write!(text, "- name: s{service}\n  listen: [\"198.18.{c}.{d}:80/tcp\"]\n  backends:\n");
        for (n, address) in TEN.iter().enumerate() {
            let _ = match (service, n) {
                (999, 0) => writeln!(text, "  - {{name: b0, address: {address}, weight: {weight}}}"),
                _ => writeln!(text, "  - {{name: b{n}, address: {address}}}"),
            };
        }
    }
    text
}

/// The file as the controller wants it.
///
/// # Panics
/// If it is not valid.
pub fn spec(text: &str) -> Arc<Spec> {
    let loaded = config::parse(text, Path::new("bench.yaml")).unwrap_or_else(|e| panic!("{e}"));
    Arc::new(loaded.spec)
}

/// An engine over empty maps that knows the way to all backends, and that they are up.
pub fn engine(spec: Arc<Spec>, dataplane: Box<dyn Dataplane>) -> Engine {
    /// `lo`, which is everywhere.
    const LO: u32 = 1;
    let mut engine = Engine::new(spec, dataplane);
    engine.set_devices(BTreeMap::from([(LO, "lo".to_owned())]));
    let backends: Vec<_> =
        engine.known().probed().into_iter().map(|(_, key, address)| (key, address)).collect();
    let next_hop = NextHop {
        ifindex: LO,
        interface: "lo".into(),
        mac: [2, 0xaa, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 1],
        source: Ipv4Addr::new(10, 255, 0, 2).into(),
        mtu: 1500,
        gateway: None,
    };
    let next_hops = backends.iter().map(|(_, a)| (*a, NextHopState::Resolved(next_hop.clone())));
    engine.set_next_hops(next_hops.collect());
    for (backend, _) in backends {
        engine.set_health(backend, Health::Up);
    }
    engine
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a09_0001 + n).into()
}
