//! What the controller listens to while it runs, and what follows from each: note, then reconcile once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{Controller, start::Options};
use crate::{
    api::{handle::ControllerMailbox, model::EventKind},
    config::{
        self, Loaded,
        consent::{self, Consent},
        watch::{FileEvent, Stillness, Watcher},
    },
    dataplane::bpf::{SweepError, SweepHandle, SweepResults},
    flows::{Cadence, SweepResult},
    health::HealthEvents,
    logging,
    net::NetHandle,
};

/// `ready` waits for next hops at most this long after the first verdicts.
const NEXT_HOPS_LIMIT: Duration = Duration::from_secs(1);
/// `ready` waits for verdicts at most this long: a probe that fails for our own reasons never gives one.
const VERDICTS_LIMIT: Duration = Duration::from_mins(1);
/// A watched change that only removes waits until the file has been still for so long.
const REMOVAL_STILLNESS: Duration = Duration::from_millis(500);
/// Comparisons with the kernel's program, links and maps take at most one part in so many of the time: 4 million slots
/// and 10,000 backends take 20 ms, 65,537 slots well under one.
const DRIFT_SHARE: u32 = 50;

/// What ends or reloads the controller.
pub(super) struct Signals {
    /// `SIGHUP`.
    pub(super) hangup: Signal,
    /// `SIGTERM`.
    pub(super) terminate: Signal,
    /// `SIGINT`.
    pub(super) interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

/// Everything that the controller listens to.
pub(super) struct Loop<'a> {
    pub(super) options: &'a Options,
    pub(super) controller: Controller,
    pub(super) watcher: Watcher,
    pub(super) signals: Signals,
    pub(super) net: NetHandle,
    pub(super) health_events: HealthEvents,
    pub(super) mailbox: ControllerMailbox,
    /// A watched change that only removes, waiting for the file to be still.
    pub(super) pending: Option<(Loaded, Stillness)>,
    /// Walks over the flow table.
    pub(super) sweeper: Option<(SweepHandle, SweepResults)>,
    pub(super) cadence: Cadence,
}

impl Loop<'_> {
    pub(super) async fn run(&mut self) {
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
