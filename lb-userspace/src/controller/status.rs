//! The controller's knowledge as `status` shows it.

use std::{borrow::Cow, collections::BTreeMap, time::Instant};

use lb_common::{backend::BackendStats, outcome::Outcome};

use super::{
    attach::Attachments,
    counters::{Counters, Rates},
    engine::{self, Engine, backend_ref},
};
use crate::{
    api::model::{self, BackendStatus, InterfaceMode, InterfaceStatus, Outcomes, ServiceStatus},
    config::spec::{BackendSpec, ServiceSpec},
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
    let compiled = &engine.compiled().services;
    spec.services.iter().zip(compiled).map(|(s, c)| service(engine, s, c, health, counters, now)).collect()
}

fn service(
    engine: &Engine,
    spec: &ServiceSpec,
    compiled: &CompiledService,
    health: &BTreeMap<BackendRef, BackendHealth>,
    counters: &Counters,
    now: Instant,
) -> ServiceStatus {
    let rates: Vec<Option<Rates>> = compiled.backends.iter().map(|b| counters.rates(b.id)).collect();
    let sum_of = |get: fn(&Rates) -> f64| {
        let known: Vec<f64> = rates.iter().flatten().map(get).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>())
    };
    let connections_per_s = sum_of(|r| r.connections);
    let backends: Vec<BackendStatus> = spec
        .backends
        .iter()
        .zip(&compiled.backends)
        .map(|(b, c)| {
            let share = |rates: Rates| {
                connections_per_s.filter(|total| *total > 0.0).map(|total| rates.connections / total)
            };
            let rates = counters.rates(c.id);
            BackendStatus {
                real_share: rates.and_then(share),
                packets_per_s: rates.map(|r| r.packets),
                ..backend(engine, (spec, b), c, health.get(&backend_ref(spec, b)), counters.last(c.id), now)
            }
        })
        .collect();
    let total = compiled
        .backends
        .iter()
        .map(|b| counters.last(b.id))
        .fold(engine.left_behind(&spec.name), engine::add);
    ServiceStatus {
        name: spec.name.to_string(),
        listen: spec.listen.iter().map(ToString::to_string).collect(),
        forward: spec.forward.to_string(),
        ring_size: spec.ring_size,
        table_checksum: compiled.checksum().to_owned(),
        packets: total.packets,
        bytes: total.bytes,
        connections: total.connections,
        moving_slots: 0,
        pins: 0,
        eligible: compiled.backends.iter().filter(|b| b.eligible).count() as u32,
        backends,
        leaving: Vec::new(),
        packets_per_s: sum_of(|r| r.packets),
        bytes_per_s: sum_of(|r| r.bytes),
        connections_per_s,
    }
}

fn backend(
    engine: &Engine,
    (service, spec): (&ServiceSpec, &BackendSpec),
    compiled: &CompiledBackend,
    health: Option<&BackendHealth>,
    sent: BackendStats,
    now: Instant,
) -> BackendStatus {
    // What stands in the way on our side comes first: the probes only see its consequence.
    let detail = engine
        .obstacle(spec.address)
        .or_else(|| health.map(|h| h.detail.as_str().to_owned()).filter(|detail| !detail.is_empty()));
    BackendStatus {
        name: spec.name.to_string(),
        address: spec.address,
        port: spec.port,
        weight: spec.weight,
        state: engine.admin(service, spec),
        // What the tables rest on; the probes may know more by now.
        health: match engine.health(&backend_ref(service, spec)) {
            Health::Up => model::Health::Up,
            Health::Down => model::Health::Down,
            Health::Unknown => model::Health::Unknown,
        },
        reason: health.map_or(Reason::Init, |h| h.reason).to_string(),
        since_s: health.map_or(0.0, |h| now.saturating_duration_since(h.since).as_secs_f64()),
        slots: compiled.slots,
        packets: sent.packets,
        bytes: sent.bytes,
        connections: sent.connections,
        pins: 0,
        wanted_share: compiled.wanted_share,
        real_share: None,
        packets_per_s: None,
        detail,
        draining_s: None,
        drain_left_s: None,
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
