//! The project's only door: `cargo xtask build | test | lint | run | lab`.
//!
//! Each command prints what it runs; root is needed only where it says so.

mod build;
mod setup;
mod test;
mod tool;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, runs and tests xlb.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetches what building and testing need and this machine lacks: rust-src, bpf-linker, Debian packages
    Setup,
    /// Builds the eBPF objects and a complete `xlb` in target/debug or target/release
    Build(build::Args),
    /// Runs every test; needs root
    Test(test::Args),
    /// Format and clippy, warnings as errors, for the host and for BPF
    Lint,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::everything(),
        Command::Build(args) => build::run(args).map(drop),
        Command::Test(args) => test::run(&args),
        Command::Lint => test::lint(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
