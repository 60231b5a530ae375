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

/// Changes one instruction in each section of code of the BPF objects embedded in `program`, where it can, into
/// another that means the same: `if a > N` is `if a >= N + 1`. The kernel sees another program, with another tag.
pub fn with_other_bpf(program: &mut [u8]) -> Result<()> {
    let objects: Vec<_> =
        (0..program.len().saturating_sub(64)).filter(|at| is_bpf(&program[*at..])).collect();
    ensure!(!objects.is_empty(), "there is no BPF object in this program");
    let mut changed = 0;
    for object in objects {
        for (start, length) in code_sections(&program[object..])? {
            let code = program.get_mut(object + start..object + start + length);
            changed += usize::from(say_otherwise(code.context("the BPF object ends early")?));
        }
    }
    ensure!(changed > 0, "there is no comparison to say otherwise in any BPF object");
    Ok(())
}

/// `BPF_LD | BPF_IMM | BPF_DW`, the only instruction of two words.
const LOAD_WIDE: u8 = 0x18;
/// `if a > N` and `if a < N` without sign, of 64 and 32 bits, and what to add to N when `=` joins them.
const COMPARISONS: [(u8, i32); 4] = [(0x25, 1), (0x26, 1), (0xa5, -1), (0xa6, -1)];
/// From an opcode of these to that with `=`.
const OR_EQUAL: u8 = 0x10;

/// Says the first comparison with a number otherwise; `false` if there is none.
fn say_otherwise(code: &mut [u8]) -> bool {
    let mut second_word = false;
    for instruction in code.chunks_exact_mut(8) {
        let was_second_word = second_word;
        second_word = !was_second_word && instruction[0] == LOAD_WIDE;
        if was_second_word {
            continue;
        }
        let number = i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        let comparison = COMPARISONS.iter().find(|(opcode, _)| *opcode == instruction[0]);
        // Numbers in this range do not wrap, and mean the same with 32 and 64 bits.
        if let Some((_, more)) = comparison.filter(|_| (1..i32::MAX).contains(&number)) {
            instruction[0] += OR_EQUAL;
            instruction[4..].copy_from_slice(&(number + more).to_le_bytes());
            return true;
        }
    }
    false
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unsigned_comparison_with_a_number_is_said_otherwise() {
        let wide = [LOAD_WIDE, 1, 0, 0, 0, 0, 0, 0, 0x25, 0, 0, 0, 9, 0, 0, 0];
        let signed = [0x65, 1, 2, 0, 9, 0, 0, 0];
        for (opcode, other, number) in [(0x25, 0x35, 10), (0x26, 0x36, 10), (0xa5, 0xb5, 8), (0xa6, 0xb6, 8)]
        {
            let mut code = [&wide[..], &signed, &[opcode, 1, 2, 0, 9, 0, 0, 0]].concat();
            assert!(say_otherwise(&mut code));
            assert_eq!(code, [&wide[..], &signed, &[other, 1, 2, 0, number, 0, 0, 0]].concat());
        }
        assert!(!say_otherwise(&mut [&wide[..], &signed].concat()));
    }

    #[test]
    fn a_program_without_bpf_is_refused() {
        let mut nothing = vec![0; 4096];
        assert!(with_other_bpf(&mut nothing).unwrap_err().to_string().contains("no BPF object"));
    }
}
