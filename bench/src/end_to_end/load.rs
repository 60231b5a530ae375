//! The client of the bench: many requests from one thread that waits for all of them at once.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_lab::stop;
use rustix::{
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    fs::Timespec,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};

/// All of a load must be answered in so long.
const LONGEST: Duration = Duration::from_secs(30);
/// Looks at the clock and the stop flag at least so often.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// Answers of the bench's servers are shorter.
const LONGEST_ANSWER: usize = 512;

/// What to ask for.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to, in turn.
    pub to: Vec<SocketAddr>,
    /// Connections in all.
    pub connections: u32,
    /// Requests on each, one after the other.
    pub requests: u32,
    /// Connections that are made a second, whether or not earlier ones are done; `None`: as soon as one is done.
    pub rate: Option<f64>,
    /// Connections at the same time.
    pub concurrency: usize,
}

/// What became of a load; all requests were answered.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// How long each request took, seconds. The first on a connection includes its making; with a rate it counts from
    /// when it was due.
    pub latencies: Vec<f64>,
    /// Answers by the name of the server.
    pub by_server: BTreeMap<String, u64>,
    /// From the first to the last.
    pub took: Duration,
}

impl Load {
    /// Runs it from the calling thread's namespace. A request that fails is an error.
    pub fn run(&self) -> Result<Answers> {
        let mut client = Client {
            load: self,
            epoll: epoll::create(CreateFlags::CLOEXEC).context("make an epoll instance")?,
            connections: (0..self.concurrency).map(|_| None).collect(),
            free: (0..self.concurrency).rev().collect(),
            started: 0,
            start: Instant::now(),
            answers: Answers::default(),
        };
        client.answers.latencies.reserve((self.connections * self.requests) as usize);
        client.run()?;
        let mut answers = client.answers;
        answers.took = client.start.elapsed();
        Ok(answers)
    }
}

struct Client<'a> {
    load: &'a Load,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    started: u32,
    start: Instant,
    answers: Answers,
}

struct Connection {
    stream: TcpStream,
    connected: bool,
    /// When the request under way was due.
    since: Instant,
    /// Requests that are not answered yet, the one under way included.
    left: u32,
}

impl Client<'_> {
    fn run(&mut self) -> Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(self.load.concurrency.max(1));
        loop {
            let wait = self.start_due()?;
            if self.started == self.load.connections && self.free.len() == self.connections.len() {
                return Ok(());
            }
            ensure!(!stop::requested(), "interrupted");
            ensure!(
                self.start.elapsed() < LONGEST,
                "not all was answered within {LONGEST:?}: {}",
                self.progress()
            );
            let wait = Timespec::try_from(wait).context("a wait out of range")?;
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for events"),
            }
            for event in &events {
                let number = event.data.u64() as usize;
                self.go_on(number).with_context(|| self.progress())?;
            }
        }
    }

    /// Starts all connections that are due; answers how long until the next one.
    fn start_due(&mut self) -> Result<Duration> {
        while self.started < self.load.connections {
            let now = Instant::now();
            let due = match self.load.rate {
                Some(rate) => self.start + Duration::from_secs_f64(f64::from(self.started) / rate),
                None => now,
            };
            if due > now {
                return Ok((due - now).min(LONGEST_WAIT));
            }
            let Some(number) = self.free.pop() else { break };
            let to = self.load.to[self.started as usize % self.load.to.len()];
            let stream = connect_to(to).with_context(|| format!("connect to {to}"))?;
            // The kernel tells when it is connected, then when there is something to read.
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
            epoll::add(&self.epoll, &stream, EventData::new_u64(number as u64), flags)?;
            self.connections[number] =
                Some(Connection { stream, connected: false, since: due, left: self.load.requests });
            self.started += 1;
        }
        Ok(LONGEST_WAIT)
    }

    /// Something happened to a connection.
    fn go_on(&mut self, number: usize) -> Result<()> {
        let Some(connection) = &mut self.connections[number] else { return Ok(()) };
        if !connection.connected {
            sockopt::socket_error(&connection.stream)?.context("connect")?;
            connection.connected = true;
            return connection.ask();
        }
        // All that there is: the kernel does not tell again.
        loop {
            let mut buffer = [0; LONGEST_ANSWER];
            match connection.stream.read(&mut buffer) {
                Ok(0) if connection.left == 0 => {
                    self.connections[number] = None;
                    self.free.push(number);
                    return Ok(());
                }
                Ok(0) => bail!("closed before it was answered"),
                Ok(length) => {
                    let server = server(&buffer[..length])?;
                    ensure!(connection.left > 0, "answered twice");
                    self.answers.latencies.push(connection.since.elapsed().as_secs_f64());
                    match self.answers.by_server.get_mut(server) {
                        Some(count) => *count += 1,
                        None => drop(self.answers.by_server.insert(server.into(), 1)),
                    }
                    connection.left -= 1;
                    if connection.left > 0 {
                        connection.since = Instant::now();
                        connection.ask()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("read an answer"),
            }
        }
    }

    fn progress(&self) -> String {
        let (answered, wanted) = (self.answers.latencies.len(), self.load.connections * self.load.requests);
        format!("{answered} of {wanted} requests to {:?} were answered", self.load.to)
    }
}

impl Connection {
    /// Sends the next request; the last one asks for the end of the connection.
    fn ask(&mut self) -> Result<()> {
        let request: &[u8] = if self.left == 1 {
            b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
        } else {
            b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
        };
        // A request is far smaller than a socket's buffer.
        self.stream.write_all(request).context("send a request")
    }
}

/// The name of the server in a whole answer with status 200. (One of a hundred bytes arrives in one piece.)
fn server(answer: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(answer).context("an answer that is no text")?;
    let name = || {
        let (name, rest) = text.strip_prefix("HTTP/1.1 200 OK\r\nServer: ")?.split_once('\r')?;
        let (_, body) = rest.split_once("\r\n\r\n")?;
        (body.strip_suffix('\n') == Some(name)).then_some(name)
    };
    name().with_context(|| format!("not the answer of a server: {text:?}"))
}

/// A connection on its way.
fn connect_to(to: SocketAddr) -> Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_counts() {
        let whole = "HTTP/1.1 200 OK\r\nServer: s1\r\nContent-Length: 3\r\n\r\ns1\n";
        assert_eq!(server(whole.as_bytes()).ok(), Some("s1"));
        let others = [
            &whole[..whole.len() - 1],
            &whole.replace("200 OK", "503 No"),
            &whole.replace("\ns1", "\ns2"),
            "",
        ];
        for other in others {
            assert!(server(other.as_bytes()).is_err(), "{other:?}");
        }
    }
}
