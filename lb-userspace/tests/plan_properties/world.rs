//! A small random world: a configuration and what is known of its servers, changed step by step.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use lb_common::{
    flow::{FlowKey, Pin, SWEEP_DELETED, widened},
    slot::Slot,
};
use lb_userspace::{
    config::{
        parse,
        spec::{
            AdminState, BackendSpec, DrainEnd, Forward, HashMode, IdleTimeout, Limits, OnAllDown, OnDown,
            Ports, Protocol, ServiceSpec, Spec, Tracking,
        },
    },
    controller::{engine::Engine, known::Verdict},
    flows::{SweepResult, Walk},
    health::{BackendRef, Health, Reason},
    net::{NextHop, NextHopState, Unreachable},
};
use proptest::prelude::*;

/// Small, so that ids, room for rings and keys run short now and then.
pub const LIMITS: Limits = Limits { services: 14, backends: 18, slots: 900, flows: 1024 };
const RING_SIZES: [u32; 3] = [31, 101, 211];
/// Short, so that random histories see their ends.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(100);
/// Of TCP pins.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(150);

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
    /// Down on layer 7 only, or up again.
    Unwell(u8, u8),
    /// An operator's word.
    Admin(u8, u8, AdminState),
    /// The first two backends exchange their names.
    Exchange(u8),
    /// The sweeper finds pins in some slots, another set for each number.
    Walk(u32),
    /// A new pin is refused.
    RefusedPin,
    /// The next hop of a server of all services: the last byte of its MAC and its device, or none.
    NextHop(u8, Option<(u8, u32)>),
    /// The interface comes or goes.
    Device(u32),
    RingSize(u8, usize),
    Listen(u8, u8),
    /// What else a service can change.
    Flavour(u8, bool, bool, bool),
    Tracking(u8, Tracking, DrainEnd, OnDown),
    Seed(u32),
    /// The lists of the file in reverse order.
    Order,
    Seconds(u64),
}

/// Any change, the everyday ones more often.
pub fn change() -> impl Strategy<Value = Change> {
    let (s, b) = (0..3u8, 0..6u8);
    let state = prop_oneof![Just(AdminState::Active), Just(AdminState::Drain), Just(AdminState::Disabled)];
    let word = state.clone();
    let hop = proptest::option::weighted(0.7, (0..3u8, 2..4u32));
    let tracking =
        prop_oneof![3 => Just(Tracking::Auto), 1 => Just(Tracking::Always), 1 => Just(Tracking::Never)];
    let end = prop_oneof![Just(DrainEnd::Reset), Just(DrainEnd::Keep)];
    let on_down = prop_oneof![2 => Just(OnDown::Auto), 1 => Just(OnDown::Keep), 1 => Just(OnDown::Reset)];
    prop_oneof![
        3 => s.clone().prop_map(Change::Service),
        4 => (s.clone(), b.clone()).prop_map(|(s, b)| Change::Backend(s, b)),
        1 => (s.clone(), b.clone(), 1..300u32).prop_map(|(s, b, w)| Change::Weight(s, b, w)),
        2 => (s.clone(), b.clone(), state).prop_map(|(s, b, state)| Change::State(s, b, state)),
        5 => (s.clone(), b.clone()).prop_map(|(s, b)| Change::Health(s, b)),
        2 => (s.clone(), b.clone()).prop_map(|(s, b)| Change::Unwell(s, b)),
        2 => (s.clone(), b.clone(), word).prop_map(|(s, b, state)| Change::Admin(s, b, state)),
        1 => s.clone().prop_map(Change::Exchange),
        4 => (0..9u32).prop_map(Change::Walk),
        1 => Just(Change::RefusedPin),
        1 => (s.clone(), tracking, end, on_down).prop_map(|(s, t, e, d)| Change::Tracking(s, t, e, d)),
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
    /// Servers that are not up: service, address.
    pub verdicts: BTreeMap<(Arc<str>, IpAddr), Verdict>,
    pub hops: BTreeMap<IpAddr, (u8, u32)>,
    pub devices: BTreeSet<u32>,
    pub now: Instant,
}

static TEMPLATE: LazyLock<Spec> = LazyLock::new(|| {
    let text = "interfaces: [eth0]\nservices:\n- name: s0\n  listen: ['192.0.2.10:80/tcp']\n  forward: l2\n  \
                ring_size: 101\n  backends: [{name: b0, address: 10.0.0.10}]\n";
    let mut spec = parse(text, Path::new("template.yaml")).expect("valid").spec;
    spec.services[0].drain_timeout = DRAIN_TIMEOUT;
    spec.services[0].idle_timeout = IdleTimeout { tcp: IDLE_TIMEOUT, ..IdleTimeout::default() };
    Spec { limits: LIMITS, ..spec }
});

impl World {
    /// No service; everything can be reached and is up.
    pub fn new() -> Self {
        Self {
            spec: Spec { services: Vec::new(), ..TEMPLATE.clone() },
            verdicts: BTreeMap::new(),
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
            Change::Health(s, b) => self.toggle_health(s, b, Reason::L4Timeout),
            Change::Unwell(s, b) => self.toggle_health(s, b, Reason::L7Status(503)),
            Change::Exchange(s) => self.with_service(s, |service| {
                if let [first, second, ..] = &mut *service.backends {
                    std::mem::swap(&mut first.name, &mut second.name);
                }
            }),
            // These are told to the engine.
            Change::Admin(..) | Change::Walk(_) | Change::RefusedPin => {}
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
            Change::Tracking(s, tracking, drain_end, on_down) => self.with_service(s, |service| {
                (service.tracking, service.drain_end, service.on_down) = (tracking, drain_end, on_down);
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

    fn toggle_health(&mut self, s: u8, b: u8, cause: Reason) {
        let server = (format!("s{s}").as_str().into(), address(b));
        if self.verdicts.remove(&server).is_none() {
            self.verdicts.insert(server, Verdict { health: Health::Down, cause });
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

    /// Tells an engine all that there is to know.
    pub fn tell(&self, engine: &mut Engine) {
        engine.set_spec(Arc::new(self.spec.clone()), self.now);
        let probed: Vec<_> =
            engine.known().probed().into_iter().map(|(s, key, a)| (Arc::clone(&s.name), key, a)).collect();
        for (service, key, address) in probed {
            let up = Verdict { health: Health::Up, cause: Reason::L4Ok };
            engine.set_verdict(key, self.verdicts.get(&(service, address)).copied().unwrap_or(up));
        }
        engine.set_next_hops(self.next_hops());
        engine.set_devices(self.devices.iter().map(|index| (*index, format!("eth{index}"))).collect());
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

/// Tells an engine the operator's word, if the change is one and the backend is there.
pub fn tell_word(engine: &mut Engine, change: &Change) {
    let Change::Admin(s, b, state) = change else { return };
    let spec = Arc::clone(engine.spec());
    let service = spec.services.iter().find(|service| *service.name == *format!("s{s}"));
    let backend =
        service.and_then(|s| Some((s, s.backends.iter().find(|backend| backend.address == address(*b))?)));
    if let Some((service, backend)) = backend {
        engine.set_admin(key(service, backend), *state);
    }
}

/// A walk over a flow table in which about every second slot has a TCP pin to some backend that is not dead.
pub fn walk(engine: &Engine, number: u32, now: Instant) -> SweepResult {
    const NOW_NS: u64 = 1 << 50;
    let view = engine.sweep_view();
    let rings = engine.compiled().services.iter().map(|s| (s.ring_base, Arc::clone(s.ring())));
    let rings: Vec<(u32, Arc<[Slot]>)> = rings.collect();
    let backends: Vec<u16> = engine.applied().backends.keys().copied().collect();
    let mut walk = Walk::new(view, now);
    for (base, ring) in &rings {
        for (slot, word) in (*base..).zip(ring.iter()) {
            let random = slot.wrapping_mul(0x9e37_79b9).wrapping_add(number.wrapping_mul(0x85eb_ca6b)) >> 16;
            if backends.is_empty() || number.is_multiple_of(3) || random.is_multiple_of(2) {
                continue;
            }
            let backend = backends[(random / 2) as usize % backends.len()];
            let pin = Pin { last_seen_ns: NOW_NS, slot, backend, closing: 0 };
            let key = FlowKey::new(widened(slot.to_be_bytes()), [0; 16], [0; 4], Protocol::Tcp.number());
            walk.look(&key, &pin, |_| *word, NOW_NS);
            if walk.is_full() {
                let done = vec![SWEEP_DELETED; walk.candidates().len()];
                walk.done(done, Duration::ZERO);
            }
        }
    }
    let done = vec![SWEEP_DELETED; walk.candidates().len()];
    walk.done(done, Duration::ZERO);
    walk.finish(now)
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
        // Another may have the name of this server: names are exchanged.
        let taken = |name: &str| service.backends.iter().any(|backend| *backend.name == *name);
        let name = (0..99).map(|n| format!("b{b}{}", "x".repeat(n))).find(|name| !taken(name));
        let name = name.expect("some name is free").as_str().into();
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
