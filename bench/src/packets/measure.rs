//! Rounds: stub, floor and every case, one after the other, again and again. And whether each did what it is said to.

use anyhow::{Context as _, Result, ensure};
use lb_common::outcome::Outcome;
use std::{collections::BTreeMap, path::Path};

use super::{
    cases::{Case, Fate},
    check::{self, XDP_PASS, XDP_TX},
    driver::{Driver, FLOOR, PARSING_FLOOR, Run, STUB},
    progress::Progress,
    stream::Stream,
    world::{Counters, World},
};

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Programs and maps are loaded anew so often. Where the kernel puts them, by chance, is worth some nanoseconds.
    pub loads: u32,
    /// Rounds with each; medians are taken over all.
    pub rounds: u32,
    /// Packets of a run.
    pub repeat: u32,
}

impl Effort {
    /// Packets of a run: each flow is met twice.
    fn repeat(self, stream: &Stream) -> u32 {
        self.repeat.max(2 * stream.flows)
    }
}

/// What was measured: ns a packet, one figure a run.
#[derive(Default)]
pub struct Costs {
    /// By name of the case, beyond the stub.
    pub cases: BTreeMap<String, Vec<f64>>,
    /// Of IPv4 and of IPv6.
    pub floors: [Floors; 2],
}

/// What cases are compared with. None of it depends on which flows packets are of: one figure a stream and round.
#[derive(Default)]
pub struct Floors {
    /// The stub, with the driver and the kernel's loop.
    pub stub: Vec<f64>,
    /// The floor, beyond the stub.
    pub floor: Vec<f64>,
    /// The floor with the balancer's parser, likewise.
    pub parsing_floor: Vec<f64>,
}

/// A case in its world.
struct Subject {
    case: Case,
    /// Number in the list of worlds.
    world: usize,
    /// Packets that each backend gets in a run; `None` if that depends on limits of rates.
    expected: Option<BTreeMap<u16, u64>>,
}

/// Cases by the packets that they get.
type Streams = Vec<(Stream, Vec<Subject>)>;

/// Measures all cases.
pub fn run(cases: &[Case], effort: Effort, objects: &Path) -> Result<Costs> {
    let mut progress = Progress::new(cases.len() * (effort.loads * (1 + effort.rounds)) as usize);
    let mut costs = Costs::default();
    for _ in 0..effort.loads {
        let mut driver = Driver::load(objects)?;
        let (mut worlds, streams) = prepare(cases, effort, &mut progress)?;
        for _ in 0..effort.rounds {
            round(&mut driver, &mut worlds, &streams, effort, &mut progress, &mut costs)?;
        }
    }
    progress.finish();
    Ok(costs)
}

/// Cases by stream, and the worlds that they are in.
fn prepare(cases: &[Case], effort: Effort, progress: &mut Progress) -> Result<(Vec<World>, Streams)> {
    let mut worlds: Vec<World> = Vec::new();
    let mut streams = Streams::new();
    for case in cases {
        progress.step(&case.name);
        let known = worlds.iter().position(|world| world.shape == case.shape);
        if known.is_none() {
            worlds.push(World::new(case.shape).with_context(|| format!("prepare `{}`", case.name))?);
        }
        let world = known.unwrap_or(worlds.len() - 1);
        let expected = expected(case, &worlds[world], effort.repeat(&case.stream))?;
        let stream = case.stream;
        let subject = Subject { case: case.clone(), world, expected };
        match streams.iter_mut().find(|(other, _)| *other == stream) {
            Some((_, subjects)) => subjects.push(subject),
            None => streams.push((stream, vec![subject])),
        }
    }
    Ok((worlds, streams))
}

/// Each stream's stub, floors and cases, once.
fn round(
    driver: &mut Driver,
    worlds: &mut [World],
    streams: &Streams,
    effort: Effort,
    progress: &mut Progress,
    costs: &mut Costs,
) -> Result<()> {
    for (stream, subjects) in streams {
        let repeat = effort.repeat(stream);
        let stub = floors(driver, stream, repeat, &mut costs.floors[stream.family as usize])?;
        for subject in subjects {
            progress.step(&subject.case.name);
            let ns = measure(driver, subject, &mut worlds[subject.world], repeat)
                .with_context(|| format!("case `{}`", subject.case.name))?;
            costs.cases.entry(subject.case.name.clone()).or_default().push(ns - stub);
        }
    }
    Ok(())
}

/// Stub and floors on a stream; answers what the stub cost.
fn floors(driver: &mut Driver, stream: &Stream, repeat: u32, floors: &mut Floors) -> Result<f64> {
    driver.put_own(STUB)?;
    let stub = driver.run(stream, repeat)?;
    ensure!(stub.action == XDP_TX, "the stub returned {}", stub.action);
    floors.stub.push(stub.ns);
    for (name, costs) in [(FLOOR, &mut floors.floor), (PARSING_FLOOR, &mut floors.parsing_floor)] {
        driver.put_own(name)?;
        let run = driver.run(stream, repeat)?;
        check::floor(stream, last_flow(stream, repeat)?, &run)
            .with_context(|| format!("the program {name}"))?;
        costs.push(run.ns - stub.ns);
    }
    Ok(stub.ns)
}

/// One run of a case, driver included.
fn measure(driver: &mut Driver, subject: &Subject, world: &mut World, repeat: u32) -> Result<f64> {
    driver.put(world.program.program_fd())?;
    let before = world.counters()?;
    let run = driver.run(&subject.case.stream, repeat)?;
    verify(subject, world, &before, &run, repeat)?;
    if subject.case.makes_pins {
        world.clear_flows()?;
    }
    Ok(run.ns)
}

fn last_flow(stream: &Stream, repeat: u32) -> Result<u32> {
    stream.sequence(repeat).last().context("at least one packet")
}

/// Packets that each backend gets in a run.
fn expected(case: &Case, world: &World, repeat: u32) -> Result<Option<BTreeMap<u16, u64>>> {
    let mut of_backends = BTreeMap::new();
    if case.fate == Fate::Passed {
        return Ok(Some(of_backends));
    }
    let mut of_flows = vec![0u64; case.stream.flows as usize];
    for flow in case.stream.sequence(repeat) {
        of_flows[flow as usize] += 1;
    }
    for (flow, packets) in (0..).zip(of_flows) {
        let Some(backend) = world.target(&case.stream, flow)? else { return Ok(None) };
        *of_backends.entry(backend).or_default() += packets;
    }
    Ok(Some(of_backends))
}

/// Whether the run did what the case is said to measure.
fn verify(subject: &Subject, world: &World, before: &Counters, run: &Run, repeat: u32) -> Result<()> {
    let Case { stream, fate, makes_pins, .. } = &subject.case;
    let after = world.counters()?;
    let packets = u64::from(repeat);
    let (sent, action) = match fate {
        Fate::Sent => (packets, XDP_TX),
        Fate::Passed => (0, XDP_PASS),
    };
    ensure!(run.action == action, "the last packet's action is {} instead of {action}", run.action);
    for outcome in Outcome::ALL {
        let counted = after.outcomes[outcome as usize] - before.outcomes[outcome as usize];
        let due = if *fate == Fate::Passed && outcome == Outcome::PassNotOurs { packets } else { 0 };
        ensure!(counted == due, "{} counts {counted} packets instead of {due}", outcome.name());
    }
    let mut total = (0, 0);
    for (id, stats) in &after.stats {
        let (counted, opened) =
            (stats.packets - before.stats[id].packets, stats.connections - before.stats[id].connections);
        total = (total.0 + counted, total.1 + opened);
        if let Some(expected) = &subject.expected {
            let due = expected.get(id).copied().unwrap_or_default();
            ensure!(counted == due, "backend {id} got {counted} packets instead of {due}");
        }
    }
    let opened = if stream.is_syn { sent } else { 0 };
    ensure!(total == (sent, opened), "(packets, connections) is {total:?} instead of {:?}", (sent, opened));
    let refused = after.refused - before.refused;
    ensure!(
        *makes_pins || refused == 0,
        "{refused} new pins were refused: the flow table was to be full of pins"
    );
    check::packet(&subject.case, world, last_flow(stream, repeat)?, run)
}
