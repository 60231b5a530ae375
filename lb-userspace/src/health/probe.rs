//! One probe: I/O only. What its result means for the backend is `state`'s to say.
//!
//! A probe has one total deadline, however slowly the backend dribbles. It follows no redirect, reads a bounded
//! answer, and leaves no socket in TIME_WAIT behind. Connections go to the backend's own address.

use std::{error::Error, io, net::SocketAddr, pin::pin, time::Duration};

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use super::reason::{Detail, Reason};
use crate::config::spec::{Check, HealthSpec};

const USER_AGENT: &str = concat!("xlb/", env!("CARGO_PKG_VERSION"));
/// The longest response head taken, in bytes; a longer one is `L7RSP`.
const HEAD_LIMIT: usize = 16 * 1024;
/// Of a body no more than this is read, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// And no longer than this: the verdict is known by then, and waits.
const BODY_PATIENCE: Duration = Duration::from_millis(100);

/// What a probe found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The result.
    pub reason: Reason,
    /// More about it.
    pub detail: Detail,
    /// From the first packet until the result was known.
    pub latency: Duration,
}

/// Why a probe has no good end.
type Failure = (Reason, String);

/// Probes `address` once; ends within `spec.timeout`, whatever the backend does.
pub async fn probe(address: SocketAddr, spec: &HealthSpec) -> Observation {
    let started = Instant::now();
    let (reason, detail) = match run(address, spec, started).await {
        Ok(passed) => passed,
        Err(failed) => failed,
    };
    Observation { reason, detail: Detail::new(&detail), latency: started.elapsed() }
}

async fn run(address: SocketAddr, spec: &HealthSpec, started: Instant) -> Result<(Reason, String), Failure> {
    if spec.check == Check::None {
        return Ok((Reason::None, String::new()));
    }
    let stream = timeout(spec.timeout, connect(address))
        .await
        .map_err(|_| (Reason::L4Timeout, format!("not connected within {:?}", spec.timeout)))??;
    let Check::Http { path, host, expect_status } = &spec.check else {
        return Ok((Reason::L4Ok, String::new()));
    };
    let request = request(address, path, host.as_deref())?;
    let left = spec.timeout.saturating_sub(started.elapsed());
    let status = timeout(left, exchange(stream, request, started + left))
        .await
        .map_err(|_| (Reason::L7Timeout, format!("no complete answer within {:?}", spec.timeout)))??;
    judge(status, expect_status)
}

/// A connection that ends with RST when it is dropped: hundreds of probes a second would otherwise fill the port
/// range with sockets in TIME_WAIT.
async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    // What fails before the first packet is ours, whatever the error.
    let ours = |error: io::Error| (Reason::SockErr, error.to_string());
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(ours)?;
    socket.set_zero_linger().map_err(ours)?;
    let stream = socket.connect(address).await.map_err(|e| (connect_reason(&e), e.to_string()))?;
    // On this very host, a port of the ephemeral range that nobody listens on can be connected to itself
    // (RFC 9293 section 3.5, simultaneous open).
    if stream.local_addr().is_ok_and(|local| local == address) {
        return Err((Reason::L4Refused, "nobody listens: the connection met itself".to_owned()));
    }
    Ok(stream)
}

fn connect_reason(error: &io::Error) -> Reason {
    if is_our_trouble(error) {
        return Reason::SockErr;
    }
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => Reason::L4Refused,
        Some(libc::ETIMEDOUT) => Reason::L4Timeout,
        _ => Reason::L4Unreachable,
    }
}

/// Errors of this host's resources and rules. A missing route is not among them: it can be the backend's network.
fn is_our_trouble(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::EAGAIN
                | libc::EADDRNOTAVAIL
                | libc::EACCES
                | libc::EPERM
        )
    )
}

fn request(address: SocketAddr, path: &str, host: Option<&str>) -> Result<Request<Empty<Bytes>>, Failure> {
    let host = host.map_or_else(|| address.to_string(), str::to_owned);
    Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| (Reason::SockErr, format!("cannot ask for {path:?}: {error}")))
}

/// Sends the request and returns the status of the answer once its head is complete.
async fn exchange(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    deadline: Instant,
) -> Result<StatusCode, Failure> {
    let (mut sender, connection) = http1::Builder::new()
        .max_header_size(HEAD_LIMIT)
        .max_buf_size(BODY_LIMIT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(&e))?;
    let mut connection = pin!(connection);
    let response = match select(pin!(sender.send_request(request)), &mut connection).await {
        Either::Left((response, _)) => response,
        // The connection has ended and left its last word with the request.
        Either::Right((_, response)) => response.await,
    };
    let (head, body) = response.map_err(|e| broken(&e))?.into_parts();

    // The verdict is by status. The body is read only so that a server that has it ready sees no reset.
    let patience = BODY_PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
    let _ = timeout(patience, select(pin!(drain(body)), connection)).await;
    Ok(head.status)
}

async fn drain(mut body: Incoming) {
    let mut left = BODY_LIMIT;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

/// What a broken exchange says about a backend that accepted the connection.
fn broken(error: &hyper::Error) -> Failure {
    let cause = error.source();
    let reason = match cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(io) if is_our_trouble(io) => Reason::SockErr,
        Some(io) if matches!(io.raw_os_error(), Some(libc::ETIMEDOUT | libc::EHOSTUNREACH)) => {
            Reason::L7Timeout
        }
        _ => Reason::L7Invalid,
    };
    let detail = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    (reason, detail)
}

fn judge(status: StatusCode, expected: &[u16]) -> Result<(Reason, String), Failure> {
    let status = status.as_u16();
    if expected.contains(&status) {
        return Ok((Reason::L7Ok(status), String::new()));
    }
    let expected = expected.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    Err((Reason::L7Status(status), format!("status {status}, expected {expected}")))
}

#[cfg(test)]
mod tests;
