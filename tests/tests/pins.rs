//! What others do to the pins, the links and the interfaces, and pins that cannot be used.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
    programs::Xdp,
};
use lb_common::{
    abi::maps,
    lookup::{Entry, Line, MAX_INDEX},
};
use lb_lab::{Lab, root_or_skip, wait_for};
use lb_tests::{
    net::xlb,
    pinned::{
        config, detach, does_not_forward, forwards, has_xdp, lab, link_state, map_id, pinned, refused,
        restart, text, version,
    },
};
use lb_userspace::dataplane::{bpf::Link, objects};

/// What others change is mended in 2 s; the rest is for a machine with two cores.
const MENDED: Duration = Duration::from_secs(3);

#[test]
fn a_second_controller_on_the_same_pins_is_told_who_has_them() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(&[], &config());
    let (before, first) = (pinned(&lab), lab.xlb().unwrap());
    let other_socket = first.dir().join("other.sock");
    let mut command = lab.topology().balancer().netns.command(xlb());
    command.args(["run", "--config"]).arg(first.config_path()).arg("--socket").arg(&other_socket);
    command.arg("--pin-dir").arg(first.pin_dir()).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    let who = format!("already running with the pin directory {}", first.pin_dir().display());
    assert!(text(&output).contains(&who), "{}", text(&output));
    assert!(text(&output).contains(&format!("process {}", first.pid().unwrap())), "{}", text(&output));
    assert!(!other_socket.exists());
    assert_eq!(pinned(&lab), before);
    forwards(&lab);
}

#[test]
fn other_limits_and_other_layouts_are_refused_and_nothing_is_touched() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(&[], &config());
    let before = pinned(&lab);
    lab.xlb_mut().unwrap().kill().unwrap();
    let path = lab.xlb().unwrap().config_path().to_owned();
    fs::write(&path, format!("limits: {{slots: 131074, backends: 64, services: 3000}}\n{}", config()))
        .unwrap();
    let limits = [
        "`limits.slots` is 131074",
        "made for 4194304",
        "`limits.backends` is 64",
        "`limits.services` is 3000, but the pinned maps were made for 1024",
        "`xlb detach --pin-dir",
    ];
    refused(&mut lab, 65, &limits);
    assert_eq!(pinned(&lab), before);
    forwards(&lab);

    // The pins of another layout are beside, and hold the interface.
    fs::write(&path, config()).unwrap();
    let other = version(&lab).with_file_name("v9999");
    fs::rename(version(&lab), &other).unwrap();
    refused(&mut lab, 1, &["interface eth0", "another version of xlb", "v9999", "`xlb detach`"]);
    assert!(!version(&lab).exists(), "pins were left beside those of the other layout");
    assert_eq!(map_id(&other, maps::RING), before.maps.get(maps::RING).copied());
    forwards(&lab);
    detach(&lab, 0, &["the data path is off eth0", "v9999"]);
    assert!(!has_xdp(&lab, "eth0"));

    // Under this layout's name, but not of its shape.
    fs::create_dir_all(version(&lab).join("maps")).unwrap();
    let foreign = Array::<MapData, u64>::create(4, 0).unwrap();
    foreign.pin(version(&lab).join("maps").join(maps::BACKENDS)).unwrap();
    let foreign = map_id(&version(&lab), maps::BACKENDS).unwrap();
    refused(
        &mut lab,
        1,
        &["the pins of another xlb", "size of a value of the map BACKENDS is 8", "xlb detach"],
    );
    assert_eq!(map_id(&version(&lab), maps::BACKENDS), Some(foreign));
    assert_eq!(map_id(&version(&lab), maps::RING), None);
    detach(&lab, 0, &["removed"]);

    fs::write(&path, format!("limits: {{slots: 131074, backends: 64}}\n{}", config())).unwrap();
    restart(&mut lab);
    forwards(&lab);
}

#[test]
fn a_pin_directory_that_cannot_be_one_is_refused_with_the_remedy() {
    if !root_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config_path = dir.path().join("lab.yaml");
    fs::write(&config_path, config()).unwrap();
    let run = |pin_dir: &Path| {
        let mut command = Command::new(xlb());
        command.args(["run", "--config"]).arg(&config_path).arg("--pin-dir").arg(pin_dir);
        command.arg("--socket").arg(dir.path().join("xlb.sock")).output().unwrap()
    };
    let elsewhere = dir.path().join("pins");
    let output = run(&elsewhere);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("mount -t bpf bpf"), "{}", text(&output));
    assert!(!elsewhere.exists());
    let id = std::process::id();
    let output = run(Path::new(&format!("/sys/fs/bpf/xlb-lab-{id}-with.dot")));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no dots"), "{}", text(&output));
    // Where others may write, they may put their own program.
    let open = PathBuf::from(format!("/sys/fs/bpf/xlb-lab-{id}-open"));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let output = run(&open);
    fs::remove_dir(&open).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("others may write"), "{}", text(&output));
}

/// Waits until this event was logged and `holds`.
fn mended(lab: &Lab, event: &str, holds: impl Fn() -> bool) {
    let xlb = lab.xlb().unwrap();
    let start = Instant::now();
    let done = wait_for(MENDED, || (holds() && xlb.has_logged(|line| line.contains(event))).then_some(()));
    assert!(done.is_some(), "not within {MENDED:?}: {event}; the log: {}", xlb.last_log(40));
    println!("{event}: {:?}", start.elapsed());
}

#[test]
fn what_others_change_is_mended_and_told() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(&[], &config());
    let before = pinned(&lab);
    let pin = version(&lab).join("link-eth0");
    let link = Link::open(&pin).unwrap();

    // Somebody's program through our link.
    let mut foreign = Ebpf::load(objects::decap().unwrap()).unwrap();
    let foreign: &mut Xdp = foreign.program_mut("decap").unwrap().try_into().unwrap();
    foreign.load().unwrap();
    link.update(foreign.fd().unwrap().as_fd()).unwrap();
    does_not_forward(&lab);
    mended(&lab, "drift: the program on eth0 was replaced", || {
        link.state().unwrap().program == before.program
    });
    forwards(&lab);

    // The link taken off.
    link.detach().unwrap();
    does_not_forward(&lab);
    mended(&lab, "drift: the data path was taken off eth0", || {
        link_state(&lab, "link-eth0").is_some_and(|state| state.ifindex != 0)
    });
    forwards(&lab);
    drop(link);

    // Entries of a map.
    let mut lines: Array<MapData, Line> = array(&lab, maps::LINES4);
    let used = used_lines(&lines);
    assert_eq!(indices(&lines).len(), 4, "three listens and the mark of their address");
    for line in used {
        lines.set(line, Line::EMPTY, 0).unwrap();
    }
    does_not_forward(&lab);
    mended(&lab, "repair: + service 192.0.2.10:80/6", || indices(&lines).len() == 4);
    forwards(&lab);
    let mut entries: Array<MapData, Entry> = array(&lab, maps::SERVICES4);
    let before = indices(&lines);
    for index in &before {
        entries.set(*index, Entry::NONE, 0).unwrap();
    }
    does_not_forward(&lab);
    let again = || indices(&lines).iter().filter(|index| !before.contains(index)).count();
    // The mark of the address says nothing but that it is there.
    mended(&lab, "repair: + service 192.0.2.10:80/6", || again() == 3);
    forwards(&lab);

    // Single pins, and then all of them with their directory.
    let before = pinned(&lab);
    fs::remove_file(&pin).unwrap();
    fs::remove_file(version(&lab).join("maps").join(maps::RING)).unwrap();
    mended(&lab, "pinned again: RING, the link of eth0", || link_state(&lab, "link-eth0").is_some());
    assert_eq!(pinned(&lab), before);
    fs::remove_dir_all(lab.xlb().unwrap().pin_dir()).unwrap();
    mended(&lab, "pinned again: prog, LINES4", || link_state(&lab, "link-eth0").is_some());
    assert_eq!(pinned(&lab), before);
    // The new directory is locked like the old one.
    detach(&lab, 75, &["already running"]);
    forwards(&lab);
}

fn array<T: aya::Pod>(lab: &Lab, name: &str) -> Array<MapData, T> {
    let data = MapData::from_pin(version(lab).join("maps").join(name)).unwrap();
    Map::from_map_data(data).unwrap().try_into().unwrap()
}

/// The lines with a word that leads to an entry, without the last line, which is a count.
fn used_lines(lines: &Array<MapData, Line>) -> Vec<u32> {
    let leads = |line: &Line| line.0.iter().any(|word| word & u64::from(MAX_INDEX) != 0);
    (0..lines.len() - 1).filter(|line| leads(&lines.get(line, 0).unwrap())).collect()
}

/// The entries that words lead to.
fn indices(lines: &Array<MapData, Line>) -> Vec<u32> {
    let words = used_lines(lines).into_iter().flat_map(|line| lines.get(&line, 0).unwrap().0);
    words.map(|word| word as u32 & MAX_INDEX).filter(|index| *index != 0).collect()
}

/// Makes a pair of interfaces, `d.0` the one of them that the file names.
fn make_pair(lab: &Lab) {
    let netns = lab.topology().balancer().netns.handle();
    netns.ip_batch("link add d.0 type veth peer name d1\nlink set d.0 up\nlink set d1 up\n").unwrap();
}

fn remove_pair(lab: &Lab) {
    lab.topology().balancer().netns.handle().ip_batch("link del d.0\n").unwrap();
}

#[test]
fn interfaces_that_go_and_come_are_attached_again() {
    if !root_or_skip() {
        return;
    }
    let both = config().replace("[eth0]", "[eth0, {name: d.0, mode: generic}]");
    let mut lab = lab(&[], &config());
    make_pair(&lab);
    lab.write_config(&both).unwrap();
    let there = |lab: &Lab| link_state(lab, "link-d%2E0").filter(|state| state.ifindex != 0);
    mended(&lab, "attached to d.0", || there(&lab).is_some());
    let (first, eth0) = (there(&lab).unwrap(), link_state(&lab, "link-eth0").unwrap());

    remove_pair(&lab);
    mended(&lab, "interface d.0 is gone", || link_state(&lab, "link-d%2E0").is_none());
    make_pair(&lab);
    let again = wait_for(MENDED, || there(&lab)).expect("attached again");
    assert_ne!(again.id, first.id);

    // The same while there is no controller.
    lab.xlb_mut().unwrap().kill().unwrap();
    remove_pair(&lab);
    make_pair(&lab);
    assert_eq!(link_state(&lab, "link-d%2E0").unwrap().ifindex, 0, "the pinned link is dead");
    restart(&mut lab);
    assert_ne!(there(&lab).unwrap().id, again.id);

    // Gone, when a new controller starts: it must not be kept from the other interface.
    lab.xlb_mut().unwrap().kill().unwrap();
    remove_pair(&lab);
    restart(&mut lab);
    forwards(&lab);
    make_pair(&lab);
    wait_for(MENDED, || there(&lab)).expect("attached when it came back");

    // In another mode the link cannot be taken over; no longer in the file it goes.
    lab.xlb_mut().unwrap().kill().unwrap();
    let path = lab.xlb().unwrap().config_path().to_owned();
    let before = there(&lab).unwrap();
    fs::write(&path, both.replace("generic", "native")).unwrap();
    restart(&mut lab);
    assert_ne!(there(&lab).unwrap().id, before.id);
    lab.xlb_mut().unwrap().kill().unwrap();
    fs::write(&path, config()).unwrap();
    restart(&mut lab);
    assert!(there(&lab).is_none() && !has_xdp(&lab, "d.0"));
    // All the time the other one was left alone.
    let now = link_state(&lab, "link-eth0").unwrap();
    assert_eq!((now.id, now.ifindex), (eth0.id, eth0.ifindex));
    forwards(&lab);
}
