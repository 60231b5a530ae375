//! Configuration files, good and bad, as their readers meet them: what is accepted, and every word of what is said.

use std::{
    fmt::Write as _,
    fs, panic,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lb_userspace::config::{self, Loaded, MAX_FILE_SIZE, parse, spec::Check};
use proptest::prelude::*;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn good(name: &str) -> Loaded {
    let path = repository().join("config").join(name);
    parse(&fs::read_to_string(&path).expect("read"), Path::new(name))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_files_in_config_are_valid_and_without_warnings() {
    for name in ["minimal.yaml", "lb.yaml"] {
        let loaded = good(name);
        assert!(loaded.warnings.is_empty(), "{name}: {}", loaded.warnings[0]);
        assert!(!loaded.ends_within_a_line());
    }
    insta::assert_debug_snapshot!("minimal", good("minimal.yaml").spec);
    insta::assert_debug_snapshot!("lb", good("lb.yaml").spec);
}

/// What lb.yaml says is a default is one: the same file without the line gives the same spec.
#[test]
fn what_lb_yaml_calls_a_default_is_one() {
    let whole = good("lb.yaml");
    let not_default =
        ["path: /healthz", "host: ", "expect_status: ", "type: http", "tracking: never", "interval: 2s"];
    let mut tried = 0;
    let mut start = 0;
    for line in whole.text.split_inclusive('\n') {
        let rest = &whole.text[start + line.len()..];
        let without = format!("{}{rest}", &whole.text[..start]);
        start += line.len();
        let key = line.trim_start().split(": ").next().unwrap_or_default();
        let scalar = line.contains(": ") && !line.trim_start().starts_with(['#', '-']);
        if !scalar || not_default.iter().any(|text| line.contains(text)) || key == "timeout" {
            continue;
        }
        // A line that is required, or the only one of its map, cannot be left out.
        if let Ok(loaded) = parse(&without, Path::new("lb.yaml")) {
            assert_eq!(loaded.spec, whole.spec, "without {line:?}");
            tried += 1;
        }
    }
    assert!(tried >= 20, "only {tried} lines could be left out");
}

#[test]
fn every_bad_file_has_its_message() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut names: Vec<PathBuf> =
        fs::read_dir(&directory).expect("bad").map(|entry| entry.expect("bad").path()).collect();
    names.sort();
    assert!(names.len() >= 40, "only {} bad files", names.len());
    let mut wrong = Vec::new();
    for path in names {
        let name = path.file_stem().expect("stem").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("read");
        let said = match parse(&text, Path::new(&format!("bad/{name}.yaml"))) {
            Ok(_) => panic!("bad/{name}.yaml is valid"),
            Err(errors) => {
                let unmended = errors.errors.iter().find(|error| error.help.is_none());
                assert_eq!(unmended, None, "{name}: an error without a mend");
                format!("{errors}\n\none line: {}", errors.one_line())
            }
        };
        let check = || {
            insta::with_settings!({snapshot_path => "snapshots/bad", prepend_module_to_snapshot => false, omit_expression => true}, {
                insta::assert_snapshot!(name.clone(), said);
            });
        };
        if panic::catch_unwind(panic::AssertUnwindSafe(check)).is_err() {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "other messages than before: {wrong:?}");
}

#[test]
fn errors_of_the_file_itself_and_of_its_permissions() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("lb.yaml");
    let error = |path: &Path| config::load(path).expect_err("an error").one_line();
    assert!(error(&path).contains("No such file"));
    assert!(error(directory.path()).contains("not a regular file"));
    fs::write(&path, b"interfaces: [\xff]\n").expect("write");
    assert!(error(&path).contains("not UTF-8 (byte 13)"));

    fs::copy(repository().join("config/minimal.yaml"), &path).expect("copy");
    let mut warnings = Vec::new();
    for mode in [0o644, 0o664, 0o646, 0o600] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        let loaded = config::load(&path).expect("valid");
        warnings.push(loaded.warnings.iter().map(|warning| warning.message.clone()).collect::<Vec<_>>());
    }
    let of_mode = |mode| vec![format!("others than the owner may change the file (mode {mode})")];
    assert_eq!(warnings, [vec![], of_mode("0664"), of_mode("0646"), vec![]]);
}

/// Each of these must be answered at once, whatever its size. The limit is lax because the machine is shared.
#[test]
fn hostile_files_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x, x]\n".to_owned();
    for n in 1..100 {
        writeln!(bomb, "a{n}: &a{n} [*a{0}, *a{0}]", n - 1).expect("write");
    }
    let deep = |text: &str| text.repeat(10_000);
    for (what, text) in [
        ("bomb", bomb),
        ("open lists", deep("[")),
        ("open maps", deep("{a: ")),
        ("nested items", deep("- ")),
        ("5 MiB", "#".repeat(5 << 20)),
        ("as large as allowed, many values", "- a\n".repeat(MAX_FILE_SIZE / 4)),
        ("as large as allowed, many keys", "a: b\n".repeat(MAX_FILE_SIZE / 5)),
        ("as large as allowed, one key", "a".repeat(MAX_FILE_SIZE)),
        ("as large as allowed, one line of list", format!("a: [{}]", "b,".repeat(MAX_FILE_SIZE / 2 - 4))),
    ] {
        let start = Instant::now();
        let errors = parse(&text, Path::new("hostile.yaml")).expect_err(what);
        let shown = errors.to_string();
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", start.elapsed());
        assert!(shown.len() < 2_000_000, "{what}: the message has {} bytes", shown.len());
    }
}

#[test]
fn a_file_cut_anywhere_never_panics_and_never_gains_anything() {
    let whole = good("lb.yaml");
    let names: Vec<&str> = whole.spec.services.iter().map(|service| &*service.name).collect();
    let mut valid = 0;
    for cut in (0..whole.text.len()).filter(|cut| whole.text.is_char_boundary(*cut)) {
        if let Ok(part) = parse(&whole.text[..cut], Path::new("f")) {
            valid += 1;
            assert!(
                part.spec
                    .services
                    .iter()
                    .all(|service| names.iter().any(|name| name.starts_with(&*service.name)))
            );
            assert!(part.spec.services.len() <= names.len());
        }
    }
    // Prefixes of a file can be valid: this is why removals wait and are held (`consent`).
    assert!(valid > 0 && valid < whole.text.len());
}

/// serde-saphyr reads our good files to the same values as our tree does.
#[test]
fn an_independent_reader_agrees() {
    let whole = good("lb.yaml");
    let theirs: serde_json::Value = serde_saphyr::from_str(&whole.text).expect("YAML");
    let web = &whole.spec.services[0];
    let their_web = &theirs["services"][0];
    assert_eq!(their_web["ring_size"], web.ring_size);
    let listens: Vec<String> = web.listen.iter().map(ToString::to_string).collect();
    assert_eq!(their_web["listen"], serde_json::json!(listens));
    let Check::Http { path, host, expect_status } = &web.health.check else { panic!("not http") };
    assert_eq!(their_web["health"]["path"], path.as_str());
    assert_eq!(their_web["health"]["host"], host.as_deref().expect("host"));
    assert_eq!(their_web["health"]["expect_status"], serde_json::json!(expect_status));
    let count = |value: &serde_json::Value| value.as_array().map_or(0, Vec::len);
    assert_eq!(count(&theirs["services"]), whole.spec.services.len());
    for (theirs, ours) in theirs["services"].as_array().expect("list").iter().zip(&whole.spec.services) {
        assert_eq!(count(&theirs["backends"]), ours.backends.len());
    }
    // A duplicate key is an error for both.
    let twice = whole.text.replace("hash_seed: 0", "hash_seed: 0\nhash_seed: 1");
    assert!(serde_saphyr::from_str::<serde_json::Value>(&twice).is_err());
    assert!(parse(&twice, Path::new("f")).expect_err("twice").one_line().contains("given twice"));
}

/// 1,000 services with 10 backends each, as in DESIGN section 11.
fn large_file() -> String {
    let mut text = "interfaces: [eth0]\nlimits: {backends: 16384}\nservices:\n".to_owned();
    for service in 0..1000 {
        write!(
            text,
            "  - name: service-{service}\n    listen: [\"192.0.{}.{}:80/tcp\"]\n    forward: l2\n    ring_size: 4093\n    backends:\n",
            service / 250,
            service % 250 + 1
        )
        .expect("write");
        for backend in 0..10 {
            writeln!(
                text,
                "      - {{name: s{backend}, address: 10.{}.{}.{backend}, weight: 100}}",
                service / 250,
                service % 250 + 1
            )
            .expect("write");
        }
    }
    text
}

/// Prints the best of 10; measured in release: `cargo test --release -p lb-userspace --test config_files large -- --nocapture`.
#[test]
fn a_large_file_is_read_quickly() {
    let text = large_file();
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let loaded = parse(&text, Path::new("large.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
        best = best.min(start.elapsed());
        assert_eq!(loaded.spec.services.len(), 1000);
        assert!(loaded.warnings.is_empty());
    }
    println!("{} bytes in {best:?}", text.len());
    assert!(best < Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 }), "{best:?}");
}

/// A change of a file: take some bytes out, put others in.
fn mutate(text: &str, edits: &[(usize, usize, String)]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for (at, length, new) in edits {
        let at = at % (characters.len() + 1);
        let end = (at + length).min(characters.len());
        characters.splice(at..end, new.chars());
    }
    characters.into_iter().collect()
}

fn check_never_panics(text: &str) {
    if let Err(errors) = parse(text, Path::new("f")) {
        assert!(!errors.errors.is_empty());
        assert!(!errors.to_string().is_empty() && !errors.one_line().contains('\n'));
        for error in &errors.errors {
            let place = (error.line.unwrap_or(1), error.column.unwrap_or(1));
            assert!(place.0 as usize <= text.lines().count() + 1 && place.1 >= 1, "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}|[-:,\\[\\]{}#&*!|>'\"% \n\ta-z0-9]{0,300}") {
        check_never_panics(&text);
    }

    #[test]
    fn any_change_of_a_good_file_is_answered(
        edits in prop::collection::vec((any::<usize>(), 0_usize..20, "[-:,\\[\\]{}#&*!|>'\"% \n\ta-z0-9äß]{0,8}"), 1..6)
    ) {
        check_never_panics(&mutate(&good("lb.yaml").text, &edits));
    }
}
