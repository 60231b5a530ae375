//! `xlb`: a layer-4 load balancer. See `xlb help`.

use std::process::ExitCode;

use clap::Parser;
use lb_userspace::cli;

/// A reload makes and frees some hundred thousand small pieces in a heap that is never fresh again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(error) => cli::report(&error).into(),
    }
}
