//! The last events, for `GET /api/v1/events`.

use std::{
    collections::VecDeque,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::model::{Event, EventKind, EventsReply};

/// Events kept. About a day of a pool whose backends flap once a minute.
pub const EVENTS_MAX: usize = 2048;

/// The last [`EVENTS_MAX`] events. The controller owns it.
#[derive(Debug)]
pub struct EventLog {
    started: Instant,
    /// Sequence numbers are `last + 1 - len ..= last`.
    events: VecDeque<Event>,
    last: u64,
}

impl EventLog {
    /// An empty log of a controller that starts `now`.
    pub fn new(now: Instant) -> Self {
        Self { started: now, events: VecDeque::new(), last: 0 }
    }

    /// Notes what happened at `now`, by the wall `wall`; the oldest event makes room.
    pub fn push(
        &mut self,
        (now, wall): (Instant, SystemTime),
        kind: EventKind,
        (service, backend): (Option<&str>, Option<&str>),
        text: impl Into<String>,
    ) -> &Event {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.last += 1;
        self.events.push_back(Event {
            seq: self.last,
            time_unix_ms: wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            monotonic_ms: now.saturating_duration_since(self.started).as_millis() as u64,
            kind,
            service: service.map(str::to_owned),
            backend: backend.map(str::to_owned),
            text: text.into(),
        });
        &self.events[self.events.len() - 1]
    }

    /// The events after number `since`; 0 asks for all that are kept.
    pub fn since(&self, since: u64) -> EventsReply {
        let dropped = self.last - self.events.len() as u64;
        // More than there are: the number is a former controller's, whose events are all news to nobody here.
        let since = if since > self.last { 0 } else { since };
        let skip = since.saturating_sub(dropped) as usize;
        EventsReply {
            events: self.events.iter().skip(skip).cloned().collect(),
            next: self.last,
            lost: dropped.saturating_sub(since),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn log_of(count: u64) -> EventLog {
        let now = Instant::now();
        let mut log = EventLog::new(now);
        for i in 1..=count {
            let at = (now + Duration::from_millis(i), UNIX_EPOCH + Duration::from_secs(i));
            log.push(at, EventKind::Health, (Some("web"), Some("s1")), format!("event {i}"));
        }
        log
    }

    #[test]
    fn since_continues_where_the_last_answer_ended() {
        let log = log_of(5);
        let first = log.since(0);
        assert_eq!((first.events.len(), first.next, first.lost), (5, 5, 0));
        assert_eq!(first.events[0].seq, 1);
        assert_eq!((first.events[0].time_unix_ms, first.events[0].monotonic_ms), (1000, 1));
        assert!(log.since(first.next).events.is_empty());
        let last_two: Vec<u64> = log.since(3).events.iter().map(|event| event.seq).collect();
        assert_eq!(last_two, [4, 5]);
    }

    #[test]
    fn a_full_log_drops_the_oldest_and_says_how_many() {
        let log = log_of(EVENTS_MAX as u64 + 10);
        let reply = log.since(4);
        assert_eq!((reply.events.len(), reply.events[0].seq, reply.lost), (EVENTS_MAX, 11, 6));
        assert_eq!(log.since(20).events[0].seq, 21);
        assert_eq!(log.since(20).lost, 0);
    }

    #[test]
    fn a_number_of_a_former_controller_starts_over() {
        let reply = log_of(2).since(100);
        assert_eq!((reply.events.len(), reply.next), (2, 2));
    }
}
