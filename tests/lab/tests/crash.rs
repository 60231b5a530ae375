//! The controller crashes, restarts and is replaced under full traffic, and the data path does not notice.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use lb_lab::{
    ConfigFile, ConfigSource, ECHO_V4, ECHO_V6, HTTP_V4, HTTP_V6, Installed, Lab, LabConfig, LongConns, Pace,
    PinnedLink, ServerProgram, TopologyConfig, Traffic, root_or_skip, wait_for, xlb_under_test,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: u64 = 200;
/// New connections a second.
const RATE: u32 = 1000;
/// How long nobody controls the data path.
const WITHOUT_CONTROLLER: Duration = Duration::from_secs(10);
/// A controller that adopts a data path is ready in so long.
const READY: Duration = Duration::from_secs(10);

/// Packets of all tests share two queues and the clock: one test at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file() -> ConfigFile {
    ConfigFile::new("10.88.0.", 3).with("drain_timeout: 1h")
}

fn lab(installed: &Installed, arguments: &[&str]) -> Lab {
    let server = ServerProgram { program: env!("CARGO_BIN_EXE_lb-lab-server").into(), arguments: Vec::new() };
    let xlb = Some((installed.path(), ConfigSource::Text(file().text())));
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let topology = TopologyConfig::default();
    Lab::start(LabConfig { topology, xlb, arguments, ..LabConfig::new(server) }).unwrap()
}

fn long(lab: &Lab) -> LongConns {
    LongConns::open(lab.client(), &[ECHO_V4, ECHO_V6], LONG as usize).unwrap()
}

fn link(lab: &Lab) -> PinnedLink {
    PinnedLink::of(lab.xlb().unwrap().pin_dir(), "eth0").unwrap()
}

/// Starts the controller again and waits until it is ready.
fn start_again(lab: &mut Lab) {
    let xlb = lab.xlb_mut().unwrap();
    xlb.start().unwrap();
    println!("ready again after {:?}", xlb.wait_ready(READY).unwrap());
}

/// Every counter of the status by its name.
fn counters(lab: &Lab) -> BTreeMap<String, u64> {
    let status = lab.status().unwrap();
    let mut all = BTreeMap::new();
    for key in ["connections", "packets", "bytes"] {
        all.insert(format!("web {key}"), status.number("web", key));
    }
    for backend in status.backends("web") {
        all.insert(format!("{} connections", backend.name), backend.connections);
        all.insert(format!("{} packets", backend.name), backend.packets);
    }
    for (outcome, count) in status.0["outcomes"].as_object().unwrap() {
        all.insert(format!("outcome {outcome}"), count.as_u64().unwrap());
    }
    all
}

/// No counter has fallen, and new connections were counted also by a data path that nobody controlled.
fn assert_counted(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, connections: u64) {
    for (name, count) in before {
        assert!(after.get(name).is_some_and(|now| now >= count), "{name} fell from {count}: {after:?}");
    }
    let counted = after["web connections"] - before["web connections"];
    assert!(counted >= connections, "{counted} of {connections} new connections were counted");
}

#[test]
fn a_crash_a_restart_and_an_upgrade_under_full_traffic_lose_nothing() {
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let installed = Installed::new(&xlb_under_test().unwrap()).unwrap();
    let mut lab = lab(&installed, &["--keep"]);
    let long = long(&lab);
    let traffic = Traffic::start_at(lab.client(), &[HTTP_V4, HTTP_V6], Pace::heavy(RATE));
    long.exchange(10, READY).expect("lines come back");
    let mut all = traffic.take_tally();
    let (link_before, mut before) = (link(&lab), counters(&lab));

    lab.xlb_mut().unwrap().kill().unwrap();
    thread::sleep(WITHOUT_CONTROLLER);
    let alone = traffic.take_tally();
    let enough = u64::from(RATE) * WITHOUT_CONTROLLER.as_secs() * 9 / 10;
    assert!(alone.answered() > enough && alone.failed() == 0, "without a controller: {alone}");
    start_again(&mut lab);
    let after = counters(&lab);
    assert_counted(&before, &after, alone.answered());
    assert_eq!(link(&lab).id, link_before.id);
    all.merge(alone);

    installed.upgrade().unwrap();
    before = after;
    assert!(lab.xlb_mut().unwrap().stop().unwrap().success());
    start_again(&mut lab);
    assert_counted(&before, &counters(&lab), 0);
    let link_after = link(&lab);
    assert_eq!(link_after.id, link_before.id);
    assert_ne!((link_after.program, link_after.tag), (link_before.program, link_before.tag));

    long.exchange(10, READY).expect("lines come back");
    all.merge(traffic.finish());
    let report = long.report();
    println!("{all}, the slowest in {:?}; {report}", all.slowest);
    assert!(all.answered() >= 10_000 && all.failed() == 0, "{all}");
    assert_eq!((report.alive_total(), report.broken.len(), report.strays), (LONG, 0, 0), "{report}");
    assert_eq!(report.stalled, 0, "{report}");
}

/// The tag of the program on the balancer's interface.
fn tag(lab: &Lab) -> String {
    let netns = lab.topology().balancer().netns.name();
    let arguments = ["-netns", netns, "-json", "-details", "link", "show", "eth0"];
    let output = Command::new("ip").args(arguments).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["xdp"]["prog"]["tag"].as_str().unwrap().to_owned()
}

#[test]
fn the_program_to_upgrade_to_differs_and_does_the_same() {
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let installed = Installed::new(&xlb_under_test().unwrap()).unwrap();
    let mut lab = lab(&installed, &[]);
    let first = tag(&lab);
    let who = |lab: &Lab, port| lab.client().http_get_from(port, HTTP_V4, SECOND).unwrap();
    let servers: Vec<_> = (20_000..20_050).map(|port| who(&lab, port)).collect();
    for same in [true, false] {
        lab.xlb_mut().unwrap().stop().unwrap();
        if !same {
            installed.upgrade().unwrap();
        }
        start_again(&mut lab);
        assert_eq!(tag(&lab) == first, same);
        let again: Vec<_> = (20_000..20_050).map(|port| who(&lab, port)).collect();
        assert_eq!(servers, again);
    }
}

#[test]
fn without_its_pins_a_crash_ends_all_traffic() {
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let installed = Installed::new(&xlb_under_test().unwrap()).unwrap();
    let mut lab = lab(&installed, &[]);
    let long = long(&lab);
    long.exchange(2, READY).expect("lines come back");
    let xlb = lab.xlb_mut().unwrap();
    xlb.kill().unwrap();
    let pins = xlb.pin_dir();
    if pins.exists() {
        fs::remove_dir_all(pins).unwrap();
    }
    wait_for(READY, || (long.report().stalled == LONG).then_some(())).expect("nothing comes back");
    let tally = lab.client().burst(&[HTTP_V4], 20, 20, SECOND).unwrap();
    assert_eq!(tally.answered(), 0, "{tally}");
}

#[test]
fn a_crash_in_the_middle_of_a_change_converges_to_the_same_slots() {
    const ROUNDS: u64 = 8;
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let installed = Installed::new(&xlb_under_test().unwrap()).unwrap();
    let mut lab = lab(&installed, &[]);
    // What the ring is with each of two weights, without any crash.
    let mut files = [file(), file()];
    files[1].backend("s1").weight = 300;
    let checksum = |lab: &Lab| lab.status().unwrap().checksum("web").unwrap().to_owned();
    let first = checksum(&lab);
    lab.write_config(&files[1].text()).unwrap();
    lab.wait_status(READY, "another ring", |status| status.checksum("web") != Some(&*first)).unwrap();
    let rings = [first, checksum(&lab)];

    let long = long(&lab);
    for round in 0..ROUNDS {
        let file = round as usize % 2;
        lab.write_config(&files[file].text()).unwrap();
        // The change is taken when the file has been still for 100 ms: from before that to after it.
        thread::sleep(Duration::from_millis(90 + 5 * round));
        lab.xlb_mut().unwrap().kill().unwrap();
        start_again(&mut lab);
        assert_eq!(checksum(&lab), rings[file], "round {round}");
        let report = long.exchange(2, READY).expect("lines come back");
        assert_eq!((report.alive_total(), report.broken.len()), (LONG, 0), "round {round}: {report}");
        assert_eq!(report.stalled, 0, "round {round}: {report}");
    }
}
