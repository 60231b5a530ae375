//! The listeners: Unix socket and TCP, each with limits on everything that a client could make last.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    handle::ControllerHandle,
    routes::{self, Peer},
    socket::{BindError, SocketFile, listen_at},
};
use crate::config::spec::Admin;

/// What one listener allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. More wait in the kernel's queue, until one of these ends or is ended.
    pub clients: usize,
    /// For a request's header to be complete; also how long a connection may idle between requests.
    pub header: Duration,
    /// After so long a connection finishes its request and closes; after twice as long it is cut.
    pub connection: Duration,
    /// What requests get to finish when the server stops.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 64,
            header: Duration::from_secs(5),
            connection: Duration::from_secs(30),
            stop: Duration::from_secs(1),
        }
    }
}

/// Largest header of a request, in bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// The API's listeners, open but not yet served.
#[derive(Debug)]
pub struct Server {
    unix: UnixListener,
    tcp: Option<TcpListener>,
    /// Dropped last: the socket's file goes when nobody answers any more.
    file: SocketFile,
    limits: Limits,
}

impl Server {
    /// Opens the listeners. Within a tokio runtime. Errs with [`BindError::AlreadyRunning`] when another controller
    /// answers on the socket.
    pub fn bind(admin: &Admin, limits: Limits) -> Result<Self, BindError> {
        let (unix, file) = listen_at(&admin.socket)?;
        let unix = UnixListener::from_std(unix)
            .map_err(BindError::io(format!("listen on {}", admin.socket.display())))?;
        let tcp = admin.listen.map(bind_tcp).transpose()?;
        Ok(Self { unix, tcp, file, limits })
    }

    /// The TCP address in use, with the port that the kernel chose for port 0.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Answers until `shutdown` is done; then lets running requests finish, and removes the socket's file.
    pub async fn run(self, controller: ControllerHandle, shutdown: impl Future<Output = ()>) {
        let Self { unix, tcp, file, limits } = self;
        let (stop, stopped) = watch::channel(());
        let on_unix = accept(Listener::Unix(unix), routes::unix(controller.clone()), limits, stopped.clone());
        let on_tcp = async {
            if let Some(listener) = tcp {
                accept(Listener::Tcp(listener), routes::tcp(controller), limits, stopped).await;
            }
        };
        let stopping = async {
            shutdown.await;
            drop(stop);
        };
        tokio::join!(on_unix, on_tcp, stopping);
        drop(file);
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, BindError> {
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "`admin.listen` is reachable from the network: whoever reaches it can read the status");
    }
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listen().map_err(BindError::io(format!("listen on {address} (`admin.listen`; `off` turns it off)")))
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    /// The next client; with who it is, where the kernel knows.
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Option<Peer>)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let who = stream.peer_cred()?;
                Ok((Box::new(stream), Some(Peer { uid: who.uid(), pid: who.pid() })))
            }
            Self::Tcp(listener) => Ok((Box::new(listener.accept().await?.0), None)),
        }
    }
}

/// Serves `listener` until the sender of `stopped` is dropped.
async fn accept(listener: Listener, router: Router, limits: Limits, mut stopped: watch::Receiver<()>) {
    let places = Arc::new(Semaphore::new(limits.clients));
    let mut clients = JoinSet::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((place, listener.accept().await?))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            Some(_) = clients.join_next(), if !clients.is_empty() => continue,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((place, (stream, peer))) => {
                let router = if let Some(peer) = peer {
                    router.clone().layer(Extension(peer))
                } else {
                    router.clone()
                };
                let stopped = stopped.clone();
                clients.spawn(async move {
                    serve(stream, router, limits, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, or a client that left already: it passes, but not at once.
                tracing::warn!(%error, "cannot accept a client of the API");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
}

/// One connection, from its first byte to its end.
async fn serve(stream: Box<dyn Stream>, router: Router, limits: Limits, mut stopped: watch::Receiver<()>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let rest = tokio::select! {
        ended = connection.as_mut() => return note(ended),
        () = sleep(limits.connection) => limits.connection,
        _ = stopped.changed() => limits.stop,
    };
    connection.as_mut().graceful_shutdown();
    if let Ok(ended) = timeout(rest, connection).await {
        note(ended);
    } else {
        tracing::debug!("a client of the API was cut off: it took too long");
    }
}

/// Clients' mistakes are not worth a line in the log of a balancer, unless somebody looks for them.
fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a client of the API failed");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
