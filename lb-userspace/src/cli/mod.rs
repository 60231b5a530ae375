//! The command: what is typed ([`args`]), what is asked of a running controller, and what is printed.
//!
//! Rendering is pure: `(answer, options) -> String`. Whatever came from outside passes [`text::escape`] first.

pub mod args;
mod ask;
mod drain;
mod exit;
mod local;
mod render;
mod status;
mod table;
mod text;

pub use args::Cli;
pub use exit::Exit;

use std::io::{self, Write};

use args::Command;

use crate::logging::{self, LogFormat};

/// Runs the command. Errors are for [`report`].
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match &cli.command {
        Command::Run(run) => logging::init(run.log_format, "info"),
        Command::Decap(_) => logging::init(LogFormat::Human, "info"),
        _ => logging::init(LogFormat::Human, "warn"),
    }
    match ask::Question::of(cli.command) {
        Ok(question) => question.ask(),
        Err(local) => local.run(),
    }
}

/// Prints the error with its causes, and says how to leave.
pub fn report(error: &anyhow::Error) -> Exit {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // Nothing else can be done about a stderr that is gone.
    drop(writeln!(io::stderr(), "error: {}", text::escape_lines(&causes.join(": "))));
    Exit::of(error)
}

/// Prints to stdout. False: nobody reads any more (`xlb events | head`), which is no error.
fn print(text: &str) -> anyhow::Result<bool> {
    print_to(&mut io::stdout().lock(), text)
}

fn print_to(out: &mut impl Write, text: &str) -> anyhow::Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::new(error).context("write to stdout")),
    }
}
