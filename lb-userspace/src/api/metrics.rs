//! `/metrics`: the status as OpenMetrics text, or in the classic format of Prometheus.
//!
//! Everything comes from one [`Status`], so a scrape is consistent in itself. Labels hold names from the file and from
//! enums, never anything that a client sent: the number of series is bounded by the file.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::model::{BackendStatus, FlowStatus, Health, ServiceStatus, Status};
use crate::config::spec::AdminState;

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Classic,
}

impl Format {
    /// What a client wants that sent these `Accept` headers (RFC 9110, 12.5.1). Classic when in doubt: everybody
    /// reads it.
    pub fn wanted<'a>(accept: impl Iterator<Item = &'a str>) -> Self {
        let (mut open, mut classic) = (0.0_f32, 0.0_f32);
        for range in accept.flat_map(|header| header.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match (kind.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open = open.max(quality),
                ("text/plain", None | Some("0.0.4")) => classic = classic.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= classic { Self::OpenMetrics } else { Self::Classic }
    }

    /// The header that says so.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The whole exposition.
pub fn encode(status: Arc<Status>, format: Format) -> String {
    let mut registry = Registry::with_prefix("xlb");
    registry.register_collector(Box::new(Families(status)));
    let mut open = String::new();
    // A `String` takes whatever is written, and nothing in `Families` fails by itself.
    if let Err(error) = text::encode(&mut open, &registry) {
        tracing::error!(%error, "cannot write the metrics");
    }
    match format {
        Format::OpenMetrics => open,
        Format::Classic => classic(&open),
    }
}

/// OpenMetrics text as classic text: HELP and TYPE name the series as it is written (`_total`, `_info`), there are no
/// infos, UNIT or EOF.
fn classic(open: &str) -> String {
    let mut out = String::with_capacity(open.len() + open.len() / 64);
    let mut help = "";
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            let help = help.split_once(' ').map_or("", |(_, text)| text);
            // Writing to a `String` does not fail.
            let _ = write!(out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[derive(Debug)]
struct Families(Arc<Status>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let status = &*self.0;
        controller(&mut encoder, status)?;
        outcomes(&mut encoder, status)?;
        flow_table(&mut encoder, &status.flows)?;
        services(&mut encoder, &status.services)?;
        backends(&mut encoder, &status.services)
    }
}

/// Labels of one series.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

fn family<'a>(
    encoder: &'a mut DescriptorEncoder,
    kind: MetricType,
    name: &'static str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, kind)
}

fn count(family: &mut MetricEncoder, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

fn gauge(family: &mut MetricEncoder, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

fn controller(encoder: &mut DescriptorEncoder, status: &Status) -> fmt::Result {
    let config = &status.config;
    let version: Labels<1> = [("version", &status.controller.version)];
    family(encoder, MetricType::Info, "build", "The program that runs")?.encode_info(&version)?;
    let good = u64::from(config.last_error.is_none());
    let held = config.held.len() as u64;
    let guards = status.controller.guard.len() as u64;
    for (name, help, value) in [
        ("config_last_reload_successful", "1 when the last reload came into force whole", good),
        ("config_generation", "Configurations that came into force", config.generation),
        ("config_held_changes", "Changes that wait for consent", held),
        ("guard_active", "Mass failures that are not believed for now: tables are held", guards),
    ] {
        family(encoder, MetricType::Gauge, name, help)?.encode_gauge(&value)?;
    }
    family(encoder, MetricType::Counter, "config_reloads", "Reloads tried")?
        .encode_counter::<NoLabelSet, u64, u64>(&config.reloads, None)?;
    let mut xdp = family(encoder, MetricType::Info, "xdp", "How the program is attached")?;
    for interface in &status.interfaces {
        let labels: Labels<2> = [("interface", &interface.name), ("mode", &interface.mode.to_string())];
        xdp.encode_info(&labels)?;
    }
    Ok(())
}

fn outcomes(encoder: &mut DescriptorEncoder, status: &Status) -> fmt::Result {
    let mut all = family(encoder, MetricType::Counter, "outcomes", "Packets by what became of them")?;
    for (name, packets) in &status.outcomes.0 {
        let labels: Labels<1> = [("outcome", name)];
        count(&mut all, &labels, *packets)?;
    }
    let mut drops = family(encoder, MetricType::Counter, "drops", "Packets dropped, by reason")?;
    for (name, packets) in &status.outcomes.0 {
        if let Some(reason) = name.strip_prefix("drop_") {
            let labels: Labels<1> = [("reason", reason)];
            count(&mut drops, &labels, *packets)?;
        }
    }
    Ok(())
}

fn flow_table(encoder: &mut DescriptorEncoder, flows: &FlowStatus) -> fmt::Result {
    for (name, help, value) in [
        ("flow_table_entries", "Pins in the flow table", flows.pins),
        ("flow_table_max_entries", "Pins that fit into the flow table", u64::from(flows.limit)),
    ] {
        family(encoder, MetricType::Gauge, name, help)?.encode_gauge(&value)?;
    }
    for (name, help, value) in [
        ("flow_insert_limited", "New pins refused: by the rate, UDP's share or a full table", flows.refused),
        ("flow_table_sweeps", "Whole walks over the flow table", flows.sweeps),
    ] {
        family(encoder, MetricType::Counter, name, help)?
            .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
    }
    if let Some(age) = flows.swept_s {
        let help = "Since the last whole walk began: the age of every count of pins";
        family(encoder, MetricType::Gauge, "flow_table_sweep_age_seconds", help)?.encode_gauge(&age)?;
    }
    Ok(())
}

/// Name, help and value of a family with one series a service.
type OfService = (&'static str, &'static str, fn(&ServiceStatus) -> u64);
/// Name, help and value of a family with one series a backend.
type OfBackend = (&'static str, &'static str, fn(&BackendStatus) -> u64);

const SERVICE_COUNTERS: [OfService; 3] = [
    ("service_packets", "Packets sent to backends", |s| s.packets),
    ("service_bytes", "Bytes sent to backends", |s| s.bytes),
    ("service_connections", "New connections sent to backends", |s| s.connections),
];
const SERVICE_GAUGES: [OfService; 5] = [
    ("service_backends", "Backends in the file", |s| s.backends.len() as u64),
    ("service_healthy_backends", "Backends that may take new connections", |s| u64::from(s.eligible)),
    ("service_leaving_backends", "Backends that left the file and drain", |s| s.leaving.len() as u64),
    ("service_moving_slots", "Slots that keep connections on a previous backend", |s| {
        u64::from(s.moving_slots)
    }),
    ("service_pins", "Flows held to their backend", |s| s.pins),
];
const BACKEND_COUNTERS: [OfBackend; 3] = [
    ("backend_packets", "Packets sent to the backend", |b| b.packets),
    ("backend_bytes", "Bytes sent to the backend", |b| b.bytes),
    ("backend_connections", "New connections sent to the backend", |b| b.connections),
];
const BACKEND_GAUGES: [OfBackend; 4] = [
    ("backend_up", "1 when the probes find it up", |b| u64::from(b.health == Health::Up)),
    ("backend_weight", "Weight in the file", |b| u64::from(b.weight)),
    ("backend_slots", "Slots whose current backend it is", |b| u64::from(b.slots)),
    ("backend_pins", "Flows held to it", |b| b.pins),
];

fn services(encoder: &mut DescriptorEncoder, services: &[ServiceStatus]) -> fmt::Result {
    for (name, help, value) in SERVICE_COUNTERS {
        let mut counter = family(encoder, MetricType::Counter, name, help)?;
        for service in services {
            let labels: Labels<1> = [("service", &service.name)];
            count(&mut counter, &labels, value(service))?;
        }
    }
    for (name, help, value) in SERVICE_GAUGES {
        let mut family = family(encoder, MetricType::Gauge, name, help)?;
        for service in services {
            let labels: Labels<1> = [("service", &service.name)];
            gauge(&mut family, &labels, value(service))?;
        }
    }
    let help = "Checksum of the ring: equal on balancers that choose alike";
    let mut checksums = family(encoder, MetricType::Info, "table_checksum", help)?;
    for service in services {
        let labels: Labels<2> = [("service", &service.name), ("checksum", &service.table_checksum)];
        checksums.encode_info(&labels)?;
    }
    Ok(())
}

fn backends(encoder: &mut DescriptorEncoder, services: &[ServiceStatus]) -> fmt::Result {
    for (name, help, value) in BACKEND_COUNTERS {
        let mut counter = family(encoder, MetricType::Counter, name, help)?;
        for (service, backend) in of_all(services) {
            count(&mut counter, &labels(service, backend), value(backend))?;
        }
    }
    for (name, help, value) in BACKEND_GAUGES {
        let mut family = family(encoder, MetricType::Gauge, name, help)?;
        for (service, backend) in of_all(services) {
            gauge(&mut family, &labels(service, backend), value(backend))?;
        }
    }
    let help = "1 for the administrative state in force, or for leaving: not in the file any more";
    let mut states = family(encoder, MetricType::Gauge, "backend_state", help)?;
    for (service, backend) in of_all(services) {
        let leaving = service.leaving.iter().any(|left| std::ptr::eq(left, backend));
        let mut one = |text, value: bool| {
            let [of_service, of_backend] = labels(service, backend);
            let labels: Labels<3> = [of_service, of_backend, ("state", text)];
            gauge(&mut states, &labels, u64::from(value))
        };
        for (state, text) in STATES {
            one(text, backend.state == state && !leaving)?;
        }
        one("leaving", leaving)?;
    }
    drains(encoder, services)
}

/// Series of those that drain or leave only: a figure of the others would have to be made up.
fn drains(encoder: &mut DescriptorEncoder, services: &[ServiceStatus]) -> fmt::Result {
    type Seconds = fn(&BackendStatus) -> Option<f64>;
    let families: [(&str, &str, Seconds); 2] = [
        ("backend_draining_seconds", "Since its drain began", |b| b.draining_s),
        ("backend_drain_left_seconds", "Until the deadline of its drain", |b| b.drain_left_s),
    ];
    for (name, help, value) in families {
        let mut family = family(encoder, MetricType::Gauge, name, help)?;
        for (service, backend) in of_all(services) {
            if let Some(seconds) = value(backend) {
                family.encode_family(&labels(service, backend))?.encode_gauge(&seconds)?;
            }
        }
    }
    Ok(())
}

const STATES: [(AdminState, &str); 3] =
    [(AdminState::Active, "active"), (AdminState::Drain, "drain"), (AdminState::Disabled, "disabled")];

fn labels<'a>(service: &'a ServiceStatus, backend: &'a BackendStatus) -> Labels<'a, 2> {
    [("service", &service.name), ("backend", &backend.name)]
}

/// Every backend, the leaving ones included; but for those whose name the file has given to another server since:
/// no series may appear twice.
fn of_all(services: &[ServiceStatus]) -> impl Iterator<Item = (&ServiceStatus, &BackendStatus)> {
    services.iter().flat_map(|service| {
        let leaving = service.leaving.iter().enumerate().filter(|&(i, backend)| {
            let earlier = service.backends.iter().chain(&service.leaving[..i]);
            !earlier.into_iter().any(|other| other.name == backend.name)
        });
        service
            .backends
            .iter()
            .chain(leaving.map(|(_, backend)| backend))
            .map(move |backend| (service, backend))
    })
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
