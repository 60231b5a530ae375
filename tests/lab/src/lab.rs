//! The whole lab: network, servers and a controller.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    HTTP_PORT,
    client::Client,
    process::{ServerProgram, spawn, wait_for_line},
    server::LISTENING,
    status::Status,
    topology::{Forward, Topology, TopologyConfig},
    xlb::Xlb,
};

/// A server or a decapsulator is ready in so long.
const LONGEST_START: Duration = Duration::from_secs(10);

/// Where the controller's configuration comes from.
#[derive(Debug, Clone)]
pub enum ConfigSource {
    /// A file that stays where it is and is watched there.
    Path(PathBuf),
    /// A private file with this content.
    Text(String),
}

/// What lab to start.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// The network.
    pub topology: TopologyConfig,
    /// The test server.
    pub server: ServerProgram,
    /// The program `xlb` and its configuration; `None` is a lab without a controller.
    pub xlb: Option<(PathBuf, ConfigSource)>,
    /// More arguments to `xlb run`.
    pub arguments: Vec<String>,
    /// The controller must be ready in so long.
    pub ready_timeout: Duration,
}

impl LabConfig {
    /// Three servers on one bridge and no controller.
    pub fn new(server: ServerProgram) -> Self {
        Self {
            topology: TopologyConfig::default(),
            server,
            xlb: None,
            arguments: Vec::new(),
            ready_timeout: Duration::from_secs(15),
        }
    }
}

/// A running lab. Dropping it ends all its processes and removes all that it made; if a test is failing, it first
/// prints what state things are in.
#[derive(Debug)]
pub struct Lab {
    // Fields are dropped in order: controller and servers before the network they are in.
    xlb: Option<Xlb>,
    servers: Vec<Server>,
    program: ServerProgram,
    topology: Topology,
    client: Client,
}

/// What runs on a server's host. Dropping it ends it.
#[derive(Debug)]
struct Server {
    process: Option<Child>,
    decap: Option<Child>,
    paused: bool,
}

impl Lab {
    /// Builds the network, starts the servers, then the controller, and waits until it is ready.
    pub fn start(config: LabConfig) -> Result<Self> {
        let topology = Topology::build(config.topology)?;
        let client = Client::new(topology.client().netns.handle());
        let mut lab = Self { xlb: None, servers: Vec::new(), program: config.server, topology, client };
        for number in 0..lab.topology.servers().len() {
            lab.start_host(number)?;
        }
        if let Some((binary, source)) = &config.xlb {
            let netns = lab.topology.balancer().netns.handle();
            let path = match source {
                ConfigSource::Path(path) => Some(path.as_path()),
                ConfigSource::Text(_) => None,
            };
            let mut xlb = Xlb::new(binary, netns, path, &config.arguments)?;
            if let ConfigSource::Text(text) = source {
                fs::write(xlb.config_path(), text).context("write the configuration")?;
            }
            xlb.start()?;
            let ready = xlb.wait_ready(config.ready_timeout);
            lab.xlb = Some(xlb);
            ready.with_context(|| lab.topology.describe())?;
        }
        Ok(lab)
    }

    /// The network.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The client, to send requests from.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The controller.
    pub fn xlb(&self) -> Result<&Xlb> {
        self.xlb.as_ref().context("this lab has no controller")
    }

    /// The controller, to end it and start it again.
    pub fn xlb_mut(&mut self) -> Result<&mut Xlb> {
        self.xlb.as_mut().context("this lab has no controller")
    }

    /// `xlb status --json`.
    pub fn status(&self) -> Result<Status> {
        self.xlb()?.status()
    }

    /// Replaces the controller's file as a careful editor does: a new file, renamed over the old.
    pub fn write_config(&self, text: &str) -> Result<()> {
        let path = self.xlb()?.config_path();
        let new = path.with_extension("new");
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, path).with_context(|| format!("rename to {}", path.display()))
    }

    /// Ends a server's process at once (SIGKILL); its host stays and refuses connections.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let server = self.server(name)?;
        server.paused = false;
        server.process.take().map_or(Ok(()), |process| end(process, name))
    }

    /// Makes a server whole, whatever was done to it: its link passes, its process runs and is healthy.
    pub fn start_server(&mut self, name: &str) -> Result<()> {
        self.topology.uncut(name)?;
        self.resume(name)?;
        let number = self.number(name)?;
        if self.servers[number].runs() { self.set_healthy(name, true) } else { self.start_process(number) }
    }

    /// Stops a server's process where it is (SIGSTOP): connections are accepted by its kernel, nothing answers.
    pub fn pause(&mut self, name: &str) -> Result<()> {
        let server = self.server(name)?;
        server.signal(name, Signal::STOP)?;
        server.paused = true;
        Ok(())
    }

    /// Undoes [`Self::pause`].
    pub fn resume(&mut self, name: &str) -> Result<()> {
        let server = self.server(name)?;
        if std::mem::take(&mut server.paused) { server.signal(name, Signal::CONT) } else { Ok(()) }
    }

    /// Cuts a host off: nothing reaches it or comes from it, and nobody is told.
    pub fn cut(&self, name: &str) -> Result<()> {
        self.topology.cut(name)
    }

    /// Undoes [`Self::cut`].
    pub fn uncut(&self, name: &str) -> Result<()> {
        self.topology.uncut(name)
    }

    /// Switches what a server's `/healthz` answers: 200 or 503. A new process is healthy.
    pub fn set_healthy(&self, name: &str, healthy: bool) -> Result<()> {
        let host = self.topology.host(name)?;
        let at = SocketAddr::new(host.v4.into(), HTTP_PORT);
        let path = if healthy { "/healthy" } else { "/unhealthy" };
        // From the host itself, so that it works whatever its link does.
        let here = Client::new(host.netns.handle());
        here.http_post(at, path, Duration::from_secs(2))
            .map(drop)
            .with_context(|| format!("POST {path} on {name}"))
    }

    /// Adds the next host with a running server and returns its name; no configuration knows it yet.
    pub fn add_server(&mut self) -> Result<String> {
        let name = self.topology.add_server()?;
        self.start_host(self.topology.servers().len() - 1)?;
        Ok(name)
    }

    /// The state of everything, for whoever looks into a failure.
    pub fn describe(&self) -> String {
        let mut text = self.topology.describe();
        if let Some(xlb) = &self.xlb {
            let _ = match xlb.status() {
                Ok(status) => writeln!(text, "--- xlb status\n{:#}", status.0),
                Err(error) => writeln!(text, "--- xlb status: {error:#}"),
            };
            let _ = write!(text, "--- xlb log\n{}", xlb.last_log(40));
        }
        text
    }

    fn number(&self, name: &str) -> Result<usize> {
        let mut hosts = self.topology.servers().iter();
        hosts
            .position(|host| host.name == name)
            .with_context(|| format!("no server {name}: there are s1 to s{}", self.topology.servers().len()))
    }

    fn server(&mut self, name: &str) -> Result<&mut Server> {
        let number = self.number(name)?;
        Ok(&mut self.servers[number])
    }

    /// Starts what runs on a new host.
    fn start_host(&mut self, number: usize) -> Result<()> {
        let config = self.topology.config();
        match (&config.decap, config.forward) {
            (Some(words), Forward::Ipip) => {
                let (program, arguments) = words.split_first().context("no program to decapsulate with")?;
                let mut command = self.topology.servers()[number].netns.command(program);
                command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
                let mut decap = spawn(command).with_context(|| format!("start {program}"))?;
                let ready = decap
                    .stderr
                    .take()
                    .context("no stderr")
                    .and_then(|stderr| wait_for_line(stderr, "ready", LONGEST_START));
                // Into the lab first, so that it is ended whatever comes.
                self.servers.push(Server { process: None, decap: Some(decap), paused: false });
                ready.with_context(|| format!("start {program}"))?;
            }
            _ => self.servers.push(Server { process: None, decap: None, paused: false }),
        }
        self.start_process(number)
    }

    /// Starts the server's process and waits until it listens.
    fn start_process(&mut self, number: usize) -> Result<()> {
        let host = &self.topology.servers()[number];
        let mut command = host.netns.command(&self.program.program);
        command.args(&self.program.arguments).arg(&host.name);
        let own: [IpAddr; 2] = [host.v4.into(), host.v6.into()];
        command.args(own.iter().chain(&self.topology.config().services).map(ToString::to_string));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let what = || format!("start server {} ({})", host.name, self.program.program.display());
        let mut process = spawn(command).with_context(what)?;
        let stdout = process.stdout.take().context("no stdout");
        self.servers[number].process = Some(process);
        stdout.and_then(|stdout| wait_for_line(stdout, LISTENING, LONGEST_START)).with_context(what)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.describe());
        }
    }
}

impl Server {
    fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let pid = self.process.as_ref().and_then(|process| Pid::from_raw(process.id().cast_signed()));
        let pid = pid.with_context(|| format!("server {name} does not run"))?;
        kill_process(pid, signal).with_context(|| format!("signal server {name}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for process in [self.process.take(), self.decap.take()].into_iter().flatten() {
            // A drop has nobody to tell; the parent-death signal is still there.
            let _ = end(process, "");
        }
    }
}

fn end(mut process: Child, name: &str) -> Result<()> {
    process.kill().with_context(|| format!("kill server {name}"))?;
    process.wait().with_context(|| format!("wait for server {name}"))?;
    Ok(())
}
