//! Requests through each balancer in turn, many short rounds: how many, how long, at what cost.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_lab::{
    ConfigSource, Forward, HTTP_PORT, HTTP_V4, Lab, LabConfig, NetnsHandle, ServerProgram, TopologyConfig,
    wait_for,
};

use super::{
    cpu::{Meter, Place, Processes, Used, pin},
    go_on,
    load::{Answers, Load},
    rivals::{Kind, Rival},
    server::SUBCOMMAND,
};
use crate::Options;

/// Connections on their way at the same time, where a rate is kept: more than are ever needed.
const PLENTY: usize = 2048;
/// Each of three servers gets between these shares of all connections.
const FAIR: (f64, f64) = (0.22, 0.45);

/// A way to the servers.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// What it is.
    pub what: What,
    /// The number of the target that it is compared with: straight to the same servers.
    pub base: usize,
    client: NetnsHandle,
    to: Vec<SocketAddr>,
    processes: Option<Processes>,
}

/// What a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// No balancer.
    Direct,
    /// `xlb` by MAC address.
    L2,
    /// `xlb` with tunnels.
    Ipip,
    /// Another.
    Rival(Kind),
}

/// A kind of load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What to write over its table.
    pub title: &'static str,
    /// Connections a second, if it is kept.
    pub rate: Option<f64>,
    /// Requests a connection.
    pub requests: u32,
    /// Connections a round.
    connections: u32,
    /// Connections at the same time.
    concurrency: usize,
}

/// The loads.
pub const SHAPES: [Shape; 3] = [
    Shape {
        title: "A connection for each request, 3,000 a second",
        rate: Some(3000.0),
        requests: 1,
        connections: 1500,
        concurrency: PLENTY,
    },
    Shape {
        title: "20 requests on each connection, 300 connections a second",
        rate: Some(300.0),
        requests: 20,
        connections: 60,
        concurrency: PLENTY,
    },
    Shape {
        title: "A connection for each request, 32 at a time, as fast as it goes",
        rate: None,
        requests: 1,
        connections: 2000,
        concurrency: 32,
    },
];

/// One target, one shape, one round.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What was answered.
    pub answers: Answers,
    /// What all of it cost.
    pub used: Used,
    /// What the balancer's own processes used.
    pub process: Option<Duration>,
}

/// What runs while it is measured.
struct Stage {
    // Balancers before the labs that they stand in.
    rivals: Vec<Rival>,
    labs: Vec<Lab>,
}

/// All that was measured.
pub struct Measured {
    /// The targets.
    pub targets: Vec<Target>,
    /// By shape, target and round.
    pub samples: Vec<Vec<Vec<Sample>>>,
    /// What was left out.
    pub notes: Vec<String>,
}

/// Measures all.
pub fn measure(options: &Options) -> Result<Measured> {
    let (rounds, divisor) = if options.quick { (2, 4) } else { (10, 1) };
    let mut stage = Stage { rivals: Vec::new(), labs: Vec::new() };
    let notes = set_up(options, &mut stage)?;
    let targets = targets(&stage)?;
    let meter = Meter::new()?;
    let mut samples = vec![vec![Vec::new(); targets.len()]; SHAPES.len()];
    // The first round only warms up.
    for round in 0..=rounds {
        eprintln!("requests: round {round} of {rounds}");
        for (shape, of_shape) in SHAPES.iter().zip(&mut samples) {
            // Each round starts with another one.
            for number in (0..targets.len()).map(|n| (n + round) % targets.len()) {
                go_on()?;
                let target = &targets[number];
                let sample = target.sample(shape, divisor, &meter).with_context(|| target.name)?;
                if round > 0 {
                    of_shape[number].push(sample);
                }
            }
        }
    }
    for (number, target) in targets.iter().enumerate() {
        fair(samples.iter().flat_map(|of_shape| &of_shape[number])).with_context(|| target.name)?;
    }
    Ok(Measured { targets, samples, notes })
}

impl Target {
    fn sample(&self, shape: &Shape, divisor: u32, meter: &Meter) -> Result<Sample> {
        let load = Load {
            to: self.to.clone(),
            connections: shape.connections / divisor,
            requests: shape.requests,
            rate: shape.rate,
            concurrency: shape.concurrency,
        };
        self.client.run(|| {
            pin(Place::First)?;
            let processes = self.processes.as_ref();
            let (before, process) = (meter.read()?, processes.map(Processes::used));
            let answers = load.run()?;
            let used = meter.read()? - before;
            let process = processes.zip(process).map(|(now, before)| now.used().saturating_sub(before));
            Ok(Sample { answers, used, process })
        })?
    }
}

/// Fails unless all three servers got their share.
fn fair<'a>(samples: impl Iterator<Item = &'a Sample>) -> Result<()> {
    let mut total = BTreeMap::<&str, u64>::new();
    for (server, count) in samples.flat_map(|sample| &sample.answers.by_server) {
        *total.entry(server).or_default() += count;
    }
    let sum = total.values().sum::<u64>() as f64;
    let holds = total.values().all(|&count| (FAIR.0..=FAIR.1).contains(&(count as f64 / sum)));
    ensure!(total.len() == 3 && holds, "not a fair share for each server: {total:?}");
    Ok(())
}

/// Starts everything; answers what is left out.
fn set_up(options: &Options, stage: &mut Stage) -> Result<Vec<String>> {
    for forward in [Forward::L2, Forward::Ipip] {
        go_on()?;
        eprintln!("requests: a lab with {forward:?}");
        stage.labs.push(lab(options, forward)?);
    }
    let mut notes = Vec::new();
    for kind in Kind::ALL {
        go_on()?;
        eprintln!("requests: {}", kind.name());
        match Rival::start(kind, &stage.labs[0])? {
            Ok(rival) => stage.rivals.push(rival),
            Err(why) => notes.push(why),
        }
    }
    Ok(notes)
}

/// Three servers, a client, and `xlb`.
fn lab(options: &Options, forward: Forward) -> Result<Lab> {
    let xlb = fs::canonicalize(&options.xlb).with_context(|| format!("find {}", options.xlb.display()))?;
    let word = match forward {
        Forward::L2 => "l2",
        Forward::Ipip => "ipip",
    };
    let text = format!(
        "interfaces: [eth0]
admin: {{listen: off}}
services:
  - name: web
    listen: [\"{HTTP_V4}/tcp\"]
    forward: {word}
    health: {{type: http, port: {HTTP_PORT}}}
    backends: [{{address: 10.88.0.11}}, {{address: 10.88.0.12}}, {{address: 10.88.0.13}}]
"
    );
    let decap = |xlb: &PathBuf| {
        let words = [xlb.display().to_string(), "decap".into(), "--interface".into(), "eth0".into()];
        words.to_vec()
    };
    let topology = TopologyConfig {
        forward,
        decap: (forward == Forward::Ipip).then(|| decap(&xlb)),
        ..TopologyConfig::default()
    };
    let mut config = LabConfig::new(ServerProgram::this_binary(SUBCOMMAND)?);
    config.topology = topology;
    config.xlb = Some((xlb, ConfigSource::Text(text)));
    let lab = Lab::start(config)?;
    quiet_switch(&lab)?;
    let all_up =
        || lab.status().ok().filter(|s| s.backends("web").iter().all(|b| b.health == "up" && b.slots > 0));
    if wait_for(Duration::from_secs(15), all_up).is_none() {
        bail!("xlb does not use all servers:\n{}", lab.describe());
    }
    Ok(lab)
}

/// A switch does not look at addresses: this kernel's firewall is kept off the bridge, where it is built in.
fn quiet_switch(lab: &Lab) -> Result<()> {
    let key = "net/bridge/bridge-nf-call-iptables";
    let switch = lab.topology().switch();
    if switch.run(|| PathBuf::from("/proc/sys").join(key).exists())? {
        switch.sysctl(&[(key, "0")])?;
    }
    Ok(())
}

fn targets(stage: &Stage) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (lab, names) in stage.labs.iter().zip([["direct", "xlb l2"], ["direct, decapsulator", "xlb ipip"]]) {
        let client = lab.client().netns().clone();
        let servers = lab.topology().servers().iter();
        let to = servers.map(|host| SocketAddr::new(host.v4.into(), HTTP_PORT)).collect();
        let base = targets.len();
        let direct =
            Target { name: names[0], what: What::Direct, base, client: client.clone(), to, processes: None };
        targets.push(direct);
        let pid = lab.xlb()?.pid().context("xlb does not run")?;
        let what = if base == 0 { What::L2 } else { What::Ipip };
        let processes = Some(Processes::tree(pid)?);
        targets.push(Target { name: names[1], what, base, client, to: vec![HTTP_V4], processes });
    }
    for rival in &stage.rivals {
        targets.push(Target {
            name: rival.kind().name(),
            what: What::Rival(rival.kind()),
            base: 0,
            client: stage.labs[0].client().netns().clone(),
            to: vec![rival.at()],
            processes: rival.processes()?,
        });
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(counts: &[(&str, u64)]) -> Sample {
        let by_server = counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
        Sample { answers: Answers { by_server, ..Answers::default() }, used: Used::default(), process: None }
    }

    #[test]
    fn a_server_that_gets_too_little_is_found_over_all_rounds() {
        let even = [sample(&[("s1", 30), ("s2", 10)]), sample(&[("s2", 20), ("s3", 35)])];
        assert!(fair(even.iter()).is_ok());
        assert!(fair([sample(&[("s1", 60), ("s2", 60)])].iter()).is_err());
        assert!(fair([sample(&[("s1", 45), ("s2", 45), ("s3", 10)])].iter()).is_err());
        assert!(fair([].iter()).is_err());
    }
}
