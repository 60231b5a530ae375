//! The commands that work on this machine, without asking a controller.

use anyhow::bail;

use super::{
    Exit,
    args::{CheckArgs, DecapArgs, DetachArgs, RunArgs},
};

/// A command that no controller answers.
pub(super) enum Local {
    Run(RunArgs),
    Check(CheckArgs),
    Detach(DetachArgs),
    Decap(DecapArgs),
}

impl Local {
    /// Does it. The one place where controller, file and data path are wired to the command line.
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Run(args) => bail!("not linked yet: run {}", args.config.display()),
            Self::Check(args) => bail!("not linked yet: check {}", args.file.display()),
            Self::Detach(args) => bail!("not linked yet: detach {}", args.pin_dir.display()),
            Self::Decap(args) => bail!("not linked yet: decap on {}", args.interface),
        }
    }
}
