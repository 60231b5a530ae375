//! The kernel's refusals in words.

use std::{error::Error, io, path::PathBuf};

use super::shape::Mismatch;
use crate::dataplane::objects;

const NEEDS: &str = "permission denied; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

/// The program and its maps could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No object in this binary.
    #[error(transparent)]
    NotBuilt(#[from] objects::NotBuilt),
    /// The kernel does not let this process.
    #[error("{0}: {NEEDS}")]
    Permission(String),
    /// What is pinned cannot be used, or not be made.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The kernel lacks something, or refuses.
    #[error("{what}: {reason}{hint}")]
    Kernel {
        /// Verb and object.
        what: String,
        /// The kernel's word for it.
        reason: String,
        /// What may mend it.
        hint: &'static str,
    },
}

/// The pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A controller works there.
    #[error(
        "another xlb is already running with the pin directory {}{}; stop it first, or choose another `--pin-dir`",
        .dir.display(), pid_text(*.pid)
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The controller's process, if it can be seen.
        pid: Option<u32>,
    },
    /// No BPF file system there, and not the place where one is mounted.
    #[error(
        "the pin directory {} is not on a BPF file system; mount one there (`mount -t bpf bpf DIRECTORY`), or choose \
         a `--pin-dir` under /sys/fs/bpf", .0.display()
    )]
    NoBpfFs(PathBuf),
    /// It could not be mounted.
    #[error(
        "no BPF file system is mounted at /sys/fs/bpf, and mounting one failed: {0}; as root, try \
         `mount -t bpf bpf /sys/fs/bpf`"
    )]
    Mount(io::Error),
    /// A name that a BPF file system does not take.
    #[error("create {}: a BPF file system takes no dots in names; choose another `--pin-dir`", .0.display())]
    Dot(PathBuf),
    /// Others may change what is in it.
    #[error(
        "the pin directory {} belongs to another user, or others may write to it; remove it, or choose another \
         `--pin-dir`", .0.display()
    )]
    Untrusted(PathBuf),
    /// It was there and is no more.
    #[error("the pin directory {} was removed, or something was mounted over it", .0.display())]
    Lost(PathBuf),
    /// The maps have other sizes than the file wants.
    #[error(
        "{}; pinned maps cannot grow or shrink: run `xlb detach --pin-dir {}` first, which ends forwarding until the \
         next start, or set `limits` back", list(.differ), .dir.display()
    )]
    Limits {
        /// The pin directory.
        dir: PathBuf,
        /// What differs.
        differ: Vec<Mismatch>,
    },
    /// They are other maps.
    #[error(
        "{} holds the pins of another xlb: {}; run `xlb detach --pin-dir {}` first, or choose another `--pin-dir`",
        .version.display(), list(.differ), .dir.display()
    )]
    OtherShape {
        /// The pin directory.
        dir: PathBuf,
        /// The directory of the layout.
        version: PathBuf,
        /// What differs.
        differ: Vec<Mismatch>,
    },
    /// The kernel does not let this process.
    #[error("{0}: {NEEDS}")]
    Permission(String),
    /// The system refused.
    #[error("{action}")]
    Io {
        /// What was tried: verb and object.
        action: String,
        /// Its answer.
        source: io::Error,
    },
}

impl PinError {
    /// What a refusal means.
    pub(super) fn io(action: String, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission(action),
            _ => Self::Io { action, source },
        }
    }

    /// What a refused mount means.
    pub(super) fn mount(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Self::Permission("mount a BPF file system at /sys/fs/bpf".into())
            }
            _ => Self::Mount(source),
        }
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn list(differ: &[Mismatch]) -> String {
    differ.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The program could not be attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Another program has the interface's XDP slot.
    #[error(
        "its XDP slot is taken by another program; detach that one first (`ip link set dev NAME xdp off`, or \
         `bpftool link detach` where a BPF link holds it)"
    )]
    Taken,
    /// Another layout's data path has it.
    #[error(
        "its XDP slot is taken by another version of xlb, whose pins are in {}; `xlb detach` with that pin directory \
         removes it", .0.display()
    )]
    OtherLayout(PathBuf),
    /// Attached, but not pinned: it was taken off again.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel does not let this process.
    #[error("permission denied; run as root, or with CAP_BPF and CAP_NET_ADMIN")]
    Permission,
    /// It is not there.
    #[error("there is no such interface")]
    NoInterface,
    /// The driver or the kernel cannot.
    #[error("{0}")]
    Refused(String),
}

/// What a failed step of loading means.
pub(super) fn load_error(what: &str, error: &(dyn Error + 'static)) -> LoadError {
    let what = what.to_owned();
    match errno(error) {
        Some(libc::EPERM | libc::EACCES) if !chain(error).contains("Verifier output: ") => {
            LoadError::Permission(what)
        }
        Some(libc::EPERM) => LoadError::Permission(what),
        Some(libc::ENOSYS) => LoadError::Kernel {
            what,
            reason: chain(error),
            hint: "; this kernel has no BPF (CONFIG_BPF_SYSCALL)",
        },
        Some(libc::EINVAL) => {
            LoadError::Kernel { what, reason: chain(error), hint: "; xlb needs Linux 5.18 or later" }
        }
        _ => LoadError::Kernel { what, reason: chain(error), hint: "" },
    }
}

/// The error number at the bottom of an error.
pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

/// An error with all its causes, each once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
