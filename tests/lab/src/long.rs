//! Long connections: opened once, exchanging a line every 50 ms, watched for resets and stalls.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
};

use crate::client::{Client, Failure, connect_here};

/// From one line to the next.
const PERIOD: Duration = Duration::from_millis(50);
/// Of the opening connect and of the first answer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// What became of the connections so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LongReport {
    /// Connections that live, by server.
    pub alive: BTreeMap<String, u64>,
    /// Connections that broke, by server, and how.
    pub broken: Vec<(String, Failure)>,
    /// The longest that an answer took or is taking, by server; of broken connections up to their end.
    pub max_stall: BTreeMap<String, Duration>,
    /// Lines that came back.
    pub exchanged: u64,
    /// Lines that came back from another server than the connection's first: must be 0.
    pub strays: u64,
}

impl LongReport {
    /// Connections that live.
    pub fn alive_total(&self) -> u64 {
        self.alive.values().sum()
    }

    /// How many connections to a server broke.
    pub fn broken_of(&self, server: &str) -> usize {
        self.broken.iter().filter(|(name, _)| name == server).count()
    }
}

impl fmt::Display for LongReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} alive", self.alive_total())?;
        for (server, count) in &self.alive {
            write!(f, " {server} {count}")?;
        }
        write!(f, ", {} broken, longest stall", self.broken.len())?;
        for (server, stall) in &self.max_stall {
            write!(f, " {server} {} ms", stall.as_millis())?;
        }
        Ok(())
    }
}

/// Long connections that are kept busy until this is dropped.
#[derive(Debug)]
pub struct LongConns {
    conns: Arc<Mutex<Vec<Conn>>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    server: String,
    /// When the line was sent that has not come back.
    waiting_since: Option<Instant>,
    next: Instant,
    partial: Vec<u8>,
    broken: Option<Failure>,
    max_stall: Duration,
    exchanged: u64,
    strays: u64,
}

impl LongConns {
    /// Opens `count` connections to the echo addresses in turn and learns who serves each.
    pub fn open(client: &Client, to: &[SocketAddr], count: usize) -> Result<Self> {
        let conns = client.netns().run(|| {
            to.iter().cycle().take(count).map(|to| Conn::open(*to)).collect::<io::Result<Vec<_>>>()
        })?;
        let conns = Arc::new(Mutex::new(conns.context("open a long connection")?));
        let stop = Arc::new(AtomicBool::new(false));
        let (for_worker, for_stop) = (Arc::clone(&conns), Arc::clone(&stop));
        let worker = thread::spawn(move || {
            while !for_stop.load(Ordering::Relaxed) {
                turn(&mut for_worker.lock().unwrap_or_else(PoisonError::into_inner));
                // Without a pause the lock is hard to get for whoever wants a report.
                thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { conns, stop, worker: Some(worker) })
    }

    /// The state of things.
    pub fn report(&self) -> LongReport {
        let conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = LongReport::default();
        for conn in conns.iter() {
            match &conn.broken {
                None => *report.alive.entry(conn.server.clone()).or_default() += 1,
                Some(failure) => report.broken.push((conn.server.clone(), failure.clone())),
            }
            let stall = report.max_stall.entry(conn.server.clone()).or_default();
            *stall = (*stall).max(conn.stall());
            report.exchanged += conn.exchanged;
            report.strays += conn.strays;
        }
        report
    }

    /// Forgets stalls so far, to measure those of what comes next.
    pub fn reset_stalls(&self) {
        for conn in self.conns.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            conn.max_stall = Duration::ZERO;
        }
    }
}

impl Drop for LongConns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Sends what is due, waits up to 10 ms for answers and reads them.
fn turn(conns: &mut [Conn]) {
    let now = Instant::now();
    for conn in conns.iter_mut().filter(|conn| conn.broken.is_none()) {
        conn.send_if_due(now);
    }
    let alive: Vec<_> = conns.iter_mut().filter(|conn| conn.broken.is_none()).collect();
    let mut fds: Vec<_> = alive.iter().map(|conn| PollFd::new(&conn.stream, PollFlags::IN)).collect();
    let limit = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    // An interrupted poll is one without results.
    let _ = poll(&mut fds, Some(&limit));
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for (conn, _) in alive.into_iter().zip(ready).filter(|(_, ready)| *ready) {
        conn.receive();
    }
}

impl Conn {
    fn open(to: SocketAddr) -> io::Result<Self> {
        let mut stream = connect_here(None, to, OPEN_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(OPEN_TIMEOUT))?;
        stream.write_all(b"hello\n")?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        stream.set_nonblocking(true)?;
        let server = server_of(&answer).to_owned();
        Ok(Self {
            stream,
            server,
            waiting_since: None,
            next: Instant::now(),
            partial: Vec::new(),
            broken: None,
            max_stall: Duration::ZERO,
            exchanged: 0,
            strays: 0,
        })
    }

    /// The longest stall, counting one that goes on.
    fn stall(&self) -> Duration {
        let current = self.waiting_since.filter(|_| self.broken.is_none()).map(|since| since.elapsed());
        self.max_stall.max(current.unwrap_or_default())
    }

    fn send_if_due(&mut self, now: Instant) {
        if self.waiting_since.is_some() || now < self.next {
            return;
        }
        match self.stream.write_all(b"line\n") {
            Ok(()) => {
                self.waiting_since = Some(now);
                self.next = now + PERIOD;
            }
            Err(error) => self.break_with(error.into()),
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 512];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.break_with(Failure::Closed),
            Ok(length) => self.partial.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.break_with(error.into()),
        }
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.exchanged += 1;
            self.strays += u64::from(server_of(&line) != self.server);
            self.max_stall = self.stall();
            self.waiting_since = None;
        }
    }

    fn break_with(&mut self, failure: Failure) {
        self.max_stall = self.stall();
        self.broken = Some(failure);
    }
}

/// The first word of an echoed line.
fn server_of(line: &[u8]) -> &str {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    std::str::from_utf8(&line[..end]).unwrap_or_default()
}
