//! A new file: what it changes, what waits for consent, what is said about it. Pure.

use std::collections::BTreeMap;

use crate::{
    api::model::{Change, PlanReply, ServicePlan},
    config::{
        consent,
        spec::{BackendSpec, ServiceSpec, Spec},
    },
    plan::compile::{Compiled, CompiledService},
};

/// What applying `new` would change, service by service.
pub fn plan(
    old: &Spec,
    new: &Spec,
    before: &Compiled,
    after: &Compiled,
    has_traffic: impl Fn(&str) -> bool,
) -> PlanReply {
    let services_before = by_name(before);
    let services_after = by_name(after);
    let old_specs: BTreeMap<&str, &ServiceSpec> = old.services.iter().map(|s| (&*s.name, s)).collect();
    let mut services: Vec<ServicePlan> = new
        .services
        .iter()
        .map(|service| match old_specs.get(&*service.name) {
            Some(was) => {
                changed(was, service, services_before.get(&*service.name), services_after.get(&*service.name))
            }
            None => added(service),
        })
        .collect();
    let is_gone = |s: &&ServiceSpec| !new.services.iter().any(|n| n.name == s.name);
    services.extend(old.services.iter().filter(is_gone).map(removed));
    if old.hash_seed != new.hash_seed {
        for service in
            services.iter_mut().filter(|s| s.change != Change::Added && s.change != Change::Removed)
        {
            service.change = Change::Changed;
            service.notes.push("hash_seed changed".into());
            service.slots_moved = service.slots_total;
            service.flows_stay = false;
        }
    }
    let held = consent::held(old, new, has_traffic).iter().map(ToString::to_string).collect();
    PlanReply { services, held, errors: Vec::new(), warnings: Vec::new() }
}

/// The plan as lines for people: what a reload did.
pub fn lines(plan: &PlanReply) -> Vec<String> {
    let mut lines = Vec::new();
    for service in plan.services.iter().filter(|s| s.change != Change::Unchanged) {
        let name = &service.name;
        match service.change {
            Change::Added => lines.push(format!("service {name} added")),
            Change::Removed => lines.push(format!("service {name} removed")),
            Change::Changed | Change::Unchanged => {
                lines.extend(service.backends_added.iter().map(|b| format!("{name}/{b} added")));
                lines.extend(service.backends_removed.iter().map(|b| format!("{name}/{b} removed")));
                lines.extend(service.backends_changed.iter().map(|b| format!("{name}/{b}")));
                lines.extend(service.notes.iter().map(|note| format!("{name}: {note}")));
            }
        }
    }
    lines
}

fn by_name(compiled: &Compiled) -> BTreeMap<&str, &CompiledService> {
    compiled.services.iter().map(|s| (&*s.name, s)).collect()
}

fn added(service: &ServiceSpec) -> ServicePlan {
    ServicePlan {
        name: service.name.to_string(),
        change: Change::Added,
        slots_total: service.ring_size,
        backends_added: service.backends.iter().map(|b| b.name.to_string()).collect(),
        flows_stay: true,
        ..ServicePlan::default()
    }
}

fn removed(service: &ServiceSpec) -> ServicePlan {
    ServicePlan {
        name: service.name.to_string(),
        change: Change::Removed,
        slots_total: service.ring_size,
        slots_moved: service.ring_size,
        backends_removed: service.backends.iter().map(|b| b.name.to_string()).collect(),
        notes: vec!["its packets go to this host's own stack from then on".into()],
        ..ServicePlan::default()
    }
}

fn changed(
    old: &ServiceSpec,
    new: &ServiceSpec,
    before: Option<&&CompiledService>,
    after: Option<&&CompiledService>,
) -> ServicePlan {
    let same_server = |a: &BackendSpec, b: &BackendSpec| a.address == b.address && a.port == b.port;
    let missing_in = |from: &[BackendSpec], other: &[BackendSpec]| -> Vec<String> {
        let missing = from.iter().filter(|b| !other.iter().any(|o| same_server(b, o)));
        missing.map(|b| b.name.to_string()).collect()
    };
    let rehashed = old.hash != new.hash || old.forward != new.forward || old.ring_size != new.ring_size;
    let slots_moved = match (before, after) {
        (Some(before), Some(after)) if !rehashed => {
            before.ring().iter().zip(after.ring().iter()).filter(|(a, b)| a.current() != b.current()).count()
                as u32
        }
        _ => new.ring_size,
    };
    let mut plan = ServicePlan {
        name: new.name.to_string(),
        change: Change::Changed,
        slots_total: new.ring_size,
        slots_moved,
        backends_added: missing_in(&new.backends, &old.backends),
        backends_removed: missing_in(&old.backends, &new.backends),
        backends_changed: new
            .backends
            .iter()
            .filter_map(|b| Some((old.backends.iter().find(|o| same_server(o, b))?, b)))
            .flat_map(|(old, new)| backend_changes(old, new))
            .collect(),
        flows_stay: !rehashed,
        notes: service_changes(old, new),
    };
    // Another order of lists changes nothing.
    if [&plan.backends_added, &plan.backends_removed, &plan.backends_changed, &plan.notes]
        .iter()
        .all(|list| list.is_empty())
    {
        plan.change = Change::Unchanged;
    }
    plan
}

fn backend_changes(old: &BackendSpec, new: &BackendSpec) -> Vec<String> {
    let mut changes = Vec::new();
    if old.name != new.name {
        changes.push(format!("{} was called {}", new.name, old.name));
    }
    if old.weight != new.weight {
        changes.push(format!("{} weight {} -> {}", new.name, old.weight, new.weight));
    }
    if old.state != new.state {
        changes.push(format!("{} state {} -> {}", new.name, old.state, new.state));
    }
    changes
}

fn service_changes(old: &ServiceSpec, new: &ServiceSpec) -> Vec<String> {
    let mut notes = Vec::new();
    for listen in new.listen.iter().filter(|l| !old.listen.contains(l)) {
        notes.push(format!("listens on {listen}, too"));
    }
    for listen in old.listen.iter().filter(|l| !new.listen.contains(l)) {
        notes.push(format!("no longer listens on {listen}"));
    }
    // All named, so that a new key does not compile until it is thought of here.
    let ServiceSpec {
        name: _,
        listen: _,
        backends: _,
        forward,
        hash,
        tracking,
        ring_size,
        drain_timeout,
        drain_end,
        idle_timeout,
        on_all_down,
        on_down,
        slow_start,
        guard_timeout,
        health,
    } = new;
    let differs = [
        ("health", old.health != *health),
        ("forward", old.forward != *forward),
        ("hash", old.hash != *hash),
        ("ring_size", old.ring_size != *ring_size),
        ("on_all_down", old.on_all_down != *on_all_down),
        ("on_down", old.on_down != *on_down),
        ("tracking", old.tracking != *tracking),
        ("drain_timeout", old.drain_timeout != *drain_timeout),
        ("drain_end", old.drain_end != *drain_end),
        ("idle_timeout", old.idle_timeout != *idle_timeout),
        ("slow_start", old.slow_start != *slow_start),
        ("guard_timeout", old.guard_timeout != *guard_timeout),
    ];
    notes.extend(differs.iter().filter(|(_, changed)| *changed).map(|(key, _)| format!("{key} changed")));
    notes
}
