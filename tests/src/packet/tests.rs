use super::*;

const CLIENT: [u8; 4] = [203, 0, 113, 7];
const SERVICE: [u8; 4] = [192, 0, 2, 10];
const CLIENT6: [u16; 8] = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7];
const SERVICE6: [u16; 8] = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10];

fn v4() -> Packet {
    Packet::ipv4(CLIENT, SERVICE)
}

fn v6() -> Packet {
    Packet::ipv6(CLIENT6, SERVICE6)
}

/// A frame that is right, and its line without the Ethernet addresses.
fn check(packet: &Packet, line: &str) {
    let frame = packet.build();
    assert_eq!(verify(&frame), Ok(()), "{line}");
    assert_eq!(describe(&frame), format!("eth 02:00:00:00:00:01>02:00:00:00:00:02 {line}"));
}

#[track_caller]
fn wrong(packet: &Packet, reason: &str) {
    let error = verify(&packet.build()).expect_err(reason);
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
}

/// The example of "The TCP/IP Guide", used in many texts: its header checksum is b861.
#[test]
fn known_ipv4_checksum() {
    let frame = Packet::ipv4([192, 168, 0, 1], [192, 168, 0, 199])
        .protocol(17)
        .payload(&[0; 95])
        .with_ipv4(|header| header.dont_fragment = true)
        .build();
    assert_eq!(frame[14..20], [0x45, 0, 0, 0x73, 0, 0]);
    assert_eq!(frame[24..26], [0xb8, 0x61]);
}

#[test]
fn transports() {
    let ipv4 = "ipv4 203.0.113.7>192.0.2.10";
    let ipv6 = "ipv6 2001:db8::7>2001:db8::10";
    check(&v4().tcp(1, 2).syn(), &format!("{ipv4} tcp 1>2 [S] len 54"));
    check(&v4().tcp(1, 2).syn().ack(9), &format!("{ipv4} tcp 1>2 [S.] len 54"));
    check(&v4().tcp(1, 2).fin().ack(9).payload(b"odd"), &format!("{ipv4} tcp 1>2 [F.] len 57"));
    check(
        &v4().tcp(1, 2).rst().with_tcp(|tcp| tcp.options = vec![2, 4, 5, 0xb4, 1]),
        &format!("{ipv4} tcp 1>2 [R] len 62"),
    );
    check(&v4().udp(1, 2).payload(b"hello"), &format!("{ipv4} udp 1>2 len 47"));
    check(&v4().udp(1, 2).checksum(0), &format!("{ipv4} udp 1>2 len 42"));
    check(&v4().icmp(8, 0, [0, 1, 0, 2]).payload(b"ping"), &format!("{ipv4} icmp 8/0 len 46"));
    check(&v4().protocol(253).payload(b"?"), &format!("{ipv4} proto 253 len 35"));
    check(&v6().tcp(1, 2).syn(), &format!("{ipv6} tcp 1>2 [S] len 74"));
    check(&v6().udp(1, 2).payload(b"hello"), &format!("{ipv6} udp 1>2 len 67"));
    check(&v6().icmp(128, 0, [0, 1, 0, 2]), &format!("{ipv6} icmp6 128/0 len 62"));
    check(
        &v4().icmp_error(3, 4, [0, 0, 5, 0xdc], &v4().tcp(1, 2).build()),
        &format!("{ipv4} icmp 3/4 len 82"),
    );
}

#[test]
fn headers() {
    let ipv4 = "ipv4 203.0.113.7>192.0.2.10";
    let ipv6 = "ipv6 2001:db8::7>2001:db8::10";
    check(&v4().vlan(5).udp(1, 2), &format!("vlan 5 {ipv4} udp 1>2 len 46"));
    check(&v6().vlan(5).vlan(6).udp(1, 2), &format!("vlan 5 vlan 6 {ipv6} udp 1>2 len 70"));
    check(&v4().vlan(5).vlan(6).plain_tags().udp(1, 2), &format!("vlan 5 vlan 6 {ipv4} udp 1>2 len 50"));
    check(&v4().ttl(1).tos(0xb8).udp(1, 2).padding(4), &format!("{ipv4} udp 1>2 len 46"));
    check(
        &v4().with_ipv4(|header| header.options = vec![7; 40]).udp(1, 2),
        &format!("{ipv4} udp 1>2 len 82"),
    );
    check(
        &v4().fragment(185, true, 7).protocol(6).payload(&[1; 8]),
        &format!("{ipv4} frag 185+ proto 6 len 42"),
    );
    check(&v6().fragment(185, true, 7).protocol(6).payload(&[1; 8]), &format!("{ipv6} frag proto 6 len 70"));
    let extensions = v6()
        .extension(Extension::HopByHop(Vec::new()))
        .extension(Extension::DestinationOptions(vec![1, 4, 0, 0, 0, 0]))
        .extension(Extension::Routing(Vec::new()))
        .fragment(0, false, 7)
        .extension(Extension::Authentication(vec![1; 12]))
        .tcp(1, 2);
    check(&extensions, &format!("{ipv6} tcp 1>2 [] len 130"));
}

#[test]
fn ip_in_ip() {
    let outer = "ipv4 203.0.113.7>192.0.2.10";
    let inner = v4().inner_ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1, 2).syn();
    check(&inner, &format!("{outer} ipv4 10.0.0.1>10.0.0.2 tcp 1>2 [S] len 74"));
    check(
        &v4().inner_ipv6(CLIENT6, SERVICE6).udp(1, 2),
        &format!("{outer} ipv6 2001:db8::7>2001:db8::10 udp 1>2 len 82"),
    );
    check(
        &v6().inner_ipv4(CLIENT, SERVICE).udp(1, 2),
        &format!("ipv6 2001:db8::7>2001:db8::10 {outer} udp 1>2 len 82"),
    );
    wrong(&inner.clone().with_ipv4(|header| header.checksum = Some(1)), "inner IPv4 checksum");
    wrong(&inner.clone().with_ipv4(|header| header.total_length = Some(39)), "inner ");
    wrong(&inner.checksum(1), "inner TCP checksum");
}

#[test]
fn what_is_broken_is_found() {
    wrong(&v4().tcp(1, 2).checksum(1), "TCP checksum 0x0001");
    wrong(&v6().tcp(1, 2).checksum(1), "TCP checksum 0x0001");
    wrong(&v4().udp(1, 2).checksum(1), "UDP checksum 0x0001");
    wrong(&v6().udp(1, 2).checksum(0), "UDP checksum 0x0000");
    wrong(&v4().icmp(8, 0, [0; 4]).checksum(1), "ICMP checksum 0x0001");
    wrong(&v6().icmp(128, 0, [0; 4]).checksum(1), "ICMPv6 checksum 0x0001");
    wrong(&v4().udp(1, 2).with_udp(|udp| udp.length = Some(9)), "length");
    wrong(&v4().udp(1, 2).payload(b"12").with_udp(|udp| udp.length = Some(9)), "UDP length 9 in 10 bytes");
    wrong(&v4().tcp(1, 2).with_tcp(|tcp| tcp.data_offset = Some(4)), "data offset");
    wrong(&v4().with_ipv4(|header| header.checksum = Some(1)).udp(1, 2), "IPv4 checksum 0x0001");
    wrong(&v4().with_ipv4(|header| header.ihl = Some(4)).udp(1, 2), "header length");
    wrong(&v4().with_ipv4(|header| header.version = Some(5)).udp(1, 2), "version");
    wrong(&v4().with_ipv4(|header| header.total_length = Some(29)).udp(1, 2), "length");
    wrong(&v6().with_ipv6(|header| header.payload_length = Some(9)).udp(1, 2), "length");
    wrong(&v6().with_ipv6(|header| header.version = Some(4)).udp(1, 2), "");
    wrong(&v4().ether_type(0x0806).udp(1, 2), "0x0806");
    wrong(&v4().udp(1, 2).payload(&[0; 40]).padding(1), "1 bytes after the IP packet of 68");
}

#[test]
fn overrides_leave_the_rest_right() {
    let right = v4().udp(1, 2).payload(b"x").build();
    let broken = v4().udp(1, 2).payload(b"x").with_ipv4(|header| header.ttl = 63).build();
    let changed: Vec<_> = (0..right.len()).filter(|&at| right[at] != broken[at]).collect();
    assert_eq!(changed, [22, 24], "TTL and the high byte of the checksum");
}

#[test]
fn describes_what_it_cannot_parse() {
    assert!(describe(&[1; 5]).starts_with("len 5 ("), "{}", describe(&[1; 5]));
    let frame = v4().tcp(1, 2).build();
    for len in 0..frame.len() {
        assert!(describe(&frame[..len]).contains(&format!("len {len}")), "{}", describe(&frame[..len]));
    }
    assert!(describe(&v4().ether_type(0x88cc).build()).contains("type 0x88cc"));
}

#[test]
fn random_packets() {
    let destinations = ["192.0.2.10:80".parse().unwrap(), "[2001:db8::10]:443".parse().unwrap()];
    let mut random = Generator::new(1, &destinations);
    let mut wrong = 0;
    for number in 0..5000 {
        let frame = random.valid();
        assert_eq!(verify(&frame), Ok(()), "{number}: {}", describe(&frame));
        let frame = random.broken();
        assert!(frame.len() >= 14);
        describe(&frame);
        wrong += usize::from(verify(&frame).is_err());
        random.next();
    }
    assert!(wrong > 3500, "only {wrong} of 5000 broken packets are wrong");
    let mut again = Generator::new(7, &destinations);
    let mut same = Generator::new(7, &destinations);
    assert!((0..100).all(|_| again.next() == same.next()));
    assert!((0..100).any(|_| again.next() != random.next()));
}
