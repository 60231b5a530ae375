//! The **spec**: the configuration, valid by construction.
//!
//! Only `config` builds these values, from a file; everything after it (`plan`, `health`, `net`) may rely on the
//! invariants written at each type. Orders of lists are the file's.

use std::{fmt, net::IpAddr, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use lb_common::lookup::{MAX_INDEX, SPARE_ENTRIES};

/// A whole valid configuration.
///
/// Invariants: service names are unique; no (address, port, protocol) is listened on twice; sizes fit `limits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// At least one.
    pub interfaces: Vec<InterfaceSpec>,
    /// Key of the packet hash; equal on all balancers of the same services.
    pub hash_seed: u32,
    /// Sizes of the kernel maps.
    pub limits: Limits,
    /// Where the controller answers.
    pub admin: Admin,
    /// May be empty: then every packet passes.
    pub services: Vec<ServiceSpec>,
}

/// An interface that the data path is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// The kernel's name of it, 1 to 15 bytes.
    pub name: String,
    /// How to attach.
    pub mode: XdpMode,
}

/// How the program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Native, else generic, with the reason logged.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the network stack.
    Generic,
}

/// The largest `limits.services`: a service's word has 14 bits for the index of its entry, and some entries are spare.
pub const MAX_SERVICES: u32 = 16_000;
const _: () = assert!(MAX_SERVICES + SPARE_ENTRIES <= MAX_INDEX);

/// Sizes of the kernel maps, in entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Service keys: one for each listen address, port of a range and protocol; at most [`MAX_SERVICES`].
    pub services: u32,
    /// Backend ids, 2 to 32,767.
    pub backends: u32,
    /// Slots of all rings together.
    pub slots: u32,
    /// Pins.
    pub flows: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { services: 1024, backends: 4096, slots: 4_194_304, flows: 1_048_576 }
    }
}

/// Where the controller answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Unix socket with full control, mode 0600.
    pub socket: PathBuf,
    /// Read-only HTTP; `None` is `off`.
    pub listen: Option<SocketAddr>,
}

/// What clients talk to, with its pool of backends.
///
/// Invariants: at least one listen, at least one backend; backend names are unique in the service, and so are
/// (address, port) pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique, matches `[a-z0-9][a-z0-9._-]{0,62}`.
    pub name: Arc<str>,
    /// Where clients send to.
    pub listen: Vec<Listen>,
    /// How packets reach the backend.
    pub forward: Forward,
    /// What the hash covers.
    pub hash: HashMode,
    /// When flows are pinned.
    pub tracking: Tracking,
    /// Slots of the ring: a prime.
    pub ring_size: u32,
    /// How long a draining backend keeps its flows.
    pub drain_timeout: Duration,
    /// What happens to the flows left when it ends.
    pub drain_end: DrainEnd,
    /// A pin unused for so long is dropped.
    pub idle_timeout: IdleTimeout,
    /// What clients get when no backend is eligible.
    pub on_all_down: OnAllDown,
    /// What happens to the flows of a backend that goes down.
    pub on_down: OnDown,
    /// How long a backend that comes up takes to reach its weight; zero is at once.
    pub slow_start: Duration,
    /// How long a mass failure that looks like our own link is not believed; zero is never.
    pub guard_timeout: Duration,
    /// How backends are probed.
    pub health: HealthSpec,
    /// The pool.
    pub backends: Vec<BackendSpec>,
}

impl ServiceSpec {
    /// Whether a flow may be pinned although its slot does not move: UDP has no SYN to know a new one by.
    pub fn pins_every_flow(&self) -> bool {
        match self.tracking {
            Tracking::Never => false,
            Tracking::Always => true,
            Tracking::Auto => self.listen.iter().any(|l| l.protocol == Protocol::Udp),
        }
    }
}

/// One (address, ports, protocol) that a service answers on. Displays as in the file: `192.0.2.10:80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// Unicast, not unspecified, not loopback, not link-local.
    pub address: IpAddr,
    /// One port, a range, or any.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// The ports of a listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// `*`
    Any,
    /// First to last, both included; 1 <= first <= last. A single port is a range of one.
    Range(u16, u16),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(a) => write!(f, "{a}:")?,
            IpAddr::V6(a) => write!(f, "[{a}]:")?,
        }
        match self.ports {
            Ports::Any => f.write_str("*")?,
            Ports::Range(a, b) if a == b => write!(f, "{a}")?,
            Ports::Range(a, b) => write!(f, "{a}-{b}")?,
        }
        write!(f, "/{}", self.protocol)
    }
}

/// Layer 4 protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// How packets reach the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// The destination MAC becomes the backend's.
    L2,
    /// IP in IP, any mix of families.
    Ipip,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L2 => "l2",
            Self::Ipip => "ipip",
        })
    }
}

/// What the hash covers, besides the service's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashMode {
    /// The 5-tuple.
    #[default]
    Flow,
    /// The client's address only: a client stays on one backend.
    Client,
}

/// When flows are pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tracking {
    /// TCP while its slot moves, UDP always.
    #[default]
    Auto,
    /// Every flow.
    Always,
    /// No flow: the hash alone decides.
    Never,
}

/// What happens to the flows that a drain's deadline finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrainEnd {
    /// They are reset.
    #[default]
    Reset,
    /// They are left where they are.
    Keep,
}

/// Idle time after which a pin is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleTimeout {
    /// Of TCP flows.
    pub tcp: Duration,
    /// Of UDP flows.
    pub udp: Duration,
}

impl Default for IdleTimeout {
    fn default() -> Self {
        Self { tcp: Duration::from_hours(1), udp: Duration::from_mins(1) }
    }
}

/// What clients get when no backend is eligible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnAllDown {
    /// TCP RST or ICMP port unreachable.
    #[default]
    Reject,
    /// Nothing.
    Drop,
    /// All backends that are not disabled are used, healthy or not.
    UseAll,
}

/// What happens to the flows of a backend that goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDown {
    /// Layer 7 failures keep them, others reset them.
    #[default]
    Auto,
    /// They stay, as in a drain.
    Keep,
    /// They are reset.
    Reset,
}

/// One server of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSpec {
    /// Unique in its service; its address if the file gives none.
    pub name: Arc<str>,
    /// Unicast; not an address that a service listens on.
    pub address: IpAddr,
    /// Only with `nat`; `None` keeps the packet's.
    pub port: Option<u16>,
    /// 1 to 65,535; shares are in proportion to it.
    pub weight: u32,
    /// What the operator wants of it.
    pub state: AdminState,
}

/// What the operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum AdminState {
    /// Takes connections while healthy.
    #[default]
    Active,
    /// Takes no new connections and keeps those it has.
    Drain,
    /// Takes nothing.
    Disabled,
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Drain => "drain",
            Self::Disabled => "disabled",
        })
    }
}

/// How the backends of a service are probed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthSpec {
    /// What a probe does.
    pub check: Check,
    /// The port probed, on the backend's address. Zero only with `Check::None`.
    pub port: u16,
    /// From the start of one probe to the next.
    pub interval: Duration,
    /// Total limit of one probe, from the first packet to the verdict.
    pub timeout: Duration,
    /// Failures in a row that take a backend down; at least 1.
    pub fall: u32,
    /// Successes in a row that bring it up again; at least 1.
    pub rise: u32,
}

impl HealthSpec {
    /// The interval while a backend is changing its mind: a quarter, but at least 100 ms.
    pub fn fast_interval(&self) -> Duration {
        (self.interval / 4).max(Duration::from_millis(100)).min(self.interval)
    }

    /// The longest time from a failure to the verdict: it happens just after a good probe, and every probe that
    /// follows runs into its timeout, whose end the next one awaits. Zero with `Check::None`.
    pub fn worst_detection(&self) -> Duration {
        match self.check {
            Check::None => Duration::ZERO,
            Check::Tcp | Check::Http { .. } => {
                self.interval + self.fast_interval().max(self.timeout) * (self.fall - 1) + self.timeout
            }
        }
    }
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// Nothing: the backend counts as up.
    None,
    /// A TCP connection succeeds.
    Tcp,
    /// `GET path` is answered with one of the statuses.
    Http {
        /// Starts with `/`.
        path: String,
        /// The `Host` header; `None`: the backend's address and port.
        host: Option<String>,
        /// At least one, each 100 to 599.
        expect_status: Vec<u16>,
    },
}
