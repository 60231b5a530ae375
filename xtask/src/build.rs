//! `cargo xtask build`: the eBPF objects, then an `xlb` that carries them.

use crate::{
    setup,
    tool::{cargo, exec, root, target_dir},
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Options of `build`.
#[derive(clap::Args, Clone, Copy, Default)]
pub struct Args {
    /// Optimised; the lab and the benches want it
    #[arg(long)]
    pub release: bool,
    /// Also the balancers with a rule left out that tests compare it with; no xlb carries them
    #[arg(long)]
    pub controls: bool,
}

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 3] = ["balancer", "decap", "bench"];
/// Features of lb-ebpf that leave a rule out.
const CONTROLS: [&str; 1] = ["control-refused-to-current"];

/// Builds everything; answers the path of `xlb`.
pub fn run(args: Args) -> Result<PathBuf> {
    objects()?;
    if args.controls {
        CONTROLS.iter().try_for_each(|feature| control(feature))?;
    }
    let mut command = cargo();
    command.args(["build", "--package", "lb-userspace"]);
    if args.release {
        command.arg("--release");
    }
    exec(&mut command)?;
    Ok(target_dir().join(if args.release { "release" } else { "debug" }).join("xlb"))
}

/// Builds the eBPF objects into `target/bpf`, where lb-userspace's build script finds them.
pub fn objects() -> Result<()> {
    let out = target_dir().join("bpf");
    compile(&["--bins"], &OBJECTS.map(|object| (object, out.join(object))))
}

/// Builds a balancer with a rule left out, which no product carries: tests put it into a copy of `xlb`, see
/// `lb_lab::with_control`.
fn control(feature: &str) -> Result<()> {
    let to = target_dir().join("bpf").join(format!("balancer-{feature}"));
    compile(&["--bin", "balancer", "--features", feature], &[("balancer", to)])
}

/// Builds eBPF objects and copies them to where they are wanted.
fn compile(arguments: &[&str], objects: &[(&str, PathBuf)]) -> Result<()> {
    setup::rust_src()?;
    let linker = setup::bpf_linker()?;
    let build_dir = target_dir().join("bpf-build");
    let mut command = bpf_cargo("build", &linker, &build_dir);
    exec(command.args(arguments).args(["--profile", "bpf"]))?;
    let newest = ["lb-ebpf/src", "lb-common/src"].iter().filter_map(|dir| newest(&root().join(dir))).max();
    for (object, to) in objects {
        let dir = to.parent().context("an object in no directory")?;
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        copy_if_older(&build_dir.join(TARGET).join("bpf").join(object), to, newest)?;
    }
    Ok(())
}

/// A cargo command for `lb-ebpf`.
pub fn bpf_cargo(verb: &str, linker: &Path, build_dir: &Path) -> std::process::Command {
    // v3 (kernel 5.1) has 32-bit arithmetic and jumps. Packet headers stand at any alignment, and the kernel allows
    // unaligned access to packets on every machine that we serve: without the feature, LLVM loads byte by byte.
    let flags = [
        "-Ctarget-cpu=v3".into(),
        "-Cdebuginfo=2".into(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        "-Clink-arg=--cpu-features=+alu32,+allows-misaligned-mem-access".into(),
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ];
    let mut command = cargo();
    command
        .args([verb, "--package", "lb-ebpf", "--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(build_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // `build-std` is not stable; the compiler is the pinned one all the same.
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Copies, unless the copy is younger than every source: lb-userspace's build script asks for that, and would run
/// again for a copy that is only touched.
fn copy_if_older(from: &Path, to: &Path, newest_source: Option<SystemTime>) -> Result<()> {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if time(to) < newest_source || time(to) < time(from) {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        fs::write(to, bytes).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(())
}

/// Time of the latest change under a directory.
fn newest(dir: &Path) -> Option<SystemTime> {
    let time = |entry: fs::DirEntry| {
        let path = entry.path();
        if path.is_dir() { newest(&path) } else { entry.metadata().ok()?.modified().ok() }
    };
    fs::read_dir(dir).ok()?.flatten().filter_map(time).max()
}
