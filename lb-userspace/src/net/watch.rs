//! The task that keeps a [`View`] true to the kernel and asks the kernel for neighbours.
//!
//! Events are joined before the first dump, so nothing is missed; they are gathered for a few milliseconds, then the
//! routes that they may have changed are asked again (the kernel's own lookup, policy rules included), and if anything
//! is different, one [`NetEvent`] goes out. Every 30 s, and when events were lost, everything is read anew.
//!
//! Only netlink is used: in a network namespace of its own the controller may see another one's `/sys/class/net`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{sync::watch, time::sleep_until};

use super::{
    ask::Asks,
    kernel::{EventSocket, Events, Kernel, UseError},
    model::{Change, LinkInfo, NextHopState},
    view::View,
};

/// How long events are gathered: a link that goes down causes dozens.
const GATHER: Duration = Duration::from_millis(5);
/// After an evaluation there is none for so many times as long as it took, within a limit: a storm of events that
/// matter costs a fifth of a core with some hundred wanted addresses, half of one with thousands.
const REST_RATIO: u32 = 4;
const REST_MAX: Duration = Duration::from_millis(100);
/// The backstop: everything is read anew.
const RESYNC: Duration = Duration::from_secs(30);
/// From the report of a failure to that of the deletion that it belongs to; 85 us were seen.
const SECOND_HALF: Duration = Duration::from_millis(1);
const REOPEN: Duration = Duration::from_secs(1);
/// Some thousands of events.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Datagrams that are read at a stretch; a limit, so that a storm cannot keep the task from evaluating.
const READ_BURST: usize = 10_000;

/// The state of the network as far as the controller is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetEvent {
    /// The next hop of each wanted address, no more and no less.
    pub next_hops: BTreeMap<IpAddr, NextHopState>,
    /// All interfaces by name.
    pub links: BTreeMap<String, LinkInfo>,
}

/// The watching task has ended, which it does only if it panics.
#[derive(Debug, thiserror::Error)]
#[error("the watch over the network has stopped")]
pub struct Stopped;

/// Starts the watch.
#[derive(Debug)]
pub struct NetWatch;

impl NetWatch {
    /// Opens the sockets in the network namespace of the calling thread and starts the task. Must be called within a
    /// tokio runtime whose threads are all in that namespace (a socket that breaks is opened again there). The task
    /// ends when the last handle is dropped.
    pub fn spawn(wanted: BTreeSet<IpAddr>) -> anyhow::Result<NetHandle> {
        Self::spawn_with(wanted, RECEIVE_BUFFER)
    }

    pub(super) fn spawn_with(wanted: BTreeSet<IpAddr>, receive_buffer: usize) -> anyhow::Result<NetHandle> {
        let sockets = Sockets::open(receive_buffer)?;
        let (wanted_in, wanted) = watch::channel(wanted);
        let (out, events) = watch::channel(None);
        let watcher = Watcher {
            receive_buffer,
            wanted,
            out,
            view: View::default(),
            asks: Asks::default(),
            rested_at: Instant::now(),
            refused: false,
        };
        tokio::spawn(watcher.run(sockets));
        Ok(NetHandle { wanted: Arc::new(wanted_in), events })
    }
}

/// The controller's side of the watch.
#[derive(Debug, Clone)]
pub struct NetHandle {
    wanted: Arc<watch::Sender<BTreeSet<IpAddr>>>,
    events: watch::Receiver<Option<Arc<NetEvent>>>,
}

impl NetHandle {
    /// Replaces the addresses whose next hops are followed. An event with exactly these comes within milliseconds; new
    /// ones that need ARP or neighbour discovery are `Pending` in it.
    pub fn set_wanted(&self, wanted: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|old| {
            let changed = *old != wanted;
            *old = wanted;
            changed
        });
    }

    /// The latest state; `None` before the first dump is complete. Does not count as seen by [`Self::changed`].
    pub fn snapshot(&self) -> Option<Arc<NetEvent>> {
        self.events.borrow().clone()
    }

    /// Waits for a state that this handle has not returned yet, and returns the latest. Cancel-safe.
    pub async fn changed(&mut self) -> Result<Arc<NetEvent>, Stopped> {
        loop {
            self.events.changed().await.map_err(|_| Stopped)?;
            if let Some(event) = self.events.borrow_and_update().clone() {
                return Ok(event);
            }
        }
    }
}

struct Sockets {
    /// First, since events have to be joined before anything is read.
    events: EventSocket,
    kernel: Kernel,
}

impl Sockets {
    fn open(receive_buffer: usize) -> anyhow::Result<Self> {
        Ok(Self {
            events: EventSocket::open(receive_buffer).context("open a netlink socket for events")?,
            kernel: Kernel::open().context("open a netlink socket")?,
        })
    }
}

/// All handles are gone.
struct Closed;

struct Watcher {
    receive_buffer: usize,
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    out: watch::Sender<Option<Arc<NetEvent>>>,
    view: View,
    asks: Asks,
    /// No evaluation of events before this.
    rested_at: Instant,
    /// The last request for a neighbour was refused; said once, not each second.
    refused: bool,
}

impl Watcher {
    async fn run(mut self, first: Sockets) {
        let mut sockets = Ok(first);
        loop {
            let error = match sockets {
                Ok(mut sockets) => match self.watch(&mut sockets).await {
                    Ok(Closed) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::warn!(error = format!("{error:#}"), "watching the network failed, starting over");
            tokio::time::sleep(REOPEN).await;
            if self.wanted.has_changed().is_err() {
                return;
            }
            sockets = Sockets::open(self.receive_buffer);
        }
    }

    async fn watch(&mut self, sockets: &mut Sockets) -> anyhow::Result<Closed> {
        let wanted = self.wanted.borrow_and_update().clone();
        self.view.set_wanted(&wanted);
        let mut resync_at = self.resync(sockets).await?;
        let mut evaluate_at: Option<Instant> = None;
        loop {
            let wake_at = [Some(resync_at), evaluate_at, self.asks.next()].into_iter().flatten().min();
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(Closed);
                    }
                    let wanted = self.wanted.borrow_and_update().clone();
                    self.view.set_wanted(&wanted);
                    evaluate_at = Some(Instant::now());
                }
                events = sockets.events.read() => match events.context("read a netlink event")? {
                    Events::Changes(changes) => {
                        if self.apply(changes) {
                            evaluate_at.get_or_insert((Instant::now() + GATHER).max(self.rested_at));
                        }
                    }
                    Events::Overrun => {
                        report_overrun();
                        resync_at = resync_at.min(self.rested_at);
                    }
                },
                () = sleep_until(wake_at.unwrap_or(resync_at).into()) => {}
            }
            let now = Instant::now();
            if now >= resync_at {
                resync_at = self.resync(sockets).await?;
                evaluate_at = None;
            } else if evaluate_at.is_some_and(|at| now >= at) {
                evaluate_at = None;
                if self.drain(&mut sockets.events).await? {
                    resync_at = now;
                }
                self.evaluate(&sockets.kernel).await?;
            } else if self.asks.next().is_some_and(|at| now >= at) {
                self.ask(&sockets.kernel).await?;
            }
        }
    }

    /// Notes changes; returns whether anything is different.
    fn apply(&mut self, changes: Vec<Change>) -> bool {
        let mut changed = false;
        for change in changes {
            tracing::trace!(?change, "netlink");
            changed |= self.view.apply(change);
        }
        changed
    }

    /// Notes all events that are there already; returns whether some were lost. If a neighbour has just failed, it
    /// waits a moment for the deletion that this may be the first half of.
    async fn drain(&mut self, events: &mut EventSocket) -> anyhow::Result<bool> {
        let mut overrun = false;
        let mut waited = false;
        for _ in 0..READ_BURST {
            match events.try_read().context("read a netlink event")? {
                None if self.view.has_fresh_failures() && !waited => {
                    tokio::time::sleep(SECOND_HALF).await;
                    waited = true;
                }
                None => break,
                Some(Events::Changes(changes)) => {
                    self.apply(changes);
                }
                Some(Events::Overrun) => {
                    report_overrun();
                    overrun = true;
                }
            }
        }
        Ok(overrun)
    }

    /// Reads everything anew; returns when to do so again.
    ///
    /// Events that are older than the dump must not be applied after it: of those that follow them some may be lost. So
    /// the socket is emptied first, and an overrun while doing so calls for another round.
    async fn resync(&mut self, sockets: &mut Sockets) -> anyhow::Result<Instant> {
        let overrun = self.drain(&mut sockets.events).await?;
        let start = Instant::now();
        self.view.sync(sockets.kernel.dump().await?);
        self.evaluate(&sockets.kernel).await?;
        self.rest(start);
        Ok(if overrun { self.rested_at } else { Instant::now() + RESYNC })
    }

    /// Asks for the routes in question, publishes the result if it is different, and asks for neighbours.
    async fn evaluate(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        let start = Instant::now();
        for ip in self.view.take_unasked() {
            let answer = kernel.route(ip).await?;
            self.view.set_route(ip, answer);
        }
        self.view.settle();
        let event = NetEvent { next_hops: self.view.next_hops(), links: self.view.links_by_name() };
        self.out.send_if_modified(|last| {
            let changed = last.as_deref() != Some(&event);
            if changed {
                *last = Some(Arc::new(event));
            }
            changed
        });
        self.rest(start);
        self.ask(kernel).await
    }

    /// Takes a rest from work that began at `start`.
    fn rest(&mut self, start: Instant) {
        let now = Instant::now();
        self.rested_at = now + ((now - start) * REST_RATIO).min(REST_MAX);
    }

    async fn ask(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        for key in self.asks.due(&self.view.next_hop_neighbours(), Instant::now()) {
            match kernel.use_neighbour(key).await {
                Ok(()) => self.refused = false,
                Err(UseError::Socket(error)) => {
                    return Err(error.context(format!("ask for the MAC of {}", key.address)));
                }
                Err(error @ UseError::Refused(_)) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        tracing::warn!(
                            address = %key.address, %error,
                            "cannot ask for a MAC (a full table: raise net.ipv{{4,6}}.neigh.default.gc_thresh3)"
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn report_overrun() {
    tracing::warn!("the kernel dropped network events, reading everything anew");
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
