//! The commands that work on this machine, without asking a controller.

use anyhow::Context as _;

use super::{
    Exit,
    args::{CheckArgs, DecapArgs, DetachArgs, RunArgs},
    print, text,
};
use crate::{
    config,
    controller::start::{self, Options},
    dataplane::bpf::{self, Detached},
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
            Self::Run(args) => {
                let RunArgs { config, socket, pin_dir, keep, log_format: _ } = args;
                let options = Options { config, socket, pin_dir, keep };
                runtime()?.block_on(start::run(&options))?;
                Ok(Exit::Ok)
            }
            Self::Check(args) => check(&args),
            Self::Detach(args) => detach(&args),
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

fn detach(args: &DetachArgs) -> anyhow::Result<Exit> {
    let dir = &args.pin_dir;
    let Detached { interfaces, directories } = bpf::detach(dir)?;
    for interface in &interfaces {
        print(&format!("the data path is off {}\n", text::escape(interface)))?;
    }
    for directory in &directories {
        print(&format!("removed {}\n", directory.display()))?;
    }
    if directories.is_empty() {
        // Where the file system is hidden (`ip netns exec` does it), the pins cannot be seen either.
        let why =
            if bpf::on_bpf_fs(dir)? { "there are no pins" } else { "no BPF file system is mounted there" };
        print(&format!("nothing to detach at {}: {why}\n", dir.display()))?;
    }
    Ok(Exit::Ok)
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
