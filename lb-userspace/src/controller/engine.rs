//! What the controller knows, and the one way from there to the maps: compile, diff, apply.
//!
//! Everything that changes (a file, a verdict, a next hop, an operator's word) only updates what is known here;
//! [`Engine::reconcile`] then does what is needed. It is the same after a failure and after drift. No I/O but the
//! dataplane's, and time is a parameter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use lb_common::backend::BackendStats;

use crate::{
    config::spec::{AdminState, BackendSpec, Forward, ServiceSpec, Spec},
    dataplane::{ApplyError, Dataplane},
    health::{BackendRef, Health},
    net::{NextHop, NextHopState},
    plan::{
        compile::most_of_a_family,
        compile::{CapacityError, Compiled, Compiler, Knowledge, Route},
        diff::{diff, services_go_first},
        tables::{Op, Tables},
    },
};

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
    spec: Arc<Spec>,
    health: BTreeMap<BackendRef, Health>,
    next_hops: BTreeMap<IpAddr, NextHopState>,
    admin: BTreeMap<BackendRef, AdminState>,
    /// Interfaces that the program is attached to: index and name.
    devices: BTreeMap<u32, String>,
    compiler: Compiler,
    compiled: Compiled,
    applied: Tables,
    /// Counters of backends that left, by service.
    left_behind: BTreeMap<Arc<str>, BackendStats>,
    /// Of which service each id in the maps is.
    services_of: BTreeMap<u16, Arc<str>>,
}

impl Engine {
    /// Knows nothing of the network and of health yet. `dataplane` is empty.
    pub fn new(spec: Arc<Spec>, dataplane: Box<dyn Dataplane>) -> Self {
        Self {
            compiler: Compiler::new(&spec.limits),
            dataplane,
            spec,
            health: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            admin: BTreeMap::new(),
            devices: BTreeMap::new(),
            compiled: Compiled { tables: Tables::default(), services: Vec::new() },
            applied: Tables::default(),
            left_behind: BTreeMap::new(),
            services_of: BTreeMap::new(),
        }
    }

    /// The configuration wanted.
    pub fn spec(&self) -> &Arc<Spec> {
        &self.spec
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

    /// Another configuration is wanted. What is known of a server stays known as long as its service names it, under
    /// whatever name; a server that took over another's name is another one.
    pub fn set_spec(&mut self, spec: Arc<Spec>) {
        (self.health, self.admin) = self.carried_over(&spec);
        self.spec = spec;
    }

    /// What is known now, under the names of `spec`.
    fn carried_over(&self, spec: &Spec) -> (BTreeMap<BackendRef, Health>, BTreeMap<BackendRef, AdminState>) {
        let old: BTreeMap<Server, (BackendRef, AdminState)> = servers(&self.spec).collect();
        let (mut health, mut admin) = (BTreeMap::new(), BTreeMap::new());
        for (server, (key, state)) in servers(spec) {
            let Some((old_key, old_state)) = old.get(&server) else { continue };
            // The file wins where it changes a backend that an operator had put into another state.
            let word = self.admin.get(old_key).filter(|_| state == *old_state);
            admin.extend(word.map(|word| (key.clone(), *word)));
            if *word.unwrap_or(&state) != AdminState::Disabled {
                health.extend(self.health.get(old_key).map(|known| (key, *known)));
            }
        }
        (health, admin)
    }

    /// The last verdict.
    pub fn health(&self, key: &BackendRef) -> Health {
        self.health.get(key).copied().unwrap_or(Health::Unknown)
    }

    /// A verdict.
    pub fn set_health(&mut self, key: BackendRef, health: Health) {
        self.health.insert(key, health);
    }

    /// The next hops of all wanted addresses.
    pub fn set_next_hops(&mut self, next_hops: BTreeMap<IpAddr, NextHopState>) {
        self.next_hops = next_hops;
    }

    /// The interfaces that the program is attached to.
    pub fn set_devices(&mut self, devices: BTreeMap<u32, String>) {
        self.devices = devices;
    }

    /// An operator's word, until the file says otherwise.
    pub fn set_admin(&mut self, key: BackendRef, state: AdminState) {
        if state == AdminState::Disabled {
            // It is not probed from here on: what is known will be of the past when it is enabled.
            self.health.remove(&key);
        }
        self.admin.insert(key, state);
    }

    /// The administrative state in force.
    pub fn admin(&self, service: &ServiceSpec, backend: &BackendSpec) -> AdminState {
        self.admin.get(&backend_ref(service, backend)).copied().unwrap_or(backend.state)
    }

    /// Why packets cannot be sent to a backend, if they cannot.
    pub fn obstacle(&self, address: IpAddr) -> Option<String> {
        match self.next_hops.get(&address) {
            None | Some(NextHopState::Pending) => Some("its next hop is not known yet".into()),
            Some(NextHopState::Unreachable(why)) => Some(format!("{address} {why}")),
            Some(NextHopState::Resolved(hop)) if !self.devices.contains_key(&hop.ifindex) => Some(format!(
                "{address} is behind {}, which is not among `interfaces`; add it there",
                hop.interface
            )),
            Some(NextHopState::Resolved(hop))
                if hop.source.is_unspecified() && self.is_tunnelled_to(address) =>
            {
                Some(format!("this host has no address to reach {address} from; give {} one", hop.interface))
            }
            Some(NextHopState::Resolved(_)) => None,
        }
    }

    fn is_tunnelled_to(&self, address: IpAddr) -> bool {
        let ipip = self.spec.services.iter().filter(|s| s.forward == Forward::Ipip);
        ipip.flat_map(|s| &s.backends).any(|b| b.address == address)
    }

    /// Whether all wanted next hops have been answered, one way or the other.
    pub fn next_hops_settled(&self) -> bool {
        let pending =
            |b: &BackendSpec| matches!(self.next_hops.get(&b.address), None | Some(NextHopState::Pending));
        !self.spec.services.iter().flat_map(|s| &s.backends).any(pending)
    }

    /// Makes the maps what they should be. Answers how many operations that took.
    pub fn reconcile(&mut self, now: Instant) -> Result<usize, ReconcileError> {
        let mut compiler = std::mem::replace(&mut self.compiler, Compiler::new(&self.spec.limits));
        let known = |service: &ServiceSpec, backend: &BackendSpec| self.knowledge(service, backend);
        let compiled = compiler.compile(&self.spec, &self.device_indexes(), &known, now);
        self.compiler = compiler;
        self.compiled = compiled?;
        for (service, compiled) in self.spec.services.iter().zip(&self.compiled.services) {
            for backend in &compiled.backends {
                self.services_of.insert(backend.id, Arc::clone(&service.name));
            }
        }
        let ops = self.make_room(diff(&self.applied, &self.compiled.tables));
        for op in &ops {
            self.apply(op)?;
        }
        self.compiler.settle(&self.applied, now);
        Ok(ops.len())
    }

    /// A nearly full map cannot hold the services that come beside those that go.
    fn make_room(&self, ops: Vec<Op>) -> Vec<Op> {
        let (applied, wanted) = (&self.applied.services, &self.compiled.tables.services);
        let coming = wanted.keys().filter(|key| !applied.contains_key(key));
        let at_once = most_of_a_family(applied.keys().chain(coming));
        if at_once > self.spec.limits.services as usize { services_go_first(ops) } else { ops }
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
        op.apply_to(&mut self.applied);
        if let (Op::DeleteBackend(id), Some(last)) = (op, last)
            && let Some(service) = self.services_of.remove(id)
        {
            let sum = self.left_behind.entry(service).or_default();
            *sum = add(*sum, last);
        }
        Ok(())
    }

    /// What the tables would be with another spec once its new servers are up; the maps and this engine stay as they
    /// are.
    pub fn preview(&self, spec: &Spec, now: Instant) -> Result<Compiled, CapacityError> {
        let (health, admin) = self.carried_over(spec);
        let probed: BTreeSet<Server> = servers(&self.spec)
            .filter(|(_, (key, state))| self.admin.get(key).unwrap_or(state) != &AdminState::Disabled)
            .map(|(server, _)| server)
            .collect();
        let known = |service: &ServiceSpec, backend: &BackendSpec| {
            let key = backend_ref(service, backend);
            let is_new = !probed.contains(&server(service, backend));
            Knowledge {
                admin: admin.get(&key).copied().unwrap_or(backend.state),
                is_up: is_new || health.get(&key) == Some(&Health::Up),
                route: self.route(service, backend.address).or(is_new.then_some(Route {
                    ifindex: 0,
                    next_hop: [0; 6],
                    own: [0; 6],
                    outer_source: backend.address,
                })),
            }
        };
        self.compiler.clone().compile(spec, &self.device_indexes(), &known, now)
    }

    fn device_indexes(&self) -> BTreeSet<u32> {
        self.devices.keys().copied().collect()
    }

    fn knowledge(&self, service: &ServiceSpec, backend: &BackendSpec) -> Knowledge {
        Knowledge {
            admin: self.admin(service, backend),
            is_up: self.health.get(&backend_ref(service, backend)) == Some(&Health::Up),
            route: self.route(service, backend.address),
        }
    }

    fn route(&self, service: &ServiceSpec, address: IpAddr) -> Option<Route> {
        let Some(NextHopState::Resolved(NextHop { ifindex, mac, source_mac, source, .. })) =
            self.next_hops.get(&address)
        else {
            return None;
        };
        if source.is_unspecified() && service.forward == Forward::Ipip {
            return None;
        }
        self.devices.contains_key(ifindex).then_some(Route {
            ifindex: *ifindex,
            next_hop: *mac,
            own: *source_mac,
            outer_source: *source,
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

/// The name of a backend.
pub fn backend_ref(service: &ServiceSpec, backend: &BackendSpec) -> BackendRef {
    BackendRef { service: Arc::clone(&service.name), backend: Arc::clone(&backend.name) }
}

/// A server of a service, whatever it is called: service, address, port.
type Server = (Arc<str>, IpAddr, Option<u16>);

/// Each with its name and the state that the file wants.
fn servers(spec: &Spec) -> impl Iterator<Item = (Server, (BackendRef, AdminState))> + '_ {
    spec.services
        .iter()
        .flat_map(|s| s.backends.iter().map(move |b| (server(s, b), (backend_ref(s, b), b.state))))
}

fn server(service: &ServiceSpec, backend: &BackendSpec) -> Server {
    (Arc::clone(&service.name), backend.address, backend.port)
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
