//! A controller for tests: answers from a fixed status and remembers what it was asked.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use super::{
    events::EventLog,
    handle::{AdminError, Consent, ControllerHandle, Request, channel},
    model::{
        AdminReply, BackendStatus, Change, ConfigStatus, ControllerStatus, EventKind, FlowStatus, Health,
        InterfaceMode, InterfaceStatus, Outcomes, PlanReply, ReloadReply, ServicePlan, ServiceStatus, Status,
    },
};
use crate::config::spec::AdminState;

/// A running fake; it lives as long as a handle does.
pub struct Fake {
    /// The way to it.
    pub handle: ControllerHandle,
    /// Set it as a controller would.
    pub ready: tokio::sync::watch::Sender<bool>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Starts one that answers with [`status`].
    pub fn start() -> Self {
        Self::showing(status)
    }

    /// Starts one that asks `status` anew for each answer.
    pub fn showing(mut status: impl FnMut() -> Status + Send + 'static) -> Self {
        let (handle, mut mailbox) = channel();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = asked.clone();
        let ready = mailbox.ready;
        tokio::spawn(async move {
            while let Some(request) = mailbox.requests.recv().await {
                let note = answer(request, &mut status);
                notes.lock().unwrap().push(note);
            }
        });
        Self { handle, ready, asked }
    }

    /// What it was asked so far, oldest first.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Answers one request and says what it was. Sends fail when the asker has gone, which is its own affair.
fn answer(request: Request, status: &mut impl FnMut() -> Status) -> String {
    match request {
        Request::Status(reply) => {
            drop(reply.send(status()));
            "status".to_owned()
        }
        Request::Reload { consent, reply } => {
            drop(reply.send(reload(consent)));
            format!("reload {consent:?}")
        }
        Request::Plan { file_name, text, reply } => {
            drop(reply.send(plan(&text)));
            format!("plan {file_name} of {} bytes", text.len())
        }
        Request::SetAdmin { service, backend, state, force, reply } => {
            drop(reply.send(set_admin(&service, &backend, state, force)));
            format!("{service}/{backend} {state}{}", if force { " forced" } else { "" })
        }
        Request::Events { since, reply } => {
            let mut log = EventLog::new(Instant::now());
            let at = (Instant::now(), SystemTime::UNIX_EPOCH);
            log.push(at, EventKind::Controller, (None, None), "started");
            log.push(at, EventKind::Health, (Some("web"), Some("s2")), "down: L4TOUT");
            drop(reply.send(log.since(since)));
            format!("events {since}")
        }
    }
}

fn reload(consent: Consent) -> ReloadReply {
    let reply = ReloadReply { applied: true, generation: 5, ..ReloadReply::default() };
    if consent == Consent::Nothing {
        return ReloadReply { applied: false, held: vec!["2 of 3 backends would go".to_owned()], ..reply };
    }
    ReloadReply { changes: vec!["web: backend s4 added".to_owned()], ..reply }
}

fn plan(text: &str) -> PlanReply {
    if text.starts_with("bad") {
        return PlanReply { errors: vec!["xlb.yaml:1:1: bad".to_owned()], ..PlanReply::default() };
    }
    let web = ServicePlan {
        name: "web".to_owned(),
        change: Change::Changed,
        slots_total: 65537,
        slots_moved: 16384,
        backends_added: vec!["s4".to_owned()],
        flows_stay: true,
        ..ServicePlan::default()
    };
    PlanReply { services: vec![web], ..PlanReply::default() }
}

/// Of [`status`]'s backends, `s1` is the last eligible one of its service.
fn set_admin(service: &str, backend: &str, state: AdminState, force: bool) -> Result<AdminReply, AdminError> {
    match (service, backend) {
        ("web", "s1") if state != AdminState::Active && !force => {
            Err(AdminError::Refused("s1 is the last eligible backend of web".to_owned()))
        }
        ("web", "s1" | "s2" | "2001:db8::7") => {
            Ok(AdminReply { changed: true, state, notes: vec!["2 backends are left".to_owned()] })
        }
        _ => Err(AdminError::NotFound(format!("there is no backend {service}/{backend}"))),
    }
}

/// A status with something of everything: two services, a backend down, one draining, one leaving, a held change, a
/// guard.
pub fn status() -> Status {
    let dns = ServiceStatus {
        name: "dns".to_owned(),
        listen: vec!["192.0.2.53:53/udp".to_owned()],
        forward: "ipip".to_owned(),
        ring_size: 4093,
        ..ServiceStatus::default()
    };
    Status {
        config: ConfigStatus {
            path: "/etc/xlb/xlb.yaml".to_owned(),
            generation: 4,
            reloads: 3,
            last_error: Some("held: 2 of 3 backends would go".to_owned()),
            held: vec!["web: 2 of 3 backends would go; `xlb reload` consents".to_owned()],
        },
        interfaces: vec![
            InterfaceStatus { name: "eth0".to_owned(), mode: InterfaceMode::Native, note: None },
            InterfaceStatus {
                name: "eth1".to_owned(),
                mode: InterfaceMode::Generic,
                note: Some("the driver has no XDP".to_owned()),
            },
        ],
        services: vec![web(), dns],
        outcomes: Outcomes(vec![
            (Cow::Borrowed("forwarded"), 4000),
            (Cow::Borrowed("pass_not_ours"), 70),
            (Cow::Borrowed("drop_malformed"), 3),
            (Cow::Borrowed("drop_martian"), 0),
        ]),
        controller: ControllerStatus {
            version: "0.1.0".to_owned(),
            uptime_s: 3725.0,
            pid: 4711,
            guard: vec!["no backend behind eth1 answers any more: the tables are held for 27s".to_owned()],
        },
        flows: FlowStatus { pins: 1246, limit: 1_048_576, refused: 5, swept_s: Some(0.75), sweeps: 3600 },
    }
}

fn web() -> ServiceStatus {
    let s1 = backend("s1", 11);
    let s2 = BackendStatus {
        health: Health::Down,
        reason: "L4TOUT".to_owned(),
        detail: Some("no answer within 1s".to_owned()),
        slots: 0,
        wanted_share: 0.0,
        real_share: Some(0.0),
        ..backend("s2", 12)
    };
    let s3 = BackendStatus {
        state: AdminState::Drain,
        slots: 0,
        wanted_share: 0.0,
        pins: 1234,
        draining_s: Some(14.0),
        drain_left_s: Some(286.0),
        ..backend("s3", 13)
    };
    let old = BackendStatus {
        slots: 0,
        wanted_share: 0.0,
        pins: 12,
        since_s: 90061.0,
        draining_s: Some(288.0),
        drain_left_s: Some(12.0),
        ..backend("s0", 10)
    };
    ServiceStatus {
        name: "web".to_owned(),
        listen: vec!["192.0.2.10:80/tcp".to_owned(), "[2001:db8::10]:80/tcp".to_owned()],
        forward: "l2".to_owned(),
        ring_size: 65537,
        table_checksum: "9f86d081884c7d65".to_owned(),
        packets: 4000,
        bytes: 400_000,
        connections: 40,
        moving_slots: 21,
        pins: 1246,
        backends: vec![s1, s2, s3],
        leaving: vec![old],
        eligible: 1,
        packets_per_s: Some(1234.5),
        bytes_per_s: Some(123_450.0),
        connections_per_s: Some(7.5),
    }
}

/// An active backend that is up and takes everything, at 10.0.0.`host`.
pub fn backend(name: &str, host: u8) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        address: [10, 0, 0, host].into(),
        port: None,
        weight: 100,
        state: AdminState::Active,
        health: Health::Up,
        reason: "L7OK 200".to_owned(),
        since_s: 12.5,
        slots: 65537,
        packets: 1000,
        bytes: 100_000,
        connections: 10,
        pins: 0,
        wanted_share: 1.0,
        real_share: None,
        packets_per_s: Some(308.6),
        detail: None,
        draining_s: None,
        drain_left_s: None,
    }
}
