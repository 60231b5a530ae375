//! The file as written: every key optional, nothing filled in. Reading reports what is wrong with a value by itself;
//! what depends on other values is `resolve` and `check`.

use std::{net::IpAddr, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    address,
    error::{KeyPath, Report, Span},
    read::{Field, Keys, Map, scalar},
    scalar::{self as value, Scalar, Wrong, choice, integer},
    spec::{
        AdminState, DrainEnd, Forward, HashMode, Listen, MAX_SERVICES, OnAllDown, OnDown, Tracking, XdpMode,
    },
    yaml::{Kind, Node},
};

/// The whole file.
#[derive(Default)]
pub(super) struct File {
    pub interfaces: Field<Vec<InterfaceFile>>,
    pub hash_seed: Field<u32>,
    pub limits: LimitsFile,
    pub admin_socket: Field<PathBuf>,
    pub admin_listen: Field<Option<SocketAddr>>,
    pub defaults: ServiceKeys,
    pub services: Field<Vec<ServiceFile>>,
}

/// An item of `interfaces`.
pub(super) struct InterfaceFile {
    /// Its place in the list.
    pub index: usize,
    pub at: Span,
    pub name: Field<String>,
    pub mode: Field<XdpMode>,
}

/// `limits`.
#[derive(Default)]
pub(super) struct LimitsFile {
    pub services: Field<u32>,
    pub backends: Field<u32>,
    pub slots: Field<u32>,
    pub flows: Field<u32>,
}

/// The keys that `defaults` and services share.
#[derive(Default)]
pub(super) struct ServiceKeys {
    pub forward: Field<Forward>,
    pub hash: Field<HashMode>,
    pub tracking: Field<Tracking>,
    pub ring_size: Field<u32>,
    pub drain_timeout: Field<Duration>,
    pub drain_end: Field<DrainEnd>,
    pub idle_tcp: Field<Duration>,
    pub idle_udp: Field<Duration>,
    pub on_all_down: Field<OnAllDown>,
    pub on_down: Field<OnDown>,
    pub slow_start: Field<Duration>,
    pub guard_timeout: Field<Duration>,
    pub health: HealthFile,
}

/// `health`.
#[derive(Default)]
pub(super) struct HealthFile {
    /// Where the map is, if there is one.
    pub at: Option<Span>,
    pub kind: Field<HealthKind>,
    pub port: Field<u16>,
    pub interval: Field<Duration>,
    pub timeout: Field<Duration>,
    pub fall: Field<u32>,
    pub rise: Field<u32>,
    pub path: Field<String>,
    pub host: Field<String>,
    pub expect_status: Field<Vec<u16>>,
}

/// `health.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HealthKind {
    None,
    Tcp,
    Http,
}

/// An item of `services`.
pub(super) struct ServiceFile {
    /// Its place in the list.
    pub index: usize,
    pub at: Span,
    pub name: Field<String>,
    /// Only the right ones, each with its place in the list.
    pub listen: Field<Vec<(usize, Listen, Span)>>,
    pub keys: ServiceKeys,
    pub backends: Field<Vec<BackendFile>>,
    /// Something in it was reported as wrong, so that it is not worth warnings.
    pub wrong: bool,
}

/// An item of `backends`.
pub(super) struct BackendFile {
    /// Its place in the list.
    pub index: usize,
    pub at: Span,
    pub name: Field<String>,
    pub address: Field<IpAddr>,
    pub weight: Field<u32>,
    pub state: Field<AdminState>,
}

const FILE_KEYS: Keys = Keys {
    of: "the file",
    valid: &["interfaces", "hash_seed", "limits", "admin", "defaults", "services"],
    hints: &[("version", "remove it: the format has no version yet"), ("seed", "did you mean `hash_seed`?")],
};
const INTERFACE_KEYS: Keys = Keys { of: "an interface", valid: &["name", "mode"], hints: &[] };
const LIMIT_KEYS: Keys =
    Keys { of: "limits", valid: &["services", "backends", "slots", "flows"], hints: &[] };
const ADMIN_KEYS: Keys = Keys { of: "admin", valid: &["socket", "listen"], hints: &[] };
const IDLE_KEYS: Keys = Keys { of: "idle_timeout", valid: &["tcp", "udp"], hints: &[] };
const HEALTH_KEYS: Keys = Keys {
    of: "health",
    valid: &["type", "port", "interval", "timeout", "fall", "rise", "path", "host", "expect_status"],
    hints: &[
        ("unhealthy_threshold", "the number of failures that take a backend down is `fall`"),
        ("healthy_threshold", "the number of successes that bring a backend up is `rise`"),
    ],
};
const SERVICE_KEYS: Keys = Keys {
    of: "a service",
    valid: &[
        "name",
        "listen",
        "forward",
        "hash",
        "tracking",
        "ring_size",
        "drain_timeout",
        "drain_end",
        "idle_timeout",
        "on_all_down",
        "on_down",
        "slow_start",
        "guard_timeout",
        "health",
        "backends",
    ],
    hints: &[
        ("port", "the port is a part of `listen`: 192.0.2.10:80/tcp"),
        ("protocol", "the protocol is a part of `listen`: 192.0.2.10:80/tcp"),
        ("address", "the address is a part of `listen`: 192.0.2.10:80/tcp"),
        ("vip", "the addresses of a service are `listen`: [\"192.0.2.10:80/tcp\"]"),
        ("servers", "the servers of a service are its `backends`"),
        ("weight", "weights belong to backends"),
        ("nat", "`nat` is not supported by this version: use `forward: l2` or `forward: ipip`"),
    ],
};
const DEFAULT_KEYS: Keys = Keys {
    of: "defaults",
    valid: &[
        "forward",
        "hash",
        "tracking",
        "ring_size",
        "drain_timeout",
        "drain_end",
        "idle_timeout",
        "on_all_down",
        "on_down",
        "slow_start",
        "guard_timeout",
        "health",
    ],
    hints: &[
        ("name", "names, listens and backends belong to each service"),
        ("listen", "names, listens and backends belong to each service"),
        ("backends", "names, listens and backends belong to each service"),
    ],
};
const BACKEND_KEYS: Keys = Keys {
    of: "a backend",
    valid: &["name", "address", "port", "weight", "state"],
    hints: &[
        ("health", "health checks are set for the service, or under `defaults`"),
        ("ip", "did you mean `address`?"),
        ("host", "did you mean `address`? Names are not resolved"),
        ("disabled", "write `state: disabled`"),
        ("drain", "write `state: drain`"),
    ],
};

/// Reads the tree.
pub(super) fn read(root: &Node<'_>, report: &mut Report<'_>) -> File {
    let path = KeyPath::Root;
    let Some(map) = Map::open(root, &path, &FILE_KEYS, report) else { return File::default() };
    let help = "add `interfaces: [eth0]` with the interface that the packets come in by";
    map.require("interfaces", &path, help, report);
    map.require_items("interfaces", &path, "name the interface that the packets come in by: [eth0]", report);
    map.require("services", &path, "add `services:`; a file without any has `services: []`", report);
    let interfaces = map.list("interfaces", &path, report, read_interface);
    let hash_seed = map.scalar("hash_seed", &path, report, |s| integer(s, 0..=u32::MAX));
    let limits = nested(map, "limits", &path, &LIMIT_KEYS, report).map_or_else(LimitsFile::default, |map| {
        let path = path.key("limits");
        let mut limit = |key, range| map.scalar(key, &path, report, |s| integer(s, range));
        LimitsFile {
            services: limit("services", 1..=MAX_SERVICES),
            backends: limit("backends", 2..=32_767),
            // 1 GiB of slots; a pin takes up to 128 bytes, so 16 GiB of pins.
            slots: limit("slots", 3..=1 << 28),
            flows: limit("flows", 1..=1 << 27),
        }
    });
    let (mut admin_socket, mut admin_listen) = (Field::Absent, Field::Absent);
    if let Some(map) = nested(map, "admin", &path, &ADMIN_KEYS, report) {
        admin_socket = map.scalar("socket", &path.key("admin"), report, value::socket_path);
        admin_listen = map.scalar("listen", &path.key("admin"), report, value::admin_listen);
    }
    let defaults = nested(map, "defaults", &path, &DEFAULT_KEYS, report)
        .map_or_else(ServiceKeys::default, |map| read_service_keys(map, &path.key("defaults"), report));
    let services = map.list("services", &path, report, read_service);
    File { interfaces, hash_seed, limits, admin_socket, admin_listen, defaults, services }
}

/// A map under a key; `None` if absent or wrong.
fn nested<'n, 't>(
    map: Map<'n, 't>,
    key: &str,
    path: &KeyPath<'_>,
    keys: &Keys,
    report: &mut Report<'_>,
) -> Option<Map<'n, 't>> {
    let node = *map.value(key, path, report).given()?;
    Map::open(node, &path.key(key), keys, report)
}

fn read_interface(
    node: &Node<'_>,
    index: usize,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Option<InterfaceFile> {
    let at = node.at;
    if matches!(node.kind, Kind::Scalar { .. }) {
        let name = scalar(node, path, report, value::interface_name)?;
        return Some(InterfaceFile { index, at, name: Field::Given(name, at), mode: Field::Absent });
    }
    let map = Map::open(node, path, &INTERFACE_KEYS, report)?;
    map.require("name", path, "add `name: eth0`", report);
    let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    Some(InterfaceFile {
        index,
        at,
        name: map.scalar("name", path, report, value::interface_name),
        mode: map.scalar("mode", path, report, |s| choice(s, &modes, &["offload"])),
    })
}

fn read_service(
    node: &Node<'_>,
    index: usize,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Option<ServiceFile> {
    let errors_before = report.errors();
    let map = Map::open(node, path, &SERVICE_KEYS, report)?;
    map.require("name", path, "add `name: web`", report);
    map.require("listen", path, "add `listen: [\"192.0.2.10:80/tcp\"]`", report);
    map.require(
        "backends",
        path,
        "add `backends:` with one `- {name: s1, address: 10.0.0.11}` for each server",
        report,
    );
    map.require_items("listen", path, "write `listen: [\"192.0.2.10:80/tcp\"]`", report);
    map.require_items("backends", path, "a service has at least one backend", report);
    let listen = map.list("listen", path, report, |node, index, path, report| {
        scalar(node, path, report, address::listen).map(|listen| (index, listen, node.at))
    });
    let backends = map.list("backends", path, report, read_backend);
    let name = map.scalar("name", path, report, value::name);
    let keys = read_service_keys(map, path, report);
    let wrong = report.errors() > errors_before;
    Some(ServiceFile { index, at: map.at, name, listen, keys, backends, wrong })
}

fn read_backend(
    node: &Node<'_>,
    index: usize,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Option<BackendFile> {
    let map = match &node.kind {
        Kind::Scalar { text, .. } if address::backend_address(Scalar { text, plain: true }).is_ok() => {
            let help = format!("write `{{address: {text}}}`");
            report.error(node.at, path, "a backend is a map, found an address alone", Some(help));
            return None;
        }
        _ => Map::open(node, path, &BACKEND_KEYS, report)?,
    };
    map.require("address", path, "add `address: 10.0.0.11`", report);
    if let Some((key, _)) = map.entry("port") {
        let message = "`port` works only with `forward: nat`, which is not supported by this version";
        let help = "remove it: a backend is sent to on the port that the client used; the port of probes is `health: {port: 8080}`";
        report.error(key.at, &path.key("port"), message, Some(help.to_owned()));
    }
    let states =
        [("active", AdminState::Active), ("drain", AdminState::Drain), ("disabled", AdminState::Disabled)];
    Some(BackendFile {
        index,
        at: map.at,
        name: map.scalar("name", path, report, value::name),
        address: map.scalar("address", path, report, address::backend_address),
        weight: map.scalar("weight", path, report, value::weight),
        state: map.scalar("state", path, report, |s| choice(s, &states, &[])),
    })
}

const WEEK: Duration = Duration::from_hours(7 * 24);
const UP_TO_A_WEEK: RangeInclusive<Duration> = Duration::ZERO..=WEEK;
const UP_TO_AN_HOUR: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const SECOND_TO_A_WEEK: RangeInclusive<Duration> = Duration::from_secs(1)..=WEEK;

fn read_service_keys(map: Map<'_, '_>, path: &KeyPath<'_>, report: &mut Report<'_>) -> ServiceKeys {
    let (idle_tcp, idle_udp) = read_idle_timeout(map, path, report);
    let hashes = [("flow", HashMode::Flow), ("client", HashMode::Client)];
    let trackings = [("auto", Tracking::Auto), ("always", Tracking::Always), ("never", Tracking::Never)];
    let alls = [("reject", OnAllDown::Reject), ("drop", OnAllDown::Drop), ("use_all", OnAllDown::UseAll)];
    let downs = [("auto", OnDown::Auto), ("keep", OnDown::Keep), ("reset", OnDown::Reset)];
    let ends = [("reset", DrainEnd::Reset), ("keep", DrainEnd::Keep)];
    ServiceKeys {
        forward: map.scalar("forward", path, report, forward),
        hash: map.scalar("hash", path, report, |s| choice(s, &hashes, &[])),
        tracking: map.scalar("tracking", path, report, |s| choice(s, &trackings, &[])),
        ring_size: map.scalar("ring_size", path, report, value::prime),
        drain_timeout: duration(map, "drain_timeout", &UP_TO_A_WEEK, path, report),
        drain_end: map.scalar("drain_end", path, report, |s| choice(s, &ends, &[])),
        idle_tcp,
        idle_udp,
        on_all_down: map.scalar("on_all_down", path, report, |s| choice(s, &alls, &[])),
        on_down: map.scalar("on_down", path, report, |s| choice(s, &downs, &[])),
        slow_start: duration(map, "slow_start", &UP_TO_AN_HOUR, path, report),
        guard_timeout: duration(map, "guard_timeout", &UP_TO_AN_HOUR, path, report),
        health: read_health(map, path, report),
    }
}

fn forward(scalar: Scalar<'_>) -> Result<Forward, Wrong> {
    choice(scalar, &[("l2", Forward::L2), ("ipip", Forward::Ipip)], &["gue", "nat"])
}

fn duration(
    map: Map<'_, '_>,
    key: &str,
    range: &RangeInclusive<Duration>,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> Field<Duration> {
    map.scalar(key, path, report, |s| value::duration(s, range))
}

/// `idle_timeout`: one duration for TCP, or a map with `tcp` and `udp`.
fn read_idle_timeout(
    map: Map<'_, '_>,
    path: &KeyPath<'_>,
    report: &mut Report<'_>,
) -> (Field<Duration>, Field<Duration>) {
    const KEY: &str = "idle_timeout";
    let is_map = map.entry(KEY).is_some_and(|(_, node)| matches!(node.kind, Kind::Map(_)));
    if !is_map {
        return (duration(map, KEY, &SECOND_TO_A_WEEK, path, report), Field::Absent);
    }
    let Some(map) = nested(map, KEY, path, &IDLE_KEYS, report) else { return (Field::Wrong, Field::Wrong) };
    let path = path.key(KEY);
    let tcp = duration(map, "tcp", &SECOND_TO_A_WEEK, &path, report);
    (tcp, duration(map, "udp", &SECOND_TO_A_WEEK, &path, report))
}

fn read_health(map: Map<'_, '_>, path: &KeyPath<'_>, report: &mut Report<'_>) -> HealthFile {
    const KINDS: [(&str, HealthKind); 3] =
        [("tcp", HealthKind::Tcp), ("http", HealthKind::Http), ("none", HealthKind::None)];
    const LATER: [&str; 5] = ["https", "dns", "udp", "icmp", "grpc"];
    // The floor of intervals that are shortened is 100 ms (DESIGN section 3), so it is the floor of all.
    const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
    const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
    let Some(map) = nested(map, "health", path, &HEALTH_KEYS, report) else { return HealthFile::default() };
    let path = path.key("health");
    map.require_items("expect_status", &path, "write `expect_status: [200]`", report);
    let expect_status = map.list("expect_status", &path, report, |node, _, path, report| {
        scalar(node, path, report, |s| integer(s, 100..=599)).map(|status| status as u16)
    });
    HealthFile {
        at: Some(map.at),
        kind: map.scalar("type", &path, report, |s| choice(s, &KINDS, &LATER)),
        port: map.scalar("port", &path, report, value::port),
        interval: duration(map, "interval", &INTERVALS, &path, report),
        timeout: duration(map, "timeout", &TIMEOUTS, &path, report),
        fall: map.scalar("fall", &path, report, |s| integer(s, 1..=1000)),
        rise: map.scalar("rise", &path, report, |s| integer(s, 1..=1000)),
        path: map.scalar("path", &path, report, value::http_path),
        host: map.scalar("host", &path, report, value::http_host),
        expect_status,
    }
}
