//! (spec, what is known of the backends) -> the tables wanted.
//!
//! The [`Compiler`] keeps what must not change from one time to the next: ids, and the rings.

mod entries;
mod input;
mod pool;

pub use entries::most_of_a_family;
pub use input::{Input, Knowledge, Known, Route};

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{BACKEND_USABLE, Backend},
    hash,
    record::Record,
    service::Service,
};

use self::{
    entries::{entry, keys, value},
    pool::Pool,
};
use super::{
    ids::{Ids, NoId, Owner},
    records::{self, Clock},
    ring::Identity,
    rings::{Placed, Rings, Target, Wish},
    slots::NoRoom,
    slow_start::{LEVELS, SlowStart, Starter},
    tables::{Ring, ServiceKey, Tables, address},
};
use crate::config::spec::{BackendSpec, Limits, Listen, OnAllDown, Protocol, ServiceSpec, Spec, Tracking};

/// An id rests for so long before another backend gets it: longer than any packet is under way.
const ID_QUARANTINE: Duration = Duration::from_mins(1);

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

    /// Whether a spec fits beside what is there: what leaves keeps its id and its place for a while.
    pub fn fits(&self, spec: &Spec, now: Instant) -> Result<(), CapacityError> {
        let owners = spec.services.iter().flat_map(|s| s.backends.iter().map(move |b| owner(s, b)));
        let new: Vec<Owner> = owners.filter(|owner| !self.ids.has(owner)).collect();
        if !new.is_empty() {
            let mut ids = self.ids.clone();
            for owner in &new {
                ids.get(owner, now)?;
            }
        }
        self.rings.have_room(spec.services.iter().map(|s| (&*s.name, s.ring_size)))?;
        let markers = |s: &ServiceSpec| {
            let marker = |l: &Listen| ServiceKey::new(l.address, 0, 0);
            s.listen.iter().map(marker).collect::<Vec<_>>()
        };
        let all: BTreeSet<ServiceKey> =
            spec.services.iter().flat_map(|s| keys(s).chain(markers(s))).collect();
        self.services_fit(all.iter())
    }

    fn services_fit<'a>(&self, keys: impl Iterator<Item = &'a ServiceKey>) -> Result<(), CapacityError> {
        let needed = most_of_a_family(keys);
        if needed > self.services as usize {
            return Err(CapacityError::Services { needed, capacity: self.services });
        }
        Ok(())
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
        self.services_fit(compiled.tables.services.keys())?;
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
            is_gathering: pool.is_gathering(),
            young: input.young,
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
        for key in keys(service) {
            self.tables.services.insert(key, value(service, hash_key, placed, &key));
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

#[cfg(test)]
mod tests;
