//! The kernel's refusals in words.

use std::{error::Error, io};

use crate::dataplane::objects;

/// The program and its maps could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No object in this binary.
    #[error(transparent)]
    NotBuilt(#[from] objects::NotBuilt),
    /// The kernel does not let this process.
    #[error("{0}: permission denied; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission(String),
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

/// The program could not be attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Another program has the interface's XDP slot.
    #[error(
        "its XDP slot is taken by another program; detach that one first (`ip link set dev NAME xdp off`)"
    )]
    Taken,
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
