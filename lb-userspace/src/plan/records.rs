//! What a restarted controller has to know of each backend, to and from the map `RECORDS`.

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::record::{
    HEALTH_DOWN, HEALTH_UNKNOWN, HEALTH_UP, NAME_LEN, Record, STATE_ACTIVE, STATE_DISABLED, STATE_DRAIN,
    STATE_NONE,
};

use crate::{
    config::spec::{AdminState, BackendSpec, ServiceSpec},
    health::{Health, Reason},
};

/// One moment on both clocks: ours, and `CLOCK_MONOTONIC` as the kernel's programs read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The moment.
    pub instant: Instant,
    /// The same moment, ns.
    pub monotonic_ns: u64,
}

impl Clock {
    fn to_ns(self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.instant).as_nanos() as u64;
        let before = self.instant.saturating_duration_since(at).as_nanos() as u64;
        (self.monotonic_ns + after).saturating_sub(before).max(1)
    }

    fn to_instant(self, ns: u64) -> Instant {
        let after = Duration::from_nanos(ns.saturating_sub(self.monotonic_ns));
        let before = Duration::from_nanos(self.monotonic_ns.saturating_sub(ns));
        (self.instant + after).checked_sub(before).unwrap_or(self.instant)
    }
}

/// An operator's word about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Word {
    /// What was asked for.
    pub state: AdminState,
    /// What the file said then. When it says something else, the file wins.
    pub file: AdminState,
}

/// What is noted of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The last verdict.
    pub health: Health,
    /// What it rests on.
    pub cause: Reason,
    /// The operator's word, if there is one.
    pub word: Option<Word>,
    /// When its drain began, if it drains.
    pub drain_since: Option<Instant>,
    /// The file no longer names it.
    pub leaving: bool,
}

/// A backend as another run of the controller noted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Name of its service.
    pub service: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its port, if it has its own.
    pub port: Option<u16>,
    /// The rest.
    pub note: Note,
}

/// The record of a backend.
pub fn record(service: &ServiceSpec, backend: &BackendSpec, note: &Note, clock: Clock) -> Record {
    let mut record = Record {
        drain_since_ns: note.drain_since.map_or(0, |since| clock.to_ns(since)),
        port: backend.port.unwrap_or(0),
        health: match note.health {
            Health::Unknown => HEALTH_UNKNOWN,
            Health::Up => HEALTH_UP,
            Health::Down => HEALTH_DOWN,
        },
        operator: note.word.map_or(STATE_NONE, |word| state(word.state)),
        file: note.word.map_or(STATE_NONE, |word| state(word.file)),
        leaving: note.leaving.into(),
        ..Record::NONE
    };
    store(&mut record.service, &service.name);
    store(&mut record.name, &backend.name);
    store(&mut record.cause, &note.cause.to_string());
    record
}

/// What a record says; `None` if it is nobody's.
pub fn noted(record: &Record, clock: Clock) -> Option<Noted> {
    let word = Option::zip(admin_state(record.operator), admin_state(record.file));
    let note = Note {
        health: match record.health {
            HEALTH_UP => Health::Up,
            HEALTH_DOWN => Health::Down,
            _ => Health::Unknown,
        },
        cause: load(&record.cause).and_then(|text| Reason::from_str(text).ok()).unwrap_or_default(),
        word: word.map(|(state, file)| Word { state, file }),
        drain_since: (record.drain_since_ns != 0).then(|| clock.to_instant(record.drain_since_ns)),
        leaving: record.leaving != 0,
    };
    Some(Noted { service: service(record)?, name: load(&record.name)?.into(), port: port(record), note })
}

/// The service that a record names.
pub fn service(record: &Record) -> Option<Arc<str>> {
    load(&record.service).map(Into::into)
}

/// The port in a record.
pub fn port(record: &Record) -> Option<u16> {
    (record.port != 0).then_some(record.port)
}

fn state(state: AdminState) -> u8 {
    match state {
        AdminState::Active => STATE_ACTIVE,
        AdminState::Drain => STATE_DRAIN,
        AdminState::Disabled => STATE_DISABLED,
    }
}

fn admin_state(number: u8) -> Option<AdminState> {
    match number {
        STATE_ACTIVE => Some(AdminState::Active),
        STATE_DRAIN => Some(AdminState::Drain),
        STATE_DISABLED => Some(AdminState::Disabled),
        _ => None,
    }
}

/// Writes a text with zeros behind it. Names are never longer than 63 bytes, and an address of 45 may stand for one.
fn store<const N: usize>(field: &mut [u8; N], text: &str) {
    let len = text.len().min(N - 1);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
}

fn load<const N: usize>(field: &[u8; N]) -> Option<&str> {
    let len = field.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&field[..len]).ok().filter(|text| !text.is_empty())
}

const _: () = assert!(NAME_LEN == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn what_is_noted_is_read_again() {
        let text = "interfaces: [eth0]\nservices:\n- name: web\n  listen: ['192.0.2.10:80/tcp']\n  forward: l2\n  \
                    backends: [{name: s1, address: 10.0.0.11}]\n";
        let spec = parse(text, std::path::Path::new("test.yaml")).expect("valid").spec;
        let clock = Clock { instant: Instant::now(), monotonic_ns: 5_000_000_000_000 };
        let states = [AdminState::Active, AdminState::Drain, AdminState::Disabled];
        let words = states.iter().flat_map(|state| states.map(|file| Some(Word { state: *state, file })));
        for word in words.chain([None]) {
            for (health, cause) in [
                (Health::Unknown, Reason::Init),
                (Health::Up, Reason::L7Ok(200)),
                (Health::Down, Reason::L7Status(503)),
                (Health::Down, Reason::L4Timeout),
            ] {
                let hour = Duration::from_hours(1);
                for drain_since in
                    [None, Some(clock.instant), clock.instant.checked_sub(hour), Some(clock.instant + hour)]
                {
                    let note = Note { health, cause, word, drain_since, leaving: drain_since.is_some() };
                    let service = &spec.services[0];
                    let record = record(service, &service.backends[0], &note, clock);
                    let noted = noted(&record, clock).expect("somebody's");
                    assert_eq!((&*noted.service, &*noted.name, noted.port), ("web", "s1", None));
                    assert_eq!(noted.note, note);
                }
            }
        }
        assert_eq!(noted(&Record::NONE, clock), None);
    }
}
