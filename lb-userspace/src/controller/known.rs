//! What the controller knows of the backends: the file, verdicts, operators' words, drains, next hops. Pure: it is told,
//! and asked; time is a parameter.

mod follow;
mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt as _};

use crate::{
    config::spec::{AdminState, BackendSpec, DrainEnd, OnDown, ServiceSpec, Spec},
    health::{BackendRef, Health, Reason},
    net::NextHopState,
    plan::{
        compile::{Knowledge, Route},
        records::{Note, Noted, Word},
    },
};

/// A backend that left the file is forgotten when no pin of it was seen for so long: clients that say something at least
/// so often lose nothing.
const LEAVING_QUIET: Duration = Duration::from_secs(30);

/// A verdict, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The health.
    pub health: Health,
    /// Whether a backend that is down is dead is for this to say.
    pub cause: Reason,
}

/// A backend that has left the file and keeps its flows for a while.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// Under this name it is probed: another backend may have its name by now.
    pub key: BackendRef,
    /// As the file had it.
    pub spec: BackendSpec,
    /// When its drain began.
    pub since: Instant,
    /// When pins of it were last seen, or it left.
    quiet_since: Instant,
}

/// A backend that another run of the controller left in the maps.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// Its address.
    pub address: IpAddr,
    /// The way to it, if there was one.
    pub route: Option<Route>,
    /// It was not dead, and neither disabled.
    pub is_usable: bool,
    /// What was noted of it.
    pub noted: Noted,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Known {
    spec: Arc<Spec>,
    /// Hashed, as the next hops: each is looked up within the millisecond that a verdict has.
    verdicts: HashMap<BackendRef, Verdict>,
    words: BTreeMap<BackendRef, Word>,
    drains: BTreeMap<BackendRef, Instant>,
    /// By service.
    leaving: BTreeMap<Arc<str>, Vec<Leaving>>,
    next_hops: HashMap<IpAddr, NextHopState>,
    /// The last ways known, also to another run of the controller.
    last_routes: BTreeMap<IpAddr, Route>,
    /// Of which of them the network has said nothing to this run: they hold until it does.
    unanswered: BTreeSet<IpAddr>,
    /// What is in force of those whose last verdict, or the loss of their next hop, is not believed.
    held: BTreeMap<BackendRef, Verdict>,
    /// Interfaces that the program is attached to: index and name.
    devices: BTreeMap<u32, String>,
}

/// The name of a backend.
pub fn backend_ref(service: &ServiceSpec, backend: &BackendSpec) -> BackendRef {
    BackendRef { service: Arc::clone(&service.name), backend: Arc::clone(&backend.name) }
}

/// The name under which a leaving backend is probed. No file has such a name.
fn leaving_ref(service: &ServiceSpec, backend: &BackendSpec) -> BackendRef {
    let port = backend.port.map_or_else(String::new, |port| format!(":{port}"));
    let name = format!("{}@{}{port}", backend.name, backend.address);
    BackendRef { service: Arc::clone(&service.name), backend: name.into() }
}

/// A server of a service, whatever it is called: address, port.
type Server = (IpAddr, Option<u16>);

fn server(backend: &BackendSpec) -> Server {
    (backend.address, backend.port)
}

fn is_same(a: &BackendSpec, b: &BackendSpec) -> bool {
    a.address == b.address && a.port == b.port
}

impl Known {
    /// The file; nothing else is known.
    pub fn new(spec: Arc<Spec>) -> Self {
        Self {
            spec,
            verdicts: HashMap::new(),
            words: BTreeMap::new(),
            drains: BTreeMap::new(),
            leaving: BTreeMap::new(),
            next_hops: HashMap::new(),
            last_routes: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            held: BTreeMap::new(),
            devices: BTreeMap::new(),
        }
    }

    /// The configuration wanted.
    pub fn spec(&self) -> &Arc<Spec> {
        &self.spec
    }

    /// The last verdict.
    pub fn verdict(&self, key: &BackendRef) -> Verdict {
        self.verdicts.get(key).copied().unwrap_or_default()
    }

    /// A verdict.
    pub fn set_verdict(&mut self, key: BackendRef, verdict: Verdict) {
        self.verdicts.insert(key, verdict);
    }

    /// Whose last verdict is not believed, and what is in force instead.
    pub fn set_held(&mut self, held: BTreeMap<BackendRef, Verdict>) {
        self.held = held;
    }

    /// An operator's word about a backend, until the file says otherwise.
    pub fn set_word(&mut self, key: BackendRef, word: Word) {
        if word.state == AdminState::Disabled {
            // It is not probed from here on: what is known will be of the past when it is enabled.
            self.verdicts.remove(&key);
        }
        self.words.insert(key, word);
    }

    /// All words that differ from the file's.
    pub fn words(&self) -> &BTreeMap<BackendRef, Word> {
        &self.words
    }

    /// The administrative state in force.
    pub fn admin(&self, service: &ServiceSpec, backend: &BackendSpec) -> AdminState {
        self.admin_of(&backend_ref(service, backend), backend)
    }

    fn admin_of(&self, key: &BackendRef, backend: &BackendSpec) -> AdminState {
        self.words.get(key).map_or(backend.state, |word| word.state)
    }

    /// Since when a backend drains.
    pub fn drain_since(&self, key: &BackendRef) -> Option<Instant> {
        self.drains.get(key).copied()
    }

    /// Backends that have left a service and keep their flows for a while.
    pub fn leaving_of(&self, service: &ServiceSpec) -> &[Leaving] {
        self.leaving.get(&service.name).map_or(&[], Vec::as_slice)
    }

    /// Drains begin and end with the state; backends that have left are forgotten when they are dead. Answers whether
    /// one was.
    pub fn pass_time(&mut self, now: Instant) -> bool {
        let spec = Arc::clone(&self.spec);
        for service in &spec.services {
            for backend in &service.backends {
                // Most have nothing to do with drains, and are many.
                if backend.state != AdminState::Drain && self.words.is_empty() && self.drains.is_empty() {
                    continue;
                }
                let key = backend_ref(service, backend);
                if self.admin_of(&key, backend) == AdminState::Drain {
                    self.drains.entry(key).or_insert(now);
                } else {
                    self.drains.remove(&key);
                }
            }
        }
        self.retain_leaving(|known, service, left| {
            known.knowledge(service, &left.spec, &left.key, Some(left.since), now).is_usable
        })
    }

    /// A walk over the flow table that began at `started` counted the pins of the backends that leave: who has had none
    /// for long enough is forgotten, if nor was a pin refused (`refused_at`) in that time: it could have been one of
    /// theirs. Answers whether one was.
    pub fn note_pins(
        &mut self,
        started: Instant,
        refused_at: Option<Instant>,
        pins: impl Fn(&ServiceSpec, &BackendSpec) -> u64,
    ) -> bool {
        let spec = Arc::clone(&self.spec);
        for service in &spec.services {
            for left in self.leaving.get_mut(&service.name).into_iter().flatten() {
                if pins(service, &left.spec) > 0 {
                    left.quiet_since = started;
                }
            }
        }
        self.retain_leaving(|_, service, left| {
            let quiet_since = refused_at.map_or(left.quiet_since, |refused| refused.max(left.quiet_since));
            started < quiet_since + LEAVING_QUIET || pins(service, &left.spec) > 0
        })
    }

    fn retain_leaving(&mut self, keep: impl Fn(&Self, &ServiceSpec, &Leaving) -> bool) -> bool {
        let spec = Arc::clone(&self.spec);
        let mut gone = Vec::new();
        for service in &spec.services {
            let left = self.leaving_of(service).iter().filter(|left| !keep(self, service, left));
            gone.extend(left.map(|left| left.key.clone()));
        }
        for key in &gone {
            self.verdicts.remove(key);
            self.leaving.entry(Arc::clone(&key.service)).or_default().retain(|left| left.key != *key);
        }
        self.leaving.retain(|_, left| !left.is_empty());
        !gone.is_empty()
    }

    /// What the tables have to know of a backend of the file.
    pub fn of_file(&self, service: &ServiceSpec, backend: &BackendSpec, now: Instant) -> Knowledge {
        self.knowledge(service, backend, &backend_ref(service, backend), None, now)
    }

    /// What the tables have to know of those that have left a service.
    pub fn of_leaving(&self, service: &ServiceSpec, now: Instant) -> Vec<(&BackendSpec, Knowledge)> {
        let known = |left: &Leaving| self.knowledge(service, &left.spec, &left.key, Some(left.since), now);
        self.leaving.get(&service.name).into_iter().flatten().map(|left| (&left.spec, known(left))).collect()
    }

    /// `left`: since when it is leaving, if it is.
    fn knowledge(
        &self,
        service: &ServiceSpec,
        backend: &BackendSpec,
        key: &BackendRef,
        left: Option<Instant>,
        now: Instant,
    ) -> Knowledge {
        let admin = if left.is_some() { AdminState::Drain } else { self.admin_of(key, backend) };
        let drain_since = left.or_else(|| self.drain_since(key));
        let drain_is_over = drain_since.is_some_and(|since| now >= since + service.drain_timeout);
        let held = self.held.get(key);
        let Verdict { health, cause } = held.copied().unwrap_or_else(|| self.verdict(key));
        let is_dead = health == Health::Down
            && match service.on_down {
                OnDown::Auto => !cause.is_layer7_only(),
                OnDown::Keep => false,
                OnDown::Reset => true,
            };
        let is_over = drain_is_over && service.drain_end == DrainEnd::Reset;
        Knowledge {
            takes_new: admin == AdminState::Active && health == Health::Up,
            is_usable: admin != AdminState::Disabled && !is_dead && !is_over,
            drain_is_over,
            is_last_resort: admin != AdminState::Disabled,
            route: self.route(service, backend.address, held.is_some()),
            note: Note {
                health,
                cause,
                word: self.words.get(key).copied(),
                drain_since,
                leaving: left.is_some(),
            },
        }
    }

    /// Every backend with the name that it is probed under, the leaving ones included.
    pub fn probed(&self) -> Vec<(&ServiceSpec, BackendRef, IpAddr)> {
        let mut probed = Vec::new();
        for service in &self.spec.services {
            for backend in &service.backends {
                // A disabled server may be switched off; probing it tells nothing that anyone wants to know.
                if self.admin(service, backend) != AdminState::Disabled {
                    probed.push((service, backend_ref(service, backend), backend.address));
                }
            }
            let leaving = self.leaving_of(service);
            probed.extend(leaving.iter().map(|left| (service, left.key.clone(), left.spec.address)));
        }
        probed
    }
}
