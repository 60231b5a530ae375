//! What the controller does: rings, plans, loads and reloads, memory, and what it costs when nothing happens.
//!
//! `subject.rs` has the files that are planned, `plan.rs` runs the controller's engine in this process on the kernel's maps,
//! `process.rs` whole `xlb` processes in a namespace, `proc.rs` reads what they use, `probed.rs` answers their probes.

mod plan;
mod probed;
mod proc;
mod process;
mod subject;

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::{
    Options,
    report::{Bar, Section},
    stats::{median, spread},
};
use process::Site;
use subject::thousand_by_ten;

/// Backends of the services that are planned.
const SIZES: [(u32, &str); 3] = [(3, "3 backends"), (100, "100 backends"), (1_000, "1,000 backends")];
/// Size of the file that is loaded.
const LARGE: &str = "1,000 services x 10 backends";

/// How much is measured.
struct Effort {
    /// Of what takes about a millisecond.
    rounds: usize,
    /// Of what takes much longer.
    loads: usize,
    /// For which an idle controller is looked at, in seconds.
    idle_s: u64,
    /// Kinds of probes.
    probes: &'static [&'static str],
}

/// Measures all cases.
pub fn run(options: &Options) -> Result<Vec<Section>> {
    let effort = if options.quick {
        Effort { rounds: 6, loads: 1, idle_s: 1, probes: &["http"] }
    } else {
        Effort { rounds: 40, loads: 5, idle_s: 5, probes: &["tcp", "http"] }
    };
    let mut bars = Section::new("The controller against its bars", &[]);
    bars.note(format!(
        "Times are of the wall clock. Tasks that wanted a CPU when it began: {}.",
        proc::load()?
    ));
    eprintln!("controller: rings and verdicts");
    let plans = plans(&effort, &mut bars)?;
    eprintln!("controller: {LARGE}");
    let site = Site::new(&options.xlb)?;
    let mut memory =
        Section::new("Memory", &["", "maps, MiB", "process, MiB", "of it anonymous, MiB", "at most, MiB"]);
    let mut idle = Section::new("A controller with nothing to do", &["", "% of a core"]);
    memory_row(&mut memory, "default limits, 1 service x 3 backends", &site.start(&process::small())?)?;
    let loads = loads(&effort, &site, &mut memory, &mut idle, &mut bars)?;
    memory.note(
        "maps: the kernel's memory of all maps (memlock), the flow table of a million pins first of all.",
    );
    memory.note("process: VmRSS, and VmHWM. What is not anonymous is the program's code, and the ring's map, mapped into the process.");
    eprintln!("controller: idle");
    probes(&effort, &site, &mut idle, &mut bars)?;
    Ok(vec![plans, loads, memory, idle, bars])
}

/// Rings and verdicts.
fn plans(effort: &Effort, bars: &mut Section) -> Result<Section> {
    let mut section = Section::new("Rings of 65,537 slots, and verdicts", &["", "\u{b5}s", "spread \u{b5}s"]);
    for (backends, name) in SIZES {
        row(&mut section, &format!("build a ring, {name}"), &plan::ring_builds(backends, effort.rounds)?);
    }
    for (backends, name) in SIZES {
        let verdicts = plan::verdicts(backends, effort.rounds)?;
        row(&mut section, &format!("a verdict, {name}"), &verdicts.whole);
        row(&mut section, &format!("a verdict, {name}: planned"), &verdicts.planned);
        row(&mut section, &format!("a verdict, {name}: applied"), &verdicts.applied);
        if backends == 1_000 {
            bars.bars.push(Bar::new("a verdict, 1,000 backends, \u{b5}s", median(&verdicts.whole), 1e3));
        }
    }
    section.note("A verdict: a backend is found dead or alive; from there to the last of the kernel's maps.");
    Ok(section)
}

/// The large file.
fn loads(
    effort: &Effort,
    site: &Site,
    memory: &mut Section,
    idle: &mut Section,
    bars: &mut Section,
) -> Result<Section> {
    let mut section = Section::new(LARGE, &["", "ms", "spread ms"]);
    row(&mut section, "parse and check the text", &plan::parse(effort.rounds / 2));
    row(&mut section, "plan it, and fill empty maps", &plan::first_fill(effort.loads)?);
    let checks = site.checks(&thousand_by_ten(100), effort.rounds / 2)?;
    row(&mut section, "xlb check, whole process", &checks);
    let mut times = Vec::new();
    let mut running = None;
    for _ in 0..effort.loads {
        // The one before ends first.
        drop(running.take());
        let started = site.start(&thousand_by_ten(100))?;
        times.push(started.ready_ms);
        running = Some(started);
    }
    row(&mut section, "xlb run, from its start until ready", &times);
    let mut running = running.context("at least one load")?;
    // Before reloads, after which the sweeper looks for pins on slots that move.
    idle.row(format!("{LARGE}, no probes"), [Some(running.busy(effort.idle_s)?)]);
    let reloads = running.reloads(effort.rounds / 2)?;
    row(&mut section, "reload one weight", &reloads);
    section.note("reload: from the request to the kernel's maps, the file read and checked.");
    memory_row(memory, LARGE, &running)?;
    bars.bars.extend([
        Bar::new("xlb check, ms", median(&checks), 100.0),
        Bar::new("xlb run until ready, ms", median(&times), 1_000.0),
        Bar::new("reload one weight, ms", median(&reloads), 50.0),
    ]);
    Ok(section)
}

/// A thousand probes.
fn probes(effort: &Effort, site: &Site, idle: &mut Section, bars: &mut Section) -> Result<()> {
    let _server = site.serve()?;
    for kind in effort.probes {
        let busy = site.start(&process::probed(kind))?.busy(effort.idle_s)?;
        let what = format!("1,000 backends, probed by {kind} every 2 s");
        bars.bars.push(Bar::new(&format!("{what}, % of a core"), busy, 5.0));
        idle.row(what, [Some(busy)]);
    }
    idle.note("CPU time of the xlb process, the kernel's part of it included; no packets.");
    Ok(())
}

fn row(section: &mut Section, what: &str, times: &[f64]) {
    section.row(what, [median(times), spread(times)].map(Some));
}

fn memory_row(section: &mut Section, what: &str, running: &process::Running) -> Result<()> {
    const MIB: f64 = 1024.0 * 1024.0;
    let maps = proc::maps(running.pid()?)?;
    let memory = proc::memory(running.pid()?)?;
    let values = [maps, memory.resident, memory.anonymous, memory.peak];
    section.row(what, values.map(|bytes| Some(bytes as f64 / MIB)));
    Ok(())
}

/// Since then, milliseconds.
fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Since then, microseconds.
fn us(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}
