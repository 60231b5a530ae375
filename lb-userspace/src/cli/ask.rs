//! The commands that ask a running controller.

use std::{fs, io::Read, path::Path, time::Duration};

use anyhow::Context;

use super::{
    Exit,
    args::{AdminArgs, ApplyArgs, Command, DrainArgs, EventsArgs, PlanArgs, ReloadArgs, StatusArgs},
    drain,
    local::Local,
    print, render, status,
};
use crate::{
    api::{
        client::{Client, ClientError},
        handle::Consent,
        model::ReloadReply,
    },
    config::spec::AdminState,
    logging::colour,
};

/// How often `events -f` looks for new ones.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Largest file that is sent, in bytes; the controller refuses larger ones, and says so better.
const FILE_BYTES_MAX: u64 = (4 << 20) + 1;

/// A command that a controller answers.
pub(super) enum Question {
    Plan(PlanArgs),
    Reload(ReloadArgs),
    Apply(ApplyArgs),
    Status(StatusArgs),
    Events(EventsArgs),
    Drain(DrainArgs),
    SetAdmin { of: AdminArgs, state: AdminState, force: bool },
}

impl Question {
    /// Errs with the command if no controller answers it.
    pub(super) fn of(command: Command) -> Result<Self, Local> {
        Ok(match command {
            Command::Plan(args) => Self::Plan(args),
            Command::Reload(args) => Self::Reload(args),
            Command::Apply(args) => Self::Apply(args),
            Command::Status(args) => Self::Status(args),
            Command::Events(args) => Self::Events(args),
            Command::Drain(args) => Self::Drain(args),
            Command::Enable(args) => Self::SetAdmin { of: args.of, state: AdminState::Active, force: false },
            Command::Disable(args) => {
                Self::SetAdmin { of: args.of, state: AdminState::Disabled, force: args.force }
            }
            Command::Run(args) => return Err(Local::Run(args)),
            Command::Check(args) => return Err(Local::Check(args)),
            Command::Detach(args) => return Err(Local::Detach(args)),
            Command::Decap(args) => return Err(Local::Decap(args)),
        })
    }

    /// Asks, and prints the answer.
    pub(super) fn ask(self) -> anyhow::Result<Exit> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?
            .block_on(async {
                match self {
                    Self::Plan(args) => plan(args).await,
                    Self::Reload(args) => {
                        let reply = Client::new(args.to.socket).reload(Consent::Removals).await?;
                        reloaded(&reply, args.json)
                    }
                    Self::Apply(args) => {
                        let consent = if args.force { Consent::Everything } else { Consent::Nothing };
                        reloaded(&Client::new(args.to.socket).reload(consent).await?, args.json)
                    }
                    Self::Status(args) => show_status(args).await,
                    Self::Events(args) => events(args).await,
                    Self::Drain(args) => drain::drain(&args, drain::Screen::stdout(args.of.json)).await,
                    Self::SetAdmin { of, state, force } => set_admin(of, state, force).await,
                }
            })
    }
}

async fn plan(args: PlanArgs) -> anyhow::Result<Exit> {
    let text = read(&args.file).with_context(|| format!("read {}", args.file.display()))?;
    let reply = Client::new(args.to.socket).plan(&args.file.to_string_lossy(), text).await?;
    print(&if args.json { json(&reply)? } else { render::plan(&reply) })?;
    Ok(if reply.errors.is_empty() { Exit::Ok } else { Exit::BadConfig })
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn reloaded(reply: &ReloadReply, as_json: bool) -> anyhow::Result<Exit> {
    print(&if as_json { json(reply)? } else { render::reload(reply) })?;
    Ok(exit_of(reply))
}

/// A change that is held is not what was asked for, even if the rest of the file is in force.
fn exit_of(reply: &ReloadReply) -> Exit {
    match reply {
        _ if !reply.errors.is_empty() => Exit::BadConfig,
        _ if !reply.applied || !reply.held.is_empty() => Exit::Failed,
        _ => Exit::Ok,
    }
}

async fn show_status(args: StatusArgs) -> anyhow::Result<Exit> {
    let client = Client::new(args.to.socket);
    let text = match args.service {
        // The controller's own text: also what a newer one says that we do not know.
        None if args.json => String::from_utf8_lossy(&client.status_json().await?).into_owned(),
        service => {
            let mut status = client.status().await?;
            if let Some(name) = service {
                let known: Vec<&str> = status.services.iter().map(|service| service.name.as_str()).collect();
                anyhow::ensure!(
                    known.contains(&name.as_str()),
                    "there is no service `{name}`; there are: {}",
                    known.join(", ")
                );
                status.services.retain(|service| service.name == name);
            }
            let options = status::Options { colour: colour(&std::io::stdout()) };
            if args.json { json(&status)? } else { status::render(&status, options) }
        }
    };
    print(&text)?;
    Ok(Exit::Ok)
}

async fn set_admin(args: AdminArgs, state: AdminState, force: bool) -> anyhow::Result<Exit> {
    let client = Client::new(args.to.socket);
    let reply = client.set_admin(&args.backend.service, &args.backend.backend, state, force).await?;
    print(&if args.json { json(&reply)? } else { render::admin(&args.backend, &reply) })?;
    Ok(Exit::Ok)
}

async fn events(args: EventsArgs) -> anyhow::Result<Exit> {
    let client = Client::new(args.to.socket);
    let (mut since, mut away) = (0, false);
    let mut first = true;
    loop {
        let reply = match client.events(since).await {
            Ok(reply) => reply,
            // Following goes on with the next controller; its numbers start anew.
            Err(ClientError::NotRunning(socket)) if args.follow && !first => {
                if !away {
                    eprintln!("no controller answers at {} any more: waiting for the next", socket.display());
                }
                (since, away) = (0, true);
                tokio::time::sleep(FOLLOW_INTERVAL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let text = if args.json {
            let lines: Result<Vec<_>, _> = reply.events.iter().map(serde_json::to_string).collect();
            lines.context("write JSON")?.into_iter().map(|line| line + "\n").collect()
        } else {
            render::events(&reply)
        };
        let read = print(&text)?;
        if !args.follow || !read {
            return Ok(Exit::Ok);
        }
        (since, away, first) = (reply.next, false, false);
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value).context("write JSON")? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_ends_as_its_answer_says() {
        let applied = ReloadReply { applied: true, ..ReloadReply::default() };
        assert_eq!(exit_of(&applied), Exit::Ok);
        assert_eq!(exit_of(&ReloadReply { held: vec!["x".to_owned()], ..applied }), Exit::Failed);
        let refused = ReloadReply::default();
        assert_eq!(exit_of(&refused), Exit::Failed);
        assert_eq!(exit_of(&ReloadReply { errors: vec!["x".to_owned()], ..refused }), Exit::BadConfig);
    }
}
