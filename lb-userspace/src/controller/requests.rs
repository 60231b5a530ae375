//! What others may ask of the controller, and its answers.

use std::{sync::Arc, time::Instant};

use super::{Controller, engine::backend_ref, reload, status};
use crate::{
    api::{
        handle::{AdminError, Consent as Agreed, Request},
        model::{AdminReply, ConfigStatus, ControllerStatus, EventKind, FlowStatus, PlanReply, Status},
    },
    config::{
        self,
        consent::Consent,
        spec::{AdminState, OnAllDown, ServiceSpec},
    },
    plan::compile::CompiledBackend,
};

impl Controller {
    fn plan(&self, file_name: &str, text: &str, now: Instant) -> PlanReply {
        let loaded = match config::parse(text, file_name.as_ref()) {
            Ok(loaded) => loaded,
            Err(errors) => return PlanReply { errors: vec![errors.to_string()], ..PlanReply::default() },
        };
        let old = self.engine.spec();
        let new = Arc::new(loaded.spec);
        match self.engine.preview(&new, now) {
            Ok(after) => {
                let compiled = self.engine.compiled();
                let plan = reload::plan(old, &new, compiled, &after, |s| self.has_traffic(s));
                PlanReply { warnings: loaded.warnings.iter().map(ToString::to_string).collect(), ..plan }
            }
            Err(error) => PlanReply { errors: vec![error.to_string()], ..PlanReply::default() },
        }
    }

    fn set_admin(
        &mut self,
        (service, backend): (&str, &str),
        state: AdminState,
        force: bool,
        now: Instant,
    ) -> Result<AdminReply, AdminError> {
        let spec = Arc::clone(self.engine.spec());
        let found = spec.services.iter().find(|s| &*s.name == service);
        let service =
            found.ok_or_else(|| AdminError::NotFound(format!("there is no service `{service}`")))?;
        let found = service.backends.iter().find(|b| &*b.name == backend);
        let Some(backend) = found else { return self.set_admin_of_leaving(service, backend, state) };
        let key = backend_ref(service, backend);
        let changed = self.engine.admin(service, backend) != state;
        let mut notes = Vec::new();
        if changed && !force && state != AdminState::Active && self.is_last_eligible(service, &backend.name) {
            return Err(AdminError::Refused(refusal(service, &backend.name, state)));
        }
        if changed {
            self.event(EventKind::Admin, Some(&key), format!("state {state}"));
            self.engine.set_admin(key, state);
            self.follow_spec();
            self.reconcile(now);
            if self.compiled(service).iter().all(|b| !b.eligible) {
                let then = without_backends(service.on_all_down);
                notes.push(format!(
                    "service {} has no eligible backend now: new connections {then}",
                    service.name
                ));
            }
        }
        Ok(AdminReply { changed, state, notes })
    }

    /// A backend that left the file drains anyway; nothing else can be asked of it.
    fn set_admin_of_leaving(
        &self,
        service: &ServiceSpec,
        backend: &str,
        state: AdminState,
    ) -> Result<AdminReply, AdminError> {
        let is_leaving =
            self.engine.known().leaving_of(service).iter().any(|left| &*left.spec.name == backend);
        if !is_leaving {
            let text = format!("service `{}` has no backend `{backend}`", service.name);
            return Err(AdminError::NotFound(text));
        }
        if state == AdminState::Drain {
            return Ok(AdminReply { changed: false, state, notes: vec!["it is leaving: it drains".into()] });
        }
        Err(AdminError::Refused(format!(
            "{}/{backend} has left the file and drains; put it back there",
            service.name
        )))
    }

    fn compiled(&self, service: &ServiceSpec) -> &[CompiledBackend] {
        let compiled = self.engine.compiled().services.iter().find(|s| s.name == service.name);
        compiled.map_or(&[], |s| &s.backends)
    }

    fn is_last_eligible(&self, service: &ServiceSpec, backend: &str) -> bool {
        is_last_eligible(self.compiled(service), backend)
    }

    /// Answers a question. Whoever asked may be gone by now; that is no error.
    pub fn on_request(&mut self, request: Request, now: Instant) {
        match request {
            Request::Status(reply) => drop(reply.send(self.status(now))),
            Request::Reload { consent, reply } => {
                let content = config::load(&self.options.config).map_err(|e| e.to_string());
                let answer = self.reload(content, agreed(consent), now);
                drop(reply.send(answer));
            }
            Request::Plan { file_name, text, reply } => drop(reply.send(self.plan(&file_name, &text, now))),
            Request::SetAdmin { service, backend, state, force, reply } => {
                drop(reply.send(self.set_admin((&service, &backend), state, force, now)));
            }
            Request::Events { since, reply } => drop(reply.send(self.events.since(since))),
        }
    }

    fn flows(&self, now: Instant) -> FlowStatus {
        let walk = self.engine.walk();
        FlowStatus {
            pins: walk.map_or(0, |walk| walk.left),
            limit: self.engine.spec().limits.flows,
            refused: self.engine.refused_pins(),
            swept_s: walk.map(|walk| now.saturating_duration_since(walk.started).as_secs_f64()),
            sweeps: self.sweeps,
        }
    }

    /// What is going on, with counters as they are now.
    pub fn status(&mut self, now: Instant) -> Status {
        self.read_counters(now);
        let services = status::services(&self.engine, &self.checks.view(), &self.counters, now);
        let present = self.engine.applied().backends.keys().map(|id| self.counters.last(*id).packets);
        let sent = present.sum::<u64>() + self.engine.left_behind_packets();
        let counted = self.engine.dataplane().outcomes().unwrap_or_else(|error| {
            tracing::warn!(%error, "read the counters");
            Default::default()
        });
        Status {
            config: ConfigStatus {
                path: self.options.config.display().to_string(),
                generation: self.generation,
                reloads: self.reloads,
                last_error: self.last_error.clone(),
                held: self.held.clone(),
            },
            interfaces: status::interfaces(&self.attachments),
            services,
            outcomes: status::outcomes(&counted, sent),
            controller: ControllerStatus {
                version: env!("CARGO_PKG_VERSION").into(),
                uptime_s: now.saturating_duration_since(self.started).as_secs_f64(),
                pid: std::process::id(),
                guard: self.guard_texts.values().cloned().collect(),
            },
            flows: self.flows(now),
        }
    }
}

/// Whether new connections go to this backend only.
fn is_last_eligible(backends: &[CompiledBackend], name: &str) -> bool {
    let mut eligible = backends.iter().filter(|b| b.eligible);
    eligible.next().is_some_and(|b| &*b.name == name) && eligible.next().is_none()
}

/// Why a service's last eligible backend stays, and how to have it otherwise.
fn refusal(service: &ServiceSpec, backend: &str, state: AdminState) -> String {
    let verb = if state == AdminState::Disabled { "disable" } else { "drain" };
    format!(
        "{backend} is the last eligible backend of service {name}: without it new connections {then}; \
         `xlb {verb} --force {name}/{backend}` does it all the same",
        name = service.name,
        then = without_backends(service.on_all_down),
    )
}

/// What becomes of new connections when no backend is eligible.
fn without_backends(on_all_down: OnAllDown) -> &'static str {
    match on_all_down {
        OnAllDown::Reject => "are rejected (`on_all_down: reject`)",
        OnAllDown::Drop => "are dropped (`on_all_down: drop`)",
        OnAllDown::UseAll => "go to every reachable backend that is not disabled (`on_all_down: use_all`)",
    }
}

fn agreed(consent: Agreed) -> Consent {
    match consent {
        Agreed::Nothing => Consent::None,
        Agreed::Removals => Consent::Reload,
        Agreed::Everything => Consent::Force,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ring::Identity;

    fn backend(name: &str, eligible: bool) -> CompiledBackend {
        CompiledBackend {
            name: name.into(),
            id: 1,
            identity: Identity { address: [10, 0, 0, 11].into(), port: None },
            eligible,
            usable: true,
            moves_away: false,
            wanted_share: 0.0,
            slots: 0,
        }
    }

    #[test]
    fn the_last_eligible_backend_is_the_only_one_there_is() {
        let of = |eligible: [bool; 3]| {
            let [a, b, c] = eligible;
            [backend("s1", a), backend("s2", b), backend("s3", c)]
        };
        assert!(is_last_eligible(&of([false, true, false]), "s2"));
        assert!(!is_last_eligible(&of([false, true, true]), "s2"));
        // It takes no new connections as it is: its drain takes nothing away.
        assert!(!is_last_eligible(&of([false, true, false]), "s1"));
        assert!(!is_last_eligible(&of([false, false, false]), "s1"));
        assert!(!is_last_eligible(&[], "s1"));
    }

    #[test]
    fn a_refusal_says_what_would_happen_and_how_to_do_it_all_the_same() {
        let text = "interfaces: [eth0]\nservices:\n- name: web\n  listen: ['192.0.2.10:80/tcp']\n  \
                    forward: l2\n  on_all_down: drop\n  backends: [{name: s1, address: 10.0.0.11}]\n";
        let spec = config::parse(text, "f".as_ref()).expect("valid").spec;
        assert_eq!(
            refusal(&spec.services[0], "s1", AdminState::Disabled),
            "s1 is the last eligible backend of service web: without it new connections are dropped \
             (`on_all_down: drop`); `xlb disable --force web/s1` does it all the same"
        );
    }
}
