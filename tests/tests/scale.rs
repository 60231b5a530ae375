//! A thousand services of ten backends. The figures are measured in release and stand in docs/; a debug build on a shared
//! machine may take five times as long.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use lb_lab::{TopologyConfig, root_or_skip};
use lb_tests::{
    net::{lab, xlb},
    prog::Prog,
};
use lb_userspace::health::Health;

fn thousand_by_ten() -> String {
    let mut text = String::from(
        "interfaces: [eth0]
admin: {listen: off}
limits: {services: 4096, backends: 16384}
defaults: {forward: l2, ring_size: 4093, health: {type: none}}
services:
",
    );
    for service in 0..1000 {
        writeln!(
            text,
            "  - name: s{service}\n    listen: [\"198.18.{}.{}:80/tcp\"]\n    backends:",
            service / 250,
            1 + service % 250
        )
        .unwrap();
        for backend in 0..10 {
            writeln!(text, "      - {{name: b{backend}, address: 10.88.0.{}}}", 11 + backend).unwrap();
        }
    }
    text
}

#[test]
fn a_thousand_services_are_checked_and_loaded_in_time() {
    if !root_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("big.yaml");
    fs::write(&file, thousand_by_ten()).unwrap();
    let start = Instant::now();
    let check = Command::new(xlb()).arg("check").arg(&file).output().unwrap();
    let checked = start.elapsed();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    println!("xlb check: {checked:?}");
    assert!(checked < Duration::from_millis(5 * 100), "xlb check took {checked:?}");

    // Of the ten, the lab has three: the other seven never answer ARP, and `ready` does not wait for them for long.
    let start = Instant::now();
    let lab = lab(TopologyConfig::default(), &thousand_by_ten());
    let ready = start.elapsed();
    println!("lab and xlb ready: {ready:?}");
    assert!(ready < Duration::from_secs(5 * 2), "ready took {ready:?}");
    let status = lab.status().unwrap();
    assert_eq!(status.0["services"].as_array().unwrap().len(), 1000);

    // The best of a few: each of them is the whole way from the request to the kernel, the file read and checked.
    let reload = |weight: u32| {
        let text = thousand_by_ten();
        let (head, tail) = text.rsplit_once("address: 10.88.0.11}").unwrap();
        lab.write_config(&format!("{head}address: 10.88.0.11, weight: {weight}}}{tail}")).unwrap();
        let reply = lab.xlb().unwrap().command(&["reload"]).unwrap();
        let said = String::from_utf8_lossy(&reply.stdout).into_owned();
        assert!(said.contains(&format!("-> {weight}")), "{said}");
        let log = lab.xlb().unwrap().last_log(20);
        let (_, after) = log.rsplit_once("is in force ").unwrap();
        after.split_once(" ms").unwrap().0.parse::<f64>().unwrap()
    };
    let reloaded = (1..=5).map(|round| reload(100 + round)).reduce(f64::min).unwrap();
    println!("one weight of 10,000 reloaded: {reloaded} ms");
    assert!(reloaded < 5.0 * 50.0, "a reload took {reloaded} ms");
}

#[test]
fn a_verdict_is_in_the_kernel_in_time() {
    if !root_or_skip() {
        return;
    }
    let mut text = String::from(
        "interfaces: [lo]\nservices:\n  - {name: web, listen: [\"192.0.2.10:80/tcp\"], forward: l2, health: {type: none}, backends: [",
    );
    for backend in 0..1000 {
        write!(text, "{{name: b{backend}, address: 10.9.{}.{}}}, ", backend / 250, 1 + backend % 250)
            .unwrap();
    }
    text += "]}\n";
    let mut prog = Prog::new(&text);
    let mut times = BTreeMap::new();
    for (round, health) in [Health::Down, Health::Up].into_iter().cycle().take(20).enumerate() {
        let start = Instant::now();
        prog.set_health("web", "b500", health);
        times.insert(start.elapsed(), round);
    }
    let median = *times.keys().nth(times.len() / 2).unwrap();
    println!("a verdict, ring of 65,537, 1,000 backends: median {median:?}");
    assert!(median < Duration::from_millis(5 * 5), "a verdict took {median:?}");
}
