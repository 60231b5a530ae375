//! The network without a controller: the client's route leads straight to a server where the balancer would be.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::Path,
    time::{Duration, Instant},
};

use lb_lab::{
    Client, ECHO_PORT, ECHO_V4, ECHO_V6, Failure, Flood, HTTP_PORT, HTTP_V4, HTTP_V6, Lab, LabConfig,
    LongConns, Pace, SERVICE_V4, SERVICE_V6, ServerProgram, TopologyConfig, Traffic, UdpFlows, root_or_skip,
    wait_for,
};

const SECOND: Duration = Duration::from_secs(1);

fn lab(topology: TopologyConfig) -> Lab {
    let server = ServerProgram { program: env!("CARGO_BIN_EXE_lb-lab-server").into(), arguments: Vec::new() };
    Lab::start(LabConfig { topology, ..LabConfig::new(server) }).unwrap()
}

/// Lets the service's addresses be at one server.
fn route_to(lab: &Lab, server: &str) {
    let (client, host) = (&lab.topology().client().netns, lab.topology().host(server).unwrap());
    let lines = format!(
        "route replace {SERVICE_V4}/32 via {}\nroute replace {SERVICE_V6}/128 via {}\n",
        host.v4, host.v6
    );
    client.ip_batch(&lines).unwrap();
}

fn own(lab: &Lab, server: &str, port: u16) -> [SocketAddr; 2] {
    let host = lab.topology().host(server).unwrap();
    [(host.v4, port).into(), (host.v6, port).into()]
}

#[test]
fn every_server_answers_on_its_own_and_the_service_addresses() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig::default());
    for server in ["s1", "s2", "s3"] {
        for at in own(&lab, server, HTTP_PORT) {
            assert_eq!(lab.client().http_get(at, SECOND).as_deref(), Ok(server), "{at}");
        }
        route_to(&lab, server);
        for (http, echo) in [(HTTP_V4, ECHO_V4), (HTTP_V6, ECHO_V6)] {
            assert_eq!(lab.client().http_get(http, SECOND).as_deref(), Ok(server), "{http}");
            // A connected UDP socket takes answers from the service's address only.
            let round = UdpFlows::open(lab.client(), echo, 20).unwrap().round(SECOND).unwrap();
            assert_eq!((round.by_server.get(server), round.lost), (Some(&20), 0), "{echo}");
        }
    }
    let from_port = lab.client().http_get_from(40_123, HTTP_V4, SECOND);
    assert_eq!(from_port.as_deref(), Ok("s3"));
}

#[test]
fn nobody_answers_while_the_balancer_does_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig::default());
    let short = Duration::from_millis(300);
    assert_eq!(lab.client().http_get(HTTP_V4, short), Err(Failure::Timeout));
    assert!(lab.client().http_get(HTTP_V6, short).is_err());
}

#[test]
fn servers_behind_the_balancer_answer_over_the_router() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig { servers_behind: true, servers: 2, ..TopologyConfig::default() });
    for at in own(&lab, "s2", HTTP_PORT) {
        assert_eq!(lab.client().http_get(at, SECOND).as_deref(), Ok("s2"), "{at}");
        // The balancer reaches them directly: that is where it probes from.
        let balancer = Client::new(lab.topology().balancer().netns.handle());
        assert_eq!(balancer.http_get(at, SECOND).as_deref(), Ok("s2"), "{at}");
    }
}

#[test]
fn a_killed_server_refuses_a_paused_or_cut_one_is_silent() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(TopologyConfig::default());
    let short = Duration::from_millis(300);
    let [at, _] = own(&lab, "s2", HTTP_PORT);
    let get = |lab: &Lab| lab.client().http_get(at, short);

    lab.kill("s2").unwrap();
    assert_eq!(get(&lab), Err(Failure::Refused));
    lab.start_server("s2").unwrap();
    assert_eq!(get(&lab).as_deref(), Ok("s2"));

    lab.pause("s2").unwrap();
    assert_eq!(get(&lab), Err(Failure::Timeout));
    lab.start_server("s2").unwrap();
    assert_eq!(get(&lab).as_deref(), Ok("s2"));

    lab.cut("s2").unwrap();
    let carrier = lab.topology().describe();
    assert_eq!(get(&lab), Err(Failure::Timeout));
    assert!(!carrier.contains("NO-CARRIER"), "a cut must not be seen:\n{carrier}");
    assert_eq!(lab.client().http_get(own(&lab, "s1", HTTP_PORT)[0], SECOND).as_deref(), Ok("s1"));
    lab.start_server("s2").unwrap();
    assert_eq!(wait_for(5 * SECOND, || get(&lab).ok()).as_deref(), Some("s2"));

    lab.set_healthy("s2", false).unwrap();
    let request = lab.client().http_post(at, "/nothing", SECOND);
    assert_eq!(request, Err(Failure::Status(405)));
    assert!(lab.kill("s9").unwrap_err().to_string().contains("s1 to s3"));
}

#[test]
fn long_connections_report_exactly_who_broke_and_who_stalled() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(TopologyConfig::default());
    let to: Vec<_> = ["s1", "s2", "s3"].iter().flat_map(|server| own(&lab, server, ECHO_PORT)).collect();
    let long = LongConns::open(lab.client(), &to, 120).unwrap();
    wait_for(10 * SECOND, || (long.report().exchanged > 500).then_some(())).expect("lines come back");
    let report = long.report();
    assert_eq!((report.alive_total(), report.broken.len(), report.strays), (120, 0, 0), "{report}");

    lab.kill("s1").unwrap();
    wait_for(5 * SECOND, || (long.report().broken.len() == 40).then_some(())).expect("those of s1 break");
    let pause = Duration::from_millis(400);
    lab.pause("s2").unwrap();
    std::thread::sleep(pause);
    lab.resume("s2").unwrap();
    let before = long.report().exchanged;
    wait_for(5 * SECOND, || (long.report().exchanged > before + 200).then_some(())).expect("s2 goes on");
    let report = long.report();
    assert_eq!((report.alive_total(), report.broken_of("s1"), report.broken.len()), (80, 40, 40), "{report}");
    assert!(report.max_stall["s2"] >= Duration::from_millis(340), "{report}");
    assert!(report.max_stall["s3"] < report.max_stall["s2"], "{report}");
}

#[test]
fn a_burst_and_steady_traffic_are_counted() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(TopologyConfig::default());
    assert_eq!(lab.add_server().unwrap(), "s4");
    let to: Vec<_> =
        ["s1", "s2", "s3", "s4"].iter().flat_map(|server| own(&lab, server, HTTP_PORT)).collect();
    let start = Instant::now();
    let tally = lab.client().burst(&to, 2000, 32, 5 * SECOND).unwrap();
    println!("burst: {tally}, {:.0} connections/s", 2000.0 / start.elapsed().as_secs_f64());
    assert_eq!((tally.failed(), tally.count("s1"), tally.count("s4")), (0, 500, 500), "{tally}");

    lab.kill("s4").unwrap();
    let traffic = Traffic::start(lab.client(), &to, 200);
    let mut tally = traffic.take_tally();
    wait_for(10 * SECOND, || {
        tally.merge(traffic.take_tally());
        (tally.answered() + tally.failed() >= 200).then_some(())
    })
    .expect("traffic flows");
    assert!(tally.failures.keys().eq([&Failure::Refused]), "{tally}");
    assert!(tally.share("s1") > 0.2, "{tally}");
}

/// A counter of `/proc/net/snmp` in a server's namespace, such as `Tcp: InSegs`.
fn snmp(lab: &Lab, server: &str, group: &str, name: &str) -> u64 {
    let netns = &lab.topology().host(server).unwrap().netns;
    // Not /proc/net: that is the namespace of the main thread.
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|word| word == name).unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}

#[test]
fn a_flood_reaches_a_server_whole_and_its_answers_go_nowhere() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig::default());
    let to = SocketAddrV4::new(SERVICE_V4, HTTP_PORT);
    let (client, s1) = (lab.topology().client(), lab.topology().host("s1").unwrap());
    let answers = snmp(&lab, "s1", "Tcp:", "OutSegs");
    let flood = Flood { to, count: 20_000, copies: 1, rate: 50_000 }.start(client, s1).unwrap();
    let report = flood.wait().unwrap();
    assert_eq!(report.sent, 20_000);
    assert!(report.took >= Duration::from_millis(390), "{report:?}");
    let came = wait_for(5 * SECOND, || Some(snmp(&lab, "s1", "Tcp:", "InSegs")).filter(|n| *n >= 20_000));
    assert!(came.is_some(), "{} of 20,000 SYNs came", snmp(&lab, "s1", "Tcp:", "InSegs"));
    assert_eq!(snmp(&lab, "s1", "Tcp:", "InCsumErrors") + snmp(&lab, "s1", "Ip:", "InHdrErrors"), 0);
    assert_eq!(snmp(&lab, "s1", "Tcp:", "OutSegs"), answers);
    // One that is not wanted any more stops at once.
    let endless = Flood { to, count: u64::MAX, copies: 1, rate: 1000 }.start(client, s1).unwrap();
    wait_for(5 * SECOND, || (endless.sent() > 0).then_some(())).expect("frames are sent");
    assert!(!endless.has_ended());
    drop(endless);
    assert_eq!(lab.client().http_get(own(&lab, "s1", HTTP_PORT)[0], SECOND).as_deref(), Ok("s1"));
}

#[test]
fn restless_connections_come_back_and_say_when() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(TopologyConfig::default());
    let to = own(&lab, "s1", ECHO_PORT);
    let long = LongConns::open_restless(lab.client(), &to, 50).unwrap();
    wait_for(10 * SECOND, || (long.report().exchanged > 100).then_some(())).expect("lines come back");
    let before = Instant::now();
    let other = LongConns::open(lab.client(), &own(&lab, "s2", ECHO_PORT), 10).unwrap();
    lab.kill("s1").unwrap();
    wait_for(5 * SECOND, || (long.report().broken.len() == 50).then_some(())).expect("all break");
    let report = long.report();
    assert!(report.broken.iter().all(|b| b.back.is_none() && b.at > before), "{report:?}");
    assert_eq!((report.alive_total(), report.broken_of("s1")), (0, 50), "{report}");
    lab.start_server("s1").unwrap();
    wait_for(5 * SECOND, || (long.report().alive_total() == 50).then_some(())).expect("all come back");
    let exchanged = long.report().exchanged;
    wait_for(5 * SECOND, || (long.report().exchanged > exchanged + 100).then_some(())).expect("lines again");
    let report = long.report();
    for broken in &report.broken {
        let back = broken.back.as_ref().unwrap();
        assert!(back.server == "s1" && back.after < before.elapsed(), "{report:?}");
    }
    assert_eq!((report.broken.len(), other.report().broken.len(), other.report().stalled), (50, 0, 0));
}

#[test]
fn a_thousand_connections_a_second_are_sustained_and_none_is_left_out() {
    const RATE: u64 = 1000;
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig::default());
    let to: Vec<_> = ["s1", "s2", "s3"].iter().flat_map(|server| own(&lab, server, HTTP_PORT)).collect();
    let start = Instant::now();
    let traffic = Traffic::start_at(lab.client(), &to, Pace::heavy(RATE as u32));
    std::thread::sleep(5 * SECOND);
    let tally = traffic.finish();
    let due = RATE * start.elapsed().as_millis() as u64 / 1000;
    println!("{tally}, the slowest in {:?}", tally.slowest);
    assert!(
        tally.failed() == 0 && (due * 9 / 10..=due + 64).contains(&tally.answered()),
        "{due} due: {tally}"
    );
    // The servers have counted the same: nothing was asked twice or forgotten.
    let opened =
        ["s1", "s2", "s3"].iter().map(|server| snmp(&lab, server, "Tcp:", "PassiveOpens")).sum::<u64>();
    assert_eq!(opened, tally.answered());
}

#[test]
fn nothing_stays_behind_even_after_a_panic() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig::default());
    let names: Vec<_> = ["client", "balancer", "s1"]
        .iter()
        .map(|name| lab.topology().host(name).unwrap().netns.name().to_owned())
        .collect();
    let exists = |name: &String| Path::new("/run/netns").join(name).exists();
    assert!(names.iter().all(exists));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        std::panic::resume_unwind(Box::new("a test fails"));
    }));
    assert!(panic.is_err());
    assert!(!names.iter().any(exists));
}
