//! CPU time: of our own tasks to the nanosecond, and of the whole machine.
//!
//! Packets between namespaces are handled in softirqs, which the kernel runs on the time of whatever task made the
//! packet, or in ksoftirqd: the tasks that take part and ksoftirqd together are all that a request costs. Where the
//! kernel accounts interrupts apart (`IRQ_TIME_ACCOUNTING`), that time is added.

use std::{
    fs,
    ops::Sub,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// Processes whose CPU time is looked at, all of their threads included.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    pids: Vec<u32>,
}

impl Processes {
    /// A process and what it has started until now.
    pub fn tree(root: u32) -> Result<Self> {
        let mut tree = Self::below(root)?;
        tree.pids.push(root);
        Ok(tree)
    }

    /// What a process has started until now, and those in turn.
    pub fn below(root: u32) -> Result<Self> {
        let all = Self::list()?;
        let mut pids = Vec::new();
        let mut parents = vec![root];
        while let Some(parent) = parents.pop() {
            for process in all.iter().filter(|process| process.parent == parent) {
                pids.push(process.pid);
                parents.push(process.pid);
            }
        }
        Ok(Self { pids })
    }

    /// The kernel's threads for softirqs that took too long.
    fn softirq_threads() -> Result<Self> {
        let all = Self::list()?;
        let ours = all.iter().filter(|process| process.name.starts_with("ksoftirqd/"));
        Ok(Self { pids: ours.map(|process| process.pid).collect() })
    }

    fn list() -> Result<Vec<Process>> {
        let entries = fs::read_dir("/proc").context("read /proc")?;
        let process = |name: String| {
            let pid = name.parse().ok()?;
            // One that has just ended is no error.
            Process::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        };
        Ok(entries.filter_map(|entry| process(entry.ok()?.file_name().into_string().ok()?)).collect())
    }

    /// Kills them; whether that was done.
    pub fn kill(&self) -> bool {
        let kill = |&pid: &u32| kill_process(Pid::from_raw(pid.cast_signed())?, Signal::KILL).ok();
        // Some end with others.
        self.pids.iter().filter_map(kill).count() > 0
    }

    /// The time that their present threads have run.
    pub fn used(&self) -> Duration {
        self.pids.iter().map(|pid| threads_time(&Path::new("/proc").join(pid.to_string()).join("task"))).sum()
    }
}

/// A line of the list of processes.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    name: String,
    parent: u32,
}

impl Process {
    /// From `/proc/<pid>/stat`: `pid (name) state parent ...`, where a name may hold anything.
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let (head, rest) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        Some(Self { pid, name, parent: rest.split_ascii_whitespace().nth(1)?.parse().ok()? })
    }
}

/// Sum of the first number of each thread's `schedstat`: nanoseconds on a CPU.
fn threads_time(tasks: &Path) -> Duration {
    let Ok(threads) = fs::read_dir(tasks) else { return Duration::ZERO };
    let time = |path: &Path| -> Option<u64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| time(&thread.ok()?.path())).sum())
}

/// Reads what a load costs; made once all that take part run.
#[derive(Debug, Clone)]
pub struct Meter {
    others: Processes,
    irqs_apart: bool,
    cpus: u32,
    start: Instant,
}

/// CPU time since some beginning, or between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// Of the calling thread, the processes that take part, and ksoftirqd.
    pub ours: Duration,
    /// Of everything on the machine.
    pub machine: Duration,
    /// What all CPUs together could have given.
    pub capacity: Duration,
}

impl Meter {
    /// Counts all that this process has started until now, and every calling thread.
    pub fn new() -> Result<Self> {
        let mut others = Processes::below(std::process::id())?;
        others.pids.extend(Processes::softirq_threads()?.pids);
        let cpus = std::thread::available_parallelism().context("count the CPUs")?.get() as u32;
        Ok(Self { others, irqs_apart: irqs_are_apart(), cpus, start: Instant::now() })
    }

    /// Until now; the calling thread is one that takes part.
    pub fn read(&self) -> Result<Used> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let machine = Stat::parse(&stat).context("read the first line of /proc/stat")?;
        let here = clock_gettime(ClockId::ThreadCPUTime);
        let here = Duration::new(here.tv_sec as u64, here.tv_nsec as u32);
        let irqs = if self.irqs_apart { machine.irqs } else { Duration::ZERO };
        // The idle time is exact where ticks stop when idle; what ticks sample as busy is not. Before the start it
        // was longer than all the time since, so that the difference is what counts.
        let wall = (self.start.elapsed() + Self::BEFORE) * self.cpus;
        let machine = wall.saturating_sub(machine.not_busy);
        Ok(Used { ours: here + self.others.used() + irqs, machine, capacity: wall })
    }

    /// Longer than any machine has been idle.
    const BEFORE: Duration = Duration::from_hours(24 * 365 * 100);
}

impl Sub for Used {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            ours: self.ours.saturating_sub(before.ours),
            machine: self.machine.saturating_sub(before.machine),
            capacity: self.capacity.saturating_sub(before.capacity),
        }
    }
}

impl Used {
    /// The share of the machine that went to what has no part in it.
    pub fn foreign(&self) -> f64 {
        self.machine.saturating_sub(self.ours).as_secs_f64() / self.capacity.as_secs_f64()
    }
}

/// The machine's CPUs since it started, from the first line of `/proc/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Idle, waiting for disks, or not ours (steal).
    not_busy: Duration,
    /// Interrupts and softirqs.
    irqs: Duration,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        let words = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
        let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let [_, _, _, idle, iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
        let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64);
        Some(Self { not_busy: time(idle + iowait + steal), irqs: time(irq + softirq) })
    }
}

/// One of the CPUs that a thread may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first.
    First,
    /// The last; the only one may be both.
    Last,
}

/// Keeps the calling thread on one CPU.
pub fn pin(place: Place) -> Result<()> {
    let allowed = sched_getaffinity(None).context("ask for the CPUs")?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let cpu = match place {
        Place::First => cpus.next(),
        Place::Last => cpus.next_back(),
    };
    let mut one = CpuSet::new();
    one.set(cpu.context("no CPU")?);
    sched_setaffinity(None, &one).context("stay on one CPU")
}

/// Whether this kernel takes interrupts' time off the tasks'. If nobody says, it does not.
fn irqs_are_apart() -> bool {
    let release = rustix::system::uname();
    let boot = Path::new("/boot").join(format!("config-{}", release.release().to_string_lossy()));
    let config = fs::read_to_string(boot).ok().or_else(|| {
        let output = std::process::Command::new("zcat").arg("/proc/config.gz").output().ok()?;
        String::from_utf8(output.stdout).ok()
    });
    config.is_some_and(|config| config.lines().any(|line| line == "CONFIG_IRQ_TIME_ACCOUNTING=y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        let found = Process::parse(7, "7 (a) (b c) S 3 7 7 0 -1").expect("it is well-formed");
        assert_eq!(found, Process { pid: 7, name: "a) (b c".into(), parent: 3 });
        assert_eq!(Process::parse(7, "7 cut"), None);
    }

    #[test]
    fn idle_disks_and_steal_are_not_busy() {
        let ticks = |n: u64| Duration::from_secs_f64(n as f64 / clock_ticks_per_second() as f64);
        let stat = Stat::parse("cpu  1 2 4 8 16 32 64 128 256 512\ncpu0 1\n").expect("it is well-formed");
        assert_eq!(stat, Stat { not_busy: ticks(8 + 16 + 128), irqs: ticks(32 + 64) });
        assert_eq!(Stat::parse("cpu  1 2 3\n"), None);
    }

    #[test]
    fn work_of_this_thread_is_counted() {
        let meter = Meter::new().expect("/proc is there");
        let before = meter.read().expect("/proc is there");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {}
        let used = meter.read().expect("/proc is there") - before;
        assert!(used.ours > Duration::from_millis(5), "{used:?}");
    }
}
