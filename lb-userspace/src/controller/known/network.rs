//! What is known of the ways to the backends.

use std::{collections::BTreeMap, net::IpAddr};

use super::Known;
use crate::{
    config::spec::{BackendSpec, Forward, ServiceSpec},
    net::{NextHop, NextHopState},
    plan::compile::Route,
};

fn resolved(state: &NextHopState) -> Option<Route> {
    let NextHopState::Resolved(NextHop { ifindex, mac, source_mac, source, .. }) = state else { return None };
    Some(Route { ifindex: *ifindex, next_hop: *mac, own: *source_mac, outer_source: *source })
}

impl Known {
    /// The next hops of all wanted addresses.
    pub fn set_next_hops(&mut self, next_hops: BTreeMap<IpAddr, NextHopState>) {
        for (address, state) in &next_hops {
            if let Some(route) = resolved(state) {
                self.last_routes.insert(*address, route);
            }
            if *state != NextHopState::Pending {
                self.unanswered.remove(address);
            }
        }
        self.next_hops = next_hops.into_iter().collect();
    }

    /// Index of the interface that packets to an address leave by, if there is a way to it.
    pub fn way(&self, address: IpAddr) -> Option<u32> {
        self.next_hops.get(&address).and_then(resolved).map(|route| route.ifindex)
    }

    /// The interfaces that the program is attached to.
    pub fn set_devices(&mut self, devices: BTreeMap<u32, String>) {
        self.devices = devices;
    }

    /// Index and name of each interface that the program is attached to.
    pub fn devices(&self) -> &BTreeMap<u32, String> {
        &self.devices
    }

    /// The way to a backend; of one that is held the last one known.
    pub(super) fn route(&self, service: &ServiceSpec, address: IpAddr, is_held: bool) -> Option<Route> {
        let holds = is_held || self.unanswered.contains(&address);
        let last = || self.last_routes.get(&address).filter(|_| holds).copied();
        let route = self.next_hops.get(&address).and_then(resolved).or_else(last)?;
        if route.outer_source.is_unspecified() && service.forward == Forward::Ipip {
            return None;
        }
        self.devices.contains_key(&route.ifindex).then_some(route)
    }

    /// Why packets cannot be sent to a backend, if they cannot.
    pub fn obstacle(&self, address: IpAddr) -> Option<String> {
        match self.next_hops.get(&address) {
            None | Some(NextHopState::Pending) => Some("its next hop is not known yet".into()),
            Some(NextHopState::Unreachable(why)) => Some(format!("{address} {why}")),
            Some(NextHopState::Resolved(hop)) if !self.devices.contains_key(&hop.ifindex) => Some(format!(
                "{address} is behind {}, which is not among `interfaces`; add it there",
                hop.interface
            )),
            Some(NextHopState::Resolved(hop))
                if hop.source.is_unspecified() && self.is_tunnelled_to(address) =>
            {
                Some(format!("this host has no address to reach {address} from; give {} one", hop.interface))
            }
            Some(NextHopState::Resolved(_)) => None,
        }
    }

    fn is_tunnelled_to(&self, address: IpAddr) -> bool {
        let ipip = self.spec.services.iter().filter(|s| s.forward == Forward::Ipip);
        ipip.flat_map(|s| &s.backends).any(|b| b.address == address)
    }

    /// Whether all wanted next hops have been answered, one way or the other.
    pub fn next_hops_settled(&self) -> bool {
        let pending =
            |b: &BackendSpec| matches!(self.next_hops.get(&b.address), None | Some(NextHopState::Pending));
        !self.spec.services.iter().flat_map(|s| &s.backends).any(pending)
    }
}
