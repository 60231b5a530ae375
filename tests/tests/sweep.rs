//! The sweeper on the kernel's own flow table: what it deletes, and what it sees while others write.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    flow::{Pin, SWEEP_BATCH, SWEEP_CHANGED, SWEEP_DELETED, SWEEP_GONE, SWEEP_NOT_DONE, SweepItem},
    slot::Slot,
};
use lb_lab::{root_or_skip, wait_for};
use lb_tests::flows::{RING, SECOND, TCP, Table, UDP, key, open, pin, sweeper_cpu, view};
use lb_userspace::{
    config::spec::Tracking,
    flows::{DropReason, SweepView},
};

#[test]
fn the_program_deletes_what_has_not_changed_and_nothing_else() {
    if !root_or_skip() {
        return;
    }
    let mut table = Table::new(4096, RING);
    let old = pin(7, 1);
    let changes = [
        Pin { last_seen_ns: old.last_seen_ns + 1, ..old },
        Pin { slot: 8, ..old },
        Pin { backend: 2, ..old },
        Pin { closing: 1, ..old },
    ];
    let mut items: Vec<SweepItem> =
        (0..7).map(|n| SweepItem { key: key(n, TCP), pin: old, done: 99, reserved: 0 }).collect();
    // 0 and 1 as read, 2 to 5 changed, 6 gone.
    for item in &items[..6] {
        table.insert(item.key, old);
    }
    for (item, changed) in items[2..6].iter().zip(changes) {
        table.insert(item.key, changed);
    }
    let (done, _) = table.parts.delete(&items).unwrap();
    assert_eq!(done[..2], [SWEEP_DELETED; 2]);
    assert_eq!(done[2..6], [SWEEP_CHANGED; 4]);
    assert_eq!(done[6..], [SWEEP_GONE]);
    let left: Vec<bool> = items.iter().map(|item| table.has(&item.key)).collect();
    assert_eq!(left, [false, false, true, true, true, true, false]);

    // Items of an earlier run beyond the count are not looked at, nor any beyond the batch.
    table.insert(items[0].key, old);
    table.insert(items[1].key, old);
    assert_eq!(table.parts.delete(&items[..1]).unwrap().0, [SWEEP_DELETED]);
    assert!(table.has(&items[1].key));
    assert_eq!(table.parts.delete(&[]).unwrap().0, [0; 0]);
    assert!(table.has(&items[1].key));
    items = vec![SweepItem { key: key(100, TCP), pin: old, done: SWEEP_NOT_DONE, reserved: 0 }; 300];
    assert_eq!(table.parts.delete(&items).unwrap().0, [SWEEP_GONE; SWEEP_BATCH as usize]);
}

#[test]
fn each_pin_meets_its_fate() {
    if !root_or_skip() {
        return;
    }
    let mut table = Table::new(4096, RING);
    table.set_slots(Slot::pinned(1));
    table.set_slot(9, Slot::moving(1, 2));
    let seen = |ago: u64, pin: Pin| Pin { last_seen_ns: pin.last_seen_ns - ago * SECOND, ..pin };
    let closing = |pin: Pin| Pin { closing: 1, ..pin };
    let cases = [
        ("elsewhere", TCP, pin(1, 2), None),
        ("to current", TCP, pin(1, 1), Some(DropReason::Current)),
        ("to current of a moving slot", TCP, pin(9, 1), None),
        ("to previous", TCP, pin(9, 2), None),
        ("udp to current", UDP, pin(1, 1), None),
        ("dead", TCP, pin(9, 3), Some(DropReason::Dead)),
        ("closing", TCP, closing(seen(5, pin(9, 1))), None),
        ("closed", TCP, closing(seen(11, pin(9, 1))), Some(DropReason::Closed)),
        ("quiet", TCP, seen(61, pin(9, 1)), None),
        ("quiet udp", UDP, seen(50, pin(9, 1)), None),
        ("idle udp", UDP, seen(62, pin(9, 1)), Some(DropReason::Idle)),
        ("no service", TCP, pin(RING, 2), Some(DropReason::NoService)),
        ("no slot", TCP, pin(u32::MAX, 2), Some(DropReason::NoService)),
    ];
    for (number, (_, protocol, pin, _)) in (0..).zip(cases) {
        table.insert(key(number, protocol), pin);
    }
    let result = table.walk(view(Tracking::Auto));
    for (number, (name, protocol, _, reason)) in (0..).zip(cases) {
        assert_eq!(table.has(&key(number, protocol)), reason.is_none(), "{name}");
    }
    for reason in DropReason::ALL {
        let wanted = cases.iter().filter(|case| case.3 == Some(reason)).count() as u64;
        assert_eq!(result.dropped(reason), wanted, "{}", reason.name());
    }
    assert_eq!((result.walked, result.left, result.udp), (13, 7, 2));
    // By slot only TCP's are counted: UDP's keep none from settling.
    assert_eq!((result.in_ring(0), result.slots(0)[1], result.slots(0)[9]), (5, 1, 4));
    assert_eq!((result.to_backend(1), result.to_backend(2), result.to_backend(3)), (5, 2, 0));

    // What `tracking: always` pins stays, though the slot says the same.
    table.insert(key(50, TCP), pin(1, 1));
    assert_eq!(table.walk(view(Tracking::Always)).left, 8);
    assert_eq!(table.walk(view(Tracking::Auto)).left, 7);
    // Two UDP pins of 1,000 are there.
    let room = table.parts.udp_room().unwrap();
    let cpus = aya::util::online_cpus().unwrap().len() as u64;
    assert!(room.iter().all(|room| *room == 998 / cpus), "{room:?}");
    table.walk(SweepView { udp_limit: 1, ..view(Tracking::Auto) });
    assert!(table.parts.udp_room().unwrap().iter().all(|room| *room == 0));
}

/// A slot is settled on the word of a walk: it must not miss a pin that is there, however busy the table is.
#[test]
fn a_walk_sees_every_pin_that_stays_exactly_once() {
    const HELD: u32 = 5000;
    if !root_or_skip() {
        return;
    }
    let mut table = Table::new(16_384, RING);
    table.set_slots(Slot::moving(1, 2));
    for n in 0..HELD {
        table.insert(key(n, TCP), pin(n, 2));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let churned = Arc::new(AtomicU64::new(0));
    // One rewrites the held pins, another makes and deletes others.
    let mut flows = (open(&table.parts), open(&table.parts));
    let stopped = Arc::clone(&stop);
    let refresher = thread::spawn(move || {
        for n in (0..HELD).cycle().take_while(|_| !stopped.load(Ordering::Relaxed)) {
            flows.0.insert(key(n, TCP), pin(n, 2), 0).unwrap();
        }
    });
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&churned));
    let churner = thread::spawn(move || {
        // Of 4,000 others there are 500 at a time.
        for n in (0..4000).cycle().take_while(|_| !stopped.load(Ordering::Relaxed)) {
            flows.1.insert(key(HELD + n, TCP), pin(HELD + n, 1), 0).unwrap();
            let _ = flows.1.remove(&key(HELD + (n + 3500) % 4000, TCP));
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut rounds = 0;
    let mut sizes = BTreeSet::new();
    while rounds < 100 || churned.load(Ordering::Relaxed) < 20_000 {
        assert!(Instant::now() < deadline, "{rounds} walks, {churned:?} pins made");
        let result = table.walk(view(Tracking::Auto));
        sizes.insert(result.walked);
        let slots = &result.slots(0)[..HELD as usize];
        let wrong = slots.iter().position(|pins| *pins != 1);
        assert_eq!(wrong, None, "walk {rounds}: {:?} pins", wrong.map(|at| slots[at]));
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    refresher.join().unwrap();
    churner.join().unwrap();
    assert!(sizes.len() > 3, "others came and went while it walked: {sizes:?}");
    println!("{rounds} walks, {} pins made meanwhile", churned.load(Ordering::Relaxed));
}

/// Pins that are seen again between the reading and the deletion stay.
#[test]
fn a_pin_seen_meanwhile_stays_and_one_at_rest_goes() {
    const USED: u32 = 64;
    if !root_or_skip() {
        return;
    }
    let mut table = Table::new(4096, RING);
    let mut flows = open(&table.parts);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let user = thread::spawn(move || {
        let now = pin(0, 2);
        for n in (0..USED).cycle().take_while(|_| !stopped.load(Ordering::Relaxed)) {
            // BPF_EXIST: as the packet path, which writes to a pin that it found.
            let _ = flows.insert(key(n, TCP), Pin { slot: n, ..now }, 2);
        }
    });
    // As they were read; some are seen by the time that the program comes to them.
    let read = |n| Pin { last_seen_ns: 1, slot: n, backend: 2, closing: 0 };
    let items: Vec<SweepItem> = (0..2 * USED)
        .map(|n| SweepItem { key: key(n, TCP), pin: read(n), done: SWEEP_NOT_DONE, reserved: 0 })
        .collect();
    let (mut changed, mut deleted) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while changed < 100 || deleted < 100 {
        assert!(Instant::now() < deadline, "{changed} pins were seen in between, {deleted} were not");
        for item in &items {
            table.insert(item.key, item.pin);
        }
        let (done, _) = table.parts.delete(&items).unwrap();
        for (n, done) in (0..).zip(done) {
            let is_there = || table.has(&key(n, TCP)).then_some(());
            match done {
                // The user replaces elements, and a look without the bucket's lock may miss one that is just replaced:
                // the sweeper's then takes it for gone and leaves it alone, and so may ours.
                SWEEP_CHANGED | SWEEP_GONE => {
                    let stays = wait_for(Duration::from_secs(1), is_there).is_some();
                    assert!(n < USED && stays, "pin {n} was changed: {done}");
                }
                SWEEP_DELETED => assert!(is_there().is_none(), "pin {n} was deleted"),
                other => panic!("pin {n}: {other}"),
            }
            changed += u32::from(done == SWEEP_CHANGED);
            deleted += u32::from(n < USED && done == SWEEP_DELETED);
        }
    }
    stop.store(true, Ordering::Relaxed);
    user.join().unwrap();
    println!("{changed} pins were seen in between and stayed, {deleted} were deleted in time");
}

#[test]
fn a_thread_walks_when_asked_and_ends_with_its_handle() {
    if !root_or_skip() {
        return;
    }
    let Table { maps: _maps, parts, mut flows } = Table::new(4096, RING);
    let (handle, mut results) = parts.spawn().unwrap();
    let mut ask = |needs_walk| {
        handle.request(SweepView { needs_walk, ..view(Tracking::Always) });
        let answer = wait_for(Duration::from_secs(5), || results.try_recv().ok());
        answer.expect("an answer").unwrap_or_else(|e| panic!("{e}"))
    };
    flows.insert(key(1, TCP), pin(1, 1), 0).unwrap();
    assert_eq!(ask(false).left, 1, "the first walk looks whatever is said");
    assert_eq!(ask(false).left, 1);
    flows.remove(&key(1, TCP)).unwrap();
    assert_eq!(ask(false).left, 0);
    // Nobody makes pins, so that nobody looks: this one stands for what the controller promised not to be there.
    flows.insert(key(1, TCP), pin(1, 1), 0).unwrap();
    assert_eq!(ask(false).walked, 0);
    assert_eq!(ask(true).left, 1);
    assert_eq!(ask(false).left, 1);
    assert!(sweeper_cpu().is_some());
    drop(handle);
    assert_eq!(sweeper_cpu(), None, "the thread is gone");
    assert!(results.blocking_recv().is_none());
}
