//! How the command ends (DESIGN section 4).

use std::{io, process::ExitCode};

use crate::{
    api::{client::ClientError, socket::BindError},
    config::ConfigErrors,
    dataplane::bpf::{AttachError, LoadError, PinError},
    plan::compile::CapacityError,
};

/// The exit status. The numbers are `sysexits.h`'s where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It did not work, or not whole.
    Failed = 1,
    /// The command line is wrong; clap's own.
    Usage = 2,
    /// The configuration is wrong.
    BadConfig = 65,
    /// No controller answers.
    NotRunning = 69,
    /// Another controller does.
    AlreadyRunning = 75,
    /// The system does not allow it.
    Permission = 77,
}

impl Exit {
    /// What an error means; the first of its causes that means something decides.
    pub fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(Self::of_cause).unwrap_or(Self::Failed)
    }

    fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return match client {
                ClientError::NotRunning(_) => Some(Self::NotRunning),
                ClientError::Permission(_) => Some(Self::Permission),
                ClientError::Timeout(_) | ClientError::Controller { .. } | ClientError::Protocol(_) => None,
            };
        }
        if let Some(BindError::AlreadyRunning(_)) = cause.downcast_ref() {
            return Some(Self::AlreadyRunning);
        }
        if cause.is::<ConfigErrors>() || cause.is::<CapacityError>() {
            return Some(Self::BadConfig);
        }
        if matches!(cause.downcast_ref(), Some(LoadError::Permission(_)))
            || matches!(cause.downcast_ref(), Some(AttachError::Permission))
        {
            return Some(Self::Permission);
        }
        match pin_error(cause) {
            Some(PinError::Held { .. }) => return Some(Self::AlreadyRunning),
            Some(PinError::Limits { .. }) => return Some(Self::BadConfig),
            Some(PinError::Permission(_)) => return Some(Self::Permission),
            _ => {}
        }
        let system = cause.downcast_ref::<io::Error>()?;
        (system.kind() == io::ErrorKind::PermissionDenied).then_some(Self::Permission)
    }
}

/// Also where it shows through another error, which `source` skips.
fn pin_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a PinError> {
    if let Some(LoadError::Pins(pins)) = cause.downcast_ref() {
        return Some(pins);
    }
    if let Some(AttachError::Pin(pins)) = cause.downcast_ref() {
        return Some(pins);
    }
    cause.downcast_ref()
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_decides_however_deep_it_is() {
        let deep = |error: anyhow::Error| Exit::of(&error.context("outer").context("outermost"));
        assert_eq!(deep(ClientError::NotRunning("x".into()).into()), Exit::NotRunning);
        assert_eq!(deep(ClientError::Permission("x".into()).into()), Exit::Permission);
        assert_eq!(deep(BindError::AlreadyRunning("x".into()).into()), Exit::AlreadyRunning);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(
            deep(BindError::Io { action: "create x".into(), source: denied }.into()),
            Exit::Permission
        );
        let held = || PinError::Held { dir: "x".into(), pid: None };
        assert_eq!(deep(held().into()), Exit::AlreadyRunning);
        assert_eq!(deep(LoadError::from(held()).into()), Exit::AlreadyRunning);
        assert_eq!(deep(AttachError::from(PinError::Permission("x".into())).into()), Exit::Permission);
        let limits = PinError::Limits { dir: "x".into(), differ: Vec::new() };
        assert_eq!(deep(LoadError::from(limits).into()), Exit::BadConfig);
        assert_eq!(deep(PinError::NoBpfFs("x".into()).into()), Exit::Failed);
        assert_eq!(deep(anyhow::anyhow!("anything")), Exit::Failed);
        let missing = Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context("open").unwrap_err();
        assert_eq!(deep(missing), Exit::Failed);
    }
}
