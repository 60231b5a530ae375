//! Starting, running and leaving, in order. What can fail for a user's reasons comes first and leaves no trace.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use super::{
    Controller,
    attach::{Attach, Change},
    engine::Engine,
    state_file::{self, StateFile},
    work::{Loop, Signals},
};
use crate::{
    api::{
        handle,
        model::EventKind,
        server::{Limits, Server},
    },
    cli::args::PIN_DIR,
    config::{self, Loaded, spec::XdpMode, watch::Watcher},
    dataplane::bpf::{self, AttachError, Attached, BpfProgram, Drift, Opened, PinDir, PinError, SweepParts},
    flows::Cadence,
    health::HealthChecks,
    logging,
    net::{LinkInfo, NetEvent, NetWatch, ethtool::NicFeatures, nic},
};

/// The first verdicts of a new service come within so long.
const YOUNG: Duration = Duration::from_secs(2);

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
    let engine = if adopted {
        Engine::adopt(spec, Box::new(maps), Instant::now())?
    } else {
        Engine::new(spec, Box::new(maps))
    };
    let own_programs = program.running();
    let mut controller = Controller::new(
        options.clone(),
        engine.with_young(YOUNG),
        Box::new(program),
        checks,
        net.clone(),
        Instant::now(),
    );
    if adopted {
        let text = format!("the data path of an earlier controller goes on ({})", options.pin_dir.display());
        controller.event(EventKind::Controller, None, text);
    }
    keep_words(&mut controller, options, adopted);
    let first = net.changed().await.context("read interfaces and routes by netlink");
    let begun = first.and_then(|first| {
        warn_about_interfaces(&loaded, &first, own_programs);
        begin(&mut controller, &first, adopted)
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
    leave(&mut work.controller, options.keep);
    drop(work);
    drop(stop);
    drop(serving.await);
    Ok(())
}

/// The data path stays or goes, as was asked for.
fn leave(controller: &mut Controller, keep: bool) {
    if keep {
        tracing::info!("leaving: forwarding goes on with the last tables; `xlb detach` ends it");
    } else {
        controller.remove_data_path();
        tracing::info!("leaving: the data path is detached");
    }
}

/// Operators' words of the last run are in force again, and kept for the next.
fn keep_words(controller: &mut Controller, options: &Options, adopted: bool) {
    if options.pin_dir == Path::new(PIN_DIR) {
        match StateFile::open(Path::new(state_file::PATH)) {
            Ok(file) => controller.keep_words(file, adopted),
            Err(error) => {
                tracing::warn!("{} is not used: {error}; move it away to have a new one", state_file::PATH);
            }
        }
    }
}

/// The first attachments and tables.
fn begin(controller: &mut Controller, first: &NetEvent, adopted: bool) -> Result<()> {
    // What does not fit the maps is refused here; later it could only be tried again and again.
    controller.engine.fits(controller.spec(), Instant::now())?;
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
