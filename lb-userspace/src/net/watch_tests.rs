//! The watch against the real kernel, in namespaces of its own. Needs root.

use std::{fmt::Write as _, net::IpAddr, time::Instant};

use super::{
    super::{
        model::{NextHop, Unreachable},
        test_lab::{Lab, PEER_MAC, ip, ip_output, isolated},
    },
    *,
};

const LIMIT: Duration = Duration::from_secs(10);
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn watch(wanted: &[&str]) -> NetHandle {
    NetWatch::spawn(wanted.iter().copied().map(address).collect()).expect("a watch")
}

/// Waits until the latest event fulfils the condition.
async fn until(net: &mut NetHandle, what: &str, condition: impl Fn(&NetEvent) -> bool) -> Arc<NetEvent> {
    let wait = async {
        loop {
            if let Some(event) = net.snapshot()
                && condition(&event)
            {
                return event;
            }
            net.changed().await.expect("the watch runs");
        }
    };
    let result = tokio::time::timeout(LIMIT, wait).await;
    result.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}; latest: {:#?}", net.snapshot()))
}

fn hop<'a>(event: &'a NetEvent, wanted: &str) -> Option<&'a NextHop> {
    match &event.next_hops[&address(wanted)] {
        NextHopState::Resolved(hop) => Some(hop),
        _ => None,
    }
}

fn reason<'a>(event: &'a NetEvent, wanted: &str) -> Option<&'a Unreachable> {
    match &event.next_hops[&address(wanted)] {
        NextHopState::Unreachable(reason) => Some(reason),
        _ => None,
    }
}

async fn resolved(net: &mut NetHandle, wanted: &str) -> NextHop {
    let event = until(net, &format!("{wanted} is resolved"), |event| hop(event, wanted).is_some()).await;
    hop(&event, wanted).cloned().expect("just seen")
}

async fn resolved_to(net: &mut NetHandle, wanted: &str, mac: [u8; 6]) {
    let what = format!("{wanted} is at {mac:x?}");
    until(net, &what, |event| hop(event, wanted).is_some_and(|hop| hop.mac == mac)).await;
}

/// Waits until `ip` prints that.
async fn kernel_says(arguments: &str, expected: &str) {
    let start = Instant::now();
    while !ip_output(arguments).contains(expected) {
        assert!(start.elapsed() < LIMIT, "no {expected} in ip {arguments}: {}", ip_output(arguments));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn direct_neighbours_of_both_families_are_asked_for() {
    isolated(async |_lab| {
        let mut net = watch(&["10.0.0.11", "2001:db8::11"]);
        for (wanted, source) in [("10.0.0.11", "10.0.0.1"), ("2001:db8::11", "2001:db8::1")] {
            let hop = resolved(&mut net, wanted).await;
            assert_eq!((hop.mac, hop.source, hop.gateway), (PEER_MAC, address(source), None));
            assert_eq!((hop.interface.as_str(), hop.mtu), ("lb0", 1500));
            let event = net.snapshot().expect("an event");
            assert_eq!(Some(hop.source_mac), event.links["lb0"].mac);
            assert_eq!(event.links["lb0"].kind.as_deref(), Some("veth"));
        }
    });
}

#[test]
fn gateways_are_followed_and_nobody_else_is_asked() {
    isolated(async |lab: Lab| {
        lab.peer("addr add 10.0.0.254/24 dev p0");
        lab.peer("addr add 2001:db8::fe/64 dev p0 nodad");
        ip("route add default via 10.0.0.254");
        ip("route add default via 2001:db8::fe");
        let mut net = watch(&["192.0.2.1", "2001:db8:1::1"]);
        for (wanted, gateway) in [("192.0.2.1", "10.0.0.254"), ("2001:db8:1::1", "2001:db8::fe")] {
            let hop = resolved(&mut net, wanted).await;
            assert_eq!((hop.mac, hop.gateway), (PEER_MAC, Some(address(gateway))));
        }
        let asked: Vec<_> = ip_output("-4 neigh show").lines().map(str::to_owned).collect();
        assert!(asked.len() == 1 && asked[0].starts_with("10.0.0.254 "), "{asked:?}");

        ip("neigh add 10.0.0.253 lladdr 02:00:00:00:00:22 dev lb0");
        ip("route replace default via 10.0.0.253");
        resolved_to(&mut net, "192.0.2.1", OTHER_MAC).await;
        ip("route add 192.0.2.0/24 via 10.0.0.254"); // more specific
        resolved_to(&mut net, "192.0.2.1", PEER_MAC).await;
        ip("rule add to 192.0.2.1 lookup 100");
        ip("route add default via 10.0.0.253 table 100");
        resolved_to(&mut net, "192.0.2.1", OTHER_MAC).await;
        ip("rule del to 192.0.2.1 lookup 100");
        resolved_to(&mut net, "192.0.2.1", PEER_MAC).await;
    });
}

#[test]
fn a_new_mac_that_is_announced_is_taken_over() {
    isolated(async |lab: Lab| {
        let mut net = watch(&["10.0.0.11"]);
        resolved_to(&mut net, "10.0.0.11", PEER_MAC).await;
        lab.change_peer_mac("02:00:00:00:00:22");
        resolved_to(&mut net, "10.0.0.11", OTHER_MAC).await;
    });
}

#[test]
fn a_flushed_neighbour_keeps_its_mac_and_is_asked_again() {
    isolated(async |_lab| {
        let mut net = watch(&["10.0.0.11"]);
        resolved(&mut net, "10.0.0.11").await;
        let flushes = tokio::task::spawn_blocking(|| {
            for _ in 0..100 {
                ip("neigh flush dev lb0"); // many times: the kernel reports it in two parts
            }
        });
        let lost = async {
            loop {
                let event = net.changed().await.expect("the watch runs");
                assert!(hop(&event, "10.0.0.11").is_some(), "{event:?}");
            }
        };
        tokio::select! { () = lost => {}, result = flushes => result.expect("flushed") }
        kernel_says("neigh show dev lb0", "10.0.0.11 lladdr 02:00:00:00:00:11").await;
        resolved(&mut net, "10.0.0.11").await;
    });
}

#[test]
fn a_stale_neighbour_is_confirmed() {
    isolated(async |_lab| {
        let mut net = watch(&["10.0.0.11"]);
        resolved(&mut net, "10.0.0.11").await;
        ip("neigh replace 10.0.0.11 lladdr 02:00:00:00:00:11 nud stale dev lb0");
        kernel_says("neigh show dev lb0", "REACHABLE").await;
        resolved(&mut net, "10.0.0.11").await;
    });
}

#[test]
fn a_neighbour_that_fails_is_lost_and_recovers() {
    isolated(async |lab: Lab| {
        let mut net = watch(&["10.0.0.11", "2001:db8::11"]);
        for wanted in ["10.0.0.11", "2001:db8::11"] {
            resolved(&mut net, wanted).await;
        }
        lab.peer("addr flush dev p0");
        ip("neigh flush dev lb0");
        for wanted in ["10.0.0.11", "2001:db8::11"] {
            let event = until(&mut net, "the neighbour fails", |event| reason(event, wanted).is_some()).await;
            let expected = Unreachable::NoAnswer { interface: "lb0".to_owned(), address: address(wanted) };
            assert_eq!(reason(&event, wanted), Some(&expected));
        }
        lab.peer("addr add 10.0.0.11/24 dev p0");
        lab.peer("addr add 2001:db8::11/64 dev p0 nodad");
        let start = Instant::now();
        for wanted in ["10.0.0.11", "2001:db8::11"] {
            resolved_to(&mut net, wanted, PEER_MAC).await;
        }
        println!("recovered after {:?}", start.elapsed());
    });
}

#[test]
fn a_link_goes_down_and_comes_up() {
    isolated(async |lab: Lab| {
        let mut net = watch(&["10.0.0.11"]);
        resolved(&mut net, "10.0.0.11").await;
        lab.peer("link set p0 down"); // no carrier
        let event = until(&mut net, "it is down", |event| reason(event, "10.0.0.11").is_some()).await;
        let down = Unreachable::LinkDown { interface: "lb0".to_owned() };
        assert_eq!(reason(&event, "10.0.0.11"), Some(&down));
        assert!(event.links["lb0"].admin_up && !event.links["lb0"].oper_up);
        lab.peer("link set p0 up");
        resolved_to(&mut net, "10.0.0.11", PEER_MAC).await;

        ip("link set lb0 down"); // the kernel takes its routes away
        let event = until(&mut net, "it is down", |event| reason(event, "10.0.0.11").is_some()).await;
        assert!(!event.links["lb0"].admin_up);
        ip("link set lb0 up");
        resolved_to(&mut net, "10.0.0.11", PEER_MAC).await;
        kernel_says("neigh show dev lb0", "10.0.0.11 lladdr 02:00:00:00:00:11").await;
    });
}

#[test]
fn an_interface_is_deleted_created_and_renamed() {
    isolated(async |lab: Lab| {
        let mut net = watch(&["10.0.0.11"]);
        let old = resolved(&mut net, "10.0.0.11").await;
        ip("link del lb0");
        let event = until(&mut net, "it is gone", |event| !event.links.contains_key("lb0")).await;
        assert_eq!(reason(&event, "10.0.0.11"), Some(&Unreachable::NoRoute));
        lab.connect();
        let new = resolved(&mut net, "10.0.0.11").await;
        assert_ne!(new.ifindex, old.ifindex);
        assert_eq!((new.mac, new.interface.as_str()), (PEER_MAC, "lb0"));
        ip("link set lb0 name lb1");
        let event = until(&mut net, "it is renamed", |event| event.links.contains_key("lb1")).await;
        assert!(!event.links.contains_key("lb0"));
        until(&mut net, "with the new name", |event| {
            hop(event, "10.0.0.11").is_some_and(|hop| hop.interface == "lb1")
        })
        .await;
    });
}

#[test]
fn the_mtu_of_link_and_route_is_followed() {
    isolated(async |_lab| {
        let mut net = watch(&["10.0.0.11"]);
        resolved(&mut net, "10.0.0.11").await;
        let mtu_is = |mtu| move |event: &NetEvent| hop(event, "10.0.0.11").is_some_and(|hop| hop.mtu == mtu);
        ip("link set lb0 mtu 1450");
        let event = until(&mut net, "the link's MTU", mtu_is(1450)).await;
        assert_eq!(event.links["lb0"].mtu, 1450);
        ip("route add 10.0.0.11 dev lb0 mtu 1400");
        until(&mut net, "the route's MTU", mtu_is(1400)).await;
        ip("route del 10.0.0.11");
        until(&mut net, "the link's MTU again", mtu_is(1450)).await;
    });
}

#[test]
fn addresses_without_a_way_say_why_and_get_one() {
    isolated(async |_lab| {
        let cases = [
            ("10.0.0.1", Unreachable::Local),
            ("2001:db8::1", Unreachable::Local),
            ("127.0.0.9", Unreachable::Local),
            ("10.0.0.255", Unreachable::NotUnicast),
            ("192.0.2.1", Unreachable::NoRoute),
            ("2001:db8:1::1", Unreachable::NoRoute),
            ("198.51.100.1", Unreachable::Blackhole),
            ("198.51.100.2", Unreachable::RejectRoute),
            ("198.51.100.3", Unreachable::Prohibited),
            ("2001:db8:2::1", Unreachable::Blackhole),
            ("2001:db8:2::2", Unreachable::RejectRoute),
        ];
        ip("route add blackhole 198.51.100.1");
        ip("route add unreachable 198.51.100.2");
        ip("route add prohibit 198.51.100.3");
        ip("route add blackhole 2001:db8:2::1");
        ip("route add unreachable 2001:db8:2::2");
        let mut net = watch(&cases.each_ref().map(|(wanted, _)| *wanted));
        let event = until(&mut net, "the first event", |_| true).await;
        for (wanted, expected) in &cases {
            assert_eq!(reason(&event, wanted), Some(expected), "{wanted}");
        }
        ip("route add 192.0.2.0/24 via 10.0.0.11");
        resolved_to(&mut net, "192.0.2.1", PEER_MAC).await;
        ip("addr add 192.0.2.1/32 dev lb0");
        until(&mut net, "it is ours", |event| reason(event, "192.0.2.1") == Some(&Unreachable::Local)).await;
        ip("addr del 192.0.2.1/32 dev lb0");
        resolved_to(&mut net, "192.0.2.1", PEER_MAC).await;
    });
}

#[test]
fn the_source_follows_our_addresses() {
    isolated(async |_lab| {
        ip("route add 192.0.2.0/24 via 10.0.0.11");
        ip("route add 2001:db8:1::/64 via 2001:db8::11");
        let mut net = watch(&["192.0.2.1", "2001:db8:1::1"]);
        assert_eq!(resolved(&mut net, "192.0.2.1").await.source, address("10.0.0.1"));
        assert_eq!(resolved(&mut net, "2001:db8:1::1").await.source, address("2001:db8::1"));
        // No route to the wanted addresses is touched by this. One family after the other: an event of either makes
        // the watch ask for all routes.
        for (wanted, old, new) in
            [("192.0.2.1", "10.0.0.1/24", "10.0.5.1"), ("2001:db8:1::1", "2001:db8::1/64", "2001:db8:5::1")]
        {
            ip(&format!("addr add {new} dev lb0"));
            ip(&format!("addr del {old} dev lb0"));
            let source_is_new =
                |event: &NetEvent| hop(event, wanted).is_some_and(|hop| hop.source == address(new));
            until(&mut net, "the source is another", source_is_new).await;
        }
    });
}

#[test]
fn an_interface_without_mac_and_one_without_address() {
    isolated(async |_lab| {
        ip("tuntap add tun0 mode tun");
        ip("link set tun0 up");
        ip("route add 192.0.2.0/24 dev tun0");
        ip("addr del 10.0.0.1/24 dev lb0");
        ip("route add 10.0.0.0/24 dev lb0");
        ip("neigh add 10.0.0.11 lladdr 02:00:00:00:00:11 dev lb0");
        let mut net = watch(&["192.0.2.1", "10.0.0.11"]);
        let event = until(&mut net, "the first event", |_| true).await;
        let expected = Unreachable::NoMac { interface: "tun0".to_owned() };
        assert_eq!(reason(&event, "192.0.2.1"), Some(&expected));
        assert_eq!(resolved(&mut net, "10.0.0.11").await.source, address("0.0.0.0"));
    });
}

#[test]
fn the_wanted_addresses_are_those_of_the_event() {
    isolated(async |_lab| {
        let mut net = watch(&[]);
        until(&mut net, "the first event", |event| event.next_hops.is_empty()).await;
        for wanted in [vec!["10.0.0.11", "10.0.0.12"], vec!["10.0.0.12"], vec![]] {
            let wanted: BTreeSet<_> = wanted.into_iter().map(address).collect();
            net.set_wanted(wanted.clone());
            until(&mut net, "as wanted", |event| event.next_hops.keys().eq(&wanted)).await;
        }
    });
}

#[test]
fn lost_events_are_made_up_for() {
    isolated(async |_lab| {
        let wanted = BTreeSet::from([address("10.0.0.11")]);
        let mut net = NetWatch::spawn_with(wanted, 4096).expect("a watch");
        resolved_to(&mut net, "10.0.0.11", PEER_MAC).await;
        let mut batch = String::new();
        for host in 1..2000 {
            let _ = writeln!(batch, "route add 172.16.{}.{}/32 via 10.0.0.9", host / 250, host % 250);
        }
        batch.push_str("neigh replace 10.0.0.11 lladdr 02:00:00:00:00:22 dev lb0\n");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), batch).expect("written");
        // This blocks the thread of the watch, too: it can read nothing until all has happened.
        ip(&format!("-batch {}", file.path().display()));
        resolved_to(&mut net, "10.0.0.11", OTHER_MAC).await;
    });
}

#[test]
fn the_task_ends_with_its_last_handle() {
    isolated(async |_lab| {
        let metrics = tokio::runtime::Handle::current().metrics();
        let mut net = watch(&["10.0.0.11"]);
        resolved(&mut net, "10.0.0.11").await;
        assert!(metrics.num_alive_tasks() > 0);
        drop(net);
        let start = Instant::now();
        while metrics.num_alive_tasks() > 0 {
            assert!(start.elapsed() < LIMIT, "tasks are left");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// Prints how long it takes from a change in the kernel to the event, and how long 1,000 addresses take.
#[test]
fn events_come_within_milliseconds() {
    isolated(async |_lab| {
        let mut net = watch(&["10.0.0.11"]);
        resolved(&mut net, "10.0.0.11").await;
        let (connection, handle, _) = rtnetlink::new_connection().expect("a socket");
        tokio::spawn(connection);
        let ifindex = resolved(&mut net, "10.0.0.11").await.ifindex;
        let mut latencies = Vec::new();
        for number in 0..50 {
            let mac = [2, 0, 0, 0, 1, number];
            let request = handle.neighbours().add(ifindex, address("10.0.0.11"));
            let start = Instant::now();
            request.link_layer_address(&mac).replace().execute().await.expect("a new MAC");
            resolved_to(&mut net, "10.0.0.11", mac).await;
            latencies.push(start.elapsed());
        }
        latencies.sort();
        println!("change of a MAC to NetEvent: median {:?}, worst {:?}", latencies[25], latencies[49]);
        assert!(latencies[25] < Duration::from_millis(100), "{latencies:?}");

        let many: BTreeSet<IpAddr> =
            (0..1000u16).map(|n| IpAddr::from([172, 16, n.to_be_bytes()[0], n.to_be_bytes()[1]])).collect();
        let start = Instant::now();
        net.set_wanted(many.clone());
        until(&mut net, "1,000 addresses", |event| event.next_hops.keys().eq(&many)).await;
        println!("set_wanted of 1,000 addresses to NetEvent: {:?}", start.elapsed());
        tokio::time::sleep(REST_MAX).await; // measured is one change, not one of a series
        let start = Instant::now();
        ip("route add 172.16.0.0/16 via 10.0.0.11");
        let all = |event: &NetEvent| event.next_hops.values().all(|s| matches!(s, NextHopState::Resolved(_)));
        until(&mut net, "1,000 resolved", all).await;
        println!("a route for 1,000 addresses (with the start of ip) to NetEvent: {:?}", start.elapsed());
    });
}
