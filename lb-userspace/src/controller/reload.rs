//! A new file: what it changes, what waits for consent, what is said about it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
    let names: BTreeSet<&str> = new.services.iter().map(|s| &*s.name).collect();
    let is_gone = |s: &&ServiceSpec| !names.contains(&*s.name);
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
        // The same words, not only equal ones.
        (Some(before), Some(after)) if !rehashed && Arc::ptr_eq(before.ring(), after.ring()) => 0,
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path, time::Instant};

    use super::*;
    use crate::{
        config::{parse, spec::AdminState},
        health::{Health, Reason},
        plan::{
            compile::{Compiler, Input, Knowledge, Route},
            records::{Clock, Note},
        },
    };

    const FILE: &str = "\
hash_seed: 7
interfaces: [eth0]
services:
- name: web
  listen: ['192.0.2.10:80/tcp']
  forward: l2
  ring_size: 1009
  backends:
  - {name: s1, address: 10.0.0.11}
  - {name: s2, address: 10.0.0.12}
  - {name: s3, address: 10.0.0.13}
- name: mail
  listen: ['192.0.2.10:25/tcp']
  forward: l2
  ring_size: 251
  backends:
  - {name: m1, address: 10.0.0.21}
";

    fn spec(text: &str) -> Spec {
        parse(text, Path::new("test.yaml")).expect("valid").spec
    }

    /// The plan from `FILE` to the text, with all backends up.
    fn to(text: &str) -> PlanReply {
        let (old, new) = (spec(FILE), spec(text));
        let clock = Clock { instant: Instant::now(), monotonic_ns: 1 << 40 };
        let mut compiler = Compiler::new(&old.limits, clock);
        let known = |_: &ServiceSpec, backend: &BackendSpec| {
            let route =
                Route { ifindex: 2, next_hop: [0; 6], own: [0; 6], outer_source: [10, 0, 0, 1].into() };
            Knowledge {
                takes_new: backend.state == AdminState::Active,
                is_usable: true,
                drain_is_over: false,
                is_last_resort: true,
                route: Some(route),
                note: Note {
                    health: Health::Up,
                    cause: Reason::None,
                    word: None,
                    drain_since: None,
                    leaving: false,
                },
            }
        };
        let mut compile = |spec: &Spec| {
            let input = Input {
                spec,
                devices: BTreeSet::new(),
                known: &known,
                leaving: &|_| Vec::new(),
                refused_at: None,
                is_warm: true,
                young: std::time::Duration::ZERO,
                now: Instant::now(),
            };
            compiler.compile(&input).expect("it fits")
        };
        let (before, after) = (compile(&old), compile(&new));
        plan(&old, &new, &before, &after, |_| false)
    }

    /// The plan of `web` when one text of the file is replaced, and the lines said about all services.
    fn replaced(from: &str, with: &str) -> (ServicePlan, Vec<String>) {
        assert!(FILE.contains(from));
        let reply = to(&FILE.replacen(from, with, 1));
        let lines = lines(&reply);
        (reply.services.into_iter().find(|s| s.name == "web").expect("web stays"), lines)
    }

    #[test]
    fn nothing_changes_and_nothing_is_said() {
        let reply = to(FILE);
        assert!(reply.services.iter().all(|s| s.change == Change::Unchanged && s.slots_moved == 0));
        assert_eq!((lines(&reply), reply.held), (vec![], vec![]));
    }

    #[test]
    fn another_order_is_no_change() {
        let lines_of =
            |first: &str, second: &str| FILE.replace(first, "X").replace(second, first).replace('X', second);
        let text = lines_of("{name: s1, address: 10.0.0.11}", "{name: s2, address: 10.0.0.12}");
        let reply = to(&text);
        assert_eq!(reply.services[0].change, Change::Unchanged);
        assert_eq!(reply.services[0].slots_moved, 0);
    }

    #[test]
    fn a_new_backend_takes_its_share_and_no_more() {
        let s3 = "  - {name: s3, address: 10.0.0.13}\n";
        let (web, lines) = replaced(s3, &format!("{s3}  - {{name: s4, address: 10.0.0.14}}\n"));
        assert_eq!(web.backends_added, ["s4"]);
        assert!((252..=262).contains(&web.slots_moved), "{} of 1009 slots move", web.slots_moved);
        assert_eq!((web.change, web.slots_total, web.flows_stay), (Change::Changed, 1009, true));
        assert_eq!(lines, ["web/s4 added"]);
    }

    #[test]
    fn a_backend_that_leaves_gives_its_share_and_no_more() {
        let (web, lines) = replaced("  - {name: s3, address: 10.0.0.13}\n", "");
        assert_eq!(web.backends_removed, ["s3"]);
        assert!((335..=347).contains(&web.slots_moved), "{} of 1009 slots move", web.slots_moved);
        assert_eq!(lines, ["web/s3 removed"]);
    }

    #[test]
    fn a_name_or_a_weight_or_a_state() {
        let (web, lines) = replaced("name: s1", "name: one");
        assert_eq!((web.slots_moved, web.backends_added.len(), web.backends_removed.len()), (0, 0, 0));
        assert_eq!(lines, ["web/one was called s1"]);

        let (web, lines) = replaced("10.0.0.11}", "10.0.0.11, weight: 200}");
        assert!((160..=190).contains(&web.slots_moved), "{} of 1009 slots move", web.slots_moved);
        assert_eq!(lines, ["web/s1 weight 100 -> 200"]);

        let (web, lines) = replaced("10.0.0.11}", "10.0.0.11, state: drain}");
        assert!((335..=347).contains(&web.slots_moved), "{} of 1009 slots move", web.slots_moved);
        assert_eq!(lines, ["web/s1 state active -> drain"]);
    }

    #[test]
    fn another_server_under_the_same_name_is_one_that_comes_and_one_that_goes() {
        let (web, lines) = replaced("10.0.0.11", "10.0.0.99");
        assert_eq!((web.backends_added, web.backends_removed), (vec!["s1".into()], vec!["s1".into()]));
        assert_eq!(lines, ["web/s1 added", "web/s1 removed"]);
    }

    #[test]
    fn a_change_of_the_hash_moves_everything() {
        for (from, with, note) in [
            ("forward: l2", "forward: ipip", "forward changed"),
            ("forward: l2", "forward: l2\n  hash: client", "hash changed"),
            ("ring_size: 1009", "ring_size: 2003", "ring_size changed"),
            ("hash_seed: 7", "hash_seed: 8", "hash_seed changed"),
        ] {
            let (web, lines) = replaced(from, with);
            assert_eq!((web.change, web.slots_moved), (Change::Changed, web.slots_total), "{note}");
            assert!(!web.flows_stay, "{note}");
            assert_eq!(lines[0], format!("web: {note}"));
        }
    }

    #[test]
    fn other_keys_are_named_and_move_nothing() {
        for (key, value) in [
            ("tracking", "always"),
            ("drain_timeout", "10s"),
            ("drain_end", "keep"),
            ("idle_timeout", "10m"),
            ("on_all_down", "drop"),
            ("on_down", "reset"),
            ("slow_start", "10s"),
            ("guard_timeout", "77s"),
            ("health", "{interval: 1s}"),
        ] {
            let (web, lines) = replaced("forward: l2", &format!("forward: l2\n  {key}: {value}"));
            assert_eq!((web.change, web.slots_moved, web.flows_stay), (Change::Changed, 0, true), "{key}");
            assert_eq!(lines, [format!("web: {key} changed")]);
        }
    }

    #[test]
    fn listens_come_and_go() {
        let (_, lines) = replaced("['192.0.2.10:80/tcp']", "['192.0.2.10:80/tcp', '192.0.2.10:443/tcp']");
        assert_eq!(lines, ["web: listens on 192.0.2.10:443/tcp, too"]);
        let (_, lines) =
            replaced("['192.0.2.10:80/tcp']\n", "['192.0.2.10:443/tcp']\n  health: {port: 80}\n");
        assert_eq!(
            lines,
            ["web: listens on 192.0.2.10:443/tcp, too", "web: no longer listens on 192.0.2.10:80/tcp"]
        );
    }

    #[test]
    fn services_come_and_go() {
        let reply = to(&FILE.replace("name: mail", "name: post"));
        let changes: Vec<_> = reply.services.iter().map(|s| (&*s.name, s.change, s.slots_moved)).collect();
        assert_eq!(
            changes,
            [("web", Change::Unchanged, 0), ("post", Change::Added, 0), ("mail", Change::Removed, 251)]
        );
        assert_eq!(lines(&reply), ["service post added", "service mail removed"]);
        assert_eq!(reply.services[1].backends_added, ["m1"]);
        assert_eq!(reply.services[2].backends_removed, ["m1"]);
    }

    #[test]
    fn what_would_be_held_is_said() {
        let few = FILE.replace("  - {name: s2, address: 10.0.0.12}\n", "");
        let few = few.replace("  - {name: s3, address: 10.0.0.13}\n", "").replace("10.0.0.21", "10.0.0.31");
        let reply = to(&few);
        assert_eq!(reply.held.len(), 1, "{:?}", reply.held);
        assert!(reply.held[0].starts_with("removes 3 of 4 backends"), "{:?}", reply.held);
    }
}
