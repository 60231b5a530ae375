use proptest::prelude::*;

use super::*;
use crate::config::spec::Check;

const FALL: u32 = 3;
const RISE: u32 = 2;
const PASS: Reason = Reason::L7Ok(200);
const DEAD: Reason = Reason::L4Refused;
const UNWELL: Reason = Reason::L7Status(503);

fn spec() -> HealthSpec {
    HealthSpec {
        check: Check::Tcp,
        port: 80,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        fall: FALL,
        rise: RISE,
    }
}

fn feed(tracker: &mut Tracker, results: &[Reason]) {
    for reason in results {
        tracker.observe(*reason, Detail::default(), Instant::now());
    }
}

/// Every health, with every count that it can have, under every kind of result.
#[test]
fn transition_table() {
    use Health::{Down, Unknown, Up};
    let sock = Reason::SockErr;
    // Results that lead to the state, its health; then a result, and the health and the count it leads to.
    let table: &[(&[Reason], Health, Reason, Health, u32)] = &[
        (&[], Unknown, PASS, Up, 0),
        (&[], Unknown, DEAD, Unknown, 1),
        (&[], Unknown, UNWELL, Unknown, 1),
        (&[], Unknown, sock, Unknown, 0),
        (&[DEAD], Unknown, PASS, Up, 0),
        (&[DEAD], Unknown, DEAD, Unknown, 2),
        (&[DEAD], Unknown, sock, Unknown, 1),
        (&[DEAD, UNWELL], Unknown, PASS, Up, 0),
        (&[DEAD, DEAD], Unknown, DEAD, Down, 0),
        (&[DEAD, DEAD], Unknown, sock, Unknown, 2),
        (&[PASS], Up, PASS, Up, 0),
        (&[PASS], Up, DEAD, Up, 1),
        (&[PASS], Up, UNWELL, Up, 1),
        (&[PASS], Up, sock, Up, 0),
        (&[PASS, DEAD], Up, PASS, Up, 0),
        (&[PASS, DEAD], Up, UNWELL, Up, 2),
        (&[PASS, DEAD], Up, sock, Up, 1),
        (&[PASS, DEAD, DEAD], Up, PASS, Up, 0),
        (&[PASS, DEAD, DEAD], Up, DEAD, Down, 0),
        (&[PASS, DEAD, DEAD], Up, UNWELL, Down, 0),
        (&[PASS, DEAD, DEAD], Up, sock, Up, 2),
        (&[DEAD, DEAD, DEAD], Down, PASS, Down, 1),
        (&[DEAD, DEAD, DEAD], Down, DEAD, Down, 0),
        (&[DEAD, DEAD, DEAD], Down, UNWELL, Down, 0),
        (&[DEAD, DEAD, DEAD], Down, sock, Down, 0),
        (&[DEAD, DEAD, DEAD, PASS], Down, PASS, Up, 0),
        (&[DEAD, DEAD, DEAD, PASS], Down, DEAD, Down, 0),
        (&[DEAD, DEAD, DEAD, PASS], Down, UNWELL, Down, 0),
        (&[DEAD, DEAD, DEAD, PASS], Down, sock, Down, 1),
    ];
    for (before, health, result, after, count) in table {
        let mut tracker = Tracker::new(&spec(), Instant::now());
        feed(&mut tracker, before);
        assert_eq!(tracker.health(), *health, "{before:?}");
        let step = tracker.observe(*result, Detail::default(), Instant::now());
        let case = format!("{before:?} then {result}");
        assert_eq!((tracker.health(), tracker.opposite), (*after, *count), "{case}");
        assert_eq!((step.previous, step.changed), (*health, health != after), "{case}");
        assert_eq!(tracker.reason(), *result, "{case}");
    }
}

#[test]
fn a_backend_is_dead_only_after_fall_failures_below_layer_7() {
    let timeout = Reason::L4Timeout;
    let table: &[(&[Reason], Reason)] = &[
        (&[DEAD, DEAD, DEAD], DEAD),
        (&[UNWELL, UNWELL, UNWELL], UNWELL),
        // One lost SYN at the end of a 503 run, or later, does not cut its flows.
        (&[UNWELL, UNWELL, timeout], UNWELL),
        (&[UNWELL, UNWELL, UNWELL, timeout, timeout, UNWELL, timeout], UNWELL),
        // The next to say 503 is there for sure.
        (&[DEAD, DEAD, DEAD, UNWELL], UNWELL),
        // Unwell, then gone: the failures before the verdict count.
        (&[UNWELL, DEAD, DEAD], UNWELL),
        (&[UNWELL, DEAD, DEAD, DEAD], DEAD),
        (&[UNWELL, DEAD, DEAD, Reason::SockErr, DEAD], DEAD),
        (&[UNWELL, UNWELL, UNWELL, DEAD, DEAD, PASS, DEAD, DEAD], UNWELL),
    ];
    for (results, cause) in table {
        let mut tracker = Tracker::new(&spec(), Instant::now());
        feed(&mut tracker, &[PASS]);
        feed(&mut tracker, results);
        assert_eq!((tracker.health(), tracker.cause()), (Health::Down, *cause), "{results:?}");
    }
}

#[test]
fn a_change_of_cause_is_news_even_with_the_same_reason() {
    let mut tracker = Tracker::new(&spec(), Instant::now());
    let results = [UNWELL, UNWELL, UNWELL, UNWELL, DEAD, DEAD, DEAD, DEAD];
    let notable: Vec<_> =
        results.iter().map(|r| tracker.observe(*r, Detail::default(), Instant::now()).notable).collect();
    // The first, the verdict, the new reason, and the new cause.
    assert_eq!(notable, [true, false, true, false, true, false, true, false]);
}

#[test]
fn adopted_backends_keep_their_health_until_a_new_verdict() {
    for (health, cause, against, needed) in
        [(Health::Up, PASS, DEAD, FALL), (Health::Down, UNWELL, PASS, RISE), (Health::Down, DEAD, PASS, RISE)]
    {
        let mut tracker = Tracker::adopted(&spec(), health, cause, Instant::now());
        for _ in 1..needed {
            feed(&mut tracker, &[against]);
            assert_eq!((tracker.health(), tracker.cause()), (health, cause));
        }
        feed(&mut tracker, &[against]);
        assert_ne!(tracker.health(), health);
    }
}

#[test]
fn the_interval_drops_while_a_backend_changes_its_mind() {
    let (slow, fast) = (Duration::from_secs(2), Duration::from_millis(500));
    let mut tracker = Tracker::new(&spec(), Instant::now());
    let steps = [
        (DEAD, fast),
        (PASS, slow),
        (DEAD, fast),
        (Reason::SockErr, fast),
        (UNWELL, fast),
        (UNWELL, slow),
        (DEAD, fast),
        (DEAD, fast),
        (DEAD, slow),
        (DEAD, slow),
        (PASS, fast),
        (PASS, slow),
    ];
    assert_eq!(tracker.next_interval(), slow);
    for (index, (result, interval)) in steps.into_iter().enumerate() {
        feed(&mut tracker, &[result]);
        assert_eq!(tracker.next_interval(), interval, "step {index}, {result}");
    }
}

#[test]
fn other_thresholds_keep_the_health_and_reset_the_count() {
    let mut tracker = Tracker::new(&spec(), Instant::now());
    feed(&mut tracker, &[PASS, DEAD, DEAD]);
    tracker.respec(&HealthSpec { fall: 2, ..spec() });
    assert!(!tracker.is_wavering());
    feed(&mut tracker, &[DEAD]);
    assert_eq!(tracker.health(), Health::Up);
    feed(&mut tracker, &[DEAD]);
    assert_eq!(tracker.health(), Health::Down);
}

#[test]
fn since_is_the_time_of_the_last_change() {
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let mut tracker = Tracker::new(&spec(), start);
    for (second, result, since) in
        [(1, DEAD, 0), (2, PASS, 2), (3, PASS, 2), (4, DEAD, 2), (5, DEAD, 2), (6, DEAD, 6)]
    {
        tracker.observe(result, Detail::default(), at(second));
        assert_eq!(tracker.since(), at(since), "second {second}");
    }
}

/// What must hold after `history`, judged from the results alone. `before` is the health before the last of them.
fn check_invariants(tracker: &Tracker, before: Health, history: &[Reason], spec: &HealthSpec) {
    let judged = history.iter().rev().filter(|r| r.verdict() != Verdict::Unjudged);
    let passes = judged.clone().take_while(|r| r.verdict() == Verdict::Pass).count() as u32;
    let fails = judged.clone().take_while(|r| r.verdict() == Verdict::Fail).count() as u32;
    let below_7 =
        judged.clone().take_while(|r| r.verdict() == Verdict::Fail && !r.is_layer7_only()).count() as u32;
    let now = tracker.health();
    match (before, now) {
        (Health::Unknown, Health::Up) => assert_eq!(passes, 1),
        (Health::Unknown | Health::Up, Health::Down) => assert_eq!(fails, spec.fall),
        (Health::Down, Health::Up) => assert!(passes >= spec.rise),
        (Health::Up | Health::Down, Health::Unknown) => panic!("unknown again"),
        _ => {}
    }
    match now {
        Health::Unknown => assert!(passes == 0 && fails < spec.fall),
        Health::Up => assert!(fails < spec.fall && tracker.cause().verdict() == Verdict::Pass),
        Health::Down => {
            assert!(passes < spec.rise && tracker.cause().verdict() == Verdict::Fail);
            if fails > 0 && tracker.cause() != tracker.reason() && below_7 >= spec.fall {
                assert_eq!(tracker.reason(), Reason::SockErr, "dead, but not said so");
            }
        }
    }
    let limit = if now == Health::Down { spec.rise } else { spec.fall };
    assert!(tracker.opposite < limit && tracker.dead <= spec.fall);
    assert!(tracker.next_interval() <= spec.interval);
}

proptest! {
    #[test]
    fn no_sequence_of_results_breaks_the_invariants(
        rise in 1u32..5,
        fall in 1u32..5,
        history in prop::collection::vec(
            prop::sample::select(vec![
                PASS, PASS, PASS, Reason::L4Ok, DEAD, Reason::L4Timeout, Reason::L6Invalid, UNWELL,
                Reason::L7Timeout, Reason::SockErr,
            ]),
            1..120,
        ),
    ) {
        let spec = HealthSpec { fall, rise, ..spec() };
        let mut tracker = Tracker::new(&spec, Instant::now());
        for end in 1..=history.len() {
            let before = tracker.clone();
            let step = tracker.observe(history[end - 1], Detail::default(), Instant::now());
            prop_assert_eq!(step.previous, before.health());
            prop_assert_eq!(step.changed, before.health() != tracker.health());
            check_invariants(&tracker, before.health(), &history[..end], &spec);
            // Going from layer 7 down to dead takes `fall` failures below layer 7 in a row.
            if tracker.health() == Health::Down && before.cause().is_layer7_only()
                && tracker.cause().verdict() == Verdict::Fail && !tracker.cause().is_layer7_only()
            {
                prop_assert_eq!(tracker.dead, fall);
            }
            if history[end - 1] == Reason::SockErr {
                prop_assert_eq!(
                    (tracker.health(), tracker.cause(), tracker.opposite, tracker.dead),
                    (before.health(), before.cause(), before.opposite, before.dead)
                );
            }
        }
    }
}
