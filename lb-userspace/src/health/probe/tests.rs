use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::sleep,
};

use super::*;

const TIMEOUT: Duration = Duration::from_millis(400);
/// Timers and clocks may differ a little.
const NEARLY: Duration = Duration::from_millis(395);
/// Shared machines stall; a probe without a working deadline would take for ever.
const SLACK: Duration = Duration::from_secs(2);

fn spec(check: Check, port: u16) -> HealthSpec {
    HealthSpec { check, port, interval: Duration::from_secs(2), timeout: TIMEOUT, fall: 3, rise: 2 }
}

fn http(port: u16) -> HealthSpec {
    spec(Check::Http { path: "/healthz".to_owned(), host: None, expect_status: vec![200, 204] }, port)
}

/// A server that reads a request's head and then does as told with each connection. It ends with this value.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start<F: Future<Output = ()> + Send + 'static>(
        act: impl Fn(TcpStream, String) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                        _ => break,
                    }
                }
                act(stream, String::from_utf8_lossy(&request).into_owned()).await;
            }
        });
        Self { address, task }
    }

    /// Sends `reply` and closes.
    async fn replying(reply: impl Into<Vec<u8>>) -> Self {
        let reply = Arc::new(reply.into());
        Self::start(move |mut stream, _| {
            let reply = Arc::clone(&reply);
            async move {
                let _ = stream.write_all(&reply).await;
            }
        })
        .await
    }

    /// Sends `first`, then `again` after each `pause` until it is refused.
    async fn dribbling(first: &'static [u8], again: &'static [u8], pause: Duration) -> Self {
        Self::start(move |mut stream, _| async move {
            let mut sent = stream.write_all(first).await;
            while sent.is_ok() {
                sleep(pause).await;
                sent = stream.write_all(again).await;
            }
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probe_http(server: &Server) -> Observation {
    let started = Instant::now();
    let seen = probe(server.address, &http(server.address.port())).await;
    assert!(started.elapsed() < TIMEOUT + SLACK, "took {:?}", started.elapsed());
    seen
}

/// A loopback port where nobody listens.
async fn closed_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn the_verdict_is_by_the_status_of_a_complete_head() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(HEAD_LIMIT));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let table: &[(&str, &str, Reason, &str)] = &[
        ("ok", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Reason::L7Ok(200), ""),
        ("another expected one", "HTTP/1.1 204 No Content\r\n\r\n", Reason::L7Ok(204), ""),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nok", Reason::L7Ok(200), ""),
        (
            "interim answers",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\na: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            Reason::L7Ok(200),
            "",
        ),
        ("a body cut short", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nok", Reason::L7Ok(200), ""),
        (
            "503",
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            Reason::L7Status(503),
            "status 503, expected 200, 204",
        ),
        ("301", "HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n", Reason::L7Status(301), "status 301"),
        (
            "101",
            "HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            Reason::L7Status(101),
            "status 101",
        ),
        ("garbage", "SSH-2.0-OpenSSH_9.9\r\n", Reason::L7Invalid, "invalid HTTP"),
        ("TLS", "\u{15}\u{3}\u{1}\u{0}\u{2}\u{2}\u{16}", Reason::L7Invalid, "invalid HTTP"),
        ("nothing", "", Reason::L7Invalid, "closed before message completed"),
        ("early end", "HTTP/1.1 200 OK\r\nconte", Reason::L7Invalid, "closed before message completed"),
        ("a huge header", &long, Reason::L7Invalid, "too large"),
        ("too many headers", &many, Reason::L7Invalid, "too large"),
    ];
    for (name, reply, reason, detail) in table {
        let server = Server::replying(*reply).await;
        let seen = probe_http(&server).await;
        assert_eq!(seen.reason, *reason, "{name}: {}", seen.detail);
        assert!(seen.detail.as_str().contains(detail), "{name}: {}", seen.detail);
        assert_eq!(seen.detail.as_str().is_empty(), detail.is_empty(), "{name}: {}", seen.detail);
    }
}

#[tokio::test]
async fn one_deadline_holds_however_the_answer_dribbles() {
    let pause = Duration::from_millis(20);
    let servers: [(&str, Server); 4] = [
        ("slowloris", Server::dribbling(b"HTTP/1.1 200 OK\r\nx: ", b"a", pause).await),
        ("silence", Server::dribbling(b"", b"", Duration::from_millis(100)).await),
        ("endless headers", Server::dribbling(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", pause).await),
        ("endless interim answers", Server::dribbling(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause).await),
    ];
    for (name, server) in servers {
        let seen = probe_http(&server).await;
        assert_eq!(seen.reason, Reason::L7Timeout, "{name}: {}", seen.detail);
        assert!(seen.latency >= NEARLY, "{name}: {:?}", seen.latency);
    }
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends_at_the_deadline() {
    let flood: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let server = Server::dribbling(flood, flood, Duration::ZERO).await;
    assert_eq!(probe_http(&server).await.reason, Reason::L7Timeout);
}

#[tokio::test]
async fn an_endless_body_is_neither_waited_for_nor_read() {
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let server = Server::start(|mut stream, _| async move {
        let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while sent.is_ok() {
            sent = stream.write_all(&[b'x'; 16 * 1024]).await;
            SENT.fetch_add(16 * 1024, Ordering::Relaxed);
        }
    })
    .await;
    let seen = probe_http(&server).await;
    assert_eq!(seen.reason, Reason::L7Ok(200));
    // The rest of what was sent lies in socket buffers.
    assert!(SENT.load(Ordering::Relaxed) < 16 << 20);

    let dribble = Server::dribbling(b"HTTP/1.1 200 OK\r\n\r\n", b"x", Duration::from_millis(20)).await;
    let started = Instant::now();
    assert_eq!(probe_http(&dribble).await.reason, Reason::L7Ok(200));
    assert!(started.elapsed() >= BODY_PATIENCE, "the body is given a little time");
}

#[tokio::test]
async fn a_reset_in_the_reply_is_a_broken_answer() {
    let server = Server::start(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let seen = probe_http(&server).await;
    assert_eq!(seen.reason, Reason::L7Invalid);
    assert!(seen.detail.as_str().contains("reset"), "{}", seen.detail);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&hits);
    let canary = Server::start(move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        async {}
    })
    .await;
    let moved =
        format!("HTTP/1.1 301 Moved\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", canary.address);
    let server = Server::replying(moved).await;
    assert_eq!(probe_http(&server).await.reason, Reason::L7Status(301));
    assert_eq!(hits.load(Ordering::Relaxed), 0);
    // The control: the canary does see who comes.
    probe_http(&canary).await;
    assert_eq!(hits.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_request_is_what_was_asked_for() {
    for host in [None, Some("www.example.com")] {
        let (sent, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let server = Server::start(move |_, request| {
            sent.send(request).unwrap();
            async {}
        })
        .await;
        let check =
            Check::Http { path: "/a?b=c".into(), host: host.map(str::to_owned), expect_status: vec![200] };
        probe(server.address, &spec(check, server.address.port())).await;
        let request = seen.recv().await.unwrap().to_ascii_lowercase();
        let host = host.map_or_else(|| server.address.to_string(), str::to_owned);
        assert!(request.starts_with("get /a?b=c http/1.1\r\n"), "{request}");
        for header in
            [format!("host: {host}"), format!("user-agent: {USER_AGENT}"), "connection: close".to_owned()]
        {
            assert!(request.contains(&format!("\r\n{header}\r\n")), "{header} in {request}");
        }
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_made_is_our_own_trouble() {
    let server = Server::replying("").await;
    let check = Check::Http { path: "/a b".into(), host: None, expect_status: vec![200] };
    let seen = probe(server.address, &spec(check, server.address.port())).await;
    assert_eq!(seen.reason, Reason::SockErr, "{}", seen.detail);
}

#[tokio::test]
async fn tcp_is_accepted_refused_or_unreachable() {
    let server = Server::replying("").await;
    let seen = probe(server.address, &spec(Check::Tcp, server.address.port())).await;
    assert_eq!((seen.reason, seen.detail.as_str()), (Reason::L4Ok, ""));

    let closed = closed_port().await;
    for check in [Check::Tcp, http(closed.port()).check] {
        let seen = probe(closed, &spec(check, closed.port())).await;
        assert_eq!(seen.reason, Reason::L4Refused, "{}", seen.detail);
        assert!(seen.detail.as_str().contains("refused"), "{}", seen.detail);
    }
}

/// A listener whose queue is full drops SYNs, like a host that lost power.
#[tokio::test]
async fn silence_is_a_layer_4_timeout() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill: Vec<_> = (0..8).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
    sleep(Duration::from_millis(100)).await;
    let seen = probe(address, &spec(Check::Tcp, address.port())).await;
    assert_eq!(seen.reason, Reason::L4Timeout, "{}", seen.detail);
    assert!(seen.latency >= NEARLY && seen.latency < TIMEOUT + SLACK);
    fill.iter().for_each(JoinHandle::abort);
}

#[test]
fn only_our_own_trouble_is_a_socket_error() {
    let table = [
        (libc::EMFILE, Reason::SockErr),
        (libc::ENFILE, Reason::SockErr),
        (libc::ENOMEM, Reason::SockErr),
        (libc::EADDRNOTAVAIL, Reason::SockErr),
        (libc::EACCES, Reason::SockErr),
        (libc::EPERM, Reason::SockErr),
        (libc::ECONNREFUSED, Reason::L4Refused),
        (libc::EHOSTUNREACH, Reason::L4Unreachable),
        (libc::ENETUNREACH, Reason::L4Unreachable),
        (libc::ETIMEDOUT, Reason::L4Timeout),
    ];
    for (errno, reason) in table {
        assert_eq!(connect_reason(&io::Error::from_raw_os_error(errno)), reason, "errno {errno}");
    }
}

/// Without linger 0, every probe would leave its side of the connection in TIME_WAIT for a minute.
#[tokio::test]
async fn probes_leave_no_time_wait_behind() {
    let server = Server::start(|_, _| async {}).await;
    let port = server.address.port();
    for _ in 0..20 {
        assert_eq!(probe(server.address, &spec(Check::Tcp, port)).await.reason, Reason::L4Ok);
    }
    assert_eq!(time_wait_to(port), 0);
    // The control: connections that are closed politely are seen there.
    drop(TcpStream::connect(server.address).await.unwrap());
    let deadline = Instant::now() + SLACK;
    while time_wait_to(port) == 0 {
        assert!(Instant::now() < deadline, "the control left no TIME_WAIT");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Sockets in TIME_WAIT (state 06) whose remote port is `port`, from /proc/net/tcp.
fn time_wait_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    table
        .lines()
        .filter(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            columns.get(3) == Some(&"06") && columns[2].ends_with(&remote)
        })
        .count()
}
