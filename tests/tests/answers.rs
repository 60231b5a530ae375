//! The dead answer through the real program: exact bytes, put together by the independent builder.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    flow::{ANSWERS_PER_WINDOW, RATE_WINDOW_NS},
    outcome::Outcome,
    service::SERVICE_REJECT,
    slot::Slot,
};
use lb_lab::root_or_skip;
use lb_tests::{
    flows::now_ns,
    packet::{DESTINATION_MAC, Extension, Packet, SOURCE_MAC, Tcp, describe, verify},
    prog::{XDP_DROP, XDP_TX},
    raw::Raw,
};

const CLIENT_PORT: u16 = 51234;
const PORT: u16 = 80;

fn addresses() -> [(IpAddr, IpAddr); 2] {
    [("203.0.113.7", "192.0.2.10"), ("2001:db8:ff::7", "2001:db8::10")]
        .map(|(client, service)| (client.parse().unwrap(), service.parse().unwrap()))
}

/// A service of both families that has nobody, and says so.
fn program() -> Raw {
    let mut program = Raw::new(64);
    for (_, service) in addresses() {
        program.listen(service, SERVICE_REJECT);
    }
    program.set_slot(Slot::EMPTY);
    program
}

/// The answer's layers up to IP: back the way that the packet came, through the same VLANs.
fn back((client, service): (IpAddr, IpAddr), tags: usize) -> Packet {
    let packet = Packet::ip(service, client).macs(DESTINATION_MAC, SOURCE_MAC);
    let packet = if client.is_ipv4() { packet.with_ipv4(|ip| ip.dont_fragment = true) } else { packet };
    tagged(packet, tags)
}

fn tagged(packet: Packet, tags: usize) -> Packet {
    (0..tags).fold(packet, |packet, tag| packet.vlan(5 + tag as u16))
}

fn reset(addresses: (IpAddr, IpAddr), tags: usize) -> Packet {
    back(addresses, tags).tcp(PORT, CLIENT_PORT).rst().with_tcp(|tcp| tcp.window = 0)
}

fn assert_answered(program: &mut Raw, frame: &[u8], answer: &Packet) {
    let sent = program.send(frame);
    let answer = answer.build();
    let told = format!(
        "{} was answered with {}, not with {}",
        describe(frame),
        describe(&sent.frame),
        describe(&answer)
    );
    assert_eq!((sent.outcome, sent.action), (Outcome::Rejected, XDP_TX), "{told}");
    assert_eq!(sent.frame, answer, "{told}");
    assert_eq!(verify(&sent.frame), Ok(()), "{told}");
}

fn assert_not_answered(program: &mut Raw, frame: &[u8]) {
    let sent = program.send(frame);
    assert_eq!((sent.outcome, sent.action), (Outcome::DropLost, XDP_DROP), "{}", describe(frame));
    assert_eq!(sent.frame, frame, "{}", describe(frame));
}

/// RFC 9293, section 3.10.7.1: with ACK, the RST has its number as sequence; without, sequence 0, and it acknowledges
/// all that the segment takes up.
#[test]
fn a_segment_gets_the_reset_that_its_sender_accepts() {
    if !root_or_skip() {
        return;
    }
    let mut program = program();
    let flags = [0, Tcp::SYN, Tcp::FIN, Tcp::PSH, Tcp::ACK, Tcp::SYN | Tcp::ACK, Tcp::FIN | Tcp::ACK];
    for (who, tags) in addresses().into_iter().flat_map(|who| (0..3).map(move |tags| (who, tags))) {
        for (flags, payload) in flags.into_iter().flat_map(|flags| [0, 1, 7, 1000].map(|len| (flags, len))) {
            for options in [0, 4, 40] {
                let (seq, ack) = (0xffff_fffd, 0x8765_4321);
                let segment = tagged(Packet::ip(who.0, who.1), tags)
                    .tcp(CLIENT_PORT, PORT)
                    .with_tcp(|tcp| {
                        (tcp.flags, tcp.seq, tcp.ack, tcp.options) = (flags, seq, ack, vec![1; options]);
                    })
                    .payload(&vec![9; payload]);
                let answer = if flags & Tcp::ACK != 0 {
                    reset(who, tags).seq(ack)
                } else {
                    let takes = u32::from(flags & Tcp::SYN != 0) + u32::from(flags & Tcp::FIN != 0);
                    reset(who, tags).seq(0).ack(seq.wrapping_add(payload as u32 + takes))
                };
                assert_answered(&mut program, &segment.build(), &answer);
                // As it comes from a wire: filled up to the least frame.
                let frame = segment.build();
                let short = 60usize.saturating_sub(frame.len());
                assert_answered(&mut program, &segment.padding(short).build(), &answer);
            }
        }
    }
}

/// RFC 792 and RFC 4443, section 3.1: port unreachable, quoting the packet.
#[test]
fn a_datagram_gets_a_port_unreachable() {
    if !root_or_skip() {
        return;
    }
    let mut program = program();
    for (who, tags) in addresses().into_iter().flat_map(|who| (0..3).map(move |tags| (who, tags))) {
        for payload in [0, 1, 8, 18, 1000] {
            let datagram = tagged(Packet::ip(who.0, who.1), tags)
                .udp(CLIENT_PORT, PORT)
                .tos(0xb8)
                .ttl(3)
                .payload(&vec![0x5a; payload]);
            let quoted = datagram.build_ip();
            let answer = if who.0.is_ipv4() {
                back(who, tags).icmp(3, 3, [0; 4]).payload(&quoted[..28])
            } else {
                back(who, tags).icmp(1, 4, [0; 4]).payload(&quoted[..48])
            };
            let frame = datagram.build();
            assert_answered(&mut program, &frame, &answer);
            let short = 60usize.saturating_sub(frame.len());
            assert_answered(&mut program, &datagram.padding(short).build(), &answer);
        }
    }
}

#[test]
fn headers_of_other_lengths_are_answered_where_the_answer_says_which_flow() {
    if !root_or_skip() {
        return;
    }
    let mut program = program();
    let [four, six] = addresses();
    for options in [1, 8, 40] {
        let ip = || Packet::ip(four.0, four.1).with_ipv4(|ip| ip.options = vec![1; options]);
        let segment = ip().tcp(CLIENT_PORT, PORT).seq(7).syn().payload(b"early").build();
        assert_answered(&mut program, &segment, &reset(four, 0).ack(7 + 1 + 5));
        // The quoted bytes would end before the ports.
        assert_not_answered(&mut program, &ip().udp(CLIENT_PORT, PORT).payload(b"query").build());
    }
    let ip = || Packet::ip(six.0, six.1).extension(Extension::HopByHop(vec![]));
    let segment = ip().tcp(CLIENT_PORT, PORT).seq(7).syn().build();
    assert_answered(&mut program, &segment, &reset(six, 0).ack(8));
    assert_not_answered(&mut program, &ip().udp(CLIENT_PORT, PORT).build());
}

#[test]
fn a_reset_is_never_answered() {
    if !root_or_skip() {
        return;
    }
    let mut program = program();
    for (client, service) in addresses() {
        let segment = Packet::ip(client, service).tcp(CLIENT_PORT, PORT).rst();
        assert_not_answered(&mut program, &segment.build());
        assert_not_answered(&mut program, &segment.ack(7).build());
    }
}

/// Short ones, and those that do not fit into one page: their parts are cut off.
#[test]
fn frames_of_every_length_are_answered() {
    if !root_or_skip() {
        return;
    }
    let mut program = program();
    let lengths: Vec<usize> = (0..64).chain((64..4000).step_by(97)).chain([5000, 8946, 20_000]).collect();
    for who in addresses() {
        for len in &lengths {
            let data = vec![3; *len];
            let segment =
                Packet::ip(who.0, who.1).tcp(CLIENT_PORT, PORT).seq(1).ack(9).payload(&data).build();
            assert_answered(&mut program, &segment, &reset(who, 0).seq(9));
            let datagram = Packet::ip(who.0, who.1).udp(CLIENT_PORT, PORT).payload(&data);
            let (kind, code, quote) = if who.0.is_ipv4() { (3, 3, 28) } else { (1, 4, 48) };
            let answer = back(who, 0).icmp(kind, code, [0; 4]).payload(&datagram.build_ip()[..quote]);
            assert_answered(&mut program, &datagram.build(), &answer);
        }
    }
}

/// Until a new window of the rates has just begun.
fn await_window(within: Duration) {
    let (start, deadline) = (now_ns() / RATE_WINDOW_NS, Instant::now() + within);
    while now_ns() / RATE_WINDOW_NS == start {
        assert!(Instant::now() < deadline, "the window does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whoever sends forged packets must not have us flood others.
#[test]
fn answers_are_limited() {
    if !root_or_skip() {
        return;
    }
    let mut program = program();
    let who = addresses()[0];
    let frame = Packet::ip(who.0, who.1).tcp(CLIENT_PORT, PORT).syn().build();
    // On a busy machine a window may end in between: once more then.
    let answered = (0..5).find_map(|_| {
        await_window(Duration::from_secs(3));
        let window = now_ns() / RATE_WINDOW_NS;
        let answered = (0..ANSWERS_PER_WINDOW + 500).filter(|_| program.run(&frame).0 == XDP_TX).count();
        let sent = program.send(&frame);
        (now_ns() / RATE_WINDOW_NS == window).then_some((answered as u64, sent.outcome, sent.action))
    });
    assert_eq!(answered, Some((ANSWERS_PER_WINDOW, Outcome::DropLost, XDP_DROP)));
    await_window(Duration::from_secs(3));
    assert_answered(&mut program, &frame, &reset(who, 0).ack(1));
}
