//! `cargo xtask bench`: what a packet, a request and a change cost. The harness is `bench/`.

use crate::{
    build, setup,
    tool::{cargo, exec, is_root, target_dir},
};
use anyhow::{Result, bail};

/// Options of `bench`; the harness knows what they mean.
#[derive(clap::Args)]
pub struct Args {
    /// Options and parts, see `cargo xtask bench -- --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Builds everything optimised, and measures.
pub fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("cargo xtask bench needs root (BPF, network namespaces)");
    }
    setup::packages()?;
    let xlb = build::run(build::Args { release: true, ..build::Args::default() })?;
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "lb-bench", "--"]).args(&args.words);
    exec(command.arg("--objects").arg(target_dir().join("bpf")).arg("--xlb").arg(xlb))
}
