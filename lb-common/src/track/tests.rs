use super::*;
use crate::slot::SlotState;
use std::{vec, vec::Vec};

mod model;

const SEGMENTS: [Segment; 4] = [Segment::Opens, Segment::Continues, Segment::Resets, Segment::Datagram];

fn pins() -> Vec<PinState> {
    let mut pins = vec![PinState::None, PinState::Dead];
    for closing in [false, true] {
        for quiet_ns in [0, REUSE_NS - 1, REUSE_NS, u64::MAX] {
            pins.push(PinState::Usable { closing, quiet_ns });
        }
    }
    pins
}

fn slots() -> [Slot; 7] {
    [
        Slot::settled(1),
        Slot::settled(0),
        Slot::pinned(1),
        Slot::pinned(0),
        Slot::moving(1, 2),
        Slot::moving(2, 1),
        Slot::moving(0, 1),
    ]
}

fn cases() -> impl Iterator<Item = (Slot, Segment, bool, PinState)> {
    slots().into_iter().flat_map(|slot| {
        SEGMENTS.into_iter().flat_map(move |segment| {
            [false, true]
                .into_iter()
                .flat_map(move |always| pins().into_iter().map(move |pin| (slot, segment, always, pin)))
        })
    })
}

fn is_fresh(pin: PinState) -> bool {
    match pin {
        PinState::None | PinState::Dead => true,
        PinState::Usable { closing, quiet_ns } => closing && quiet_ns >= REUSE_NS,
    }
}

/// The table of the design, written anew line by line.
fn table(slot: Slot, segment: Segment, always: bool, pin: PinState) -> Decision {
    let usable = matches!(pin, PinState::Usable { .. });
    let (current, previous) = (slot.current(), slot.previous());
    let pin_unless_nobody =
        |to, refused| if to == 0 { Decision::Send(0) } else { Decision::Pin { to, refused } };
    match (slot.state(), segment) {
        (_, Segment::Datagram) if usable => Decision::Follow,
        (_, Segment::Datagram) => pin_unless_nobody(current, current),
        (_, Segment::Opens) if !is_fresh(pin) => Decision::Follow,
        (SlotState::Moving, Segment::Opens) => pin_unless_nobody(current, previous),
        (_, Segment::Opens) if always => pin_unless_nobody(current, current),
        (_, Segment::Opens) if current == 0 => Decision::Send(0),
        (_, Segment::Opens) => Decision::Repin(current),
        _ if usable => Decision::Follow,
        _ if pin == PinState::Dead => Decision::Lost,
        (SlotState::Moving, Segment::Continues) => Decision::Pin { to: previous, refused: previous },
        (SlotState::Moving, Segment::Resets) => Decision::Send(previous),
        (_, Segment::Continues) if always => pin_unless_nobody(current, current),
        _ => Decision::Send(current),
    }
}

#[test]
fn every_case_is_as_in_the_table() {
    for (slot, segment, always, pin) in cases() {
        assert_eq!(
            decide(slot, segment, always, pin),
            table(slot, segment, always, pin),
            "{slot:?} {segment:?} always {always} {pin:?}"
        );
    }
}

#[test]
fn nobody_is_pinned_to_nobody() {
    for (slot, segment, always, pin) in cases() {
        if let Decision::Pin { to, .. } = decide(slot, segment, always, pin) {
            assert_ne!(to, 0, "{slot:?} {segment:?} {pin:?}");
        }
    }
}

#[test]
fn a_refused_pin_leaves_the_flow_where_its_next_packet_goes() {
    // Without a pin, what follows a refused SYN is a segment of an unknown flow.
    for slot in slots() {
        for always in [false, true] {
            if let Decision::Pin { refused, .. } = decide(slot, Segment::Opens, always, PinState::None) {
                let next = decide(slot, Segment::Resets, always, PinState::None);
                assert_eq!(next, Decision::Send(refused), "{slot:?}");
            }
        }
    }
}
