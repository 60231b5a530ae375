//! The commands that work on this machine, without asking a controller.

use anyhow::bail;

use super::{Exit, args::Command};

/// Runs `run`, `check`, `detach` or `decap`.
pub(super) fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        // The one place where the controller, the file and the data path are wired to the command line.
        Command::Run(_) | Command::Check(_) | Command::Detach(_) | Command::Decap(_) => {
            bail!("not linked yet")
        }
        other => bail!("{other:?} needs a controller"),
    }
}
