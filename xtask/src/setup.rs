//! What building and testing need beyond Rust, fetched once and only when it is missing.

use crate::tool::{cargo, exec, is_on_path, is_root, target_dir};
use anyhow::{Context as _, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// 0.10.3 uses rustc's own LLVM; later versions need one installed on the system.
const BPF_LINKER_VERSION: &str = "0.10.3";

/// Debian packages of the programs that the lab and the tests run.
const PACKAGES: [(&str, &str); 2] = [("ip", "iproute2"), ("ping", "iputils-ping")];

/// Debian packages of what the end-to-end bench is run beside: what shows that it is there, and the package.
const BENCH_PACKAGES: [(&str, &str); 4] = [
    ("/usr/sbin/haproxy", "haproxy"),
    ("/usr/sbin/nginx", "nginx"),
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
    ("/usr/sbin/nft", "nftables"),
];
/// Those of them that start a service of their own when they are installed.
const SERVICES: [&str; 2] = ["haproxy", "nginx"];

/// Fetches everything.
pub fn everything() -> Result<()> {
    rust_src()?;
    bpf_linker()?;
    packages()
}

/// The source of `core`, which is built for the BPF target.
pub fn rust_src() -> Result<()> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(crate::tool::root())
        .output()
        .context("run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        return Ok(());
    }
    eprintln!("The source of Rust's core library is missing; rustup fetches it once.");
    exec(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(crate::tool::root()))
        .context("without rustup: unpack your distribution's rust-src of the same version under the sysroot")
}

/// The linker for BPF objects; answers its path.
pub fn bpf_linker() -> Result<PathBuf> {
    let tools = target_dir().join("tools");
    let linker = tools.join("bin/bpf-linker");
    if is_version(&linker, BPF_LINKER_VERSION) {
        return Ok(linker);
    }
    eprintln!(
        "bpf-linker {BPF_LINKER_VERSION} is built once into {}; this takes a minute or two.",
        tools.display()
    );
    exec(
        cargo()
            .args(["install", "--locked", "--force", "bpf-linker", "--version", BPF_LINKER_VERSION, "--root"])
            .arg(&tools)
            // Not the flags of our own build.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(linker)
}

fn is_version(linker: &Path, version: &str) -> bool {
    let Ok(output) = Command::new(linker).arg("--version").output() else { return false };
    String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == version)
}

/// The programs that the lab and the tests run.
pub fn packages() -> Result<()> {
    let missing = PACKAGES.iter().filter(|(program, _)| !is_on_path(program));
    install(&missing.map(|(_, package)| *package).collect::<Vec<_>>())
}

/// The balancers that the end-to-end bench compares with. What their packages start by themselves is stopped again.
/// Where they cannot be installed, the bench leaves them out.
pub fn bench_packages() -> Result<()> {
    if !is_on_path("apt-get") {
        return Ok(());
    }
    let missing = BENCH_PACKAGES.iter().filter(|(path, _)| !Path::new(path).exists());
    let missing: Vec<_> = missing.map(|(_, package)| *package).collect();
    install(&missing)?;
    for service in SERVICES.iter().filter(|service| missing.contains(service)) {
        // Only where systemd runs is anything started.
        if Path::new("/run/systemd/system").is_dir() {
            exec(as_root("systemctl").args(["disable", "--now", service]))?;
        }
    }
    Ok(())
}

fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_on_path("apt-get") || !(is_root() || is_on_path("sudo")) {
        bail!(
            "these packages are missing and cannot be installed from here: {list}; install them and try again"
        );
    }
    eprintln!("Debian packages are missing: {list}");
    exec(as_root("apt-get").args(["update", "-q"]))?;
    exec(as_root("apt-get").args(["install", "-y", "-q", "--no-install-recommends"]).args(missing))
}

/// A command as root, that asks no questions.
fn as_root(program: &str) -> Command {
    let mut command = Command::new(if is_root() { program } else { "sudo" });
    if !is_root() {
        command.arg(program);
    }
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
