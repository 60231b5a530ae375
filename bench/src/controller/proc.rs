//! What a process uses, from `/proc`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::param::clock_ticks_per_second;

/// Memory of a process, bytes.
pub struct Memory {
    /// Present now.
    pub resident: u64,
    /// Of that, what no file and nobody else has.
    pub anonymous: u64,
    /// The most that was present.
    pub peak: u64,
}

/// Memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = read(&dir(pid).join("status"))?;
    let bytes = |name: &str| {
        let value = field(&status, name).with_context(|| format!("no {name} in the status of process {pid}"));
        value.map(|kib| kib * 1024)
    };
    Ok(Memory { resident: bytes("VmRSS:")?, anonymous: bytes("RssAnon:")?, peak: bytes("VmHWM:")? })
}

/// Bytes that the kernel's maps take that a process has open.
pub fn maps(pid: u32) -> Result<u64> {
    let infos = dir(pid).join("fdinfo");
    let entries = fs::read_dir(&infos).with_context(|| format!("read {}", infos.display()))?;
    // A map may be open twice.
    let mut maps = BTreeMap::new();
    for entry in entries {
        // It may have been closed by now.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        if let (Some(id), Some(memory)) = (field(&info, "map_id:"), field(&info, "memlock:")) {
            maps.insert(id, memory);
        }
    }
    ensure!(!maps.is_empty(), "process {pid} has no maps open");
    Ok(maps.values().sum())
}

/// CPU time that all threads of a process have had, the kernel's work for them included.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = read(&dir(pid).join("stat"))?;
    let ticks = ticks(&stat).context("read the times of a process")?;
    Ok(Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64))
}

/// Tasks of the whole machine that wanted a CPU, over the last minute.
pub fn load() -> Result<f64> {
    let text = read(Path::new("/proc/loadavg"))?;
    text.split(' ').next().and_then(|word| word.parse().ok()).context("read the load of the machine")
}

/// `utime` and `stime`, fields 14 and 15 (proc_pid_stat(5)). The name, field 2, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace().skip(11);
    Some(words.next()?.parse::<u64>().ok()? + words.next()?.parse::<u64>().ok()?)
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn dir(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_behind_any_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 90 0 0 0 250 31 4 5 20 0 3 0 11 0";
        assert_eq!(ticks(stat), Some(281));
        assert_eq!(ticks("7 cut"), None);
    }

    #[test]
    fn a_field_is_its_whole_name() {
        let text = "memlock_not:\t1\nmemlock:\t4096\nVmRSS:\t  12 kB\n";
        assert_eq!(field(text, "memlock:"), Some(4096));
        assert_eq!(field(text, "VmRSS:"), Some(12));
        assert_eq!(field(text, "map_id:"), None);
    }

    #[test]
    fn this_process_has_memory_and_no_maps() {
        let memory = memory(std::process::id()).expect("/proc is there");
        assert!(
            0 < memory.anonymous && memory.anonymous <= memory.resident && memory.resident <= memory.peak
        );
        assert!(maps(std::process::id()).is_err());
    }
}
