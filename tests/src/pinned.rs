//! Labs whose controller goes while the data path stays, and what is pinned in them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use aya::{maps::MapInfo, programs::ProgramInfo};
use lb_common::abi::{self, maps};
use lb_lab::{ConfigSource, HTTP_V4, HTTP_V6, Lab, LabConfig, ServerProgram, Status, wait_for};
use lb_userspace::dataplane::bpf::{Link, LinkState};

use crate::net::{Config, xlb};

const SECOND: Duration = Duration::from_secs(1);
const READY: Duration = Duration::from_secs(15);

/// A lab whose controller has these further arguments.
pub fn lab(arguments: &[&str], config: &str) -> Lab {
    let server = ServerProgram::beside().unwrap_or_else(|e| panic!("{e:#}"));
    let source = Some((xlb(), ConfigSource::Text(config.to_owned())));
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Lab::start(LabConfig { xlb: source, arguments, ..LabConfig::new(server) })
        .unwrap_or_else(|e| panic!("{e:#}"))
}

/// Three servers.
pub fn config() -> String {
    Config::new("10.88.0.", 3).text()
}

/// Everything that is pinned, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Id of the program.
    pub program: u32,
    /// By name of the pin.
    pub links: BTreeMap<String, LinkState>,
    /// Ids.
    pub maps: BTreeMap<&'static str, u32>,
}

/// The directory of this layout's pins.
pub fn version(lab: &Lab) -> PathBuf {
    lab.xlb().unwrap().pin_dir().join(format!("v{}", abi::LAYOUT_VERSION))
}

/// A pinned link.
pub fn link_state(lab: &Lab, pin: &str) -> Option<LinkState> {
    Link::open(&version(lab).join(pin)).and_then(|link| link.state()).ok()
}

/// All pins; panics if one is missing.
pub fn pinned(lab: &Lab) -> Pinned {
    let dir = version(lab);
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let links = names.filter(|name| name.starts_with("link-"));
    Pinned {
        program: ProgramInfo::from_pin(dir.join("prog")).unwrap().id(),
        links: links.map(|name| (name.clone(), link_state(lab, &name).unwrap())).collect(),
        maps: maps::ALL.map(|name| (name, map_id(&dir, name).unwrap())).into(),
    }
}

/// A pinned map.
pub fn map_id(version: &Path, name: &str) -> Option<u32> {
    MapInfo::from_pin(version.join("maps").join(name)).ok().map(|info| info.id())
}

/// Whether an XDP program is on the balancer's interface.
pub fn has_xdp(lab: &Lab, interface: &str) -> bool {
    let netns = lab.topology().balancer().netns.handle();
    let output = netns.command("ip").args(["link", "show", interface]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains("xdp")
}

/// Every request is answered.
pub fn forwards(lab: &Lab) {
    let tally = lab.client().burst(&[HTTP_V4, HTTP_V6], 300, 16, SECOND).unwrap();
    assert_eq!(tally.failed(), 0, "{tally}");
}

/// The control: without the data path nothing answers.
pub fn does_not_forward(lab: &Lab) {
    let tally = lab.client().burst(&[HTTP_V4], 20, 20, SECOND / 5).unwrap();
    assert_eq!(tally.answered(), 0, "{tally}");
}

/// Starts the controller and waits until it is ready.
pub fn restart(lab: &mut Lab) {
    let xlb = lab.xlb_mut().unwrap();
    xlb.start().unwrap();
    xlb.wait_ready(READY).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Starts the controller, which must end by itself with this status and these words.
pub fn refused(lab: &mut Lab, status: i32, words: &[&str]) {
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

/// Packets sent to all backends.
pub fn packets(status: &Status) -> u64 {
    status.backends("web").iter().map(|b| b.packets).sum()
}

/// What a command printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `xlb detach` must end with this status and these words.
pub fn detach(lab: &Lab, status: i32, words: &[&str]) {
    let output = lab.xlb().unwrap().detach().unwrap();
    assert_eq!(output.status.code(), Some(status), "{}", text(&output));
    for word in words {
        assert!(text(&output).contains(word), "`{word}` is missing in: {}", text(&output));
    }
}
