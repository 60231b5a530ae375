//! A controller process in the balancer's namespace.

use std::{
    collections::VecDeque,
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    netns::{BPF_DIR, DIR_PREFIX, NetnsHandle, RUN_DIR, unique},
    process::{check, spawn},
    status::Status,
    stop, wait_for,
};

/// Log lines kept for whoever looks into a failure; all of them are in the log file.
const LINES_KEPT: usize = 500;
/// After SIGTERM it must be gone in so long.
const LONGEST_STOP: Duration = Duration::from_secs(10);

/// A controller: the program, where it runs and its private paths. The process can be ended and started again.
///
/// Dropping it ends the process and removes its directory and pins.
#[derive(Debug)]
pub struct Xlb {
    binary: PathBuf,
    netns: NetnsHandle,
    dir: PathBuf,
    pin_dir: PathBuf,
    config: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Xlb {
    /// Prepares a controller with unique paths in a namespace; [`Self::start`] starts it.
    ///
    /// `config` `None` stands for a file of its own, [`Self::config_path`], to be written first. `arguments` are
    /// added to `xlb run`.
    pub fn new(
        binary: &Path,
        netns: NetnsHandle,
        config: Option<&Path>,
        arguments: &[String],
    ) -> Result<Self> {
        let id = format!("{}-{}", std::process::id(), unique());
        let dir = Path::new(RUN_DIR).join(format!("{DIR_PREFIX}{id}"));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let config = config.map_or_else(|| dir.join("lab.yaml"), Path::to_owned);
        Ok(Self {
            binary: binary.to_owned(),
            netns,
            pin_dir: Path::new(BPF_DIR).join(format!("{DIR_PREFIX}{id}")),
            dir,
            config,
            arguments: arguments.to_vec(),
            child: None,
            log: Arc::default(),
        })
    }

    /// Starts the process; the log of an earlier one is forgotten (the log file goes on).
    pub fn start(&mut self) -> Result<()> {
        self.kill()?;
        let mut command = self.netns.command(&self.binary);
        command.args(["run", "--config"]).arg(&self.config);
        command.arg("--socket").arg(self.socket()).arg("--pin-dir").arg(&self.pin_dir).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn(command).with_context(|| format!("start {}", self.binary.display()))?;
        let stderr = child.stderr.take().context("no stderr")?;
        self.child = Some(child);
        self.log = Arc::default();
        let (log, file) = (Arc::clone(&self.log), self.log_path());
        thread::spawn(move || keep_log(stderr, &log, &file));
        Ok(())
    }

    /// Waits for the line that starts with `ready`; returns how long it took.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let ended = wait_for(limit, || {
            if self.has_logged(|line| line.starts_with("ready")) {
                return Some(None);
            }
            self.exit_status().map(Some)
        });
        match ended {
            Some(None) => Ok(start.elapsed()),
            Some(Some(status)) => {
                bail!("xlb ended before it was ready ({status}); its log:\n{}", self.last_log(40))
            }
            None if stop::requested() => bail!("interrupted"),
            None => bail!("xlb was not ready within {limit:?}; its log:\n{}", self.last_log(40)),
        }
    }

    /// The program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The private socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("xlb.sock")
    }

    /// The private pin directory; removed on drop.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// The configuration file that it reads.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// The private directory; removed on drop.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything it ever logged.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("xlb.log")
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the present process has logged such a line.
    pub fn has_logged(&self, such: impl Fn(&str) -> bool) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|line| such(line))
    }

    /// The last lines of the present process's log, indented.
    pub fn last_log(&self, lines: usize) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = log.len().saturating_sub(lines);
        log.iter().skip(skip).flat_map(|line| ["  ", line, "\n"]).collect()
    }

    /// How the process ended, if it did by itself.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("xlb does not run")?;
        kill_process(pid, signal).context("signal xlb")
    }

    /// SIGKILL, as a crash; no error if it does not run.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill xlb")?;
            child.wait().context("wait for xlb")?;
        }
        Ok(())
    }

    /// SIGTERM, and waits: how it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.child.take().context("xlb does not run")?;
        // Not wait_for: this is called to clean up after a stop was asked for, too.
        let deadline = Instant::now() + LONGEST_STOP;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().context("wait for xlb")? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        child.kill().context("kill xlb")?;
        child.wait().context("wait for xlb")?;
        bail!("xlb did not end within {LONGEST_STOP:?} of SIGTERM")
    }

    /// `xlb` with these arguments and `--socket`, to its end.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--socket").arg(self.socket());
        command.output().with_context(|| format!("run xlb {}", arguments.join(" ")))
    }

    /// `xlb detach` with this controller's pin directory.
    pub fn detach(&self) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(["detach", "--pin-dir"]).arg(&self.pin_dir);
        command.output().context("run xlb detach")
    }

    /// `xlb status --json`.
    pub fn status(&self) -> Result<Status> {
        let output = self.command(&["status", "--json"])?;
        check("xlb status", &output)?;
        serde_json::from_slice(&output.stdout).map(Status).context("read what xlb status says")
    }
}

impl Drop for Xlb {
    fn drop(&mut self) {
        // Gently first: it takes its program off by itself. Whatever remains goes with the namespace and the pins.
        if self.child.is_some() && self.stop().is_err() {
            let _ = self.kill();
        }
        let _ = fs::remove_dir_all(&self.pin_dir);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn keep_log(stderr: impl Read, log: &Mutex<VecDeque<String>>, file: &Path) {
    let mut file = OpenOptions::new().create(true).append(true).open(file).ok();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Some(file) = &mut file {
            // The file is a convenience; the lines in memory are what tests read.
            let _ = writeln!(file, "{line}");
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LINES_KEPT {
            log.pop_front();
        }
        log.push_back(line);
    }
}
