//! Counters over time: rates and real shares over the last few seconds.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use lb_common::backend::BackendStats;

/// Rates are means over so long.
const WINDOW: Duration = Duration::from_secs(5);

/// Readings of the last few seconds, one a second.
#[derive(Debug, Default)]
pub struct Counters {
    readings: VecDeque<(Instant, BTreeMap<u16, BackendStats>)>,
}

/// What changed of a backend over a time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Packets a second.
    pub packets: f64,
    /// Bytes a second.
    pub bytes: f64,
    /// New connections a second.
    pub connections: f64,
}

impl Counters {
    /// Adds a reading and forgets old ones.
    pub fn add(&mut self, now: Instant, reading: BTreeMap<u16, BackendStats>) {
        self.readings.push_back((now, reading));
        while self.readings.len() > 2 && self.readings[1].0 + WINDOW < now {
            self.readings.pop_front();
        }
    }

    /// The rates of a backend; `None` before there are two readings of it.
    pub fn rates(&self, id: u16) -> Option<Rates> {
        let (end, last) = self.readings.back()?;
        let last = last.get(&id)?;
        let (start, first) = self.readings.iter().find_map(|(at, reading)| Some((at, reading.get(&id)?)))?;
        let seconds = end.checked_duration_since(*start)?.as_secs_f64();
        // A backend's counters start anew when its id is given away again.
        let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
        (seconds > 0.0).then(|| Rates {
            packets: rate(first.packets, last.packets),
            bytes: rate(first.bytes, last.bytes),
            connections: rate(first.connections, last.connections),
        })
    }

    /// The last reading of a backend.
    pub fn last(&self, id: u16) -> BackendStats {
        self.readings.back().and_then(|(_, reading)| reading.get(&id).copied()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(packets: u64) -> BTreeMap<u16, BackendStats> {
        BTreeMap::from([(1, BackendStats { packets, ..BackendStats::default() })])
    }

    #[test]
    fn rates_are_means_over_the_window_and_need_two_readings() {
        let start = Instant::now();
        let mut counters = Counters::default();
        counters.add(start, reading(0));
        assert_eq!(counters.rates(1), None);
        for second in 1..=20u32 {
            counters.add(start + Duration::from_secs(1) * second, reading(u64::from(second) * 100));
        }
        assert_eq!(counters.rates(1).map(|r| r.packets), Some(100.0));
        assert!(counters.readings.len() <= 7, "{}", counters.readings.len());
        assert_eq!(counters.rates(2), None);
        assert_eq!(counters.last(1).packets, 2000);
    }
}
