//! Two balancers with the same file: the same choices, so that either can be lost.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use lb_lab::{
    ConfigFile, ECHO_V4, ECHO_V6, HTTP_V4, HTTP_V6, LabConfig, LongConns, LongReport, Pair, ServerProgram,
    TopologyConfig, root_or_skip, wait_for, xlb_under_test,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: usize = 200;

/// Packets of all tests share two queues and the clock: one test at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair(first: &ConfigFile, second: &ConfigFile, servers: usize) -> Pair {
    let server = ServerProgram { program: env!("CARGO_BIN_EXE_lb-lab-server").into(), arguments: Vec::new() };
    let topology = TopologyConfig { servers, ..TopologyConfig::default() };
    let config = LabConfig { topology, ..LabConfig::new(server) };
    Pair::start(config, &xlb_under_test().unwrap(), [&first.text(), &second.text()]).unwrap()
}

fn checksum(pair: &Pair, balancer: usize) -> String {
    pair.balancers()[balancer].status().unwrap().checksum("web").unwrap().to_owned()
}

/// How many packets a balancer has forwarded.
fn forwarded(pair: &Pair, balancer: usize) -> u64 {
    pair.balancers()[balancer].status().unwrap().outcome("forwarded")
}

fn exchange(long: &LongConns) -> LongReport {
    long.exchange(4, 10 * SECOND).expect("lines come back")
}

#[test]
fn the_order_of_lines_changes_no_slot_a_weight_does() {
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let mut sorted = ConfigFile::new("10.89.0.", 8);
    sorted.backend("s2").weight = 150;
    let mut shuffled = sorted.clone();
    fastrand::Rng::with_seed(7).shuffle(&mut shuffled.backends);
    assert_ne!(sorted, shuffled);
    let two = pair(&sorted, &shuffled, 8);
    assert_eq!(checksum(&two, 0), checksum(&two, 1));
    // The control.
    let before = checksum(&two, 1);
    shuffled.backend("s2").weight = 151;
    std::fs::write(two.balancers()[1].config_path(), shuffled.text()).unwrap();
    wait_for(5 * SECOND, || (checksum(&two, 1) != before).then_some(()))
        .expect("another weight, another ring");
    assert_ne!(checksum(&two, 0), checksum(&two, 1));
}

#[test]
fn one_of_two_balancers_is_lost_and_no_connection_is() {
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let file = ConfigFile::new("10.89.0.", 3);
    let mut reversed = file.clone();
    reversed.backends.reverse();
    let mut pair = pair(&file, &reversed, 3);
    pair.lab().topology().set_next_hops(&["balancer", "balancer2"]).unwrap();
    let long = LongConns::open(pair.lab().client(), &[ECHO_V4, ECHO_V6], LONG).unwrap();
    let before = exchange(&long);
    let share = [forwarded(&pair, 0), forwarded(&pair, 1)];
    assert!(share.iter().all(|share| *share > before.exchanged / 4), "the router uses both: {share:?}");

    pair.lose(0).unwrap();
    exchange(&long);
    // Once more: those that have waited longest come last.
    let carried = forwarded(&pair, 1);
    let report = exchange(&long);
    let carried = forwarded(&pair, 1) - carried;
    assert!(carried >= 4 * LONG as u64, "the other one carries all of them: {carried} packets, {report}");
    assert_eq!((report.alive_total(), report.broken.len(), report.strays), (LONG as u64, 0, 0), "{report}");
    assert_eq!(report.alive, before.alive, "every connection is where it was");
    assert_eq!(report.stalled, 0, "{report}");
    let tally = pair.lab().client().burst(&[HTTP_V4, HTTP_V6], 200, 16, 2 * SECOND).unwrap();
    assert_eq!((tally.failed(), tally.by_server.len()), (0, 3), "{tally}");
    println!("{report}");
}

#[test]
fn two_balancers_with_another_seed_lose_connections() {
    if !root_or_skip() {
        return;
    }
    let _one = one_at_a_time();
    let file = ConfigFile::new("10.89.0.", 3);
    let mut pair = pair(&file, &file.clone().with_key("hash_seed: 9"), 3);
    let long = LongConns::open(pair.lab().client(), &[ECHO_V4, ECHO_V6], LONG).unwrap();
    assert_eq!(exchange(&long).broken.len(), 0);
    pair.lose(0).unwrap();
    // Two of three are sent to a server that does not know them.
    wait_for(5 * SECOND, || (long.report().broken.len() > LONG / 3).then_some(())).expect("many break");
    thread::sleep(SECOND / 5);
    assert!(long.report().alive_total() > 0, "one of three is lucky: {}", long.report());
}
