//! What depends on several services at once: duplicates and sizes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    net::IpAddr,
};

use super::{
    error::{KeyPath, Report, Span},
    file::{BackendFile, File, ServiceFile},
    spec::{Limits, Listen, MAX_SERVICES, Ports},
};

/// Of services that name none.
pub(super) const DEFAULT_RING_SIZE: u32 = 65_537;

/// A listen with its place.
struct Taken<'f> {
    listen: Listen,
    service: &'f ServiceFile,
    index: usize,
    at: Span,
}

impl fmt::Display for Taken<'_> {
    /// Its path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "services[{}].listen[{}]", self.service.index, self.index)
    }
}

/// Reports what the parts of the file do to each other.
pub(super) fn check(file: &File, limits: Limits, report: &mut Report<'_>) {
    let services = file.services.given().map_or(&[][..], Vec::as_slice);
    check_interfaces(file, report);
    check_service_names(services, report);
    let listens = listens(services);
    check_listens(&listens, report);
    let listen_addresses = listens.iter().map(|taken| (taken.listen.address, taken.at)).collect();
    for service in services {
        check_backends(service, &listen_addresses, report);
    }
    check_limits(file, services, limits, report);
}

fn check_interfaces(file: &File, report: &mut Report<'_>) {
    let mut first = BTreeMap::new();
    let path = KeyPath::Root.key("interfaces");
    for interface in file.interfaces.given().into_iter().flatten() {
        let Some(name) = interface.name.given() else { continue };
        match first.entry(name) {
            Entry::Vacant(entry) => _ = entry.insert(interface.at),
            Entry::Occupied(entry) => {
                let message =
                    format!("the interface `{name}` is named twice, first at {}", report.line(*entry.get()));
                report.error(
                    interface.at,
                    &path.index(interface.index),
                    message,
                    Some("remove one of them".to_owned()),
                );
            }
        }
    }
}

fn check_service_names(services: &[ServiceFile], report: &mut Report<'_>) {
    let mut first = BTreeMap::new();
    for service in services {
        let (Some(name), Some(at)) = (service.name.given(), service.name.at()) else { continue };
        match first.entry(name) {
            Entry::Vacant(entry) => _ = entry.insert(at),
            Entry::Occupied(entry) => {
                let message = format!("the service name `{name}` is taken at {}", report.line(*entry.get()));
                let path = format!("services[{}].name", service.index);
                report.error(at, &path, message, Some("give each service its own name".to_owned()));
            }
        }
    }
}

fn listens(services: &[ServiceFile]) -> Vec<Taken<'_>> {
    let of = |service| {
        let listens: &'_ ServiceFile = service;
        let all = listens.listen.given().map_or(&[][..], Vec::as_slice);
        all.iter().map(move |(index, listen, at)| Taken { listen: *listen, service, index: *index, at: *at })
    };
    services.iter().flat_map(of).collect()
}

/// Reports every listen that another, earlier in the file, has taken a part of. A single port beside `*` is fine: it
/// is looked up first.
fn check_listens(listens: &[Taken<'_>], report: &mut Report<'_>) {
    let key =
        |taken: &Taken<'_>| (taken.listen.address, taken.listen.protocol, taken.listen.ports == Ports::Any);
    let mut sorted: Vec<&Taken<'_>> = listens.iter().collect();
    sorted.sort_by_key(|taken| (key(taken), taken.listen.ports, taken.at.start));
    // The one that reaches furthest of those with the same key.
    let mut widest: Option<&Taken<'_>> = None;
    for taken in sorted {
        let Some(other) = widest.filter(|other| key(other) == key(taken)) else {
            widest = Some(taken);
            continue;
        };
        if last_port(other.listen) >= first_port(taken.listen) {
            let (first, second) =
                if other.at.start < taken.at.start { (other, taken) } else { (taken, other) };
            report_overlap(first, second, report);
        }
        if last_port(taken.listen) > last_port(other.listen) {
            widest = Some(taken);
        }
    }
}

fn report_overlap(first: &Taken<'_>, second: &Taken<'_>, report: &mut Report<'_>) {
    let owner = match first.service.name.given() {
        Some(name) => format!("service `{name}`, {}", report.line(first.at)),
        None => report.line(first.at),
    };
    let message = if first.listen == second.listen {
        format!("the listen {} is given twice, first at {owner}", second.listen)
    } else {
        format!("the listen {} overlaps {} ({owner})", second.listen, first.listen)
    };
    let help = "each address, port and protocol belongs to one service: change or remove one of them";
    report.error(second.at, second, message, Some(help.to_owned()));
}

fn first_port(listen: Listen) -> u16 {
    match listen.ports {
        Ports::Any => 0,
        Ports::Range(first, _) => first,
    }
}

fn last_port(listen: Listen) -> u16 {
    match listen.ports {
        Ports::Any => 0,
        Ports::Range(_, last) => last,
    }
}

fn check_backends(service: &ServiceFile, listens: &BTreeMap<IpAddr, Span>, report: &mut Report<'_>) {
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for backend in service.backends.given().into_iter().flatten() {
        let path = |key| format!("services[{}].backends[{}].{key}", service.index, backend.index);
        let Some(address) = backend.address.given() else { continue };
        let at = backend.address.at().unwrap_or(backend.at);
        if let Some(first) = addresses.insert(*address, at) {
            let message = format!("the service has the backend {address} already, at {}", report.line(first));
            let help = "remove one of them; for a larger share, raise its `weight`";
            report.error(at, &path("address"), message, Some(help.to_owned()));
            continue;
        }
        let (name, name_at) = effective_name(backend, *address, at);
        match names.entry(name) {
            Entry::Vacant(entry) => _ = entry.insert(name_at),
            Entry::Occupied(entry) => {
                let message =
                    format!("the backend name `{}` is taken at {}", entry.key(), report.line(*entry.get()));
                let help = "give each backend of a service its own name (without one, it is its address)";
                report.error(name_at, &path("name"), message, Some(help.to_owned()));
            }
        }
        if let Some(listen_at) = listens.get(address) {
            let line = report.line(*listen_at);
            let message = format!("the backend {address} is an address that a service listens on ({line})");
            let help = "write the server's own address: packets to a listen come back to the balancer";
            report.error(at, &path("address"), message, Some(help.to_owned()));
        }
    }
}

/// The name as the spec will have it.
fn effective_name(backend: &BackendFile, address: IpAddr, at: Span) -> (String, Span) {
    match (backend.name.given(), backend.name.at()) {
        (Some(name), Some(at)) => (name.clone(), at),
        _ => (address.to_string(), at),
    }
}

/// Reports what does not fit into the kernel's maps.
fn check_limits(file: &File, services: &[ServiceFile], limits: Limits, report: &mut Report<'_>) {
    let count = |listen: Listen| u64::from(last_port(listen) - first_port(listen)) + 1;
    let listens = services.iter().flat_map(|service| service.listen.given().into_iter().flatten());
    let keys: u64 = listens.map(|(_, listen, _)| count(*listen)).sum();
    let backends: u64 = services.iter().map(|s| s.backends.given().map_or(0, Vec::len) as u64).sum();
    let ring_size =
        |s: &ServiceFile| s.keys.ring_size.or(&file.defaults.ring_size).value_or(DEFAULT_RING_SIZE);
    let slots: u64 = services.iter().map(|s| u64::from(ring_size(s))).sum();
    let written = &file.limits;
    let rows = [
        (
            "services",
            keys,
            limits.services,
            &written.services,
            "service keys (one for each port of each listen)",
        ),
        ("backends", backends, limits.backends, &written.backends, "backends"),
        ("slots", slots, limits.slots, &written.slots, "slots (the sum of all `ring_size`)"),
    ];
    for (key, needed, limit, written, what) in rows {
        if needed <= u64::from(limit) {
            continue;
        }
        let at = written.at().or(file.services.at()).unwrap_or_default();
        let message = format!("the services need {needed} {what}, and `limits.{key}` is {limit}");
        let help = match (key, needed.next_power_of_two()) {
            ("backends", 32_768..) if needed <= 32_767 => "write `limits: {backends: 32767}`".to_owned(),
            ("backends", 32_768..) => "one balancer has at most 32767 backends: split the file".to_owned(),
            ("services", enough) if enough > u64::from(MAX_SERVICES) => {
                if needed <= u64::from(MAX_SERVICES) {
                    format!("write `limits: {{services: {MAX_SERVICES}}}`")
                } else {
                    format!(
                        "one balancer has at most {MAX_SERVICES}: split the file, or listen on all ports (`*`)"
                    )
                }
            }
            ("slots", _) => format!(
                "write `limits: {{slots: {}}}`, or give services a smaller `ring_size`",
                needed.next_power_of_two()
            ),
            (_, enough) => format!("write `limits: {{{key}: {enough}}}`"),
        };
        report.error(at, &KeyPath::Root.key("limits").key(key), message, Some(help));
    }
    for service in services {
        let (backends, ring) = (service.backends.given().map_or(0, Vec::len), ring_size(service));
        if backends > ring as usize {
            let at = service.keys.ring_size.at().unwrap_or(service.at);
            let message = format!("a ring of {ring} slots is too small for {backends} backends");
            let path = format!("services[{}].ring_size", service.index);
            report.error(
                at,
                &path,
                message,
                Some("write a prime of at least 100 times the number of backends".to_owned()),
            );
        }
    }
}
