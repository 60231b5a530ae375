//! Every pin that can be, against the design's words, written down once more as a table.

use super::*;

const SECOND: u64 = 1_000_000_000;
/// Now; pins are younger or older than the limits by one nanosecond.
const NOW: u64 = 10_000 * SECOND;
const IDLE_TCP: u64 = 3_600 * SECOND;
const IDLE_UDP: u64 = 60 * SECOND;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// One line of the table. `None` is "any".
struct Line {
    ring: Option<bool>,
    usable: Option<bool>,
    closing: Option<bool>,
    /// (protocol, unseen for at least so many ns).
    unseen: Option<(Option<u8>, u64)>,
    protocol: Option<u8>,
    tracking: Option<Tracking>,
    /// The states that match.
    slots: &'static [Slot],
    reason: DropReason,
}

const ANY: Line = Line {
    ring: None,
    usable: None,
    closing: None,
    unseen: None,
    protocol: None,
    tracking: None,
    slots: &SLOTS,
    reason: DropReason::NoService,
};

/// The pin is to backend 1.
const SLOTS: [Slot; 8] = [
    Slot::settled(1),
    Slot::settled(2),
    Slot::settled(0),
    Slot::pinned(1),
    Slot::pinned(2),
    Slot::moving(1, 2),
    Slot::moving(2, 1),
    Slot::moving(0, 1),
];

/// DESIGN, section 6, "The sweeper": the first line that matches; none: the pin stays.
const TABLE: [Line; 6] = [
    Line { ring: Some(false), reason: DropReason::NoService, ..ANY },
    Line { usable: Some(false), reason: DropReason::Dead, ..ANY },
    Line { closing: Some(true), unseen: Some((None, 10 * SECOND)), reason: DropReason::Closed, ..ANY },
    Line { unseen: Some((Some(TCP), IDLE_TCP + 1)), reason: DropReason::Idle, ..ANY },
    Line { unseen: Some((Some(UDP), IDLE_UDP + 1)), reason: DropReason::Idle, ..ANY },
    Line {
        protocol: Some(TCP),
        tracking: Some(Tracking::Auto),
        slots: &[Slot::settled(1), Slot::pinned(1)],
        reason: DropReason::Current,
        ..ANY
    },
];

struct Case {
    ring: bool,
    slot: Slot,
    usable: bool,
    protocol: u8,
    closing: bool,
    unseen: u64,
    tracking: Tracking,
}

impl Line {
    fn matches(&self, case: &Case) -> bool {
        self.ring.is_none_or(|ring| ring == case.ring)
            && self.usable.is_none_or(|usable| usable == case.usable)
            && self.closing.is_none_or(|closing| closing == case.closing)
            && self.protocol.is_none_or(|protocol| protocol == case.protocol)
            && self.tracking.is_none_or(|tracking| tracking == case.tracking)
            && self.slots.contains(&case.slot)
            && self.unseen.is_none_or(|(protocol, at_least)| {
                protocol.is_none_or(|protocol| protocol == case.protocol) && case.unseen >= at_least
            })
    }
}

fn every_case() -> impl Iterator<Item = Case> {
    let ages = [0, 10 * SECOND, IDLE_UDP, IDLE_TCP]
        .into_iter()
        .flat_map(|at: u64| [at.saturating_sub(1), at, at + 1].into_iter().filter(|age| *age < NOW));
    let ages: Vec<u64> = ages.collect();
    let bools = [false, true];
    bools.into_iter().flat_map(move |ring| {
        let ages = ages.clone();
        SLOTS.into_iter().flat_map(move |slot| {
            let ages = ages.clone();
            (0..24).flat_map(move |bits| {
                let tracking = [Tracking::Auto, Tracking::Always, Tracking::Never][bits / 8];
                let protocol = if bits & 1 == 0 { TCP } else { UDP };
                let (closing, usable) = (bits & 2 != 0, bits & 4 != 0);
                let case = move |unseen| Case { ring, slot, usable, protocol, closing, unseen, tracking };
                ages.clone().into_iter().map(case)
            })
        })
    })
}

fn fate(case: &Case) -> Option<DropReason> {
    let ring =
        RingView { base: 0, size: 1, tracking: case.tracking, idle_tcp_ns: IDLE_TCP, idle_udp_ns: IDLE_UDP };
    let pin = Pin { last_seen_ns: NOW - case.unseen, slot: 0, backend: 1, closing: u16::from(case.closing) };
    drop_reason(case.ring.then_some(&ring), case.slot, case.usable, case.protocol, &pin, NOW)
}

#[test]
fn every_pin_has_the_fate_of_the_table() {
    let mut seen = [0; DropReason::ALL.len()];
    let mut kept = 0;
    for case in every_case() {
        let wanted = TABLE.iter().find(|line| line.matches(&case)).map(|line| line.reason);
        assert_eq!(
            fate(&case),
            wanted,
            "ring {} {:?} usable {} protocol {} closing {} unseen {} {:?}",
            case.ring,
            case.slot,
            case.usable,
            case.protocol,
            case.closing,
            case.unseen,
            case.tracking
        );
        match wanted {
            Some(reason) => seen[reason as usize] += 1,
            None => kept += 1,
        }
    }
    assert!(seen.iter().all(|n| *n > 0) && kept > 0, "each line was met: {seen:?}, kept {kept}");
}

/// What the packet path makes of a pin must not depend on when the sweeper comes by: where a pin to current is
/// dropped, the flow goes to the same backend without it, at once and when the slot moves afterwards.
#[test]
fn a_pin_that_says_what_its_slot_says_is_not_missed() {
    use lb_common::track::{Decision, PinState, Segment, decide};
    let alive = |id: u16| id != 0;
    for case in every_case().filter(|case| fate(case) == Some(DropReason::Current)) {
        let later = [1, 2, 3].map(|wanted| case.slot.advance(wanted, alive));
        for slot in [case.slot].into_iter().chain(later) {
            let to = match decide(slot, Segment::Continues, false, PinState::None) {
                Decision::Send(to) | Decision::Pin { to, .. } | Decision::Repin(to) => to,
                other => panic!("{other:?}"),
            };
            assert_eq!(to, 1, "{:?} -> {slot:?}", case.slot);
        }
    }
}

#[test]
fn a_pin_seen_after_the_clock_was_read_is_young() {
    let ring = RingView { base: 0, size: 1, tracking: Tracking::Always, idle_tcp_ns: 0, idle_udp_ns: 0 };
    let pin = Pin { last_seen_ns: NOW + 1, slot: 0, backend: 1, closing: 1 };
    assert_eq!(drop_reason(Some(&ring), Slot::pinned(2), true, TCP, &pin, NOW), None);
}

#[test]
fn numbers_and_names_are_in_order() {
    for (number, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, number);
        assert!(DropReason::ALL.iter().filter(|other| other.name() == reason.name()).count() == 1);
    }
}
