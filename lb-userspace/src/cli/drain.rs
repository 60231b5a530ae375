//! `xlb drain`, and waiting until its backend serves nobody any more.

use std::{
    io::{self, IsTerminal, Write},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    Exit,
    args::{BackendName, DrainArgs},
    ask::json,
    print_to, render,
    text::{duration, escape, number},
};
use crate::{
    api::{
        client::{Client, ClientError},
        model::{AdminReply, BackendStatus, Status},
    },
    config::spec::AdminState,
};

/// How often the controller is asked, and a line is shown.
const INTERVAL: Duration = Duration::from_secs(1);
/// So long the controller may be away: it restarts.
const AWAY_MAX: Duration = Duration::from_secs(15);
/// After so long no packet is under way any more that the slots of before the drain were read for.
const IN_FLIGHT_S: f64 = 1.0;

/// Drains a backend; with `--wait`, waits for the end of it.
pub(super) async fn drain<W: Write>(args: &DrainArgs, mut screen: Screen<W>) -> anyhow::Result<Exit> {
    let name = &args.of.backend;
    let client = Client::new(&args.of.to.socket);
    let reply = client.set_admin(&name.service, &name.backend, AdminState::Drain, args.force).await?;
    if !args.of.json {
        screen.print(&render::admin(name, &reply))?;
    } else if !args.wait {
        screen.print(&json(&reply)?)?;
    }
    if !args.wait {
        return Ok(Exit::Ok);
    }
    let limits = Limits { timeout: args.timeout, quiet: args.quiet };
    let waited = wait(name, limits, async || client.status().await, |line| screen.show(line)).await;
    screen.clear();
    let waited = waited.with_context(|| format!("wait for the drain of {name}"))?;
    if args.of.json {
        let state = waited.state.unwrap_or(reply.state);
        screen.print(&json(&WaitReply { reply: AdminReply { state, ..reply }, wait: &waited })?)?;
        return Ok(if waited.end.is_success() { Exit::Ok } else { Exit::Failed });
    }
    let verdict = waited.verdict(name, limits);
    if !waited.end.is_success() {
        bail!(verdict);
    }
    screen.print(&format!("{verdict}\n"))?;
    Ok(Exit::Ok)
}

/// `xlb drain --wait --json`: what `drain` alone says, with the state seen last, and how waiting ended.
#[derive(Serialize)]
struct WaitReply<'a> {
    #[serde(flatten)]
    reply: AdminReply,
    wait: &'a Waited,
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// At most.
    timeout: Duration,
    /// At least until the drain has lasted so long.
    quiet: Duration,
}

/// How waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// No pin is left.
    Drained,
    /// The backend is.
    Gone,
    /// Somebody gave it another state.
    NoLongerDraining,
    /// The time is over.
    TimedOut,
}

impl End {
    fn is_success(self) -> bool {
        matches!(self, Self::Drained | Self::Gone)
    }
}

/// How waiting ended, and what was seen last.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Waited {
    end: End,
    /// Null when the backend is gone, and before the first count.
    pins: Option<u64>,
    took_s: f64,
    /// Pins that were left when the drain reached its deadline.
    at_deadline: u64,
    #[serde(skip)]
    state: Option<AdminState>,
}

impl Waited {
    fn verdict(&self, name: &BackendName, limits: Limits) -> String {
        let waited = duration(self.took_s);
        match (self.end, self.state) {
            (End::Drained, _) if self.at_deadline > 0 => format!(
                "{name}: no pin is left after {waited}, but {} left at the drain's deadline: what they held was reset, \
                 unless it ended just then",
                pins_of(self.at_deadline)
            ),
            (End::Drained, _) => format!("{name}: no pin is left after {waited}"),
            (End::Gone, _) => format!("{name}: gone after {waited}, so no pin is left"),
            (End::NoLongerDraining, state) => {
                let state = state.map_or_else(|| "another".to_owned(), |state| state.to_string());
                let pins =
                    self.pins.map_or_else(String::new, |pins| format!(", with {} left", pins_of(pins)));
                format!("{name} is no longer draining: its state is {state} now{pins}")
            }
            (End::TimedOut, _) if self.pins == Some(0) => format!(
                "{name}: no pin is left after {waited}, but the drain has to last {} to be sure; it goes on",
                duration(sure_after(limits.quiet))
            ),
            (End::TimedOut, _) => {
                let pins = self.pins.map_or_else(|| "nobody knows how many pins are".to_owned(), pins_of);
                format!("{name}: {pins} left after {waited}; the drain goes on")
            }
        }
    }
}

/// Asks until it is over. Errs when the controller stays away.
async fn wait(
    name: &BackendName,
    limits: Limits,
    mut ask: impl AsyncFnMut() -> Result<Status, ClientError>,
    mut show: impl FnMut(&str),
) -> Result<Waited, ClientError> {
    let started = Instant::now();
    let mut watched = Watched { name, server: None };
    let mut last_answer = started;
    let mut at_deadline = 0;
    loop {
        let answer = ask().await;
        let now = Instant::now();
        let left = limits.timeout.saturating_sub(now - started);
        match answer {
            Ok(status) => {
                last_answer = now;
                let seen = watched.find(&status);
                if let Some(seen) =
                    seen.as_ref().filter(|seen| seen.drain_left_s.is_none_or(|left| left > 0.0))
                {
                    at_deadline = seen.pins.unwrap_or(0);
                }
                let timed_out = left.is_zero().then_some(End::TimedOut);
                if let Some(end) =
                    seen.as_ref().map_or(Some(End::Gone), |s| s.end(limits.quiet)).or(timed_out)
                {
                    return Ok(Waited {
                        end,
                        pins: seen.as_ref().and_then(|seen| seen.pins),
                        took_s: (now - started).as_secs_f64(),
                        at_deadline: if seen.as_ref().is_some_and(Seen::is_over) { at_deadline } else { 0 },
                        state: seen.map(|seen| seen.state),
                    });
                }
                show(&seen.map_or_else(String::new, |seen| seen.line(name, limits.quiet)));
            }
            Err(error) if error.may_pass() && !left.is_zero() && now - last_answer < AWAY_MAX => {
                show(&format!("{name}: the controller does not answer; waiting for it"));
            }
            Err(error) => return Err(error),
        }
        sleep(INTERVAL.min(left)).await;
    }
}

/// The backend that is waited for.
struct Watched<'a> {
    name: &'a BackendName,
    /// Once seen, its address and port are what it is known by: the file may give its name to another server.
    server: Option<(IpAddr, Option<u16>)>,
}

impl Watched<'_> {
    /// `None` when it is gone.
    fn find(&mut self, status: &Status) -> Option<Seen> {
        let service = status.services.iter().find(|service| service.name == self.name.service)?;
        let is_it = |backend: &&BackendStatus| match self.server {
            None => backend.name == self.name.backend,
            Some(server) => (backend.address, backend.port) == server,
        };
        let present = service.backends.iter().find(is_it);
        let leaving = service.leaving.iter().find(is_it);
        let found = present.or(leaving)?;
        self.server = Some((found.address, found.port));
        Some(Seen {
            // Whatever the file said last of a backend that it no longer has: it drains.
            state: if present.is_some() { found.state } else { AdminState::Drain },
            leaving: present.is_none(),
            pins: status.flows.swept_s.and(Some(found.pins)),
            draining_s: found.draining_s,
            drain_left_s: found.drain_left_s,
            swept_s: status.flows.swept_s,
        })
    }
}

/// What one status says of the backend.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    state: AdminState,
    leaving: bool,
    /// `None` before the first count.
    pins: Option<u64>,
    draining_s: Option<f64>,
    drain_left_s: Option<f64>,
    swept_s: Option<f64>,
}

impl Seen {
    fn end(&self, quiet: Duration) -> Option<End> {
        if self.state != AdminState::Drain {
            return Some(End::NoLongerDraining);
        }
        (self.pins == Some(0) && self.is_sure(quiet)).then_some(End::Drained)
    }

    /// Whether the drain has reached its deadline.
    fn is_over(&self) -> bool {
        self.drain_left_s == Some(0.0)
    }

    /// Whether the count is one to rely on. Pins are counted by walks over the flow table, so a count is as old as its
    /// walk, and a zero may be from before the drain, when the slots were settled and had no pins. A connection gets
    /// its pin with its first packet after the slot began to move. So only a walk counts that began when the drain had
    /// lasted `quiet` already, and in any case long enough for packets that were under way.
    fn is_sure(&self, quiet: Duration) -> bool {
        let (Some(draining), Some(swept)) = (self.draining_s, self.swept_s) else { return false };
        draining - swept >= sure_after(quiet)
    }

    fn line(&self, name: &BackendName, quiet: Duration) -> String {
        let mut line = match self.pins {
            Some(pins) => format!("{name}: {} left", pins_of(pins)),
            None => format!("{name}: pins not counted yet"),
        };
        if self.leaving {
            line += ", leaving";
        }
        if let Some(draining) = self.draining_s {
            line += &format!(", draining for {}", duration(draining));
        }
        if self.pins == Some(0) {
            line += &format!(" (sure after {})", duration(sure_after(quiet)));
        } else if let Some(left) = self.drain_left_s {
            line += &format!(", deadline in {}", duration(left));
        }
        line
    }
}

/// How long a drain has to last, in seconds, before a walk over the flow table that begins then finds every pin.
fn sure_after(quiet: Duration) -> f64 {
    quiet.as_secs_f64().max(IN_FLIGHT_S)
}

fn pins_of(pins: u64) -> String {
    format!("{} {}", number(pins), if pins == 1 { "pin" } else { "pins" })
}

/// Where the pins that are left are shown.
pub(super) struct Screen<W> {
    out: W,
    progress: Progress,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// In one line that is drawn again and again.
    Redrawn,
    /// In a line each time.
    Lines,
    /// Not at all.
    Silent,
}

impl Screen<io::Stdout> {
    /// Stdout; without progress for `--json`.
    pub(super) fn stdout(as_json: bool) -> Self {
        let out = io::stdout();
        let progress = match out.is_terminal() {
            _ if as_json => Progress::Silent,
            true => Progress::Redrawn,
            false => Progress::Lines,
        };
        Self { out, progress }
    }
}

impl<W: Write> Screen<W> {
    /// A text that stays.
    fn print(&mut self, text: &str) -> anyhow::Result<()> {
        // Somebody who no longer reads may still want the exit status.
        print_to(&mut self.out, text).map(drop)
    }

    /// How far it is.
    fn show(&mut self, line: &str) {
        let text = match self.progress {
            // Without wrapping: a line that is longer than the terminal is wide could not be drawn over.
            Progress::Redrawn => format!("\r\x1b[K\x1b[?7l{line}\x1b[?7h"),
            Progress::Lines => format!("{line}\n"),
            Progress::Silent => return,
        };
        // What matters is how it ends.
        drop(print_to(&mut self.out, &text));
    }

    /// Makes room for what follows.
    fn clear(&mut self) {
        if self.progress == Progress::Redrawn {
            drop(print_to(&mut self.out, "\r\x1b[K"));
        }
    }
}

impl std::fmt::Display for BackendName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", escape(&self.service), escape(&self.backend))
    }
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
