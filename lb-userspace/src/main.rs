//! `xlb`: a layer-4 load balancer. See `xlb help`.

use std::process::ExitCode;

use clap::Parser;
use lb_userspace::cli;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(error) => cli::report(&error).into(),
    }
}
