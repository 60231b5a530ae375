//! The controller: one task that owns the dataplane. Others send it messages; it notes what they say, and then
//! reconciles once for all of them.
//!
//! ```text
//! file, SIGHUP --+
//! verdicts ------+--> note --> Engine::reconcile --> maps
//! next hops -----+                 |
//! requests ------+                 +-- failed: again, with a capped back-off
//! ```
//!
//! `engine.rs` is the way from knowledge to maps, `attach.rs` the interfaces, `reload.rs` what a new file changes,
//! `apply.rs` what becomes of it, `requests.rs` what may be asked, `status.rs` what is shown, `counters.rs` rates, `start.rs` the order of starting and leaving.

mod apply;
pub mod attach;
pub mod counters;
pub mod engine;
mod guarded;
pub mod known;
pub mod reload;
mod requests;
pub mod start;
pub mod state_file;
mod status;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use self::{
    attach::{Attach, Attachments, Change},
    counters::Counters,
    engine::{Engine, backend_ref},
    known::Verdict,
    start::Options,
    state_file::StateFile,
};
use crate::{
    api::{events::EventLog, model::EventKind},
    config::spec::{AdminState, HealthSpec, Spec},
    flows::{SweepResult, SweepView},
    health::{BackendRef, Health, HealthChecks, HealthEvent, Target, guard::Guard},
    net::{LinkInfo, NetEvent, NetHandle},
};

/// The first retry after a failed operation comes after so long; each further one after twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Retries are no further apart.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A backend as the probes and the guard were told of it.
#[derive(PartialEq)]
struct Probed {
    key: BackendRef,
    address: IpAddr,
    health: Arc<HealthSpec>,
    guard_timeout: Duration,
}

/// The controller's state. Not generic over what attaches, so that tests can stand in for the kernel.
pub struct Controller {
    engine: Engine,
    attach: Box<dyn Attach>,
    attachments: Attachments,
    /// `None` until the first news of the network.
    links: Option<BTreeMap<String, LinkInfo>>,
    checks: HealthChecks,
    net: NetHandle,
    /// What the probes and the guard were told last.
    probed: Vec<Probed>,
    /// Whose next hops the network is watched for.
    wanted: BTreeSet<IpAddr>,
    options: Options,
    generation: u64,
    reloads: u64,
    last_error: Option<String>,
    held: Vec<String>,
    events: EventLog,
    counters: Counters,
    started: Instant,
    retry_at: Option<Instant>,
    retry_delay: Duration,
    /// Whole walks over the flow table.
    sweeps: u64,
    guard: Guard,
    /// The engine was told of verdicts that are held.
    holds: bool,
    /// Where operators' words are kept, if anywhere.
    state_file: Option<StateFile>,
    /// What the guard said last, by interface, while it holds verdicts.
    guard_texts: BTreeMap<u32, String>,
    /// The last failure, so that it is said once.
    failure: Option<String>,
}

impl Controller {
    /// With a first valid configuration; nothing is attached or probed yet.
    pub fn new(
        options: Options,
        engine: Engine,
        attach: Box<dyn Attach>,
        checks: HealthChecks,
        net: NetHandle,
        now: Instant,
    ) -> Self {
        let mut controller = Self {
            engine,
            attach,
            attachments: Attachments::default(),
            links: None,
            checks,
            net,
            probed: Vec::new(),
            wanted: BTreeSet::new(),
            options,
            generation: 1,
            reloads: 0,
            last_error: None,
            held: Vec::new(),
            events: EventLog::new(now),
            counters: Counters::default(),
            started: now,
            retry_at: None,
            retry_delay: RETRY_FIRST,
            sweeps: 0,
            guard: Guard::default(),
            holds: false,
            state_file: None,
            guard_texts: BTreeMap::new(),
            failure: None,
        };
        controller.follow_spec();
        controller
    }

    /// The configuration in force.
    pub fn spec(&self) -> &Arc<Spec> {
        self.engine.spec()
    }

    /// Notes an event and logs it.
    pub fn event(&mut self, kind: EventKind, about: Option<&BackendRef>, text: String) {
        if let Some(backend) = about {
            tracing::info!(%kind, %backend, "{text}");
        } else {
            tracing::info!(%kind, "{text}");
        }
        let names = (about.map(|b| &*b.service), about.map(|b| &*b.backend));
        self.events.push((Instant::now(), SystemTime::now()), kind, names, text);
    }

    /// Probes and next hops follow the configuration.
    fn follow_spec(&mut self) {
        let spec = Arc::clone(self.engine.spec());
        let known = self.engine.known();
        let health: BTreeMap<&str, Arc<HealthSpec>> =
            spec.services.iter().map(|s| (&*s.name, Arc::new(s.health.clone()))).collect();
        let mut addresses: BTreeSet<_> =
            spec.services.iter().flat_map(|s| &s.backends).map(|b| b.address).collect();
        let mut probed = Vec::new();
        for (service, key, address) in known.probed() {
            addresses.insert(address);
            let health = Arc::clone(&health[&*service.name]);
            probed.push(Probed { key, address, health, guard_timeout: service.guard_timeout });
        }
        if addresses != self.wanted {
            self.net.set_wanted(addresses.clone());
            self.wanted = addresses;
        }
        // Ten thousand probes are not to be looked through for a change of a weight.
        if probed != self.probed {
            let target = |probed: &Probed| {
                let Verdict { health, cause } = known.verdict(&probed.key);
                Target {
                    key: probed.key.clone(),
                    address: probed.address,
                    spec: Arc::clone(&probed.health),
                    initial: (health != Health::Unknown).then_some((health, cause)),
                }
            };
            let targets = probed.iter().map(target).collect();
            self.probed = probed;
            self.follow_subjects(Instant::now());
            self.checks.set_targets(targets);
        }
        self.follow_interfaces();
    }

    /// Attachments follow the configuration and what interfaces there are.
    fn follow_interfaces(&mut self) -> Vec<Change> {
        let spec = Arc::clone(self.engine.spec());
        let Some(links) = &self.links else { return Vec::new() };
        let changes = self.attachments.update(&spec.interfaces, links, &mut *self.attach);
        self.engine.set_devices(self.attachments.devices());
        for change in &changes {
            self.event(EventKind::Dataplane, None, change.to_string());
        }
        changes
    }

    /// News of the network. Answers what changed of the attachments.
    pub fn on_net(&mut self, event: &NetEvent) -> Vec<Change> {
        self.links = Some(event.links.clone());
        let before: BTreeMap<_, _> = self.obstacles();
        self.engine.set_next_hops(event.next_hops.clone());
        self.tell_ways(Instant::now());
        let changes = self.follow_interfaces();
        for (address, why) in self.obstacles() {
            if before.get(&address) != Some(&why) {
                let text = why.unwrap_or_else(|| format!("{address} can be reached"));
                self.event(EventKind::Network, None, text);
            }
        }
        changes
    }

    fn obstacles(&self) -> BTreeMap<IpAddr, Option<String>> {
        let spec = self.engine.spec();
        let addresses = spec.services.iter().flat_map(|s| &s.backends).map(|b| b.address);
        addresses.map(|address| (address, self.engine.known().obstacle(address))).collect()
    }

    /// Verdicts.
    pub fn on_health(&mut self, news: Vec<HealthEvent>) {
        for event in news {
            let verdict = Verdict { health: event.health, cause: event.cause };
            self.engine.set_verdict(event.key.clone(), verdict);
            self.guard.note_health(&event);
            if event.changed {
                let detail = event.detail.as_str();
                let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
                let word = match event.health {
                    Health::Up => "up",
                    Health::Down => "down",
                    Health::Unknown => "unknown",
                };
                self.event(EventKind::Health, Some(&event.key), format!("{word}: {}{detail}", event.reason));
            }
        }
    }

    /// Whether every backend has had a verdict and every next hop an answer.
    pub fn is_settled(&self) -> bool {
        self.has_verdicts() && self.engine.known().next_hops_settled()
    }

    /// Whether every backend that is probed has had a verdict, and the tables rest on it: the probes may know more.
    pub fn has_verdicts(&self) -> bool {
        let has = |service, backend| {
            self.engine.admin(service, backend) == AdminState::Disabled
                || self.engine.health(&backend_ref(service, backend)) != Health::Unknown
        };
        self.spec().services.iter().all(|s| s.backends.iter().all(|b| has(s, b)))
    }

    /// Brings the maps in line with what is known. A failure is retried later, see [`Self::retry_at`].
    pub fn reconcile(&mut self, now: Instant) -> bool {
        self.consult_guard(now);
        let result = self.engine.reconcile(now);
        self.save_words();
        if self.engine.take_forgot() {
            self.follow_spec();
        }
        match result {
            Ok(_) => {
                if self.failure.take().is_some() {
                    self.event(EventKind::Dataplane, None, "the maps are as they should be again".into());
                }
                (self.retry_at, self.retry_delay) = (None, RETRY_FIRST);
                true
            }
            Err(error) => {
                let text = format!("{error}; the tables before it stay in force, and it is tried again");
                if self.failure.as_ref() != Some(&text) {
                    self.event(EventKind::Dataplane, None, text.clone());
                    self.failure = Some(text);
                }
                self.retry_at = Some(now + self.retry_delay);
                self.retry_delay = (self.retry_delay * 2).min(RETRY_MAX);
                false
            }
        }
    }

    /// Operators' words are kept there from now on, and those that it has are in force, unless `is_stale`: the maps say
    /// the same, and later.
    pub fn keep_words(&mut self, file: StateFile, is_stale: bool) {
        if !is_stale {
            self.engine.adopt_words(file.words());
            self.follow_spec();
        }
        self.state_file = Some(file);
    }

    fn save_words(&mut self) {
        let Some(file) = &mut self.state_file else { return };
        if let Err(error) = file.save(self.engine.known().words()) {
            let text =
                format!("cannot keep the state of drained and disabled backends for the next start: {error}");
            self.event(EventKind::Admin, None, text);
            // Said once.
            self.state_file = None;
        }
    }

    /// When to reconcile again although nothing happened.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at.into_iter().chain(self.guard.next_deadline()).min()
    }

    /// Once a second: a reading of the counters.
    pub fn read_counters(&mut self, now: Instant) {
        let ids: Vec<u16> = self.engine.applied().backends.keys().copied().collect();
        match self.engine.dataplane().backend_stats(&ids) {
            Ok(stats) => self.counters.add(now, ids.into_iter().zip(stats).collect()),
            Err(error) => tracing::warn!(%error, "read the counters"),
        }
    }

    /// What the next walk over the flow table has to know.
    pub fn sweep_view(&self) -> SweepView {
        self.engine.sweep_view()
    }

    /// What a walk over the flow table found.
    pub fn on_walk(&mut self, walk: SweepResult) {
        self.sweeps += 1;
        self.engine.on_walk(walk);
    }

    /// The first verdicts are in the tables: who comes up from now on starts slowly.
    pub fn set_started(&mut self) {
        self.engine.set_started();
    }

    /// Compares with the kernel's maps; what differs is reported, and has to be mended by a reconciliation. Answers
    /// whether anything did.
    pub fn check_drift(&mut self) -> bool {
        match self.engine.check_drift() {
            Ok(repairs) => {
                let differs = !repairs.is_empty();
                for op in repairs {
                    self.event(
                        EventKind::Dataplane,
                        None,
                        format!("drift: the maps were changed from outside; repair: {op}"),
                    );
                }
                differs
            }
            Err(error) => {
                tracing::warn!(%error, "compare the maps");
                false
            }
        }
    }

    /// Compares program, links and pins with the kernel; what differs is mended and reported. What could not be attached
    /// before is tried again: no event tells when an XDP slot becomes free. Answers whether an attachment changed.
    pub fn check_attachments(&mut self) -> bool {
        for drift in self.attachments.check(&mut *self.attach) {
            self.event(EventKind::Dataplane, None, drift.to_string());
        }
        !self.follow_interfaces().is_empty()
    }

    /// Takes the data path off all interfaces and leaves no pins.
    pub fn remove_data_path(&mut self) {
        if let Err(error) = self.attach.remove() {
            tracing::warn!("leaving: {:#}", anyhow::Error::new(error));
        }
    }
}
