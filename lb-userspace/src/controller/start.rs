//! Starting, running and leaving, in order. What can fail for a user's reasons comes first and leaves no trace.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    Controller,
    attach::{Attach, Change},
    engine::Engine,
    state_file::{self, StateFile},
};
use crate::{
    api::{
        handle::{self, ControllerMailbox},
        model::EventKind,
        server::{Limits, Server},
    },
    cli::args::PIN_DIR,
    config::{
        self, Loaded,
        consent::{self, Consent},
        spec::XdpMode,
        watch::{FileEvent, Stillness, Watcher},
    },
    dataplane::bpf::{
        self, AttachError, Attached, BpfProgram, Drift, Opened, PinDir, PinError, SweepError, SweepHandle,
        SweepParts, SweepResults,
    },
    flows::{Cadence, SweepResult},
    health::{HealthChecks, HealthEvents},
    logging,
    net::{LinkInfo, NetEvent, NetHandle, NetWatch, ethtool::NicFeatures, nic},
};

/// `ready` waits for next hops at most this long after the first verdicts.
const NEXT_HOPS_LIMIT: Duration = Duration::from_secs(1);
/// `ready` waits for verdicts at most this long: a probe that fails for our own reasons never gives one.
const VERDICTS_LIMIT: Duration = Duration::from_mins(1);
/// A watched change that only removes waits until the file has been still for so long.
const REMOVAL_STILLNESS: Duration = Duration::from_millis(500);
/// The first verdicts of a new service come within so long.
const YOUNG: Duration = Duration::from_secs(2);
/// Comparisons with the kernel's program, links and maps take at most one part in so many of the time: 4 million slots
/// and 10,000 backends take 20 ms, 65,537 slots well under one.
const DRIFT_SHARE: u32 = 50;

/// What `xlb run` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file.
    pub config: PathBuf,
    /// Instead of the file's `admin.socket`.
    pub socket: Option<PathBuf>,
    /// Where program, links and maps are pinned.
    pub pin_dir: PathBuf,
    /// Leave the data path as it is at the end.
    pub keep: bool,
}

impl Options {
    /// The configuration with what was given on the command line instead.
    pub fn adjust(&self, mut loaded: Loaded) -> Loaded {
        if let Some(socket) = &self.socket {
            loaded.spec.admin.socket.clone_from(socket);
        }
        loaded
    }
}

impl Attach for BpfProgram {
    fn attach(&mut self, link: &LinkInfo, mode: XdpMode) -> Result<Attached, AttachError> {
        Self::attach(self, link, mode)
    }

    fn detach(&mut self, interface: &str) {
        Self::detach(self, interface);
    }

    fn held(&self) -> Vec<String> {
        Self::held(self)
    }

    fn check(&mut self) -> Vec<Drift> {
        Self::check(self)
    }

    fn remove(&mut self) -> Result<(), PinError> {
        Self::remove(self)
    }
}

/// Runs the controller until SIGTERM or SIGINT.
pub async fn run(options: &Options) -> Result<()> {
    // Before the file is read: a change after the reading is seen then.
    let watcher = Watcher::new(&options.config).context("watch the configuration file")?;
    let loaded = options.adjust(config::load(&options.config)?);
    for warning in &loaded.warnings {
        tracing::warn!("{}: {}", warning.place(), warning.message);
    }
    let server = Server::bind(&loaded.spec.admin, Limits::default())?;
    let signals = Signals::new()?;
    let spec = Arc::new(loaded.spec.clone());
    let pins = PinDir::lock(&options.pin_dir)?;
    let mut net = NetWatch::spawn(BTreeSet::new()).context("watch the network by netlink")?;
    let (checks, health_events) = HealthChecks::new();
    let Opened { maps, mut program, adopted } = bpf::open(&spec.limits, pins)?;
    let sweeper =
        program.take_sweep_parts().map(SweepParts::spawn).transpose().context("start the sweeper")?;
    let (dataplane, now) = (Box::new(maps), Instant::now());
    let engine = if adopted {
        Engine::adopt(Arc::clone(&spec), dataplane, now)?
    } else {
        Engine::new(Arc::clone(&spec), dataplane)
    }
    .with_young(YOUNG);
    let own_programs = program.running();
    let mut controller =
        Controller::new(options.clone(), engine, Box::new(program), checks, net.clone(), Instant::now());
    if adopted {
        let text = format!("the data path of an earlier controller goes on ({})", options.pin_dir.display());
        controller.event(EventKind::Controller, None, text);
    }
    if options.pin_dir == Path::new(PIN_DIR) {
        match StateFile::open(Path::new(state_file::PATH)) {
            Ok(file) => controller.keep_words(file, adopted),
            Err(error) => {
                tracing::warn!("{} is not used: {error}; move it away to have a new one", state_file::PATH);
            }
        }
    }
    let first = net.changed().await.context("read interfaces and routes by netlink");
    let begun = first.and_then(|first| {
        warn_about_interfaces(&loaded, &first, own_programs);
        begin(&mut controller, &loaded, &first, adopted)
    });
    if let Err(error) = begun {
        // What an earlier controller left goes on as it was.
        if !adopted {
            controller.remove_data_path();
        }
        return Err(error);
    }
    let (handle, mailbox) = handle::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(handle, async { drop(stopped.await) }));
    let mut work = Loop {
        options,
        controller,
        watcher,
        signals,
        net,
        health_events,
        mailbox,
        pending: None,
        sweeper,
        cadence: Cadence::new(Instant::now()),
    };
    work.run().await;
    if options.keep {
        tracing::info!("leaving: forwarding goes on with the last tables; `xlb detach` ends it");
    } else {
        work.controller.remove_data_path();
        tracing::info!("leaving: the data path is detached");
    }
    drop(work);
    drop(stop);
    drop(serving.await);
    Ok(())
}

/// The first attachments and tables.
fn begin(controller: &mut Controller, loaded: &Loaded, first: &NetEvent, adopted: bool) -> Result<()> {
    // What does not fit the maps is refused here; later it could only be tried again and again.
    controller.engine.preview(&Arc::clone(controller.spec()), Instant::now())?;
    for change in controller.on_net(first) {
        // After a crash, one interface that is gone must not keep the controller from the others.
        if let (Change::Failed { name, why }, false) = (change, adopted) {
            return Err(anyhow::Error::new(why).context(format!("attach to interface {name}")));
        }
    }
    controller.reconcile(Instant::now());
    Ok(())
}

/// What will bite later is said at the start.
fn warn_about_interfaces(loaded: &Loaded, event: &NetEvent, own_programs: BTreeSet<u32>) {
    let attachment = nic::Attachment { frags: true, own_programs };
    for interface in &loaded.spec.interfaces {
        let Some(link) = event.links.get(&interface.name) else { continue };
        match NicFeatures::read(&interface.name) {
            Ok(features) => {
                for warning in nic::warnings(link, &features, &attachment) {
                    tracing::warn!("{warning}");
                }
            }
            Err(error) => tracing::debug!(%error, "read the settings of {}", interface.name),
        }
    }
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

/// Everything that the controller listens to.
struct Loop<'a> {
    options: &'a Options,
    controller: Controller,
    watcher: Watcher,
    signals: Signals,
    net: NetHandle,
    health_events: HealthEvents,
    mailbox: ControllerMailbox,
    /// A watched change that only removes, waiting for the file to be still.
    pending: Option<(Loaded, Stillness)>,
    /// Walks over the flow table.
    sweeper: Option<(SweepHandle, SweepResults)>,
    cadence: Cadence,
}

impl Loop<'_> {
    async fn run(&mut self) {
        let started = Instant::now();
        let mut ready = false;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drift_at = started;
        loop {
            let retry = wake_at(&self.controller, ready, started);
            tokio::select! {
                biased;
                _ = self.signals.terminate.recv() => return,
                _ = self.signals.interrupt.recv() => return,
                Some(news) = self.health_events.recv() => self.controller.on_health(news),
                Ok(event) = self.net.changed() => drop(self.controller.on_net(&event)),
                Some(request) = self.mailbox.requests.recv() => {
                    self.controller.on_request(request, Instant::now());
                    continue;
                }
                _ = self.signals.hangup.recv() => self.read_file(),
                event = self.watcher.changed() => self.on_file(event),
                () = still(&mut self.pending) => self.on_still(),
                result = walked(&mut self.sweeper) => self.on_walk(result),
                () = until(self.cadence.due()) => self.ask_for_walk(),
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.controller.read_counters(now);
                    if now >= drift_at {
                        self.check_drift(&mut drift_at);
                    }
                }
                () = sleep_until(retry.into()) => {}
            }
            let now = Instant::now();
            let clean = self.controller.reconcile(now);
            if !ready && clean && is_ready(&self.controller, now - started) {
                ready = true;
                self.announce();
            }
        }
    }

    fn ask_for_walk(&mut self) {
        if let Some((handle, _)) = &self.sweeper {
            handle.request(self.controller.sweep_view());
        }
        self.cadence.asked();
    }

    fn on_walk(&mut self, result: Result<SweepResult, SweepError>) {
        match result {
            Ok(walk) => {
                self.cadence.finished(&walk);
                self.controller.on_walk(walk);
            }
            Err(error) => {
                self.cadence.failed(Instant::now());
                tracing::warn!(%error, "the sweeper failed; it tries again");
            }
        }
    }

    /// Compares with the kernel; the reconciliation that follows mends the maps.
    fn check_drift(&mut self, next: &mut Instant) {
        let start = Instant::now();
        self.controller.check_attachments();
        self.controller.check_drift();
        let end = Instant::now();
        *next = end + (end - start) * DRIFT_SHARE;
    }

    fn announce(&mut self) {
        self.controller.set_started();
        let spec = Arc::clone(self.controller.spec());
        let backends: usize = spec.services.iter().map(|s| s.backends.len()).sum();
        self.controller.event(EventKind::Controller, None, "ready".into());
        logging::ready_line(&format!("{} services, {backends} backends", spec.services.len()));
        self.mailbox.ready.send_replace(true);
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    /// SIGHUP: whoever sends it means what the file says.
    fn read_file(&mut self) {
        self.pending = None;
        let content = config::load(&self.options.config).map_err(|e| e.to_string());
        self.reload(content, Consent::Reload);
    }

    fn on_file(&mut self, event: FileEvent) {
        self.pending = None;
        let FileEvent { content, still } = event;
        let parsed = content
            .map_err(|why| why.to_string())
            .and_then(|text| config::parse(&text, &self.options.config).map_err(|e| e.to_string()))
            .map(|loaded| self.options.adjust(loaded));
        match parsed {
            // A half-written file can look like one with less in it, or with a shorter last word.
            Ok(loaded)
                if consent::only_removes(self.controller.spec(), &loaded.spec)
                    || loaded.ends_within_a_line() =>
            {
                self.pending = Some((loaded, still));
            }
            content => self.reload(content, Consent::None),
        }
    }

    fn on_still(&mut self) {
        if let Some((loaded, _)) = self.pending.take() {
            self.reload(Ok(loaded), Consent::None);
        }
    }

    fn reload(&mut self, content: Result<Loaded, String>, consent: Consent) {
        let reply = self.controller.reload(content, consent, Instant::now());
        for warning in reply.warnings {
            tracing::warn!("{warning}");
        }
        for error in reply.errors {
            tracing::error!("the configuration is unchanged:\n{error}");
        }
    }
}

/// The result of the walk that is under way.
async fn walked(sweeper: &mut Option<(SweepHandle, SweepResults)>) -> Result<SweepResult, SweepError> {
    if let Some((_, results)) = sweeper
        && let Some(result) = results.recv().await
    {
        return result;
    }
    // Its thread is gone: there is nothing to wait for.
    std::future::pending().await
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// When to look again although nothing happened.
fn wake_at(controller: &Controller, ready: bool, started: Instant) -> Instant {
    let far = Instant::now() + Duration::from_hours(1);
    let limit = if ready {
        far
    } else if controller.has_verdicts() {
        // Next hops may still be waited for: looked at again soon.
        Instant::now() + Duration::from_millis(50)
    } else {
        started + VERDICTS_LIMIT
    };
    controller.retry_at().map_or(limit, |retry| retry.min(limit))
}

fn is_ready(controller: &Controller, elapsed: Duration) -> bool {
    controller.is_settled()
        || (controller.has_verdicts() && elapsed >= NEXT_HOPS_LIMIT)
        || elapsed >= VERDICTS_LIMIT
}

async fn still(pending: &mut Option<(Loaded, Stillness)>) {
    match pending {
        Some((_, stillness)) => stillness.wait(REMOVAL_STILLNESS).await,
        None => std::future::pending().await,
    }
}

/// Runs the decapsulator on a server until SIGTERM or SIGINT.
pub async fn decap(interface: &str, allow: &[(std::net::IpAddr, u8)]) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut decap = bpf::Decap::load(allow)?;
    let native = decap.attach(interface).with_context(|| format!("attach to interface {interface}"))?;
    logging::ready_line(&format!(
        "{interface} unwraps IP-in-IP in {} mode",
        if native { "native" } else { "generic" }
    ));
    tokio::select! {
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
    }
    Ok(())
}
