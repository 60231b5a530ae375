//! Logs to stderr: one event a line, so that no text from outside can look like a line of its own.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use tracing_subscriber::{EnvFilter, fmt, fmt::MakeWriter};

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One object a line.
    Json,
}

/// Starts logging. Which events: `XLB_LOG`, else `RUST_LOG` (both as `tracing_subscriber::EnvFilter`), else `level`.
/// Of several calls the first one counts.
pub fn init(format: LogFormat, level: &str) {
    let wanted =
        ["XLB_LOG", "RUST_LOG"].into_iter().find_map(|name| env::var(name).ok().map(|text| (name, text)));
    let (filter, problem) = match &wanted {
        Some((name, text)) => match EnvFilter::try_new(text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(level), Some(format!("{name} is not understood: {error}"))),
        },
        None => (EnvFilter::new(level), None),
    };
    let subscriber = fmt().with_env_filter(filter).with_target(false).with_writer(Stderr);
    // The error of `try_init` is that there is a subscriber already.
    let _ = match format {
        LogFormat::Human => subscriber.with_ansi(colour(&io::stderr())).try_init(),
        LogFormat::Json => subscriber.with_ansi(false).json().flatten_event(true).try_init(),
    };
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
}

/// Whether to write colours there: to a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The one line that starts with `ready`, whatever the format (DESIGN section 4): scripts wait for it. `details` are
/// made one line. A stderr that is gone is no reason to stop.
pub fn ready_line(details: &str) {
    let line = format!("ready {}\n", one_line(details));
    // One write under stderr's lock, as for every event: the line is never inside another one.
    drop(io::stderr().lock().write_all(line.as_bytes()));
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Writes each event in one piece under stderr's lock.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Event<io::StderrLock<'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        Event(io::stderr().lock())
    }
}

/// Indents what follows the first line of an event: it cannot pass for an event, or for the `ready` line.
struct Event<W>(W);

impl<W: Write> Write for Event<W> {
    /// The formatter writes an event at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        if !body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            self.0.write_all(event)?;
            return Ok(event.len());
        }
        let mut text = Vec::with_capacity(event.len() + 64);
        for &byte in body {
            match byte {
                b'\n' => text.extend_from_slice(b"\n    "),
                b'\r' => {}
                other => text.push(other),
            }
        }
        text.push(b'\n');
        self.0.write_all(&text)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str) -> String {
        let mut out = Vec::new();
        assert_eq!(Event(&mut out).write(event.as_bytes()).unwrap(), event.len());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_text_from_outside_cannot_begin_a_line() {
        assert_eq!(written("INFO ok\n"), "INFO ok\n");
        assert_eq!(written("WARN got \r\nready now\n"), "WARN got \n    ready now\n");
        assert_eq!(written("WARN got\rready now\n"), "WARN gotready now\n");
    }

    #[test]
    fn details_of_the_ready_line_stay_on_it() {
        assert_eq!(one_line("a\nb\x1b[31m"), "a b [31m");
    }
}
