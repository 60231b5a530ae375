//! When to ask the kernel for a neighbour. Pure: time is a parameter.
//!
//! XDP traffic does not refresh neighbours: to the kernel they look unused. So whoever depends on them has to ask.
//! Asking is `RTM_NEWNEIGH` with `NTF_USE`, which does what a packet through the stack would do. `NTF_MANAGED` (Linux
//! 5.16) would leave the asking to the kernel, but such an entry outlives its asker: tried on 6.18, it stayed after the
//! process was gone, so each crash and each backend that leaves would leave one behind for ever. Its pace is a host-wide
//! setting, too, where a neighbour that failed should be asked at ours.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::model::{NeighbourKey, NeighbourState};

/// Back-off for neighbours without an answer: doubles from first to last. While the kernel is still asking (1 s
/// apart, three times) another request changes nothing.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// The kernel takes 5 s (`delay_first_probe_time`) to probe a stale neighbour that is used, without an event when it
/// starts to wait; so this has to be longer.
const STALE_RETRY: Duration = Duration::from_secs(15);

/// What was asked, and when to ask again.
#[derive(Debug, Default)]
pub struct Asks {
    open: BTreeMap<NeighbourKey, Ask>,
}

#[derive(Debug, Clone, Copy)]
struct Ask {
    stale: bool,
    retry: Duration,
    next: Instant,
}

impl Asks {
    /// Returns the neighbours to ask now, and takes them as asked. `neighbours` are all that matter, with their states;
    /// others are forgotten.
    pub fn due(
        &mut self,
        neighbours: &BTreeMap<NeighbourKey, NeighbourState>,
        now: Instant,
    ) -> Vec<NeighbourKey> {
        let mut open = BTreeMap::new();
        let mut due = Vec::new();
        for (&key, state) in neighbours {
            let stale = match state {
                NeighbourState::Confirmed | NeighbourState::Fixed => continue,
                NeighbourState::Stale => true,
                NeighbourState::Missing | NeighbourState::Failed => false,
            };
            let last = self.open.get(&key).filter(|ask| ask.stale == stale);
            let ask = match last {
                Some(ask) if now < ask.next => *ask,
                _ => {
                    due.push(key);
                    let retry = if stale { STALE_RETRY } else { next_retry(last.map(|ask| ask.retry)) };
                    Ask { stale, retry, next: now + retry }
                }
            };
            open.insert(key, ask);
        }
        self.open = open;
        due
    }

    /// When `due` has to be called again at the latest; `None`: not before something changes.
    pub fn next(&self) -> Option<Instant> {
        self.open.values().map(|ask| ask.next).min()
    }
}

fn next_retry(last: Option<Duration>) -> Duration {
    last.map_or(FIRST_RETRY, |retry| (retry * 2).min(LAST_RETRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NeighbourKey {
        NeighbourKey { ifindex: 2, address: "10.0.0.1".parse().expect("an address") }
    }

    /// Times, in ms from the start, at which a neighbour in `state` is asked during `seconds`.
    fn asked(asks: &mut Asks, start: Instant, state: NeighbourState, seconds: u64) -> Vec<u128> {
        let neighbours = BTreeMap::from([(key(), state)]);
        let mut now = start;
        let mut times = Vec::new();
        while now < start + Duration::from_secs(seconds) {
            if !asks.due(&neighbours, now).is_empty() {
                times.push((now - start).as_millis());
            }
            now = asks.next().unwrap_or(now + Duration::from_secs(1)).max(now + Duration::from_millis(1));
        }
        times
    }

    #[test]
    fn missing_is_asked_at_once_then_with_back_off_up_to_two_seconds() {
        let times = asked(&mut Asks::default(), Instant::now(), NeighbourState::Missing, 8);
        assert_eq!(times, [0, 250, 750, 1750, 3750, 5750, 7750]);
    }

    #[test]
    fn stale_is_asked_at_once_and_each_fifteen_seconds() {
        let times = asked(&mut Asks::default(), Instant::now(), NeighbourState::Stale, 40);
        assert_eq!(times, [0, 15_000, 30_000]);
    }

    #[test]
    fn confirmed_and_fixed_are_left_alone() {
        for state in [NeighbourState::Confirmed, NeighbourState::Fixed] {
            assert!(asked(&mut Asks::default(), Instant::now(), state, 40).is_empty(), "{state:?}");
        }
    }

    #[test]
    fn a_failure_goes_on_with_the_back_off_of_the_missing_one() {
        let (mut asks, start) = (Asks::default(), Instant::now());
        asked(&mut asks, start, NeighbourState::Missing, 3);
        let later = start + Duration::from_secs(3);
        assert_eq!(asked(&mut asks, later, NeighbourState::Failed, 4), [750, 2750]);
    }

    #[test]
    fn flushed_after_stale_is_asked_at_once() {
        let (mut asks, start) = (Asks::default(), Instant::now());
        assert_eq!(asks.due(&BTreeMap::from([(key(), NeighbourState::Stale)]), start), [key()]);
        assert_eq!(asks.due(&BTreeMap::from([(key(), NeighbourState::Missing)]), start), [key()]);
    }

    #[test]
    fn an_answer_or_a_link_that_went_down_resets_the_back_off() {
        let (mut asks, start) = (Asks::default(), Instant::now());
        let missing = BTreeMap::from([(key(), NeighbourState::Missing)]);
        for reset in [BTreeMap::new(), BTreeMap::from([(key(), NeighbourState::Confirmed)])] {
            assert_eq!(asks.due(&missing, start), [key()]);
            assert!(asks.due(&missing, start).is_empty());
            assert!(asks.due(&reset, start).is_empty());
            assert_eq!(asks.next(), None);
        }
        assert_eq!(asks.due(&missing, start), [key()]);
    }
}
