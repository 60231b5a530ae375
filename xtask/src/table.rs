//! The live table of `cargo xtask run`, from a status and from what the client saw.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use lb_lab::{Backend, Status, Tally};

/// What is shown once a second.
pub struct View<'a> {
    /// Seconds since the lab was ready.
    pub age_s: u64,
    /// The controller's view; an error's text if it did not answer.
    pub status: Result<&'a Status, &'a str>,
    /// Requests that ended in the last second.
    pub second: &'a Tally,
    /// Requests since the start.
    pub total: &'a Tally,
}

impl View<'_> {
    /// For a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["server", "health", "reason", "state", "wanted", "last second", "requests"]);
        for backend in self.backends() {
            let Backend { name, health, reason, state, .. } = &backend;
            table.add_row([
                name.clone(),
                health.clone(),
                reason.clone(),
                state.clone(),
                percent(self.wanted(&backend)),
                percent(self.second.share(name)),
                self.total.count(name).to_string(),
            ]);
        }
        let mut text = format!("{table}\nlast second: {}\nin all:      {}\n", self.second, self.total);
        if let Some(trouble) = self.trouble() {
            let _ = writeln!(text, "\n{trouble}");
        }
        text
    }

    /// One line, for a file or a pipe.
    pub fn line(&self) -> String {
        let mut text = format!("{:4} s", self.age_s);
        for backend in self.backends() {
            let Backend { name, health, reason, .. } = &backend;
            let why = if health == "up" { String::new() } else { format!(" ({reason})") };
            let _ = write!(text, "  {name} {health}{why} {}", percent(self.second.share(name)));
        }
        let _ = write!(text, "  requests {} failures {}", self.total.answered(), self.total.failed());
        if let Some(trouble) = self.trouble() {
            let _ = write!(text, "  {}", trouble.replace('\n', "; "));
        }
        text
    }

    /// The backends of the first service: the lab's file has one.
    fn backends(&self) -> Vec<Backend> {
        self.status.ok().and_then(|status| Some(status.backends(status.first_service()?))).unwrap_or_default()
    }

    /// The share of the slots that a backend is current in.
    fn wanted(&self, backend: &Backend) -> f64 {
        let all: u64 = self.backends().iter().map(|backend| backend.slots).sum();
        backend.slots as f64 / all.max(1) as f64
    }

    fn trouble(&self) -> Option<String> {
        match self.status {
            Ok(status) => status.last_error().map(|error| format!("The file is not in force: {error}")),
            Err(error) => Some(format!("xlb does not answer: {error}")),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tally(counts: &[(&str, u64)]) -> Tally {
        let mut tally = Tally::default();
        for (name, count) in counts {
            (0..*count).for_each(|_| tally.record(Ok((*name).to_owned()), Duration::from_millis(1)));
        }
        tally
    }

    fn status(last_error: Option<&str>) -> Status {
        Status(serde_json::json!({
            "config": {"last_error": last_error},
            "services": [{"name": "web", "backends": [
                {"name": "s1", "health": "up", "reason": "L7OK 200", "state": "active", "slots": 30},
                {"name": "s2", "health": "down", "reason": "L4CON", "state": "active", "slots": 0},
                {"name": "s3", "health": "up", "reason": "L7OK 200", "state": "drain", "slots": 10}]}]
        }))
    }

    #[test]
    fn a_line_says_who_is_down_and_why() {
        let (status, second, total) = (status(None), tally(&[("s1", 3), ("s3", 1)]), tally(&[("s1", 9)]));
        let line = View { age_s: 7, status: Ok(&status), second: &second, total: &total }.line();
        assert_eq!(line, "   7 s  s1 up 75%  s2 down (L4CON) 0%  s3 up 25%  requests 9 failures 0");
    }

    #[test]
    fn the_table_has_wanted_and_real_shares_and_the_files_trouble() {
        let (status, tally) = (status(Some("lab.yaml:3:1: no")), tally(&[("s1", 1)]));
        let text = View { age_s: 7, status: Ok(&status), second: &tally, total: &tally }.table();
        let row: Vec<_> = text.lines().find(|line| line.contains("s3")).unwrap().split_whitespace().collect();
        assert_eq!(row, ["s3", "up", "L7OK", "200", "drain", "25%", "0%", "0"]);
        assert!(text.contains("not in force: lab.yaml:3:1: no"), "{text}");
    }

    #[test]
    fn a_silent_controller_is_said_to_be_silent() {
        let empty = Tally::default();
        let view = View { age_s: 0, status: Err("no socket"), second: &empty, total: &empty };
        assert!(view.table().contains("does not answer: no socket"));
        assert!(view.line().contains("does not answer: no socket"));
    }
}
