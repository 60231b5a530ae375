use netlink_packet_route::{
    link::{InfoKind, XdpAttached},
    route::RouteLwEnCapType,
};

use super::*;

fn veth() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::Running;
    message.attributes = vec![
        LinkAttribute::IfName("lb0".to_owned()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::Controller(3),
        LinkAttribute::Xdp(vec![
            LinkXdp::Attached(XdpAttached::Driver),
            LinkXdp::ProgId(42),
            LinkXdp::DrvProgId(42),
        ]),
        LinkAttribute::LinkInfo(vec![LinkInfoAttribute::Kind(InfoKind::Veth)]),
    ];
    message
}

#[test]
fn a_link_with_everything() {
    let expected = LinkInfo {
        ifindex: 7,
        name: "lb0".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        admin_up: true,
        oper_up: true,
        xdp: vec![AttachedXdp { mode: AttachedMode::Native, program_id: 42 }],
        kind: Some("veth".to_owned()),
        master: Some(3),
    };
    assert_eq!(change(&RouteNetlinkMessage::NewLink(veth())), Some(Change::Link(expected)));
}

#[test]
fn what_a_bridge_says_of_its_ports_does_not_delete_links() {
    let mut port = veth();
    port.header.interface_family = AddressFamily::Bridge;
    assert_eq!(change(&RouteNetlinkMessage::NewLink(port.clone())), None);
    assert_eq!(change(&RouteNetlinkMessage::DelLink(port)), None);
    assert_eq!(change(&RouteNetlinkMessage::DelLink(veth())), Some(Change::LinkGone(7)));
}

#[test]
fn loopback_has_an_address_of_six_zeroes_and_no_mac() {
    let mut loopback = veth();
    loopback.header.link_layer_type = LinkLayerType::Loopback;
    assert_eq!(link(&loopback).and_then(|link| link.mac), None);
}

#[test]
fn a_partial_link_is_no_link() {
    let mut wireless = veth();
    wireless.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::Mtu(_)));
    assert_eq!(link(&wireless), None);
}

fn neighbour_message(state: Nud, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = 7;
    message.header.state = state;
    message.header.flags = flags;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 11))),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 0x11]),
    ];
    message
}

#[test]
fn neighbour_states() {
    for (nud, expected) in [
        (Nud::Incomplete, NeighbourState::Missing),
        (Nud::None, NeighbourState::Missing),
        (Nud::Reachable, NeighbourState::Confirmed),
        (Nud::Delay, NeighbourState::Confirmed),
        (Nud::Probe, NeighbourState::Confirmed),
        (Nud::Stale, NeighbourState::Stale),
        (Nud::Failed, NeighbourState::Failed),
        (Nud::Noarp, NeighbourState::Fixed),
        (Nud::Permanent, NeighbourState::Fixed),
    ] {
        let (key, heard) =
            neighbour(&neighbour_message(nud, NeighbourFlags::empty())).expect("a neighbour of IPv4");
        assert_eq!(key.address, IpAddr::from([10, 0, 0, 11]));
        assert_eq!(heard, Neighbour { mac: Some([2, 0, 0, 0, 0, 0x11]), state: expected }, "{nud:?}");
    }
}

#[test]
fn bridge_and_proxy_entries_are_no_neighbours() {
    assert_eq!(neighbour(&neighbour_message(Nud::Permanent, NeighbourFlags::Proxy)), None);
    let mut forwarding = neighbour_message(Nud::Permanent, NeighbourFlags::empty());
    forwarding.attributes.remove(0);
    assert_eq!(neighbour(&forwarding), None);
}

#[test]
fn the_local_side_of_a_point_to_point_address_is_ours() {
    let (ours, theirs) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
    for attributes in [
        vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)],
        vec![AddressAttribute::Local(ours), AddressAttribute::Address(theirs)],
        vec![AddressAttribute::Address(ours)],
    ] {
        let mut message = AddressMessage::default();
        message.attributes = attributes;
        assert_eq!(address(&message).map(|(key, _)| key.address), Some(ours));
    }
}

fn answer(kind: RouteType, attributes: Vec<RouteAttribute>) -> Result<Route, Unreachable> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.kind = kind;
    message.attributes = attributes;
    route(&message)
}

#[test]
fn route_answers() {
    let gateway = Ipv4Addr::new(10, 0, 0, 254);
    let all = vec![
        RouteAttribute::Oif(7),
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1))),
        RouteAttribute::Metrics(vec![RouteMetric::Advmss(1360), RouteMetric::Mtu(1400)]),
    ];
    let expected = Route {
        ifindex: 7,
        gateway: Some(gateway.into()),
        source: Some(IpAddr::from([10, 0, 0, 1])),
        mtu: Some(1400),
    };
    assert_eq!(answer(RouteType::Unicast, all), Ok(expected));

    let via = RouteAttribute::Via(RouteVia::Inet6(Ipv6Addr::LOCALHOST));
    let route = answer(RouteType::Unicast, vec![RouteAttribute::Oif(7), via]);
    assert_eq!(route.map(|route| route.gateway), Ok(Some(Ipv6Addr::LOCALHOST.into())));

    assert_eq!(answer(RouteType::Local, vec![RouteAttribute::Oif(1)]), Err(Unreachable::Local));
    assert_eq!(answer(RouteType::Broadcast, vec![RouteAttribute::Oif(7)]), Err(Unreachable::NotUnicast));
    assert_eq!(answer(RouteType::BlackHole, vec![RouteAttribute::Oif(1)]), Err(Unreachable::Blackhole));
    assert_eq!(answer(RouteType::Unicast, vec![]), Err(Unreachable::NoRoute), "no interface");
    let encap = vec![RouteAttribute::Oif(7), RouteAttribute::EncapType(RouteLwEnCapType::Mpls)];
    assert_eq!(answer(RouteType::Unicast, encap), Err(Unreachable::Encapsulated));
}

#[test]
fn a_route_without_destination_is_the_default_route() {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    let message = RouteNetlinkMessage::DelRoute(message);
    assert_eq!(change(&message), Some(Change::Prefix(Ipv6Addr::UNSPECIFIED.into(), 0)));
}
