//! File -> spec: fills in defaults and checks the values that depend on each other within a service.

use std::{path::PathBuf, time::Duration};

use super::{
    check,
    error::{KeyPath, Report},
    file::{BackendFile, File, HealthFile, HealthKind, InterfaceFile, LimitsFile, ServiceFile, ServiceKeys},
    read::Field,
    spec::{
        Admin, BackendSpec, Check, Forward, HealthSpec, IdleTimeout, InterfaceSpec, Limits, Listen, Ports,
        ServiceSpec, Spec,
    },
    warn,
};

/// The spec, or `None` if `report` has errors.
pub(super) fn resolve(file: &File, report: &mut Report<'_>) -> Option<Spec> {
    let limits = limits(&file.limits);
    let services_path = KeyPath::Root.key("services");
    let mut services = Vec::new();
    for written in file.services.given().map_or(&[][..], Vec::as_slice) {
        let path = services_path.index(written.index);
        let service = service(written, &file.defaults, &path, report);
        if let Some(service) = &service
            && !written.wrong
        {
            warn::of_service(service, written, &path, report);
        }
        services.push(service);
    }
    report_idle_health_keys(&file.defaults.health, None, &KeyPath::Root.key("defaults"), report);
    check::check(file, limits, report);
    warn::of_file(file, report);
    if report.has_errors() {
        return None;
    }
    let interfaces = file.interfaces.given().map_or(&[][..], Vec::as_slice);
    Some(Spec {
        interfaces: interfaces.iter().filter_map(interface).collect(),
        hash_seed: file.hash_seed.value_or(0),
        limits,
        admin: Admin {
            socket: file.admin_socket.value_or(PathBuf::from("/run/xlb/xlb.sock")),
            listen: file.admin_listen.value_or(Some(([127, 0, 0, 1], 9180).into())),
        },
        services: services.into_iter().flatten().collect(),
    })
}

fn interface(written: &InterfaceFile) -> Option<InterfaceSpec> {
    Some(InterfaceSpec { name: written.name.given()?.clone(), mode: written.mode.value_or_default() })
}

fn limits(written: &LimitsFile) -> Limits {
    let default = Limits::default();
    Limits {
        services: written.services.value_or(default.services),
        backends: written.backends.value_or(default.backends),
        slots: written.slots.value_or(default.slots),
        flows: written.flows.value_or(default.flows),
    }
}

fn service(
    written: &ServiceFile,
    defaults: &ServiceKeys,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Option<ServiceSpec> {
    let keys = &written.keys;
    let listen: Vec<Listen> = written.listen.given()?.iter().map(|(_, listen, _)| *listen).collect();
    let forward = forward(written, defaults, path, report);
    let health = health(written, &defaults.health, listen.first().copied(), path, report);
    let idle = IdleTimeout::default();
    Some(ServiceSpec {
        name: written.name.given()?.as_str().into(),
        listen,
        forward: forward?,
        hash: keys.hash.or(&defaults.hash).value_or_default(),
        tracking: keys.tracking.or(&defaults.tracking).value_or_default(),
        ring_size: keys.ring_size.or(&defaults.ring_size).value_or(check::DEFAULT_RING_SIZE),
        drain_timeout: keys.drain_timeout.or(&defaults.drain_timeout).value_or(Duration::from_mins(5)),
        drain_end: keys.drain_end.or(&defaults.drain_end).value_or_default(),
        idle_timeout: IdleTimeout {
            tcp: keys.idle_tcp.or(&defaults.idle_tcp).value_or(idle.tcp),
            udp: keys.idle_udp.or(&defaults.idle_udp).value_or(idle.udp),
        },
        on_all_down: keys.on_all_down.or(&defaults.on_all_down).value_or_default(),
        on_down: keys.on_down.or(&defaults.on_down).value_or_default(),
        slow_start: keys.slow_start.or(&defaults.slow_start).value_or(Duration::ZERO),
        guard_timeout: keys.guard_timeout.or(&defaults.guard_timeout).value_or(Duration::from_secs(30)),
        health: health?,
        backends: written.backends.given()?.iter().filter_map(backend).collect(),
    })
}

fn forward(
    written: &ServiceFile,
    defaults: &ServiceKeys,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Option<Forward> {
    let forward = written.keys.forward.or(&defaults.forward);
    if matches!(forward, Field::Absent) {
        let help = "add `forward: l2` (backends in the same layer 2 network) or `forward: ipip` (behind routers), \
                    here or under `defaults`";
        report.error(written.at, path, "`forward` is missing", Some(help.to_owned()));
    }
    forward.given().copied()
}

fn backend(written: &BackendFile) -> Option<BackendSpec> {
    let address = *written.address.given()?;
    let name = match &written.name {
        Field::Absent => address.to_string().into(),
        name => name.given()?.as_str().into(),
    };
    Some(BackendSpec {
        name,
        address,
        port: None,
        weight: written.weight.value_or(100),
        state: written.state.value_or_default(),
    })
}

/// The service's health keys over those of `defaults`, key by key.
fn health(
    written: &ServiceFile,
    defaults: &HealthFile,
    first_listen: Option<Listen>,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Option<HealthSpec> {
    let keys = &written.keys.health;
    let kind = keys.kind.or(&defaults.kind);
    let kind = match kind {
        Field::Absent => HealthKind::Tcp,
        kind => *kind.given()?,
    };
    report_idle_health_keys(keys, Some(kind), path, report);
    let check = match kind {
        HealthKind::None => Check::None,
        HealthKind::Tcp => Check::Tcp,
        HealthKind::Http => Check::Http {
            path: keys.path.or(&defaults.path).value_or("/".to_owned()),
            host: keys.host.or(&defaults.host).given().cloned(),
            expect_status: keys.expect_status.or(&defaults.expect_status).value_or(vec![200]),
        },
    };
    let port = match keys.port.or(&defaults.port) {
        _ if kind == HealthKind::None => 0,
        Field::Given(port, _) => *port,
        Field::Wrong => return None,
        Field::Absent => match first_listen?.ports {
            Ports::Range(first, last) if first == last => first,
            _ => {
                let help = "add `port` to `health`: the port that the probes go to";
                let at = keys.at.unwrap_or(written.at);
                let message =
                    "`health.port` is missing, and the first listen has no single port to take it from";
                report.error(at, &path.key("health"), message, Some(help.to_owned()));
                return None;
            }
        },
    };
    Some(HealthSpec {
        check,
        port,
        interval: keys.interval.or(&defaults.interval).value_or(Duration::from_secs(2)),
        timeout: keys.timeout.or(&defaults.timeout).value_or(Duration::from_secs(1)),
        fall: keys.fall.or(&defaults.fall).value_or(3),
        rise: keys.rise.or(&defaults.rise).value_or(2),
    })
}

/// Reports keys of HTTP probes beside another type. `kind` is what holds here; `None`: only if it is written here.
fn report_idle_health_keys(
    keys: &HealthFile,
    kind: Option<HealthKind>,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) {
    if kind.or(keys.kind.given().copied()).is_none_or(|kind| kind == HealthKind::Http) {
        return;
    }
    let path = path.key("health");
    for (key, at) in
        [("path", keys.path.at()), ("host", keys.host.at()), ("expect_status", keys.expect_status.at())]
    {
        if let Some(at) = at {
            let help = format!("add `type: http`, or remove `{key}`");
            report.error(at, &path.key(key), format!("`{key}` works only with `type: http`"), Some(help));
        }
    }
}
