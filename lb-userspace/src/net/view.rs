//! What the kernel has said about links, neighbours and routes, and what follows for the **next hop** of each wanted
//! address. Pure: no clock, no socket.
//!
//! A MAC, once learned, is kept through `STALE`, deletion and link down; only `FAILED` takes it away. The packet path
//! can go on with an old MAC, but not with none.
//!
//! A failure is not always one: an administrator's deletion (`ip neigh flush`) is reported as `FAILED` first and as
//! deleted some microseconds later. So a failure is *fresh* until [`View::settle`], and a deletion undoes a fresh one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

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
    /// XDP programs that are attached; more than one only with several modes at once.
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

/// The cache, and the questions that it makes necessary.
#[derive(Debug, Default)]
pub struct View {
    links: BTreeMap<u32, LinkInfo>,
    addresses: BTreeMap<NeighbourKey, LocalAddress>,
    neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Neighbours that have failed since the last `settle`, with the MAC before.
    fresh_failures: BTreeMap<NeighbourKey, [u8; 6]>,
    /// The wanted addresses, with the last route answer.
    routes: BTreeMap<IpAddr, Option<Result<Route, Unreachable>>>,
    /// Wanted addresses whose route has to be asked (again).
    unasked: BTreeSet<IpAddr>,
}

impl View {
    /// Replaces the wanted addresses; the routes of new ones become questions.
    pub fn set_wanted(&mut self, wanted: &BTreeSet<IpAddr>) {
        self.routes.retain(|ip, _| wanted.contains(ip));
        self.unasked.retain(|ip| wanted.contains(ip));
        for &ip in wanted {
            self.routes.entry(ip).or_insert_with(|| {
                self.unasked.insert(ip);
                None
            });
        }
    }

    /// Takes the addresses whose route has to be asked now.
    pub fn take_unasked(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.unasked)
    }

    /// Notes the kernel's answer. An address that is no longer wanted is ignored.
    pub fn set_route(&mut self, ip: IpAddr, answer: Result<Route, Unreachable>) {
        if let Some(route) = self.routes.get_mut(&ip) {
            *route = Some(answer);
        }
    }

    /// Makes the route of every wanted address a question again; the old answers hold until the new ones are there.
    pub fn ask_all_routes(&mut self) {
        self.unasked = self.routes.keys().copied().collect();
    }

    /// Notes a change. Returns whether anything that this view knows or asks has changed.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Link(link) => {
                let changed = self.links.get(&link.ifindex) != Some(&link);
                if changed {
                    self.links.insert(link.ifindex, link);
                    self.ask_all_routes();
                }
                changed
            }
            Change::LinkGone(ifindex) => self.forget_link(ifindex),
            Change::Address(key, address) => {
                let changed = self.addresses.get(&key) != Some(&address);
                if changed {
                    self.addresses.insert(key, address);
                    self.ask_all_routes();
                }
                changed
            }
            Change::AddressGone(key) => {
                let changed = self.addresses.remove(&key).is_some();
                if changed {
                    self.ask_all_routes();
                }
                changed
            }
            Change::Neighbour(key, heard) => self.hear_neighbour(key, heard),
            Change::NeighbourGone(key) => self.forget_neighbour(key),
            Change::Prefix(network, length) => {
                let (first, last) = prefix_range(network, length);
                let before = self.unasked.len();
                self.unasked.extend(self.routes.range(first..=last).map(|(ip, _)| *ip));
                self.unasked.len() > before
            }
            Change::Rules => {
                self.ask_all_routes();
                !self.unasked.is_empty()
            }
        }
    }

    /// Takes over the state of everything; what the dump lacks is gone. All routes become questions.
    pub fn sync(&mut self, dump: Dump) {
        let links: BTreeSet<u32> = dump.links.iter().map(|link| link.ifindex).collect();
        let lost_links: Vec<u32> = self.links.keys().copied().filter(|i| !links.contains(i)).collect();
        for ifindex in lost_links {
            self.forget_link(ifindex);
        }
        self.links = dump.links.into_iter().map(|link| (link.ifindex, link)).collect();
        self.addresses = dump.addresses.into_iter().collect();
        let heard: BTreeMap<_, _> = dump.neighbours.into_iter().collect();
        let lost: Vec<_> = self.neighbours.keys().copied().filter(|key| !heard.contains_key(key)).collect();
        for key in lost {
            self.forget_neighbour(key);
        }
        for (key, neighbour) in heard {
            self.hear_neighbour(key, neighbour);
        }
        self.ask_all_routes();
    }

    /// Whether a deletion that is under way could still undo a failure.
    pub fn has_fresh_failures(&self) -> bool {
        !self.fresh_failures.is_empty()
    }

    /// Takes all failures for real, and drops the kept MACs of deleted neighbours that are nobody's next hop.
    pub fn settle(&mut self) {
        self.fresh_failures.clear();
        let used = self.next_hop_neighbours();
        self.neighbours
            .retain(|key, neighbour| neighbour.state != NeighbourState::Missing || used.contains_key(key));
    }

    /// The neighbours on which wanted addresses depend, where asking makes sense: the link is up and has a MAC.
    pub fn next_hop_neighbours(&self) -> BTreeMap<NeighbourKey, NeighbourState> {
        let mut used = BTreeMap::new();
        for (ip, route) in &self.routes {
            let Some(Ok(route)) = route else { continue };
            let Some(link) = self.links.get(&route.ifindex) else { continue };
            if link.is_up() && link.mac.is_some() {
                let key = NeighbourKey { ifindex: route.ifindex, address: route.gateway.unwrap_or(*ip) };
                let state = self.neighbours.get(&key).map_or(NeighbourState::Missing, |n| n.state);
                used.insert(key, state);
            }
        }
        used
    }

    /// The next hop of a wanted address.
    pub fn resolve(&self, ip: IpAddr) -> NextHopState {
        let route = match self.routes.get(&ip) {
            None | Some(None) => return NextHopState::Pending,
            Some(Some(Err(reason))) => return NextHopState::Unreachable(reason.clone()),
            Some(Some(Ok(route))) => route,
        };
        let Some(link) = self.links.get(&route.ifindex) else {
            return NextHopState::Pending; // its link event is under way
        };
        let interface = link.name.clone();
        let Some(source_mac) = link.mac else {
            return NextHopState::Unreachable(Unreachable::NoMac { interface });
        };
        if !link.is_up() {
            return NextHopState::Unreachable(Unreachable::LinkDown { interface });
        }
        let address = route.gateway.unwrap_or(ip);
        let neighbour = self.neighbours.get(&NeighbourKey { ifindex: route.ifindex, address });
        match neighbour.map(|n| (n.state, n.mac)) {
            Some((NeighbourState::Failed, _)) => {
                NextHopState::Unreachable(Unreachable::NoAnswer { interface, address })
            }
            None | Some((_, None)) => NextHopState::Pending,
            Some((_, Some(mac))) => NextHopState::Resolved(NextHop {
                ifindex: route.ifindex,
                interface,
                mac,
                source_mac,
                source: route.source.unwrap_or_else(|| self.own_address(route.ifindex, ip)),
                mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
                gateway: route.gateway,
            }),
        }
    }

    /// The next hops of all wanted addresses.
    pub fn next_hops(&self) -> BTreeMap<IpAddr, NextHopState> {
        self.routes.keys().map(|ip| (*ip, self.resolve(*ip))).collect()
    }

    /// All interfaces by name.
    pub fn links_by_name(&self) -> BTreeMap<String, LinkInfo> {
        self.links.values().map(|link| (link.name.clone(), link.clone())).collect()
    }

    /// An address of ours for an answer without source: of that interface, of `ip`'s family.
    fn own_address(&self, ifindex: u32, ip: IpAddr) -> IpAddr {
        self.addresses
            .iter()
            .filter(|(key, address)| key.ifindex == ifindex && !address.tentative)
            .map(|(key, _)| key.address)
            .find(|own| own.is_ipv4() == ip.is_ipv4())
            .unwrap_or(match ip {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            })
    }

    fn forget_link(&mut self, ifindex: u32) -> bool {
        let known = self.links.remove(&ifindex).is_some();
        self.neighbours.retain(|key, _| key.ifindex != ifindex);
        self.fresh_failures.retain(|key, _| key.ifindex != ifindex);
        self.addresses.retain(|key, _| key.ifindex != ifindex);
        if known {
            self.ask_all_routes();
        }
        known
    }

    /// Keeps the MAC of a deleted neighbour.
    fn forget_neighbour(&mut self, key: NeighbourKey) -> bool {
        let state = NeighbourState::Missing;
        if let Some(mac) = self.fresh_failures.remove(&key) {
            self.neighbours.insert(key, Neighbour { mac: Some(mac), state });
            return true;
        }
        match self.neighbours.get(&key).copied() {
            Some(old) => self.hear_neighbour(key, Neighbour { state, ..old }),
            None => false,
        }
    }

    /// Keeps the last MAC unless `heard` brings one or says that there is none. A failed neighbour stays failed until
    /// a MAC comes: that the kernel starts over (`INCOMPLETE`, or the entry collected) is no news.
    fn hear_neighbour(&mut self, key: NeighbourKey, heard: Neighbour) -> bool {
        let old = self.neighbours.get(&key).copied();
        if let (NeighbourState::Failed, Some(mac)) = (heard.state, old.and_then(|n| n.mac)) {
            self.fresh_failures.insert(key, mac);
        } else if heard.mac.is_some() {
            self.fresh_failures.remove(&key);
        }
        let new = match (heard.state, old) {
            (NeighbourState::Failed, _) => Neighbour { mac: None, state: NeighbourState::Failed },
            (NeighbourState::Missing, Some(old)) if old.state == NeighbourState::Failed => old,
            (state, old) => Neighbour { mac: heard.mac.or(old.and_then(|n| n.mac)), state },
        };
        self.neighbours.insert(key, new);
        old != Some(new)
    }
}

/// First and last address of a network.
fn prefix_range(network: IpAddr, length: u8) -> (IpAddr, IpAddr) {
    match network {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let first = address.to_bits() & !host;
            (Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(first | host).into())
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let first = address.to_bits() & !host;
            (Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(first | host).into())
        }
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
