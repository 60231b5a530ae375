//! Asking a running controller over its Unix socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::{Buf, Bytes},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use super::{
    handle::{ANSWER_TIMEOUT, Consent},
    model::{AdminReply, ErrorBody, EventsReply, PlanReply, ReloadReply, Status},
};
use crate::config::spec::AdminState;

/// Longer than the controller's own limit: its message says more.
const LIMIT: Duration = ANSWER_TIMEOUT.saturating_add(Duration::from_secs(5));
/// Largest answer that is read, in bytes: a status of 32,767 backends is a quarter of it.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What may stand in a path segment or a query value as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no controller answers at {}: is `xlb run` up?", .0.display())]
    NotRunning(PathBuf),
    /// The socket is its owner's only.
    #[error("no permission to use {}: try as root", .0.display())]
    Permission(PathBuf),
    /// Somebody listens, and is silent.
    #[error("the controller at {} did not answer within {:?}", .0.display(), LIMIT)]
    Timeout(PathBuf),
    /// The controller refuses, in its own words.
    #[error("{message}")]
    Controller {
        /// HTTP status.
        code: StatusCode,
        /// For people. May hold remote text: escape it before printing.
        message: String,
    },
    /// What came is no answer of ours.
    #[error("talk to the controller")]
    Protocol(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// Whether it may be over in a moment: the controller restarts, or is busy.
    pub fn may_pass(&self) -> bool {
        match self {
            // Killed in the middle of an answer, it leaves a broken one.
            Self::NotRunning(_) | Self::Timeout(_) | Self::Protocol(_) => true,
            Self::Permission(_) => false,
            Self::Controller { code, .. } => {
                matches!(*code, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
            }
        }
    }
}

/// A client; every call makes its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the controller that listens at `socket`.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_owned() }
    }

    /// What is going on.
    pub async fn status(&self) -> Result<Status, ClientError> {
        decode(&self.status_json().await?)
    }

    /// The same as the controller wrote it.
    pub async fn status_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::GET, "/api/v1/status", Bytes::new()).await
    }

    /// What happened after event `since`; 0 asks for all that are kept.
    pub async fn events(&self, since: u64) -> Result<EventsReply, ClientError> {
        decode(&self.call(Method::GET, &format!("/api/v1/events?since={since}"), Bytes::new()).await?)
    }

    /// Read the file again and apply it. What is wrong with the file is in the answer.
    pub async fn reload(&self, consent: Consent) -> Result<ReloadReply, ClientError> {
        let path = match consent {
            Consent::Nothing => "/api/v1/apply",
            Consent::Removals => "/api/v1/reload",
            Consent::Everything => "/api/v1/apply?force=true",
        };
        decode(&self.call(Method::POST, path, Bytes::new()).await?)
    }

    /// What would the file with this text change? `file_name` is for messages.
    pub async fn plan(&self, file_name: &str, text: impl Into<Bytes>) -> Result<PlanReply, ClientError> {
        let path = format!("/api/v1/plan?file_name={}", utf8_percent_encode(file_name, PLAIN));
        decode(&self.call(Method::POST, &path, text.into()).await?)
    }

    /// Put a backend into an administrative state; with `force` also when no eligible backend would be left.
    pub async fn set_admin(
        &self,
        service: &str,
        backend: &str,
        state: AdminState,
        force: bool,
    ) -> Result<AdminReply, ClientError> {
        let verb = match state {
            AdminState::Active => "enable",
            AdminState::Drain => "drain",
            AdminState::Disabled => "disable",
        };
        let [service, backend] = [service, backend].map(|name| utf8_percent_encode(name, PLAIN));
        let query = if force { "?force=true" } else { "" };
        let path = format!("/api/v1/services/{service}/backends/{backend}/{verb}{query}");
        decode(&self.call(Method::POST, &path, Bytes::new()).await?)
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        timeout(LIMIT, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| Err(ClientError::Timeout(self.socket.clone())))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_connected(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(protocol)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(protocol)?;
        let answer = async move {
            let response = sender.send_request(request).await.map_err(protocol)?;
            let code = response.status();
            let body =
                Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(protocol)?;
            Ok((code, body.to_bytes()))
        };
        // The connection moves the bytes; how it ends is told by the answer.
        let driver = tokio::spawn(connection);
        let answer = answer.await;
        driver.abort();
        let (code, body) = answer?;
        accept(code, body)
    }

    fn not_connected(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.socket.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission(self.socket.clone()),
            _ => protocol(error),
        }
    }
}

/// The body, unless it is an error. Answers to `reload` and `plan` stay answers, whatever their status.
fn accept(code: StatusCode, body: Bytes) -> Result<Bytes, ClientError> {
    if code.is_success() {
        return Ok(body);
    }
    if let Ok(error) = serde_json::from_slice::<ErrorBody>(&body) {
        return Err(ClientError::Controller { code, message: error.error.message });
    }
    if matches!(code, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY) {
        return Ok(body);
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(256)]).into_owned();
    Err(ClientError::Controller { code, message: format!("the controller answers {code}: {text}") })
}

fn decode<T: DeserializeOwned>(body: &Bytes) -> Result<T, ClientError> {
    serde_json::from_reader(body.clone().reader()).map_err(protocol)
}

fn protocol(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Protocol(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{
            fake::{self, Fake},
            server::{Limits, Server},
        },
        config::spec::Admin,
    };

    /// A server with a fake controller, in a directory of its own.
    fn serve() -> (tempfile::TempDir, Client, Fake) {
        let dir = tempfile::tempdir().unwrap();
        let admin = Admin { socket: dir.path().join("xlb.sock"), listen: None };
        let server = Server::bind(&admin, Limits::default()).unwrap();
        let fake = Fake::start();
        tokio::spawn(server.run(fake.handle.clone(), std::future::pending()));
        (dir, Client::new(admin.socket), fake)
    }

    #[tokio::test]
    async fn every_question_reaches_the_controller_and_its_answer_comes_back() {
        let (_dir, client, fake) = serve();
        assert_eq!(client.status().await.unwrap(), fake::status());
        assert_eq!(client.events(1).await.unwrap().next, 2);
        assert!(client.reload(Consent::Removals).await.unwrap().applied);
        assert!(client.reload(Consent::Everything).await.unwrap().applied);
        let held = client.reload(Consent::Nothing).await.unwrap();
        assert_eq!((held.applied, held.held.len()), (false, 1));
        assert_eq!(client.plan("a b&c.yaml", "good").await.unwrap().services[0].slots_moved, 16384);
        assert_eq!(client.plan("x", "bad").await.unwrap().errors.len(), 1);
        let reply = client.set_admin("web", "2001:db8::7", AdminState::Drain, false).await.unwrap();
        assert_eq!(reply.state, AdminState::Drain);
        let forced = client.set_admin("web", "s1", AdminState::Disabled, true).await.unwrap();
        assert_eq!(forced.state, AdminState::Disabled);
        assert_eq!(
            fake.asked(),
            [
                "status",
                "events 1",
                "reload Removals",
                "reload Everything",
                "reload Nothing",
                "plan a b&c.yaml of 4 bytes",
                "plan x of 3 bytes",
                "web/2001:db8::7 drain",
                "web/s1 disabled forced",
            ]
        );
    }

    #[tokio::test]
    async fn a_refusal_is_an_error_in_the_controllers_words() {
        let (_dir, client, _fake) = serve();
        let refused = client.set_admin("web", "s1", AdminState::Drain, false).await.unwrap_err();
        assert_eq!(refused.to_string(), "s1 is the last eligible backend of web");
        assert!(!refused.may_pass());
        // A name that could be taken for a path stays a name.
        let unknown = client.set_admin("web", "../x/y", AdminState::Drain, false).await.unwrap_err();
        assert_eq!(unknown.to_string(), "there is no backend web/../x/y");
    }

    #[tokio::test]
    async fn a_plan_of_four_mebibytes_fits_and_a_byte_more_does_not() {
        let (_dir, client, fake) = serve();
        let text = "x".repeat(4 << 20);
        client.plan("big", text.clone()).await.unwrap();
        assert_eq!(fake.asked(), ["plan big of 4194304 bytes"]);
        let error = client.plan("bigger", text + "x").await.unwrap_err();
        assert!(
            matches!(error, ClientError::Controller { code: StatusCode::PAYLOAD_TOO_LARGE, .. }),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn no_controller_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xlb.sock");
        let missing = Client::new(&path).status().await.unwrap_err();
        assert!(matches!(missing, ClientError::NotRunning(_)) && missing.may_pass(), "{missing:?}");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Killed in the middle of an answer.
        let killed = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let broken = Client::new(&path).status().await.unwrap_err();
        assert!(matches!(broken, ClientError::Protocol(_)) && broken.may_pass(), "{broken:?}");
        killed.join().unwrap();
        let dead = Client::new(&path).status().await.unwrap_err();
        assert_eq!(
            dead.to_string(),
            format!("no controller answers at {}: is `xlb run` up?", path.display())
        );
    }
}
