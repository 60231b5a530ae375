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
    if wants_rivals(&args.words) {
        setup::bench_packages()?;
    }
    let xlb = build::run(build::Args { release: true, ..build::Args::default() })?;
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "lb-bench", "--"]).args(&args.words);
    exec(command.arg("--objects").arg(target_dir().join("bpf")).arg("--xlb").arg(xlb))
}

/// Whether the end-to-end part is run in full: only then what it compares with is installed. (Words are options, or the
/// parts that are wanted; none are all.)
fn wants_rivals(words: &[String]) -> bool {
    let has = |wanted: &str| words.iter().any(|word| word == wanted);
    let all = words.iter().all(|word| word.starts_with('-'));
    (all || has("end-to-end")) && !["--quick", "--help", "-h"].iter().any(|word| has(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_are_for_the_full_end_to_end_part() {
        let wants = |line: &str| wants_rivals(&line.split_whitespace().map(String::from).collect::<Vec<_>>());
        assert!(wants("") && wants("--json") && wants("packets end-to-end"));
        assert!(!wants("packets") && !wants("--quick") && !wants("end-to-end --quick") && !wants("--help"));
    }
}
