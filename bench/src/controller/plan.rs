//! Rings, plans, and their operations on the kernel's maps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Result, ensure};
use lb_common::{backend::BackendStats, outcome::Outcome};
use lb_userspace::{
    dataplane::{
        ApplyError, Dataplane, Refused,
        bpf::{self, BpfMaps},
    },
    health::{BackendRef, Health},
    plan::{
        ring,
        tables::{Op, Tables},
    },
};

use super::{
    ms,
    subject::{self, RING},
    us,
};

/// Times of ring builds, microseconds.
pub fn ring_builds(backends: u32, rounds: usize) -> Result<Vec<f64>> {
    let members = subject::members(backends);
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        let ring = ring::build(&members, RING);
        times.push(us(start));
        ensure!(ring.len() == RING as usize && ring.iter().all(|id| *id != 0), "a slot is free");
    }
    Ok(times)
}

/// Times of verdicts, microseconds.
#[derive(Default)]
pub struct Verdicts {
    /// From the tables wanted to the list of operations.
    pub planned: Vec<f64>,
    /// The operations.
    pub applied: Vec<f64>,
    /// Both.
    pub whole: Vec<f64>,
}

/// One of so many backends is found dead, found alive, and so on; ring and maps are the kernel's.
pub fn verdicts(backends: u32, rounds: usize) -> Result<Verdicts> {
    let spec = subject::spec(&subject::one_service(backends));
    let (maps, _program) = bpf::load(&spec.limits)?;
    let spent = Arc::new(AtomicU64::new(0));
    let mut engine = subject::engine(spec, Box::new(Timed { maps, spent: Arc::clone(&spent) }));
    engine.reconcile(Instant::now())?;
    let backend = BackendRef { service: "web".into(), backend: format!("b{}", backends / 2).into() };
    let mut verdicts = Verdicts::default();
    for health in [Health::Down, Health::Up].into_iter().cycle().take(rounds) {
        spent.store(0, Ordering::Relaxed);
        let start = Instant::now();
        engine.set_health(backend.clone(), health);
        let operations = engine.reconcile(Instant::now())?;
        let whole = us(start);
        let applied = spent.load(Ordering::Relaxed) as f64 / 1e3;
        let first =
            engine.compiled().services.iter().flat_map(|s| &s.backends).find(|b| b.name == backend.backend);
        let takes_new = first.is_some_and(|b| b.eligible && b.slots > 0);
        ensure!(operations > 0 && takes_new == (health == Health::Up), "the verdict changed nothing");
        verdicts.planned.push(whole - applied);
        verdicts.applied.push(applied);
        verdicts.whole.push(whole);
    }
    ensure!(engine.check_drift()?.is_empty(), "the kernel's maps are not what was planned");
    Ok(verdicts)
}

/// Reads and checks the text of 1,000 services x 10 backends; times in milliseconds.
pub fn parse(rounds: usize) -> Vec<f64> {
    let text = subject::thousand_by_ten(100);
    let time = |_| {
        let start = Instant::now();
        // It panics if the file is not valid.
        let spec = subject::spec(&text);
        let time = ms(start);
        drop(spec);
        time
    };
    (0..rounds).map(time).collect()
}

/// Fills empty maps of the kernel with 1,000 services x 10 backends; times in milliseconds.
pub fn first_fill(rounds: usize) -> Result<Vec<f64>> {
    let spec = subject::spec(&subject::thousand_by_ten(100));
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let (maps, _program) = bpf::load(&spec.limits)?;
        let mut engine = subject::engine(Arc::clone(&spec), Box::new(maps));
        let start = Instant::now();
        engine.reconcile(Instant::now())?;
        times.push(ms(start));
        ensure!(engine.check_drift()?.is_empty(), "the kernel's maps are not what was planned");
    }
    Ok(times)
}

/// The kernel's maps, and how long operations on them took.
struct Timed {
    maps: BpfMaps,
    /// ns.
    spent: Arc<AtomicU64>,
}

impl Dataplane for Timed {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let start = Instant::now();
        let applied = self.maps.apply(op);
        self.spent.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        applied
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.maps.snapshot(expected)
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        self.maps.adopt()
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        self.maps.refused_pins()
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        self.maps.backend_stats(ids)
    }

    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError> {
        self.maps.outcomes()
    }
}
