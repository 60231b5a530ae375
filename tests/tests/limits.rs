//! The limits of the flow table through the real program: who writes to it at all, how fast, and how much of it UDP gets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    flow::{PINS_PER_WINDOW, RATE_WINDOW_NS},
    slot::Slot,
};
use lb_lab::root_or_skip;
use lb_tests::{
    flows::now_ns,
    prog::XDP_TX,
    raw::{Raw, flow, mac},
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

fn program(flows: u32, slot: Slot) -> Raw {
    let mut program = Raw::new(flows);
    for id in [1, 2] {
        program.put_backend(id, true);
    }
    program.listen("192.0.2.10".parse().unwrap(), 0);
    program.set_slot(slot);
    program
}

/// A SYN or a datagram of client number `number`.
struct Opener {
    frame: Vec<u8>,
}

impl Opener {
    fn new(protocol: u8) -> Self {
        let [client, service] = ["10.1.0.0", "192.0.2.10"].map(|a| a.parse::<IpAddr>().unwrap());
        let packet = flow((client, 1000), (service, 80), protocol).0;
        Self { frame: if protocol == 6 { packet.syn() } else { packet }.build() }
    }

    /// The source's address is the number; checksums are the server's business.
    fn of(&mut self, number: u32) -> &[u8] {
        self.frame[26..30].copy_from_slice(&(0x0a00_0000 + number).to_be_bytes());
        &self.frame
    }
}

/// Number of the backend that a frame went to.
fn to(program: &mut Raw, frame: &[u8]) -> u16 {
    let (action, out) = program.run(frame);
    assert_eq!(action, XDP_TX);
    (1..=2).find(|id| out[..6] == mac(*id)).unwrap()
}

#[test]
fn settled_slots_touch_no_flow_table() {
    if !root_or_skip() {
        return;
    }
    let mut program = program(16_384, Slot::settled(1));
    let mut syn = Opener::new(6);
    for number in 0..10_000 {
        assert_eq!(to(&mut program, syn.of(number)), 1);
    }
    assert_eq!((program.pins().len(), program.refused()), (0, 0));
    // The control.
    program.set_slot(Slot::moving(1, 2));
    for number in 0..10_000 {
        assert_eq!(to(&mut program, syn.of(number)), 1);
    }
    assert_eq!((program.pins().len(), program.refused()), (10_000, 0));
}

/// Each CPU has its part of UDP's half.
#[test]
fn udp_gets_half_of_the_table_and_goes_on_without() {
    if !root_or_skip() {
        return;
    }
    let all = sched_getaffinity(None).unwrap();
    let mut program = program(64, Slot::moving(1, 2));
    let mut datagram = Opener::new(17);
    let mut number = 0;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).unwrap();
        for _ in 0..100 {
            number += 1;
            assert_eq!(to(&mut program, datagram.of(number)), 1, "pinned or not");
        }
    }
    let made = program.pins().len();
    let cpus = aya::util::online_cpus().unwrap().len();
    assert!(made > 0 && made <= 32, "{made}");
    if all.count() as usize == cpus {
        assert_eq!(made, 32 / cpus * cpus);
    }
    assert_eq!(program.refused(), u64::from(number) - made as u64);
    // The other half is TCP's.
    let mut syn = Opener::new(6);
    for number in 0..64 {
        let pinned = program.pins().len();
        let is_full = pinned == 64;
        assert_eq!(to(&mut program, syn.of(number)), if is_full { 2 } else { 1 });
    }
    assert_eq!(program.pins().len(), 64);
}

#[test]
fn new_pins_are_limited_for_each_cpu_and_window() {
    if !root_or_skip() {
        return;
    }
    let mut program = program(1 << 19, Slot::moving(1, 2));
    let mut syn = Opener::new(6);
    let mut number = 0;
    // On a busy machine a window may end in between: once more then.
    let counted = (0..4).find_map(|_| {
        let (start, deadline) = (now_ns() / RATE_WINDOW_NS, Instant::now() + Duration::from_secs(3));
        while now_ns() / RATE_WINDOW_NS == start {
            assert!(Instant::now() < deadline, "the window does not end");
            thread::sleep(Duration::from_millis(2));
        }
        let (window, refused) = (now_ns() / RATE_WINDOW_NS, program.refused());
        let mut to_current = 0;
        for _ in 0..PINS_PER_WINDOW + 500 {
            number += 1;
            to_current += u64::from(to(&mut program, syn.of(number)) == 1);
        }
        let in_time = now_ns() / RATE_WINDOW_NS == window;
        in_time.then(|| (to_current, program.refused() - refused))
    });
    assert_eq!(counted, Some((PINS_PER_WINDOW, 500)), "what is refused goes to previous");
}
