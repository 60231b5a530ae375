//! The controller goes and the data path stays: crash, restart, `--keep`, `xlb detach`, and what others do to the pins.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapInfo},
    programs::{ProgramInfo, Xdp},
};
use lb_common::{
    abi::{self, maps},
    service::{Service, ServiceKey4},
};
use lb_lab::{ConfigSource, HTTP_V4, HTTP_V6, Lab, LabConfig, ServerProgram, Status, root_or_skip, wait_for};
use lb_tests::net::{Config, xlb};
use lb_userspace::dataplane::{
    bpf::{Link, LinkState},
    objects,
};

const SECOND: Duration = Duration::from_secs(1);
/// What others change is mended in 2 s; the rest is for a machine with two cores.
const MENDED: Duration = Duration::from_secs(3);
const READY: Duration = Duration::from_secs(15);

fn lab(arguments: &[&str], config: &str) -> Lab {
    let server = ServerProgram::beside().unwrap_or_else(|e| panic!("{e:#}"));
    let source = Some((xlb(), ConfigSource::Text(config.to_owned())));
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Lab::start(LabConfig { xlb: source, arguments, ..LabConfig::new(server) })
        .unwrap_or_else(|e| panic!("{e:#}"))
}

fn config() -> String {
    Config::new("10.88.0.", 3).text()
}

/// Everything that is pinned, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pinned {
    program: u32,
    links: BTreeMap<String, LinkState>,
    maps: BTreeMap<&'static str, u32>,
}

fn version(lab: &Lab) -> PathBuf {
    lab.xlb().unwrap().pin_dir().join(format!("v{}", abi::LAYOUT_VERSION))
}

fn link_state(lab: &Lab, pin: &str) -> Option<LinkState> {
    Link::open(&version(lab).join(pin)).and_then(|link| link.state()).ok()
}

fn pinned(lab: &Lab) -> Pinned {
    let dir = version(lab);
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let links = names.filter(|name| name.starts_with("link-"));
    Pinned {
        program: ProgramInfo::from_pin(dir.join("prog")).unwrap().id(),
        links: links.map(|name| (name.clone(), link_state(lab, &name).unwrap())).collect(),
        maps: maps::ALL.map(|name| (name, map_id(&dir, name).unwrap())).into(),
    }
}

fn map_id(version: &Path, name: &str) -> Option<u32> {
    MapInfo::from_pin(version.join("maps").join(name)).ok().map(|info| info.id())
}

fn has_xdp(lab: &Lab, interface: &str) -> bool {
    let netns = lab.topology().balancer().netns.handle();
    let output = netns.command("ip").args(["link", "show", interface]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("xdp")
}

fn forwards(lab: &Lab) {
    let tally = lab.client().burst(&[HTTP_V4, HTTP_V6], 300, 16, SECOND).unwrap();
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// The control: without the data path nothing answers.
fn does_not_forward(lab: &Lab) {
    let tally = lab.client().burst(&[HTTP_V4], 20, 20, SECOND / 5).unwrap();
    assert_eq!(tally.answered(), 0, "{tally}");
}

fn restart(lab: &mut Lab) {
    let xlb = lab.xlb_mut().unwrap();
    xlb.start().unwrap();
    xlb.wait_ready(READY).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Starts the controller, which must end by itself with this status and these words.
fn refused(lab: &mut Lab, status: i32, words: &[&str]) {
    let xlb = lab.xlb_mut().unwrap();
    xlb.start().unwrap();
    let ended = wait_for(READY, || xlb.exit_status()).expect("xlb ends");
    assert_eq!(ended.code(), Some(status), "{}", xlb.last_log(40));
    for word in words {
        let said = wait_for(SECOND, || xlb.has_logged(|line| line.contains(word)).then_some(()));
        assert!(said.is_some(), "`{word}` is missing in: {}", xlb.last_log(40));
    }
    xlb.kill().unwrap();
}

fn packets(status: &Status) -> u64 {
    status.backends("web").iter().map(|b| b.packets).sum()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn detach(lab: &Lab, status: i32, words: &[&str]) {
    let output = lab.xlb().unwrap().detach().unwrap();
    assert_eq!(output.status.code(), Some(status), "{}", text(&output));
    for word in words {
        assert!(text(&output).contains(word), "`{word}` is missing in: {}", text(&output));
    }
}

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
    wait_for(SECOND, || (!has_xdp(&lab, "eth0")).then_some(())).expect("the data path ends");
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
    fs::write(&path, format!("limits: {{slots: 131074, backends: 64}}\n{}", config())).unwrap();
    let limits =
        ["`limits.slots` is 131074", "made for 4194304", "`limits.backends` is 64", "`xlb detach --pin-dir"];
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
        let mut command = std::process::Command::new(xlb());
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
    let services = MapData::from_pin(version(&lab).join("maps").join(maps::SERVICES4)).unwrap();
    let services = Map::from_map_data(services).unwrap();
    let mut services: HashMap<MapData, ServiceKey4, Service> = services.try_into().unwrap();
    let keys: Vec<_> = services.keys().map(Result::unwrap).collect();
    assert_eq!(keys.len(), 4, "three listens and the mark of their address");
    for key in &keys {
        services.remove(key).unwrap();
    }
    does_not_forward(&lab);
    mended(&lab, "repair: + service 192.0.2.10:80/6", || services.keys().count() == keys.len());
    forwards(&lab);

    // Single pins, and then all of them with their directory.
    let before = pinned(&lab);
    fs::remove_file(&pin).unwrap();
    fs::remove_file(version(&lab).join("maps").join(maps::RING)).unwrap();
    mended(&lab, "pinned again: RING, the link of eth0", || link_state(&lab, "link-eth0").is_some());
    assert_eq!(pinned(&lab), before);
    fs::remove_dir_all(lab.xlb().unwrap().pin_dir()).unwrap();
    mended(&lab, "pinned again: prog, SERVICES4", || link_state(&lab, "link-eth0").is_some());
    assert_eq!(pinned(&lab), before);
    // The new directory is locked like the old one.
    detach(&lab, 75, &["already running"]);
    forwards(&lab);
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
