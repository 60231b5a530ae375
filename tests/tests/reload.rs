//! The file is edited while traffic flows: every way of writing is seen, in time, and no new connection fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use lb_lab::{HTTP_V4, HTTP_V6, Lab, TopologyConfig, Traffic, root_or_skip};
use lb_tests::net::{Config, lab, wait_status};
use lb_userspace::config::{self, consent};

const SECOND: Duration = Duration::from_secs(1);

fn in_place(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

fn by_rename(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// As Kubernetes does it: the path leads through a link that is swapped.
fn by_link(path: &Path, text: &str) {
    let dir = path.parent().unwrap();
    let old = fs::read_link(dir.join("..data")).unwrap();
    let next = dir.join(format!("..{}", fastrand::u64(..)));
    fs::create_dir(&next).unwrap();
    fs::write(next.join(path.file_name().unwrap()), text).unwrap();
    let link = dir.join("..data_tmp");
    std::os::unix::fs::symlink(&next, &link).unwrap();
    fs::rename(link, dir.join("..data")).unwrap();
    fs::remove_dir_all(dir.join(old)).unwrap();
}

fn weight(config: &Config, weight: u32) -> String {
    let mut config = config.clone();
    config.backends[0].2 = format!(", weight: {weight}");
    config.text()
}

/// The weight of s1 that is in force.
fn weight_in_force(lab: &Lab, wanted: u64) -> Duration {
    wait_status(lab, 5 * SECOND, &format!("weight {wanted}"), |s| {
        s.service("web").unwrap()["backends"][0]["weight"].as_u64() == Some(wanted)
    })
}

#[test]
fn a_hundred_edits_in_all_three_ways_are_seen_within_a_second_and_no_new_connection_fails() {
    if !root_or_skip() {
        return;
    }
    let config = Config::new("10.88.0.", 3);
    let lab = lab(TopologyConfig::default(), &config.text());
    let path = lab.xlb().unwrap().config_path().to_owned();
    let traffic = Traffic::start(lab.client(), &[HTTP_V4, HTTP_V6], 100);
    let mut slowest = Duration::ZERO;
    for edit in 0..100u32 {
        if edit == 66 {
            // From here on the path is a link into a directory that is a link.
            let real = path.parent().unwrap().join("..first");
            fs::create_dir(&real).unwrap();
            fs::write(real.join(path.file_name().unwrap()), weight(&config, 100 + 65)).unwrap();
            std::os::unix::fs::symlink("..first", path.parent().unwrap().join("..data")).unwrap();
            let link = path.with_extension("link");
            std::os::unix::fs::symlink(Path::new("..data").join(path.file_name().unwrap()), &link).unwrap();
            fs::rename(link, &path).unwrap();
        }
        let text = weight(&config, 100 + edit);
        match edit {
            0..33 => in_place(&path, &text),
            33..66 => by_rename(&path, &text),
            _ => by_link(&path, &text),
        }
        slowest = slowest.max(weight_in_force(&lab, u64::from(100 + edit)));
    }
    assert!(slowest < SECOND, "the slowest of 100 edits took {slowest:?}");
    let tally = traffic.take_tally();
    assert!(tally.answered() > 1000 && tally.failed() == 0, "{tally}");
}

#[test]
fn sighup_reload_and_a_removed_server() {
    if !root_or_skip() {
        return;
    }
    let config = Config::new("10.88.0.", 3);
    let lab = lab(TopologyConfig::default(), &config.text());
    let path = lab.xlb().unwrap().config_path().to_owned();
    // One of three may go without a word, once the file has been still for half a second.
    let mut two = config.clone();
    two.backends.remove(1);
    let before = Instant::now();
    by_rename(&path, &two.text());
    wait_status(&lab, 3 * SECOND, "s2 has left", |s| s.backends("web").len() == 2);
    assert!(before.elapsed() >= Duration::from_millis(500), "a removal waits for stillness");
    let tally = lab.client().burst(&[HTTP_V4], 300, 16, SECOND).unwrap();
    assert!(tally.failed() == 0 && tally.count("s2") == 0, "{tally}");
    // Two of three may not: it is held, and SIGHUP is consent.
    let mut none = config.clone();
    none.backends.truncate(1);
    by_rename(&path, &config.text());
    wait_status(&lab, 3 * SECOND, "three again", |s| s.backends("web").len() == 3);
    by_rename(&path, &none.text());
    wait_status(&lab, 3 * SECOND, "held", |s| {
        s.last_error().is_some_and(|e| e.contains("removes 2 of 3 backends"))
    });
    assert_eq!(lab.status().unwrap().backends("web").len(), 3);
    lab.xlb().unwrap().signal(lb_lab::Signal::HUP).unwrap();
    wait_status(&lab, 3 * SECOND, "one", |s| s.backends("web").len() == 1 && s.last_error().is_none());
    // What moves every flow needs more than that.
    by_rename(&path, &format!("hash_seed: 9\n{}", none.text()));
    wait_status(&lab, 3 * SECOND, "held", |s| s.last_error().is_some_and(|e| e.contains("hash_seed")));
    let reload = lab.xlb().unwrap().command(&["reload"]).unwrap();
    assert_eq!(reload.status.code(), Some(1), "{reload:?}");
    let apply = lab.xlb().unwrap().command(&["apply", "--force"]).unwrap();
    assert_eq!(apply.status.code(), Some(0), "{apply:?}");
    assert!(lab.status().unwrap().last_error().is_none());
}

#[test]
fn a_bad_file_changes_nothing_and_is_told() {
    if !root_or_skip() {
        return;
    }
    let config = Config::new("10.88.0.", 3);
    let lab = lab(TopologyConfig::default(), &config.text());
    let xlb = lab.xlb().unwrap();
    let before = lab.status().unwrap();
    let bad = config.text().replace("weight", "wait").replace("timeout: 200ms", "timeout: 200");
    by_rename(xlb.config_path(), &bad);
    wait_status(&lab, 3 * SECOND, "refused", |s| s.last_error().is_some_and(|e| e.contains("lab.yaml:")));
    let after = lab.status().unwrap();
    assert_eq!(before.generation(), after.generation());
    let ring = |s: &lb_lab::Status| s.service("web").unwrap()["table_checksum"].clone();
    assert_eq!(ring(&before), ring(&after));
    let reload = xlb.command(&["reload"]).unwrap();
    assert_eq!(reload.status.code(), Some(65), "{reload:?}");
    fs::remove_file(xlb.config_path()).unwrap();
    wait_status(&lab, 5 * SECOND, "gone", |s| s.last_error().is_some_and(|e| e.contains("No such file")));
    assert_eq!(lab.client().burst(&[HTTP_V4], 50, 8, SECOND).unwrap().failed(), 0);
}

#[test]
fn a_file_cut_at_any_byte_never_removes_a_service_nor_most_backends() {
    let text = Config::new("10.88.0.", 3).text()
        + "  - {name: second, listen: [\"192.0.2.11:80/tcp\"], forward: l2, health: {type: none},\n     backends: [{address: 10.88.0.11}, {address: 10.88.0.12}, {address: 10.88.0.13}]}\n";
    let whole = config::parse(&text, Path::new("whole.yaml")).unwrap().spec;
    let (mut valid, mut taken) = (0, 0);
    for cut in 0..text.len() {
        let Ok(loaded) = config::parse(&text[..cut], Path::new("cut.yaml")) else { continue };
        valid += 1;
        if !consent::held(&whole, &loaded.spec, |_| true).is_empty() {
            continue;
        }
        taken += 1;
        assert_eq!(loaded.spec.services.len(), 2, "cut at {cut}");
        let backends: usize = loaded.spec.services.iter().map(|s| s.backends.len()).sum();
        assert!(backends >= 3, "cut at {cut}: {backends} of 6 backends");
    }
    // The control: some cuts are valid files that would have removed a service.
    assert!(valid > taken, "{valid} valid prefixes, {taken} taken: the guard was never needed");
}
