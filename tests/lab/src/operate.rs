//! What an operator does with a controller: drain, enable, look at events, replace the program.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
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
        let (path, new) = (self.path(), self.dir.join("xlb.new"));
        let mut program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        with_other_bpf(&mut program)?;
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

/// Changes one instruction in each section of code of the BPF objects embedded in `program`, where it can, into another that means the same: `if a > N` is
/// `if a >= N + 1`. The kernel sees another program, with another tag.
pub fn with_other_bpf(program: &mut [u8]) -> Result<()> {
    let objects: Vec<_> =
        (0..program.len().saturating_sub(64)).filter(|at| is_bpf(&program[*at..])).collect();
    ensure!(!objects.is_empty(), "there is no BPF object in this program");
    for object in objects {
        let sections = code_sections(&program[object..])?;
        let jump = |(start, length): (usize, usize)| {
            let start = object + start;
            Some(start + greater_than(program.get(start..start + length)?)?)
        };
        let jumps: Vec<_> = sections.into_iter().filter_map(jump).collect();
        ensure!(!jumps.is_empty(), "there is no `if a > N` in the BPF object at {object}");
        for jump in jumps {
            program[jump] = JGE;
            let immediate = i32::from_le_bytes(program[jump + 4..jump + 8].try_into()?);
            program[jump + 4..jump + 8].copy_from_slice(&(immediate + 1).to_le_bytes());
        }
    }
    Ok(())
}

/// `BPF_JMP | BPF_JGT | BPF_K` and its neighbour; both compare without sign.
const JGT: u8 = 0x25;
const JGE: u8 = 0x35;
/// `BPF_LD | BPF_IMM | BPF_DW`, the only instruction of two words.
const LOAD_WIDE: u8 = 0x18;

/// Whether a little-endian 64-bit ELF object for machine 247, BPF, starts here.
fn is_bpf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes[18..20] == [247, 0]
}

/// Start and length of every section with code.
fn code_sections(object: &[u8]) -> Result<Vec<(usize, usize)>> {
    let number = |at: usize, length: usize| {
        let bytes = object.get(at..at + length).context("the BPF object ends early")?;
        Ok::<_, anyhow::Error>(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (table, entry, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let mut found = Vec::new();
    for header in (0..count).map(|i| table + i * entry) {
        // SHT_PROGBITS with SHF_EXECINSTR.
        if number(header + 4, 4)? == 1 && number(header + 8, 8)? & 4 != 0 {
            found.push((number(header + 24, 8)?, number(header + 32, 8)?));
        }
    }
    Ok(found)
}

/// Where the first jump is that can be said otherwise.
fn greater_than(code: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(instruction) = code.get(at..at + 8) {
        let immediate = i32::from_le_bytes(instruction[4..].try_into().ok()?);
        if instruction[0] == JGT && (0..i32::MAX).contains(&immediate) {
            return Some(at);
        }
        at += if instruction[0] == LOAD_WIDE { 16 } else { 8 };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unsigned_comparison_with_a_number_is_replaced() {
        let wide = [LOAD_WIDE, 1, 0, 0, JGT, 0, 0, 0, JGT, 0, 0, 0, 0, 0, 0, 0];
        let signed = [0x65, 1, 2, 0, 9, 0, 0, 0];
        let jump = [JGT, 1, 2, 0, 9, 0, 0, 0];
        assert_eq!(greater_than(&[&wide[..], &signed, &jump].concat()), Some(24));
        assert_eq!(greater_than(&[&wide[..], &signed].concat()), None);
    }

    #[test]
    fn a_program_without_bpf_is_refused() {
        let mut nothing = vec![0; 4096];
        assert!(with_other_bpf(&mut nothing).unwrap_err().to_string().contains("no BPF object"));
    }
}
