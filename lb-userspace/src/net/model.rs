//! The words in which the network is described: what the kernel reports, and what follows for next hops.

use std::{fmt, net::IpAddr};

/// A network interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The kernel's index, unique in the network namespace; a re-created interface gets a new one.
    pub ifindex: u32,
    /// The interface's name.
    pub name: String,
    /// Its own MAC; `None` where frames have none (loopback, tun, IP tunnels).
    pub mac: Option<[u8; 6]>,
    /// Largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// Set up by the administrator (`IFF_UP`).
    pub admin_up: bool,
    /// Has a carrier and can pass packets (`IFF_RUNNING`).
    pub oper_up: bool,
    /// XDP programs that are attached; more than one only with several modes at once. The kernel reports no event when
    /// one is attached or detached through a BPF link (tried on 6.18): then this may be 30 s old.
    pub xdp: Vec<AttachedXdp>,
    /// The kind of a virtual interface (`veth`, `bond`, `vlan`); `None` for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
}

impl LinkInfo {
    /// Whether packets can leave through it.
    pub fn is_up(&self) -> bool {
        self.admin_up && self.oper_up
    }
}

/// An XDP program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachedXdp {
    /// How it is attached.
    pub mode: AttachedMode,
    /// The kernel's id of the program.
    pub program_id: u32,
}

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
    /// On the NIC itself.
    Hardware,
}

impl fmt::Display for AttachedMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
        })
    }
}

/// Where packets to a wanted address have to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that they leave by.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// Destination MAC: the address's own, or the gateway's.
    pub mac: [u8; 6],
    /// Source MAC: the interface's.
    pub source_mac: [u8; 6],
    /// An address of this host, of the wanted address's family, to use as outer source. Unspecified (`0.0.0.0`, `::`)
    /// where the host has none: enough for `l2`, useless for encapsulation.
    pub source: IpAddr,
    /// Largest layer 3 packet on the way there as far as this host knows (interface and route), in bytes.
    pub mtu: u32,
    /// The router on the way, which may be of the other family; `None` if the address is on the link.
    pub gateway: Option<IpAddr>,
}

/// What is known about the next hop of a wanted address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHopState {
    /// Packets can be sent.
    Resolved(NextHop),
    /// The kernel was asked and has not answered yet.
    Pending,
    /// Packets cannot be sent, for now.
    Unreachable(Unreachable),
}

/// Why packets to an address cannot be sent. Displays as the end of "10.0.0.11 ...".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreachable {
    /// No route matches (`ENETUNREACH`).
    NoRoute,
    /// The route says `unreachable` (`EHOSTUNREACH`).
    RejectRoute,
    /// The route says `blackhole`.
    Blackhole,
    /// The route says `prohibit`.
    Prohibited,
    /// The address belongs to this host.
    Local,
    /// Broadcast, anycast or multicast.
    NotUnicast,
    /// The route goes through a lightweight tunnel (`encap`), which the data path would leave out.
    Encapsulated,
    /// The kernel refused the question for another reason: its errno.
    Refused(i32),
    /// The interface carries no Ethernet.
    NoMac {
        /// Its name.
        interface: String,
    },
    /// The interface is down or has no carrier.
    LinkDown {
        /// Its name.
        interface: String,
    },
    /// Nobody answered ARP or neighbour discovery (`NUD_FAILED`); the kernel is asked on.
    NoAnswer {
        /// Where it was asked.
        interface: String,
        /// Who was asked: the address itself or the gateway.
        address: IpAddr,
    },
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("has no route"),
            Self::RejectRoute => f.write_str("has a route of type unreachable"),
            Self::Blackhole => f.write_str("has a route of type blackhole"),
            Self::Prohibited => f.write_str("has a route of type prohibit"),
            Self::Local => f.write_str("is an address of this host"),
            Self::NotUnicast => f.write_str("is not a unicast address here"),
            Self::Encapsulated => f.write_str("has a route with an encapsulation of its own"),
            Self::Refused(errno) => {
                write!(f, "has no usable route: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::NoMac { interface } => {
                write!(f, "is behind {interface}: interface has no MAC address")
            }
            Self::LinkDown { interface } => write!(f, "is behind {interface}, which is down"),
            Self::NoAnswer { interface, address: address @ IpAddr::V4(_) } => {
                write!(f, "has no neighbour: {address} does not answer ARP on {interface}")
            }
            Self::NoAnswer { interface, address: address @ IpAddr::V6(_) } => {
                write!(f, "has no neighbour: {address} does not answer neighbour discovery on {interface}")
            }
        }
    }
}

/// The kernel's answer for one address: the result of its own lookup, policy rules included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Output interface.
    pub ifindex: u32,
    /// The router, of either family.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would take.
    pub source: Option<IpAddr>,
    /// MTU of the route, if it has one of its own.
    pub mtu: Option<u32>,
}

/// Who has to be asked for a MAC: an address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    /// The interface.
    pub ifindex: u32,
    /// The neighbour's address.
    pub address: IpAddr,
}

/// How sure the kernel is of a neighbour: its `NUD_*` states, by what has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourState {
    /// No answer yet, or no entry (any more).
    Missing,
    /// `REACHABLE`, `DELAY`, `PROBE`: the kernel takes care of it.
    Confirmed,
    /// `STALE`: nothing happens until somebody asks.
    Stale,
    /// `FAILED`.
    Failed,
    /// `PERMANENT`, `NOARP`.
    Fixed,
}

/// A neighbour as last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The last MAC known.
    pub mac: Option<[u8; 6]>,
    /// How sure the kernel is.
    pub state: NeighbourState,
}

/// An address of this host: what route answers depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// Length of its network, in bits.
    pub prefix_len: u8,
    /// Cannot be used (yet): duplicate address detection is running or has failed.
    pub tentative: bool,
}

/// One thing that the kernel reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface is new or different.
    Link(LinkInfo),
    /// An interface is gone.
    LinkGone(u32),
    /// An address of ours is new or different.
    Address(NeighbourKey, LocalAddress),
    /// An address of ours is gone.
    AddressGone(NeighbourKey),
    /// A neighbour is new or different.
    Neighbour(NeighbourKey, Neighbour),
    /// A neighbour was deleted.
    NeighbourGone(NeighbourKey),
    /// Routes to this prefix changed.
    Prefix(IpAddr, u8),
    /// Policy rules changed.
    Rules,
}

/// The state of everything at one time.
#[derive(Debug, Default)]
pub struct Dump {
    /// All interfaces.
    pub links: Vec<LinkInfo>,
    /// All addresses of this host.
    pub addresses: Vec<(NeighbourKey, LocalAddress)>,
    /// All neighbours.
    pub neighbours: Vec<(NeighbourKey, Neighbour)>,
}
