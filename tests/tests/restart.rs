//! The controller goes and the data path stays: crash, restart, `--keep`, `xlb detach`.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_lab::{root_or_skip, wait_for};
use lb_tests::pinned::{
    Pinned, config, detach, does_not_forward, forwards, has_xdp, lab, link_state, packets, pinned, restart,
    version,
};
use lb_userspace::dataplane::bpf::Link;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn after_a_crash_forwarding_goes_on_and_the_next_controller_adopts_it() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(&[], &config());
    forwards(&lab);
    let (before, sent) = (pinned(&lab), packets(&lab.status().unwrap()));
    assert!(sent > 0);
    lab.xlb_mut().unwrap().kill().unwrap();
    forwards(&lab);
    assert_eq!(pinned(&lab), before);
    restart(&mut lab);
    let after = pinned(&lab);
    let link = |pinned: &Pinned| (pinned.links["link-eth0"].id, pinned.links["link-eth0"].ifindex);
    assert_eq!(link(&after), link(&before), "the link was made anew");
    assert_eq!(after.maps, before.maps, "maps were made anew");
    assert!(!lab.xlb().unwrap().has_logged(|line| line.contains("another XDP program")), "not its own");
    // The program is the new controller's, as after an upgrade.
    assert_ne!(after.program, before.program);
    assert_eq!(after.links["link-eth0"].program, after.program);
    let packets = packets(&lab.status().unwrap());
    assert!(packets >= sent, "the counters fell from {sent} to {packets}");
    forwards(&lab);
    // The control: without its pin the link ends with the process.
    fs::remove_file(version(&lab).join("link-eth0")).unwrap();
    lab.xlb_mut().unwrap().kill().unwrap();
    wait_for(5 * SECOND, || (!has_xdp(&lab, "eth0")).then_some(())).expect("the data path ends");
    does_not_forward(&lab);
    // And the next controller makes a new one.
    restart(&mut lab);
    assert_eq!(pinned(&lab).maps, before.maps);
    forwards(&lab);
}

#[test]
fn keep_leaves_the_data_path_on_and_detach_takes_it_off() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(&["--keep"], &config());
    let before = pinned(&lab);
    detach(&lab, 75, &["already running", &format!("process {}", lab.xlb().unwrap().pid().unwrap())]);
    assert_eq!(pinned(&lab), before);
    assert_eq!(lab.xlb_mut().unwrap().stop().unwrap().code(), Some(0));
    assert!(lab.xlb().unwrap().has_logged(|line| line.contains("forwarding goes on")));
    assert_eq!(pinned(&lab), before);
    forwards(&lab);
    restart(&mut lab);
    let after = pinned(&lab);
    assert_eq!(after.links["link-eth0"].id, before.links["link-eth0"].id);
    assert_eq!(after.maps, before.maps);
    lab.xlb_mut().unwrap().stop().unwrap();
    detach(&lab, 0, &["the data path is off eth0", "/v1"]);
    assert!(!has_xdp(&lab, "eth0") && !lab.xlb().unwrap().pin_dir().exists());
    does_not_forward(&lab);
    detach(&lab, 0, &["nothing to detach"]);
}

#[test]
fn leaving_without_keep_leaves_nothing() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(&[], &config());
    pinned(&lab);
    assert_eq!(lab.xlb_mut().unwrap().stop().unwrap().code(), Some(0));
    assert!(!has_xdp(&lab, "eth0") && !lab.xlb().unwrap().pin_dir().exists());
    does_not_forward(&lab);
}

#[test]
fn half_of_the_pins_are_completed() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(&[], &config());
    let before = pinned(&lab);
    let dir = version(&lab);
    let mut without = |pins: &[&str], link_stays: bool| {
        lab.xlb_mut().unwrap().kill().unwrap();
        for pin in pins {
            fs::remove_file(dir.join(pin)).unwrap();
        }
        restart(&mut lab);
        let now = pinned(&lab);
        assert_eq!(now.maps, before.maps, "without {pins:?}: other maps");
        if link_stays {
            assert_eq!(now.links["link-eth0"].id, before.links["link-eth0"].id, "without {pins:?}");
        }
        forwards(&lab);
    };
    without(&["prog"], true);
    // Maps that nobody can find any more, but the program that runs.
    without(&["maps/RING", "maps/BACKENDS", "maps/SERVICES4"], true);
    without(&["prog", "maps/RING", "maps/OUTCOMES"], true);
    without(&["link-eth0"], false);
    without(&["prog", "link-eth0"], false);
    // What a kill between pinning and renaming leaves.
    lab.xlb_mut().unwrap().kill().unwrap();
    let link = Link::open(&dir.join("link-eth0")).unwrap().state().unwrap();
    fs::rename(dir.join("link-eth0"), dir.join("new-link-eth0")).unwrap();
    fs::rename(dir.join("prog"), dir.join("new-prog")).unwrap();
    restart(&mut lab);
    forwards(&lab);
    assert_eq!(link_state(&lab, "link-eth0").unwrap().id, link.id);
    assert_eq!(lab.xlb_mut().unwrap().stop().unwrap().code(), Some(0));
    assert!(!lab.xlb().unwrap().pin_dir().exists());
}

#[test]
fn killed_at_any_moment_of_its_start_the_next_one_converges() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(&[], &config());
    let start = Instant::now();
    restart(&mut lab);
    let whole = start.elapsed();
    let mut stages = BTreeMap::new();
    for step in 0..40u32 {
        // Every fourth time over what the killed ones left, else from nothing.
        if step % 4 != 3 {
            lab.xlb_mut().unwrap().kill().unwrap();
            detach(&lab, 0, &[]);
        }
        lab.xlb_mut().unwrap().start().unwrap();
        thread::sleep(whole * step / 40);
        lab.xlb_mut().unwrap().kill().unwrap();
        let pins = |dir: PathBuf| fs::read_dir(dir).map_or(0, Iterator::count);
        *stages.entry((pins(version(&lab)), pins(version(&lab).join("maps")))).or_insert(0) += 1;
        if step % 8 == 7 {
            restart(&mut lab);
            forwards(&lab);
            pinned(&lab);
        }
    }
    // (pins with the directory of maps, maps): how often it was killed there.
    println!("{stages:?} in {whole:?}");
    assert!(stages.len() > 2, "all kills hit the same stages: {stages:?}");
    restart(&mut lab);
    forwards(&lab);
}
