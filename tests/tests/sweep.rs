//! The sweeper on the kernel's own flow table: what it deletes, what it sees while others write, what it costs.
//!
//! The figures are measured in release and stand in docs/; a debug build on a shared machine may take five times as long.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    flow::{
        FlowKey, Pin, SWEEP_BATCH, SWEEP_CHANGED, SWEEP_DELETED, SWEEP_GONE, SWEEP_NOT_DONE, SweepItem,
        widened,
    },
    slot::Slot,
};
use lb_lab::{root_or_skip, wait_for};
use lb_userspace::{
    config::spec::{Limits, Tracking},
    dataplane::{
        Dataplane as _,
        bpf::{self, BpfMaps, BpfProgram, SweepHandle, SweepParts, SweepResults},
    },
    flows::{BackendSet, DropReason, RingView, SweepResult, SweepView},
    plan::tables::Op,
};

const SECOND: u64 = 1_000_000_000;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Slots of the one ring, which begins at 0.
const RING: u32 = 65_537;

/// The real maps and program, with one ring.
struct Table {
    maps: BpfMaps,
    _program: BpfProgram,
    parts: SweepParts,
    flows: HashMap<MapData, FlowKey, Pin>,
}

impl Table {
    fn new(flows: u32, slots: u32) -> Self {
        let limits = Limits { services: 16, backends: 64, slots, flows };
        let (maps, mut program) = bpf::load(&limits).unwrap_or_else(|e| panic!("{e}"));
        let parts = program.take_sweep_parts().unwrap();
        assert!(program.take_sweep_parts().is_none(), "there is one sweeper");
        let flows = open(&parts);
        Self { maps, _program: program, parts, flows }
    }

    /// All slots of the ring.
    fn set_slots(&mut self, slot: Slot) {
        self.maps.apply(&Op::WriteRing(0, vec![slot; RING as usize].into())).unwrap();
    }

    fn set_slot(&mut self, index: u32, slot: Slot) {
        self.maps.apply(&Op::WriteSlots(0, vec![(index, slot)])).unwrap();
    }

    fn insert(&mut self, key: FlowKey, pin: Pin) {
        self.flows.insert(key, pin, 0).unwrap();
    }

    fn has(&self, key: &FlowKey) -> bool {
        self.flows.get(key, 0).is_ok()
    }

    fn walk(&mut self, view: SweepView) -> SweepResult {
        self.parts.walk(view, || false).unwrap_or_else(|e| panic!("{e}")).unwrap()
    }
}

/// Another handle of the flow table.
fn open(parts: &SweepParts) -> HashMap<MapData, FlowKey, Pin> {
    let fd = parts.flows().try_clone_to_owned().unwrap();
    HashMap::try_from(Map::HashMap(MapData::from_fd(fd).unwrap())).unwrap()
}

/// One ring at 0; backends 1 and 2 live.
fn view(tracking: Tracking) -> SweepView {
    let ring =
        RingView { base: 0, size: RING, tracking, idle_tcp_ns: 3600 * SECOND, idle_udp_ns: 60 * SECOND };
    let usable = Arc::new(BackendSet::from_iter([1, 2]));
    SweepView { rings: [ring].into(), usable, udp_limit: 1000, needs_walk: true }
}

fn key(number: u32, protocol: u8) -> FlowKey {
    FlowKey::new(widened(number.to_be_bytes()), widened([192, 0, 2, 10]), [0xc0, 0, 0, 80], protocol)
}

/// A pin seen just now.
fn pin(slot: u32, backend: u16) -> Pin {
    Pin { last_seen_ns: now_ns(), slot, backend, closing: 0 }
}

/// Of `CLOCK_MONOTONIC`, in ticks of 10 ms.
fn now_ns() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    // Time asleep counts in it, and no test machine sleeps.
    let (seconds, hundredths) = uptime.split_whitespace().next().unwrap().split_once('.').unwrap();
    seconds.parse::<u64>().unwrap() * SECOND + hundredths.parse::<u64>().unwrap() * (SECOND / 100)
}

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
    assert_eq!((result.in_ring(0), result.slots(0)[1], result.slots(0)[9]), (7, 2, 5));
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
            let is_there = table.has(&key(n, TCP));
            match done {
                SWEEP_CHANGED => assert!(n < USED && is_there, "pin {n} was changed"),
                SWEEP_DELETED => assert!(!is_there, "pin {n} was deleted"),
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
    let Table { maps: _maps, _program, parts, mut flows } = Table::new(4096, RING);
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

/// CPU time of the sweeper's thread, while there is one.
fn sweeper_cpu() -> Option<Duration> {
    fs::read_dir("/proc/self/task").unwrap().find_map(|task| {
        let task = task.ok()?.path();
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let stat = fs::read_to_string(task.join("schedstat")).ok()?;
        let spent = stat.split_whitespace().next()?.parse().ok()?;
        (name.trim() == "sweeper").then(|| Duration::from_nanos(spent))
    })
}

#[test]
fn a_pin_costs_128_bytes_at_most() {
    const PINS: u64 = 1_048_576;
    if !root_or_skip() {
        return;
    }
    let table = Table::new(PINS as u32, RING);
    let fd = table.parts.flows().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let field = |name: &str| -> u64 {
        let line = info.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{info}"));
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    assert_eq!(field("max_entries:"), PINS);
    let memory = field("memlock:");
    println!("a pin: {:.2} bytes, {memory} in all", memory as f64 / PINS as f64);
    assert!(memory > PINS * 56, "memlock is no measure here: {memory} bytes, keys and values alone are more");
    assert!(memory <= PINS * 128, "{memory} bytes for {PINS} pins");
}

/// The most that a thread that wants to wake every millisecond woke too late, until told to stop.
fn lateness(stop: Arc<AtomicBool>) -> thread::JoinHandle<Duration> {
    thread::spawn(move || {
        let mut worst = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            thread::sleep(Duration::from_millis(1));
            worst = worst.max(start.elapsed().saturating_sub(Duration::from_millis(1)));
        }
        worst
    })
}

/// A million pins over a thousand rings, the CPU time of walks, and how late another thread was meanwhile.
struct Million {
    maps: BpfMaps,
    _program: BpfProgram,
    flows: HashMap<MapData, FlowKey, Pin>,
    handle: SweepHandle,
    results: SweepResults,
}

impl Million {
    const PINS: u32 = 1_000_000;
    const RINGS: u32 = 1000;
    const RING: u32 = 4093;

    fn new() -> Self {
        let Table { maps, _program, parts, flows } = Table::new(1_048_576, Self::RINGS * Self::RING);
        let (handle, results) = parts.spawn().unwrap();
        Self { maps, _program, flows, handle, results }
    }

    /// All to backend 2.
    fn fill(&mut self) {
        let now = now_ns();
        for n in 0..Self::PINS {
            let slot = n.wrapping_mul(0x9e37_79b1) % (Self::RINGS * Self::RING);
            let pin = Pin { last_seen_ns: now, slot, backend: 2, closing: 0 };
            self.flows.insert(key(n, TCP), pin, 0).unwrap();
        }
    }

    fn set_slots(&mut self, slot: Slot) {
        let slots = vec![slot; (Self::RINGS * Self::RING) as usize];
        self.maps.apply(&Op::WriteRing(0, slots.into())).unwrap();
    }

    /// The walk, its CPU time, and the lateness.
    fn walk(&mut self, what: &str) -> (SweepResult, Duration, Duration) {
        let stop = Arc::new(AtomicBool::new(false));
        let late = lateness(Arc::clone(&stop));
        let before = sweeper_cpu().unwrap();
        let of_one = view(Tracking::Auto);
        let ring = |n| RingView { base: n * Self::RING, size: Self::RING, ..of_one.rings[0] };
        self.handle.request(SweepView { rings: (0..Self::RINGS).map(ring).collect(), ..of_one });
        let result = wait_for(Duration::from_secs(60), || self.results.try_recv().ok());
        let result = result.expect("an answer").unwrap_or_else(|e| panic!("{e}"));
        let cpu = sweeper_cpu().unwrap().saturating_sub(before);
        stop.store(true, Ordering::Relaxed);
        let late = late.join().unwrap();
        println!(
            "{what}: {} pins, {:?}, {cpu:?} of a core, longest run {:?}, another thread up to {late:?} late",
            result.walked,
            result.finished - result.started,
            result.longest_run
        );
        (result, cpu, late)
    }
}

#[test]
fn a_million_pins_are_swept_in_time_and_nobody_waits() {
    // The bars, met in release, are a fifth: 1 s of one core, 5 ms.
    const LIMIT: Duration = Duration::from_secs(5);
    const LATE: Duration = Duration::from_millis(25);
    if !root_or_skip() {
        return;
    }
    let mut table = Million::new();
    let mut best = [Duration::MAX; 4];
    let mut note = |at: usize, took: Duration| best[at] = best[at].min(took);
    // Others use this machine, too: the best of three counts.
    for _ in 0..3 {
        table.fill();
        table.set_slots(Slot::pinned(1));
        let (kept, cpu, late) = table.walk("all stay");
        let count: u64 = (0..Million::RINGS).map(|n| kept.in_ring(n * Million::RING)).sum();
        assert_eq!(
            (kept.walked, kept.left, count, kept.to_backend(2)),
            (1_000_000, 1_000_000, 1_000_000, 1_000_000)
        );
        assert!(
            kept.finished - kept.started > LATE,
            "on the controller's own thread, all would wait so long"
        );
        note(0, cpu);
        note(2, late);
        table.set_slots(Slot::pinned(2));
        let (gone, cpu, late) = table.walk("all go");
        assert_eq!((gone.walked, gone.dropped(DropReason::Current), gone.left), (1_000_000, 1_000_000, 0));
        note(1, cpu);
        note(2, late);
        note(3, gone.longest_run);
        assert_eq!(table.walk("none there").0.walked, 0);
    }
    let [stay, go, late, run] = best;
    assert!(stay < LIMIT && go < LIMIT, "a walk took {stay:?} where all stay, {go:?} where all go");
    assert!(late < LATE, "another thread was {late:?} late");
    // While it runs its CPU handles no packet.
    assert!(run < Duration::from_micros(5 * 500), "a run took {run:?}");
}
