//! The other answers as people read them.

use super::{
    args::BackendName,
    table::{Align, cell, table},
    text::{escape, escape_lines, number, utc},
};
use crate::api::model::{AdminReply, Change, Event, EventsReply, PlanReply, ReloadReply, ServicePlan};

/// Lines of a text, one block each, with `sign` before the first.
fn block(out: &mut String, sign: &str, text: &str) {
    out.push_str(sign);
    out.push_str(&escape_lines(text.trim_end()));
    out.push('\n');
}

/// The answer to `reload` and `apply`.
pub(super) fn reload(reply: &ReloadReply) -> String {
    let mut out = String::new();
    for error in &reply.errors {
        block(&mut out, "error: ", error);
    }
    for warning in &reply.warnings {
        block(&mut out, "warning: ", warning);
    }
    for change in &reply.changes {
        block(&mut out, "  ", change);
    }
    for held in &reply.held {
        block(&mut out, "held: ", held);
    }
    let generation = reply.generation;
    let verdict = match (reply.applied, reply.changes.is_empty()) {
        (true, true) if reply.held.is_empty() => {
            format!("nothing changed; generation {generation} is in force")
        }
        (true, true) => format!("nothing else changed; generation {generation} is in force"),
        (true, false) => format!("applied; generation {generation} is in force"),
        (false, _) => {
            format!("not applied; the running configuration (generation {generation}) is unchanged")
        }
    };
    block(&mut out, "", &verdict);
    out
}

/// The answer to `plan`.
pub(super) fn plan(reply: &PlanReply) -> String {
    let mut out = String::new();
    for error in &reply.errors {
        block(&mut out, "error: ", error);
    }
    for warning in &reply.warnings {
        block(&mut out, "warning: ", warning);
    }
    for service in &reply.services {
        plan_of(&mut out, service);
    }
    for held in &reply.held {
        block(&mut out, "would be held: ", held);
    }
    if reply.errors.is_empty() && reply.services.iter().all(|service| service.change == Change::Unchanged) {
        block(&mut out, "", "nothing would change");
    }
    out
}

fn plan_of(out: &mut String, service: &ServicePlan) {
    let sign = match service.change {
        Change::Added => "+ ",
        Change::Removed => "- ",
        Change::Changed => "~ ",
        Change::Unchanged => return,
    };
    block(out, sign, &escape(&service.name));
    for name in &service.backends_added {
        block(out, "    + backend ", &escape(name));
    }
    for name in &service.backends_removed {
        block(out, "    - backend ", &format!("{} (it drains first)", escape(name)));
    }
    for change in &service.backends_changed {
        block(out, "    ~ ", &escape(change));
    }
    if service.change == Change::Changed {
        let [moved, total] = [service.slots_moved, service.slots_total].map(|slots| number(u64::from(slots)));
        let percent = f64::from(service.slots_moved) * 100.0 / f64::from(service.slots_total.max(1));
        block(out, "    slots that move: ", &format!("{moved} of {total} ({percent:.1}%)"));
        let flows = if service.flows_stay {
            "connections on the other slots stay where they are"
        } else {
            "EVERY FLOW MOVES"
        };
        block(out, "    ", flows);
    }
    for note in &service.notes {
        block(out, "    ", &escape(note));
    }
}

/// The answer to `drain`, `enable` and `disable`.
pub(super) fn admin(backend: &BackendName, reply: &AdminReply) -> String {
    let already = if reply.changed { "" } else { " (it was already)" };
    let mut out = String::new();
    let text = format!("{backend}: {}{already}", reply.state);
    block(&mut out, "", &text);
    for note in &reply.notes {
        block(&mut out, "  ", &escape(note));
    }
    out
}

/// The answer to `events`.
pub(super) fn events(reply: &EventsReply) -> String {
    let mut out = String::new();
    if reply.lost > 0 {
        block(&mut out, "... ", &format!("{} earlier events are no longer kept", number(reply.lost)));
    }
    let rows: Vec<_> = reply
        .events
        .iter()
        .map(|event| {
            [utc(event.time_unix_ms), event.kind.to_string(), about(event), escape(&event.text).into()]
        })
        .map(|row| row.map(cell))
        .collect();
    out + &table([Align::Left; 4], &rows, false)
}

fn about(event: &Event) -> String {
    let names = [&event.service, &event.backend].map(|name| name.as_deref().map(escape));
    names.into_iter().flatten().collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::model::EventKind, config::spec::AdminState};

    fn texts(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn reloads() {
        let good = ReloadReply {
            applied: true,
            generation: 5,
            changes: texts(&["web: backend s4 added"]),
            warnings: texts(&["dns has fewer than three backends"]),
            held: texts(&["web: `hash_seed` moves every flow; `xlb apply --force` consents"]),
            ..ReloadReply::default()
        };
        let bad = ReloadReply {
            generation: 4,
            errors: texts(&["xlb.yaml:14:5: services[0].helth: unknown key\n  did you mean `health`?"]),
            ..ReloadReply::default()
        };
        let same = ReloadReply { applied: true, generation: 4, ..ReloadReply::default() };
        insta::assert_snapshot!([good, bad, same].map(|reply| reload(&reply)).join("---\n"));
    }

    #[test]
    fn plans() {
        let web = ServicePlan {
            name: "web".to_owned(),
            change: Change::Changed,
            slots_total: 65537,
            slots_moved: 16384,
            backends_added: texts(&["s4"]),
            backends_removed: texts(&["s1"]),
            backends_changed: texts(&["backend s2: weight 100 -> 200"]),
            flows_stay: true,
            notes: texts(&["12 pins stay"]),
        };
        let dns = ServicePlan { name: "dns".to_owned(), change: Change::Added, ..ServicePlan::default() };
        let old = ServicePlan { name: "old".to_owned(), change: Change::Removed, ..ServicePlan::default() };
        let same = ServicePlan { name: "same".to_owned(), ..ServicePlan::default() };
        let reseeded = ServicePlan { flows_stay: false, backends_added: vec![], ..web.clone() };
        let reply = PlanReply {
            services: vec![web, reseeded, dns, old, same.clone()],
            held: texts(&["old has traffic; `xlb reload` consents"]),
            ..PlanReply::default()
        };
        let nothing = PlanReply { services: vec![same], ..PlanReply::default() };
        let bad = PlanReply { errors: texts(&["xlb.yaml:1:1: bad"]), ..PlanReply::default() };
        insta::assert_snapshot!([reply, nothing, bad].map(|reply| plan(&reply)).join("---\n"));
    }

    #[test]
    fn administrative_changes() {
        let name: BackendName = "web/s1".parse().unwrap();
        let reply = AdminReply {
            changed: true,
            state: AdminState::Drain,
            notes: texts(&["web has 2 eligible backends left"]),
        };
        assert_eq!(admin(&name, &reply), "web/s1: drain\n  web has 2 eligible backends left\n");
        let same = AdminReply { changed: false, state: AdminState::Active, notes: vec![] };
        assert_eq!(admin(&name, &same), "web/s1: active (it was already)\n");
    }

    #[test]
    fn happenings() {
        let event = |seq, kind, names: [Option<&str>; 2], text: &str| Event {
            seq,
            time_unix_ms: 1_787_393_472_345 + seq,
            monotonic_ms: seq,
            kind,
            service: names[0].map(str::to_owned),
            backend: names[1].map(str::to_owned),
            text: text.to_owned(),
        };
        let reply = EventsReply {
            events: vec![
                event(8, EventKind::Controller, [None, None], "ready"),
                event(9, EventKind::Health, [Some("web"), Some("s2")], "down: L7STS 500 \x1b[31m\noops"),
                event(10, EventKind::Config, [Some("web"), None], "applied"),
            ],
            next: 10,
            lost: 7,
        };
        insta::assert_snapshot!(events(&reply));
    }
}
