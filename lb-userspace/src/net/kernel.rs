//! The two sockets to the kernel: one for questions, one for events.
//!
//! They are two because an event carries the sequence number of whoever caused it: on a shared socket it could be taken
//! for the answer to a question of ours. And events can overflow, answers cannot.

use std::{collections::BTreeSet, future::Future, io, net::IpAddr, pin::pin, time::Duration};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourFlags, NeighbourState as Nud},
    route::{RouteAttribute, RouteMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{Handle, MulticastGroup};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::{
    decode,
    model::{Change, Dump, NeighbourKey, Route, Unreachable},
};

/// The kernel answers at once; this is for the case that it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The socket for questions.
pub struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel {
    /// Opens it in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Reads the state of all links, addresses and neighbours.
    pub async fn dump(&self) -> anyhow::Result<Dump> {
        answered(async {
            // One after the other: the kernel runs one dump a socket and refuses a second one (EBUSY).
            let links = collect(self.handle.link().get().execute(), decode::link).await;
            let links = links.context("read the list of interfaces")?;
            let addresses = collect(self.handle.address().get().execute(), decode::address).await;
            let addresses = addresses.context("read the list of addresses")?;
            let neighbours = collect(self.handle.neighbours().get().execute(), decode::neighbour).await;
            let neighbours = neighbours.context("read the list of neighbours")?;
            Ok(Dump { links, addresses, neighbours })
        })
        .await
    }

    /// Asks how packets to `ip` would go. The error is about the socket; a missing route is an answer.
    pub async fn route(&self, ip: IpAddr) -> anyhow::Result<Result<Route, Unreachable>> {
        let mut question = RouteMessage::default();
        (question.header.address_family, question.header.destination_prefix_length) = match ip {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        question.attributes.push(RouteAttribute::Destination(ip.into()));
        answered(async {
            let mut answers = pin!(self.handle.route().get(question).execute());
            match answers.next().await {
                Some(Ok(message)) => Ok(decode::route(&message)),
                Some(Err(rtnetlink::Error::NetlinkError(error))) => {
                    Ok(Err(decode::refusal(error.raw_code().abs())))
                }
                Some(Err(error)) => Err(error).with_context(|| format!("ask for the route to {ip}")),
                None => anyhow::bail!("ask for the route to {ip}: the netlink socket is closed"),
            }
        })
        .await
    }

    /// Makes the kernel resolve or confirm a neighbour, as a packet to it would.
    pub async fn use_neighbour(&self, key: NeighbourKey) -> Result<(), UseError> {
        let request = self
            .handle
            .neighbours()
            .add(key.ifindex, key.address)
            .state(Nud::None) // the default, PERMANENT, would exempt the entry from garbage collection
            .flags(NeighbourFlags::Use)
            .replace(); // that is: an entry that exists is no error
        match tokio::time::timeout(ANSWER_TIMEOUT, request.execute()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(rtnetlink::Error::NetlinkError(error))) => Err(UseError::Refused(error.to_io())),
            Ok(Err(error)) => Err(UseError::Socket(error.into())),
            Err(_) => Err(UseError::Socket(anyhow::anyhow!("no answer within {ANSWER_TIMEOUT:?}"))),
        }
    }
}

/// Why a neighbour could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// The kernel said no: its neighbour table is full (`ENOBUFS`), the interface is gone or down.
    #[error("the kernel refused: {0}")]
    Refused(io::Error),
    /// The socket is of no use any more.
    #[error("netlink socket: {0}")]
    Socket(anyhow::Error),
}

async fn answered<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .with_context(|| format!("the kernel did not answer within {ANSWER_TIMEOUT:?}"))?
}

async fn collect<M, T>(
    messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
    meaning: impl Fn(&M) -> Option<T>,
) -> Result<Vec<T>, rtnetlink::Error> {
    messages.try_filter_map(|message| std::future::ready(Ok(meaning(&message)))).try_collect().await
}

/// What one read of the event socket brought.
#[derive(Debug)]
pub enum Events {
    /// Changes, perhaps none that matter.
    Changes(Vec<Change>),
    /// The kernel dropped events because the socket was full; what was not dropped can still be read.
    Overrun,
}

/// The socket for events.
pub struct EventSocket {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

/// One event is at most some kilobytes.
const DATAGRAM_BYTES: usize = 64 * 1024;

impl EventSocket {
    /// Opens it in the network namespace of the calling thread; from now on nothing is missed.
    pub fn open(receive_buffer: usize) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // Beyond the system's limit if we may (CAP_NET_ADMIN), else up to it.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, receive_buffer).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, receive_buffer)?;
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in BTreeSet::from(groups) {
            socket.add_membership(group as u32)?;
        }
        // SAFETY: a `Socket` owns its descriptor, returns the same one always, and closes it on drop only.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM_BYTES) })
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn read(&mut self) -> io::Result<Events> {
        loop {
            let mut ready = self.socket.readable().await?;
            self.buffer.clear();
            match ready.try_io(|socket| socket.get_ref().recv(&mut self.buffer, 0)) {
                Ok(received) => return self.decode(received),
                Err(_would_block) => {}
            }
        }
    }

    /// Reads an event if there is one. Unlike the runtime's notion of readiness, this cannot lag behind.
    pub fn try_read(&mut self) -> io::Result<Option<Events>> {
        self.buffer.clear();
        match self.socket.get_ref().recv(&mut self.buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            received => self.decode(received).map(Some),
        }
    }

    fn decode(&self, received: io::Result<usize>) -> io::Result<Events> {
        match received {
            Ok(_) => Ok(Events::Changes(changes(&self.buffer))),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Events::Overrun),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Events::Changes(Vec::new())),
            Err(error) => Err(error),
        }
    }
}

/// The changes of a datagram: messages one after the other, each aligned to four bytes.
fn changes(mut datagram: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Ok(header) = NetlinkBuffer::new_checked(datagram) {
        let length = header.length() as usize;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram[..length]) {
            Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => {
                changes.extend(decode::change(&message));
            }
            Ok(_) => {}
            // Newer kernels send what the library does not know yet; the periodic comparison covers it.
            Err(error) => tracing::debug!(%error, "a netlink event cannot be decoded"),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}
