//! (spec, what is known of the backends) -> the tables wanted.
//!
//! The [`Compiler`] keeps what must not change from one time to the next: ids, and the rings.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{BACKEND_IPV6, BACKEND_PRESENT, BACKEND_ROUTED, BACKEND_USABLE, Backend},
    checksum, hash,
    record::Record,
    service::{
        FORWARD_IPIP, FORWARD_L2, SERVICE_HASH_CLIENT, SERVICE_REJECT, SERVICE_TRACK_ALWAYS,
        SERVICE_TRACK_NEVER, Service,
    },
};

use super::{
    ids::{Ids, NoId, Owner},
    records::{self, Clock, Note},
    ring::{Identity, Member},
    rings::{Placed, Rings, Target, Wish},
    slots::NoRoom,
    slow_start::{LEVELS, SlowStart, Starter},
    tables::{Ring, ServiceKey, Tables, address},
};
use crate::config::spec::{
    BackendSpec, Forward, HashMode, Limits, OnAllDown, Ports, Protocol, ServiceSpec, Spec, Tracking,
};

/// An id rests for so long before another backend gets it: longer than any packet is under way.
const ID_QUARANTINE: Duration = Duration::from_mins(1);
/// TTL of outer IPv4 headers.
const OUTER_TTL: u8 = 64;

/// The way to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Interface that its packets leave by.
    pub ifindex: u32,
    /// MAC of the next hop.
    pub next_hop: [u8; 6],
    /// MAC of the interface.
    pub own: [u8; 6],
    /// Source of outer headers, of the backend's family.
    pub outer_source: IpAddr,
}

/// What is known of a backend besides its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
pub struct Knowledge {
    /// May take new connections, if there is a way to it.
    pub takes_new: bool,
    /// Not dead: flows that it has stay with it.
    pub is_usable: bool,
    /// Its drain has reached its deadline: slots stop moving away from it.
    pub drain_is_over: bool,
    /// Takes connections when nobody may and the service says `use_all`.
    pub is_last_resort: bool,
    /// The way to it, if there is one.
    pub route: Option<Route>,
    /// For the next run of the controller.
    pub note: Note,
}

impl Knowledge {
    /// May take new connections.
    pub fn is_eligible(&self) -> bool {
        self.takes_new && self.route.is_some()
    }
}

/// A backend, and what is known of it.
pub type Known<'a> = (&'a BackendSpec, Knowledge);

/// What the tables are made of, besides what the [`Compiler`] remembers.
pub struct Input<'a> {
    /// The configuration.
    pub spec: &'a Spec,
    /// Interfaces that may be redirected to.
    pub devices: BTreeSet<u32>,
    /// What is known of a backend of the file.
    pub known: &'a dyn Fn(&ServiceSpec, &BackendSpec) -> Knowledge,
    /// Backends that have left the file and keep their flows for a while.
    pub leaving: &'a dyn Fn(&ServiceSpec) -> Vec<Known<'a>>,
    /// When a new pin was last refused.
    pub refused_at: Option<Instant>,
    /// Backends that become eligible now were there all the time: no slow start for them.
    pub is_warm: bool,
    /// The time.
    pub now: Instant,
}

/// The configuration does not fit the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// Too many backends.
    #[error(transparent)]
    Ids(#[from] NoId),
    /// Too many slots.
    #[error(transparent)]
    Slots(#[from] NoRoom),
    /// Too many service keys of one family.
    #[error(
        "the services need {needed} entries of one address family (one for each port of each listen, and one for \
         each address), and `limits.services` is {capacity}; raise it"
    )]
    Services {
        /// Keys, with the markers of addresses.
        needed: usize,
        /// Entries of the map.
        capacity: u32,
    },
}

/// The tables wanted, and what they mean.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Contents of the maps.
    pub tables: Tables,
    /// In the spec's order. One whose ring finds no place is left out.
    pub services: Vec<CompiledService>,
    /// What there was no room for, if there was not enough: it has to wait.
    pub short: Option<CapacityError>,
}

/// One service in the tables.
#[derive(Debug, Clone)]
pub struct CompiledService {
    /// Its name.
    pub name: Arc<str>,
    /// In the spec's order.
    pub backends: Vec<CompiledBackend>,
    /// Those that have left the file.
    pub leaving: Vec<CompiledBackend>,
    /// First slot of its ring.
    pub ring_base: u32,
    /// Slots on the way from one backend to another.
    pub moving_slots: u32,
    /// Slots of which flows may be pinned elsewhere, moving ones included.
    pub unsettled_slots: u32,
    target: Arc<Target>,
    words: Ring,
}

impl CompiledService {
    /// Equal on balancers that choose alike; see [`super::ring::table_checksum`].
    pub fn checksum(&self) -> &str {
        self.target.checksum()
    }

    /// The slots.
    pub fn ring(&self) -> &Ring {
        &self.words
    }
}

/// One backend in the tables.
#[derive(Debug, Clone, PartialEq)]
pub struct CompiledBackend {
    /// Its name.
    pub name: Arc<str>,
    /// Its id in the kernel; 0: it waits for one.
    pub id: u16,
    /// What makes it that server.
    pub identity: Identity,
    /// May take new connections.
    pub eligible: bool,
    /// Flows may go to it.
    pub usable: bool,
    /// Slots move away from it.
    pub moves_away: bool,
    /// Share of new connections that weights and eligibility ask for, 0 to 1.
    pub wanted_share: f64,
    /// Slots whose current backend it is.
    pub slots: u32,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Compiler {
    ids: Ids,
    rings: Rings,
    slow_start: SlowStart,
    /// Entries that the map of services of one family has.
    services: u32,
    clock: Clock,
    /// By id: what was made last, to be taken again while nothing differs.
    made: Vec<Option<Made>>,
}

/// The entries of a backend, and what they were made of besides its address and port.
#[derive(Debug, Clone)]
struct Made {
    service: Arc<str>,
    name: Arc<str>,
    knowledge: Knowledge,
    entry: Backend,
    record: Arc<Record>,
}

impl Compiler {
    /// For maps of these sizes.
    pub fn new(limits: &Limits, clock: Clock) -> Self {
        Self {
            ids: Ids::new(limits.backends, ID_QUARANTINE),
            rings: Rings::new(limits.slots),
            slow_start: SlowStart::default(),
            services: limits.services,
            clock,
            made: Vec::new(),
        }
    }

    /// Goes on from what another run of the controller left in the maps: ids, and rings where they stand.
    pub fn adopt(&mut self, tables: &Tables, spec: &Spec, now: Instant) {
        for (id, record) in &tables.records {
            if let (Some(backend), Some(service)) = (tables.backends.get(id), records::service(record)) {
                let identity = Identity { address: address(backend), port: records::port(record) };
                self.ids.adopt(Owner { service, identity }, *id);
            }
        }
        self.ids.rest_unowned(now);
        for (base, words) in &tables.rings {
            self.rings.adopt(owner_of(*base, words, tables, spec), *base, Arc::clone(words), now);
        }
    }

    /// The tables for what is known, if all of it fits.
    pub fn compile(&mut self, input: &Input<'_>) -> Result<Compiled, CapacityError> {
        let compiled = self.compile_what_fits(input)?;
        compiled.short.map_or(Ok(compiled), Err)
    }

    /// The tables for as much of it as fits now. Backends that get no id wait for one, and so does a ring without a
    /// place: ids and places come free when what is leaving is gone, for which these tables must come into force.
    pub fn compile_what_fits(&mut self, input: &Input<'_>) -> Result<Compiled, CapacityError> {
        let mut compiled = Compiled {
            tables: Tables { devices: input.devices.clone(), ..Tables::default() },
            services: Vec::new(),
            short: None,
        };
        let hash_key = hash::key(input.spec.hash_seed);
        for service in &input.spec.services {
            self.service(service, hash_key, input, &mut compiled);
        }
        let needed = most_of_a_family(compiled.tables.services.keys());
        if needed > self.services as usize {
            return Err(CapacityError::Services { needed, capacity: self.services });
        }
        Ok(compiled)
    }

    /// After `applied` is in the maps: frees the ids and places that it does not name.
    pub fn settle(&mut self, applied: &Tables, now: Instant) {
        // All of them have owners.
        if self.ids.count() > applied.backends.len() {
            self.ids.retain(&applied.backends.keys().copied().collect(), now);
        }
        self.rings.forget_unused(applied, now);
        let ids = &self.ids;
        self.slow_start.retain(|owner| ids.has(owner));
    }

    /// The rings, for what the sweeper found.
    pub fn rings_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }

    fn service(&mut self, service: &ServiceSpec, hash_key: u64, input: &Input<'_>, compiled: &mut Compiled) {
        let mut pool = Pool::default();
        for backend in &service.backends {
            let knowledge = (input.known)(service, backend);
            let id = self.enter(service, backend, &knowledge, input.now, compiled);
            let tenths = self.tenths(service, backend, &knowledge, input);
            pool.add(id, backend, knowledge, tenths);
        }
        let mut leaving = Vec::new();
        for (backend, knowledge) in (input.leaving)(service) {
            let id = self.enter(service, backend, &knowledge, input.now, compiled);
            if id == 0 {
                continue;
            }
            leaving.push(CompiledBackend { usable: knowledge.is_usable, ..fresh(id, backend) });
            pool.leaving.push((id, knowledge));
        }
        let members = pool.members(service);
        // Whoever takes connections as a last resort is not dead to those it has, whatever the probes say.
        for starter in members.iter().filter(|_| service.on_all_down == OnAllDown::UseAll) {
            compiled.tables.backends.entry(starter.member.id).and_modify(|b| b.flags |= BACKEND_USABLE);
        }
        let usable = pool.usable(&members);
        let drained = pool.drained();
        let wish = Wish {
            name: &service.name,
            size: service.ring_size,
            pool: pool.all.iter().map(|starter| starter.member).collect(),
            members,
            usable,
            moves: moves(service),
            is_over: &|id, since| {
                let is_over = drained.contains(&id);
                let rested = input.refused_at.map_or(since, |refused| refused.max(since));
                is_over || input.now >= rested + service.idle_timeout.tcp
            },
        };
        let short = self.rings.no_room(service.ring_size);
        match self.rings.place(&wish, input.now) {
            Ok(placed) => {
                if placed.size != service.ring_size {
                    compiled.short.get_or_insert(short.into());
                }
                compiled.add(service, hash_key, placed, &pool, leaving);
            }
            Err(no_room) => drop(compiled.short.get_or_insert(no_room.into())),
        }
    }

    /// How much of a backend's weight is in force.
    fn tenths(
        &mut self,
        service: &ServiceSpec,
        backend: &BackendSpec,
        knowledge: &Knowledge,
        input: &Input<'_>,
    ) -> u32 {
        if service.slow_start.is_zero() {
            return LEVELS;
        }
        let owner = owner(service, backend);
        if knowledge.is_eligible() {
            self.slow_start.note_eligible(&owner, service.slow_start, input.is_warm, input.now);
        } else {
            self.slow_start.note_away(&owner);
        }
        self.slow_start.level(&owner, service.slow_start, input.now).tenths
    }

    /// The backend's entries, under its id, which it answers; 0 if there is none for it.
    fn enter(
        &mut self,
        service: &ServiceSpec,
        backend: &BackendSpec,
        knowledge: &Knowledge,
        now: Instant,
        compiled: &mut Compiled,
    ) -> u16 {
        let id = match self.ids.get(&owner(service, backend), now) {
            Ok(id) => id,
            Err(no_id) => {
                compiled.short.get_or_insert(no_id.into());
                return 0;
            }
        };
        let index = usize::from(id);
        if self.made.len() <= index {
            self.made.resize(index + 1, None);
        }
        let is_same = |made: &Made| {
            made.knowledge == *knowledge && made.name == backend.name && made.service == service.name
        };
        let made = match self.made[index].take() {
            Some(made) if is_same(&made) && address(&made.entry) == backend.address => made,
            _ => Made {
                service: Arc::clone(&service.name),
                name: Arc::clone(&backend.name),
                knowledge: knowledge.clone(),
                entry: entry(backend.address, knowledge),
                record: Arc::new(records::record(service, backend, &knowledge.note, self.clock)),
            },
        };
        compiled.tables.backends.insert(id, made.entry);
        compiled.tables.records.insert(id, Arc::clone(&made.record));
        self.made[index] = Some(made);
        id
    }
}

fn owner(service: &ServiceSpec, backend: &BackendSpec) -> Owner {
    Owner { service: Arc::clone(&service.name), identity: identity(backend) }
}

fn identity(backend: &BackendSpec) -> Identity {
    Identity { address: backend.address, port: backend.port }
}

/// Whether a service's slots move. UDP flows are pinned wherever they are first seen, and untracked ones nowhere.
fn moves(service: &ServiceSpec) -> bool {
    service.tracking != Tracking::Never && service.listen.iter().any(|l| l.protocol == Protocol::Tcp)
}

/// The backends of a service while it is compiled.
#[derive(Default)]
struct Pool {
    /// In the spec's order.
    all: Vec<Starter>,
    names: Vec<Arc<str>>,
    /// Of each; whoever has no id can do nothing.
    knowledge: Vec<Knowledge>,
    /// Those that have left the file.
    leaving: Vec<(u16, Knowledge)>,
}

impl Pool {
    fn add(&mut self, id: u16, backend: &BackendSpec, knowledge: Knowledge, tenths: u32) {
        let member = Member { id, identity: identity(backend), weight: backend.weight };
        self.all.push(Starter { member, tenths });
        self.names.push(Arc::clone(&backend.name));
        self.knowledge.push(knowledge);
    }

    /// Those that have an id, and what is known of them.
    fn known(&self) -> impl Iterator<Item = (&Starter, &Knowledge)> {
        self.all.iter().zip(&self.knowledge).filter(|(starter, _)| starter.member.id != 0)
    }

    /// Those that take new connections.
    fn members(&self, service: &ServiceSpec) -> Vec<Starter> {
        let those = |takes: fn(&Knowledge) -> bool| -> Vec<Starter> {
            self.known().filter(|(_, knowledge)| takes(knowledge)).map(|(starter, _)| *starter).collect()
        };
        let eligible = those(Knowledge::is_eligible);
        if eligible.is_empty() && service.on_all_down == OnAllDown::UseAll {
            return those(|k| k.is_last_resort && k.route.is_some());
        }
        eligible
    }

    /// Ids of those that are not dead, in order.
    fn usable(&self, members: &[Starter]) -> Vec<u16> {
        let mut members = members.iter().map(|s| s.member.id).peekable();
        let is_usable = |(starter, knowledge): (&Starter, &Knowledge)| {
            let id = starter.member.id;
            (members.next_if_eq(&id).is_some() || knowledge.is_usable).then_some(id)
        };
        let mut usable: Vec<u16> = self.known().filter_map(is_usable).collect();
        usable.extend(self.leaving.iter().filter(|(_, k)| k.is_usable).map(|(id, _)| *id));
        usable
    }

    /// Ids of those whose drain has reached its deadline.
    fn drained(&self) -> BTreeSet<u16> {
        let named = self.known().filter(|(_, k)| k.drain_is_over).map(|(starter, _)| starter.member.id);
        named.chain(self.leaving.iter().filter(|(_, k)| k.drain_is_over).map(|(id, _)| *id)).collect()
    }
}

fn fresh(id: u16, backend: &BackendSpec) -> CompiledBackend {
    CompiledBackend {
        name: Arc::clone(&backend.name),
        id,
        identity: identity(backend),
        eligible: false,
        usable: false,
        moves_away: false,
        wanted_share: 0.0,
        slots: 0,
    }
}

impl Compiled {
    fn add(
        &mut self,
        service: &ServiceSpec,
        hash_key: u64,
        placed: &Placed,
        pool: &Pool,
        mut leaving: Vec<CompiledBackend>,
    ) {
        let total: u64 = placed.target.members.iter().map(|s| u64::from(s.weight_in_force())).sum();
        let mut members = placed.target.members.iter().peekable();
        let mut backend = |((Starter { member, .. }, name), known): ((&Starter, &Arc<str>), &Knowledge)| {
            // In the same order.
            let weight = members.next_if(|s| s.member == *member).map(Starter::weight_in_force);
            CompiledBackend {
                name: Arc::clone(name),
                id: member.id,
                identity: member.identity,
                eligible: member.id != 0 && known.is_eligible(),
                usable: member.id != 0 && (known.is_usable || weight.is_some()),
                moves_away: placed.moves_from(member.id),
                slots: placed.target.slots_of(member.id),
                // Without members there is no weight either, so nothing is divided by zero.
                wanted_share: weight.map_or(0.0, |weight| f64::from(weight) / total as f64),
            }
        };
        let backends = pool.all.iter().zip(&pool.names).zip(&pool.knowledge).map(&mut backend).collect();
        for backend in &mut leaving {
            backend.moves_away = placed.moves_from(backend.id);
        }
        self.tables.rings.insert(placed.base, Arc::clone(&placed.words));
        let value = value(service, hash_key, placed);
        for key in keys(service) {
            self.tables.services.insert(key, value);
        }
        for listen in &service.listen {
            self.tables.services.insert(ServiceKey::new(listen.address, 0, 0), Service::ADDRESS);
        }
        self.services.push(CompiledService {
            name: Arc::clone(&service.name),
            backends,
            leaving,
            ring_base: placed.base,
            moving_slots: placed.moving(),
            unsettled_slots: placed.unsettled(),
            target: Arc::clone(&placed.target),
            words: Arc::clone(&placed.words),
        });
    }
}

/// The service whose backends a ring in the maps names; where it names nobody, the one that listens where its packets
/// come from.
fn owner_of(base: u32, words: &Ring, tables: &Tables, spec: &Spec) -> Option<Arc<str>> {
    // A ring that no service names is on its way out, or never came in.
    let is_its = |service: &Service| !service.is_address() && service.ring_base == base;
    let (key, _) = tables.services.iter().find(|(_, service)| is_its(service))?;
    let ids = words.iter().flat_map(|word| [word.current(), word.previous()]);
    let named = ids.filter(|id| *id != 0).find_map(|id| records::service(tables.records.get(&id)?));
    let listening = || spec.services.iter().find(|s| keys(s).any(|k| k == *key)).map(|s| Arc::clone(&s.name));
    named.or_else(listening)
}

/// The map entry of a service.
fn value(service: &ServiceSpec, hash_key: u64, placed: &Placed) -> Service {
    let flags = [
        (service.hash == HashMode::Client, SERVICE_HASH_CLIENT),
        (service.tracking == Tracking::Always, SERVICE_TRACK_ALWAYS),
        (service.tracking == Tracking::Never, SERVICE_TRACK_NEVER),
        (service.on_all_down == OnAllDown::Reject, SERVICE_REJECT),
    ];
    Service {
        hash_key,
        ring_base: placed.base,
        ring_size: placed.size,
        forward: match service.forward {
            Forward::L2 => FORWARD_L2,
            Forward::Ipip => FORWARD_IPIP,
        },
        flags: flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum(),
        reserved: [0; 6],
    }
}

/// How many keys the fuller map of services holds.
pub fn most_of_a_family<'a>(keys: impl Iterator<Item = &'a ServiceKey>) -> usize {
    let [mut v4, mut v6] = [0, 0];
    for key in keys {
        match key {
            ServiceKey::V4(_) => v4 += 1,
            ServiceKey::V6(_) => v6 += 1,
        }
    }
    v4.max(v6)
}

/// The keys that a service answers on, without the markers of its addresses.
fn keys(service: &ServiceSpec) -> impl Iterator<Item = ServiceKey> + '_ {
    service.listen.iter().flat_map(|listen| {
        let (first, last) = match listen.ports {
            Ports::Any => (0, 0),
            Ports::Range(first, last) => (first, last),
        };
        (first..=last).map(|port| ServiceKey::new(listen.address, port, listen.protocol.number()))
    })
}

/// The map entry of a backend.
fn entry(address: IpAddr, knowledge: &Knowledge) -> Backend {
    let mut backend = Backend { flags: BACKEND_PRESENT, ..Backend::NONE };
    store(&mut backend.address, address);
    if address.is_ipv6() {
        backend.flags |= BACKEND_IPV6;
    }
    if knowledge.is_usable {
        backend.flags |= BACKEND_USABLE;
    }
    if let Some(route) = knowledge.route {
        backend.flags |= BACKEND_ROUTED;
        backend.ifindex = route.ifindex;
        backend.next_hop = route.next_hop;
        backend.own = route.own;
        store(&mut backend.outer_source, route.outer_source);
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (route.outer_source, address) {
            backend.outer_sum = checksum::outer_header4(OUTER_TTL, source.octets(), destination.octets());
        }
    }
    backend
}

fn store(field: &mut [u8; 16], address: IpAddr) {
    match address {
        IpAddr::V4(a) => field[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => *field = a.octets(),
    }
}

#[cfg(test)]
mod tests;
