//! What is being done: on a terminal one line that is rewritten, else a line now and then.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Between lines, where they stay.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Progress {
    steps: usize,
    done: usize,
    is_terminal: bool,
    said: Instant,
}

impl Progress {
    /// Of so many steps.
    pub fn new(steps: usize) -> Self {
        Self { steps, done: 0, is_terminal: io::stderr().is_terminal(), said: Instant::now() }
    }

    /// The next step begins.
    pub fn step(&mut self, what: &str) {
        let line = format!("packets: {} of {}: {what}", self.done, self.steps);
        self.done += 1;
        if self.is_terminal {
            eprint!("\r{line}\x1b[K");
            // A line that does not show is no reason to stop.
            let _ = io::stderr().flush();
        } else if self.said.elapsed() >= PAUSE {
            self.said = Instant::now();
            eprintln!("{line}");
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
