//! `xlb status`: what matters first, then services with their backends, then what became of the packets.

use std::fmt::Write;

use super::{
    table::{Align, Cell, Paint, cell, painted, table},
    text::{duration, escape, number, rate, share},
};
use crate::{
    api::model::{BackendStatus, FlowStatus, Health, InterfaceMode, ServiceStatus, Status},
    config::spec::AdminState,
};

/// How to render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    /// Colours help on a terminal.
    pub colour: bool,
}

/// The whole page.
pub(super) fn render(status: &Status, options: Options) -> String {
    let mut out = header(status, options.colour);
    out.push('\n');
    out += &services(status, options.colour);
    out += &outcomes(status);
    out
}

fn header(status: &Status, colour: bool) -> String {
    let config = &status.config;
    // First: nothing else on the page can be taken at its word while the tables are held.
    let guard = status.controller.guard.iter();
    let mut lines: Vec<[Cell; 2]> =
        guard.map(|text| [painted("GUARD", Paint::Bad), painted(escape(text), Paint::Bad)]).collect();
    lines.extend([
        [
            cell("xlb"),
            cell(format!(
                "{}, pid {}, up {}",
                escape(&status.controller.version),
                status.controller.pid,
                duration(status.controller.uptime_s)
            )),
        ],
        [
            cell("config"),
            cell(format!(
                "{}, generation {}, {} reloads",
                escape(&config.path),
                config.generation,
                config.reloads
            )),
        ],
    ]);
    let errors = config.last_error.iter().flat_map(|error| error.lines());
    for (i, line) in errors.enumerate() {
        let name = if i == 0 { "error" } else { "" };
        lines.push([painted(name, Paint::Bad), cell(escape(line))]);
    }
    for held in &config.held {
        lines.push([painted("held", Paint::Doubtful), cell(escape(held))]);
    }
    for interface in &status.interfaces {
        let note = interface.note.as_ref().map_or_else(String::new, |note| format!(": {}", escape(note)));
        let paint = match interface.mode {
            InterfaceMode::Native => Paint::Plain,
            InterfaceMode::Generic => Paint::Doubtful,
            InterfaceMode::Detached => Paint::Bad,
        };
        let text = format!("{}, {}{note}", escape(&interface.name), interface.mode);
        lines.push([cell("interface"), painted(text, paint)]);
    }
    lines.extend(flows(&status.flows));
    table([Align::Left, Align::Left], &lines, colour)
}

/// Of the flow table, if there is one.
fn flows(flows: &FlowStatus) -> Option<[Cell; 2]> {
    if flows.limit == 0 {
        return None;
    }
    let counted = flows.swept_s.map_or_else(|| "not yet".to_owned(), |age| format!("{} ago", duration(age)));
    let text = format!(
        "{} of {} pins, {} refused, counted {counted}",
        number(flows.pins),
        number(u64::from(flows.limit)),
        number(flows.refused)
    );
    // A full table refuses new pins; half of it is UDP's at most.
    let is_nearly_full = flows.pins > u64::from(flows.limit) / 10 * 9;
    Some([cell("flows"), painted(text, if is_nearly_full { Paint::Doubtful } else { Paint::Plain })])
}

const COLUMNS: usize = 13;
const ALIGNS: [Align; COLUMNS] = {
    use Align::{Left, Right};
    [Left, Left, Left, Left, Left, Right, Right, Right, Right, Right, Right, Right, Right]
};
const TITLES: [&str; COLUMNS] = [
    "NAME",
    "ADDRESS",
    "STATE",
    "HEALTH",
    "REASON",
    "SINCE",
    "WANTED",
    "REAL",
    "SLOTS",
    "PINS",
    "CONNECTIONS",
    "PACKETS",
    "PACKETS/S",
];

fn services(status: &Status, colour: bool) -> String {
    if status.services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut rows = vec![TITLES.map(|title| painted(title, Paint::Bold))];
    for service in &status.services {
        rows.extend(service_rows(service));
        rows.extend(service.backends.iter().map(|backend| backend_row(backend, false)));
        rows.extend(service.leaving.iter().map(|backend| backend_row(backend, true)));
    }
    table(ALIGNS, &rows, colour)
}

/// The service with its sums; one more row for each further listen.
fn service_rows(service: &ServiceStatus) -> Vec<[Cell; COLUMNS]> {
    let total = service.backends.len();
    let paint = match service.eligible as usize {
        0 => Paint::Bad,
        eligible if eligible < total => Paint::Doubtful,
        _ => Paint::Good,
    };
    let mut notes = vec![service.forward.clone()];
    if service.moving_slots > 0 {
        notes.push(format!("{} slots moving", number(u64::from(service.moving_slots))));
    }
    // Not `sum`: that of nothing is -0.
    let wanted = service.backends.iter().fold(0.0, |sum, backend| sum + backend.wanted_share);
    let real = service.backends.iter().chain(&service.leaving).filter_map(|backend| backend.real_share);
    let slots: u64 = service.backends.iter().map(|backend| u64::from(backend.slots)).sum();
    let mut listens = service.listen.iter().map(|listen| escape(listen).into_owned());
    let first = [
        painted(escape(&service.name), Paint::Bold),
        cell(listens.next().unwrap_or_default()),
        cell(""),
        painted(format!("{}/{total} eligible", service.eligible), paint),
        cell(escape(&notes.join(", "))),
        cell(""),
        cell(share(Some(wanted))),
        cell(share(real.reduce(|a, b| a + b))),
        cell(number(slots)),
        cell(number(service.pins)),
        cell(number(service.connections)),
        cell(number(service.packets)),
        cell(rate(service.packets_per_s)),
    ];
    let more = listens.map(|listen| {
        let mut row: [Cell; COLUMNS] = std::array::from_fn(|_| cell(""));
        row[1] = cell(listen);
        row
    });
    std::iter::once(first).chain(more).collect()
}

fn backend_row(backend: &BackendStatus, leaving: bool) -> [Cell; COLUMNS] {
    let address = match (backend.port, backend.address.is_ipv6()) {
        (None, _) => backend.address.to_string(),
        (Some(port), false) => format!("{}:{port}", backend.address),
        (Some(port), true) => format!("[{}]:{port}", backend.address),
    };
    let mut state = if leaving { "leaving".to_owned() } else { backend.state.to_string() };
    match backend.drain_left_s {
        None => {}
        Some(left) if left > 0.0 => state += &format!(", {} left", duration(left)),
        Some(_) => state += ", time is up",
    }
    let state_paint = match backend.state {
        AdminState::Active if !leaving => Paint::Plain,
        _ => Paint::Doubtful,
    };
    let health_paint = match backend.health {
        Health::Up => Paint::Good,
        Health::Down => Paint::Bad,
        Health::Unknown => Paint::Doubtful,
    };
    let mut reason = escape(&backend.reason).into_owned();
    if let Some(detail) = &backend.detail
        // A healthy one that is wanted and gets nothing: what stands in the way is on our side.
        && (backend.health != Health::Up || (backend.state == AdminState::Active && backend.wanted_share == 0.0))
    {
        // Writing to a `String` does not fail.
        let _ = write!(reason, ": {}", escape(&shorten(detail)));
    }
    [
        cell(format!("  {}", escape(&backend.name))),
        cell(address),
        painted(state, state_paint),
        painted(backend.health.to_string(), health_paint),
        cell(reason),
        cell(duration(backend.since_s)),
        cell(share(Some(backend.wanted_share))),
        cell(share(backend.real_share)),
        cell(number(u64::from(backend.slots))),
        cell(number(backend.pins)),
        cell(number(backend.connections)),
        cell(number(backend.packets)),
        cell(rate(backend.packets_per_s)),
    ]
}

/// A remote text must not push the figures off the screen; the JSON has all of it.
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 40;
    if text.chars().count() <= CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

fn outcomes(status: &Status) -> String {
    let rows: Vec<[Cell; 2]> = status
        .outcomes
        .0
        .iter()
        .filter(|(_, packets)| *packets > 0)
        .map(|(name, packets)| [cell(escape(name)), cell(number(*packets))])
        .collect();
    if rows.is_empty() {
        return "\nno packets yet\n".to_owned();
    }
    format!("\npackets by outcome\n{}", table([Align::Left, Align::Right], &rows, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    const PLAIN: Options = Options { colour: false };

    #[test]
    fn a_page_with_something_of_everything() {
        insta::assert_snapshot!(render(&fake::status(), PLAIN));
    }

    #[test]
    fn an_empty_controller_says_so() {
        insta::assert_snapshot!(render(&Status::default(), PLAIN));
    }

    #[test]
    fn colours_change_nothing_but_the_colours() {
        let coloured = render(&fake::status(), Options { colour: true });
        assert!(coloured.contains("\x1b[31mdown\x1b[0m"), "{coloured}");
        let bare = ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"]
            .into_iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(bare, render(&fake::status(), PLAIN));
    }

    #[test]
    fn a_guard_comes_first_and_the_time_of_a_drain_ends() {
        let mut status = fake::status();
        status.controller.guard = vec!["eth0 \x1b[2J".to_owned(), "eth1".to_owned()];
        status.services[0].backends[2].drain_left_s = Some(0.0);
        status.services[0].leaving[0].drain_left_s = None;
        status.flows = FlowStatus { swept_s: None, pins: 950_000, ..status.flows };
        let page = render(&status, Options { colour: true });
        let guard = "\x1b[31mGUARD\x1b[0m      \x1b[31meth0 \\u{1b}[2J\x1b[0m\n\x1b[31mGUARD\x1b[0m      ";
        assert!(page.starts_with(guard), "{page}");
        assert!(page.contains("\x1b[33mdrain, time is up\x1b[0m"), "{page}");
        assert!(page.contains("\x1b[33mleaving\x1b[0m"), "{page}");
        assert!(
            page.contains("\x1b[33m950,000 of 1,048,576 pins, 5 refused, counted not yet\x1b[0m"),
            "{page}"
        );
    }

    #[test]
    fn remote_texts_reach_the_page_only_escaped_and_short() {
        let mut status = fake::status();
        let backend = &mut status.services[0].backends[1];
        backend.detail = Some(format!("\x1b]0;pwned\x07\n{}", "x".repeat(500)));
        backend.reason = "L7STS \x1b[2J".to_owned();
        status.config.last_error = Some("bad\x1b[2J\nsecond line".to_owned());
        let page = render(&status, PLAIN);
        assert!(!page.chars().any(|c| c.is_control() && c != '\n'), "{page:?}");
        assert!(page.contains(r"error      bad\u{1b}[2J"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() < 250), "{page}");
    }
}
