use super::{super::Contact, *};
use crate::health::{Detail, Health::*};
use std::{net::IpAddr, time::Duration};

mod world;

const SECOND: Duration = Duration::from_secs(1);
const OK: (Health, Reason) = (Up, Reason::L4Ok);
const SILENT: (Health, Reason) = (Down, Reason::L4Timeout);

fn key(name: &str) -> BackendRef {
    BackendRef { service: "web".into(), backend: name.into() }
}

fn subject(name: &str, host: u8) -> Subject {
    Subject {
        key: key(name),
        address: IpAddr::from([10, 0, 0, host]),
        probed: true,
        timeout: 30 * SECOND,
        initial: OK,
    }
}

/// A guard and a clock in seconds.
struct Desk {
    guard: Guard,
    start: Instant,
    /// What the book would say of proofs that are no news.
    proofs: BTreeMap<BackendRef, Instant>,
}

impl Desk {
    /// All behind interface 2, up, and with a proof at second 10.
    fn new(subjects: Vec<Subject>) -> Self {
        let mut desk = Self { guard: Guard::default(), start: Instant::now(), proofs: BTreeMap::new() };
        let names: Vec<_> = subjects.iter().map(|s| (s.key.clone(), s.probed)).collect();
        desk.guard.set_subjects(subjects);
        for (key, probed) in names {
            desk.guard.note_way(&key, Some(2), desk.at(0.0));
            if probed {
                desk.proofs.insert(key.clone(), desk.at(10.0));
                let first = Some(desk.start);
                let contact = Contact { proved: first, back: first, ..Contact::default() };
                let verdict = desk.guard.health(&key);
                desk.note(&key.backend, verdict, contact, 0.0);
            }
        }
        desk.decide(10.0);
        desk
    }

    fn three() -> Self {
        Self::new(vec![subject("a", 1), subject("b", 2), subject("c", 3)])
    }

    fn at(&self, second: f64) -> Instant {
        self.start + Duration::from_secs_f64(second)
    }

    fn decide(&mut self, second: f64) -> Decision {
        let (now, proofs) = (self.at(second), &self.proofs);
        self.guard.decide(now, &|key| proofs.get(key).copied())
    }

    /// A verdict on silence since a probe that began at `lost`; the last one began a second before `second`.
    fn silent(&mut self, name: &str, lost: f64, second: f64) -> Decision {
        self.fails(name, SILENT, lost, second);
        self.decide(second)
    }

    fn fails(&mut self, name: &str, (health, reason): (Health, Reason), lost: f64, second: f64) {
        let contact = Contact {
            proved: Some(self.at(10.0)),
            lost: Some(self.at(lost)),
            failed: Some(self.at((second - 1.0).max(lost))),
            back: Some(self.start),
        };
        self.note(name, (health, reason), contact, second);
    }

    fn answers(&mut self, name: &str, verdict: (Health, Reason), second: f64) -> Decision {
        let before = self.guard.member(&key(name)).unwrap().contact;
        let proved = Some(self.at(second));
        let back = if before.lost.is_some() { proved } else { before.back.or(Some(self.start)) };
        let contact = Contact { proved, lost: None, failed: None, back };
        self.note(name, verdict, contact, second);
        self.decide(second)
    }

    fn note(&mut self, name: &str, (health, cause): (Health, Reason), contact: Contact, second: f64) {
        self.guard.note_health(&HealthEvent {
            key: key(name),
            health,
            previous: Up,
            reason: cause,
            cause,
            detail: Detail::default(),
            at: self.at(second),
            latency: SECOND,
            contact,
            changed: true,
            round: 1,
        });
    }

    fn health(&self, name: &str) -> Health {
        self.guard.health(&key(name)).0
    }

    /// Names of the held.
    fn held(&self) -> String {
        ["a", "b", "c"].into_iter().filter(|name| self.guard.is_held(&key(name))).collect()
    }
}

fn kinds(decision: &Decision) -> Vec<GuardEventKind> {
    decision.events.iter().map(|event| event.kind.clone()).collect()
}

#[test]
fn two_dead_of_three_are_believed_at_once() {
    let mut desk = Desk::three();
    desk.proofs.insert(key("c"), desk.at(12.0));
    for name in ["a", "b"] {
        let decision = desk.silent(name, 11.0, 14.0);
        assert!(decision.changed && decision.events.is_empty() && decision.probe.is_empty(), "{decision:?}");
        assert_eq!(desk.health(name), Down);
    }
    // And so is the third, later: the last of a pool cannot be told from its link.
    desk.silent("c", 20.0, 23.0);
    assert_eq!((desk.health("c"), desk.held().as_str()), (Down, ""));
}

#[test]
fn a_mass_failure_is_held_and_said_when_the_last_falls_silent() {
    let mut desk = Desk::three();
    let first = desk.silent("a", 11.0, 14.0);
    assert!(!first.changed && first.events.is_empty());
    assert_eq!(first.probe, [key("b"), key("c")], "who could answer is asked");
    assert_eq!(first.watch, Some([key("a"), key("b"), key("c")].into()));
    desk.fails("b", (Up, Reason::L4Ok), 11.5, 14.5);
    assert!(desk.decide(14.5).events.is_empty());
    let last = desk.silent("c", 12.0, 15.0);
    let until = desk.at(44.0);
    assert_eq!(kinds(&last), [GuardEventKind::Began { backends: 3, until }]);
    assert_eq!((last.watch, last.probe.len()), (None, 0));
    assert!(desk.silent("b", 11.5, 15.5).events.is_empty());
    assert_eq!(desk.held(), "abc");
    assert_eq!(["a", "b", "c"].map(|name| desk.health(name)), [Up; 3]);
    assert_eq!(desk.guard.next_deadline(), Some(until));
    let said = last.events[0].kind.describe("eth0", desk.at(15.0));
    assert!(said.contains("all 3 usable backends behind eth0") && said.contains("at most 29 s"), "{said}");
}

#[test]
fn after_the_time_out_all_are_believed_and_the_guard_waits_for_an_answer() {
    let mut desk = Desk::three();
    for (name, second) in [("a", 14.0), ("b", 15.0), ("c", 16.0)] {
        desk.silent(name, 11.0, second);
    }
    assert!(!desk.decide(43.9).changed);
    let end = desk.decide(44.0);
    assert!(end.changed);
    assert_eq!(kinds(&end), [GuardEventKind::TimedOut { backends: 3 }]);
    assert_eq!(["a", "b", "c"].map(|name| desk.health(name)), [Down; 3]);
    assert_eq!((end.watch, desk.guard.next_deadline()), (Some(BTreeSet::new()), None));
    // Two that somehow rose without a proof since are not held again; with one they are.
    for (proof, held) in [(None, ""), (Some(50.0), "ab")] {
        for name in ["a", "b"] {
            let proved = desk.at(proof.unwrap_or(10.0));
            desk.note(name, OK, Contact { proved: Some(proved), ..Contact::default() }, 50.0);
        }
        desk.decide(50.0);
        desk.proofs.extend(proof.map(|second| (key("b"), desk.at(second))));
        desk.silent("a", 60.0, 63.0);
        desk.silent("b", 60.0, 63.0);
        assert_eq!(desk.held(), held);
    }
}

#[test]
fn an_answer_ends_it_and_each_is_probed_once_more() {
    let mut desk = Desk::three();
    for name in ["a", "b", "c"] {
        desk.silent(name, 11.0, 14.0);
    }
    // It answers, but has to do so twice before it is up.
    let answer = desk.answers("b", SILENT, 20.0);
    assert_eq!(kinds(&answer), [GuardEventKind::Answered { by: key("b"), held: 3 }]);
    assert_eq!(answer.probe, [key("a"), key("b"), key("c")]);
    assert!(!answer.changed);
    // A probe from before the answer says nothing new.
    desk.fails("a", SILENT, 11.0, 20.5);
    assert!(!desk.decide(20.5).changed);
    // One from after it does.
    assert!(desk.silent("a", 11.0, 21.1).changed);
    assert_eq!((desk.health("a"), desk.held().as_str()), (Down, "bc"));
    assert!(!desk.answers("c", SILENT, 21.2).changed);
    for name in ["b", "c"] {
        let risen = desk.answers(name, OK, 21.5);
        assert!(risen.events.is_empty());
    }
    assert_eq!((desk.health("b"), desk.health("c"), desk.held().as_str()), (Up, Up, ""));
    assert_eq!(desk.guard.next_deadline(), None);
}

#[test]
fn a_witness_that_was_not_asked_since_is_asked_and_its_answer_is_the_verdict() {
    // `fall: 1`: nobody else was probed since.
    let mut desk = Desk::three();
    let doubt = desk.silent("a", 11.0, 12.0);
    assert_eq!((doubt.changed, doubt.probe), (false, vec![key("b"), key("c")]));
    let answer = desk.answers("c", OK, 12.001);
    assert!(answer.changed && answer.events.is_empty() && answer.probe.is_empty(), "{answer:?}");
    assert_eq!((desk.health("a"), desk.held().as_str()), (Down, ""));
    assert_eq!(answer.watch, Some(BTreeSet::new()));
}

#[test]
fn what_proves_the_path_is_never_doubted_and_ends_a_doubt() {
    for cause in [Reason::L4Refused, Reason::L6Invalid, Reason::L7Status(503), Reason::L7Timeout] {
        let mut desk = Desk::three();
        for name in ["a", "b", "c"] {
            desk.answers(name, (Down, cause), 14.0);
            assert_eq!(desk.guard.health(&key(name)), (Down, cause));
        }
        assert_eq!(desk.held(), "");
        // The same from the last of three that the first two were held for.
        let mut desk = Desk::three();
        desk.silent("a", 11.0, 14.0);
        desk.silent("b", 11.0, 14.0);
        assert_eq!(desk.held(), "ab");
        desk.answers("c", (Down, cause), 14.1);
        assert_eq!((desk.held().as_str(), desk.health("a"), desk.health("c")), ("", Down, Down), "{cause}");
    }
}

#[test]
fn an_unwell_backend_keeps_its_flows_while_its_death_is_held() {
    let mut desk = Desk::three();
    let unwell = (Down, Reason::L7Status(503));
    desk.note("a", unwell, Contact { proved: Some(desk.at(10.0)), ..Contact::default() }, 10.0);
    desk.decide(10.0);
    for name in ["a", "b", "c"] {
        desk.silent(name, 11.0, 14.0);
    }
    assert_eq!((desk.held().as_str(), desk.guard.health(&key("a"))), ("abc", unwell));
}

#[test]
fn a_server_counts_once_and_one_alone_is_never_held() {
    let mut other = subject("b", 1);
    other.key.service = "dns".into();
    for subjects in [vec![subject("a", 1)], vec![subject("a", 1), other]] {
        let mut desk = Desk::new(subjects);
        assert!(desk.silent("a", 11.0, 14.0).changed);
        assert_eq!((desk.held().as_str(), desk.health("a")), ("", Down));
    }
    // Nor one among others that were not up, or cannot be asked.
    let unprobed = Subject { probed: false, ..subject("b", 2) };
    let down = Subject { initial: (Down, Reason::L4Timeout), ..subject("c", 3) };
    let mut desk = Desk::new(vec![subject("a", 1), unprobed, down]);
    assert!(desk.silent("a", 11.0, 14.0).changed);
    assert_eq!(desk.held(), "");
}

#[test]
fn off_is_off_and_others_are_still_held() {
    let off = Subject { timeout: Duration::ZERO, ..subject("a", 1) };
    let mut desk = Desk::new(vec![off, subject("b", 2), subject("c", 3)]);
    for name in ["a", "b", "c"] {
        desk.silent(name, 11.0, 14.0);
    }
    assert_eq!((desk.held().as_str(), desk.health("a"), desk.health("b")), ("bc", Down, Up));
}

#[test]
fn each_service_has_its_own_time_out() {
    let long = Subject { timeout: 60 * SECOND, ..subject("c", 3) };
    let mut desk = Desk::new(vec![subject("a", 1), subject("b", 2), long]);
    for name in ["a", "b", "c"] {
        desk.silent(name, 11.0, 14.0);
    }
    assert_eq!(kinds(&desk.decide(44.0)), [GuardEventKind::TimedOut { backends: 2 }]);
    // What is left is one alone: its next result tells.
    assert_eq!(desk.held(), "c");
    desk.silent("c", 11.0, 45.0);
    assert_eq!((desk.held().as_str(), desk.health("c")), ("", Down));
}

#[test]
fn a_lost_next_hop_is_a_failure_and_its_return_ends_it() {
    let mut desk = Desk::three();
    for name in ["a", "b", "c"] {
        desk.guard.note_way(&key(name), None, desk.at(14.0));
    }
    let began = desk.decide(14.0);
    assert!(!began.changed);
    assert_eq!((desk.held().as_str(), kinds(&began).len()), ("abc", 1));
    for name in ["a", "b", "c"] {
        desk.guard.note_way(&key(name), Some(2), desk.at(16.0));
    }
    let over = desk.decide(16.0);
    assert_eq!((kinds(&over), over.changed, desk.held().as_str()), (vec![GuardEventKind::Over], false, ""));
    // One alone loses it: the others are asked, and one answers.
    desk.guard.note_way(&key("a"), None, desk.at(20.0));
    assert_eq!(desk.decide(20.0).probe, [key("b"), key("c")]);
    assert!(desk.answers("b", OK, 20.001).changed);
    assert_eq!((desk.held().as_str(), desk.health("a")), ("", Up));
}

#[test]
fn who_is_not_probed_loses_its_next_hop_a_second_after_the_link_is_back() {
    let unprobed = Subject { probed: false, ..subject("c", 3) };
    let mut desk = Desk::new(vec![subject("a", 1), subject("b", 2), unprobed]);
    desk.guard.note_way(&key("c"), None, desk.at(13.0));
    desk.silent("a", 11.0, 14.0);
    desk.silent("b", 11.0, 14.0);
    assert_eq!(desk.held(), "abc");
    desk.answers("a", OK, 20.0);
    assert_eq!((desk.held().as_str(), desk.guard.next_deadline()), ("bc", Some(desk.at(21.0))));
    assert!(desk.decide(21.0).changed);
    assert_eq!(desk.held(), "b");
}

#[test]
fn another_interface_is_another_group_and_a_move_takes_the_hold_along() {
    let mut desk = Desk::three();
    desk.guard.note_way(&key("c"), Some(3), desk.at(10.0));
    desk.decide(10.0);
    desk.proofs.insert(key("c"), desk.at(13.0));
    desk.silent("a", 11.0, 14.0);
    desk.silent("b", 11.0, 14.0);
    assert_eq!(desk.held(), "ab", "an answer through another interface proves nothing of this one");
    // Routed to where somebody has answered, it is dead.
    desk.guard.note_way(&key("a"), Some(3), desk.at(15.0));
    desk.decide(15.0);
    assert_eq!((desk.held().as_str(), desk.health("a"), desk.health("b")), ("", Down, Down));
}

#[test]
fn who_leaves_the_file_is_forgotten_and_who_stays_is_not() {
    let mut desk = Desk::three();
    for name in ["a", "b", "c"] {
        desk.silent(name, 11.0, 14.0);
    }
    let moved = Subject { initial: (Unknown, Reason::Init), ..subject("c", 9) };
    desk.guard.set_subjects(vec![subject("b", 2), moved, subject("a", 1)]);
    let decision = desk.decide(15.0);
    assert_eq!((desk.held().as_str(), desk.health("c")), ("ab", Unknown));
    assert_eq!(decision.watch, Some([key("a"), key("b")].into()));
    desk.guard.set_subjects(vec![subject("b", 2)]);
    desk.decide(16.0);
    assert_eq!((desk.held().as_str(), desk.health("a"), desk.health("b")), ("", Unknown, Down));
}

/// What 10,000 backends cost. Run it alone and optimised:
/// `cargo test --release -p lb-userspace --lib guard::tests::cost -- --nocapture`.
#[test]
fn cost_of_ten_thousand_backends() {
    const COUNT: usize = 10_000;
    let name = |at: usize| format!("s{at:05}");
    let subjects = (0..COUNT).map(|at| Subject {
        address: IpAddr::from((0x0a00_0000 + at as u32).to_be_bytes()),
        ..subject(&name(at), 0)
    });
    let mut desk = Desk::new(subjects.collect());
    let keys: Vec<_> = (0..COUNT).map(|at| key(&name(at))).collect();
    let timed = |what: &str, limit: Duration, run: &mut dyn FnMut()| {
        let started = Instant::now();
        run();
        let took = started.elapsed();
        println!("{what}: {took:?}");
        assert!(took < limit, "{what}: {took:?}");
    };
    let ms = Duration::from_millis;
    timed("nothing new", ms(1), &mut || assert!(!desk.decide(12.0).changed));
    timed("next hops told again", ms(100), &mut || {
        let now = desk.at(12.0);
        for key in &keys {
            desk.guard.note_way(key, Some(2), now);
        }
        assert!(!desk.decide(12.0).changed);
    });
    // The last has answered, so nobody before it ends the search.
    desk.proofs.insert(keys[COUNT - 1].clone(), desk.at(12.5));
    timed("one dies", ms(100), &mut || assert!(desk.silent(&name(0), 11.0, 14.0).changed));
    timed("another dies", ms(5), &mut || assert!(desk.silent(&name(1), 11.0, 14.0).changed));
    // All fall silent within a second, in a hundred batches.
    timed("all die", ms(10_000), &mut || {
        for at in 2..COUNT {
            desk.fails(&name(at), SILENT, 20.0, 23.0);
            if at % 100 == 99 {
                desk.decide(23.0);
            }
        }
    });
    assert_eq!(keys.iter().filter(|key| desk.guard.is_held(key)).count(), COUNT - 2);
    timed("the time is over", ms(500), &mut || assert!(desk.decide(53.0).changed));
    assert!(keys.iter().all(|key| desk.guard.health(key).0 == Down));
}
