//! The guard against mass failure: when everybody falls silent at once it is rather the balancer's own link, and the
//! tables are held for a while.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lb_lab::{
    ConfigFile, ConfigSource, ECHO_V4, ECHO_V6, Lab, LabConfig, LongConns, ServerProgram, Status,
    TopologyConfig, root_or_skip, wait_for, xlb_under_test,
};

/// A verdict takes half a second in the lab, and each wait here is for a few of them.
const LIMIT: Duration = Duration::from_secs(5);
const SERVERS: [&str; 3] = ["s1", "s2", "s3"];

/// Packets of all tests share two queues and the clock: one test at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lab(guard_timeout: &str) -> Lab {
    let file = ConfigFile::new("10.88.0.", 3).with(&format!("guard_timeout: {guard_timeout}"));
    let server = ServerProgram { program: env!("CARGO_BIN_EXE_lb-lab-server").into(), arguments: Vec::new() };
    let topology = TopologyConfig { servers: 3, ..TopologyConfig::default() };
    let xlb = Some((xlb_under_test().unwrap(), ConfigSource::Text(file.text())));
    Lab::start(LabConfig { topology, xlb, ..LabConfig::new(server) }).unwrap()
}

fn long(lab: &Lab) -> LongConns {
    LongConns::open(lab.client(), &[ECHO_V4, ECHO_V6], 60).unwrap()
}

fn has_slots(status: &Status, name: &str) -> bool {
    status.backend("web", name).is_some_and(|backend| backend.slots > 0)
}

fn are_up(status: &Status) -> bool {
    SERVERS.iter().all(|name| status.has_health("web", name, "up"))
}

fn has_said(lab: &Lab, text: &str) -> bool {
    lab.xlb().unwrap().events().unwrap().iter().any(|event| event.text.contains(text))
}

/// All servers fall silent for a while. Answers whether their connections outlived it.
fn after_an_outage(lab: &Lab, known: impl Fn(&Status) -> bool) -> usize {
    let long = long(lab);
    for name in SERVERS {
        lab.cut(name).unwrap();
    }
    lab.wait_status(LIMIT, "the outage is noticed", known)
        .unwrap_or_else(|e| panic!("{e}: {:#?}", lab.xlb().unwrap().events()));
    // Clients retransmit after their back-off, and would be told if they were lost.
    let _ = wait_for(Duration::from_secs(2), || (!long.report().broken.is_empty()).then_some(()));
    for name in SERVERS {
        lab.uncut(name).unwrap();
    }
    lab.wait_status(LIMIT, "all are up again", are_up).unwrap();
    let _ = long.exchange(3, LIMIT);
    long.report().broken.len()
}

#[test]
fn when_all_are_silent_the_tables_are_held_and_no_connection_breaks() {
    let _turn = one_at_a_time();
    if !root_or_skip() {
        return;
    }
    let lab = lab("30s");
    let held = |status: &Status| SERVERS.iter().all(|name| status.has_health("web", name, "down"));
    let broken = after_an_outage(&lab, |status| {
        held(status)
            && SERVERS.iter().all(|name| has_slots(status, name))
            && has_said(&lab, "mass failure: all 3")
    });
    assert_eq!(broken, 0, "{:?}", lab.xlb().unwrap().last_log(20));
    assert!(wait_for(LIMIT, || has_said(&lab, "mass failure over").then_some(())).is_some());
}

#[test]
fn without_the_guard_the_same_outage_breaks_connections() {
    let _turn = one_at_a_time();
    if !root_or_skip() {
        return;
    }
    let lab = lab("0s");
    let broken = after_an_outage(&lab, |status| SERVERS.iter().all(|name| !has_slots(status, name)));
    assert!(broken > 0);
    assert!(!has_said(&lab, "mass failure"));
}

#[test]
fn two_dead_of_three_are_believed_at_once() {
    let _turn = one_at_a_time();
    if !root_or_skip() {
        return;
    }
    let lab = lab("30s");
    let began = Instant::now();
    lab.cut("s1").unwrap();
    lab.cut("s2").unwrap();
    let gone =
        |status: &Status| !has_slots(status, "s1") && !has_slots(status, "s2") && has_slots(status, "s3");
    lab.wait_status(LIMIT, "the third serves alone", gone).unwrap();
    println!("two deaths are in the tables after {:?}", began.elapsed());
    assert!(!has_said(&lab, "mass failure"));
}

#[test]
fn the_guard_gives_in_after_its_time() {
    let _turn = one_at_a_time();
    if !root_or_skip() {
        return;
    }
    let lab = lab("1s");
    for name in SERVERS {
        lab.cut(name).unwrap();
    }
    let nobody = |status: &Status| SERVERS.iter().all(|name| !has_slots(status, name));
    lab.wait_status(LIMIT, "it counts as an outage of the servers", nobody).unwrap();
    assert!(
        has_said(&lab, "mass failure: all 3") && has_said(&lab, "nobody behind eth0 has answered in time")
    );
}
