//! When probes run: pure arithmetic on durations, and the randomness that keeps probes apart.

use std::time::Duration;

use crate::config::spec::{Check, HealthSpec};

/// The shortest interval that a wavering backend leads to.
const FAST_FLOOR: Duration = Duration::from_millis(100);
/// First probes of a few backends are spread over this: it delays readiness.
const FIRST_SPREAD: Duration = Duration::from_millis(200);
/// And of many over this for each, so that no more than 500 start in a second.
const FIRST_SPREAD_EACH: Duration = Duration::from_millis(2);
/// Probes at long intervals start on multiples of this.
const TICK: Duration = Duration::from_millis(10);
/// Every interval is stretched or shrunk by up to this share of itself.
const JITTER: f64 = 0.1;

/// The interval of a backend that is changing its mind: a quarter, at least 100 ms, never above `interval`.
pub fn fast_interval(interval: Duration) -> Duration {
    (interval / 4).max(FAST_FLOOR).min(interval)
}

/// `interval` +- 10 %, evenly distributed.
pub fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

/// Moves a start, counted from any common origin, to the nearest tick if that is a small part of `interval`: probes
/// that are due at almost the same time share one wake-up.
pub fn on_tick(due: Duration, interval: Duration) -> Duration {
    if interval < TICK * 50 {
        return due;
    }
    let ticks = (due + TICK / 2).as_nanos() / TICK.as_nanos();
    u32::try_from(ticks).map_or(due, |ticks| TICK * ticks)
}

/// When the first probe of backend `index` of `count` new ones starts, counted from now.
///
/// Each has a random place in its own share of the window, so a thousand never start together.
pub fn first_offset(interval: Duration, index: usize, count: usize) -> Duration {
    let many = u32::try_from(count).map_or(interval, |count| FIRST_SPREAD_EACH.saturating_mul(count));
    let window = interval.min(FIRST_SPREAD.max(many));
    window.mul_f64((index as f64 + fastrand::f64()) / count.max(1) as f64)
}

/// How long a backend that fails for good is taken for up: the best and the worst case.
///
/// Best: it refuses connections, from just before a probe. Worst: it falls silent just after a probe, and jitter is
/// against us. Waiting for a free probe permit and applying the verdict come on top. With [`Check::None`] nothing is
/// ever detected: both are [`Duration::MAX`].
pub fn detection_time(spec: &HealthSpec) -> (Duration, Duration) {
    if spec.check == Check::None {
        return (Duration::MAX, Duration::MAX);
    }
    let further = spec.fall.max(1) - 1;
    let fast = fast_interval(spec.interval);
    let slowest = |interval: Duration| interval.saturating_add(interval / 10);
    let best = fast.saturating_sub(fast / 10).saturating_mul(further);
    let worst = slowest(spec.interval)
        .saturating_add(slowest(fast).max(spec.timeout).saturating_mul(further))
        .saturating_add(spec.timeout);
    (best, worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn spec(interval: u64, timeout: u64, fall: u32) -> HealthSpec {
        HealthSpec {
            check: Check::Tcp,
            port: 80,
            interval: ms(interval),
            timeout: ms(timeout),
            fall,
            rise: 2,
        }
    }

    #[test]
    fn the_fast_interval_is_a_quarter_within_limits() {
        for (interval, fast) in [(2000, 500), (400, 100), (399, 100), (200, 100), (100, 100), (60, 60)] {
            assert_eq!(fast_interval(ms(interval)), ms(fast), "{interval}");
        }
    }

    #[test]
    fn jitter_stays_within_a_tenth_and_is_no_constant() {
        let draws: Vec<_> = (0..1000).map(|_| jittered(ms(1000))).collect();
        assert!(draws.iter().all(|d| (ms(900)..=ms(1100)).contains(d)));
        let (low, high) = (draws.iter().min().unwrap(), draws.iter().max().unwrap());
        assert!(high.abs_diff(*low) > ms(150), "{low:?} to {high:?}");
    }

    #[test]
    fn long_intervals_keep_to_the_tick_and_short_ones_are_exact() {
        for (due, interval, moved) in
            [(1234, 2000, 1230), (1235, 2000, 1240), (1239, 500, 1240), (1239, 499, 1239), (0, 2000, 0)]
        {
            assert_eq!(on_tick(ms(due), ms(interval)), ms(moved), "{due} {interval}");
        }
        // Past what 32 bits of ticks hold (497 days), starts are exact.
        let late = Duration::from_hours(500 * 24) + ms(1);
        assert_eq!(on_tick(late, ms(2000)), late);
    }

    #[test]
    fn first_probes_are_few_and_soon_or_many_and_spread() {
        for (interval, count, window) in
            [(2000, 3, 200), (100, 3, 100), (2000, 1000, 2000), (2000, 500, 1000)]
        {
            let offsets: Vec<_> = (0..count).map(|i| first_offset(ms(interval), i, count)).collect();
            assert!(offsets.iter().all(|o| *o <= ms(window)), "{interval} {count}");
            // Ten bins: none may hold more than twice the mean (fault B6).
            if count >= 100 {
                let mut bins = [0usize; 10];
                for offset in &offsets {
                    bins[(offset.as_secs_f64() / ms(window).as_secs_f64() * 10.0).min(9.0) as usize] += 1;
                }
                assert!(bins.iter().all(|n| *n <= count / 5), "{bins:?}");
            }
        }
        assert!(first_offset(ms(50), 0, 0) <= ms(50));
    }

    #[test]
    fn detection_times_are_those_of_the_schedule() {
        // 2 s, 1 s, fall 3: refused at best after two fast rounds; silent at worst 2.2 + 2 x 1 + 1.
        assert_eq!(detection_time(&spec(2000, 1000, 3)), (ms(900), ms(5200)));
        assert_eq!(detection_time(&spec(200, 200, 2)), (ms(90), ms(620)));
        assert_eq!(detection_time(&spec(2000, 100, 1)), (ms(0), ms(2300)));
        assert!(detection_time(&spec(u64::MAX, u64::MAX, u32::MAX)).1 > ms(1 << 50));
        let none = HealthSpec { check: Check::None, port: 0, ..spec(2000, 1000, 3) };
        assert_eq!(detection_time(&none).1, Duration::MAX);
    }
}
