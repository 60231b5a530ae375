//! The project's only door.

mod control;
mod lab;
mod run;
mod story;
mod table;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Runs xlb: in a lab of namespaces, or on this host
    Run(run::RunArgs),
    /// Acts on a running lab
    Lab(lab::LabArgs),
    /// A test server of the lab
    #[command(hide = true, name = lab::SERVER_COMMAND)]
    LabServer {
        /// Its name and addresses
        words: Vec<String>,
    },
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    match Command::parse() {
        Command::Run(args) => run::run(args)?,
        Command::Lab(args) => lab::run(args)?,
        Command::LabServer { words } => return Ok(lb_lab::server::main(words)),
    }
    Ok(std::process::ExitCode::SUCCESS)
}
