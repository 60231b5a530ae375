//! Each test tells the view what the kernel would, and looks at the next hop of one address.

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn key(ifindex: u32, address: &str) -> NeighbourKey {
    NeighbourKey { ifindex, address: ip(address) }
}

fn link() -> LinkInfo {
    LinkInfo {
        ifindex: 2,
        name: "eth0".to_owned(),
        mac: Some(OWN_MAC),
        mtu: 1500,
        admin_up: true,
        oper_up: true,
        xdp: Vec::new(),
        kind: None,
        master: None,
    }
}

fn direct() -> Route {
    Route { ifindex: 2, gateway: None, source: Some(ip("10.0.0.1")), mtu: None }
}

fn heard(mac: Option<[u8; 6]>, state: NeighbourState) -> Change {
    Change::Neighbour(key(2, "10.0.0.11"), Neighbour { mac, state })
}

/// A view of one link with one wanted address, 10.0.0.11, whose route was answered.
fn view(answer: Result<Route, Unreachable>) -> View {
    let mut view = View::default();
    view.set_wanted(&BTreeSet::from([ip("10.0.0.11")]));
    view.apply(Change::Link(link()));
    assert_eq!(view.take_unasked(), BTreeSet::from([ip("10.0.0.11")]));
    view.set_route(ip("10.0.0.11"), answer);
    view
}

fn resolved() -> View {
    let mut view = view(Ok(direct()));
    view.apply(heard(Some(MAC), NeighbourState::Confirmed));
    assert!(mac(&view).is_some());
    view
}

fn state(view: &View) -> NextHopState {
    view.resolve(ip("10.0.0.11"))
}

fn mac(view: &View) -> Option<[u8; 6]> {
    match state(view) {
        NextHopState::Resolved(hop) => Some(hop.mac),
        _ => None,
    }
}

fn next_hop(view: &View) -> NextHop {
    match state(view) {
        NextHopState::Resolved(hop) => hop,
        other => panic!("not resolved: {other:?}"),
    }
}

fn unreachable(view: &View) -> String {
    match state(view) {
        NextHopState::Unreachable(reason) => reason.to_string(),
        other => panic!("not unreachable: {other:?}"),
    }
}

#[test]
fn everything_of_a_direct_neighbour() {
    let expected = NextHop {
        ifindex: 2,
        interface: "eth0".to_owned(),
        mac: MAC,
        source_mac: OWN_MAC,
        source: ip("10.0.0.1"),
        mtu: 1500,
        gateway: None,
    };
    assert_eq!(next_hop(&resolved()), expected);
}

#[test]
fn a_gateway_lends_its_mac_even_across_families() {
    for gateway in ["10.0.0.254", "fe80::1"] {
        let mut view = view(Ok(Route { gateway: Some(ip(gateway)), ..direct() }));
        view.apply(heard(Some([2, 0, 0, 0, 0, 0x99]), NeighbourState::Confirmed));
        assert_eq!(state(&view), NextHopState::Pending, "the address's own MAC is of no use");
        view.apply(Change::Neighbour(
            key(2, gateway),
            Neighbour { mac: Some(MAC), state: NeighbourState::Confirmed },
        ));
        let hop = next_hop(&view);
        assert_eq!((hop.mac, hop.gateway), (MAC, Some(ip(gateway))));
    }
}

#[test]
fn nothing_is_resolved_before_the_answers() {
    let mut view = View::default();
    view.set_wanted(&BTreeSet::from([ip("10.0.0.11")]));
    assert_eq!(state(&view), NextHopState::Pending, "no route yet");
    view.set_route(ip("10.0.0.11"), Ok(direct()));
    assert_eq!(state(&view), NextHopState::Pending, "no link yet");
    view.apply(Change::Link(link()));
    assert_eq!(state(&view), NextHopState::Pending, "no neighbour yet");
    view.apply(heard(None, NeighbourState::Missing));
    assert_eq!(state(&view), NextHopState::Pending, "incomplete");
}

#[test]
fn every_state_with_a_mac_but_failed_is_good_enough() {
    use NeighbourState::{Confirmed, Failed, Fixed, Missing, Stale};
    for state in [Confirmed, Stale, Fixed, Missing] {
        let mut view = resolved();
        view.apply(heard(Some(MAC), state));
        assert_eq!(mac(&view), Some(MAC), "{state:?}");
    }
    let mut view = resolved();
    view.apply(heard(Some(MAC), Failed));
    assert_eq!(unreachable(&view), "has no neighbour: 10.0.0.11 does not answer ARP on eth0");
}

#[test]
fn a_deleted_neighbour_keeps_its_mac_and_is_asked_for() {
    let mut view = resolved();
    assert!(view.apply(Change::NeighbourGone(key(2, "10.0.0.11"))));
    view.settle();
    assert_eq!(mac(&view), Some(MAC));
    let missing = BTreeMap::from([(key(2, "10.0.0.11"), NeighbourState::Missing)]);
    assert_eq!(view.next_hop_neighbours(), missing);
    view.apply(heard(None, NeighbourState::Missing)); // the kernel starts to ask
    assert_eq!(mac(&view), Some(MAC));
}

#[test]
fn a_deletion_that_is_reported_as_a_failure_first_keeps_the_mac() {
    let mut view = resolved();
    view.apply(heard(None, NeighbourState::Failed));
    assert!(view.has_fresh_failures());
    assert!(view.apply(Change::NeighbourGone(key(2, "10.0.0.11"))));
    assert_eq!(mac(&view), Some(MAC));
    assert!(!view.has_fresh_failures());
}

#[test]
fn a_failure_that_lasted_is_not_undone_when_the_kernel_collects_the_entry() {
    let mut view = resolved();
    view.apply(heard(None, NeighbourState::Failed));
    view.settle();
    assert!(!view.has_fresh_failures());
    view.apply(Change::NeighbourGone(key(2, "10.0.0.11")));
    assert!(unreachable(&view).contains("does not answer"));
}

#[test]
fn a_failed_neighbour_stays_failed_until_it_answers() {
    let mut view = resolved();
    view.apply(heard(None, NeighbourState::Failed));
    view.settle();
    view.apply(heard(None, NeighbourState::Missing));
    view.apply(Change::NeighbourGone(key(2, "10.0.0.11")));
    assert!(unreachable(&view).contains("does not answer"));
    view.apply(heard(Some(MAC), NeighbourState::Confirmed));
    assert_eq!(mac(&view), Some(MAC));
}

#[test]
fn a_new_mac_replaces_the_old_one() {
    let mut view = resolved();
    let new = [2, 0, 0, 0, 0, 0x22];
    assert!(view.apply(heard(Some(new), NeighbourState::Stale)));
    assert_eq!(mac(&view), Some(new));
    assert!(!view.apply(heard(Some(new), NeighbourState::Stale)), "the same again is no change");
}

#[test]
fn a_link_that_is_down_has_no_next_hop_and_asks_nobody() {
    for down in [LinkInfo { admin_up: false, ..link() }, LinkInfo { oper_up: false, ..link() }] {
        let mut view = resolved();
        view.apply(Change::Link(down));
        assert_eq!(unreachable(&view), "is behind eth0, which is down");
        assert!(view.next_hop_neighbours().is_empty());
        view.apply(Change::NeighbourGone(key(2, "10.0.0.11"))); // the kernel flushes
        view.apply(Change::Link(link()));
        assert_eq!(mac(&view), Some(MAC), "known as soon as it is up");
    }
}

#[test]
fn a_link_without_mac_has_no_next_hop() {
    let mut view = resolved();
    view.apply(Change::Link(LinkInfo { mac: None, ..link() }));
    assert_eq!(unreachable(&view), "is behind eth0: interface has no MAC address");
    assert!(view.next_hop_neighbours().is_empty());
}

#[test]
fn refused_routes_say_why() {
    for (reason, text) in [
        (Unreachable::Local, "is an address of this host"),
        (Unreachable::NoRoute, "has no route"),
        (Unreachable::Blackhole, "has a route of type blackhole"),
        (Unreachable::Refused(libc::EPERM), "has no usable route: Operation not permitted (os error 1)"),
    ] {
        assert_eq!(unreachable(&view(Err(reason))), text);
    }
}

#[test]
fn the_smaller_mtu_counts() {
    for (link_mtu, route_mtu, expected) in
        [(1500, None, 1500), (1500, Some(1400), 1400), (1300, Some(1400), 1300)]
    {
        let mut view = resolved();
        view.apply(Change::Link(LinkInfo { mtu: link_mtu, ..link() }));
        view.set_route(ip("10.0.0.11"), Ok(Route { mtu: route_mtu, ..direct() }));
        assert_eq!(next_hop(&view).mtu, expected);
    }
}

#[test]
fn without_preferred_source_an_address_of_the_interface_serves() {
    let mut view = resolved();
    view.set_route(ip("10.0.0.11"), Ok(Route { source: None, ..direct() }));
    assert_eq!(next_hop(&view).source, ip("0.0.0.0"));
    let usable = |tentative| LocalAddress { prefix_len: 24, tentative };
    view.apply(Change::Address(key(2, "10.0.0.5"), usable(true)));
    view.apply(Change::Address(key(2, "2001:db8::5"), usable(false)));
    view.apply(Change::Address(key(3, "10.0.0.6"), usable(false)));
    assert_eq!(next_hop(&view).source, ip("0.0.0.0"), "tentative, other family, other interface");
    view.apply(Change::Address(key(2, "10.0.0.7"), usable(false)));
    assert_eq!(next_hop(&view).source, ip("10.0.0.7"));
}

#[test]
fn only_the_routes_that_a_change_can_touch_are_asked_again() {
    let wanted = ["10.0.0.11", "10.0.1.11", "2001:db8::11"].map(ip);
    let mut view = View::default();
    view.set_wanted(&BTreeSet::from(wanted));
    view.take_unasked();
    let mut asked = |change| {
        view.apply(change);
        view.take_unasked().into_iter().map(|ip| ip.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(asked(Change::Prefix(ip("10.0.1.0"), 24)), ["10.0.1.11"]);
    assert_eq!(asked(Change::Prefix(ip("0.0.0.0"), 0)), ["10.0.0.11", "10.0.1.11"]);
    assert_eq!(asked(Change::Prefix(ip("::"), 0)), ["2001:db8::11"]);
    assert_eq!(asked(Change::Prefix(ip("10.0.0.11"), 32)), ["10.0.0.11"]);
    assert_eq!(asked(Change::Prefix(ip("2001:db8::11"), 128)), ["2001:db8::11"]);
    assert!(asked(Change::Prefix(ip("10.0.2.0"), 24)).is_empty());
    assert_eq!(asked(Change::Rules).len(), 3);
    assert_eq!(asked(Change::Link(link())).len(), 3);
    assert!(asked(Change::Link(link())).is_empty(), "nothing new");
    assert!(
        asked(heard(Some(MAC), NeighbourState::Confirmed)).is_empty(),
        "routes do not hang on neighbours"
    );
}

#[test]
fn a_dump_replaces_everything_but_a_kept_mac() {
    let mut view = resolved();
    view.apply(Change::Neighbour(
        key(2, "10.0.0.12"),
        Neighbour { mac: Some(MAC), state: NeighbourState::Stale },
    ));
    view.sync(Dump { links: vec![LinkInfo { mtu: 9000, ..link() }], ..Dump::default() });
    view.settle();
    assert_eq!(view.take_unasked().len(), 1);
    assert_eq!((next_hop(&view).mac, next_hop(&view).mtu), (MAC, 9000));
    assert_eq!(view.neighbours.len(), 1, "the kept MAC of a neighbour that nobody needs is dropped");
    view.sync(Dump::default());
    assert!(view.links_by_name().is_empty());
    assert!(view.neighbours.is_empty(), "a link takes its neighbours with it");
}

#[test]
fn an_address_no_longer_wanted_leaves_nothing() {
    let mut view = resolved();
    view.set_wanted(&BTreeSet::new());
    view.set_route(ip("10.0.0.11"), Ok(direct())); // a late answer
    assert!(view.next_hops().is_empty());
    assert!(view.next_hop_neighbours().is_empty());
}
