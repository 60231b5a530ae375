//! The guard together with the real book and tracker, in a world with a link, servers and a clock.

use std::{cmp::Reverse, collections::BinaryHeap};

use proptest::prelude::*;

use super::*;
use crate::{
    config::spec::{Check, HealthSpec},
    health::{
        book::{Book, Start},
        probe::Observation,
    },
};

/// Milliseconds since the start.
type Millis = u64;

const ROUND_TRIP: Millis = 1;
const INTERVAL: Millis = 2000;
const TIMEOUT: Millis = 1000;
const HELD_AT_MOST: Millis = 30_000;

/// From when until when something is broken.
type Outage = (Millis, Millis);

#[derive(Debug, Clone)]
struct Plan {
    fall: u32,
    guard: Millis,
    /// Of the link that all are behind.
    link: Vec<Outage>,
    /// Of each server.
    servers: Vec<Vec<Outage>>,
    /// They refuse instead of being silent.
    refuse: bool,
    /// When the first probe of each server starts.
    first: Vec<Millis>,
}

/// What happened to one backend.
#[derive(Debug, Default, Clone)]
struct Story {
    /// Verdicts of the tracker: when, and up or not.
    verdicts: Vec<(Millis, bool)>,
    /// The same as in force.
    in_force: Vec<(Millis, bool)>,
}

struct World {
    plan: Plan,
    start: Instant,
    book: Book,
    guard: Guard,
    /// Starts of probes, the earliest first: when, whose, and which turn of its.
    due: BinaryHeap<Reverse<(Millis, usize, u64)>>,
    /// Ends of probes: when, whose, when it started, what it says.
    ends: BinaryHeap<Reverse<(Millis, usize, Millis, Seen)>>,
    /// The turn that counts, by server; an earlier start may have taken the place of a planned one.
    turn: Vec<u64>,
    in_flight: Vec<bool>,
    hurry: Vec<bool>,
    stories: Vec<Story>,
    said: Vec<GuardEventKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Answer,
    Refusal,
    Silence,
}

fn name(at: usize) -> BackendRef {
    key(&format!("s{at}"))
}

fn number(key: &BackendRef) -> usize {
    key.backend[1..].parse().unwrap()
}

fn is_broken(outages: &[Outage], from: Millis, to: Millis) -> bool {
    outages.iter().any(|(start, end)| *start <= to && from < *end)
}

impl World {
    fn new(plan: Plan) -> Self {
        let count = plan.servers.len();
        let mut world = Self {
            start: Instant::now(),
            book: Book::default(),
            guard: Guard::default(),
            due: BinaryHeap::new(),
            ends: BinaryHeap::new(),
            turn: vec![0; count],
            in_flight: vec![false; count],
            hurry: vec![false; count],
            stories: vec![Story::default(); count],
            said: Vec::new(),
            plan,
        };
        let spec = HealthSpec {
            check: Check::Tcp,
            port: 80,
            interval: Duration::from_millis(INTERVAL),
            timeout: Duration::from_millis(TIMEOUT),
            fall: world.plan.fall,
            rise: 2,
        };
        let subjects = (0..count).map(|at| Subject {
            key: name(at),
            timeout: Duration::from_millis(world.plan.guard),
            initial: (Unknown, Reason::Init),
            ..subject("", at as u8)
        });
        world.guard.set_subjects(subjects.collect());
        for at in 0..count {
            let start = Start::From((Unknown, Reason::Init));
            world.book.enter(&name(at), 1, &spec, start, world.start);
            world.guard.note_way(&name(at), Some(2), world.start);
            world.schedule(at, world.plan.first[at]);
        }
        world
    }

    fn schedule(&mut self, at: usize, when: Millis) {
        self.turn[at] += 1;
        self.due.push(Reverse((when, at, self.turn[at])));
    }

    fn time(&self, now: Millis) -> Instant {
        self.start + Duration::from_millis(now)
    }

    /// Lets the world go on until then.
    fn run(mut self, end: Millis) -> Self {
        loop {
            let start = self.due.peek().map(|next| next.0.0);
            let result = self.ends.peek().map(|next| next.0.0);
            let deadline = self.guard.next_deadline().map(|at| (at - self.start).as_millis() as Millis);
            let next = [start, result, deadline].into_iter().flatten().min();
            let Some(now) = next.filter(|now| *now <= end) else { return self };
            if result == Some(now) {
                self.end_probe(now);
            } else if start == Some(now) {
                self.start_probe(now);
            }
            self.look(now);
        }
    }

    fn start_probe(&mut self, now: Millis) {
        let Reverse((_, at, turn)) = self.due.pop().unwrap();
        if turn != self.turn[at] || self.in_flight[at] {
            return;
        }
        self.in_flight[at] = true;
        let broken = |outages: &[Outage]| is_broken(outages, now, now + ROUND_TRIP);
        let seen = match (broken(&self.plan.link), broken(&self.plan.servers[at]), self.plan.refuse) {
            (false, false, _) => Seen::Answer,
            (false, true, true) => Seen::Refusal,
            _ => Seen::Silence,
        };
        let ends = now + if seen == Seen::Silence { TIMEOUT } else { ROUND_TRIP };
        self.ends.push(Reverse((ends, at, now, seen)));
    }

    fn end_probe(&mut self, now: Millis) {
        let Reverse((_, at, started, seen)) = self.ends.pop().unwrap();
        self.in_flight[at] = false;
        let reason = match seen {
            Seen::Answer => Reason::L4Ok,
            Seen::Refusal => Reason::L4Refused,
            Seen::Silence => Reason::L4Timeout,
        };
        let latency = Duration::from_millis(now - started);
        let seen = Observation { reason, detail: Detail::default(), latency };
        let time = self.time(now);
        let recorded = self.book.record(&name(at), 1, seen, time).unwrap();
        let next = (started + recorded.interval.as_millis() as Millis).max(now);
        let next = if std::mem::take(&mut self.hurry[at]) { now } else { next };
        self.schedule(at, next);
    }

    /// What the controller does with news.
    fn look(&mut self, now: Millis) {
        for event in self.book.take_unread() {
            if event.changed {
                self.stories[number(&event.key)].verdicts.push((now, event.health == Up));
            }
            self.guard.note_health(&event);
        }
        let book = &self.book;
        let decision = self.guard.decide(self.start + Duration::from_millis(now), &|key| book.proved(key));
        self.said.extend(kinds(&decision));
        if let Some(watch) = decision.watch {
            self.book.watch(watch);
        }
        for at in decision.probe.iter().map(number) {
            if self.in_flight[at] {
                self.hurry[at] = true;
            } else {
                self.schedule(at, now);
            }
        }
        let mut changed = false;
        for at in 0..self.stories.len() {
            let (health, _) = self.guard.health(&name(at));
            let story = &mut self.stories[at].in_force;
            if health != Unknown && story.last().is_none_or(|(_, is_up)| *is_up != (health == Up)) {
                story.push((now, health == Up));
                changed = true;
            }
        }
        assert!(!changed || decision.changed, "a change of what is in force is told");
    }

    fn downs(&self) -> usize {
        self.stories.iter().flat_map(|story| &story.in_force).filter(|(_, is_up)| !is_up).count()
    }
}

fn three(link: Vec<Outage>, servers: [Vec<Outage>; 3]) -> Plan {
    Plan {
        fall: 3,
        guard: HELD_AT_MOST,
        link,
        servers: servers.into(),
        refuse: false,
        first: vec![10, 80, 150],
    }
}

#[test]
fn a_link_that_is_away_for_twenty_seconds_takes_nobody_down() {
    let plan = three(vec![(10_000, 30_000)], [vec![], vec![], vec![]]);
    let world = World::new(plan.clone()).run(60_000);
    assert_eq!(world.downs(), 0, "{:?}", world.stories);
    let down_verdicts = |story: &Story| story.verdicts.iter().filter(|(_, is_up)| !is_up).count();
    assert!(world.stories.iter().all(|story| down_verdicts(story) == 1), "{:?}", world.stories);
    assert!(
        matches!(world.said[..], [GuardEventKind::Began { .. }, GuardEventKind::Answered { .. }]),
        "{:?}",
        world.said
    );
    // The control: without the guard everybody goes down.
    let control = World::new(Plan { guard: 0, ..plan }).run(60_000);
    assert_eq!((control.downs(), control.said.len()), (3, 0));
}

#[test]
fn who_died_while_the_link_was_away_goes_down_soon_after() {
    let world =
        World::new(three(vec![(10_000, 30_000)], [vec![(15_000, 90_000)], vec![], vec![]])).run(60_000);
    assert_eq!(world.downs(), 1, "{:?}", world.stories);
    let (when, is_up) = *world.stories[0].in_force.last().unwrap();
    // The first answer comes within an interval, and the probe that settles it takes its time-out; one that was under
    // way takes its own before.
    assert!(!is_up && (30_000..=30_000 + INTERVAL + 2 * TIMEOUT).contains(&when), "{when}");
}

#[test]
fn a_link_that_stays_away_takes_all_down_at_once() {
    let world = World::new(three(vec![(10_000, 90_000)], [vec![], vec![], vec![]])).run(80_000);
    let verdicts = world.stories.iter().flat_map(|story| &story.verdicts);
    let first = verdicts.filter(|(_, is_up)| !is_up).map(|(at, _)| *at).min().unwrap();
    for story in &world.stories {
        assert_eq!(story.in_force.last(), Some(&(first + HELD_AT_MOST, false)), "{story:?}");
    }
    assert!(
        matches!(world.said[..], [GuardEventKind::Began { .. }, GuardEventKind::TimedOut { backends: 3 }]),
        "{:?}",
        world.said
    );
}

/// None, or one that goes on for longer than it takes to notice.
fn outages() -> impl Strategy<Value = Vec<Outage>> {
    let one = (5_000..60_000u64, 1_000..40_000u64).prop_map(|(from, length)| vec![(from, from + length)]);
    prop_oneof![Just(vec![]), one]
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let servers = prop::collection::vec((outages(), 0..INTERVAL), 2..8);
    (1..=4u32, servers, any::<bool>(), outages()).prop_map(|(fall, servers, refuse, link)| {
        let (servers, first) = servers.into_iter().unzip();
        Plan { fall, guard: HELD_AT_MOST, link, servers, refuse, first }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn while_one_server_lives_deaths_are_believed_within_a_round_trip(plan in any_plan()) {
        let mut plan = plan;
        plan.link.clear();
        plan.servers[0].clear();
        let world = World::new(plan).run(120_000);
        prop_assert!(world.said.is_empty(), "{:?}", world.said);
        for story in &world.stories {
            prop_assert_eq!(story.verdicts.len(), story.in_force.len(), "{:?}", story);
            for (verdict, in_force) in story.verdicts.iter().zip(&story.in_force) {
                prop_assert_eq!(verdict.1, in_force.1);
                prop_assert!(in_force.0 - verdict.0 <= ROUND_TRIP, "{:?}", story);
            }
        }
    }

    #[test]
    fn a_link_that_comes_back_in_time_takes_nobody_down(plan in any_plan(), length in INTERVAL + 100..25_000) {
        // A shorter one may be seen by some only, and looks like their death.
        let servers = vec![vec![]; plan.servers.len()];
        let link = vec![(10_000, 10_000 + length)];
        let world = World::new(Plan { link, servers, ..plan }).run(90_000);
        prop_assert_eq!(world.downs(), 0, "{:?}", world.stories);
    }

    #[test]
    fn nothing_is_held_for_longer_than_the_time_out(plan in any_plan()) {
        let world = World::new(plan).run(200_000);
        for story in &world.stories {
            // All outages are over by then.
            prop_assert_eq!(story.verdicts.last().map(|last| last.1), Some(true));
            prop_assert_eq!(story.in_force.last().map(|last| last.1), Some(true));
            prop_assert!(story.in_force.len() <= story.verdicts.len());
            for (index, (at, is_up)) in story.verdicts.iter().enumerate() {
                let risen = story.verdicts.get(index + 1).map_or(Millis::MAX, |next| next.0);
                let in_time = |when: Millis| (*at..=at + HELD_AT_MOST).contains(&when);
                let followed = story.in_force.iter().any(|(when, up)| up == is_up && in_time(*when));
                let before = story.in_force.iter().rfind(|(when, _)| when < at);
                let is_so = before.is_some_and(|(_, up)| up == is_up);
                prop_assert!(followed || is_so || in_time(risen), "{at}: {:?}", story);
            }
        }
        let began = world.said.iter().filter(|kind| matches!(kind, GuardEventKind::Began { .. })).count();
        prop_assert!(world.said.len() >= 2 * began, "every beginning has an end: {:?}", world.said);
        prop_assert_eq!(world.guard.next_deadline(), None);
    }
}
