//! What was measured: tables for people, the same figures as JSON.

use std::{fmt, time::Instant};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// All that one run measured.
#[derive(Serialize)]
pub struct Report {
    /// Too short for figures that count.
    pub quick: bool,
    /// What it was measured on.
    pub machine: Machine,
    /// How long it took.
    pub took_s: f64,
    /// One a subject.
    pub sections: Vec<Section>,
    #[serde(skip)]
    start: Instant,
}

/// The machine.
#[derive(Serialize)]
pub struct Machine {
    /// As the processor calls itself.
    pub cpu: String,
    /// How many of them are there.
    pub cpus: usize,
    /// `uname -r`.
    pub kernel: String,
}

/// One table.
#[derive(Serialize)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// Headings; the first column names the case.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// What figures are held against.
    pub bars: Vec<Bar>,
    /// What one has to know to read it.
    pub notes: Vec<String>,
}

/// One case.
#[derive(Serialize)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// A figure a column; `None` where there is none.
    pub values: Vec<Option<f64>>,
}

/// A ratio within one run, and what it is to be.
#[derive(Serialize)]
pub struct Bar {
    /// Of what to what.
    pub what: String,
    /// As measured.
    pub ratio: f64,
    /// The bar.
    pub at_most: f64,
    /// Whether it is kept.
    pub holds: bool,
}

impl Bar {
    /// A ratio that is to be `at_most` at most.
    pub fn new(what: &str, ratio: f64, at_most: f64) -> Self {
        Self { what: what.into(), ratio, at_most, holds: ratio <= at_most }
    }
}

impl Section {
    /// An empty table.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&c| c.into()).collect();
        Self { title: title.into(), columns, rows: Vec::new(), bars: Vec::new(), notes: Vec::new() }
    }

    /// Adds a case.
    pub fn row(&mut self, case: impl Into<String>, values: impl IntoIterator<Item = Option<f64>>) {
        self.rows.push(Row { case: case.into(), values: values.into_iter().collect() });
    }

    /// Adds a note.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(quick: bool) -> Self {
        Self { quick, machine: Machine::here(), took_s: 0.0, sections: Vec::new(), start: Instant::now() }
    }

    /// Notes how long it took.
    pub fn finish(&mut self) {
        self.took_s = self.start.elapsed().as_secs_f64();
    }
}

impl Machine {
    fn here() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cpu: model.map_or("unknown", |(_, name)| name.trim()).into(), cpus, kernel }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cpus, kernel } = &self.machine;
        writeln!(f, "{cpu}, {cpus} CPUs, Linux {kernel}; {:.0} s", self.took_s)?;
        if self.quick {
            writeln!(f, "quick: it works; the figures are rough")?;
        }
        self.sections.iter().try_for_each(|section| write!(f, "\n{section}"))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        if !self.rows.is_empty() {
            let row = |Row { case, values }: &Row| {
                let values = values.iter().map(|value| value.map_or_else(String::new, figure));
                std::iter::once(case.clone()).chain(values).collect()
            };
            write_table(f, &self.columns, self.rows.iter().map(row))?;
        }
        if !self.bars.is_empty() {
            let row = |bar: &Bar| {
                let holds = if bar.holds { "yes" } else { "NO" };
                vec![bar.what.clone(), figure(bar.ratio), figure(bar.at_most), holds.into()]
            };
            let columns = ["bar", "is", "at most", "holds"].map(String::from);
            write_table(f, &columns, self.bars.iter().map(row))?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

/// The first column names the row.
fn write_table(
    f: &mut fmt::Formatter<'_>,
    columns: &[String],
    rows: impl Iterator<Item = Vec<String>>,
) -> fmt::Result {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(columns).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(f, "{table}")
}

/// Three digits that count.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
