//! Long connections: opened once, exchanging a line every 50 ms, watched for resets and stalls.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _, Write as _},
    mem,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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

use crate::{
    client::{Client, Failure, connect_here},
    netns::NetnsHandle,
    wait_for,
};

/// From one line to the next.
const PERIOD: Duration = Duration::from_millis(50);
/// Of the opening connect and of the first answer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer that takes longer is a stall.
pub const STALL: Duration = Duration::from_secs(1);

/// What became of the connections so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LongReport {
    /// Connections that live, by server.
    pub alive: BTreeMap<String, u64>,
    /// Every end of a connection, in no order. One that was opened again may break again.
    pub broken: Vec<Break>,
    /// The longest that an answer took or is taking, by server; on broken connections up to their end.
    pub max_stall: BTreeMap<String, Duration>,
    /// Connections on which an answer took longer than [`STALL`] or is taking so long.
    pub stalled: u64,
    /// Lines that came back.
    pub exchanged: u64,
    /// Lines that came back from another server than the connection's first: must be 0.
    pub strays: u64,
    /// Connections that could not be opened in the first place, see [`LongConns::open_some`].
    pub unopened: u64,
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// The server it was to.
    pub server: String,
    /// How it ended.
    pub failure: Failure,
    /// When the client learned of it.
    pub at: Instant,
    /// The longest that an answer took on it, or had taken by then.
    pub stall: Duration,
    /// The connection that took its place, if it was opened again and that succeeded.
    pub back: Option<Back>,
}

/// A connection that was opened in place of a broken one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Back {
    /// From the break to the first answer.
    pub after: Duration,
    /// The server that gave it.
    pub server: String,
}

impl LongReport {
    /// Connections that live.
    pub fn alive_total(&self) -> u64 {
        self.alive.values().sum()
    }

    /// How many connections to a server broke.
    pub fn broken_of(&self, server: &str) -> usize {
        self.broken.iter().filter(|broken| broken.server == server).count()
    }
}

impl fmt::Display for LongReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} alive", self.alive_total())?;
        for (server, count) in &self.alive {
            write!(f, " {server} {count}")?;
        }
        write!(f, ", {} broken, {} unopened, {} stalled", self.broken.len(), self.unopened, self.stalled)?;
        f.write_str(", longest stall")?;
        for (server, stall) in &self.max_stall {
            write!(f, " {server} {} ms", stall.as_millis())?;
        }
        Ok(())
    }
}

/// Long connections that are kept busy until this is dropped.
#[derive(Debug)]
pub struct LongConns {
    conns: Arc<Conns>,
    unopened: u64,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

type Conns = Mutex<Vec<Conn>>;

#[derive(Debug)]
struct Conn {
    to: SocketAddr,
    stream: TcpStream,
    server: String,
    /// When the line was sent that has not come back.
    waiting_since: Option<Instant>,
    silent: bool,
    next: Instant,
    partial: Vec<u8>,
    alive: bool,
    broken: Vec<Break>,
    max_stall: Duration,
    exchanged: u64,
    strays: u64,
}

impl LongConns {
    /// Opens `count` connections to the echo addresses in turn and learns who serves each.
    pub fn open(client: &Client, to: &[SocketAddr], count: usize) -> Result<Self> {
        let conns = Self::opened(client, to, count)?.into_iter().collect::<io::Result<_>>();
        Ok(Self::keep(conns.context("open a long connection")?, 0, None))
    }

    /// Likewise, but those that cannot be opened are only counted.
    pub fn open_some(client: &Client, to: &[SocketAddr], count: usize) -> Result<Self> {
        let conns: Vec<_> = Self::opened(client, to, count)?.into_iter().flatten().collect();
        let unopened = (count - conns.len()) as u64;
        Ok(Self::keep(conns, unopened, None))
    }

    /// As `open`, and whatever breaks is opened again at once; that is tried for two seconds.
    pub fn open_restless(client: &Client, to: &[SocketAddr], count: usize) -> Result<Self> {
        let conns = Self::opened(client, to, count)?.into_iter().collect::<io::Result<_>>();
        Ok(Self::keep(conns.context("open a long connection")?, 0, Some(client.netns())))
    }

    fn opened(client: &Client, to: &[SocketAddr], count: usize) -> Result<Vec<io::Result<Conn>>> {
        client.netns().run(|| to.iter().cycle().take(count).map(|to| Conn::open(*to)).collect())
    }

    /// Keeps them busy, and with a namespace `restless` opens again there what breaks.
    fn keep(conns: Vec<Conn>, unopened: u64, restless: Option<&NetnsHandle>) -> Self {
        let conns = Arc::new(Mutex::new(conns));
        let stop = Arc::new(AtomicBool::new(false));
        let (for_worker, for_stop, netns) = (Arc::clone(&conns), Arc::clone(&stop), restless.cloned());
        let worker = thread::spawn(move || {
            // Only opening again needs the namespace: what is open stays where it is.
            let restless = netns.is_some_and(|netns| netns.enter().is_ok());
            work(&for_worker, &for_stop, restless);
        });
        Self { conns, unopened, stop, worker: Some(worker) }
    }

    /// From now on every second pair of them sends nothing.
    pub fn silence_half(&self) {
        // Pairs, since addresses take turns.
        lock(&self.conns).chunks_mut(2).step_by(2).flatten().for_each(|conn| conn.silent = true);
    }

    /// From now on all send.
    pub fn speak(&self) {
        lock(&self.conns).iter_mut().for_each(|conn| conn.silent = false);
    }

    /// The state of things.
    pub fn report(&self) -> LongReport {
        let mut report = LongReport { unopened: self.unopened, ..LongReport::default() };
        for conn in lock(&self.conns).iter() {
            if conn.alive {
                *report.alive.entry(conn.server.clone()).or_default() += 1;
            }
            let ended = conn.broken.iter().map(|broken| (&broken.server, broken.stall));
            for (server, stall) in ended.chain([(&conn.server, conn.stall())]) {
                let longest = report.max_stall.entry(server.clone()).or_default();
                *longest = (*longest).max(stall);
                report.stalled += u64::from(stall > STALL);
            }
            report.broken.extend_from_slice(&conn.broken);
            report.exchanged += conn.exchanged;
            report.strays += conn.strays;
        }
        report
    }

    /// Waits until as many lines have come back as there are connections that live, times `lines`; `None` if that takes
    /// longer than `limit`.
    pub fn exchange(&self, lines: u64, limit: Duration) -> Option<LongReport> {
        let before = self.report();
        let enough = before.exchanged + lines * before.alive_total();
        wait_for(limit, || Some(self.report()).filter(|report| report.exchanged >= enough))
    }

    /// Waits until every connection has got another line back or is broken; `None` if that takes longer than `limit`.
    pub fn exchange_each(&self, limit: Duration) -> Option<LongReport> {
        let before: Vec<u64> = lock(&self.conns).iter().map(|conn| conn.exchanged).collect();
        let is_done = |(conn, before): (&Conn, &u64)| !conn.alive || conn.exchanged > *before;
        let all_are_done = || lock(&self.conns).iter().zip(&before).all(is_done).then_some(());
        wait_for(limit, all_are_done).map(|()| self.report())
    }

    /// Forgets stalls so far, to measure those of what comes next.
    pub fn reset_stalls(&self) {
        for conn in lock(&self.conns).iter_mut() {
            conn.max_stall = Duration::ZERO;
            conn.broken.iter_mut().for_each(|broken| broken.stall = Duration::ZERO);
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

fn lock(conns: &Conns) -> MutexGuard<'_, Vec<Conn>> {
    conns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the connections busy, and with `restless` opens again what breaks, from the calling thread's namespace.
fn work(conns: &Conns, stop: &AtomicBool, restless: bool) {
    // Threads made in here are in the namespace of their maker, and the scope waits for them.
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let broken = turn(&mut lock(conns));
            for number in broken.into_iter().filter(|_| restless) {
                scope.spawn(move || reopen(conns, number));
            }
            // Without a pause the lock is hard to get for whoever wants a report.
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Sends what is due, waits up to 10 ms for answers and reads them. The numbers of those that broke.
fn turn(conns: &mut [Conn]) -> Vec<usize> {
    let now = Instant::now();
    let mut alive: Vec<_> = conns.iter_mut().enumerate().filter(|(_, conn)| conn.alive).collect();
    for (_, conn) in &mut alive {
        conn.send_if_due(now);
    }
    let mut fds: Vec<_> = alive.iter().map(|(_, conn)| PollFd::new(&conn.stream, PollFlags::IN)).collect();
    let limit = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    // An interrupted poll is one without results.
    let _ = poll(&mut fds, Some(&limit));
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for ((_, conn), _) in alive.iter_mut().zip(ready).filter(|((_, conn), ready)| *ready && conn.alive) {
        conn.receive();
    }
    alive.into_iter().filter(|(_, conn)| !conn.alive).map(|(number, _)| number).collect()
}

/// Opens a broken connection again, and tries that for [`OPEN_TIMEOUT`].
fn reopen(conns: &Conns, number: usize) {
    let to = lock(conns)[number].to;
    let deadline = Instant::now() + OPEN_TIMEOUT;
    while Instant::now() < deadline {
        if let Ok(new) = Conn::open(to) {
            return lock(conns)[number].replace(new);
        }
        thread::sleep(Duration::from_millis(10));
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
            to,
            stream,
            server,
            waiting_since: None,
            silent: false,
            next: Instant::now(),
            partial: Vec::new(),
            alive: true,
            broken: Vec::new(),
            max_stall: Duration::ZERO,
            exchanged: 0,
            strays: 0,
        })
    }

    /// The longest stall, counting one that goes on.
    fn stall(&self) -> Duration {
        let current = self.waiting_since.filter(|_| self.alive).map(|since| since.elapsed());
        self.max_stall.max(current.unwrap_or_default())
    }

    fn send_if_due(&mut self, now: Instant) {
        if self.silent || self.waiting_since.is_some() || now < self.next {
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
        let stall = self.stall();
        self.alive = false;
        self.max_stall = Duration::ZERO;
        let server = self.server.clone();
        self.broken.push(Break { server, failure, at: Instant::now(), stall, back: None });
    }

    /// Goes on as `new`, which was opened after the last break.
    fn replace(&mut self, new: Self) {
        if let Some(last) = self.broken.last_mut() {
            last.back = Some(Back { after: last.at.elapsed(), server: new.server.clone() });
        }
        let counted = (self.exchanged, self.strays, mem::take(&mut self.broken));
        *self = new;
        (self.exchanged, self.strays, self.broken) = counted;
    }
}

/// The first word of an echoed line.
fn server_of(line: &[u8]) -> &str {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    std::str::from_utf8(&line[..end]).unwrap_or_default()
}
