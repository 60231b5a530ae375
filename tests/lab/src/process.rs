//! Children: `ip`, the servers and `xlb`.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts a child from a thread that lives as long as the process, in a process group of its own: Ctrl-C on the
/// terminal reaches only us, and we end our children in order.
///
/// A parent-death signal is sent when the *thread* that forked ends, so children that are to live longer than their
/// caller's thread must not be started from it.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                // A caller that is gone needs no child either: dropping the answer's receiver cannot happen while
                // it waits below.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    command.process_group(0);
    let (answer, result) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the spawner thread is gone");
    spawner.send((command, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

/// Runs `ip` with these arguments.
pub fn run_ip(arguments: &[&str]) -> Result<()> {
    let output =
        Command::new("ip").args(arguments).process_group(0).output().context("run ip (package iproute2)")?;
    check(&format!("ip {}", arguments.join(" ")), &output)
}

/// Runs `ip -batch` in a namespace.
pub fn run_ip_batch(netns: &str, lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-netns", netns, "-batch", "-"])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip (package iproute2)")?;
    // The handle is dropped at once: the batch ends there.
    child.stdin.take().context("no stdin")?.write_all(lines.as_bytes()).context("write to ip -batch")?;
    let output = child.wait_with_output().context("wait for ip -batch")?;
    check(&format!("ip -netns {netns} -batch, lines:\n{lines}"), &output)
}

/// The output of a command for people; what went wrong is put in words instead of an error.
pub fn output_text(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).process_group(0).output() {
        Ok(out) => {
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
        }
        Err(error) => format!("{program}: {error}\n"),
    }
}

/// Waits for a line of a child's output that starts with `start`; whatever comes later is read and forgotten, so that
/// the child never waits for us.
pub fn wait_for_line(output: impl Read + Send + 'static, start: &'static str, limit: Duration) -> Result<()> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens any more after the line that was waited for.
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + limit;
    let mut seen = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if line.starts_with(start) {
            return Ok(());
        }
        seen += &line;
        seen.push('\n');
    }
    bail!("it did not say `{start}` within {limit:?}, or ended before; it said:\n{seen}")
}

/// Fails with what the command said unless it succeeded.
pub fn check(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!("{what}: {}, {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// How to start a test server: a program and the arguments that come before the server's own.
#[derive(Debug, Clone)]
pub struct ServerProgram {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
}

impl ServerProgram {
    /// This very program with a (hidden) subcommand that calls [`crate::server::main`].
    pub fn this_binary(subcommand: &str) -> Result<Self> {
        // Not current_exe(): a rebuild replaces that file while we run, this link still leads to what runs.
        let program = fs::canonicalize("/proc/self/exe").unwrap_or_else(|_| "/proc/self/exe".into());
        Ok(Self { program, arguments: vec![subcommand.into()] })
    }

    /// The program `lb-lab-server` beside this one, as `cargo build -p lb-lab` leaves it.
    pub fn beside() -> Result<Self> {
        Ok(Self {
            program: beside_this_binary("lb-lab-server", "cargo build -p lb-lab")?,
            arguments: Vec::new(),
        })
    }
}

/// The program `name` in the directory of this one or the one above it (tests are in `deps/`). `remedy` is the
/// command that builds it.
pub fn beside_this_binary(name: &str, remedy: &str) -> Result<PathBuf> {
    let me = env::current_exe().context("find this program's path")?;
    let found = me.ancestors().skip(1).take(2).map(|dir: &Path| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} near {}: run `{remedy}` first", me.display()))
}

/// What is called `name` in one of the directories above this program's: `target`'s is the fourth at most.
pub fn above_this_binary(name: &str) -> Result<PathBuf> {
    let me = env::current_exe().context("find this program's path")?;
    let found = me.ancestors().skip(1).take(4).map(|dir: &Path| dir.join(name)).find(|path| path.exists());
    found.with_context(|| format!("no {name} above {}", me.display()))
}
