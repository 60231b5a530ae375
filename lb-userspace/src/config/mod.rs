//! File -> spec. [`parse`] takes text, [`load`] a path; both report every error at once.
//!
//! `yaml` makes a tree with places, `read`, `scalar` and `address` give it types, `file` is the result as written,
//! `resolve` and `check` make the [`spec`] of it, `warn` warns. `consent` says which changes wait for a human,
//! `watch` notices them, in the
//! places that `chain` finds.

mod address;
mod chain;
mod check;
pub mod consent;
mod error;
mod file;
mod read;
mod resolve;
mod scalar;
pub mod spec;
mod warn;
pub mod watch;
mod yaml;

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use error::Report;
pub use error::{ConfigErrors, Diagnostic, Severity, Warning, summary};
use spec::Spec;

/// The largest file that is read, in bytes.
pub const MAX_FILE_SIZE: usize = 4 << 20;

/// A valid configuration and what it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What the file says.
    pub spec: Spec,
    /// In the order of the file.
    pub warnings: Vec<Warning>,
    /// The file as the caller named it.
    pub file: PathBuf,
    /// The text it came from; to be compared with what [`watch::Watcher`] reports.
    pub text: Arc<str>,
}

impl Loaded {
    /// Whether the text ends within a line, as a half-written one mostly does. Such a change deserves the same
    /// patience as one that [only removes](consent::only_removes): the last address or number may be cut short.
    pub fn ends_within_a_line(&self) -> bool {
        !self.text.ends_with('\n')
    }
}

/// A duration as the file writes it, up to a day, for the command line: `500ms`, `10s`, `5m`, `1h`.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let scalar = scalar::Scalar { text, plain: true };
    scalar::duration(scalar, &(Duration::ZERO..=Duration::from_hours(24))).map_err(|wrong| {
        wrong.help.map_or_else(|| wrong.message.clone(), |help| format!("{}: {help}", wrong.message))
    })
}

/// Makes a spec of a file's text; `file` is its name in messages.
///
/// # Errors
/// All that is wrong with it. YAML that cannot be read is one error.
pub fn parse(text: &str, file: &Path) -> Result<Loaded, ConfigErrors> {
    parse_with_permissions(text, file, None)
}

/// Reads and parses a file, and warns besides if others than its owner may change it.
///
/// # Errors
/// As [`parse`]; that the file cannot be read is one error.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    let (text, permissions) = read_file(path).map_err(|wrong| {
        let help = match wrong.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "let the user that runs this read the file",
            io::ErrorKind::FileTooLarge => "split it, or look whether it is the right file",
            _ => "give a YAML file",
        };
        ConfigErrors::of_file(path, format!("cannot read the file: {wrong}"), Some(help.to_owned()))
    })?;
    parse_with_permissions(&text, path, Some(&permissions))
}

fn parse_with_permissions(
    text: &str,
    path: &Path,
    permissions: Option<&Permissions>,
) -> Result<Loaded, ConfigErrors> {
    if text.len() > MAX_FILE_SIZE {
        let message = format!("the file has {} bytes, the limit is {MAX_FILE_SIZE}", text.len());
        let help = "split it, or look whether it is the right file".to_owned();
        return Err(ConfigErrors::of_file(path, message, Some(help)));
    }
    let mut report = Report::new(path, text);
    if let Some(mode) = permissions.map(Permissions::mode)
        && mode & 0o022 != 0
    {
        let message = format!("others than the owner may change the file (mode {:04o})", mode & 0o7777);
        report.warning_of_file(message, Some(format!("chmod go-w {}", path.display())));
    }
    let spec = yaml::tree(text, &mut report).and_then(|root| {
        let file = file::read(&root, &mut report);
        resolve::resolve(&file, &mut report)
    });
    let found = report.finish();
    match spec {
        Some(spec) => Ok(Loaded { spec, warnings: found.warnings, file: path.to_owned(), text: text.into() }),
        None => Err(found),
    }
}

/// The text of a regular file of at most [`MAX_FILE_SIZE`], and its permissions.
fn read_file(path: &Path) -> io::Result<(String, Permissions)> {
    // O_NONBLOCK: opening a FIFO without a writer would wait for ever.
    let mut file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    (&mut file).take(MAX_FILE_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_SIZE {
        let message = format!("it has more than {MAX_FILE_SIZE} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8 (byte {valid})"))
    })?;
    Ok((text, metadata.permissions()))
}
