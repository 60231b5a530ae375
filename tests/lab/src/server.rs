//! The test server: HTTP that answers with the server's name, and an echo over TCP and UDP.
//!
//! It runs as a process of its own in its host's namespace, so that it can be killed, stopped and started. A thread a
//! connection is enough here.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{ECHO_PORT, HTTP_PORT};

/// Enough for a handler in a debug build; 2,000 of them are 256 MiB of address space, not of memory.
const STACK: usize = 128 * 1024;
/// A burst of so many connections waits rather than being dropped.
const BACKLOG: i32 = 4096;
/// No request line or header is longer, no client is quieter.
const LONGEST_LINE: u64 = 8 * 1024;
const QUIETEST: Duration = Duration::from_mins(2);

/// What it prints on standard output when it listens.
pub const LISTENING: &str = "listening";

#[derive(Debug)]
struct State {
    name: String,
    healthy: AtomicBool,
}

/// Runs a server until it is killed: `NAME ADDRESS...`, the addresses being all that UDP is answered on.
///
/// (UDP needs them because an answer must come from the address that was asked, which may be the service's.)
pub fn main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: impl IntoIterator<Item = String>) -> Result<()> {
    let mut arguments = arguments.into_iter();
    let name = arguments.next().context("usage: NAME ADDRESS...")?;
    let state = Arc::new(State { name, healthy: AtomicBool::new(true) });
    let http = listen(HTTP_PORT)?;
    let echo = listen(ECHO_PORT)?;
    for address in arguments {
        let address: IpAddr = address.parse().with_context(|| format!("not an address: {address}"))?;
        let at = SocketAddr::new(address, ECHO_PORT);
        let socket = UdpSocket::bind(at).with_context(|| format!("bind udp {at}"))?;
        let state = Arc::clone(&state);
        thread::spawn(move || echo_datagrams(&socket, &state.name));
    }
    let for_echo = Arc::clone(&state);
    thread::spawn(move || accept(&echo, &for_echo, echo_lines));
    println!("{LISTENING}");
    accept(&http, &state, serve_http);
    bail!("no more connections are accepted")
}

/// Listens on both families.
fn listen(port: u16) -> Result<TcpListener> {
    let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let listener = TcpListener::bind(at).with_context(|| format!("listen on {at}"))?;
    // Again, because the standard library asks for a backlog of 128 only.
    rustix::net::listen(&listener, BACKLOG).context("set the backlog")?;
    Ok(listener)
}

fn accept(listener: &TcpListener, state: &Arc<State>, handle: fn(TcpStream, &State) -> io::Result<()>) {
    for connection in listener.incoming() {
        let Ok(connection) = connection else {
            // Out of descriptors or the like: others close theirs soon.
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let state = Arc::clone(state);
        let serve = move || {
            // A client that goes away is its own business.
            let _ = connection.set_read_timeout(Some(QUIETEST));
            let _ = connection.set_nodelay(true);
            let _ = handle(connection, &state);
        };
        // A thread that cannot be had closes the connection: the closure is dropped with it.
        let _ = thread::Builder::new().stack_size(STACK).spawn(serve);
    }
}

fn echo_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors are ICMP messages about earlier answers.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let answer = [name.as_bytes(), b" ", &buffer[..length]].concat();
        let _ = socket.send_to(&answer, from);
    }
}

fn echo_lines(connection: TcpStream, state: &State) -> io::Result<()> {
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    while let Some(line) = read_line(&mut reader)? {
        writer.write_all(format!("{} {line}\n", state.name).as_bytes())?;
    }
    Ok(())
}

/// What of a request matters here.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    keep_alive: bool,
}

fn serve_http(connection: TcpStream, state: &State) -> io::Result<()> {
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader)? {
        let (status, body) = respond(state, &request);
        let connection = if request.keep_alive { "keep-alive" } else { "close" };
        let (name, length) = (&state.name, body.len());
        let head = format!(
            "HTTP/1.1 {status}\r\nServer: {name}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: {connection}\r\n\r\n"
        );
        let body = if request.method == "HEAD" { "" } else { &body };
        writer.write_all(format!("{head}{body}").as_bytes())?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

fn respond(state: &State, request: &Request) -> (&'static str, String) {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET" | "HEAD", "/healthz") if state.healthy.load(Ordering::Relaxed) => ("200 OK", "ok\n".into()),
        ("GET" | "HEAD", "/healthz") => ("503 Service Unavailable", "unhealthy\n".into()),
        ("POST", "/unhealthy") => {
            state.healthy.store(false, Ordering::Relaxed);
            ("200 OK", "unhealthy from now on\n".into())
        }
        ("POST", "/healthy") => {
            state.healthy.store(true, Ordering::Relaxed);
            ("200 OK", "healthy from now on\n".into())
        }
        ("GET" | "HEAD", _) => ("200 OK", format!("{}\n", state.name)),
        _ => ("405 Method Not Allowed", "GET, or POST /healthy and /unhealthy\n".into()),
    }
}

/// The next request, its body skipped; `None` when the client is done or does not speak HTTP.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let Some(first) = read_line(reader)? else { return Ok(None) };
    let mut words = first.split_ascii_whitespace();
    let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request { method: method.into(), path: path.into(), keep_alive: version != "HTTP/1.0" };
    let mut body_length = 0;
    loop {
        let Some(line) = read_line(reader)? else { return Ok(None) };
        let Some((key, value)) = line.split_once(':') else { break };
        let value = value.trim();
        if key.eq_ignore_ascii_case("connection") {
            request.keep_alive = value.eq_ignore_ascii_case("keep-alive");
        } else if key.eq_ignore_ascii_case("content-length") {
            body_length = value.parse().unwrap_or(0);
        }
    }
    io::copy(&mut reader.take(body_length), &mut io::sink())?;
    Ok(Some(request))
}

/// A line without its end; `None` at the end of the stream.
fn read_line(reader: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = String::new();
    if reader.take(LONGEST_LINE).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves one connection and returns everything it answered to `input`.
    fn answers(input: &str, state: &State, handle: fn(TcpStream, &State) -> io::Result<()>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(input.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        handle(listener.accept().unwrap().0, state).unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        all
    }

    fn state() -> State {
        State { name: "s7".into(), healthy: AtomicBool::new(true) }
    }

    #[test]
    fn http_keeps_the_connection_and_says_its_name() {
        let all = answers(
            "GET / HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\nConnection: close\r\n\r\n",
            &state(),
            serve_http,
        );
        assert_eq!(all.matches("HTTP/1.1 200 OK\r\nServer: s7\r\n").count(), 2, "{all}");
        assert!(all.ends_with("Connection: close\r\n\r\ns7\n"), "{all}");
    }

    #[test]
    fn health_can_be_switched() {
        let input = "POST /unhealthy HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /healthz HTTP/1.1\r\n\r\n\
                     POST /healthy HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n";
        let all = answers(input, &state(), serve_http);
        let statuses: Vec<_> = all.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).collect();
        assert_eq!(statuses, ["200 OK", "503 Service Unavailable", "200 OK", "200 OK"], "{all}");
    }

    #[test]
    fn what_is_no_http_is_hung_up_on() {
        assert_eq!(answers("hello\n", &state(), serve_http), "");
        assert_eq!(answers("GET / HTTP/1.1\r\nHost: cut off", &state(), serve_http), "");
    }

    #[test]
    fn lines_come_back_with_the_name() {
        assert_eq!(answers("a\nb c\n", &state(), echo_lines), "s7 a\ns7 b c\n");
    }
}
