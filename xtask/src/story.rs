//! `cargo xtask run --story`: the lab plays what this project is for, and checks each step.
//!
//! Times are measured from outside, by polling `xlb status`, so they are upper bounds; their limits are lax because
//! the machine may be busy.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_lab::{
    ECHO_V4, ECHO_V6, HTTP_V4, HTTP_V6, Lab, LabConfig, LongConns, LongReport, Status, Tally, Traffic,
    UdpFlows, stop, wait_for,
};

use crate::tool::uninterrupted;

/// The service of `config/lab.yaml`.
const SERVICE: &str = "web";
/// All of it must fit into a minute.
const LONGEST_STORY: Duration = Duration::from_mins(1);
/// What the lab's checks need is 0.4 s for a refusal and 0.7 s for silence.
const LONGEST_DETECTION: Duration = Duration::from_secs(3);
/// From a mended server to its first connection, and for a saved file.
const LONGEST_RETURN: Duration = Duration::from_secs(5);
/// From the status that says so to the last packet that was on its way.
const IN_FLIGHT: Duration = Duration::from_millis(50);
/// New connections to measure shares with; three standard deviations of a share of 1/2 are 6 points.
const BURST: u64 = 600;
/// So far, of 1, a share may be from the wanted one.
const SHARE_TOLERANCE: f64 = 0.08;
/// Long connections held in each step.
const LONG: usize = 60;
/// A healthy connection waits no longer, whatever happens to others.
const LONGEST_STALL: Duration = Duration::from_secs(1);
/// The steady traffic of each step runs for so long after the dust has settled.
const LINGER: Duration = Duration::from_secs(2);
/// Its requests a second.
const RATE: u32 = 100;
/// Of one request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Plays the story; an error if a step did not hold.
pub fn play(config: LabConfig) -> Result<()> {
    let start = Instant::now();
    println!("A client, a switch, a balancer with xlb, and three servers, all on this machine.");
    let Some(lab) = uninterrupted(Lab::start(config))? else { return Ok(()) };
    let traffic = Traffic::start(lab.client(), &[HTTP_V4, HTTP_V6], RATE);
    let mut story = Story { lab, traffic, start, checks: 0, failed: Vec::new(), title: "" };
    let played = story.steps();
    if played.is_err() && !stop::requested() {
        eprintln!("{}", story.lab.describe());
    }
    let Some(()) = uninterrupted(played)? else { bail!("interrupted") };
    story.step("the end");
    let took = start.elapsed();
    story.check(took < LONGEST_STORY, format!("it took {:.0} s", took.as_secs_f64()));
    if !story.failed.is_empty() {
        eprintln!("{}", story.lab.describe());
        bail!(
            "{} of {} checks did not hold:\n  {}",
            story.failed.len(),
            story.checks,
            story.failed.join("\n  ")
        );
    }
    println!("All {} checks hold.", story.checks);
    Ok(())
}

struct Story {
    // The traffic ends before the lab that it runs in.
    traffic: Traffic,
    lab: Lab,
    start: Instant,
    checks: u32,
    failed: Vec<String>,
    title: &'static str,
}

impl Story {
    fn steps(&mut self) -> Result<()> {
        self.steady()?;
        self.killed()?;
        self.back()?;
        self.cut_off()?;
        self.wired_again()?;
        self.fourth_server()?;
        self.broken_file()
    }

    fn steady(&mut self) -> Result<()> {
        self.step("steady: three servers share the traffic");
        let names: Vec<_> =
            self.lab.status()?.backends(SERVICE).into_iter().map(|backend| backend.name).collect();
        if names != ["s1", "s2", "s3"] {
            bail!("the story is about config/lab.yaml with s1, s2 and s3; it has {names:?} now");
        }
        for name in ["s1", "s2", "s3"] {
            self.health(name, "up", LONGEST_RETURN)?;
        }
        self.shares(&["s1", "s2", "s3"])?;
        for to in [ECHO_V4, ECHO_V6] {
            let round = UdpFlows::open(self.lab.client(), to, 60)?.round(TIMEOUT)?;
            let ok = round.lost == 0 && round.by_server.len() == 3;
            self.check(ok, format!("60 UDP flows to {to}: {:?}, {} lost", round.by_server, round.lost));
        }
        Ok(())
    }

    fn killed(&mut self) -> Result<()> {
        self.step("s2 is killed");
        let long = self.open_long()?;
        let began = Instant::now();
        self.lab.kill("s2")?;
        let known = self.health("s2", "down", LONGEST_DETECTION)?;
        self.step("two absorb");
        self.shares(&["s1", "s3"])?;
        self.losses(began, known);
        self.only_lost(&long, "s2")
    }

    fn back(&mut self) -> Result<()> {
        self.step("s2 is back");
        let long = self.open_long()?;
        let began = Instant::now();
        self.lab.start_server("s2")?;
        self.health("s2", "up", LONGEST_RETURN)?;
        self.shares(&["s1", "s2", "s3"])?;
        self.no_losses(began, &long)
    }

    fn cut_off(&mut self) -> Result<()> {
        self.step("s3 is cut off, silently: nothing answers, nothing refuses");
        let long = self.open_long()?;
        let began = Instant::now();
        self.lab.cut("s3")?;
        let known = self.health("s3", "down", LONGEST_DETECTION)?;
        self.shares(&["s1", "s2"])?;
        self.losses(began, known);
        self.only_lost(&long, "s3")
    }

    fn wired_again(&mut self) -> Result<()> {
        self.step("s3 is connected again");
        let long = self.open_long()?;
        let began = Instant::now();
        self.lab.uncut("s3")?;
        self.health("s3", "up", LONGEST_RETURN)?;
        self.shares(&["s1", "s2", "s3"])?;
        self.no_losses(began, &long)
    }

    fn fourth_server(&mut self) -> Result<()> {
        self.step("a fourth server: switched on, then its line in the file loses its comment mark");
        let long = self.open_long()?;
        let name = self.lab.add_server()?;
        let began = Instant::now();
        let text = self.config()?;
        self.lab.write_config(&edited(&text, "# - {name: s4,", "- {name: s4,")?)?;
        self.health(&name, "up", LONGEST_RETURN)?;
        self.shares(&["s1", "s2", "s3", "s4"])?;
        self.no_losses(began, &long)
    }

    fn broken_file(&mut self) -> Result<()> {
        self.step("a broken file is refused");
        let long = self.open_long()?;
        let generation = self.lab.status()?.generation();
        let began = Instant::now();
        let text = self.config()?;
        self.lab.write_config(&edited(&text, "fall: 2 ", "fal: 2 ")?)?;
        let error = self.wait_status(LONGEST_RETURN, |status| status.last_error().map(str::to_owned))?;
        let first = error.as_deref().and_then(|text| text.lines().next()).unwrap_or("nothing");
        self.check(error.as_ref().is_some_and(|text| text.contains("fal")), format!("xlb says: {first}"));
        let now = self.lab.status()?;
        let same = now.generation() == generation && now.backends(SERVICE).len() == 4;
        self.check(same, format!("generation {generation} with four servers stays in force"));
        self.shares(&["s1", "s2", "s3", "s4"])?;
        self.lab.write_config(&text)?;
        let mended =
            self.wait_status(LONGEST_RETURN, |status| status.last_error().is_none().then_some(()))?;
        self.check(mended.is_some(), "the mended file is taken");
        self.no_losses(began, &long)
    }

    fn step(&mut self, title: &'static str) {
        self.title = title;
        println!("[{:4.1} s] {title}", self.start.elapsed().as_secs_f64());
    }

    fn check(&mut self, held: bool, saw: impl Display) {
        self.checks += 1;
        println!("         {} {saw}", if held { '✓' } else { '✗' });
        if !held {
            self.failed.push(format!("{}: {saw}", self.title));
        }
    }

    /// Waits until a backend has a health and returns when that was seen (or given up on).
    fn health(&mut self, name: &str, health: &str, limit: Duration) -> Result<Instant> {
        let began = Instant::now();
        let seen = self.wait_status(limit, |status| {
            status.backend(SERVICE, name).filter(|backend| backend.health == health)
        })?;
        let after = began.elapsed().as_millis();
        let saw = match &seen {
            Some(backend) => format!("{name} is {health} after {after} ms ({})", backend.reason),
            None => format!("{name} is not {health} after {after} ms"),
        };
        self.check(seen.is_some(), saw);
        Ok(Instant::now())
    }

    /// Polls the status; `None` when the time is over.
    fn wait_status<T>(&self, limit: Duration, such: impl Fn(&Status) -> Option<T>) -> Result<Option<T>> {
        let mut trouble = None;
        let seen = wait_for(limit, || match self.lab.status() {
            Ok(status) => such(&status).map(Ok),
            Err(error) => {
                trouble = Some(error);
                None
            }
        });
        if stop::requested() {
            bail!("interrupted");
        }
        match (seen, trouble) {
            (None, Some(error)) => Err(error),
            (seen, _) => seen.transpose(),
        }
    }

    /// New connections go to exactly these servers, in equal shares, and none fails. Then the steady traffic, which
    /// is judged next, runs on for a while.
    fn shares(&mut self, servers: &[&str]) -> Result<()> {
        let tally = self.lab.client().burst(&[HTTP_V4, HTTP_V6], BURST, 16, TIMEOUT)?;
        self.check(evenly_on(&tally, servers), &tally);
        linger()
    }

    /// The steady traffic from `began`: what was lost until the death was `known` is said, later nothing may be.
    fn losses(&mut self, began: Instant, known: Instant) {
        let (mut before, mut after) = (Tally::default(), Tally::default());
        for record in self.traffic.take().into_iter().filter(|record| record.start >= began) {
            let tally = if record.start < known + IN_FLIGHT { &mut before } else { &mut after };
            tally.record(record.result, record.took);
        }
        println!("           steady traffic until then: {before}");
        let held = after.failed() == 0 && after.answered() > 0;
        self.check(held, format!("steady traffic from then on: {after}"));
    }

    /// Neither the steady traffic from `began` nor a long connection lost anything.
    fn no_losses(&mut self, began: Instant, long: &LongConns) -> Result<()> {
        self.no_failures(began);
        let report = moving(long)?;
        let held = report.broken.is_empty() && report.strays == 0 && calm(&report, "");
        self.check(held, format!("long connections: {report}"));
        Ok(())
    }

    fn no_failures(&mut self, began: Instant) {
        let mut tally = Tally::default();
        for record in self.traffic.take().into_iter().filter(|record| record.start >= began) {
            tally.record(record.result, record.took);
        }
        self.check(tally.failed() == 0 && tally.answered() > 0, format!("steady traffic: {tally}"));
    }

    /// Of the long connections all to `dead` broke and no other.
    fn only_lost(&mut self, long: &LongConns, dead: &str) -> Result<()> {
        let all_broke = wait_for(LONGEST_RETURN, || (!long.report().alive.contains_key(dead)).then_some(()));
        let report = moving(long)?;
        let own = report.broken_of(dead);
        let only_own = own == report.broken.len() && own > 0;
        let held = all_broke.is_some() && only_own && report.strays == 0 && calm(&report, dead);
        self.check(held, format!("long connections: {report} ({own} of them to {dead})"));
        Ok(())
    }

    fn open_long(&self) -> Result<LongConns> {
        LongConns::open(self.lab.client(), &[ECHO_V4, ECHO_V6], LONG)
    }

    fn config(&self) -> Result<String> {
        let path = self.lab.xlb()?.config_path();
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    }
}

/// A report after lines have moved on every connection that lives.
fn moving(long: &LongConns) -> Result<LongReport> {
    let before = long.report();
    let enough = before.exchanged + 2 * before.alive_total();
    wait_for(TIMEOUT, || (long.report().exchanged >= enough).then_some(()));
    if stop::requested() {
        bail!("interrupted");
    }
    Ok(long.report())
}

/// No connection stalled for long, but those to `dead`.
fn calm(report: &LongReport, dead: &str) -> bool {
    report.max_stall.iter().all(|(server, stall)| server == dead || *stall < LONGEST_STALL)
}

/// Lets the steady traffic run on.
fn linger() -> Result<()> {
    let stopped = wait_for(LINGER, || stop::requested().then_some(()));
    if stopped.is_some() {
        bail!("interrupted");
    }
    Ok(())
}

fn evenly_on(tally: &Tally, servers: &[&str]) -> bool {
    let wanted = 1.0 / servers.len() as f64;
    tally.failed() == 0
        && tally.by_server.keys().eq(servers)
        && servers.iter().all(|server| (tally.share(server) - wanted).abs() <= SHARE_TOLERANCE)
}

/// `text` with its one `from` made `to`.
fn edited(text: &str, from: &str, to: &str) -> Result<String> {
    if text.matches(from).count() != 1 {
        bail!("config/lab.yaml was changed: the story needs its line `{from}`, once");
    }
    Ok(text.replacen(from, to, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(counts: &[(&str, u64)]) -> Tally {
        Tally {
            by_server: counts.iter().map(|(name, count)| ((*name).into(), *count)).collect(),
            ..Tally::default()
        }
    }

    #[test]
    fn shares_must_be_even_and_on_the_right_servers() {
        assert!(evenly_on(&tally(&[("s1", 210), ("s3", 190)]), &["s1", "s3"]));
        assert!(!evenly_on(&tally(&[("s1", 250), ("s3", 150)]), &["s1", "s3"]));
        assert!(!evenly_on(&tally(&[("s1", 200), ("s2", 1), ("s3", 200)]), &["s1", "s3"]));
        assert!(!evenly_on(&tally(&[("s1", 400)]), &["s1", "s3"]));
    }

    #[test]
    fn the_file_has_the_lines_that_the_story_edits() {
        let text = include_str!("../../config/lab.yaml");
        assert!(
            edited(text, "# - {name: s4,", "- {name: s4,").unwrap().contains("\n      - {name: s4, address")
        );
        assert!(edited(text, "fall: 2 ", "fal: 2 ").is_ok());
        assert!(edited(text, "nowhere", "").is_err());
    }
}
