//! A new content of the file: refused, held, or in force.

use std::{sync::Arc, time::Instant};

use super::{Controller, reload};
use crate::{
    api::model::{EventKind, ReloadReply},
    config::{
        Loaded,
        consent::{self, Consent},
    },
};

impl Controller {
    /// A new content of the file, or a wish to read it again.
    pub fn reload(&mut self, content: Result<Loaded, String>, consent: Consent, now: Instant) -> ReloadReply {
        self.reloads += 1;
        let mut reply = ReloadReply { generation: self.generation, ..ReloadReply::default() };
        match content {
            Err(error) => {
                self.event(EventKind::Config, None, format!("refused: {}", first_line(&error)));
                self.last_error = Some(error.clone());
                reply.errors.push(error);
            }
            Ok(loaded) => {
                let loaded = self.options.adjust(loaded);
                reply.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
                self.apply_loaded(loaded, consent, now, &mut reply);
            }
        }
        reply.generation = self.generation;
        reply
    }

    fn apply_loaded(&mut self, loaded: Loaded, consent: Consent, now: Instant, reply: &mut ReloadReply) {
        let old = Arc::clone(self.engine.spec());
        let held = consent::held(&old, &loaded.spec, |service| self.has_traffic(service));
        reply.held = held.iter().filter(|h| h.needs() > consent).map(ToString::to_string).collect();
        if !reply.held.is_empty() {
            let text = format!("held: the file {}", reply.held.join("; it "));
            self.event(EventKind::Config, None, text.clone());
            self.last_error = Some(text);
            self.held.clone_from(&reply.held);
            return;
        }
        let new = Arc::new(loaded.spec);
        if let Err(error) = self.engine.fits(&new, now) {
            self.event(EventKind::Config, None, format!("refused: {error}"));
            self.last_error = Some(error.to_string());
            reply.errors.push(error.to_string());
            return;
        }
        if old.admin != new.admin {
            reply.warnings.push("a change of `admin` takes effect at the next start".into());
        }
        (self.last_error, reply.applied) = (None, true);
        self.held.clear();
        if *old == *new {
            return;
        }
        self.generation += 1;
        self.engine.set_spec(Arc::clone(&new), now);
        // What can be in force at once is; words, probes and next hops may take their time.
        let is_in_force = self.reconcile(now);
        let took = now.elapsed().as_secs_f64() * 1e3;
        // What is said of a change says nothing of slots: those that are there do.
        let compiled = self.engine.compiled();
        reply.changes = reload::lines(&reload::plan(&old, &new, compiled, compiled, |_| false));
        let changes =
            if reply.changes.is_empty() { "no service changed".into() } else { reply.changes.join("; ") };
        self.event(EventKind::Config, None, format!("generation {}: {changes}", self.generation));
        if is_in_force {
            tracing::info!("generation {} is in force {took:.1} ms after it was asked for", self.generation);
        }
        self.follow_spec();
        self.reconcile(now);
    }

    /// Whether a service had packets in the last few seconds.
    pub(super) fn has_traffic(&self, service: &str) -> bool {
        let compiled = self.engine.compiled().services.iter().find(|s| &*s.name == service);
        compiled
            .into_iter()
            .flat_map(|s| &s.backends)
            .any(|b| self.counters.rates(b.id).is_some_and(|r| r.packets > 0.0))
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
