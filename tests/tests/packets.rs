//! Packets through the real program: bytes in, action, exact bytes out, exactly one counter moved.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;

use lb_common::outcome::Outcome::{self, *};
use lb_tests::{
    packet::{Extension, Packet, describe, verify},
    prog::{OUTER4, OUTER6, OWN_MAC, Prog, XDP_DROP, XDP_PASS, XDP_TX, next_hop_mac},
};
use lb_userspace::health::Health;

const V4: [u8; 4] = [192, 0, 2, 10];
const V6: [u16; 8] = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10];
const CLIENT4: [u8; 4] = [203, 0, 113, 7];
const CLIENT6: [u16; 8] = [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 7];

/// One backend a service, so that a row knows where its packet goes.
const CONFIG: &str = r#"
interfaces: [lo]
hash_seed: 7
limits: {slots: 8192, backends: 64}
defaults: {ring_size: 251, health: {type: none}}
services:
  - {name: l2, listen: ["192.0.2.10:80/tcp", "[2001:db8::10]:80/tcp", "192.0.2.10:53/udp", "[2001:db8::10]:53/udp"],
     forward: l2, backends: [{name: s1, address: 10.0.0.11}]}
  - {name: four, listen: ["192.0.2.10:4000-4009/tcp", "[2001:db8::10]:4000-4009/tcp"],
     forward: ipip, backends: [{name: s1, address: 10.0.0.14}]}
  - {name: six, listen: ["192.0.2.10:6000-6009/tcp", "[2001:db8::10]:6000-6009/tcp"],
     forward: ipip, backends: [{name: s1, address: "fd00::16"}]}
  - {name: any, listen: ["192.0.2.99:*/udp", "192.0.2.99:7/udp"], forward: l2, backends: [{name: s1, address: 10.0.0.19}]}
  - {name: three, listen: ["192.0.2.30:80/tcp"], forward: l2,
     backends: [{address: 10.0.0.31}, {address: 10.0.0.32}, {address: 10.0.0.33}]}
  - {name: client, listen: ["192.0.2.40:*/tcp"], forward: l2, hash: client,
     backends: [{address: 10.0.0.41}, {address: 10.0.0.42}, {address: 10.0.0.43}]}
"#;

fn tcp4(port: u16) -> Packet {
    Packet::ipv4(CLIENT4, V4).tcp(51234, port)
}

fn tcp6(port: u16) -> Packet {
    Packet::ipv6(CLIENT6, V6).tcp(51234, port)
}

/// The frame with the MACs of a backend's next hop and of the balancer.
fn to_backend(frame: &[u8], backend: &str) -> Vec<u8> {
    let address: IpAddr = backend.parse().unwrap();
    [&next_hop_mac(address)[..], &OWN_MAC, &frame[12..]].concat()
}

/// A row: what it is, the packet, its outcome, and where it goes if it is sent.
type Row = (&'static str, Packet, Outcome, &'static str);

/// Frames that `l2` sends on unchanged but for the MACs, and frames that are not sent.
#[expect(clippy::too_many_lines, reason = "a table, a line a row")]
fn rows() -> Vec<Row> {
    let udp4 = || Packet::ipv4(CLIENT4, V4).udp(5353, 53).payload(b"query");
    let from = |source: [u8; 4]| Packet::ipv4(source, V4).tcp(1, 80).syn();
    let from6 = |source: [u16; 8]| Packet::ipv6(source, V6).tcp(1, 80).syn();
    let s1 = "10.0.0.11";
    vec![
        ("SYN", tcp4(80).syn(), Forwarded, s1),
        ("SYN with data (TFO)", tcp4(80).syn().payload(b"GET /"), Forwarded, s1),
        ("ACK", tcp4(80).ack(1), Forwarded, s1),
        ("FIN", tcp4(80).ack(1).fin(), Forwarded, s1),
        ("RST", tcp4(80).rst(), Forwarded, s1),
        ("data", tcp4(80).ack(1).payload(&[7; 1000]), Forwarded, s1),
        ("padding behind the packet", tcp4(80).syn().padding(6), Forwarded, s1),
        ("UDP", udp4(), Forwarded, s1),
        ("UDP without checksum", udp4().checksum(0), Forwarded, s1),
        ("wrong TCP checksum: the server's business", tcp4(80).syn().checksum(0xbad), Forwarded, s1),
        ("wrong IPv4 checksum: likewise", tcp4(80).syn().with_ipv4(|h| h.checksum = Some(1)), Forwarded, s1),
        ("IPv4 options", tcp4(80).syn().with_ipv4(|h| h.options = vec![7, 7, 4, 0, 0, 0, 0]), Forwarded, s1),
        ("40 bytes of IPv4 options", tcp4(80).syn().with_ipv4(|h| h.options = vec![1; 40]), Forwarded, s1),
        ("TTL 1: the server's business", tcp4(80).syn().ttl(1), Forwarded, s1),
        ("IPv6 SYN", tcp6(80).syn(), Forwarded, s1),
        ("IPv6 UDP", Packet::ipv6(CLIENT6, V6).udp(5353, 53).payload(b"query"), Forwarded, s1),
        ("VLAN tag", tcp4(80).syn().vlan(5), Forwarded, s1),
        ("two VLAN tags", tcp4(80).syn().vlan(5).vlan(6), Forwarded, s1),
        ("two VLAN tags, IPv6", tcp6(80).syn().vlan(5).vlan(6), Forwarded, s1),
        ("hop-by-hop options", tcp6(80).syn().extension(Extension::HopByHop(vec![])), Forwarded, s1),
        ("port of `*`", Packet::ipv4(CLIENT4, [192, 0, 2, 99]).udp(9, 12345), Forwarded, "10.0.0.19"),
        ("port beside `*`", Packet::ipv4(CLIENT4, [192, 0, 2, 99]).udp(9, 7), Forwarded, "10.0.0.19"),
        ("other port", tcp4(81).syn(), PassNotOurs, ""),
        ("other protocol on the port", Packet::ipv4(CLIENT4, V4).udp(1, 80), PassNotOurs, ""),
        ("below the range", tcp4(3999).syn(), PassNotOurs, ""),
        ("above the range", tcp4(4010).syn(), PassNotOurs, ""),
        ("TCP to a UDP `*`", Packet::ipv4(CLIENT4, [192, 0, 2, 99]).tcp(9, 7).syn(), PassNotOurs, ""),
        ("ICMP echo", Packet::ipv4(CLIENT4, V4).icmp(8, 0, [0; 4]), PassNotOurs, ""),
        ("other protocol (GRE)", Packet::ipv4(CLIENT4, V4).protocol(47), PassNotOurs, ""),
        ("three VLAN tags", tcp4(80).syn().vlan(5).vlan(6).vlan(7), PassNotOurs, ""),
        ("source is the service", from(V4), DropBadSource, ""),
        ("source 0/8", from([0, 1, 2, 3]), DropBadSource, ""),
        ("source loopback", from([127, 0, 0, 1]), DropBadSource, ""),
        ("source multicast", from([224, 0, 0, 1]), DropBadSource, ""),
        ("source class E", from([240, 0, 0, 1]), DropBadSource, ""),
        ("source broadcast", from([255; 4]), DropBadSource, ""),
        ("source ::", from6([0; 8]), DropBadSource, ""),
        ("source ::1", from6([0, 0, 0, 0, 0, 0, 0, 1]), DropBadSource, ""),
        ("source ff02::1", from6([0xff02, 0, 0, 0, 0, 0, 0, 1]), DropBadSource, ""),
        ("source is the service, IPv6", from6(V6), DropBadSource, ""),
        ("bad source to no service", Packet::ipv4([127, 0, 0, 1], V4).tcp(1, 81), PassNotOurs, ""),
        ("first fragment", tcp4(80).syn().payload(&[0; 16]).fragment(0, true, 9), DropFragment, ""),
        ("later fragment", tcp4(80).payload(&[0; 16]).fragment(8, false, 9), DropFragment, ""),
        ("SYN and FIN", tcp4(80).syn().fin(), DropMalformed, ""),
        ("SYN and RST", tcp4(80).syn().rst(), DropMalformed, ""),
        ("version 5", tcp4(80).syn().with_ipv4(|h| h.version = Some(5)), DropMalformed, ""),
        ("IHL 4", tcp4(80).syn().with_ipv4(|h| h.ihl = Some(4)), DropMalformed, ""),
        ("IHL past the end", tcp4(80).syn().with_ipv4(|h| h.ihl = Some(15)), DropMalformed, ""),
        (
            "total length past the end",
            tcp4(80).syn().with_ipv4(|h| h.total_length = Some(2000)),
            DropMalformed,
            "",
        ),
        (
            "total length below the header",
            tcp4(80).syn().with_ipv4(|h| h.total_length = Some(19)),
            DropMalformed,
            "",
        ),
        ("total length cuts TCP", tcp4(80).syn().with_ipv4(|h| h.total_length = Some(39)), DropMalformed, ""),
        ("data offset 4", tcp4(80).syn().with_tcp(|h| h.data_offset = Some(4)), DropMalformed, ""),
        (
            "data offset past the end",
            tcp4(80).syn().with_tcp(|h| h.data_offset = Some(15)),
            DropMalformed,
            "",
        ),
        ("UDP length 7", udp4().with_udp(|h| h.length = Some(7)), DropMalformed, ""),
        ("UDP length past the end", udp4().with_udp(|h| h.length = Some(500)), DropMalformed, ""),
        (
            "IPv6 payload length past the end",
            tcp6(80).syn().with_ipv6(|h| h.payload_length = Some(2000)),
            DropMalformed,
            "",
        ),
        (
            "IPv6 payload length 0",
            tcp6(80).syn().with_ipv6(|h| h.payload_length = Some(0)),
            DropMalformed,
            "",
        ),
    ]
}

#[test]
fn l2_sends_on_what_is_sound_and_names_what_is_not() {
    let mut prog = Prog::new(CONFIG);
    for (what, packet, outcome, backend) in rows() {
        let frame = packet.build();
        let (action, out) = prog.send_counted(&frame, outcome);
        let told = format!("{what}: {}", describe(&frame));
        if outcome == Forwarded {
            assert_eq!(action, XDP_TX, "{told}");
            assert_eq!(out, to_backend(&frame, backend), "{told}");
        } else {
            assert_eq!(action, if outcome == PassNotOurs { XDP_PASS } else { XDP_DROP }, "{told}");
            assert_eq!(out, frame, "{told}");
        }
    }
}

/// The frame as IP-in-IP ought to make it, put together by the independent builder.
fn encapsulated(frame: &[u8], tags: usize, tos: u8, backend: IpAddr) -> Vec<u8> {
    let inner = &frame[14 + 4 * tags..];
    let inner_len = match inner[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([inner[2], inner[3]])),
        _ => 40 + usize::from(u16::from_be_bytes([inner[4], inner[5]])),
    };
    let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
    let outer = match backend {
        IpAddr::V4(b) => Packet::ipv4(OUTER4, b),
        IpAddr::V6(b) => Packet::ipv6(OUTER6, b),
    };
    let outer = outer.tos(tos).protocol(protocol).payload(&inner[..inner_len]).build();
    let tag_bytes = &frame[12..12 + 4 * tags];
    [&next_hop_mac(backend)[..], &OWN_MAC, tag_bytes, &outer[12..], &inner[inner_len..]].concat()
}

/// What it is, the packet to a port, and how many VLAN tags it has.
type Mix = (&'static str, fn(u16) -> Packet, usize);

#[test]
fn ipip_puts_a_right_header_in_front_in_all_four_mixes() {
    let mut prog = Prog::new(CONFIG);
    let packets: [Mix; 9] = [
        ("SYN", |p| tcp4(p).syn(), 0),
        ("TOS and ECN", |p| tcp4(p).syn().tos(0xb9), 0),
        ("data", |p| tcp4(p).ack(1).payload(&[9; 1400]), 0),
        ("IPv4 options", |p| tcp4(p).syn().with_ipv4(|h| h.options = vec![1; 8]), 0),
        ("VLAN", |p| tcp4(p).syn().vlan(5), 1),
        ("two VLANs", |p| tcp4(p).syn().vlan(5).vlan(6), 2),
        ("IPv6", |p| tcp6(p).syn(), 0),
        ("IPv6, traffic class, VLAN", |p| tcp6(p).syn().tos(0xb9).vlan(5), 1),
        ("IPv6 with an extension", |p| tcp6(p).syn().extension(Extension::HopByHop(vec![])), 0),
    ];
    for (port, backend) in [(4003, "10.0.0.14"), (6007, "fd00::16")] {
        let backend: IpAddr = backend.parse().unwrap();
        for (what, packet, tags) in &packets {
            let frame = packet(port).build();
            let tos = if what.contains("TOS") || what.contains("class") { 0xb9 } else { 0 };
            let (action, mut out) = prog.send_counted(&frame, Forwarded);
            let told = format!("{what} to {backend}: {}", describe(&out));
            assert_eq!(action, XDP_TX, "{told}");
            verify(&out).unwrap_or_else(|e| panic!("{told}: {e}"));
            let at = 14 + 4 * tags;
            if backend.is_ipv6() {
                // The flow label is a hash: any value but none at all.
                let label = u32::from_be_bytes(out[at..at + 4].try_into().unwrap()) & 0xf_ffff;
                assert_ne!(label, 0, "{told}");
                out[at + 1] &= 0xf0;
                out[at + 2..at + 4].fill(0);
            } else {
                // "Don't fragment", which the builder does not set by itself, and the checksum that goes with it.
                assert_eq!(out[at + 6], 0x40, "{told}");
                out[at + 6] = 0;
                let sum = u16::from_be_bytes([out[at + 10], out[at + 11]]);
                let without = u32::from(!sum) + u32::from(!0x4000u16);
                let folded = !(((without & 0xffff) + (without >> 16)) as u16);
                out[at + 10..at + 12].copy_from_slice(&folded.to_be_bytes());
            }
            assert_eq!(out, encapsulated(&frame, *tags, tos, backend), "{told}");
        }
    }
}

#[test]
fn every_packet_cut_at_every_length_is_never_sent_broken() {
    let mut prog = Prog::new(CONFIG);
    for (what, packet, ..) in rows() {
        let frame = packet.build();
        // BPF_PROG_TEST_RUN takes no frame shorter than an Ethernet header.
        for len in 14..frame.len() {
            let cut = &frame[..len];
            let (action, out) = prog.send(cut);
            match action {
                XDP_TX => assert_eq!(out[12..], cut[12..], "{what} cut to {len}"),
                XDP_PASS | XDP_DROP => assert_eq!(out, cut, "{what} cut to {len}"),
                other => panic!("{what} cut to {len}: action {other}"),
            }
            if action == XDP_TX {
                // Only what stands behind the packet (padding) may be missing.
                assert!(what.contains("padding"), "{what} cut to {len} of {} was sent", frame.len());
            }
        }
    }
}

#[test]
fn flows_spread_over_the_backends_and_stay_where_they_are() {
    let mut prog = Prog::new(CONFIG);
    let flow = |port: u16| Packet::ipv4(CLIENT4, [192, 0, 2, 30]).tcp(port, 80).syn().build();
    let before: Vec<Vec<u8>> = (1000..4000).map(|port| prog.send(&flow(port)).1[..6].to_vec()).collect();
    for (name, (packets, connections)) in prog.sent_to("three") {
        assert!((900..=1100).contains(&packets), "{name} got {packets} of 3000");
        assert_eq!(packets, connections, "{name}");
    }
    prog.set_health("three", "10.0.0.32", Health::Down);
    let dead = next_hop_mac([10, 0, 0, 32].into()).to_vec();
    let (mut kept, mut moved) = (0, 0);
    for (port, was) in (1000..4000).zip(&before) {
        let now = prog.send(&flow(port)).1[..6].to_vec();
        assert_ne!(now, dead, "a dead backend gets nothing");
        if *was != dead {
            if now == *was { kept += 1 } else { moved += 1 }
        }
    }
    assert_eq!(moved, 0, "no flow of a living backend moves; {kept} stayed");
    assert!(kept > 1500);
    prog.set_health("three", "10.0.0.32", Health::Up);
    for (port, was) in (1000..4000).zip(&before) {
        assert_eq!(prog.send(&flow(port)).1[..6].to_vec(), *was, "all is as it was once the backend is back");
    }
}

#[test]
fn hash_client_keeps_a_client_on_one_backend_and_spreads_clients() {
    let mut prog = Prog::new(CONFIG);
    let flow = |client: u8, port: u16| {
        Packet::ipv4([203, 0, 113, client], [192, 0, 2, 40]).tcp(port, port).syn().build()
    };
    let mut seen = std::collections::BTreeSet::new();
    for client in 1..100 {
        let first = prog.send(&flow(client, 1000)).1[..6].to_vec();
        for port in 1001..1010 {
            assert_eq!(prog.send(&flow(client, port)).1[..6], first[..], "client {client}");
        }
        seen.insert(first);
    }
    assert_eq!(seen.len(), 3);
}

/// What [`CONFIG`] says, but that nobody is told when all are down.
fn silent() -> Prog {
    Prog::new(&CONFIG.replace("defaults: {", "defaults: {on_all_down: drop, "))
}

#[test]
fn without_an_eligible_backend_packets_are_rejected_or_dropped_and_counted() {
    let frame = tcp4(80).syn().build();
    let reset = tcp4(80).rst().build();
    for (mut prog, outcome, action) in
        [(Prog::new(CONFIG), Rejected, XDP_TX), (silent(), DropNoBackend, XDP_DROP)]
    {
        prog.set_health("l2", "s1", Health::Down);
        let (did, out) = prog.send_counted(&frame, outcome);
        assert_eq!((did, out == frame), (action, outcome != Rejected), "{}", describe(&out));
        // A RST is never answered.
        let lost = if outcome == Rejected { DropLost } else { DropNoBackend };
        assert_eq!(prog.send_counted(&reset, lost), (XDP_DROP, reset.clone()));
        prog.set_health("l2", "s1", Health::Up);
        assert_eq!(prog.send_counted(&frame, Forwarded).0, XDP_TX);
    }
}

#[test]
fn a_backend_without_a_next_hop_gets_nothing() {
    for (mut prog, outcome, action) in
        [(Prog::new(CONFIG), Rejected, XDP_TX), (silent(), DropNoBackend, XDP_DROP)]
    {
        prog.engine.set_next_hops(std::collections::BTreeMap::new());
        prog.reconcile();
        assert_eq!(prog.send_counted(&tcp4(80).syn().build(), outcome).0, action);
    }
}
