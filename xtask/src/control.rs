//! The socket over which `cargo xtask lab` acts on a running lab: one line asks, one line answers.
//!
//! An answer is `ok TEXT` or `error TEXT`. The lab keeps a connection open as long as it lives, so whoever holds one
//! sees its end.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_lab::{
    Lab,
    netns::{DIR_PREFIX, RUN_DIR, owner},
};

/// The socket's name in the lab's directory.
const SOCKET: &str = "control.sock";
/// Both sides are on this machine and say one line.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lab's end.
pub struct Control {
    listener: UnixListener,
    held: Vec<UnixStream>,
}

impl Control {
    /// Listens in the lab's directory, which goes with the lab.
    pub fn listen(lab: &Lab) -> Result<Self> {
        let path = lab.xlb()?.dir().join(SOCKET);
        let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        listener.set_nonblocking(true).context("make the control socket non-blocking")?;
        Ok(Self { listener, held: Vec::new() })
    }

    /// Answers who has asked; does not wait.
    pub fn serve(&mut self, lab: &mut Lab) {
        self.held.retain(is_open);
        while let Ok((stream, _)) = self.listener.accept() {
            // Whoever hangs up or says nothing gets no answer.
            if answer(&stream, lab).and_then(|()| stream.set_nonblocking(true)).is_ok() {
                self.held.push(stream);
            }
        }
    }
}

fn answer(mut stream: &UnixStream, lab: &mut Lab) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let text = match act(lab, line.trim()) {
        Ok(text) => format!("ok {text}\n"),
        Err(error) => format!("error {}\n", format!("{error:#}").replace('\n', "; ")),
    };
    stream.write_all(text.as_bytes())
}

fn is_open(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Does what a line asks for and says so.
fn act(lab: &mut Lab, line: &str) -> Result<String> {
    let (verb, name) = line.split_once(' ').unwrap_or((line, ""));
    Ok(match verb {
        "kill" => {
            lab.kill(name).map(|()| format!("{name}'s process is killed; its host refuses connections"))?
        }
        "start" => lab.start_server(name).map(|()| format!("{name} runs, is healthy and reachable"))?,
        "pause" => {
            lab.pause(name).map(|()| format!("{name} hangs: it accepts connections and answers nothing"))?
        }
        "cut" => lab.cut(name).map(|()| format!("{name} is cut off; nothing says so to anybody"))?,
        "unhealthy" => lab.set_healthy(name, false).map(|()| format!("{name} answers /healthz with 503"))?,
        "netns" => lab.topology().host(name)?.netns.name().to_owned(),
        "binary" => lab.xlb()?.binary().display().to_string(),
        "socket" => lab.xlb()?.socket().display().to_string(),
        _ => bail!("the lab does not know how to {verb:?}"),
    })
}

/// A running lab, seen from another process.
pub struct RunningLab {
    socket: PathBuf,
}

impl RunningLab {
    /// The lab of process `pid`, or the only one that runs.
    pub fn find(pid: Option<u32>) -> Result<Self> {
        let mut found: Vec<(u32, PathBuf)> = fs::read_dir(RUN_DIR)
            .with_context(|| format!("look for labs in {RUN_DIR}"))?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let id = owner(entry.file_name().to_str()?, DIR_PREFIX)?;
                let socket = entry.path().join(SOCKET);
                let alive = Path::new("/proc").join(id.to_string()).exists() && socket.exists();
                (alive && pid.is_none_or(|pid| pid == id)).then_some((id, socket))
            })
            .collect();
        found.sort();
        match found.as_slice() {
            [(_, socket)] => Ok(Self { socket: socket.clone() }),
            [] => bail!("no lab runs: start one with `cargo xtask run` in another terminal"),
            many => {
                let pids: Vec<String> = many.iter().map(|(id, _)| id.to_string()).collect();
                bail!("several labs run: choose one with --lab, of {}", pids.join(", "))
            }
        }
    }

    /// Asks for something and returns the answer's text.
    pub fn ask(&self, line: &str) -> Result<String> {
        self.ask_and_hold(line).map(|(text, _)| text)
    }

    /// Likewise, with the connection: it ends with the lab.
    pub fn ask_and_hold(&self, line: &str) -> Result<(String, UnixStream)> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("connect to {} (labs belong to root)", self.socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
        stream.write_all(format!("{line}\n").as_bytes()).context("ask the lab")?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).context("hear the lab's answer")?;
        stream.set_read_timeout(None).context("set no time limit")?;
        match answer.trim_end().split_once(' ') {
            Some(("ok", text)) => Ok((text.to_owned(), stream)),
            Some(("error", text)) => bail!("{text}"),
            _ => bail!("the lab ended before it answered"),
        }
    }
}
