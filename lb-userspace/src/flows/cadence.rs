//! When the next walk is due.

use std::time::{Duration, Instant};

use super::SweepResult;

/// Walks begin at least so far apart.
const PERIOD: Duration = Duration::from_secs(1);
/// And so many times what the last one took: walking uses a twentieth of one core at most.
const SHARE: u32 = 20;

/// One walk every max(1 s, 20 x what the last one took).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    due: Option<Instant>,
}

impl Cadence {
    /// The first walk is due at once.
    pub fn new(now: Instant) -> Self {
        Self { due: Some(now) }
    }

    /// When to ask for a walk; `None` while one is under way.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A walk was asked for.
    pub fn asked(&mut self) {
        self.due = None;
    }

    /// A walk came to its end.
    pub fn finished(&mut self, result: &SweepResult) {
        let took = result.finished.saturating_duration_since(result.started);
        self.due = Some(result.started + PERIOD.max(took * SHARE));
    }

    /// A walk failed.
    pub fn failed(&mut self, now: Instant) {
        self.due = Some(now + PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Walk, *};
    use crate::flows::{BackendSet, SweepView};
    use std::sync::Arc;

    fn due_after(took: Duration) -> Duration {
        let view = SweepView {
            rings: [].into(),
            usable: Arc::new(BackendSet::from_iter([])),
            udp_limit: 0,
            needs_walk: true,
        };
        let start = Instant::now();
        let mut cadence = Cadence::new(start);
        assert_eq!(cadence.due(), Some(start));
        cadence.asked();
        assert_eq!(cadence.due(), None, "never two at once");
        cadence.finished(&Walk::new(view, start).finish(start + took));
        cadence.due().map(|due| due - start).unwrap_or_default()
    }

    #[test]
    fn walks_take_a_twentieth_of_the_time_at_most() {
        assert_eq!(due_after(Duration::ZERO), Duration::from_secs(1));
        assert_eq!(due_after(Duration::from_millis(50)), Duration::from_secs(1));
        assert_eq!(due_after(Duration::from_millis(500)), Duration::from_secs(10));
        let now = Instant::now();
        let mut cadence = Cadence::new(now);
        cadence.asked();
        cadence.failed(now);
        assert_eq!(cadence.due(), Some(now + Duration::from_secs(1)));
    }
}
