use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::*;
use crate::api::fake;

/// Checks an exposition line by line; returns its samples: series to value.
fn parse(text: &str, format: Format) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut named, mut family, mut kind) = (BTreeSet::new(), String::new(), String::new());
    let body = match format {
        Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("an EOF at the end"),
        Format::Classic => text,
    };
    let mut lines = body.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(!help.is_empty() && named.insert(name.to_owned()), "{line}");
            let (of, its_kind) =
                lines.next().unwrap().strip_prefix("# TYPE ").unwrap().split_once(' ').unwrap();
            assert_eq!(of, name);
            (family, kind) = (name.to_owned(), its_kind.to_owned());
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let suffix = match (format, kind.as_str()) {
            (Format::OpenMetrics, "counter") => "_total",
            (Format::OpenMetrics, "info") => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{family}{suffix}"), "{line}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    samples
}

fn samples_of(status: Status) -> BTreeMap<String, f64> {
    let status = Arc::new(status);
    let open = parse(&encode(status.clone(), Format::OpenMetrics), Format::OpenMetrics);
    let classic = parse(&encode(status, Format::Classic), Format::Classic);
    assert_eq!(open, classic, "both formats tell the same");
    open
}

#[test]
fn the_series_are_those_of_the_design() {
    let samples = samples_of(fake::status());
    for (series, value) in [
        (r#"xlb_build_info{version="0.1.0"}"#, 1.0),
        ("xlb_config_last_reload_successful", 0.0),
        ("xlb_config_generation", 4.0),
        ("xlb_config_reloads_total", 3.0),
        (r#"xlb_outcomes_total{outcome="pass_not_ours"}"#, 70.0),
        (r#"xlb_drops_total{reason="malformed"}"#, 3.0),
        (r#"xlb_service_connections_total{service="web"}"#, 40.0),
        (r#"xlb_service_backends{service="web"}"#, 3.0),
        (r#"xlb_service_healthy_backends{service="web"}"#, 1.0),
        (r#"xlb_backend_bytes_total{service="web",backend="s1"}"#, 100_000.0),
        (r#"xlb_backend_up{service="web",backend="s2"}"#, 0.0),
        (r#"xlb_backend_state{service="web",backend="s3",state="drain"}"#, 1.0),
        (r#"xlb_backend_state{service="web",backend="s3",state="active"}"#, 0.0),
        (r#"xlb_backend_state{service="web",backend="s3",state="leaving"}"#, 0.0),
        (r#"xlb_backend_state{service="web",backend="s0",state="leaving"}"#, 1.0),
        (r#"xlb_backend_state{service="web",backend="s0",state="active"}"#, 0.0),
        (r#"xlb_backend_pins{service="web",backend="s0"}"#, 12.0),
        (r#"xlb_backend_pins{service="web",backend="s1"}"#, 0.0),
        (r#"xlb_service_pins{service="web"}"#, 1246.0),
        (r#"xlb_service_moving_slots{service="web"}"#, 21.0),
        (r#"xlb_service_leaving_backends{service="web"}"#, 1.0),
        (r#"xlb_backend_draining_seconds{service="web",backend="s3"}"#, 14.0),
        (r#"xlb_backend_drain_left_seconds{service="web",backend="s0"}"#, 12.0),
        ("xlb_flow_table_entries", 1246.0),
        ("xlb_flow_table_max_entries", 1_048_576.0),
        ("xlb_flow_insert_limited_total", 5.0),
        ("xlb_flow_table_sweeps_total", 3600.0),
        ("xlb_flow_table_sweep_age_seconds", 0.75),
        ("xlb_guard_active", 1.0),
        (r#"xlb_table_checksum_info{service="web",checksum="9f86d081884c7d65"}"#, 1.0),
        (r#"xlb_xdp_info{interface="eth1",mode="generic"}"#, 1.0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series}");
    }
    assert!(!samples.keys().any(|series| series.starts_with(r#"xlb_drops_total{reason="not_ours"#)));
}

#[test]
fn what_does_not_drain_has_no_times_of_a_drain() {
    let samples = samples_of(fake::status());
    let times = samples.keys().filter(|series| series.starts_with("xlb_backend_drain"));
    assert_eq!(times.count(), 4, "two of each of s3 and s0");
    let swept = Status { flows: FlowStatus::default(), ..fake::status() };
    assert!(!samples_of(swept).contains_key("xlb_flow_table_sweep_age_seconds"));
}

/// Reasons, details and the guard's texts may hold what a server sent.
#[test]
fn labels_hold_only_what_the_file_and_enums_say() {
    let mut status = fake::status();
    status.controller.guard = vec!["marker".to_owned()];
    status.config.held = vec!["marker".to_owned()];
    status.config.last_error = Some("marker".to_owned());
    for backend in &mut status.services[0].backends {
        (backend.reason, backend.detail) = ("marker".to_owned(), Some("marker".to_owned()));
    }
    let text = encode(Arc::new(status.clone()), Format::Classic);
    assert!(!text.contains("marker"), "{text}");
    // The control: a name from the file would be there.
    status.services[0].name = "marker".to_owned();
    assert!(encode(Arc::new(status), Format::Classic).contains("marker"));
}

#[test]
fn labels_are_escaped() {
    let mut status = fake::status();
    status.interfaces[0].name = "a\"b\\c\nd".to_owned();
    let samples = samples_of(status);
    assert!(samples.contains_key(r#"xlb_xdp_info{interface="a\"b\\c\nd",mode="native"}"#), "{samples:?}");
}

#[test]
fn no_series_appears_twice_when_a_leaving_backend_shares_a_name() {
    let mut status = fake::status();
    let web = &mut status.services[0];
    web.leaving.push(fake::backend("s1", 99));
    web.leaving.push(BackendStatus { packets: 9, ..fake::backend("s0", 98) });
    let samples = samples_of(status);
    let series = r#"xlb_backend_packets_total{service="web",backend="s0"}"#;
    assert_eq!(samples.get(series), Some(&1000.0));
}

#[test]
fn the_format_follows_accept() {
    for (accept, format) in [
        ("", Format::Classic),
        ("*/*", Format::Classic),
        ("text/html", Format::Classic),
        ("application/openmetrics-text", Format::OpenMetrics),
        ("application/openmetrics-text; version=0.0.1", Format::Classic),
        ("application/openmetrics-text;q=0", Format::Classic),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", Format::Classic),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            Format::OpenMetrics,
        ),
    ] {
        assert_eq!(Format::wanted(std::iter::once(accept)), format, "{accept}");
    }
}

#[test]
fn a_thousand_services_are_written_fast() {
    let service = |i: usize| ServiceStatus {
        name: format!("service-{i}"),
        backends: (0..10).map(|b| fake::backend(&format!("backend-{b}"), b)).collect(),
        ..ServiceStatus::default()
    };
    let status = Arc::new(Status { services: (0..1000).map(service).collect(), ..Status::default() });
    let started = Instant::now();
    let text = encode(status, Format::Classic);
    let took = started.elapsed();
    eprintln!("1,000 services x 10 backends: {} KiB in {took:?}", text.len() >> 10);
    // A debug build on a shared machine; 100 ms is asked of a release build.
    assert!(took < Duration::from_secs(5), "{took:?}");
}
