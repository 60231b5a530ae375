use std::{collections::BTreeMap, sync::Arc};

use lb_common::{
    abi::MAX_BACKEND_ID,
    flow::{SWEEP_CHANGED, widened},
};
use proptest::prelude::*;

use super::*;
use crate::{config::spec::Tracking, flows::RingView};

const NOW: u64 = 1_000_000_000_000;

fn view() -> SweepView {
    let ring =
        |base, size, tracking| RingView { base, size, tracking, idle_tcp_ns: NOW / 2, idle_udp_ns: NOW / 2 };
    SweepView {
        rings: [ring(0, 7, Tracking::Auto), ring(7, 5, Tracking::Always), ring(20, 3, Tracking::Auto)].into(),
        usable: Arc::new([1, 2, MAX_BACKEND_ID].into_iter().collect()),
        udp_limit: 100,
        needs_walk: true,
    }
}

fn key(number: u32, protocol: u8) -> FlowKey {
    FlowKey::new(widened(number.to_be_bytes()), widened([192, 0, 2, 10]), [1, 2, 0, 80], protocol)
}

/// Odd slots are on backend 1, even ones move from 2 to 1.
fn slot_at(index: u32) -> Slot {
    if index % 2 == 1 { Slot::pinned(1) } else { Slot::moving(1, 2) }
}

fn any_pin() -> impl Strategy<Value = Pin> {
    let backend = prop_oneof![Just(1u16), Just(2), Just(3), Just(MAX_BACKEND_ID)];
    (0u32..25, backend, 0u16..2, prop_oneof![Just(NOW), Just(NOW / 4), Just(NOW - NOW / 50)])
        .prop_map(|(slot, backend, closing, last_seen_ns)| Pin { last_seen_ns, slot, backend, closing })
}

/// A flow, its pin, and what the kernel says when it is to be deleted.
type Flow = (u8, Pin, u32);

fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let done = prop_oneof![3 => Just(SWEEP_DELETED), 1 => Just(SWEEP_CHANGED), 1 => Just(SWEEP_GONE), 1 => Just(SWEEP_NOT_DONE)];
    prop::collection::vec((prop_oneof![Just(6u8), Just(17)], any_pin(), done), 0..600)
}

/// Walks over `flows` as the sweeper does, with a kernel that answers as each flow says.
fn walk(flows: &[Flow]) -> (SweepResult, Vec<u32>) {
    let started = Instant::now();
    let mut walk = Walk::new(view(), started);
    let mut asked = Vec::new();
    for (number, (protocol, pin, _)) in (0..).zip(flows) {
        walk.look(&key(number, *protocol), pin, slot_at, NOW);
        if walk.is_full() || number as usize == flows.len() - 1 {
            let numbers: Vec<u32> = walk.candidates().iter().map(|item| number_of(&item.key)).collect();
            assert!(numbers.len() <= SWEEP_BATCH as usize);
            walk.done(numbers.iter().map(|n| flows[*n as usize].2), Duration::from_micros(u64::from(number)));
            asked.extend(numbers);
        }
    }
    (walk.finish(started), asked)
}

fn number_of(key: &FlowKey) -> u32 {
    let [.., a, b, c, d] = key.source;
    u32::from_be_bytes([a, b, c, d])
}

proptest! {
    /// Counts against a second way of counting: by what is left in a model of the table.
    #[test]
    fn what_is_counted_is_what_is_left(flows in flows()) {
        let (result, asked) = walk(&flows);
        let mut table: BTreeMap<u32, &Flow> = (0..).zip(&flows).collect();
        let mut deleted = 0;
        for number in asked {
            let done = flows[number as usize].2;
            deleted += u64::from(done == SWEEP_DELETED);
            if done == SWEEP_DELETED || done == SWEEP_GONE {
                prop_assert!(table.remove(&number).is_some(), "asked once");
            }
        }
        prop_assert_eq!(result.walked, flows.len() as u64);
        prop_assert_eq!(result.left, table.len() as u64);
        prop_assert_eq!(result.udp, table.values().filter(|f| f.0 == 17).count() as u64);
        prop_assert_eq!(DropReason::ALL.map(|r| result.dropped(r)).iter().sum::<u64>(), deleted);
        for id in [1, 2, 3, 4, MAX_BACKEND_ID] {
            prop_assert_eq!(result.to_backend(id), table.values().filter(|f| f.1.backend == id).count() as u64);
        }
        for ring in view().rings.iter() {
            let of = |slot: u32| table.values().filter(|f| f.0 == 6 && f.1.slot == slot).count() as u64;
            let all: Vec<u64> = (ring.base..ring.base + ring.size).map(of).collect();
            prop_assert_eq!(result.in_ring(ring.base), all.iter().sum::<u64>());
            let slots = result.slots(ring.base);
            if !slots.is_empty() || result.in_ring(ring.base) > 0 {
                prop_assert_eq!(slots.iter().copied().map(u64::from).collect::<Vec<_>>(), all);
            }
        }
    }
}

#[test]
fn a_pin_whose_deletion_failed_still_holds_its_slot() {
    let pin = Pin { last_seen_ns: NOW, slot: 1, backend: 1, closing: 0 };
    for (done, left) in [(SWEEP_DELETED, 0), (SWEEP_GONE, 0), (SWEEP_CHANGED, 1), (SWEEP_NOT_DONE, 1)] {
        let (result, asked) = walk(&[(6, pin, done)]);
        assert_eq!(asked, [0]);
        assert_eq!((result.left, result.in_ring(0), result.to_backend(1)), (left, left, left), "{done}");
        assert_eq!(result.dropped(DropReason::Current), u64::from(done == SWEEP_DELETED));
    }
}

#[test]
fn an_answer_that_never_came_is_no_deletion() {
    let started = Instant::now();
    let mut walk = Walk::new(view(), started);
    let pin = Pin { last_seen_ns: NOW, slot: 1, backend: 1, closing: 0 };
    walk.look(&key(0, 6), &pin, slot_at, NOW);
    assert_eq!(walk.candidates().len(), 1);
    let result = walk.finish(started);
    assert_eq!((result.left, result.slots(0)), (1, &[0, 1, 0, 0, 0, 0, 0][..]));
}

#[test]
fn a_pin_of_no_ring_counts_for_its_backend_only() {
    let pin = Pin { last_seen_ns: NOW, slot: 13, backend: 1, closing: 0 };
    let (result, _) = walk(&[(6, pin, SWEEP_CHANGED)]);
    assert_eq!((result.left, result.to_backend(1)), (1, 1));
    assert!([0, 7, 20, 13].iter().all(|base| result.in_ring(*base) == 0));
}

#[test]
fn udp_gets_what_is_left_of_its_half() {
    assert_eq!(udp_room(100, 0, 0, 2), 50);
    assert_eq!(udp_room(100, 60, 20, 2), 10);
    assert_eq!(udp_room(100, 99, 0, 2), 0, "rounded down: never beyond the half");
    assert_eq!(udp_room(100, 101, 0, 2), 0);
    assert_eq!(udp_room(100, u64::MAX, u64::MAX, 0), 0);
}
