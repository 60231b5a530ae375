//! The table of slots, packets and pins through the real program: where each packet goes, and what pin is there
//! afterwards. The rules are DESIGN section 6's; the expectations are written by hand, cell by cell.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;

use lb_common::{
    flow::{FlowKey, Pin},
    outcome::Outcome,
    service::{SERVICE_REJECT, SERVICE_TRACK_ALWAYS, SERVICE_TRACK_NEVER},
    slot::Slot,
};
use lb_lab::root_or_skip;
use lb_tests::{
    flows::now_ns,
    packet::{Packet, describe},
    prog::{OWN_MAC, XDP_DROP, XDP_TX},
    raw::{Raw, SLOT, flow, mac},
};

/// Backends 1 (current), 2 (previous) and 3 (of the pin) live, 4 is dead.
///
/// A cell is where the packet goes, and the pin behind it. `n`: there is nobody; `x`: the flow is lost, and the client
/// told; `d`: lost, and not told. `-`: no pin; `=`: as it was, when last seen included; `c`: closing.
const TABLE: &str = "
    tracking  slot      packet   none    usable  closing  quiet   dead
    auto      settled   syn      1/=     1/=     1/=      1/=     1/=
    auto      settled   data     1/=     1/=     1/=      1/=     1/=
    auto      settled   fin      1/=     1/=     1/=      1/=     1/=
    auto      settled   rst      1/=     1/=     1/=      1/=     1/=
    auto      settled   udp      1/1     3/3     3/3c     3/3c    1/1
    auto      pinned    syn      1/-     3/3     3/3      1/1     1/1
    auto      pinned    data     1/-     3/3     3/3c     3/3c    x/-
    auto      pinned    fin      1/-     3/3c    3/3c     3/3c    x/-
    auto      pinned    rst      1/-     3/3c    3/3c     3/3c    d/-
    auto      pinned    udp      1/1     3/3     3/3c     3/3c    1/1
    auto      moving    syn      1/1     3/3     3/3      1/1     1/1
    auto      moving    data     2/2     3/3     3/3c     3/3c    x/-
    auto      moving    fin      2/2c    3/3c    3/3c     3/3c    x/-
    auto      moving    rst      2/-     3/3c    3/3c     3/3c    d/-
    auto      moving    udp      1/1     3/3     3/3c     3/3c    1/1

    always    settled   syn      1/1     3/3     3/3      1/1     1/1
    always    settled   data     1/1     3/3     3/3c     3/3c    x/-
    always    settled   fin      1/1c    3/3c    3/3c     3/3c    x/-
    always    settled   rst      1/-     3/3c    3/3c     3/3c    d/-
    always    settled   udp      1/1     3/3     3/3c     3/3c    1/1
    always    pinned    syn      1/1     3/3     3/3      1/1     1/1
    always    pinned    data     1/1     3/3     3/3c     3/3c    x/-
    always    pinned    fin      1/1c    3/3c    3/3c     3/3c    x/-
    always    pinned    rst      1/-     3/3c    3/3c     3/3c    d/-
    always    pinned    udp      1/1     3/3     3/3c     3/3c    1/1
    always    moving    syn      1/1     3/3     3/3      1/1     1/1
    always    moving    data     2/2     3/3     3/3c     3/3c    x/-
    always    moving    fin      2/2c    3/3c    3/3c     3/3c    x/-
    always    moving    rst      2/-     3/3c    3/3c     3/3c    d/-
    always    moving    udp      1/1     3/3     3/3c     3/3c    1/1

    never     settled   any      1/=     1/=     1/=      1/=     1/=
    never     pinned    any      1/=     1/=     1/=      1/=     1/=
    never     moving    any      1/=     1/=     1/=      1/=     1/=

    auto      nobody    any      n/=     n/=     n/=      n/=     n/=
    auto      pinned0   syn      n/=     3/3     3/3      n/=     n/=
    auto      pinned0   data     n/=     3/3     3/3c     3/3c    x/-
    auto      leaving   syn      n/=     3/3     3/3      n/=     n/=
    auto      leaving   data     2/2     3/3     3/3c     3/3c    x/-
    auto      leaving   rst      2/-     3/3c    3/3c     3/3c    d/-
    auto      leaving   udp      n/=     3/3     3/3c     3/3c    n/=
    never     leaving   any      n/=     n/=     n/=      n/=     n/=
";

const SECOND: u64 = 1_000_000_000;

fn slot(name: &str) -> Slot {
    match name {
        "settled" => Slot::settled(1),
        "pinned" => Slot::pinned(1),
        "moving" => Slot::moving(1, 2),
        "nobody" => Slot::EMPTY,
        "pinned0" => Slot::pinned(0),
        "leaving" => Slot::moving(0, 2),
        other => panic!("{other}"),
    }
}

fn pin(name: &str) -> Option<Pin> {
    let (ago, backend, closing) = match name {
        "none" => return None,
        "usable" => (5 * SECOND, 3, 0),
        "closing" => (SECOND / 2, 3, 1),
        "quiet" => (2 * SECOND, 3, 1),
        "dead" => (SECOND / 2, 4, 0),
        other => panic!("{other}"),
    };
    Some(Pin { last_seen_ns: now_ns() - ago, slot: SLOT, backend, closing })
}

fn packet(name: &str, tcp: Packet) -> Packet {
    match name {
        "syn" => tcp.syn(),
        "data" => tcp.ack(1).payload(b"hello"),
        "fin" => tcp.ack(1).fin(),
        "rst" => tcp.rst(),
        other => panic!("{other}"),
    }
}

fn addresses() -> [(IpAddr, IpAddr); 2] {
    [("203.0.113.7", "192.0.2.10"), ("2001:db8:ff::7", "2001:db8::10")]
        .map(|(client, service)| (client.parse().unwrap(), service.parse().unwrap()))
}

/// Backends of [`TABLE`], and a service on both families.
fn program(tracking: &str, more_flags: u8) -> Raw {
    let mut program = Raw::new(64);
    for id in 1..=4 {
        program.put_backend(id, id != 4);
    }
    let flags = match tracking {
        "auto" => 0,
        "always" => SERVICE_TRACK_ALWAYS,
        "never" => SERVICE_TRACK_NEVER,
        other => panic!("{other}"),
    };
    for (_, service) in addresses() {
        program.listen(service, flags | more_flags);
    }
    program
}

struct Case<'a> {
    told: String,
    packet: &'a str,
    pin: &'a str,
    cell: &'a str,
}

/// Sends one packet, and asserts what its cell says.
fn check(program: &mut Raw, case: &Case<'_>, frame: &[u8], key: &FlowKey, reject: bool) {
    let before = pin(case.pin);
    program.set_pin(key, before);
    let start = now_ns();
    let sent = program.send(frame);
    let after = program.pin(key);
    let told = format!("{} {}: {sent:?} {after:?}", case.told, describe(frame));
    let (to, left) = case.cell.split_once('/').unwrap();

    match to {
        "n" => {
            let nobody = match (reject, case.packet) {
                (false, _) => Outcome::DropNoBackend,
                (true, "rst") => Outcome::DropLost,
                (true, _) => Outcome::Rejected,
            };
            assert_eq!(sent.outcome, nobody, "{told}");
        }
        "x" => assert_eq!(sent.outcome, Outcome::Rejected, "{told}"),
        "d" => assert_eq!(sent.outcome, Outcome::DropLost, "{told}"),
        id => {
            let id = id.parse().unwrap();
            assert_eq!((sent.outcome, sent.backend), (Outcome::Forwarded, Some(id)), "{told}");
            assert_eq!(sent.frame, [&mac(id)[..], &OWN_MAC, &frame[12..]].concat(), "{told}");
            let gets_pin = left == "1" && case.packet == "udp";
            assert_eq!(sent.is_connection, case.packet == "syn" || gets_pin, "{told}");
        }
    }
    let is_out = matches!(sent.outcome, Outcome::Forwarded | Outcome::Rejected);
    assert_eq!(sent.action, if is_out { XDP_TX } else { XDP_DROP }, "{told}");

    match left {
        "=" => assert_eq!(after, before, "{told}"),
        "-" => assert_eq!(after, None, "{told}"),
        pinned => {
            let closing = u16::from(pinned.ends_with('c'));
            let backend = pinned.trim_end_matches('c').parse().unwrap();
            let after = after.unwrap_or_else(|| panic!("{told}"));
            assert_eq!((after.backend, after.closing, after.slot), (backend, closing, SLOT), "{told}");
            assert!(after.last_seen_ns >= start && after.last_seen_ns <= now_ns(), "{told}");
        }
    }
    program.set_pin(key, None);
    assert_eq!(program.pins(), [], "{told}: no other pin");
}

#[test]
fn every_slot_packet_and_pin_is_as_in_the_table() {
    if !root_or_skip() {
        return;
    }
    let lines: Vec<Vec<&str>> = TABLE
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|l: &Vec<_>| !l.is_empty())
        .collect();
    let head = &lines[0];
    let mut cases = 0;
    for tracking in ["auto", "always", "never"] {
        for reject in [false, true] {
            let mut program = program(tracking, if reject { SERVICE_REJECT } else { 0 });
            for line in lines.iter().filter(|line| line[0] == tracking) {
                let all = ["syn", "data", "fin", "rst", "udp"];
                for packet_name in all.into_iter().filter(|name| {
                    // A settled slot has nobody for UDP either, but its flows are looked up all the same.
                    line[2] == *name || line[2] == "any" && !(line[1] == "nobody" && *name == "udp")
                }) {
                    program.set_slot(slot(line[1]));
                    for (pin_name, cell) in head[3..].iter().zip(&line[3..]) {
                        for (client, service) in addresses() {
                            let protocol = if packet_name == "udp" { 17 } else { 6 };
                            let (frame, key) = flow((client, 51234), (service, 80), protocol);
                            let frame = if protocol == 6 { packet(packet_name, frame) } else { frame };
                            let case = Case {
                                told: format!("{tracking} {} {packet_name} pin {pin_name}", line[1]),
                                packet: packet_name,
                                pin: pin_name,
                                cell,
                            };
                            check(&mut program, &case, &frame.build(), &key, reject);
                            cases += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{cases} cases");
    assert_eq!(cases, (30 + 15 + 4 + 2 + 4 + 5) * 5 * 2 * 2);
}
