//! Running other programs, and the places they work in.

use anyhow::{Context as _, Result, bail};
use lb_lab::stop;
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the checkout")
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => env::current_dir().map_or_else(|_| dir.clone().into(), |here| here.join(&dir)),
        None => root().join("target"),
    }
}

/// A cargo command in the checkout, with the toolchain that rust-toolchain.toml pins.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Whether a program is on the path.
pub fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps these out of an ordinary user's path.
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.into_iter().any(|dir: PathBuf| dir.join(program).is_file())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Runs a command to its end; prints it first and names it when it fails.
pub fn exec(command: &mut Command) -> Result<()> {
    let text = describe(command);
    eprintln!("\u{25b8} {text}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("start `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed: {status} after {:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The command as one would type it, environment included.
pub fn describe(command: &Command) -> String {
    let mut words = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            let value = value.to_string_lossy().replace('\u{1f}', " ");
            words.push(format!("{}='{value}'", key.to_string_lossy()));
        }
    }
    words.push(
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned(),
    );
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// `None` if an error is only that a stop was asked for.
pub fn uninterrupted<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(_) if stop::requested() => Ok(None),
        Err(error) => Err(error),
    }
}
