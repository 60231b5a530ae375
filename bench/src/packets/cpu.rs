//! The CPU to measure on.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps this thread on the CPU that has been the least busy for a while; answers which.
pub fn pin() -> Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let before = idle()?;
    thread::sleep(Duration::from_millis(300));
    let after = idle()?;
    let idled = before.iter().zip(&after).map(|((cpu, before), (_, after))| (after - before, *cpu));
    let (_, cpu) = idled.filter(|(_, cpu)| allowed.is_set(*cpu)).max().context("no CPU in /proc/stat")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)?;
    Ok(cpu)
}

/// Ticks that each CPU was idle for.
fn idle() -> Result<Vec<(usize, u64)>> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let cpus = stat.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let cpu = fields.next()?.strip_prefix("cpu")?.parse().ok()?;
        Some((cpu, fields.nth(3)?.parse().ok()?))
    });
    Ok(cpus.collect())
}
