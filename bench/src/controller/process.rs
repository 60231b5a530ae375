//! Whole `xlb` processes, in a namespace beside one host that has all backends' addresses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_lab::{Topology, TopologyConfig, Xlb, stop, wait_for};

use super::{
    ms,
    probed::Server,
    proc,
    subject::{TEN, thousand_by_ten},
};

/// A controller is ready, or has its first verdicts, in so long.
const LONGEST_START: Duration = Duration::from_secs(30);

/// Where controllers run.
pub struct Site {
    topology: Topology,
    xlb: PathBuf,
}

/// A controller that runs. Dropping it ends it and removes what it made.
pub struct Running {
    xlb: Xlb,
    /// From the start of its process until it was ready.
    pub ready_ms: f64,
}

/// A file of one service.
pub fn small() -> String {
    let [a, b, c, ..] = TEN;
    format!(
        "interfaces: [eth0]\nadmin: {{listen: off}}\nservices:\n- name: web\n  listen: [\"192.0.2.10:80/tcp\"]\n  \
         forward: l2\n  health: {{type: none}}\n  backends: [{{address: {a}}}, {{address: {b}}}, {{address: {c}}}]\n"
    )
}

/// A file of 100 services with ten backends each, all probed in this way every 2 s.
pub fn probed(kind: &str) -> String {
    let mut text = format!(
        "interfaces: [eth0]\nadmin: {{listen: off}}\n\
         defaults: {{forward: l2, ring_size: 4093, health: {{type: {kind}, port: 80, interval: 2s}}}}\nservices:\n"
    );
    let backends = TEN.map(|address| format!("  - {{address: {address}}}\n")).concat();
    for service in 1..=100 {
        let listen = format!("  listen: [\"198.18.0.{service}:80/tcp\"]\n");
        text += &format!("- name: s{service}\n{listen}  backends:\n{backends}");
    }
    text
}

impl Site {
    /// Builds the network.
    pub fn new(xlb: &Path) -> Result<Self> {
        stop::on_signals();
        let topology = Topology::build(TopologyConfig { servers: 1, ..TopologyConfig::default() })?;
        let addresses = TEN.map(|address| format!("address add {address}/24 dev eth0\n"));
        let [host] = topology.servers() else { bail!("one server was asked for") };
        host.netns.ip_batch(&addresses.concat())?;
        Ok(Self { topology, xlb: xlb.to_owned() })
    }

    /// Starts a controller; all of its backends are eligible when it is answered.
    pub fn start(&self, text: &str) -> Result<Running> {
        let mut xlb = Xlb::new(&self.xlb, self.topology.balancer().netns.handle(), None, &[])?;
        fs::write(xlb.config_path(), text).context("write the configuration")?;
        let start = Instant::now();
        xlb.start()?;
        while !xlb.has_logged(|line| line.starts_with("ready")) {
            ensure!(!stop::requested(), "interrupted");
            if xlb.exit_status().is_some() || start.elapsed() > LONGEST_START {
                bail!("xlb did not get ready; its log:\n{}", xlb.last_log(40));
            }
            // Not longer: it is added to the figure.
            thread::sleep(Duration::from_millis(1));
        }
        let ready_ms = ms(start);
        let is_whole = || xlb.status().is_ok_and(|status| all_are_up(&status.0)).then_some(());
        wait_for(LONGEST_START, is_whole)
            .with_context(|| format!("not all backends came up; the log of xlb:\n{}", xlb.last_log(40)))?;
        Ok(Running { xlb, ready_ms })
    }

    /// Times of `xlb check` with such a file, ms.
    pub fn checks(&self, text: &str, rounds: usize) -> Result<Vec<f64>> {
        let xlb = Xlb::new(&self.xlb, self.topology.balancer().netns.handle(), None, &[])?;
        fs::write(xlb.config_path(), text).context("write the configuration")?;
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let mut command = Command::new(&self.xlb);
            command.arg("check").arg(xlb.config_path());
            let start = Instant::now();
            let output = command.output().with_context(|| format!("start {}", self.xlb.display()))?;
            times.push(ms(start));
            ensure!(output.status.success(), "xlb check: {}", String::from_utf8_lossy(&output.stdout));
        }
        Ok(times)
    }

    /// Something that answers the backends' probes.
    pub fn serve(&self) -> Result<Server> {
        let [host] = self.topology.servers() else { bail!("one server was asked for") };
        Server::start(&host.netns)
    }
}

impl Running {
    /// The process.
    pub fn pid(&self) -> Result<u32> {
        self.xlb.pid().context("xlb runs")
    }

    /// Times of reloads of one weight of 10,000, ms: as the controller says, from the request to the kernel.
    pub fn reloads(&mut self, rounds: usize) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(rounds);
        for weight in (101..).take(rounds) {
            let (path, text) = (self.xlb.config_path(), thousand_by_ten(weight));
            let new = path.with_extension("new");
            fs::write(&new, text).context("write the configuration")?;
            fs::rename(&new, path).context("replace the configuration")?;
            let reply = self.xlb.command(&["reload"])?;
            let said = String::from_utf8_lossy(&reply.stdout);
            ensure!(said.contains(&format!("-> {weight}")), "the reload did something else: {said}");
            let log = self.xlb.last_log(20);
            times.push(last_reload(&log).with_context(|| format!("no reload in the log:\n{log}"))?);
        }
        Ok(times)
    }

    /// CPU time of the process while nothing happens, per cent of a core.
    pub fn busy(&self, seconds: u64) -> Result<f64> {
        let pid = self.pid()?;
        // What came with the start is over.
        thread::sleep(Duration::from_secs(1));
        let (start, before) = (Instant::now(), proc::cpu_time(pid)?);
        thread::sleep(Duration::from_secs(seconds));
        let used = proc::cpu_time(pid)?.saturating_sub(before);
        Ok(100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64())
    }
}

/// Whether every backend of `xlb status --json` takes connections.
fn all_are_up(status: &serde_json::Value) -> bool {
    let services = status["services"].as_array().map_or(&[][..], Vec::as_slice);
    let backends: Vec<_> = services.iter().filter_map(|s| s["backends"].as_array()).flatten().collect();
    !backends.is_empty() && backends.iter().all(|b| b["slots"].as_u64().is_some_and(|slots| slots > 0))
}

/// Milliseconds of the last change of the file.
fn last_reload(log: &str) -> Option<f64> {
    let (_, after) = log.rsplit_once("is in force ")?;
    after.split_once(" ms")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reload_counts() {
        let log = "generation 2 is in force 8.1 ms after it was asked for\n  generation 3 is in force 7.4 ms after\n";
        assert_eq!(last_reload(log), Some(7.4));
        assert_eq!(last_reload("nothing changed"), None);
    }

    #[test]
    fn all_must_have_slots() {
        let status = |slots: [u32; 2]| {
            let backends = slots.map(|slots| serde_json::json!({ "slots": slots }));
            serde_json::json!({ "services": [{ "backends": backends }] })
        };
        assert!(all_are_up(&status([3, 1])));
        assert!(!all_are_up(&status([3, 0])));
        assert!(!all_are_up(&serde_json::json!({ "services": [] })));
    }
}
