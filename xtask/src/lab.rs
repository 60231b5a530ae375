//! `cargo xtask lab`: acts on a lab that runs in another terminal.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, exit},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_lab::{Client, HTTP_V4, NetnsHandle, stop};

use crate::control::RunningLab;

/// The hidden subcommand that runs a test server.
pub const SERVER_COMMAND: &str = "lab-server";

/// Acts on a running lab.
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    /// The process id of the lab, if several run
    #[arg(long, value_name = "PID", global = true)]
    lab: Option<u32>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Kills a server's process: connections are refused
    Kill {
        /// s1, s2, ...
        server: String,
    },
    /// Makes a server whole again, whatever was done to it
    Start {
        /// s1, s2, ...
        server: String,
    },
    /// Stops a server's process where it is: connections are accepted, nothing answers
    Pause {
        /// s1, s2, ...
        server: String,
    },
    /// Cuts a server off the network, silently
    Cut {
        /// s1, s2, ...
        server: String,
    },
    /// Lets a server answer its health checks with 503
    Unhealthy {
        /// s1, s2, ...
        server: String,
    },
    /// Sends requests from the client and says who answered
    Curl {
        /// How many
        #[arg(default_value_t = 1)]
        requests: u64,
    },
    /// Opens a shell on a host
    Shell {
        /// client, balancer, s1, s2, ...
        #[arg(default_value = "client")]
        host: String,
    },
    /// Runs an xlb command against the lab's controller, such as `xlb status` or `xlb drain web/s2`
    Xlb {
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
}

/// Runs the command.
pub fn run(args: LabArgs) -> Result<()> {
    let lab = RunningLab::find(args.lab)?;
    let line = match args.action {
        Action::Kill { server } => format!("kill {server}"),
        Action::Start { server } => format!("start {server}"),
        Action::Pause { server } => format!("pause {server}"),
        Action::Cut { server } => format!("cut {server}"),
        Action::Unhealthy { server } => format!("unhealthy {server}"),
        Action::Curl { requests } => return curl(&lab, requests),
        Action::Shell { host } => return shell(&lab, &host),
        Action::Xlb { words } => return xlb(&lab, &words),
    };
    println!("{}", lab.ask(&line)?);
    Ok(())
}

fn curl(lab: &RunningLab, requests: u64) -> Result<()> {
    let client = Client::new(NetnsHandle::open(&lab.ask("netns client")?)?);
    let timeout = Duration::from_secs(2);
    if requests == 1 {
        let server = client.http_get(HTTP_V4, timeout).with_context(|| format!("GET http://{HTTP_V4}/"))?;
        println!("{server}");
        return Ok(());
    }
    let tally = client.burst(&[HTTP_V4], requests, 16, timeout)?;
    println!("{tally}");
    if tally.failed() > 0 {
        bail!("some requests failed");
    }
    Ok(())
}

fn shell(lab: &RunningLab, host: &str) -> Result<()> {
    let (name, mut connection) = lab.ask_and_hold(&format!("netns {host}"))?;
    let netns = NetnsHandle::open(&name)?;
    let program = std::env::var_os("SHELL").map_or_else(|| PathBuf::from("/bin/sh"), PathBuf::from);
    println!(
        "A shell on {host}, in its network only; try `ip address` or, on the client, curl http://{HTTP_V4}/"
    );
    // Ctrl-C is the shell's.
    stop::on_signals();
    let mut child =
        netns.command(&program).spawn().with_context(|| format!("start {}", program.display()))?;
    thread::spawn(move || {
        // Nothing more is ever said: this returns when the lab ends. The shell goes with us, by its parent-death signal.
        let _ = connection.read(&mut [0]);
        eprintln!("\nThe lab has ended, and this shell with it.");
        exit(1);
    });
    // How the shell ends is the user's business.
    child.wait().context("wait for the shell")?;
    Ok(())
}

fn xlb(lab: &RunningLab, words: &[String]) -> Result<()> {
    let (binary, socket) = (lab.ask("binary")?, lab.ask("socket")?);
    let error = Command::new(&binary).args(words).arg("--socket").arg(socket).exec();
    Err(error).with_context(|| format!("run {binary}"))
}
