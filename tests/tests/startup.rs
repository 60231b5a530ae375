//! What can be wrong when `xlb run` starts: each has its own message and exit status, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use lb_lab::{BPF_DIR, DIR_PREFIX, NetnsHandle, Topology, TopologyConfig, root_or_skip};
use lb_tests::net::{Config, lab, xlb};

/// Runs `xlb run` in the balancer's namespace to its end; kills it if it should run on.
fn run(netns: &NetnsHandle, config: &Path, socket: &Path) -> Output {
    let mut command = netns.command(xlb());
    command.args(["run", "--config"]).arg(config).arg("--socket").arg(socket);
    command.arg("--pin-dir").arg(pin_dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("xlb runs on: {}", text(&child.wait_with_output().unwrap()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// One for this process: whoever runs beside uses the default one.
fn pin_dir() -> PathBuf {
    Path::new(BPF_DIR).join(format!("{DIR_PREFIX}{}-startup", std::process::id()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether an XDP program is on the balancer's interface.
fn has_xdp(netns: &NetnsHandle) -> bool {
    let output = netns.command("ip").args(["link", "show", "eth0"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("xdp")
}

#[test]
fn every_obstacle_has_its_own_message_and_status_and_leaves_no_trace() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::build(TopologyConfig::default()).unwrap();
    let netns = topology.balancer().netns.handle();
    let dir = tempfile::tempdir().unwrap();
    // Readable for whoever runs without root below.
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket = dir.path().join("xlb.sock");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let good = Config::new("10.88.0.", 3).text();
    let config = write("good.yaml", &good);

    let expect = |what: &str, output: Output, status: i32, words: &[&str]| {
        let text = text(&output);
        assert_eq!(output.status.code(), Some(status), "{what}: {text}");
        for word in words {
            assert!(text.contains(word), "{what}: `{word}` is missing in: {text}");
        }
        assert!(!has_xdp(&netns), "{what}: a program is left on the interface");
        assert!(!socket.exists(), "{what}: the socket is left");
        assert!(!pin_dir().exists(), "{what}: pins are left");
    };

    let bad = write("bad.yaml", &good.replace("forward", "foward"));
    expect("a bad file", run(&netns, &bad, &socket), 65, &["bad.yaml:", "did you mean `forward`"]);
    let missing = dir.path().join("missing.yaml");
    expect("no file", run(&netns, &missing, &socket), 65, &["missing.yaml", "No such file"]);
    let other = write("other.yaml", &good.replace("eth0", "eth7"));
    expect("no such interface", run(&netns, &other, &socket), 1, &["interface eth7", "no such interface"]);
    // The namespace is entered as root; only then is root given up.
    let in_tmp = dir.path().join("nobody.sock");
    let mut nobody = netns.command("setpriv");
    nobody
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(xlb())
        .args(["run", "--config"]);
    nobody.arg(&config).arg("--socket").arg(&in_tmp).arg("--pin-dir").arg(pin_dir());
    let output = nobody.output().unwrap();
    expect("no root", output, 77, &["permission denied", "CAP_BPF"]);

    // Somebody else's program has the slot.
    let mut holder = netns.command(xlb());
    holder.args(["decap", "--interface", "eth0"]).stderr(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !has_xdp(&netns) {
        assert!(Instant::now() < deadline, "the other program is not attached");
        thread::sleep(Duration::from_millis(10));
    }
    let output = run(&netns, &config, &socket);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while has_xdp(&netns) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    expect("slot taken", output, 1, &["interface eth0", "XDP slot is taken"]);
}

#[test]
fn a_second_controller_is_told_and_the_first_does_not_notice() {
    if !root_or_skip() {
        return;
    }
    let lab = lab(TopologyConfig::default(), &Config::new("10.88.0.", 3).text());
    let first = lab.xlb().unwrap();
    let netns = lab.topology().balancer().netns.handle();
    let output = run(&netns, first.config_path(), &first.socket());
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).contains("already"), "{}", text(&output));
    assert_eq!(lab.client().http_get(lb_lab::HTTP_V4, Duration::from_secs(1)).map(|_| ()), Ok(()));
    assert!(lab.status().is_ok());
}

#[test]
fn leaving_takes_everything_along() {
    if !root_or_skip() {
        return;
    }
    let mut lab = lab(TopologyConfig::default(), &Config::new("10.88.0.", 3).text());
    let netns = lab.topology().balancer().netns.handle();
    assert!(has_xdp(&netns));
    let socket = lab.xlb().unwrap().socket();
    assert!(socket.exists());
    let status = lab.xlb_mut().unwrap().stop().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!has_xdp(&netns) && !socket.exists());
    let asked = lab.xlb().unwrap().command(&["status"]).unwrap();
    assert_eq!(asked.status.code(), Some(69), "{}", text(&asked));
}
