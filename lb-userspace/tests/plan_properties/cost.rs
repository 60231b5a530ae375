//! What reconciling costs. Figures of a release build; `cargo test --release -p lb-userspace --test plan_properties
//! cost -- --ignored --nocapture --test-threads 1` prints them.

use std::{
    fmt::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_userspace::{
    config::{parse, spec::Spec},
    controller::{engine::Engine, known::Verdict},
    dataplane::{Dataplane as _, memory::Memory},
    health::{BackendRef, Health, Reason},
    net::{NextHop, NextHopState},
    plan::diff::diff,
};

use crate::world::key;

/// So many services with so many backends each, all up.
fn engine(services: u32, backends: u32, ring_size: u32) -> (Engine, Arc<Spec>) {
    let mut text =
        "interfaces: [eth0]\nlimits: {services: 4096, backends: 16384, slots: 8388608}\nservices:\n"
            .to_owned();
    for s in 0..services {
        let [_, _, c, d] = s.to_be_bytes();
        write!(text, "- {{name: s{s}, listen: ['192.0.{c}.{d}:80/tcp'], forward: l2, ring_size: {ring_size}, backends: [")
            .expect("memory suffices");
        for b in 0..backends {
            let [_, b, c, d] = (s * backends + b).to_be_bytes();
            write!(text, "{{address: 10.{b}.{c}.{d}}}, ").expect("memory suffices");
        }
        text += "]}\n";
    }
    let spec = Arc::new(parse(&text, Path::new("cost.yaml")).expect("valid").spec);
    let mut engine = Engine::new(Arc::clone(&spec), Box::new(Memory::new(spec.limits)));
    let hop = |ip| {
        let hop = NextHop {
            ifindex: 2,
            interface: "eth0".into(),
            mac: [2; 6],
            source_mac: [3; 6],
            source: [10, 255, 0, 1].into(),
            mtu: 1500,
            gateway: None,
        };
        (ip, NextHopState::Resolved(hop))
    };
    engine.set_devices([(2, "eth0".to_owned())].into());
    engine.set_next_hops(spec.services.iter().flat_map(|s| &s.backends).map(|b| hop(b.address)).collect());
    for service in &spec.services {
        for backend in &service.backends {
            engine.set_verdict(key(service, backend), Verdict { health: Health::Up, cause: Reason::L4Ok });
        }
    }
    (engine, spec)
}

fn first(spec: &Spec) -> BackendRef {
    key(&spec.services[0], &spec.services[0].backends[0])
}

/// Median and worst of some rounds.
fn timed(rounds: u32, mut round: impl FnMut(u32) -> Duration) -> (Duration, Duration) {
    let mut took: Vec<Duration> = (0..rounds).map(&mut round).collect();
    took.sort_unstable();
    (took[took.len() / 2], took[took.len() - 1])
}

fn verdict(health: Health) -> Verdict {
    Verdict { health, cause: if health == Health::Up { Reason::L4Ok } else { Reason::L4Timeout } }
}

#[test]
#[ignore = "figures of a release build"]
fn cost_of_a_verdict() {
    let (mut engine, spec) = engine(1, 1000, 65_537);
    let start = Instant::now();
    engine.reconcile(start).expect("it fits");
    println!("1 service x 1,000 backends, ring of 65,537: first {:?}", start.elapsed());
    let key = first(&spec);
    let (median, worst) = timed(40, |round| {
        engine.set_verdict(key.clone(), verdict(if round % 2 == 0 { Health::Down } else { Health::Up }));
        let start = Instant::now();
        engine.reconcile(start).expect("it fits");
        start.elapsed()
    });
    println!("a verdict: median {median:?}, worst {worst:?}");
    let bar = median;
    let before = engine.compiled().tables.clone();
    engine.set_verdict(key, verdict(Health::Down));
    engine.reconcile(start).expect("it fits");
    let after = &engine.compiled().tables;
    let (median, worst) = timed(40, |_| {
        let start = Instant::now();
        assert!(!diff(&before, after).is_empty());
        start.elapsed()
    });
    println!("of it the diff: median {median:?}, worst {worst:?}");
    let ops = diff(&before, after);
    let (median, worst) = timed(40, |_| {
        let mut memory = Memory::new(spec.limits);
        memory.tamper(|tables| tables.clone_from(&before));
        let start = Instant::now();
        for op in &ops {
            memory.apply(op).expect("memory takes it");
        }
        start.elapsed()
    });
    println!("and {} operations on maps in memory: median {median:?}, worst {worst:?}", ops.len());
    let (idle, worst) = timed(40, |_| {
        let start = Instant::now();
        engine.reconcile(start).expect("it fits");
        start.elapsed()
    });
    println!("nothing: median {idle:?}, worst {worst:?}");
    assert!(bar < Duration::from_millis(1), "{bar:?}");
}

#[test]
#[ignore = "figures of a release build"]
fn cost_of_a_thousand_services() {
    let (mut engine, spec) = engine(1000, 10, 4093);
    let start = Instant::now();
    engine.reconcile(start).expect("it fits");
    println!("1,000 services x 10 backends, rings of 4,093: first {:?}", start.elapsed());
    let (median, worst) = timed(20, |_| {
        let start = Instant::now();
        engine.reconcile(start).expect("it fits");
        start.elapsed()
    });
    println!("nothing: median {median:?}, worst {worst:?}");
    let key = first(&spec);
    let (median, worst) = timed(20, |round| {
        engine.set_verdict(key.clone(), verdict(if round % 2 == 0 { Health::Down } else { Health::Up }));
        let start = Instant::now();
        engine.reconcile(start).expect("it fits");
        start.elapsed()
    });
    println!("a verdict: median {median:?}, worst {worst:?}");
    let (median, worst) = timed(20, |round| {
        let mut new = (*spec).clone();
        new.services[500].backends[3].weight = 100 + round;
        let new = Arc::new(new);
        let start = Instant::now();
        engine.preview(&new, start).expect("it fits");
        let previewed = start.elapsed();
        engine.set_spec(new, start);
        engine.reconcile(start).expect("it fits");
        if round == 0 {
            println!("of a reload the preview takes {previewed:?}");
        }
        start.elapsed()
    });
    println!("reload of one weight, with the preview: median {median:?}, worst {worst:?}");
    assert!(median < Duration::from_millis(50), "{median:?}");
}
