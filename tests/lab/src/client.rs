//! Requests from the client's namespace, and what became of them.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

use crate::netns::NetnsHandle;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Failure {
    /// No answer in time.
    #[error("timed out")]
    Timeout,
    /// A RST in answer to the SYN.
    #[error("refused")]
    Refused,
    /// A RST later.
    #[error("reset")]
    Reset,
    /// The server hung up before it had answered.
    #[error("closed early")]
    Closed,
    /// No route, or an ICMP message.
    #[error("unreachable")]
    Unreachable,
    /// An HTTP status other than 200.
    #[error("status {0}")]
    Status(u16),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::TimedOut | Kind::WouldBlock => Self::Timeout,
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::BrokenPipe => Self::Reset,
            Kind::UnexpectedEof => Self::Closed,
            Kind::HostUnreachable | Kind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Counts of answers by server and of failures by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers, by the name of the server.
    pub by_server: BTreeMap<String, u64>,
    /// Failures.
    pub failures: BTreeMap<Failure, u64>,
    /// The longest that an answer took.
    pub slowest: Duration,
}

impl Tally {
    /// Counts one result that took so long.
    pub fn record(&mut self, result: Result<String, Failure>, took: Duration) {
        match result {
            Ok(server) => {
                *self.by_server.entry(server).or_default() += 1;
                self.slowest = self.slowest.max(took);
            }
            Err(failure) => *self.failures.entry(failure).or_default() += 1,
        }
    }

    /// Adds another tally to this one.
    pub fn merge(&mut self, other: Self) {
        for (server, count) in other.by_server {
            *self.by_server.entry(server).or_default() += count;
        }
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
    }

    /// How many were answered.
    pub fn answered(&self) -> u64 {
        self.by_server.values().sum()
    }

    /// How many failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many a server answered.
    pub fn count(&self, server: &str) -> u64 {
        self.by_server.get(server).copied().unwrap_or(0)
    }

    /// A server's share of the answers, 0 to 1.
    pub fn share(&self, server: &str) -> f64 {
        self.count(server) as f64 / self.answered().max(1) as f64
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered", self.answered())?;
        for server in self.by_server.keys() {
            write!(f, " {server} {:.1}%", 100.0 * self.share(server))?;
        }
        write!(f, ", {} failed", self.failed())?;
        for (failure, count) in &self.failures {
            write!(f, " ({count} {failure})")?;
        }
        Ok(())
    }
}

/// The client's namespace, to send requests from.
#[derive(Debug, Clone)]
pub struct Client {
    netns: NetnsHandle,
}

impl Client {
    /// Requests will come from this namespace.
    pub fn new(netns: NetnsHandle) -> Self {
        Self { netns }
    }

    /// The namespace.
    pub fn netns(&self) -> &NetnsHandle {
        &self.netns
    }

    /// `GET /` on a new connection: the name of the server that answered. `timeout` is for all of it.
    pub fn http_get(&self, to: SocketAddr, timeout: Duration) -> Result<String, Failure> {
        self.request(None, to, "GET", "/", timeout)
    }

    /// Likewise from a chosen source port.
    pub fn http_get_from(
        &self,
        source_port: u16,
        to: SocketAddr,
        timeout: Duration,
    ) -> Result<String, Failure> {
        self.request(Some(source_port), to, "GET", "/", timeout)
    }

    /// `POST path`, for the switches of the test server.
    pub fn http_post(&self, to: SocketAddr, path: &str, timeout: Duration) -> Result<String, Failure> {
        self.request(None, to, "POST", path, timeout)
    }

    fn request(
        &self,
        source_port: Option<u16>,
        to: SocketAddr,
        method: &str,
        path: &str,
        timeout: Duration,
    ) -> Result<String, Failure> {
        let inside = || request_here(source_port, to, method, path, timeout);
        self.netns.run(inside).unwrap_or_else(|error| Err(Failure::Other(format!("{error:#}"))))
    }

    /// `count` new connections to the addresses in turn, at most `concurrency` at a time, each limited to `timeout`.
    pub fn burst(
        &self,
        to: &[SocketAddr],
        count: u64,
        concurrency: usize,
        timeout: Duration,
    ) -> Result<Tally> {
        let next = AtomicU64::new(0);
        let total = Mutex::new(Tally::default());
        let worker = || {
            let mut tally = Tally::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(to) = to.get(number as usize % to.len().max(1)).filter(|_| number < count) else {
                    break;
                };
                let start = Instant::now();
                tally.record(request_here(None, *to, "GET", "/", timeout), start.elapsed());
            }
            total.lock().unwrap_or_else(PoisonError::into_inner).merge(tally);
        };
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..concurrency).map(|_| scope.spawn(|| self.netns.enter().map(|()| worker()))).collect();
            for worker in workers {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok::<(), io::Error>(())
        })
        .context("enter the client's namespace")?;
        Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One request from the calling thread's namespace.
pub(crate) fn request_here(
    source_port: Option<u16>,
    to: SocketAddr,
    method: &str,
    path: &str,
    timeout: Duration,
) -> Result<String, Failure> {
    let deadline = Instant::now() + timeout;
    let mut stream = connect_here(source_port, to, timeout)?;
    stream.set_nodelay(true)?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Timeout);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break parse_answer(&answer),
            length => answer.extend_from_slice(&buffer[..length]),
        }
    }
}

/// The `Server` header of a complete answer with status 200.
fn parse_answer(answer: &[u8]) -> Result<String, Failure> {
    let text = String::from_utf8_lossy(answer);
    let (head, _body) = text.split_once("\r\n\r\n").ok_or(Failure::Closed)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    match status {
        Some(200) => {}
        Some(status) => return Err(Failure::Status(status)),
        None => return Err(Failure::Other(format!("no HTTP: {head:?}"))),
    }
    let server = head.lines().find_map(|line| line.strip_prefix("Server: "));
    server.map(str::to_owned).ok_or_else(|| Failure::Other("no Server header".into()))
}

/// Connects from the calling thread's namespace, from a chosen port if one is given.
pub(crate) fn connect_here(
    source_port: Option<u16>,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let (family, any): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if let Some(port) = source_port {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::new(any, port))?;
    }
    match connect(&socket, &to) {
        Ok(()) => {}
        Err(rustix::io::Errno::INPROGRESS) => await_connected(&socket, timeout)?,
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

fn await_connected(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(timeout).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&limit))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    sockopt::socket_error(socket)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let whole = b"HTTP/1.1 200 OK\r\nServer: s1\r\n\r\ns1\n";
        assert_eq!(parse_answer(whole), Ok("s1".into()));
        assert_eq!(parse_answer(&whole[..20]), Err(Failure::Closed));
        assert_eq!(parse_answer(b""), Err(Failure::Closed));
        assert_eq!(parse_answer(b"HTTP/1.1 503 No\r\nServer: s1\r\n\r\n"), Err(Failure::Status(503)));
    }

    #[test]
    fn shares_are_of_what_was_answered() {
        let mut tally = Tally::default();
        for result in [Ok("s1".to_owned()), Ok("s1".into()), Ok("s2".into()), Err(Failure::Refused)] {
            tally.record(result, Duration::from_millis(1));
        }
        assert!((tally.share("s1") - 2.0 / 3.0).abs() < 1e-9);
        assert!(tally.share("s9") == 0.0);
        assert_eq!(tally.to_string(), "3 answered s1 66.7% s2 33.3%, 1 failed (1 refused)");
    }
}
