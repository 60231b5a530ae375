//! Gentle traffic: new connections at a steady rate, remembered one by one.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::client::{Client, Failure, Tally, request_here};

/// What a request is, and how many may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Requests a second, each on a connection of its own.
    pub rate: u32,
    /// A request that has not ended for so long has failed.
    pub timeout: Duration,
    /// So many requests may be stuck at a time before the rate suffers.
    pub workers: u32,
    /// Whether a worker makes up for what it missed while it was stuck, so that the rate holds on a busy machine.
    pub makes_up: bool,
}

impl Pace {
    /// A background to what a test does: whatever takes a second has failed.
    pub const fn steady(rate: u32) -> Self {
        Self { rate, timeout: Duration::from_secs(1), workers: 24, makes_up: false }
    }

    /// Many connections: one that loses a packet on the way is no failure but slow ([`Tally::slowest`]).
    ///
    /// Servers close first, so no port of the client stays in TIME_WAIT.
    pub const fn heavy(rate: u32) -> Self {
        Self { rate, timeout: Duration::from_secs(5), workers: 64, makes_up: true }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it began.
    pub start: Instant,
    /// How long it took.
    pub took: Duration,
    /// The server, or why not.
    pub result: Result<String, Failure>,
}

/// Traffic that runs until this is dropped.
#[derive(Debug)]
pub struct Traffic {
    records: Arc<Mutex<Vec<Record>>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts `rate` requests a second, to the addresses in turn.
    pub fn start(client: &Client, to: &[SocketAddr], rate: u32) -> Self {
        Self::start_at(client, to, Pace::steady(rate))
    }

    /// Likewise, at a pace.
    pub fn start_at(client: &Client, to: &[SocketAddr], pace: Pace) -> Self {
        let records = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let workers = (0..pace.workers).map(|number| {
            let (client, to) = (client.clone(), to.to_vec());
            let (records, stop) = (Arc::clone(&records), Arc::clone(&stop));
            thread::spawn(move || {
                if client.netns().enter().is_err() {
                    return;
                }
                let period = Duration::from_secs(1) / pace.rate.max(1);
                let next = start + period * number;
                let turn = Turn { next, period: period * pace.workers, number, pace };
                turn.work(&to, &records, &stop);
            })
        });
        let workers = workers.collect();
        Self { records, stop, workers }
    }

    /// Takes what ended since the last call.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Likewise, counted.
    pub fn take_tally(&self) -> Tally {
        let mut tally = Tally::default();
        for Record { result, took, .. } in self.take() {
            tally.record(result, took);
        }
        tally
    }

    /// Ends it, waits for the requests under way and counts what was not taken yet: none is left out.
    pub fn finish(mut self) -> Tally {
        self.join();
        self.take_tally()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// One worker: a request every `period`, its first at `next`.
#[derive(Debug, Clone, Copy)]
struct Turn {
    next: Instant,
    period: Duration,
    number: u32,
    pace: Pace,
}

impl Turn {
    fn work(mut self, to: &[SocketAddr], records: &Mutex<Vec<Record>>, stop: &AtomicBool) {
        for turn in self.number as usize.. {
            thread::sleep(self.next.saturating_duration_since(Instant::now()));
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let Some(to) = to.get(turn % to.len().max(1)) else { return };
            let start = Instant::now();
            let result = request_here(None, *to, "GET", "/", self.pace.timeout);
            let record = Record { start, took: start.elapsed(), result };
            records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            self.next += self.period;
            if !self.pace.makes_up {
                self.next = self.next.max(Instant::now());
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.join();
    }
}
