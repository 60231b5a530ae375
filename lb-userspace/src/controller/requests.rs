//! What others may ask of the controller, and its answers.

use std::{sync::Arc, time::Instant};

use super::{Controller, engine::backend_ref, reload, status};
use crate::{
    api::{
        handle::{AdminError, Consent as Agreed, Request},
        model::{AdminReply, ConfigStatus, ControllerStatus, EventKind, PlanReply, Status},
    },
    config::{self, consent::Consent, spec::AdminState},
};

impl Controller {
    fn plan(&self, file_name: &str, text: &str, now: Instant) -> PlanReply {
        let loaded = match config::parse(text, file_name.as_ref()) {
            Ok(loaded) => loaded,
            Err(errors) => return PlanReply { errors: vec![errors.to_string()], ..PlanReply::default() },
        };
        let old = self.engine.spec();
        match self.engine.preview(&loaded.spec, now) {
            Ok(after) => {
                let compiled = self.engine.compiled();
                let plan = reload::plan(old, &loaded.spec, compiled, &after, |s| self.has_traffic(s));
                PlanReply { warnings: loaded.warnings.iter().map(ToString::to_string).collect(), ..plan }
            }
            Err(error) => PlanReply { errors: vec![error.to_string()], ..PlanReply::default() },
        }
    }

    fn set_admin(
        &mut self,
        service: &str,
        backend: &str,
        state: AdminState,
        now: Instant,
    ) -> Result<AdminReply, AdminError> {
        let spec = Arc::clone(self.engine.spec());
        let found = spec.services.iter().find(|s| &*s.name == service);
        let service =
            found.ok_or_else(|| AdminError::NotFound(format!("there is no service `{service}`")))?;
        let found = service.backends.iter().find(|b| &*b.name == backend);
        let backend = found.ok_or_else(|| {
            AdminError::NotFound(format!("service `{}` has no backend `{backend}`", service.name))
        })?;
        let key = backend_ref(service, backend);
        let changed = self.engine.admin(service, backend) != state;
        let mut notes = Vec::new();
        if changed {
            self.event(EventKind::Admin, Some(&key), format!("state {state}"));
            self.engine.set_admin(key, state);
            self.follow_spec();
            self.reconcile(now);
            let compiled = self.engine.compiled().services.iter().find(|s| s.name == service.name);
            if compiled.is_some_and(|s| s.backends.iter().all(|b| !b.eligible)) {
                notes.push(format!("service {} has no eligible backend now", service.name));
            }
        }
        Ok(AdminReply { changed, state, notes })
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
            Request::SetAdmin { service, backend, state, reply } => {
                drop(reply.send(self.set_admin(&service, &backend, state, now)));
            }
            Request::Events { since, reply } => drop(reply.send(self.events.since(since))),
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
            },
        }
    }
}

fn agreed(consent: Agreed) -> Consent {
    match consent {
        Agreed::Nothing => Consent::None,
        Agreed::Removals => Consent::Reload,
        Agreed::Everything => Consent::Force,
    }
}
