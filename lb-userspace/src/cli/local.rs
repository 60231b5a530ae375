//! The commands that work on this machine, without asking a controller.

use anyhow::Context as _;

use super::{
    Exit,
    args::{CheckArgs, DecapArgs, RunArgs},
    print, text,
};
use crate::{
    config,
    controller::start::{self, Options},
};

/// A command that no controller answers.
pub(super) enum Local {
    Run(RunArgs),
    Check(CheckArgs),
    Decap(DecapArgs),
}

impl Local {
    /// Does it. The one place where controller, file and data path are wired to the command line.
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        match self {
            Self::Run(args) => {
                let options = Options { config: args.config, socket: args.socket };
                runtime()?.block_on(start::run(&options))?;
                Ok(Exit::Ok)
            }
            Self::Check(args) => check(&args),
            Self::Decap(args) => {
                let any = [([0, 0, 0, 0].into(), 0), ([0u16; 8].into(), 0)];
                let mut allow: Vec<_> = args.allow.iter().map(|cidr| (cidr.address, cidr.prefix)).collect();
                if allow.is_empty() {
                    allow.extend(any);
                }
                runtime()?.block_on(start::decap(&args.interface, &allow))?;
                Ok(Exit::Ok)
            }
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // Two workers: probes and clients on them, so that the controller's own task is never behind a slow one.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn check(args: &CheckArgs) -> anyhow::Result<Exit> {
    let (warnings, errors) = match config::load(&args.file) {
        Ok(loaded) => (loaded.warnings, None),
        Err(errors) => (Vec::new(), Some(errors)),
    };
    if args.json {
        let none = config::ConfigErrors { errors: Vec::new(), warnings, more_errors: 0 };
        let all = errors.as_ref().unwrap_or(&none);
        print(&format!("{}\n", serde_json::to_string_pretty(all).context("write JSON")?))?;
    } else if let Some(errors) = &errors {
        print(&format!("{}\n", text::escape_lines(&errors.to_string())))?;
    } else {
        for warning in &warnings {
            print(&format!("{}\n\n", text::escape_lines(&warning.to_string())))?;
        }
        let place = args.file.display();
        let verdict = if warnings.is_empty() { "good" } else { "usable" };
        print(&format!("{place}: {verdict}: {}\n", config::summary(0, warnings.len())))?;
    }
    Ok(if errors.is_some() { Exit::BadConfig } else { Exit::Ok })
}
