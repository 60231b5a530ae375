//! The project's only door: `cargo xtask build | test | lint | bench | run | lab`.
//!
//! Each command prints what it runs; root is needed only where it says so.

mod bench;
mod build;
mod control;
mod lab;
mod run;
mod setup;
mod story;
mod table;
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
    /// Runs xlb: in a lab of network namespaces (no NIC needed), or on this host; needs root
    Run(run::RunArgs),
    /// Acts on a running lab: kill, start, pause, cut a server, talk to the service
    Lab(lab::LabArgs),
    /// A test server of the lab
    #[command(hide = true, name = lab::SERVER_COMMAND)]
    LabServer {
        /// Its name and addresses
        words: Vec<String>,
    },
    /// Runs every test; needs root
    Test(test::Args),
    /// Measures what a packet, a request and a change cost; needs root, about 3 minutes
    Bench(bench::Args),
    /// Format and clippy, warnings as errors, for the host and for BPF
    Lint,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::everything(),
        Command::Build(args) => build::run(args).map(drop),
        Command::Run(args) => run::run(args),
        Command::Lab(args) => lab::run(args),
        Command::LabServer { words } => return lb_lab::server::main(words),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
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
