//! What the controller knows, and the one way from there to the maps: compile, diff, apply.
//!
//! Everything that changes (a file, a verdict, a next hop, an operator's word) only updates what is known here;
//! [`Engine::reconcile`] then does what is needed. It is the same after a failure and after drift. No I/O but the
//! dataplane's, and time is a parameter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::backend::{BACKEND_ROUTED, BACKEND_USABLE, Backend, BackendStats};

use super::known::{Adopted, Known, Verdict};
use crate::{
    config::spec::{AdminState, BackendSpec, ServiceSpec, Spec},
    dataplane::{ApplyError, Dataplane, Refused},
    flows::{BackendSet, RingView, SweepResult, SweepView},
    health::{BackendRef, Health, Reason},
    net::NextHopState,
    plan::{
        compile::{self, CapacityError, Compiled, CompiledBackend, Compiler, Input, Knowledge, Route},
        diff::{diff, services_go_first},
        records::{self, Clock, Word},
        ring::Identity,
        tables::{Op, Tables, address},
    },
};

pub use super::known::backend_ref;

/// Why the maps are not as they should be; tried again later.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The configuration does not fit.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// An operation failed; those before it are done.
    #[error("{0}")]
    Apply(#[from] ApplyError),
}

/// See the module.
pub struct Engine {
    dataplane: Box<dyn Dataplane>,
    known: Known,
    compiler: Compiler,
    clock: Clock,
    compiled: Compiled,
    applied: Tables,
    /// What the last walk over the flow table found.
    walk: Option<SweepResult>,
    /// New pins refused so far.
    refused: Refused,
    /// When a TCP flow's pin was last refused, as far as was noticed.
    refused_at: Option<Instant>,
    /// Backends that become eligible now were there all the time.
    is_warm: bool,
    /// See [`crate::plan::rings::Wish::young`].
    young: Duration,
    /// Backends that have left were forgotten since anybody asked.
    forgot: bool,
    /// Counters of backends that left, by service.
    left_behind: BTreeMap<Arc<str>, BackendStats>,
    /// Of which service each id in the maps is.
    services_of: BTreeMap<u16, Arc<str>>,
}

impl Engine {
    /// Knows nothing of the network and of health yet. `dataplane` is empty.
    pub fn new(spec: Arc<Spec>, dataplane: Box<dyn Dataplane>) -> Self {
        let clock = Clock { instant: Instant::now(), monotonic_ns: monotonic_ns() };
        Self {
            compiler: Compiler::new(&spec.limits, clock),
            clock,
            dataplane,
            known: Known::new(spec),
            compiled: Compiled { tables: Tables::default(), services: Vec::new(), short: None },
            applied: Tables::default(),
            walk: None,
            refused: Refused::default(),
            refused_at: None,
            is_warm: true,
            young: Duration::ZERO,
            forgot: false,
            left_behind: BTreeMap::new(),
            services_of: BTreeMap::new(),
        }
    }

    /// Goes on from what another run of the controller left in the maps: ids, rings, verdicts, operators' words and
    /// drains.
    pub fn adopt(spec: Arc<Spec>, dataplane: Box<dyn Dataplane>, now: Instant) -> Result<Self, ApplyError> {
        let mut engine = Self::new(spec, dataplane);
        let spec = Arc::clone(engine.spec());
        let tables = engine.dataplane.adopt()?;
        engine.compiler.adopt(&tables, &spec, now);
        let mut adopted = Vec::new();
        for (id, record) in &tables.records {
            if let (Some(backend), Some(noted)) =
                (tables.backends.get(id), records::noted(record, engine.clock))
            {
                engine.services_of.insert(*id, Arc::clone(&noted.service));
                let is_usable = backend.flags & BACKEND_USABLE != 0;
                adopted.push(Adopted { address: address(backend), route: route(backend), is_usable, noted });
            }
        }
        engine.known.adopt(adopted, now);
        engine.applied = tables;
        Ok(engine)
    }

    /// The configuration wanted.
    pub fn spec(&self) -> &Arc<Spec> {
        self.known.spec()
    }

    /// What is known of the backends.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// What the last reconciliation compiled.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// What is in the maps, as far as is known.
    pub fn applied(&self) -> &Tables {
        &self.applied
    }

    /// The maps.
    pub fn dataplane(&self) -> &dyn Dataplane {
        &*self.dataplane
    }

    /// Another configuration is wanted.
    pub fn set_spec(&mut self, spec: Arc<Spec>, now: Instant) {
        self.known.set_spec(spec, now);
    }

    /// The last verdict.
    pub fn health(&self, key: &BackendRef) -> Health {
        self.known.verdict(key).health
    }

    /// A verdict, of which only the health is told: who is down is dead.
    pub fn set_health(&mut self, key: BackendRef, health: Health) {
        let cause = match health {
            Health::Unknown => Reason::Init,
            Health::Up => Reason::None,
            Health::Down => Reason::L4Timeout,
        };
        self.set_verdict(key, Verdict { health, cause });
    }

    /// A verdict.
    pub fn set_verdict(&mut self, key: BackendRef, verdict: Verdict) {
        self.known.set_verdict(key, verdict);
    }

    /// The next hops of all wanted addresses.
    pub fn set_next_hops(&mut self, next_hops: BTreeMap<IpAddr, NextHopState>) {
        self.known.set_next_hops(next_hops);
    }

    /// Whose last verdict is not believed, and what is in force instead.
    pub fn set_held(&mut self, held: BTreeMap<BackendRef, Verdict>) {
        self.known.set_held(held);
    }

    /// The interfaces that the program is attached to.
    pub fn set_devices(&mut self, devices: BTreeMap<u32, String>) {
        self.known.set_devices(devices);
    }

    /// An operator's word about a backend of the file, until the file says otherwise.
    pub fn set_admin(&mut self, key: BackendRef, state: AdminState) {
        let spec = Arc::clone(self.spec());
        let service = spec.services.iter().find(|s| s.name == key.service);
        let backend = service.and_then(|s| s.backends.iter().find(|b| b.name == key.backend));
        if let Some(backend) = backend {
            self.known.set_word(key, Word { state, file: backend.state });
        }
    }

    /// Operators' words of an earlier run. Where the file says something else by now, it wins.
    pub fn adopt_words(&mut self, words: &BTreeMap<BackendRef, Word>) {
        let spec = Arc::clone(self.spec());
        for service in &spec.services {
            for backend in &service.backends {
                let key = backend_ref(service, backend);
                if let Some(word) = words.get(&key).filter(|word| word.file == backend.state) {
                    self.known.set_word(key, *word);
                }
            }
        }
    }

    /// The administrative state in force.
    pub fn admin(&self, service: &ServiceSpec, backend: &BackendSpec) -> AdminState {
        self.known.admin(service, backend)
    }

    /// For so long a new ring's slots do not move: they are settled at once.
    #[must_use]
    pub fn with_young(self, young: Duration) -> Self {
        Self { young, ..self }
    }

    /// From now on a backend that becomes eligible is new or has recovered, and starts slowly.
    pub fn set_started(&mut self) {
        self.is_warm = false;
    }

    /// Makes the maps what they should be. Answers how many operations that took. What does not fit waits, and is an error
    /// though the rest is done.
    pub fn reconcile(&mut self, now: Instant) -> Result<usize, ReconcileError> {
        self.forgot |= self.known.pass_time(now);
        self.note_refused(now);
        let known = &self.known;
        let compiled = self.compiler.compile_what_fits(&Input {
            spec: known.spec(),
            devices: known.devices().keys().copied().collect(),
            known: &|service, backend| known.of_file(service, backend, now),
            leaving: &|service| known.of_leaving(service, now),
            refused_at: self.refused_at,
            is_warm: self.is_warm,
            young: self.young,
            now,
        })?;
        // Dropped at the end: freeing ten thousand entries takes milliseconds, and the kernel waits.
        let _before = std::mem::replace(&mut self.compiled, compiled);
        let ops = self.make_room(diff(&self.applied, &self.compiled.tables));
        for op in &ops {
            self.apply(op)?;
        }
        self.compiler.settle(&self.applied, now);
        self.compiled.short.map_or(Ok(ops.len()), |short| Err(short.into()))
    }

    /// A pin was refused since the last look: moves last longer.
    fn note_refused(&mut self, now: Instant) {
        match self.dataplane.refused_pins() {
            Ok(refused) => {
                if refused.tcp != self.refused.tcp {
                    self.refused_at = Some(now);
                }
                self.refused = refused;
            }
            Err(error) => tracing::warn!(%error, "read the count of refused pins"),
        }
    }

    /// New pins that were refused, since the maps were made.
    pub fn refused_pins(&self) -> u64 {
        self.refused.tcp + self.refused.udp
    }

    /// Whether backends that had left were forgotten since the last call.
    pub fn take_forgot(&mut self) -> bool {
        std::mem::take(&mut self.forgot)
    }

    /// What a walk over the flow table has to know.
    pub fn sweep_view(&self) -> SweepView {
        let spec = self.spec();
        let services: BTreeMap<&str, &ServiceSpec> = spec.services.iter().map(|s| (&*s.name, s)).collect();
        let mut needs_walk = false;
        let mut rings = Vec::with_capacity(spec.services.len());
        for compiled in &self.compiled.services {
            // One that the file no longer has is about to go.
            let Some(service) = services.get(&*compiled.name) else { continue };
            needs_walk |= compiled.unsettled_slots > 0 || service.pins_every_flow();
            rings.push(RingView {
                base: compiled.ring_base,
                size: compiled.ring().len() as u32,
                tracking: service.tracking,
                idle_tcp_ns: service.idle_timeout.tcp.as_nanos() as u64,
                idle_udp_ns: service.idle_timeout.udp.as_nanos() as u64,
            });
        }
        rings.sort_by_key(|ring| ring.base);
        let backends = self.compiled.services.iter().flat_map(|s| s.backends.iter().chain(&s.leaving));
        let usable: BackendSet = backends.filter(|b| b.usable).map(|b| b.id).collect();
        let udp_limit = u64::from(spec.limits.flows / 2);
        SweepView { rings: rings.into(), usable: Arc::new(usable), udp_limit, needs_walk }
    }

    /// What a walk over the flow table found. Reconciling does what follows from it.
    pub fn on_walk(&mut self, walk: SweepResult) {
        self.note_refused(walk.finished);
        self.compiler.rings_mut().settle(walk.started, |base| {
            let pins = walk.slots(base);
            (!pins.is_empty()).then_some(pins)
        });
        let compiled = &self.compiled;
        let pins = |service: &ServiceSpec, backend: &BackendSpec| {
            let left = compiled.services.iter().find(|s| s.name == service.name);
            let is_it = |b: &&CompiledBackend| {
                b.identity == Identity { address: backend.address, port: backend.port }
            };
            let left = left.and_then(|s| s.leaving.iter().find(is_it));
            left.map_or(0, |b| walk.to_backend(b.id))
        };
        self.forgot |= self.known.note_pins(walk.started, self.refused_at, pins);
        self.walk = Some(walk);
    }

    /// What the last walk over the flow table found.
    pub fn walk(&self) -> Option<&SweepResult> {
        self.walk.as_ref()
    }

    /// A nearly full map cannot hold the services that come beside those that go.
    fn make_room(&self, ops: Vec<Op>) -> Vec<Op> {
        let (applied, wanted) = (&self.applied.services, &self.compiled.tables.services);
        let coming = wanted.keys().filter(|key| !applied.contains_key(key));
        let at_once = compile::most_of_a_family(applied.keys().chain(coming));
        if at_once > self.spec().limits.services as usize { services_go_first(ops) } else { ops }
    }

    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        tracing::debug!(%op, "apply");
        // No slot names a backend that is deleted, so its counters stand still; read first, so that a failure to do so
        // leaves the operation to be tried again and no total ever falls.
        let last = match op {
            Op::DeleteBackend(id) => self.dataplane.backend_stats(&[*id])?.first().copied(),
            _ => None,
        };
        self.dataplane.apply(op)?;
        if let Op::PutRecord(id, record) = op {
            self.services_of.extend(records::service(record).map(|service| (*id, service)));
        }
        match op {
            // The words wanted, shared: to compare them again costs nothing, nor does a copy of them.
            Op::WriteRing(base, _) | Op::WriteSlots(base, _) => {
                let wanted = self.compiled.tables.rings.get(base);
                self.applied.rings.extend(wanted.map(|ring| (*base, Arc::clone(ring))));
            }
            op => op.apply_to(&mut self.applied),
        }
        if let (Op::DeleteBackend(id), Some(last)) = (op, last)
            && let Some(service) = self.services_of.remove(id)
        {
            let sum = self.left_behind.entry(service).or_default();
            *sum = add(*sum, last);
        }
        Ok(())
    }

    /// Whether the maps have room for another spec.
    pub fn fits(&self, spec: &Spec, now: Instant) -> Result<(), CapacityError> {
        self.compiler.fits(spec, now)
    }

    /// What the tables would be with another spec once its new servers are up; the maps and this engine stay as they
    /// are.
    pub fn preview(&self, spec: &Arc<Spec>, now: Instant) -> Result<Compiled, CapacityError> {
        let mut known = self.known.clone();
        known.set_spec(Arc::clone(spec), now);
        known.pass_time(now);
        let probed: BTreeSet<_> =
            self.known.probed().into_iter().map(|(service, _, address)| (&service.name, address)).collect();
        let of_file = |service: &ServiceSpec, backend: &BackendSpec| {
            let mut knowledge = known.of_file(service, backend, now);
            if !probed.contains(&(&service.name, backend.address)) {
                suppose_up(&mut knowledge, known.admin(service, backend), backend.address);
            }
            knowledge
        };
        self.compiler.clone().compile(&Input {
            spec,
            devices: known.devices().keys().copied().collect(),
            known: &of_file,
            leaving: &|service| known.of_leaving(service, now),
            refused_at: self.refused_at,
            is_warm: true,
            young: self.young,
            now,
        })
    }

    /// Compares with the maps themselves. Answers what differed; what is believed is then what is there, and
    /// reconciling mends it.
    pub fn check_drift(&mut self) -> Result<Vec<Op>, ApplyError> {
        let actual = self.dataplane.snapshot(&self.applied)?;
        let repairs = diff(&actual, &self.applied);
        self.applied = actual;
        Ok(repairs)
    }

    /// Counters of the backends that a service no longer has.
    pub fn left_behind(&self, service: &str) -> BackendStats {
        self.left_behind.get(service).copied().unwrap_or_default()
    }

    /// Packets sent to backends of all services that are gone, and to gone backends of those that are not.
    pub fn left_behind_packets(&self) -> u64 {
        self.left_behind.values().map(|sum| sum.packets).sum()
    }
}

/// Nothing is known of a server that nobody has probed: it may well be up.
fn suppose_up(knowledge: &mut Knowledge, admin: AdminState, address: IpAddr) {
    knowledge.takes_new = admin == AdminState::Active;
    knowledge.route =
        knowledge.route.or(Some(Route { ifindex: 0, next_hop: [0; 6], own: [0; 6], outer_source: address }));
}

/// The way in a backend's entry.
fn route(backend: &Backend) -> Option<Route> {
    let &Backend { ifindex, next_hop, own, .. } = backend;
    let source = Backend { address: backend.outer_source, ..*backend };
    let route = Route { ifindex, next_hop, own, outer_source: address(&source) };
    (backend.flags & BACKEND_ROUTED != 0).then_some(route)
}

/// `CLOCK_MONOTONIC`, as the kernel's programs read it.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The sum of two counters.
pub fn add(a: BackendStats, b: BackendStats) -> BackendStats {
    BackendStats {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
        connections: a.connections + b.connections,
        reserved: 0,
    }
}

#[cfg(test)]
mod tests;
