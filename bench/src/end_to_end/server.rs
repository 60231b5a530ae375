//! The server of the bench: HTTP that answers every GET with its name, on one thread, at little cost.
//!
//! It listens where the lab's server does and is started like it, so that a lab takes either.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use lb_lab::{HTTP_PORT, server::LISTENING};
use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    io::Errno,
};

use super::cpu::{Place, pin};

/// The hidden word that makes a server of this program.
pub const SUBCOMMAND: &str = "serve";

/// A burst of so many connections waits.
const BACKLOG: i32 = 4096;
/// The listener among the connections, which are numbered from 0.
const LISTENER: u64 = u64::MAX;
/// Requests of a client are shorter.
const LONGEST_REQUEST: usize = 2048;

/// Serves until it is killed: `NAME ADDRESS...`; it listens on all addresses.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let name = arguments.next().unwrap_or_default();
    match serve(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("server {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: &str) -> Result<()> {
    // Client and servers are machines of their own elsewhere; here they are on CPUs of their own, if there are two.
    pin(Place::Last)?;
    let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HTTP_PORT);
    let listener = TcpListener::bind(at).with_context(|| format!("listen on {at}"))?;
    // Again, because the standard library asks for a backlog of 128 only.
    rustix::net::listen(&listener, BACKLOG).context("set the backlog")?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC).context("make an epoll instance")?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    println!("{LISTENING}");

    let head = format!("HTTP/1.1 200 OK\r\nServer: {name}\r\nContent-Length: {}\r\n", name.len() + 1);
    let answers = Answers {
        keep: format!("{head}\r\n{name}\n").into_bytes(),
        close: format!("{head}Connection: close\r\n\r\n{name}\n").into_bytes(),
    };
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        for event in &events {
            // Copied: the struct is packed.
            let number = event.data.u64();
            if number == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    let number = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    connections[number] = Connection::new(stream, &epoll, number as u64);
                    if connections[number].is_none() {
                        free.push(number);
                    }
                }
                continue;
            }
            let number = number as usize;
            if !connections[number].as_mut().is_some_and(|connection| connection.go_on(&answers)) {
                connections[number] = None;
                free.push(number);
            }
        }
    }
}

/// What is answered, with and without an end of the connection.
struct Answers {
    keep: Vec<u8>,
    close: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// What has arrived of the next request.
    request: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream, epoll: impl std::os::fd::AsFd, number: u64) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
        epoll::add(epoll, &stream, EventData::new_u64(number), EventFlags::IN).ok()?;
        Some(Self { stream, request: Vec::new() })
    }

    /// Answers what has arrived; `false` when the connection is at its end.
    fn go_on(&mut self, answers: &Answers) -> bool {
        let mut buffer = [0; LONGEST_REQUEST];
        let length = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => length,
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        };
        self.request.extend_from_slice(&buffer[..length]);
        if !self.request.ends_with(b"\r\n\r\n") {
            return self.request.len() < LONGEST_REQUEST;
        }
        let close = contains(&self.request, b"Connection: close");
        self.request.clear();
        // An answer is far smaller than a socket's buffer.
        let sent = self.stream.write_all(if close { &answers.close } else { &answers.keep });
        sent.is_ok() && !close
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
