//! (spec, what is known of the backends) -> the tables wanted.
//!
//! The [`Compiler`] keeps what must not change from one time to the next: ids, the rings' places, and the rings
//! themselves as long as their members stay the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use lb_common::{
    backend::{BACKEND_IPV6, BACKEND_PRESENT, BACKEND_ROUTED, Backend},
    checksum, hash,
    service::{FORWARD_IPIP, FORWARD_L2, SERVICE_HASH_CLIENT, Service},
    slot::Slot,
};

use super::{
    ids::{Ids, NoId, Owner},
    ring::{self, Identity, Member},
    slots::{NoRoom, SlotSpace},
    tables::{Ring, ServiceKey, Tables},
};
use crate::config::spec::{
    AdminState, BackendSpec, Forward, HashMode, Limits, OnAllDown, Ports, ServiceSpec, Spec,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knowledge {
    /// The administrative state in force.
    pub admin: AdminState,
    /// Its health is up.
    pub is_up: bool,
    /// The way to it, if there is one.
    pub route: Option<Route>,
}

impl Knowledge {
    /// May take new connections.
    pub fn is_eligible(&self) -> bool {
        self.admin == AdminState::Active && self.is_up && self.route.is_some()
    }
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
    /// In the spec's order.
    pub services: Vec<CompiledService>,
}

/// One service in the tables.
#[derive(Debug, Clone)]
pub struct CompiledService {
    /// Its name.
    pub name: Arc<str>,
    /// In the spec's order.
    pub backends: Vec<CompiledBackend>,
    ring: Arc<Filled>,
}

impl CompiledService {
    /// Equal on balancers that choose alike; see [`ring::table_checksum`].
    pub fn checksum(&self) -> &str {
        self.ring.checksum.get_or_init(|| {
            let ids: Vec<u16> = self.ring.slots.iter().map(|slot| slot.current()).collect();
            ring::table_checksum(&ids, &self.ring.members)
        })
    }

    /// The slots.
    pub fn ring(&self) -> &Ring {
        &self.ring.slots
    }
}

/// One backend in the tables.
#[derive(Debug, Clone, PartialEq)]
pub struct CompiledBackend {
    /// Its name.
    pub name: Arc<str>,
    /// Its id in the kernel.
    pub id: u16,
    /// May take new connections.
    pub eligible: bool,
    /// Share of new connections that weights and eligibility ask for, 0 to 1.
    pub wanted_share: f64,
    /// Slots whose current backend it is.
    pub slots: u32,
}

/// A ring, and what it was made of.
#[derive(Debug)]
struct Filled {
    members: Vec<Member>,
    slots: Ring,
    counts: BTreeMap<u16, u32>,
    checksum: OnceLock<String>,
}

#[derive(Debug, Clone)]
struct Placed {
    base: u32,
    size: u32,
    whole: Arc<Whole>,
    filled: Arc<Filled>,
}

/// The ring of a pool as if all of it were eligible.
#[derive(Debug)]
struct Whole {
    members: Vec<Member>,
    ids: Vec<u16>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Compiler {
    ids: Ids,
    space: SlotSpace,
    /// Entries that the map of services of one family has.
    services: u32,
    /// By service name. An entry stays until [`Compiler::settle`] finds that nothing names it.
    rings: BTreeMap<Arc<str>, Placed>,
    /// Places of rings that were replaced.
    old_places: Vec<u32>,
}

impl Compiler {
    /// For maps of these sizes.
    pub fn new(limits: &Limits) -> Self {
        Self {
            ids: Ids::new(limits.backends, ID_QUARANTINE),
            space: SlotSpace::new(limits.slots),
            services: limits.services,
            rings: BTreeMap::new(),
            old_places: Vec::new(),
        }
    }

    /// The tables for a spec. `known` answers for each backend; `devices` are the interfaces that may be redirected to.
    pub fn compile(
        &mut self,
        spec: &Spec,
        devices: &BTreeSet<u32>,
        known: &dyn Fn(&ServiceSpec, &BackendSpec) -> Knowledge,
        now: Instant,
    ) -> Result<Compiled, CapacityError> {
        let mut compiled = Compiled {
            tables: Tables { devices: devices.clone(), ..Tables::default() },
            services: Vec::new(),
        };
        let hash_key = hash::key(spec.hash_seed);
        for service in &spec.services {
            self.service(service, hash_key, known, now, &mut compiled)?;
        }
        let needed = most_of_a_family(compiled.tables.services.keys());
        if needed > self.services as usize {
            return Err(CapacityError::Services { needed, capacity: self.services });
        }
        Ok(compiled)
    }

    /// After `applied` is in the maps: frees the ids and places that it does not name.
    pub fn settle(&mut self, applied: &Tables, now: Instant) {
        self.ids.retain(&applied.backends.keys().copied().collect(), now);
        let space = &mut self.space;
        self.old_places.retain(|base| {
            let used = applied.rings.contains_key(base);
            if !used {
                space.free(*base);
            }
            used
        });
        self.rings.retain(|_, placed| {
            let used = applied.rings.contains_key(&placed.base);
            if !used {
                space.free(placed.base);
            }
            used
        });
    }

    fn service(
        &mut self,
        service: &ServiceSpec,
        hash_key: u64,
        known: &dyn Fn(&ServiceSpec, &BackendSpec) -> Knowledge,
        now: Instant,
        compiled: &mut Compiled,
    ) -> Result<(), CapacityError> {
        let mut pool = Vec::new();
        let mut members = Vec::new();
        let mut fallback = Vec::new();
        let mut backends = Vec::new();
        for backend in &service.backends {
            let knowledge = known(service, backend);
            let identity = Identity { address: backend.address, port: backend.port };
            let id = self.ids.get(&Owner { service: Arc::clone(&service.name), identity }, now)?;
            let member = Member { id, identity, weight: backend.weight };
            pool.push(member);
            if knowledge.is_eligible() {
                members.push(member);
            } else if knowledge.admin != AdminState::Disabled && knowledge.route.is_some() {
                fallback.push(member);
            }
            compiled.tables.backends.insert(id, entry(backend.address, knowledge.route));
            backends.push(CompiledBackend {
                name: Arc::clone(&backend.name),
                id,
                eligible: knowledge.is_eligible(),
                wanted_share: 0.0,
                slots: 0,
            });
        }
        if members.is_empty() && service.on_all_down == OnAllDown::UseAll {
            members = fallback;
        }
        let placed = self.ring(&service.name, service.ring_size, pool, members)?;
        let weights: BTreeMap<u16, u32> = placed.filled.members.iter().map(|m| (m.id, m.weight)).collect();
        let total: u64 = weights.values().map(|w| u64::from(*w)).sum();
        for backend in &mut backends {
            backend.slots = placed.filled.counts.get(&backend.id).copied().unwrap_or(0);
            // Without members there is no weight either, so nothing is divided by zero.
            backend.wanted_share = weights.get(&backend.id).map_or(0.0, |w| f64::from(*w) / total as f64);
        }
        compiled.tables.rings.insert(placed.base, Arc::clone(&placed.filled.slots));
        let value = Service {
            hash_key,
            ring_base: placed.base,
            ring_size: placed.size,
            forward: match service.forward {
                Forward::L2 => FORWARD_L2,
                Forward::Ipip => FORWARD_IPIP,
            },
            flags: if service.hash == HashMode::Client { SERVICE_HASH_CLIENT } else { 0 },
            reserved: [0; 6],
        };
        let ring = Arc::clone(&placed.filled);
        for key in keys(service) {
            compiled.tables.services.insert(key, value);
        }
        for listen in &service.listen {
            compiled.tables.services.insert(ServiceKey::new(listen.address, 0, 0), Service::ADDRESS);
        }
        compiled.services.push(CompiledService { name: Arc::clone(&service.name), backends, ring });
        Ok(())
    }

    /// The service's ring with these members of its pool, where it stands, built anew only when something differs.
    fn ring(
        &mut self,
        name: &Arc<str>,
        size: u32,
        pool: Vec<Member>,
        members: Vec<Member>,
    ) -> Result<&Placed, CapacityError> {
        let old = self.rings.get(name);
        let same_size = old.filter(|placed| placed.size == size);
        let whole = same_size.map(|placed| &placed.whole).filter(|whole| whole.members == pool).cloned();
        if whole.is_none() || same_size.is_none_or(|placed| placed.filled.members != members) {
            let base = match same_size {
                Some(placed) => placed.base,
                None => self.space.take(size)?,
            };
            self.old_places.extend(old.filter(|placed| placed.base != base).map(|placed| placed.base));
            let whole =
                whole.unwrap_or_else(|| Arc::new(Whole { ids: ring::build(&pool, size), members: pool }));
            let filled = Arc::new(Filled::new(&whole, members));
            self.rings.insert(Arc::clone(name), Placed { base, size, whole, filled });
        }
        Ok(&self.rings[name])
    }
}

impl Filled {
    fn new(whole: &Whole, members: Vec<Member>) -> Self {
        let ids = ring::refill(&whole.ids, &members);
        // Counted in a flat table: this runs within the millisecond that a verdict has.
        let mut counts = vec![0u32; usize::from(ids.iter().copied().max().unwrap_or(0)) + 1];
        for id in &ids {
            counts[usize::from(*id)] += 1;
        }
        Self {
            counts: (0u16..).zip(counts).filter(|(id, n)| *id != 0 && *n != 0).collect(),
            slots: ids.into_iter().map(Slot::settled).collect(),
            members,
            checksum: OnceLock::new(),
        }
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
fn entry(address: IpAddr, route: Option<Route>) -> Backend {
    let mut backend = Backend { flags: BACKEND_PRESENT, ..Backend::NONE };
    store(&mut backend.address, address);
    if address.is_ipv6() {
        backend.flags |= BACKEND_IPV6;
    }
    if let Some(route) = route {
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
