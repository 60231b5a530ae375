//! How the API, and whoever else runs in the controller's process, asks the controller: by message, with a limit.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::model::{AdminReply, EventsReply, PlanReply, ReloadReply, Status};
use crate::config::spec::AdminState;

/// How long a question may take, waiting for the mailbox included.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions that wait for the controller. More wait for room, within their own limit.
pub const MAILBOX: usize = 64;

/// A question to the controller, each with the way back. Whoever asked may be gone: a failed `send` means nothing.
#[derive(Debug)]
pub enum Request {
    /// What is going on.
    Status(oneshot::Sender<Status>),
    /// Read the file again and apply it.
    Reload {
        /// To which dangerous changes the operator has agreed.
        consent: Consent,
        /// What became of it.
        reply: oneshot::Sender<ReloadReply>,
    },
    /// What would the file with this text change?
    Plan {
        /// For messages; the controller does not open it.
        file_name: String,
        /// The file.
        text: String,
        /// The answer.
        reply: oneshot::Sender<PlanReply>,
    },
    /// Put a backend into an administrative state; `enable` asks for `Active`.
    SetAdmin {
        /// Name of the service.
        service: String,
        /// Name of the backend.
        backend: String,
        /// Wanted from now on.
        state: AdminState,
        /// Also when no eligible backend would be left.
        force: bool,
        /// What became of it.
        reply: oneshot::Sender<Result<AdminReply, AdminError>>,
    },
    /// What happened after event `since`?
    Events {
        /// 0: all that are kept.
        since: u64,
        /// The answer.
        reply: oneshot::Sender<EventsReply>,
    },
}

/// Which changes of a reload are allowed that are held without it (DESIGN section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consent {
    /// None: the watched file, `xlb apply`.
    Nothing,
    /// Removing many backends, or a service with traffic: SIGHUP, `xlb reload`.
    Removals,
    /// Also what moves every flow: `xlb apply --force`.
    Everything,
}

/// Why an administrative state was not set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such service or backend; the text says which.
    #[error("{0}")]
    NotFound(String),
    /// The controller will not; the text says why.
    #[error("{0}")]
    Refused(String),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// The controller's own words.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// None came within the limit.
    #[error("the controller did not answer within {:?}", .0)]
    Timeout(Duration),
    /// The controller has stopped.
    #[error("the controller has stopped")]
    Stopped,
}

/// The way to the controller. Clones are cheap.
#[derive(Debug, Clone)]
pub struct ControllerHandle {
    mailbox: mpsc::Sender<Request>,
    ready: watch::Receiver<bool>,
    limit: Duration,
}

/// The controller's end: its mailbox, and the sign that it is ready.
#[derive(Debug)]
pub struct ControllerMailbox {
    /// Questions, in the order they came.
    pub requests: mpsc::Receiver<Request>,
    /// True once the first health verdicts are applied.
    pub ready: watch::Sender<bool>,
}

/// A handle and the mailbox it leads to.
pub fn channel() -> (ControllerHandle, ControllerMailbox) {
    let (sender, requests) = mpsc::channel(MAILBOX);
    let (ready, is_ready) = watch::channel(false);
    let handle = ControllerHandle { mailbox: sender, ready: is_ready, limit: ANSWER_TIMEOUT };
    (handle, ControllerMailbox { requests, ready })
}

impl ControllerHandle {
    /// The same with another limit for an answer.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Whether the first health verdicts are applied and the controller is there.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow() && !self.mailbox.is_closed()
    }

    /// What is going on.
    pub async fn status(&self) -> Result<Status, ControllerError> {
        self.ask(Request::Status).await
    }

    /// Read the file again and apply it.
    pub async fn reload(&self, consent: Consent) -> Result<ReloadReply, ControllerError> {
        self.ask(|reply| Request::Reload { consent, reply }).await
    }

    /// What would the file with this text change?
    pub async fn plan(&self, file_name: String, text: String) -> Result<PlanReply, ControllerError> {
        self.ask(|reply| Request::Plan { file_name, text, reply }).await
    }

    /// Put a backend into an administrative state; with `force` also when no eligible backend would be left.
    pub async fn set_admin(
        &self,
        service: String,
        backend: String,
        state: AdminState,
        force: bool,
    ) -> Result<AdminReply, ControllerError> {
        let answer = self.ask(|reply| Request::SetAdmin { service, backend, state, force, reply }).await?;
        Ok(answer?)
    }

    /// What happened after event `since`; 0 asks for all that are kept.
    pub async fn events(&self, since: u64) -> Result<EventsReply, ControllerError> {
        self.ask(|reply| Request::Events { since, reply }).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, ControllerError> {
        let (reply, answer) = oneshot::channel();
        let request = request(reply);
        let asked = async {
            self.mailbox.send(request).await.map_err(|_| ControllerError::Stopped)?;
            answer.await.map_err(|_| ControllerError::Stopped)
        };
        timeout(self.limit, asked).await.unwrap_or(Err(ControllerError::Timeout(self.limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_does_not_answer_is_not_waited_for_longer_than_the_limit() {
        let (handle, _mailbox) = channel();
        assert_eq!(handle.status().await, Err(ControllerError::Timeout(ANSWER_TIMEOUT)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_mailbox_counts_into_the_limit() {
        let (handle, _mailbox) = channel();
        let asking: Vec<_> = (0..=MAILBOX)
            .map(|_| {
                let handle = handle.clone();
                tokio::spawn(async move { handle.status().await })
            })
            .collect();
        for answer in asking {
            assert_eq!(answer.await.unwrap(), Err(ControllerError::Timeout(ANSWER_TIMEOUT)));
        }
    }

    #[tokio::test]
    async fn a_controller_that_is_gone_is_named_at_once() {
        let (handle, mailbox) = channel();
        mailbox.ready.send_replace(true);
        assert!(handle.is_ready());
        drop(mailbox);
        assert_eq!(handle.status().await, Err(ControllerError::Stopped));
        assert!(!handle.is_ready());
    }
}
