//! `cargo xtask test`: everything, and `lint`.

use crate::{
    build, setup,
    tool::{cargo, describe, exec, is_root, target_dir},
};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

/// Options of `test`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
}

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs every test: those that need no root, then those that do. A test that cannot run here has failed.
pub fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "cargo xtask test needs root (BPF, network namespaces); plain `cargo test` runs what needs none"
        );
    }
    let start = Instant::now();
    setup::everything()?;
    let xlb = build::run(build::Args { controls: true, ..build::Args::default() })?;
    let mut tally = Tally::default();
    let mut broken = Vec::new();
    for packages in
        [&["--workspace", "--exclude", "lb-ebpf", "--exclude", "lb-tests"][..], &["--package", "lb-tests"]]
    {
        let mut command = cargo();
        command.arg("test").args(packages).arg("--no-fail-fast").args(&args.filter);
        command.env("XLB_REQUIRE_ROOT", "1").env("XLB_BIN", &xlb);
        // Packets through namespaces share two queues and the clock: one at a time.
        if packages.contains(&"lb-tests") {
            command.args(["--", "--test-threads=1"]);
        }
        if !counted(&mut command, &mut tally)? {
            broken.push(describe(&command));
        }
    }
    eprintln!("\nall of it took {:.0} s", start.elapsed().as_secs_f64());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if !broken.is_empty() {
        bail!("failed: {}", broken.join("; "));
    }
    if tally.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Runs a `cargo test`, passes its output on and adds its result lines up.
fn counted(command: &mut Command, tally: &mut Tally) -> Result<bool> {
    let text = describe(command);
    eprintln!("\u{25b8} {text}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{text}`"))?;
    let output = child.stdout.take().expect("stdout is piped");
    for line in BufReader::new(output).lines() {
        let line = line?;
        // `test result: ok. 3 passed; 0 failed; ...`
        if let Some(result) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = result.split([' ', ';']).collect();
            let before = |what| words.iter().position(|w| *w == what).and_then(|i| words[i - 1].parse().ok());
            tally.passed += before("passed").unwrap_or(0);
            tally.failed += before("failed").unwrap_or(0);
        }
        println!("{line}");
    }
    Ok(child.wait()?.success())
}

/// Format and clippy with warnings as errors.
pub fn lint() -> Result<()> {
    exec(cargo().args(["fmt", "--all", "--check"]))?;
    exec(cargo().args([
        "clippy",
        "--workspace",
        "--exclude",
        "lb-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    setup::rust_src()?;
    let linker = setup::bpf_linker()?;
    let mut bpf = build::bpf_cargo("clippy", &linker, &target_dir().join("bpf-build"));
    exec(bpf.args(["--", "-D", "warnings"]))
}
