use proptest::prelude::*;

use super::*;
use crate::plan::ring::Identity;

const SIZE: u32 = 65_537;
const SECOND: Duration = Duration::from_secs(1);

fn identity(id: u16) -> Identity {
    let [high, low] = id.to_be_bytes();
    Identity { address: [10, 0, high, low].into(), port: None }
}

fn owner(service: &str, id: u16) -> Owner {
    Owner { service: service.into(), identity: identity(id) }
}

fn pool(weights: &[u32]) -> Vec<Member> {
    (1u16..).zip(weights).map(|(id, &weight)| Member { id, identity: identity(id), weight }).collect()
}

/// The pool with these levels; 0 is away.
fn starters(pool: &[Member], tenths: impl Fn(u16) -> u32) -> Vec<Starter> {
    let all = pool.iter().map(|member| Starter { member: *member, tenths: tenths(member.id) });
    all.filter(|starter| starter.tenths > 0).collect()
}

fn counts(ring: &[u16]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for id in ring {
        *counts.entry(*id).or_insert(0) += 1;
    }
    counts
}

/// Slots that differ, and how many of these the new shares ask for; in per cent.
fn moved(before: &[u16], after: &[u16]) -> (f64, f64) {
    let differ = before.iter().zip(after).filter(|(a, b)| a != b).count();
    let old = counts(before);
    let gained = counts(after).into_iter();
    let needed: usize = gained.map(|(id, n)| n.saturating_sub(old.get(&id).copied().unwrap_or(0))).sum();
    let percent = |n: usize| n as f64 * 100.0 / before.len() as f64;
    (percent(differ), percent(needed))
}

#[test]
fn ten_levels_evenly_spread_over_the_time() {
    let since = Instant::now();
    let at = |seconds: u32| Level::at(since, 90 * SECOND, since + seconds * SECOND);
    let next = |seconds: u32| Some(since + seconds * SECOND);
    for (seconds, tenths, then) in [
        (0, 1, next(10)),
        (9, 1, next(10)),
        (10, 2, next(20)),
        (45, 5, next(50)),
        (89, 9, next(90)),
        (90, 10, None),
        (100_000, 10, None),
    ] {
        assert_eq!(at(seconds), Level { tenths, next: then }, "after {seconds} s");
    }
    assert_eq!(Level::at(since, Duration::ZERO, since), Level::WARM);
    // Another `slow_start` in the file counts at once, for the time that is over, too.
    assert_eq!(Level::at(since, 9 * SECOND, since + 8 * SECOND).tenths, 9);
    // A clock that is behind does no harm.
    assert_eq!(Level::at(since + SECOND, 9 * SECOND, since).tenths, 1);
}

#[test]
fn who_is_new_or_back_starts_slowly_and_who_was_there_does_not() {
    let (start, slow) = (Instant::now(), 90 * SECOND);
    let mut starts = SlowStart::default();
    let (old, late) = (owner("web", 1), owner("web", 2));
    let tenths = |starts: &SlowStart, owner: &Owner, now| starts.level(owner, slow, now).tenths;
    starts.note_eligible(&old, slow, true, start);
    starts.note_eligible(&late, slow, false, start + SECOND);
    assert_eq!(tenths(&starts, &old, start + SECOND), 10);
    assert_eq!(tenths(&starts, &late, start + SECOND), 1);
    // To be told again changes nothing.
    starts.note_eligible(&late, slow, false, start + 30 * SECOND);
    starts.note_eligible(&late, slow, true, start + 30 * SECOND);
    assert_eq!(tenths(&starts, &late, start + 31 * SECOND), 4);
    assert_eq!(starts.level(&late, Duration::ZERO, start + 31 * SECOND), Level::WARM);
    // Away and back is a start, for those of the first hour, too.
    for backend in [&old, &late] {
        starts.note_away(backend);
        assert_eq!(tenths(&starts, backend, start + 40 * SECOND), 10);
        starts.note_eligible(backend, slow, false, start + 41 * SECOND);
        assert_eq!(tenths(&starts, backend, start + 41 * SECOND), 1);
    }
    // Out of the file and in again is another backend.
    starts.retain(|owner| *owner == old);
    assert_eq!(tenths(&starts, &late, start + 42 * SECOND), 10);
    starts.note_eligible(&late, slow, false, start + 43 * SECOND);
    assert_eq!(tenths(&starts, &late, start + 43 * SECOND), 1);
    starts.retain(|_| false);
    assert!(starts.latest.is_empty());
}

#[test]
fn who_recovers_at_almost_the_same_time_steps_up_at_the_same_time() {
    let (start, slow) = (Instant::now(), 30 * SECOND);
    let mut starts = SlowStart::default();
    for id in 1..=1000 {
        // A thousand in two seconds: 0.75 s of `slow_start` are together.
        starts.note_eligible(
            &owner("web", id),
            slow,
            false,
            start + Duration::from_millis(2) * u32::from(id),
        );
    }
    starts.note_eligible(&owner("dns", 1), slow, false, start + SECOND);
    let steps = |service| {
        let nexts =
            (1..=1000).filter_map(|id| starts.level(&owner(service, id), slow, start + 2 * SECOND).next);
        nexts.collect::<BTreeSet<_>>()
    };
    assert_eq!(steps("web").len(), 3);
    // Another service has its own.
    assert_eq!(steps("dns"), BTreeSet::from([start + SECOND + slow.mul_f64(1.0 / 9.0)]));
}

/// One backend of `count` comes back and goes through all levels. Answers the slots that move without need, in per cent:
/// in the worst step and in all.
fn ramp(pool: &[Member], ring: impl Fn(u32) -> Vec<u16>, print: bool) -> (f64, f64) {
    let mut before = ring(0);
    let (mut worst, mut sum) = (0.0, 0.0);
    for tenths in 1..=LEVELS {
        let after = ring(tenths);
        let (differ, needed) = moved(&before, &after);
        if print {
            println!(
                "{} backends, level {tenths}: {differ:.3} % move, {needed:.3} % by the shares",
                pool.len()
            );
        }
        (worst, sum) = (f64::max(worst, differ - needed), sum + differ - needed);
        before = after;
    }
    (worst, sum)
}

#[test]
fn each_step_moves_what_it_must_and_little_more() {
    for count in [3, 10, 100] {
        let pool = pool(&vec![100; count]);
        let whole = ring::build(&pool, SIZE);
        let thinned = |tenths| fill(&whole, &starters(&pool, |id| if id == 1 { tenths } else { LEVELS }));
        let (worst, sum) = ramp(&pool, thinned, true);
        println!("{count} backends: without need at most {worst:.3} % in a step, {sum:.3} % in all");
        assert!(worst <= 1.0, "{count}: {worst} %");
        assert!(worst <= 0.25, "what the module's text says: {count}: {worst} %");
        assert_eq!(thinned(LEVELS), whole);
        // The control: the ring of the whole pool by the weights in force, which moves more.
        let rebuilt = |tenths| {
            if tenths == 0 {
                return ring::refill(&whole, &pool[1..]);
            }
            let weigh = |m: &Member| m.weight * if m.id == 1 { tenths } else { LEVELS };
            let weighed: Vec<_> = pool.iter().map(|m| Member { weight: weigh(m), ..*m }).collect();
            ring::build(&weighed, SIZE)
        };
        let (control, control_sum) = ramp(&pool, rebuilt, false);
        println!("{count} backends, rebuilt: at most {control:.3} % in a step, {control_sum:.3} % in all");
        if count > 3 {
            assert!(control > 2.0 * worst && control_sum > 1.1 * sum, "{count}: {control} and {control_sum}");
        }
    }
}

#[test]
fn weights_and_others_that_are_away_change_nothing_of_that() {
    let weights: Vec<u32> = (0..30).map(|n| 100 * (n % 3 + 1)).collect();
    let pool = pool(&weights);
    let whole = ring::build(&pool, SIZE);
    let level = |id, tenths| match id {
        3 => tenths,
        7 | 8 => 0,
        11 => 5,
        _ => LEVELS,
    };
    let thinned = |tenths| fill(&whole, &starters(&pool, |id| level(id, tenths)));
    let (worst, sum) = ramp(&pool, thinned, false);
    println!("30 backends of three weights: at most {worst:.3} % in a step, {sum:.3} % in all");
    assert!(worst <= 1.0, "{worst} %");
}

#[test]
fn alone_or_together_a_level_makes_no_difference() {
    let pool = pool(&[100, 50, 200]);
    let whole = ring::build(&pool, SIZE);
    for tenths in 1..=LEVELS {
        assert_eq!(fill(&whole, &starters(&pool, |_| tenths)), whole);
        let alone = fill(&whole, &starters(&pool, |id| if id == 2 { tenths } else { 0 }));
        assert!(alone.iter().all(|id| *id == 2));
    }
    assert!(fill(&whole, &[]).iter().all(|id| *id == 0));
}

#[test]
fn a_weight_of_one_has_ten_levels_and_an_edit_counts_in_proportion() {
    for weight in [1, 100, 65_535] {
        let pool = pool(&[weight; 3]);
        let whole = ring::build(&pool, SIZE);
        let ring = |tenths| fill(&whole, &starters(&pool, |id| if id == 1 { tenths } else { LEVELS }));
        // 1 of 21, 2 of 22, ...: whatever the weights are.
        for tenths in 1..LEVELS {
            let want = f64::from(SIZE) * f64::from(tenths) / f64::from(2 * LEVELS + tenths);
            let got = counts(&ring(tenths))[&1] as f64;
            assert!((got - want).abs() <= 8.0, "weight {weight}, level {tenths}: {got} of {want}");
        }
    }
    // Its weight is doubled on level 5: 1,000 of 3,000 tenths instead of 500 of 2,500.
    let pool = pool(&[200, 100, 100]);
    let ring = fill(&ring::build(&pool, SIZE), &starters(&pool, |id| if id == 1 { 5 } else { LEVELS }));
    let share = counts(&ring)[&1] as f64 / f64::from(SIZE);
    assert!((share - 1.0 / 3.0).abs() < 0.001, "{share}");
}

/// Cost of a step. Run it alone and optimised:
/// `cargo test --release -p lb-userspace --lib slow_start::tests::cost -- --nocapture`.
#[test]
fn cost_of_a_step() {
    for count in [3, 10, 100] {
        let pool = pool(&vec![100; count]);
        let whole = ring::build(&pool, SIZE);
        for tenths in [1, 5, 9, 10] {
            let eligible = starters(&pool, |id| if id == 1 { tenths } else { LEVELS });
            let times = (0..10).map(|_| {
                let started = Instant::now();
                std::hint::black_box(fill(&whole, &eligible));
                started.elapsed()
            });
            let best = times.min().unwrap();
            println!("{count} backends, level {tenths}: {best:?}");
            assert!(best < Duration::from_millis(50), "{best:?}");
        }
    }
}

proptest! {
    #[test]
    fn levels_only_rise_and_end_in_time(seconds in 1u64..3600, times in prop::collection::vec(0u64..4_000_000, 1..40)) {
        let (since, slow) = (Instant::now(), Duration::from_secs(seconds));
        let mut times = times;
        times.sort_unstable();
        let mut last = 0;
        for millis in times {
            let now = since + Duration::from_millis(millis);
            let level = Level::at(since, slow, now);
            prop_assert!((last.max(1)..=LEVELS).contains(&level.tenths));
            prop_assert_eq!(level.tenths == LEVELS, now >= since + slow);
            last = level.tenths;
            if let Some(next) = level.next {
                prop_assert!(next > now && next <= since + slow);
                prop_assert_eq!(Level::at(since, slow, next).tenths, level.tenths + 1);
                let before = next.checked_sub(Duration::from_nanos(1)).unwrap();
                prop_assert_eq!(Level::at(since, slow, before).tenths, level.tenths);
            } else {
                prop_assert_eq!(level.tenths, LEVELS);
            }
        }
    }

    #[test]
    fn shares_are_those_of_the_weights_in_force(
        weights in prop::collection::vec(1u32..1000, 2..12),
        levels in prop::collection::vec(0u32..=LEVELS, 12),
    ) {
        let pool = pool(&weights);
        let whole = ring::build(&pool, 4093);
        let eligible = starters(&pool, |id| levels[usize::from(id)]);
        let ring = fill(&whole, &eligible);
        let total: u64 = eligible.iter().map(|s| u64::from(s.weight_in_force())).sum();
        let counts = counts(&ring);
        prop_assert_eq!(counts.get(&0).copied().unwrap_or(0), if total == 0 { 4093 } else { 0 });
        for starter in &eligible {
            let want = 4093.0 * f64::from(starter.weight_in_force()) / total as f64;
            let got = counts.get(&starter.member.id).copied().unwrap_or(0) as f64;
            prop_assert!((got - want).abs() <= 0.02 * 4093.0, "{} of {}", got, want);
        }
        // Nothing but identities, weights and levels counts: not the order.
        let reversed: Vec<_> = eligible.iter().rev().copied().collect();
        prop_assert_eq!(fill(&whole, &reversed), ring);
    }
}
