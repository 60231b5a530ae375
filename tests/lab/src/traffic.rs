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

/// A request that has not ended for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Workers: so many requests may be stuck at a time before the rate suffers.
const WORKERS: u32 = 24;

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
        let records = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let workers = (0..WORKERS).map(|number| {
            let (client, to) = (client.clone(), to.to_vec());
            let (records, stop) = (Arc::clone(&records), Arc::clone(&stop));
            thread::spawn(move || {
                if client.netns().enter().is_err() {
                    return;
                }
                let period = Duration::from_secs(1) / rate.max(1);
                work(start + period * number, period * WORKERS, number as usize, &to, &records, &stop);
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
}

/// One worker: a request every `period`, its first at `next`. What it missed while it was stuck is not made up for.
fn work(
    mut next: Instant,
    period: Duration,
    number: usize,
    to: &[SocketAddr],
    records: &Mutex<Vec<Record>>,
    stop: &AtomicBool,
) {
    for turn in number.. {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Some(to) = to.get(turn % to.len().max(1)) else { return };
        let start = Instant::now();
        let result = request_here(None, *to, "GET", "/", TIMEOUT);
        let record = Record { start, took: start.elapsed(), result };
        records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        next = (next + period).max(Instant::now());
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
