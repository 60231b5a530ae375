//! What an operator does with a controller: drain, enable, look at events, replace the program.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    changed::with_other_bpf,
    lab::Lab,
    netns::{DIR_PREFIX, RUN_DIR, sweep, unique},
    process::{beside_this_binary, check},
    status::Status,
    wait_for,
    xlb::Xlb,
};

/// The `xlb` under test: `XLB_BIN`, set by `cargo xtask test`, else the one in the target directory.
pub fn xlb_under_test() -> Result<PathBuf> {
    match std::env::var_os("XLB_BIN") {
        Some(path) => Ok(path.into()),
        None => beside_this_binary("xlb", "cargo xtask build"),
    }
}

/// One of `xlb events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub at: Instant,
    /// `health`, `admin`, ...
    pub kind: String,
    /// The backend that it is about; empty if it is about none.
    pub backend: String,
    /// What happened.
    pub text: String,
}

impl Xlb {
    /// `xlb drain`, `enable` or `disable` of `SERVICE/BACKEND`.
    pub fn administer(&self, verb: &str, backend: &str) -> Result<()> {
        check(&format!("xlb {verb} {backend}"), &self.command(&[verb, backend])?)
    }

    /// `xlb events`, the oldest first.
    pub fn events(&self) -> Result<Vec<Event>> {
        let output = self.command(&["events", "--json"])?;
        check("xlb events", &output)?;
        let (now, wall) = (Instant::now(), SystemTime::now());
        let text = String::from_utf8(output.stdout).context("read the events")?;
        text.lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line).context("read an event")?;
                let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
                let at =
                    UNIX_EPOCH + Duration::from_millis(value["time_unix_ms"].as_u64().context("no time")?);
                let age = wall.duration_since(at).unwrap_or_default();
                let at = now.checked_sub(age).context("an event from before the start of the clock")?;
                Ok(Event { at, kind: word("kind"), backend: word("backend"), text: word("text") })
            })
            .collect()
    }
}

impl Lab {
    /// Waits until `xlb status` says so, and says how long it took.
    pub fn wait_status(
        &self,
        limit: Duration,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        wait_for(limit, || self.status().ok().filter(|status| holds(status)))
            .with_context(|| format!("not within {limit:?}: {what}"))?;
        Ok(start.elapsed())
    }
}

/// A program at a path of its own that can be replaced while it runs, as a package does it. Removed on drop.
#[derive(Debug)]
pub struct Installed {
    dir: PathBuf,
}

impl Installed {
    /// Installs `program`.
    pub fn new(program: &Path) -> Result<Self> {
        sweep();
        let dir = Path::new(RUN_DIR).join(format!("{DIR_PREFIX}{}-{}", std::process::id(), unique()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let installed = Self { dir };
        symlink(program, installed.path()).with_context(|| format!("install {}", program.display()))?;
        Ok(installed)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.dir.join("xlb")
    }

    /// Puts a copy in its place whose data path differs byte for byte and does the same, see [`with_other_bpf`].
    pub fn upgrade(&self) -> Result<()> {
        self.change(with_other_bpf)
    }

    /// Puts a changed copy in its place.
    pub fn change(&self, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let (path, new) = (self.path(), self.dir.join("xlb.new"));
        let mut program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        change(&mut program)?;
        // A copy takes the permissions along, which a write does not.
        fs::copy(&path, &new).and_then(|_| fs::write(&new, program)).context("write the other program")?;
        fs::rename(&new, &path).context("replace the program")
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
