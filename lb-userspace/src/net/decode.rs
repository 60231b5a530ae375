//! Netlink messages to what they mean for the view. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo as LinkInfoAttribute, LinkLayerType, LinkMessage, LinkXdp},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::model::{
    AttachedMode, AttachedXdp, Change, LinkInfo, LocalAddress, Neighbour, NeighbourKey, NeighbourState,
    Route, Unreachable,
};

/// What a message from a multicast group changes; `None` for what does not matter here.
pub fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(m) => link(m).map(Change::Link),
        RouteNetlinkMessage::DelLink(m) if is_of_bridge(m) => None,
        RouteNetlinkMessage::DelLink(m) => Some(Change::LinkGone(m.header.index)),
        RouteNetlinkMessage::NewAddress(m) => address(m).map(|(key, a)| Change::Address(key, a)),
        RouteNetlinkMessage::DelAddress(m) => address(m).map(|(key, _)| Change::AddressGone(key)),
        RouteNetlinkMessage::NewNeighbour(m) => neighbour(m).map(|(key, n)| Change::Neighbour(key, n)),
        RouteNetlinkMessage::DelNeighbour(m) => neighbour(m).map(|(key, _)| Change::NeighbourGone(key)),
        RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => prefix(m),
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Some(Change::Rules),
        _ => None,
    }
}

/// A bridge reports its ports with the messages of links; a port that leaves the bridge is "deleted".
fn is_of_bridge(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

/// The interface that a message describes; `None` for partial descriptions (bridge ports, wireless events).
pub fn link(message: &LinkMessage) -> Option<LinkInfo> {
    if is_of_bridge(message) {
        return None;
    }
    let flags = message.header.flags;
    let (mut name, mut mtu) = (None, None);
    let mut link = LinkInfo {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        admin_up: flags.contains(LinkFlags::Up),
        oper_up: flags.contains(LinkFlags::Running),
        xdp: Vec::new(),
        kind: None,
        master: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Mtu(value) => mtu = Some(*value),
            LinkAttribute::Address(value) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = value.as_slice().try_into().ok();
            }
            LinkAttribute::Xdp(values) => link.xdp = attached_xdp(values),
            LinkAttribute::Controller(value) => link.master = Some(*value),
            LinkAttribute::LinkInfo(values) => {
                link.kind = values.iter().find_map(|value| match value {
                    LinkInfoAttribute::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link.name = name?;
    link.mtu = mtu?;
    Some(link)
}

/// The kernel gives one id for each mode in use, and the sole one a second time without its mode.
fn attached_xdp(attributes: &[LinkXdp]) -> Vec<AttachedXdp> {
    let by_mode = |attribute: &LinkXdp| {
        let (mode, program_id) = match attribute {
            LinkXdp::DrvProgId(id) => (AttachedMode::Native, *id),
            LinkXdp::SkbProgId(id) => (AttachedMode::Generic, *id),
            LinkXdp::HwProgId(id) => (AttachedMode::Hardware, *id),
            _ => return None,
        };
        Some(AttachedXdp { mode, program_id })
    };
    attributes.iter().filter_map(by_mode).collect()
}

/// The local address that a message describes.
pub fn address(message: &AddressMessage) -> Option<(NeighbourKey, LocalAddress)> {
    // On a point-to-point interface `Address` is the other side's, `Local` ours; IPv6 has `Address` only.
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => {
                address = Some(*ip);
                break;
            }
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let local = LocalAddress {
        prefix_len: message.header.prefix_len,
        tentative: message.header.flags.intersects(unusable),
    };
    Some((NeighbourKey { ifindex: message.header.index, address: address? }, local))
}

/// The neighbour that a message describes; `None` for bridge forwarding entries and proxy entries.
pub fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        Nud::Reachable | Nud::Delay | Nud::Probe => NeighbourState::Confirmed,
        Nud::Stale => NeighbourState::Stale,
        Nud::Failed => NeighbourState::Failed,
        Nud::Noarp | Nud::Permanent => NeighbourState::Fixed,
        _ => NeighbourState::Missing,
    };
    Some((NeighbourKey { ifindex: message.header.ifindex, address: address? }, Neighbour { mac, state }))
}

/// The prefix whose route changed. Cached clones of routes do not matter and are not sent.
fn prefix(message: &RouteMessage) -> Option<Change> {
    let default = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let network = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })
        .unwrap_or(default);
    Some(Change::Prefix(network, message.header.destination_prefix_length))
}

/// The meaning of the kernel's answer to "how do I get there".
pub fn route(message: &RouteMessage) -> Result<Route, Unreachable> {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unreachable::Local),
        RouteType::BlackHole => return Err(Unreachable::Blackhole),
        RouteType::Unreachable => return Err(Unreachable::RejectRoute),
        RouteType::Prohibit => return Err(Unreachable::Prohibited),
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(Unreachable::NotUnicast);
        }
        _ => return Err(Unreachable::NoRoute),
    }
    let mut ifindex = None;
    let mut route = Route { ifindex: 0, gateway: None, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::EncapType(_) => return Err(Unreachable::Encapsulated),
            _ => {}
        }
    }
    route.ifindex = ifindex.ok_or(Unreachable::NoRoute)?;
    Ok(route)
}

/// The meaning of the kernel's refusal to answer "how do I get there"; `errno` is positive.
pub fn refusal(errno: i32) -> Unreachable {
    match errno {
        libc::ENETUNREACH => Unreachable::NoRoute,
        libc::EHOSTUNREACH => Unreachable::RejectRoute,
        libc::EACCES => Unreachable::Prohibited,
        libc::EINVAL => Unreachable::Blackhole,
        other => Unreachable::Refused(other),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
