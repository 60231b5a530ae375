//! A small random world: a configuration and what is known of its servers, changed step by step.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use lb_userspace::{
    config::{
        parse,
        spec::{
            AdminState, BackendSpec, Forward, HashMode, Limits, OnAllDown, Ports, Protocol, ServiceSpec, Spec,
        },
    },
    health::{BackendRef, Health},
    net::{NextHop, NextHopState, Unreachable},
    plan::compile::{CapacityError, Compiled, Compiler, Knowledge, Route},
};
use proptest::prelude::*;

/// Small, so that ids, room for rings and keys run short now and then.
pub const LIMITS: Limits = Limits { services: 14, backends: 18, slots: 900, flows: 1024 };
const RING_SIZES: [u32; 3] = [31, 101, 211];

/// One event.
#[derive(Debug, Clone)]
pub enum Change {
    /// The service comes or goes.
    Service(u8),
    /// The backend comes or goes.
    Backend(u8, u8),
    Weight(u8, u8, u32),
    State(u8, u8, AdminState),
    Health(u8, u8),
    /// The next hop of a server of all services: the last byte of its MAC and its device, or none.
    NextHop(u8, Option<(u8, u32)>),
    /// The interface comes or goes.
    Device(u32),
    RingSize(u8, usize),
    Listen(u8, u8),
    /// What else a service can change.
    Flavour(u8, bool, bool, bool),
    Seed(u32),
    /// The lists of the file in reverse order.
    Order,
    Seconds(u64),
}

/// Any change, the everyday ones more often.
pub fn change() -> impl Strategy<Value = Change> {
    let (s, b) = (0..3u8, 0..6u8);
    let state = prop_oneof![Just(AdminState::Active), Just(AdminState::Drain), Just(AdminState::Disabled)];
    let hop = proptest::option::weighted(0.7, (0..3u8, 2..4u32));
    prop_oneof![
        3 => s.clone().prop_map(Change::Service),
        4 => (s.clone(), b.clone()).prop_map(|(s, b)| Change::Backend(s, b)),
        1 => (s.clone(), b.clone(), 1..300u32).prop_map(|(s, b, w)| Change::Weight(s, b, w)),
        2 => (s.clone(), b.clone(), state).prop_map(|(s, b, state)| Change::State(s, b, state)),
        5 => (s.clone(), b.clone()).prop_map(|(s, b)| Change::Health(s, b)),
        2 => (b.clone(), hop).prop_map(|(b, hop)| Change::NextHop(b, hop)),
        1 => (2..4u32).prop_map(Change::Device),
        2 => (s.clone(), 0..RING_SIZES.len()).prop_map(|(s, size)| Change::RingSize(s, size)),
        2 => (s.clone(), 0..4u8).prop_map(|(s, l)| Change::Listen(s, l)),
        1 => (s, any::<[bool; 3]>()).prop_map(|(s, [a, b, c])| Change::Flavour(s, a, b, c)),
        1 => (0..3u32).prop_map(Change::Seed),
        1 => Just(Change::Order),
        3 => (1..90u64).prop_map(Change::Seconds),
    ]
}

/// A world, and its clock.
#[derive(Debug, Clone)]
pub struct World {
    pub spec: Spec,
    pub down: BTreeSet<BackendRef>,
    pub hops: BTreeMap<IpAddr, (u8, u32)>,
    pub devices: BTreeSet<u32>,
    pub now: Instant,
}

static TEMPLATE: LazyLock<Spec> = LazyLock::new(|| {
    let text = "interfaces: [eth0]\nservices:\n- name: s0\n  listen: ['192.0.2.10:80/tcp']\n  forward: l2\n  \
                ring_size: 101\n  backends: [{name: b0, address: 10.0.0.10}]\n";
    let spec = parse(text, Path::new("template.yaml")).expect("valid").spec;
    Spec { limits: LIMITS, ..spec }
});

impl World {
    /// No service; everything can be reached and is up.
    pub fn new() -> Self {
        Self {
            spec: Spec { services: Vec::new(), ..TEMPLATE.clone() },
            down: BTreeSet::new(),
            hops: (0..6).map(|b| (address(b), (1, 2 + u32::from(b % 2)))).collect(),
            devices: BTreeSet::from([2, 3]),
            now: Instant::now(),
        }
    }

    /// The world after a change; one of what is not there changes nothing.
    pub fn change(&mut self, change: &Change) {
        match *change {
            Change::Service(s) => self.toggle_service(s),
            Change::Backend(s, b) => self.with_service(s, |service| toggle_backend(service, b)),
            Change::Weight(s, b, weight) => self.with_backend(s, b, |backend| backend.weight = weight),
            Change::State(s, b, state) => self.with_backend(s, b, |backend| backend.state = state),
            Change::Health(s, b) => {
                let key = BackendRef {
                    service: format!("s{s}").as_str().into(),
                    backend: format!("b{b}").as_str().into(),
                };
                if !self.down.remove(&key) {
                    self.down.insert(key);
                }
            }
            Change::NextHop(b, Some(hop)) => drop(self.hops.insert(address(b), hop)),
            Change::NextHop(b, None) => drop(self.hops.remove(&address(b))),
            Change::Device(ifindex) => {
                if !self.devices.remove(&ifindex) {
                    self.devices.insert(ifindex);
                }
            }
            Change::RingSize(s, size) => self.with_service(s, |service| service.ring_size = RING_SIZES[size]),
            Change::Listen(s, which) => self.with_service(s, |service| listen(service, s, which)),
            Change::Flavour(s, use_all, client, ipip) => self.with_service(s, |service| {
                service.on_all_down = if use_all { OnAllDown::UseAll } else { OnAllDown::Reject };
                service.hash = if client { HashMode::Client } else { HashMode::Flow };
                service.forward = if ipip { Forward::Ipip } else { Forward::L2 };
            }),
            Change::Seed(seed) => self.spec.hash_seed = seed,
            Change::Order => self.reverse(),
            Change::Seconds(seconds) => self.now += Duration::from_secs(seconds),
        }
    }

    /// The same, in another order.
    pub fn reverse(&mut self) {
        self.spec.services.reverse();
        for service in &mut self.spec.services {
            service.backends.reverse();
        }
    }

    fn toggle_service(&mut self, s: u8) {
        let name: Arc<str> = format!("s{s}").as_str().into();
        let count = self.spec.services.len();
        self.spec.services.retain(|service| service.name != name);
        if self.spec.services.len() == count {
            let mut service = ServiceSpec { name, ..TEMPLATE.services[0].clone() };
            service.backends.clear();
            (0..3).for_each(|b| toggle_backend(&mut service, b));
            listen(&mut service, s, 0);
            self.spec.services.push(service);
        }
    }

    fn with_service(&mut self, s: u8, change: impl FnOnce(&mut ServiceSpec)) {
        let name = format!("s{s}");
        if let Some(service) = self.spec.services.iter_mut().find(|service| *service.name == *name) {
            change(service);
        }
    }

    fn with_backend(&mut self, s: u8, b: u8, change: impl FnOnce(&mut BackendSpec)) {
        let address = address(b);
        self.with_service(s, |service| {
            if let Some(backend) = service.backends.iter_mut().find(|backend| backend.address == address) {
                change(backend);
            }
        });
    }

    /// What is known of a backend.
    pub fn knowledge(&self, service: &ServiceSpec, backend: &BackendSpec) -> Knowledge {
        let route = self.hops.get(&backend.address).filter(|(_, ifindex)| self.devices.contains(ifindex));
        Knowledge {
            admin: backend.state,
            is_up: !self.down.contains(&key(service, backend)),
            route: route.map(|(mac, ifindex)| Route {
                ifindex: *ifindex,
                next_hop: [2, 0, 0, 0, 0, *mac],
                own: [2, 0, 0, 0, 1, *ifindex as u8],
                outer_source: source(backend.address),
            }),
        }
    }

    /// The tables for it.
    pub fn compile(&self, compiler: &mut Compiler) -> Result<Compiled, CapacityError> {
        compiler.compile(&self.spec, &self.devices, &|s, b| self.knowledge(s, b), self.now)
    }

    /// Health as the engine is told.
    pub fn health(&self) -> Vec<(BackendRef, Health)> {
        let backends = self.spec.services.iter().flat_map(|s| s.backends.iter().map(move |b| key(s, b)));
        let health = |key: &BackendRef| if self.down.contains(key) { Health::Down } else { Health::Up };
        backends.map(|key| (key.clone(), health(&key))).collect()
    }

    /// Next hops as the engine is told.
    pub fn next_hops(&self) -> BTreeMap<IpAddr, NextHopState> {
        let state = |b: u8| match self.hops.get(&address(b)) {
            None => NextHopState::Unreachable(Unreachable::NoRoute),
            Some((mac, ifindex)) => NextHopState::Resolved(NextHop {
                ifindex: *ifindex,
                interface: format!("eth{ifindex}"),
                mac: [2, 0, 0, 0, 0, *mac],
                source_mac: [2, 0, 0, 0, 1, *ifindex as u8],
                source: source(address(b)),
                mtu: 1500,
                gateway: None,
            }),
        };
        (0..6).map(|b| (address(b), state(b))).collect()
    }
}

/// Names a backend.
pub fn key(service: &ServiceSpec, backend: &BackendSpec) -> BackendRef {
    BackendRef { service: Arc::clone(&service.name), backend: Arc::clone(&backend.name) }
}

/// Of server `b`: every third has IPv6.
fn address(b: u8) -> IpAddr {
    if b % 3 == 2 {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(b)])
    } else {
        [10, 0, 0, 10 + b].into()
    }
}

fn source(of: IpAddr) -> IpAddr {
    if of.is_ipv6() { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0xff]) } else { [10, 0, 0, 1].into() }
}

/// A service keeps its last backend.
fn toggle_backend(service: &mut ServiceSpec, b: u8) {
    let address = address(b);
    if !service.backends.iter().any(|backend| backend.address == address) {
        let name = format!("b{b}").as_str().into();
        service.backends.push(BackendSpec { name, address, ..TEMPLATE.services[0].backends[0].clone() });
    } else if service.backends.len() > 1 {
        service.backends.retain(|backend| backend.address != address);
    }
}

/// No two services listen on the same, whatever each chooses; they share an address.
fn listen(service: &mut ServiceSpec, s: u8, which: u8) {
    let one =
        |address: IpAddr, ports, protocol| lb_userspace::config::spec::Listen { address, ports, protocol };
    let (shared4, port) = (IpAddr::from([192, 0, 2, 10]), 80 + u16::from(s));
    let shared6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10]);
    service.listen = match which {
        0 => vec![one(shared4, Ports::Range(port, port), Protocol::Tcp)],
        1 => vec![
            one(shared4, Ports::Range(port, port), Protocol::Tcp),
            one(shared6, Ports::Range(port, port), Protocol::Udp),
        ],
        2 => vec![one(shared4, Ports::Range(100 * port, 100 * port + 3), Protocol::Udp)],
        _ => vec![one([192, 0, 2, 100 + s].into(), Ports::Any, Protocol::Tcp)],
    };
}
