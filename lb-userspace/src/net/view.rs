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
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::model::{
    Change, Dump, LinkInfo, LocalAddress, Neighbour, NeighbourKey, NeighbourState, NextHop, NextHopState,
    Route, Unreachable,
};

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
