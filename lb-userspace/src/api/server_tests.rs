use std::io::{Read, Write};
use std::{fs, os::unix::net::UnixStream as StdUnixStream, path::Path, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

use super::*;
use crate::api::fake::Fake;

/// A running server on a socket in a directory of its own and on a free port of loopback.
struct Running {
    dir: tempfile::TempDir,
    address: SocketAddr,
    fake: Fake,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::bind(&admin(dir.path()), limits).unwrap();
        let address = server.http_address().unwrap();
        let fake = Fake::start();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(server.run(fake.handle.clone(), shutdown));
        Self { dir, address, fake, stop, task }
    }

    /// The whole answer to one request over TCP.
    async fn tcp(&self, method: &str, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The same over the Unix socket.
    async fn unix(&self, method: &str, path: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(self.dir.path().join("xlb.sock")).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

fn admin(dir: &Path) -> Admin {
    Admin { socket: dir.join("xlb.sock"), listen: Some(([127, 0, 0, 1], 0).into()) }
}

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

const LOCAL: &str = "Host: localhost\r\n";

#[tokio::test]
async fn every_route_answers_on_both_listeners() {
    let server = Running::start(Limits::default());
    for (path, part) in [
        ("/api/v1/status", r#""table_checksum": "9f86d081884c7d65""#),
        ("/api/v1/events?since=1", r#""text":"down: L4TOUT""#),
        ("/metrics", "# TYPE xlb_outcomes_total counter"),
    ] {
        for answer in [server.tcp("GET", path, LOCAL).await, server.unix("GET", path).await] {
            assert_eq!(code(&answer), "200", "{path}: {answer}");
            assert!(answer.contains(part), "{path}: {answer}");
        }
    }
    for (path, expected) in [
        ("/api/v1/reload", "200"),
        ("/api/v1/reload?force=true", "200"),
        ("/api/v1/apply", "409"),
        ("/api/v1/apply?force", "200"),
        ("/api/v1/plan?file_name=x", "200"),
        ("/api/v1/services/web/backends/s2/drain", "200"),
        ("/api/v1/services/web/backends/s2/enable", "200"),
        ("/api/v1/services/web/backends/s2/disable", "200"),
        ("/api/v1/services/web/backends/s1/drain", "409"),
        ("/api/v1/services/web/backends/s1/drain?force=no", "409"),
        ("/api/v1/services/web/backends/s1/disable", "409"),
        ("/api/v1/services/web/backends/s1/drain?force=true", "200"),
        ("/api/v1/services/web/backends/s1/disable?force", "200"),
        ("/api/v1/services/web/backends/s1/enable", "200"),
        ("/api/v1/services/web/backends/nobody/drain", "404"),
        ("/api/v1/services/web/backends/s1/explode", "404"),
        ("/api/v1/status", "405"),
        ("/nothing", "404"),
    ] {
        let answer = server.unix("POST", path).await;
        assert_eq!(code(&answer), expected, "{path}: {answer}");
    }
    // A GET changes nothing.
    let before = server.fake.asked().len();
    for path in ["/api/v1/reload", "/api/v1/services/web/backends/s1/drain"] {
        assert_eq!(code(&server.unix("GET", path).await), "405");
    }
    assert_eq!(server.fake.asked().len(), before);
}

#[tokio::test]
async fn readiness_is_told_by_healthz() {
    let server = Running::start(Limits::default());
    assert_eq!(code(&server.tcp("GET", "/healthz", LOCAL).await), "503");
    server.fake.ready.send_replace(true);
    let answer = server.tcp("GET", "/healthz", LOCAL).await;
    assert_eq!(code(&answer), "200");
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[tokio::test]
async fn tcp_is_for_reading_only() {
    let server = Running::start(Limits::default());
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/api/v1/reload", "/api/v1/status", "/api/v1/services/web/backends/s1/drain"] {
            let answer = server.tcp(method, path, LOCAL).await;
            assert_eq!(code(&answer), "405", "{method} {path}: {answer}");
            assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
        }
    }
    assert_eq!(code(&server.tcp("GET", "/api/v1/reload", LOCAL).await), "404");
    assert_eq!(server.fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn tcp_answers_only_to_its_own_names_and_as_data() {
    let server = Running::start(Limits::default());
    let foreign = server.tcp("GET", "/api/v1/status", "Host: evil.example\r\n").await;
    assert_eq!(code(&foreign), "403", "{foreign}");
    let own = server
        .tcp("GET", "/api/v1/status", &format!("Host: {}\r\nOrigin: http://a\r\n", server.address))
        .await;
    assert_eq!(code(&own), "200", "{own}");
    for header in ["x-content-type-options: nosniff\r\n", "content-security-policy: default-src 'none'"] {
        assert!(own.contains(header) && foreign.contains(header), "{header}: {own}");
    }
    assert!(!own.contains("access-control-allow-origin"), "{own}");
}

#[tokio::test]
async fn metrics_come_in_the_format_that_was_asked_for() {
    let server = Running::start(Limits::default());
    let open =
        server.tcp("GET", "/metrics", "Host: localhost\r\nAccept: application/openmetrics-text\r\n").await;
    assert!(
        open.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{open}"
    );
    assert!(open.ends_with("# EOF\n"));
    let classic = server.tcp("GET", "/metrics", LOCAL).await;
    assert!(classic.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{classic}");
    assert!(!classic.contains("# EOF"));
}

#[tokio::test]
async fn many_scrapes_cost_the_controller_few_questions() {
    let server = Running::start(Limits::default());
    let started = Instant::now();
    for _ in 0..50 {
        server.tcp("GET", "/metrics", LOCAL).await;
    }
    let allowed = 2 + started.elapsed().as_millis() / routes::STATUS_AGE_MAX.as_millis();
    let asked = server.fake.asked().len() as u128;
    assert!((1..=allowed).contains(&asked), "{asked} questions");
    // On the socket each gets the latest.
    let before = server.fake.asked().len();
    for _ in 0..5 {
        server.unix("GET", "/api/v1/status").await;
    }
    assert_eq!(server.fake.asked().len(), before + 5);
}

/// True when the server closed the connection within the time.
async fn closed_within(stream: &mut TcpStream, limit: Duration) -> bool {
    let mut rest = Vec::new();
    // A reset is an end, too.
    timeout(limit, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_slow_client_is_cut_off() {
    let server = Running::start(Limits { header: Duration::from_millis(200), ..Limits::default() });
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc").await.unwrap();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    for stream in [&mut slow, &mut silent, &mut idle] {
        assert!(closed_within(stream, Duration::from_secs(10)).await);
    }
}

#[tokio::test]
async fn a_client_that_drips_bytes_is_cut_off_in_the_end() {
    let limits = Limits { connection: Duration::from_millis(200), ..Limits::default() };
    let server = Running::start(limits);
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    assert!(closed_within(&mut slow, Duration::from_secs(4)).await, "before the header's limit of 5 s");
}

#[tokio::test]
async fn more_clients_than_allowed_wait_and_do_not_shut_out_the_operator() {
    let limits = Limits { clients: 4, header: Duration::from_millis(1500), ..Limits::default() };
    let server = Running::start(limits);
    let started = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let operator = timeout(Duration::from_secs(1), server.unix("GET", "/api/v1/status")).await;
    assert_eq!(code(&operator.expect("the socket has places of its own")), "200");
    let fifth = server.tcp("GET", "/api/v1/status", LOCAL).await;
    assert_eq!(code(&fifth), "200");
    assert!(started.elapsed() >= Duration::from_millis(1400), "it had to wait: {:?}", started.elapsed());
    drop(silent);
}

#[tokio::test]
async fn a_second_controller_is_refused_and_a_dead_ones_socket_replaced() {
    let server = Running::start(Limits::default());
    let error = Server::bind(&admin(server.dir.path()), Limits::default()).unwrap_err();
    assert!(matches!(error, BindError::AlreadyRunning(_)), "{error:?}");
    assert_eq!(code(&server.unix("GET", "/api/v1/status").await), "200");

    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("xlb.sock")).unwrap());
    Server::bind(&admin(dir.path()), Limits::default()).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap();
    let error =
        Server::bind(&Admin { listen: Some(address), ..admin(dir.path()) }, Limits::default()).unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(!dir.path().join("xlb.sock").exists(), "the socket goes, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_closes_everything_and_removes_the_socket() {
    let server = Running::start(Limits::default());
    let path = server.dir.path().join("xlb.sock");
    let mut idle = StdUnixStream::connect(&path).unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).unwrap();
    server.stop.send(()).unwrap();
    timeout(Duration::from_secs(10), server.task).await.unwrap().unwrap();
    idle.read_to_end(&mut Vec::new()).unwrap();
    assert!(fs::symlink_metadata(&path).is_err());
}
