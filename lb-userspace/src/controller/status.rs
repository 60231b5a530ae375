//! The controller's knowledge as `status` shows it.

use std::{borrow::Cow, collections::BTreeMap, time::Instant};

use lb_common::{backend::BackendStats, outcome::Outcome};

use super::{
    attach::Attachments,
    counters::{Counters, Rates},
    engine::{self, Engine, backend_ref},
    known::Leaving,
};
use crate::{
    api::model::{self, BackendStatus, InterfaceMode, InterfaceStatus, Outcomes, ServiceStatus},
    config::spec::{AdminState, BackendSpec, ServiceSpec},
    health::{BackendHealth, BackendRef, Health, Reason},
    plan::compile::{CompiledBackend, CompiledService},
};

/// What is shown of the interfaces.
pub fn interfaces(attachments: &Attachments) -> Vec<InterfaceStatus> {
    attachments
        .all()
        .map(|(name, state)| match state {
            Ok(attached) => InterfaceStatus {
                name: name.into(),
                mode: if attached.native { InterfaceMode::Native } else { InterfaceMode::Generic },
                note: attached.note.clone(),
            },
            Err(why) => {
                InterfaceStatus { name: name.into(), mode: InterfaceMode::Detached, note: Some(why.into()) }
            }
        })
        .collect()
}

/// What is shown of the services.
pub fn services(
    engine: &Engine,
    health: &BTreeMap<BackendRef, BackendHealth>,
    counters: &Counters,
    now: Instant,
) -> Vec<ServiceStatus> {
    let spec = engine.spec();
    // In the same order; one whose ring finds no place is missing.
    let mut compiled = engine.compiled().services.iter().peekable();
    let services = spec.services.iter().filter_map(|s| Some((s, compiled.next_if(|c| c.name == s.name)?)));
    services.map(|(s, c)| service(engine, s, c, health, counters, now)).collect()
}

fn service(
    engine: &Engine,
    spec: &ServiceSpec,
    compiled: &CompiledService,
    health: &BTreeMap<BackendRef, BackendHealth>,
    counters: &Counters,
    now: Instant,
) -> ServiceStatus {
    let all = || compiled.backends.iter().chain(&compiled.leaving);
    let rates: Vec<Rates> = all().filter_map(|b| counters.rates(b.id)).collect();
    let sum_of = |get: fn(&Rates) -> f64| (!rates.is_empty()).then(|| rates.iter().map(get).sum::<f64>());
    let connections_per_s = sum_of(|r| r.connections);
    let shown = |backend: &Subject<'_>| {
        let share = |rates: Rates| {
            connections_per_s.filter(|total| *total > 0.0).map(|total| rates.connections / total)
        };
        let rates = counters.rates(backend.compiled.id);
        BackendStatus {
            real_share: rates.and_then(share),
            packets_per_s: rates.map(|r| r.packets),
            ..backend.status(engine, health.get(&backend.key), counters.last(backend.compiled.id), now)
        }
    };
    let backends =
        spec.backends.iter().zip(&compiled.backends).map(|(b, c)| Subject::of_file(engine, spec, b, c));
    let left = engine.known().leaving_of(spec).iter().zip(&compiled.leaving);
    let leaving = left.map(|(left, c)| Subject::leaving(spec, left, c));
    let total = all().map(|b| counters.last(b.id)).fold(engine.left_behind(&spec.name), engine::add);
    let pins = |b: &CompiledBackend| engine.walk().map_or(0, |walk| walk.to_backend(b.id));
    ServiceStatus {
        name: spec.name.to_string(),
        listen: spec.listen.iter().map(ToString::to_string).collect(),
        forward: spec.forward.to_string(),
        ring_size: spec.ring_size,
        table_checksum: compiled.checksum().to_owned(),
        packets: total.packets,
        bytes: total.bytes,
        connections: total.connections,
        moving_slots: compiled.moving_slots,
        pins: all().map(pins).sum(),
        eligible: compiled.backends.iter().filter(|b| b.eligible).count() as u32,
        backends: backends.map(|b| shown(&b)).collect(),
        leaving: leaving.map(|b| shown(&b)).collect(),
        packets_per_s: sum_of(|r| r.packets),
        bytes_per_s: sum_of(|r| r.bytes),
        connections_per_s,
    }
}

/// A backend that is shown, of the file or leaving.
struct Subject<'a> {
    service: &'a ServiceSpec,
    spec: &'a BackendSpec,
    compiled: &'a CompiledBackend,
    /// The name it is probed under.
    key: BackendRef,
    state: AdminState,
    drain_since: Option<Instant>,
}

impl<'a> Subject<'a> {
    fn of_file(
        engine: &Engine,
        service: &'a ServiceSpec,
        spec: &'a BackendSpec,
        compiled: &'a CompiledBackend,
    ) -> Self {
        let key = backend_ref(service, spec);
        let drain_since = engine.known().drain_since(&key);
        Self { service, spec, compiled, key, state: engine.admin(service, spec), drain_since }
    }

    fn leaving(service: &'a ServiceSpec, left: &'a Leaving, compiled: &'a CompiledBackend) -> Self {
        let (key, drain_since) = (left.key.clone(), Some(left.since));
        Self { service, spec: &left.spec, compiled, key, state: AdminState::Drain, drain_since }
    }

    fn status(
        &self,
        engine: &Engine,
        health: Option<&BackendHealth>,
        sent: BackendStats,
        now: Instant,
    ) -> BackendStatus {
        let spec = self.spec;
        // What stands in the way on our side comes first: the probes only see its consequence.
        let detail = engine
            .known()
            .obstacle(spec.address)
            .or_else(|| health.map(|h| h.detail.as_str().to_owned()).filter(|detail| !detail.is_empty()));
        let draining = self.drain_since.map(|since| now.saturating_duration_since(since));
        BackendStatus {
            name: spec.name.to_string(),
            address: spec.address,
            port: spec.port,
            weight: spec.weight,
            state: self.state,
            // What the tables rest on; the probes may know more by now.
            health: match engine.health(&self.key) {
                Health::Up => model::Health::Up,
                Health::Down => model::Health::Down,
                Health::Unknown => model::Health::Unknown,
            },
            reason: health.map_or(Reason::Init, |h| h.reason).to_string(),
            since_s: health.map_or(0.0, |h| now.saturating_duration_since(h.since).as_secs_f64()),
            slots: self.compiled.slots,
            packets: sent.packets,
            bytes: sent.bytes,
            connections: sent.connections,
            pins: engine.walk().map_or(0, |walk| walk.to_backend(self.compiled.id)),
            wanted_share: self.compiled.wanted_share,
            real_share: None,
            packets_per_s: None,
            detail,
            draining_s: draining.map(|for_so_long| for_so_long.as_secs_f64()),
            drain_left_s: draining
                .map(|for_so_long| self.service.drain_timeout.saturating_sub(for_so_long).as_secs_f64()),
        }
    }
}

/// Packets by outcome. Sent ones are the sum over the backends, whether by the same interface or another.
pub fn outcomes(counted: &[u64; Outcome::ALL.len()], sent: u64) -> Outcomes {
    let shown = Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Redirected);
    Outcomes(
        shown
            .map(|outcome| {
                let packets = if outcome.is_sent() { sent } else { counted[outcome as usize] };
                (Cow::Borrowed(outcome.name()), packets)
            })
            .collect(),
    )
}
