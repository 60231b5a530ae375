//! What stays known when another file is wanted, or another run of the controller goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{Adopted, Known, Leaving, Server, Verdict, backend_ref, is_same, leaving_ref, server};
use crate::{
    config::spec::{AdminState, BackendSpec, ServiceSpec, Spec},
    health::BackendRef,
    plan::records::Noted,
};

impl Known {
    /// Another configuration is wanted. What is known of a server stays known as long as its service names it, under
    /// whatever name; a server that took over another's name is another one. Who is no longer named leaves, and who
    /// is named again is back.
    pub fn set_spec(&mut self, spec: Arc<Spec>, now: Instant) {
        let old_spec = std::mem::replace(&mut self.spec, spec);
        let spec = Arc::clone(&self.spec);
        let new: BTreeMap<&str, &ServiceSpec> = spec.services.iter().map(|s| (&*s.name, s)).collect();
        // Most services are as they were, and there may be a thousand: what is known of them stays where it is.
        let differs = |service: &&ServiceSpec| new.get(&*service.name) != Some(service);
        let mut before = Self::new(Arc::clone(&old_spec));
        before.held.clone_from(&self.held);
        for service in old_spec.services.iter().filter(differs) {
            self.move_service(service, &mut before);
        }
        let old: BTreeMap<&str, &ServiceSpec> = old_spec.services.iter().map(|s| (&*s.name, s)).collect();
        for service in &spec.services {
            let was = old.get(&*service.name).copied();
            if was != Some(service) {
                self.follow_service(&before, was, service, now);
            }
        }
    }

    /// Hands over what is known of a service's backends.
    fn move_service(&mut self, service: &ServiceSpec, to: &mut Self) {
        let leaving = self.leaving.remove(&service.name);
        let keys = service.backends.iter().map(|backend| backend_ref(service, backend));
        for key in keys.chain(leaving.iter().flatten().map(|left| left.key.clone())) {
            to.verdicts.extend(self.verdicts.remove(&key).map(|verdict| (key.clone(), verdict)));
            to.words.extend(self.words.remove(&key).map(|word| (key.clone(), word)));
            to.drains.extend(self.drains.remove(&key).map(|since| (key, since)));
        }
        to.leaving.extend(leaving.map(|leaving| (Arc::clone(&service.name), leaving)));
    }

    /// What was known of a service's backends, when the file called them as in `old`.
    fn follow_service(
        &mut self,
        before: &Self,
        old: Option<&ServiceSpec>,
        service: &ServiceSpec,
        now: Instant,
    ) {
        let named = old.into_iter().flat_map(|old| old.backends.iter().map(move |b| (old, b)));
        let old_names: BTreeMap<Server, BackendRef> =
            named.map(|(old, b)| (server(b), backend_ref(old, b))).collect();
        for backend in &service.backends {
            let key = backend_ref(service, backend);
            if let Some(old_key) = old_names.get(&server(backend)) {
                self.carry_over(before, old_key, key, backend);
            } else if let Some(left) = before.leaving_of(service).iter().find(|l| is_same(&l.spec, backend)) {
                // It was drained because it left; now it is as the file says.
                self.take_back(key, backend.state, before.verdict(&left.key), left.since);
            }
        }
        let leaving = before.after_leaving(old, service, now);
        for left in &leaving {
            let old_key = old_names.get(&server(&left.spec)).unwrap_or(&left.key);
            self.verdicts.insert(left.key.clone(), before.verdict(old_key));
        }
        if !leaving.is_empty() {
            self.leaving.insert(Arc::clone(&service.name), leaving);
        }
    }

    /// What was known under one name is known under another.
    fn carry_over(&mut self, before: &Self, old_key: &BackendRef, key: BackendRef, backend: &BackendSpec) {
        // The file wins where it changes a backend that an operator had put into another state.
        let word = before.words.get(old_key).filter(|word| word.file == backend.state);
        if let Some(word) = word {
            self.words.insert(key.clone(), *word);
        }
        if word.map_or(backend.state, |word| word.state) != AdminState::Disabled
            && let Some(verdict) = before.verdicts.get(old_key)
        {
            self.verdicts.insert(key.clone(), *verdict);
        }
        if let Some(since) = before.drains.get(old_key) {
            self.drains.insert(key, *since);
        }
    }

    /// A backend that was leaving since `since` is named again.
    fn take_back(&mut self, key: BackendRef, state: AdminState, verdict: Verdict, since: Instant) {
        if state != AdminState::Disabled {
            self.verdicts.insert(key.clone(), verdict);
        }
        // The same drain goes on, if it is to drain.
        if state == AdminState::Drain {
            self.drains.insert(key, since);
        }
    }

    /// Who leaves `service`, or has been leaving it, now that it names other backends than `old`.
    fn after_leaving(&self, old: Option<&ServiceSpec>, service: &ServiceSpec, now: Instant) -> Vec<Leaving> {
        let servers: BTreeSet<Server> = service.backends.iter().map(server).collect();
        let named = |spec: &BackendSpec| servers.contains(&server(spec));
        let leaves = |old: &ServiceSpec, backend: &BackendSpec| {
            let key = backend_ref(old, backend);
            let since = self.drains.get(&key).copied().unwrap_or(now);
            let is_usable = self.knowledge(old, backend, &key, Some(since), now).is_usable;
            (is_usable && self.admin(old, backend) != AdminState::Disabled).then(|| Leaving {
                key: leaving_ref(old, backend),
                spec: backend.clone(),
                since,
                quiet_since: now,
            })
        };
        let gone = old.into_iter().flat_map(|old| {
            old.backends.iter().filter(|b| !named(b)).filter_map(move |b| leaves(old, b)).collect::<Vec<_>>()
        });
        let still = self.leaving_of(service).iter().filter(|left| !named(&left.spec)).cloned();
        still.chain(gone).collect()
    }

    /// What another run of the controller noted: verdicts, words, drains, and who was leaving; and its ways to them.
    pub fn adopt(&mut self, adopted: impl IntoIterator<Item = Adopted>, now: Instant) {
        let spec = Arc::clone(&self.spec);
        let services: BTreeMap<&str, &ServiceSpec> = spec.services.iter().map(|s| (&*s.name, s)).collect();
        for Adopted { address, route, is_usable, noted: Noted { service, name, port, note } } in adopted {
            self.last_routes.extend(route.map(|route| (address, route)));
            self.unanswered.insert(address);
            let Some(service) = services.get(&*service).copied() else { continue };
            let verdict = Verdict { health: note.health, cause: note.cause };
            let is_it = |b: &&BackendSpec| b.address == address && b.port == port;
            if let Some(backend) = service.backends.iter().find(is_it) {
                let key = backend_ref(service, backend);
                if let (true, Some(since)) = (note.leaving, note.drain_since) {
                    self.take_back(key, backend.state, verdict, since);
                    continue;
                }
                let word = note.word.filter(|word| word.file == backend.state);
                if word.map_or(backend.state, |word| word.state) != AdminState::Disabled {
                    self.verdicts.insert(key.clone(), verdict);
                }
                if let Some(since) = note.drain_since {
                    self.drains.insert(key.clone(), since);
                }
                self.words.extend(word.map(|word| (key, word)));
            } else if is_usable {
                let spec = BackendSpec { name, address, port, weight: 1, state: AdminState::Drain };
                let key = leaving_ref(service, &spec);
                self.verdicts.insert(key.clone(), verdict);
                let since = note.drain_since.unwrap_or(now);
                let left = Leaving { key, spec, since, quiet_since: now };
                self.leaving.entry(Arc::clone(&service.name)).or_default().push(left);
            }
        }
    }
}
