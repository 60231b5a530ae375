//! Health: probes of every backend, and what they say.
//!
//! [`HealthChecks`] runs one small task for each probed backend; [`HealthEvents`] hands out what changed. Between them
//! is no queue but a map of **unread events, the latest of each backend**: probes never wait for a slow controller,
//! memory is bounded by the number of backends, and a mass failure arrives as one batch. An unread event that is
//! overtaken keeps its `previous`, so a flip there and back is no flip.
//!
//! `state` decides, `book` remembers and `guard` doubts (all pure), `probe` does I/O, `schedule` says when, this file
//! supervises.

pub mod book;
pub mod guard;
pub mod probe;
pub mod reason;
pub mod schedule;
pub mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use self::book::{Book, Start};
pub use self::{
    book::{BackendHealth, Contact, Counts, HealthEvent},
    probe::Observation,
    reason::{Detail, Reason},
    schedule::detection_time,
    state::{Health, Tracker},
};
use crate::config::spec::{Check, HealthSpec};

/// Probes in flight at once, so that they cannot use up the process's descriptors (1,024 by default).
const IN_FLIGHT: usize = 512;

/// Names one backend of one service. Displays as `service/backend`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendRef {
    /// The service's name.
    pub service: Arc<str>,
    /// The backend's name in it.
    pub backend: Arc<str>,
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// A backend to be probed.
#[derive(Debug, Clone)]
pub struct Target {
    /// Whose health it is.
    pub key: BackendRef,
    /// Where it is probed; the port is the spec's.
    pub address: IpAddr,
    /// How it is probed.
    pub spec: Arc<HealthSpec>,
    /// For adopted backends: the last health that is known, and its cause. Only read when the target is new.
    pub initial: Option<(Health, Reason)>,
}

/// How a target is probed once; [`probe::probe`] but in tests.
pub type ProbeFn = Arc<dyn Fn(SocketAddr, Arc<HealthSpec>) -> BoxFuture<'static, Observation> + Send + Sync>;

/// Runs the probes. Dropping it stops them all and ends the [`HealthEvents`].
pub struct HealthChecks {
    shared: Arc<Shared>,
    running: BTreeMap<BackendRef, Running>,
    /// Tells the tasks of one target apart over time.
    epochs: u64,
}

/// Where changes of health come out.
pub struct HealthEvents(Arc<Shared>);

/// A target and the task that probes it; none with `Check::None`.
struct Running {
    address: IpAddr,
    spec: Arc<HealthSpec>,
    /// Rings when the next probe shall not wait for its time.
    hurry: Arc<Notify>,
    _task: Option<Task>,
}

/// A task that lives no longer than this value.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    probe: ProbeFn,
    permits: Semaphore,
    /// Where ticks are counted from.
    origin: Instant,
    /// Rings when the book has unread news or is closed.
    news: Notify,
    book: Mutex<Book>,
}

impl HealthChecks {
    /// Without targets yet.
    pub fn new() -> (Self, HealthEvents) {
        Self::with_probe(Arc::new(|address, spec| async move { probe::probe(address, &spec).await }.boxed()))
    }

    /// With another way to probe, for tests of what stands on top.
    pub fn with_probe(probe: ProbeFn) -> (Self, HealthEvents) {
        let shared = Arc::new(Shared {
            probe,
            permits: Semaphore::new(IN_FLIGHT),
            origin: Instant::now(),
            news: Notify::new(),
            book: Mutex::default(),
        });
        let events = HealthEvents(Arc::clone(&shared));
        (Self { shared, running: BTreeMap::new(), epochs: 0 }, events)
    }

    /// Probes these targets from now on, and no others. Needs a tokio runtime.
    ///
    /// - An unchanged target keeps its task and its state.
    /// - One with another spec is probed anew and keeps its health until a new verdict.
    /// - One with another address is another server: it starts from `initial`, or unknown (an event says so).
    /// - One that is gone stops at once, and its unread event is dropped.
    ///
    /// Of several targets with one key, the last counts.
    pub fn set_targets(&mut self, targets: Vec<Target>) {
        let wanted: BTreeMap<BackendRef, Target> = targets.into_iter().map(|t| (t.key.clone(), t)).collect();
        self.running.retain(|key, _| wanted.contains_key(key));
        self.shared.book().retain(|key| wanted.contains_key(key));
        let changed: Vec<Target> = wanted.into_values().filter(|target| !self.is_running(target)).collect();
        let count = changed.len();
        for (index, target) in changed.into_iter().enumerate() {
            self.start(target, index, count);
        }
    }

    /// How many targets have had no verdict yet: the controller is ready at zero.
    pub fn pending(&self) -> usize {
        self.shared.book().pending()
    }

    /// What is known of every target.
    pub fn view(&self) -> BTreeMap<BackendRef, BackendHealth> {
        self.shared.book().view()
    }

    /// When the path to it was last proved, see [`Reason::proves_path`].
    pub fn proved(&self, key: &BackendRef) -> Option<std::time::Instant> {
        self.shared.book().proved(key)
    }

    /// From now on every result of these targets is news, and of the others what always is.
    pub fn watch(&self, keys: BTreeSet<BackendRef>) {
        self.shared.book().watch(keys);
    }

    /// The next probe of this target starts now, or as soon as the one that runs is over.
    pub fn probe_now(&self, key: &BackendRef) {
        if let Some(running) = self.running.get(key) {
            running.hurry.notify_one();
        }
    }

    fn is_running(&self, target: &Target) -> bool {
        self.running.get(&target.key).is_some_and(|r| r.address == target.address && r.spec == target.spec)
    }

    /// Starts or restarts the `index`th of `count` targets that do.
    fn start(&mut self, target: Target, index: usize, count: usize) {
        self.epochs += 1;
        let Target { key, address, spec, initial } = target;
        let same_server = self.running.get(&key).is_some_and(|running| running.address == address);
        let start = if same_server { Start::Keep } else { Start::From(initial.unwrap_or_default()) };
        if self.shared.book().enter(&key, self.epochs, &spec, start, Instant::now().into_std()) {
            self.shared.news.notify_one();
        }
        let hurry = Arc::new(Notify::new());
        let task = (spec.check != Check::None).then(|| {
            let first = Instant::now() + schedule::first_offset(spec.interval, index, count);
            let job = Job {
                shared: Arc::clone(&self.shared),
                key: key.clone(),
                epoch: self.epochs,
                address: SocketAddr::new(address, spec.port),
                spec: Arc::clone(&spec),
                hurry: Arc::clone(&hurry),
            };
            Task(tokio::spawn(job.run(first)).abort_handle())
        });
        self.running.insert(key, Running { address, spec, hurry, _task: task });
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.shared.book().close();
        self.shared.news.notify_one();
    }
}

impl HealthEvents {
    /// Waits for news and takes all there is: at most one event a backend, in the order of their keys. Every first
    /// result is news, and every change of health, reason or cause. `None` once the [`HealthChecks`] are gone.
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Vec<HealthEvent>> {
        loop {
            {
                let mut book = self.0.book();
                let news = book.take_unread();
                if !news.is_empty() {
                    return Some(news);
                }
                if book.is_closed() {
                    return None;
                }
            }
            self.0.news.notified().await;
        }
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic cannot leave the book half-written: nothing in it can fail midway.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The endless task of one target.
struct Job {
    shared: Arc<Shared>,
    key: BackendRef,
    epoch: u64,
    address: SocketAddr,
    spec: Arc<HealthSpec>,
    hurry: Arc<Notify>,
}

impl Job {
    async fn run(self, first: Instant) {
        let mut due = first;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.hurry.notified() => {}
            }
            // The wait for a permit is no part of the probe: it has no influence on the result.
            let Ok(permit) = self.shared.permits.acquire().await else { return };
            let started = Instant::now();
            let seen = self.probe_once().await;
            drop(permit);
            let Some(interval) = self.record(seen) else { return };
            let next = started + schedule::jittered(interval);
            let origin = self.shared.origin;
            due = origin + schedule::on_tick(next.saturating_duration_since(origin), interval);
        }
    }

    /// A probe that panics is our own trouble: this round is lost, and nothing else.
    async fn probe_once(&self) -> Observation {
        let probe =
            AssertUnwindSafe(async { (self.shared.probe)(self.address, Arc::clone(&self.spec)).await });
        probe.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(backend = %self.key, "a probe panicked; this is a bug");
            Observation {
                reason: Reason::SockErr,
                detail: Detail::new("the probe panicked"),
                latency: Duration::ZERO,
            }
        })
    }

    /// Notes a result; the interval to the next probe, or `None` if another task has taken over.
    fn record(&self, seen: Observation) -> Option<Duration> {
        let recorded = self.shared.book().record(&self.key, self.epoch, seen, Instant::now().into_std())?;
        if recorded.news {
            self.shared.news.notify_one();
        }
        Some(recorded.interval)
    }
}

#[cfg(test)]
mod tests;
