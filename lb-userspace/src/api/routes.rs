//! What is answered where. The two routers share their reading half; only the Unix socket's has more.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{
    handle::{AdminError, Consent, ControllerError, ControllerHandle},
    metrics::{self, Format},
    model::{ErrorBody, ErrorDetail, ReloadReply, Status},
};
use crate::config::spec::AdminState;

/// The largest file that `plan` takes: the limit of the file itself (DESIGN section 3).
pub const PLAN_BYTES_MAX: usize = 4 << 20;
/// How old a status may be that is given to clients on TCP: however many ask, the controller answers five times a
/// second.
pub const STATUS_AGE_MAX: Duration = Duration::from_millis(200);

/// Who asks, on the Unix socket (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub uid: u32,
    pub pid: Option<i32>,
}

#[derive(Clone)]
struct Api {
    controller: ControllerHandle,
    /// `None`: each client gets the latest.
    cache: Option<Arc<StatusCache>>,
}

#[derive(Default)]
struct StatusCache(Mutex<Option<(Instant, Latest)>>);

/// The last answer; errors are remembered like any other.
type Latest = Result<Arc<Status>, ControllerError>;

impl Api {
    async fn status(&self) -> Latest {
        let Some(StatusCache(cached)) = self.cache.as_deref() else {
            return Ok(Arc::new(self.controller.status().await?));
        };
        // Held while the controller is asked: who comes meanwhile waits for that answer, be it an error.
        let mut cached = cached.lock().await;
        if let Some((at, status)) = &*cached
            && at.elapsed() <= STATUS_AGE_MAX
        {
            return status.clone();
        }
        let status = self.controller.status().await.map(Arc::new);
        *cached = Some((Instant::now(), status.clone()));
        status
    }
}

/// Everything, for the Unix socket.
pub(super) fn unix(controller: ControllerHandle) -> Router {
    let all = reading()
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/apply", post(apply))
        .route("/api/v1/plan", post(plan))
        .route("/api/v1/services/{service}/backends/{backend}/{verb}", post(set_admin))
        .layer(DefaultBodyLimit::max(PLAN_BYTES_MAX));
    finish(all, Api { controller, cache: None })
}

/// Reading only, for TCP.
pub(super) fn tcp(controller: ControllerHandle) -> Router {
    let api = Api { controller, cache: Some(Arc::default()) };
    finish(reading(), api).layer(middleware::from_fn(guard)).layer(middleware::map_response(harden))
}

fn reading() -> Router<Api> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/events", get(events))
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
}

fn finish(router: Router<Api>, api: Api) -> Router {
    router.fallback(not_found).with_state(api)
}

/// Only reading, and only for those who name us as we are: a web page that points its own name at this address (DNS
/// rebinding) sends that name along.
async fn guard(request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = error(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this listener is read-only: changes go through the Unix socket".to_owned(),
        );
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    if let Err(host) = check_host(request.version(), request.uri(), request.headers()) {
        let message = format!("the host `{host}` is not allowed here: use an IP address or `localhost`");
        return error(StatusCode::FORBIDDEN, "forbidden", message);
    }
    next.run(request).await
}

/// Errs with the offending host. Every host named must be `localhost` or an IP literal, which the address listened on
/// is, too. HTTP/1.0 may name none.
fn check_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
    let mut named = version <= Version::HTTP_10;
    for host in headers.get_all(header::HOST) {
        named = true;
        let parsed = Authority::try_from(host.as_bytes());
        if !parsed.is_ok_and(|authority| is_own_name(&authority)) {
            return Err(String::from_utf8_lossy(host.as_bytes()).escape_debug().to_string());
        }
    }
    match uri.authority() {
        Some(authority) if !is_own_name(authority) => Err(authority.to_string()),
        _ if !named => Err(String::new()),
        _ => Ok(()),
    }
}

fn is_own_name(authority: &Authority) -> bool {
    let host = authority.host();
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost") || literal.parse::<IpAddr>().is_ok())
}

/// For browsers: what comes from here is data.
async fn harden(mut response: Response) -> Response {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn status(State(api): State<Api>) -> Result<Response, ControllerError> {
    Ok(pretty(StatusCode::OK, &*api.status().await?))
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn events(State(api): State<Api>, Query(query): Query<Since>) -> Result<Response, ControllerError> {
    Ok(Json(api.controller.events(query.since).await?).into_response())
}

async fn scrape(State(api): State<Api>, headers: HeaderMap) -> Result<Response, ControllerError> {
    let format =
        Format::wanted(headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let status = api.status().await?;
    let text = metrics::encode(status, format);
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

async fn healthz(State(api): State<Api>) -> Response {
    if api.controller.is_ready() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
}

#[derive(Deserialize)]
struct Force {
    force: Option<String>,
}

impl Force {
    /// `?force`, `?force=true` and `?force=1` are meant; anything unclear is not.
    fn is_meant(&self) -> bool {
        matches!(self.force.as_deref(), Some("" | "true" | "1"))
    }
}

async fn reload(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Query(query): Query<Force>,
) -> Result<Response, ControllerError> {
    let consent = if query.is_meant() { Consent::Everything } else { Consent::Removals };
    reload_with(&api, peer, consent).await
}

async fn apply(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Query(query): Query<Force>,
) -> Result<Response, ControllerError> {
    let consent = if query.is_meant() { Consent::Everything } else { Consent::Nothing };
    reload_with(&api, peer, consent).await
}

async fn reload_with(api: &Api, peer: Peer, consent: Consent) -> Result<Response, ControllerError> {
    let result = api.controller.reload(consent).await;
    let outcome = result.as_ref().map(|reply| reply.applied);
    tracing::info!(uid = peer.uid, pid = peer.pid, ?consent, ?outcome, "reload asked for over the socket");
    let reply = result?;
    Ok(pretty(reload_code(&reply), &reply))
}

/// For those who look at the code only.
fn reload_code(reply: &ReloadReply) -> StatusCode {
    match reply {
        _ if !reply.errors.is_empty() => StatusCode::UNPROCESSABLE_ENTITY,
        _ if !reply.held.is_empty() || !reply.applied => StatusCode::CONFLICT,
        _ => StatusCode::OK,
    }
}

#[derive(Deserialize)]
struct PlanOf {
    #[serde(default)]
    file_name: String,
}

async fn plan(
    State(api): State<Api>,
    Query(query): Query<PlanOf>,
    text: String,
) -> Result<Response, ControllerError> {
    let reply = api.controller.plan(query.file_name, text).await?;
    let code = if reply.errors.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    Ok(pretty(code, &reply))
}

async fn set_admin(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Path((service, backend, verb)): Path<(String, String, String)>,
    Query(query): Query<Force>,
) -> Result<Response, ControllerError> {
    let state = match verb.as_str() {
        "drain" => AdminState::Drain,
        "enable" => AdminState::Active,
        "disable" => AdminState::Disabled,
        _ => return Ok(not_found().await),
    };
    let force = query.is_meant();
    let result = api.controller.set_admin(service.clone(), backend.clone(), state, force).await;
    let outcome = result.as_ref().map(|reply| reply.changed);
    // `?`: the names are the client's, and may hold anything.
    tracing::info!(
        uid = peer.uid,
        pid = peer.pid,
        ?service,
        ?backend,
        verb,
        force,
        ?outcome,
        "asked for over the socket"
    );
    Ok(pretty(StatusCode::OK, &result?))
}

async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "not_found", "there is nothing here".to_owned())
}

fn error(code: StatusCode, kind: &str, message: String) -> Response {
    pretty(code, &ErrorBody { error: ErrorDetail { kind: kind.to_owned(), message } })
}

impl IntoResponse for ControllerError {
    fn into_response(self) -> Response {
        let (code, kind) = match &self {
            Self::Admin(AdminError::NotFound(_)) => (StatusCode::NOT_FOUND, "not_found"),
            Self::Admin(AdminError::Refused(_)) => (StatusCode::CONFLICT, "refused"),
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
        };
        error(code, kind, self.to_string())
    }
}

/// JSON as people read it: `xlb status --json` prints this very text.
fn pretty<T: Serialize>(code: StatusCode, value: &T) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(mut json) => {
            json.push(b'\n');
            (code, [(header::CONTENT_TYPE, "application/json")], Body::from(json)).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "cannot write JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(version: Version, uri: &str, hosts: &[&str]) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        check_host(version, &uri.parse().unwrap(), &headers)
    }

    #[test]
    fn hosts_that_are_this_very_machine_are_let_in() {
        for host in
            ["localhost", "LOCALHOST:9180", "127.0.0.1:9180", "[::1]:9180", "10.1.2.3", "[2001:db8::1]"]
        {
            assert_eq!(checked(Version::HTTP_11, "/metrics", &[host]), Ok(()), "{host}");
        }
        assert_eq!(checked(Version::HTTP_10, "/metrics", &[]), Ok(()));
    }

    #[test]
    fn other_names_are_not() {
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", ""]
        {
            assert!(checked(Version::HTTP_11, "/metrics", &[host]).is_err(), "{host}");
            assert!(checked(Version::HTTP_10, "/metrics", &[host]).is_err(), "{host}");
        }
        assert!(checked(Version::HTTP_11, "/metrics", &["localhost", "evil.example"]).is_err());
        assert!(checked(Version::HTTP_11, "http://evil.example/metrics", &["localhost"]).is_err());
        assert!(checked(Version::HTTP_11, "/metrics", &[]).is_err());
    }

    #[test]
    fn force_is_only_what_is_clearly_meant() {
        for (query, meant) in [("", false), ("force", true), ("force=true", true), ("force=false", false)] {
            let uri: Uri = format!("/api/v1/apply?{query}").parse().unwrap();
            let Query(force) = Query::<Force>::try_from_uri(&uri).unwrap();
            assert_eq!(force.is_meant(), meant, "{query}");
        }
    }
}
