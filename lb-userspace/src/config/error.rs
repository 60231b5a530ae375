//! What is wrong with a file, where, and how to mend it. Collects; never stops at the first.

use std::{cell::OnceCell, fmt, path::Path};

use serde::Serialize;

/// Errors or warnings kept for one file; what is beyond is only counted, so that a file of rubbish stays cheap.
const KEPT: usize = 1000;
/// Characters of a source line that are shown at most.
const SNIPPET_WIDTH: usize = 110;

/// A range of bytes in the file's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// How bad a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is not used.
    Error,
    /// The file is used.
    Warning,
}

/// One error or warning. Displays in rustc's layout over several lines, without colour and without a final newline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file as it was named by the caller.
    pub file: String,
    /// Counted from 1; `None` if the file as a whole is meant.
    pub line: Option<u32>,
    /// In characters, counted from 1.
    pub column: Option<u32>,
    /// Path of the key, such as `services[0].backends[2].address`; empty for the whole file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    #[serde(skip)]
    snippet: Option<Snippet>,
}

/// A warning: a [`Diagnostic`] with [`Severity::Warning`].
pub type Warning = Diagnostic;

/// The source line of a diagnostic, cut to a readable width.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snippet {
    text: String,
    /// Characters before the marked ones.
    before: usize,
    /// Marked characters, at least one.
    marked: usize,
}

impl Diagnostic {
    /// A diagnostic about the file as a whole.
    fn whole_file(severity: Severity, file: &Path, message: String, help: Option<String>) -> Self {
        Self {
            severity,
            file: file.display().to_string(),
            line: None,
            column: None,
            path: String::new(),
            message,
            help,
            snippet: None,
        }
    }

    /// `FILE:LINE:COLUMN`, or `FILE` alone.
    pub fn place(&self) -> String {
        match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", self.file),
            _ => self.file.clone(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let number = self.line.map_or_else(String::new, |line| line.to_string());
        let margin = " ".repeat(number.len());
        write!(f, "{severity}: {}\n{margin}--> {}", self.message, self.place())?;
        if !self.path.is_empty() {
            write!(f, " ({})", self.path)?;
        }
        if let Some(snippet) = &self.snippet {
            let space = " ".repeat(snippet.before);
            let carets = "^".repeat(snippet.marked);
            write!(f, "\n{margin} |\n{number} | {}\n{margin} | {space}{carets}", snippet.text)?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{margin} = help: {help}")?;
        }
        Ok(())
    }
}

/// Why a file was refused: at least one error, and the warnings found on the way, each in the order of the file.
///
/// Displays all of them and a summary such as `2 errors, 1 warning`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigErrors {
    /// At least one.
    pub errors: Vec<Diagnostic>,
    /// What would have been warned of besides.
    pub warnings: Vec<Warning>,
    /// Errors that were counted but not kept, because there were so many.
    pub more_errors: usize,
}

impl ConfigErrors {
    /// One error about the file as a whole.
    pub(super) fn of_file(file: &Path, message: String, help: Option<String>) -> Self {
        let error = Diagnostic::whole_file(Severity::Error, file, message, help);
        Self { errors: vec![error], warnings: Vec::new(), more_errors: 0 }
    }

    /// The first error on one line, and how many more there are: for `status` and logs.
    pub fn one_line(&self) -> String {
        let Some(first) = self.errors.first() else { return String::new() };
        let path = if first.path.is_empty() { String::new() } else { format!("{}: ", first.path) };
        let help = first.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
        let more = match self.errors.len() + self.more_errors {
            0 | 1 => String::new(),
            2 => "; and 1 more error".to_owned(),
            n => format!("; and {} more errors", n - 1),
        };
        format!("{}: {path}{}{help}{more}", first.place(), first.message)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.errors.iter().chain(&self.warnings) {
            write!(f, "{diagnostic}\n\n")?;
        }
        f.write_str(&summary(self.errors.len() + self.more_errors, self.warnings.len()))?;
        if self.more_errors > 0 {
            write!(f, "; only the first {} errors are shown", self.errors.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// `2 errors, 1 warning`; `no errors` if there are none.
pub fn summary(errors: usize, warnings: usize) -> String {
    let count = |n: usize, word: &str| match n {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    };
    match (errors, warnings) {
        (0, 0) => "no errors".to_owned(),
        (0, w) => count(w, "warning"),
        (e, 0) => count(e, "error"),
        (e, w) => format!("{}, {}", count(e, "error"), count(w, "warning")),
    }
}

/// The collector that is passed through reading, resolving and checking.
pub(super) struct Report<'t> {
    file: String,
    text: &'t str,
    line_starts: OnceCell<Vec<u32>>,
    found: Vec<(Span, Diagnostic)>,
    errors: usize,
    dropped_errors: usize,
}

impl<'t> Report<'t> {
    /// An empty report on `text`, which must be shorter than 4 GiB.
    pub fn new(file: &Path, text: &'t str) -> Self {
        Self {
            file: file.display().to_string(),
            text,
            line_starts: OnceCell::new(),
            found: Vec::new(),
            errors: 0,
            dropped_errors: 0,
        }
    }

    /// Notes an error.
    pub fn error(
        &mut self,
        at: Span,
        path: &dyn fmt::Display,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.errors += 1;
        self.add(Severity::Error, at, path, message.into(), help);
    }

    /// Notes a warning.
    pub fn warning(
        &mut self,
        at: Span,
        path: &dyn fmt::Display,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.add(Severity::Warning, at, path, message.into(), help);
    }

    /// Notes a warning about the file as a whole.
    pub fn warning_of_file(&mut self, message: String, help: Option<String>) {
        let diagnostic = Diagnostic::whole_file(Severity::Warning, Path::new(&self.file), message, help);
        self.found.push((Span::default(), diagnostic));
    }

    /// How many errors were noted.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Whether any error was noted.
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// `line 9:7`: to speak of another place in a message.
    pub fn line(&self, at: Span) -> String {
        let (line, column) = self.line_column(at);
        format!("line {line}:{column}")
    }

    /// All that was noted, in the order of the file: errors, warnings, and how many errors were not kept.
    pub fn finish(mut self) -> ConfigErrors {
        self.found.sort_by_key(|(at, _)| at.start);
        let all = self.found.into_iter().map(|(_, diagnostic)| diagnostic);
        let (errors, warnings) = all.partition(|d| d.severity == Severity::Error);
        ConfigErrors { errors, warnings, more_errors: self.dropped_errors }
    }

    fn add(
        &mut self,
        severity: Severity,
        at: Span,
        path: &dyn fmt::Display,
        message: String,
        help: Option<String>,
    ) {
        if self.found.len() >= KEPT {
            self.dropped_errors += usize::from(severity == Severity::Error);
            return;
        }
        let (line, column) = self.line_column(at);
        let diagnostic = Diagnostic {
            severity,
            file: self.file.clone(),
            line: Some(line),
            column: Some(column),
            path: path.to_string(),
            message,
            help,
            snippet: Some(self.snippet(at, line)),
        };
        self.found.push((at, diagnostic));
    }

    fn line_starts(&self) -> &[u32] {
        self.line_starts.get_or_init(|| {
            let newlines = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0).chain(newlines.map(|(index, _)| index as u32 + 1)).collect()
        })
    }

    /// Line and column, counted from 1.
    fn line_column(&self, at: Span) -> (u32, u32) {
        let line = self.line_starts().partition_point(|start| *start <= at.start);
        let start = self.line_starts()[line - 1];
        (line as u32, self.characters(start, at.start) as u32 + 1)
    }

    fn snippet(&self, at: Span, line: u32) -> Snippet {
        let start = self.line_starts()[line as usize - 1] as usize;
        let rest = self.text.get(start..).unwrap_or_default();
        let source = rest.split(['\n', '\r']).next().unwrap_or_default();
        let end = (at.end as usize).min(start + source.trim_end().len()) as u32;
        let before = self.characters(start as u32, at.start);
        let marked = self.characters(at.start, end).max(1);
        // A window that shows the marked part even on a line of a million characters.
        let skipped = (before + marked.min(SNIPPET_WIDTH / 2)).saturating_sub(SNIPPET_WIDTH - 10);
        let text: String = source.chars().skip(skipped).take(SNIPPET_WIDTH).map(printable).collect();
        let before = before - skipped;
        Snippet { text, before, marked: marked.min(SNIPPET_WIDTH.saturating_sub(before).max(1)) }
    }

    fn characters(&self, start: u32, end: u32) -> usize {
        self.text.get(start as usize..end as usize).map_or(0, |part| part.chars().count())
    }
}

/// A character that moves no cursor and starts no terminal sequence.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// A piece of the file for use within a message: short, one line, without control characters.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push_str("...");
    }
    short.replace("\\\"", "\"").replace("\\'", "'")
}

/// Where a node stands in the tree; a list on the stack, so that a path costs nothing until it is displayed.
#[derive(Debug, Clone, Copy)]
pub(super) enum KeyPath<'p> {
    /// The file.
    Root,
    /// A key of a map.
    Key(&'p KeyPath<'p>, &'p str),
    /// An item of a list, counted from 0.
    Index(&'p KeyPath<'p>, usize),
}

impl KeyPath<'_> {
    /// The path of a key under this one.
    pub fn key<'p>(&'p self, key: &'p str) -> KeyPath<'p> {
        KeyPath::Key(self, key)
    }

    /// The path of an item under this one.
    pub fn index(&self, index: usize) -> KeyPath<'_> {
        KeyPath::Index(self, index)
    }
}

impl fmt::Display for KeyPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(&shown(key)),
            Self::Key(parent, key) => write!(f, "{parent}.{}", shown(key)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u32, end: u32) -> Span {
        Span { start, end }
    }

    #[test]
    fn columns_count_characters_and_lines_may_end_in_crlf() {
        let text = "ä: b\r\nöü: x\r\n";
        let mut report = Report::new(Path::new("f"), text);
        let at = text.find('x').expect("x") as u32;
        report.error(span(at, at + 1), &KeyPath::Root, "no", None);
        let errors = report.finish();
        assert_eq!((errors.errors[0].line, errors.errors[0].column), (Some(2), Some(5)));
        assert_eq!(errors.to_string(), "error: no\n --> f:2:5\n  |\n2 | öü: x\n  |     ^\n\n1 error");
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark_and_control_characters_are_not_printed() {
        let text = format!("{}\u{1b}[31mBAD{}", "x".repeat(100_000), "y".repeat(100_000));
        let mut report = Report::new(Path::new("f"), &text);
        report.error(span(100_005, 100_008), &KeyPath::Root, "no", None);
        let shown = report.finish().to_string();
        assert!(shown.len() < 1000 && shown.contains("BAD") && !shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn what_is_beyond_the_limit_is_counted() {
        let mut report = Report::new(Path::new("f"), "a");
        for _ in 0..KEPT + 5 {
            report.error(span(0, 1), &KeyPath::Root, "no", None);
        }
        let errors = report.finish();
        assert_eq!((errors.errors.len(), errors.more_errors), (KEPT, 5));
        assert!(errors.to_string().contains("1005 errors; only the first 1000"));
        assert!(errors.one_line().ends_with("and 1004 more errors"));
    }

    #[test]
    fn json_has_the_documented_keys() {
        let mut report = Report::new(Path::new("f.yaml"), "a: 1");
        report.error(span(3, 4), &KeyPath::Root.key("a"), "no", Some("yes".into()));
        let json = serde_json::to_value(&report.finish().errors[0]).expect("serialise");
        assert_eq!(
            json,
            serde_json::json!({"severity": "error", "file": "f.yaml", "line": 1, "column": 4,
                "path": "a", "message": "no", "help": "yes"})
        );
    }
}
