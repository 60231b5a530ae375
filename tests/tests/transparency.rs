//! What is not ours passes byte for byte; what is ours never leaves broken, whatever it looks like.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lb_common::outcome::Outcome;
use lb_tests::{
    packet::{Generator, describe, verify},
    prog::{Prog, XDP_DROP, XDP_PASS, XDP_TX},
};

const CONFIG: &str = r#"
interfaces: [lo]
limits: {slots: 8192, backends: 64}
defaults: {ring_size: 251, health: {type: none}, forward: ipip}
services:
  - {name: four, listen: ["192.0.2.10:80/tcp", "192.0.2.10:53/udp"], backends: [{address: 10.0.0.14}]}
  - {name: six, listen: ["[2001:db8::10]:80/tcp", "[2001:db8::10]:53/udp"], backends: [{address: "fd00::16"}]}
  - {name: l2, listen: ["192.0.2.20:*/tcp"], forward: l2, backends: [{address: 10.0.0.11}]}
"#;

/// Addresses of nobody here, far enough from those of services that no single flipped byte leads there.
const OTHERS: [&str; 4] =
    ["203.0.113.200:80", "198.51.100.77:80", "[2001:db8:ffff::777]:80", "[2001:db9:1::eeee]:53"];
const OURS: [&str; 5] =
    ["192.0.2.10:80", "192.0.2.10:53", "[2001:db8::10]:80", "[2001:db8::10]:53", "192.0.2.20:443"];

const PACKETS: u64 = 20_000;

fn addresses(texts: &[&str]) -> Vec<std::net::SocketAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

#[test]
fn a_hundred_thousand_packets_for_others_pass_untouched() {
    let mut prog = Prog::new(CONFIG);
    let mut generator = Generator::new(1, &addresses(&OTHERS));
    let mut random = fastrand::Rng::with_seed(2);
    let before = prog.engine.dataplane().outcomes().unwrap();
    for i in 0..100_000 {
        // A third are nothing but noise, of every length that the kernel's test run takes.
        let frame = if i % 3 == 0 {
            let mut noise = vec![0; 14 + random.usize(..1500)];
            random.fill(&mut noise);
            noise
        } else {
            generator.next()
        };
        let (action, out) = prog.send(&frame);
        assert_eq!(action, XDP_PASS, "{}", describe(&frame));
        assert_eq!(out, frame, "{}", describe(&frame));
    }
    let mut expected = before;
    expected[Outcome::PassNotOurs as usize] += 100_000;
    assert_eq!(prog.engine.dataplane().outcomes().unwrap(), expected);
    for service in ["four", "six", "l2"] {
        assert!(prog.sent_to(service).values().all(|sent| *sent == (0, 0)), "{service} got something");
    }
}

#[test]
fn whatever_comes_to_a_service_is_sent_whole_or_not_at_all() {
    let mut prog = Prog::new(CONFIG);
    let mut generator = Generator::new(3, &addresses(&OURS));
    let before: u64 = prog.engine.dataplane().outcomes().unwrap().iter().sum();
    let (mut sent, mut sound) = (0u64, 0u64);
    for _ in 0..PACKETS {
        let frame = generator.next();
        let was_sound = verify(&frame).is_ok();
        let (action, out) = prog.send(&frame);
        match action {
            XDP_TX => {
                sent += 1;
                if was_sound {
                    sound += 1;
                    verify(&out)
                        .unwrap_or_else(|e| panic!("{}\n-> {}: {e}", describe(&frame), describe(&out)));
                }
            }
            XDP_PASS | XDP_DROP => assert_eq!(out, frame, "{}", describe(&frame)),
            other => panic!("action {other}: {}", describe(&frame)),
        }
    }
    let counted: u64 = prog.engine.dataplane().outcomes().unwrap().iter().sum();
    assert_eq!(counted - before + sent, PACKETS, "every packet has one outcome");
    assert!(sound > PACKETS / 10, "only {sound} sound packets were sent: the generator tests too little");
}
