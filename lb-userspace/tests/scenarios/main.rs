//! Stories in text files: configurations and events, and what the maps hold after them.
//!
//! Each file beside this one is played with maps that never fail and then with maps of which each operation fails with a
//! chance of 10 %; after each operation the maps must be safe, and at the end empty. `UPDATE_EXPECT=1` writes what came out
//! into the files: read the difference.
//!
//! ```text
//! # a comment
//! config <<<                                     the file, up to a line `>>>`
//! attach eth0 2                                  the program is on eth0, index 2
//! detach eth0
//! next_hop 10.0.0.11 via 02:00:00:00:00:0b dev 2 [from 10.0.0.1]
//! next_hop 10.0.0.11 unreachable
//! health web/s1 up                               up | down | unknown, and a reason: down L7STS 503
//! admin web/s1 drain                             active | drain | disabled
//! wait 90                                        seconds
//! up web/s1 web/s2                               these verdicts at once
//! walk 1x3                                       the sweeper finds three TCP pins to backend 1 in slots of others
//! refuse pin                                     the program does
//! restart                                        another run of the controller adopts the maps
//! started                                        who becomes eligible from now on starts slowly
//! stop after 2                                   the next step does two operations (records count) only; the one after it the rest
//! ops:                                           the operations since the last such block, but for records
//! leaving:                                       who has left the file and keeps flows
//! expect:                                        the maps
//! outer:                                         of the backends, what outer headers are made of
//! ```

#[path = "../plan_properties/safety.rs"]
mod safety;
mod stage;

use std::{fs, path::Path};

use stage::Stage;

/// The first plays without faults.
const SEEDS: u64 = 8;

fn play(text: &str, seed: u64) -> String {
    let chance = if seed == 0 { 0.0 } else { 0.1 };
    let mut stage = Stage::new(chance, seed);
    let mut played = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        push_line(&mut played, line);
        if line == "config <<<" {
            let mut file = String::new();
            for line in lines.by_ref().take_while(|line| *line != ">>>") {
                push_line(&mut file, line);
            }
            played += &file;
            push_line(&mut played, ">>>");
            stage.config(&file);
        } else if let Some(block) = line.strip_suffix(':') {
            while lines.next_if(|line| line.starts_with("  ")).is_some() {}
            for line in stage.block(block) {
                push_line(&mut played, &format!("  {line}"));
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            stage.step(line);
        }
    }
    stage.end();
    played
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn scenario(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios").join(name).with_extension("txt");
    let mut text = fs::read_to_string(&path).expect("read the scenario");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    for seed in 0..SEEDS {
        let played = play(&text, seed);
        if update && seed == 0 {
            fs::write(&path, &played).expect("write the scenario");
            text.clone_from(&played);
        }
        let differs = text.lines().zip(played.lines()).position(|(written, played)| written != played);
        if let Some(line) = differs {
            let show = |text: &str| text.lines().skip(line).take(12).collect::<Vec<_>>().join("\n");
            panic!(
                "{}:{}: with seed {seed} comes\n{}\ninstead of\n{}\n(UPDATE_EXPECT=1 writes what comes)",
                path.display(),
                line + 1,
                show(&played),
                show(&text)
            );
        }
        assert_eq!(text, played, "{name}, seed {seed}");
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            scenario(stringify!($name));
        })*

        /// No file is forgotten here.
        #[test]
        fn every_file_is_played() {
            let names = [$(stringify!($name)),*];
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
            for entry in fs::read_dir(directory).expect("list the scenarios") {
                let path = entry.expect("list the scenarios").path();
                let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
                let is_scenario = path.extension().is_some_and(|extension| extension == "txt");
                assert!(!is_scenario || names.contains(&&*name), "{name} is not in the list");
            }
        }
    };
}

scenarios! {
    a_server_dies_and_returns
    weights
    drain
    disable
    use_all
    all_down
    ports
    ipv6
    ipip
    shared_address
    pool_changes
    ring_size
    next_hop
    interface_gone
    renamed
    stopped_halfway
    drain_ends
    drain_end_keep
    leaving
    leaves_and_returns
    on_down
    move_ends
    settled_by_a_walk
    tracking
    slow_start
    udp
    restart
    renamed_while_draining
}
