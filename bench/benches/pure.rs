//! Times of the pure parts: `cargo bench -p lb-bench`. Neither root nor a kernel with BPF is asked for.

#[path = "../src/controller/subject.rs"]
mod subject;

use std::{hint::black_box, time::Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_common::{
    checksum, hash,
    parse::{self, Bytes, TCP},
    plain,
};
use lb_userspace::{
    dataplane::memory::Memory,
    health::{BackendRef, Health},
    plan::ring,
};

/// Rings of the default size.
fn rings(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring build");
    for backends in [3, 100, 1_000] {
        let members = subject::members(backends);
        let id = BenchmarkId::from_parameter(backends);
        group.bench_with_input(id, &members, |b, members| b.iter(|| ring::build(members, subject::RING)));
    }
    group.finish();
}

/// A verdict: compiled, compared with what is there, applied to maps in memory.
fn verdicts(c: &mut Criterion) {
    let mut group = c.benchmark_group("verdict");
    for backends in [3, 100, 1_000] {
        let spec = subject::spec(&subject::one_service(backends));
        let memory = Memory::new(spec.limits);
        let mut engine = subject::engine(spec, Box::new(memory));
        engine.reconcile(Instant::now()).expect("there is room");
        let backend = BackendRef { service: "web".into(), backend: "b1".into() };
        let mut healths = [Health::Down, Health::Up].into_iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(backends), |b| {
            b.iter(|| {
                engine.set_health(backend.clone(), healths.next().expect("it goes on for ever"));
                engine.reconcile(Instant::now()).expect("there is room")
            });
        });
    }
    group.finish();
}

/// The text of a large file to its spec.
fn files(c: &mut Criterion) {
    let text = subject::thousand_by_ten(100);
    let mut group = c.benchmark_group("file");
    group.sample_size(20);
    group.bench_function("1,000 services x 10 backends", |b| b.iter(|| subject::spec(&text)));
    group.finish();
}

/// What a packet needs of `lb-common`, compiled for this machine instead of BPF.
fn packets(c: &mut Criterion) {
    let (frame4, frame6) = (frame4(), frame6());
    let (frame4, frame6): (&[u8], &[u8]) = (&frame4, &frame6);
    let plain4 = plain::ipv4(frame4).expect("it is plain");
    let plain6 = plain::ipv6(frame6).expect("it is plain");
    assert_eq!(parsed(frame4), Some(plain4.ports));
    assert_eq!(parsed(frame6), Some(plain6.ports));
    let key = hash::key(1);
    let mut group = c.benchmark_group("packet");
    group.bench_function("parse, plain, IPv4", |b| b.iter(|| plain::ipv4(black_box(frame4))));
    group.bench_function("parse, plain, IPv6", |b| b.iter(|| plain::ipv6(black_box(frame6))));
    group.bench_function("parse, any, IPv4", |b| b.iter(|| parsed(black_box(frame4))));
    group.bench_function("parse, any, IPv6", |b| b.iter(|| parsed(black_box(frame6))));
    group.bench_function("hash, IPv4", |b| {
        b.iter(|| {
            let p = black_box(&plain4);
            hash::flow4(key, p.source, p.ports)
        });
    });
    group.bench_function("hash, IPv6", |b| {
        b.iter(|| {
            let p = black_box(&plain6);
            hash::flow6(key, p.source, p.ports)
        });
    });
    let constant = checksum::outer_header4(64, [10, 0, 0, 2], [10, 0, 0, 11]);
    group.bench_function("checksum of an outer header", |b| {
        b.iter(|| checksum::finish_header4(black_box(constant), black_box(0), black_box(1_480), 4));
    });
    group.finish();
}

/// Ports of a packet, by the parser for all packets.
fn parsed(frame: &(impl Bytes + ?Sized)) -> Option<[u8; 4]> {
    match parse::network(frame) {
        parse::Network::Ipv4(at) => match parse::ipv4(frame, at) {
            parse::Parsed::Packet(packet) => Some(packet.ports),
            _ => None,
        },
        parse::Network::Ipv6(at) => match parse::ipv6(frame, at) {
            parse::Parsed::Packet(packet) => Some(packet.ports),
            _ => None,
        },
        parse::Network::Other => None,
    }
}

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
/// Ports 40,000 to 80, an ACK without options.
const SEGMENT: [u8; 20] = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, parse::TCP_ACK, 1, 0, 0, 0, 0, 0];

fn frame4() -> Vec<u8> {
    let mut frame = [&MACS[..], &[0x08, 0x00], &[0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, TCP, 0, 0]].concat();
    frame.extend([10, 1, 2, 3, 192, 0, 2, 10]);
    frame.extend(SEGMENT);
    frame.extend([0; 20]);
    frame
}

fn frame6() -> Vec<u8> {
    let mut frame = [&MACS[..], &[0x86, 0xdd], &[0x60, 0, 0, 0, 0, 40, TCP, 64]].concat();
    frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]);
    frame.extend(SEGMENT);
    frame.extend([0; 20]);
    frame
}

criterion_group!(benches, rings, verdicts, files, packets);
criterion_main!(benches);
