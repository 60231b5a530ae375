//! Single cases; random ones: `tests/plan_properties`.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use lb_common::{
    backend::{BACKEND_IPV6, BACKEND_PRESENT, BACKEND_ROUTED, BACKEND_USABLE, Backend},
    service::{FORWARD_IPIP, SERVICE_REJECT},
};

use super::*;
use crate::{
    config::{parse, spec::AdminState},
    health::{Health, Reason},
    plan::{records::Note, tables::Tables},
};

fn spec(listen: &str, ring_size: u32, limits: Limits) -> Spec {
    let text = format!(
        "interfaces: [eth0]\nservices:\n- name: web\n  listen: [{listen}]\n  forward: ipip\n  ring_size: {ring_size}\n  \
         backends: [{{name: s1, address: 10.0.0.11}}, {{name: s2, weight: 300, address: fd00::12}}]\n"
    );
    Spec { limits, ..parse(&text, Path::new("test.yaml")).expect("valid").spec }
}

fn known(_: &ServiceSpec, backend: &BackendSpec) -> Knowledge {
    let outer_source = match backend.address {
        IpAddr::V4(_) => [10, 0, 0, 1].into(),
        IpAddr::V6(_) => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
    };
    let route = Route { ifindex: 2, next_hop: [2, 0, 0, 0, 0, 9], own: [2, 0, 0, 0, 0, 1], outer_source };
    Knowledge {
        takes_new: backend.state == AdminState::Active,
        is_usable: true,
        drain_is_over: false,
        is_last_resort: true,
        route: Some(route),
        note: Note { health: Health::Up, cause: Reason::None, word: None, drain_since: None, leaving: false },
    }
}

fn compile(
    compiler: &mut Compiler,
    spec: &Spec,
    known: &dyn Fn(&ServiceSpec, &BackendSpec) -> Knowledge,
    now: Instant,
) -> Result<Compiled, CapacityError> {
    compiler.compile(&Input {
        spec,
        devices: BTreeSet::from([2]),
        known,
        leaving: &|_| Vec::new(),
        refused_at: None,
        is_warm: true,
        young: Duration::ZERO,
        now,
    })
}

fn compiler(limits: &Limits) -> Compiler {
    Compiler::new(limits, Clock { instant: Instant::now(), monotonic_ns: 1 << 40 })
}

const ONE: &str = "'192.0.2.10:80/tcp'";

#[test]
fn entries_hold_what_outer_headers_need() {
    let spec = spec(ONE, 251, Limits::default());
    let compiled = compile(&mut compiler(&spec.limits), &spec, &known, Instant::now()).expect("it fits");
    let backends: Vec<Backend> = compiled.tables.backends.values().copied().collect();
    assert_eq!(backends[0].flags, BACKEND_PRESENT | BACKEND_ROUTED | BACKEND_USABLE);
    assert_eq!(backends[0].outer_source[..4], [10, 0, 0, 1]);
    assert_ne!(backends[0].outer_sum, 0);
    assert_eq!(backends[1].flags, BACKEND_PRESENT | BACKEND_ROUTED | BACKEND_IPV6 | BACKEND_USABLE);
    assert_eq!(backends[1].outer_sum, 0, "IPv6 has no header checksum");
    let service = compiled.tables.services[&ServiceKey::new([192, 0, 2, 10].into(), 80, 6)];
    assert_eq!((service.forward, service.flags), (FORWARD_IPIP, SERVICE_REJECT));
}

#[test]
fn shares_follow_weights_of_the_eligible() {
    let spec = spec(ONE, 251, Limits::default());
    let mut compiler = compiler(&spec.limits);
    let both = compile(&mut compiler, &spec, &known, Instant::now()).expect("it fits");
    let shares = |compiled: &Compiled| -> Vec<(bool, f64, u32)> {
        compiled.services[0].backends.iter().map(|b| (b.eligible, b.wanted_share, b.slots)).collect()
    };
    assert_eq!(shares(&both), [(true, 0.25, 63), (true, 0.75, 188)]);
    let one = |s: &ServiceSpec, b: &BackendSpec| Knowledge { takes_new: &*b.name == "s1", ..known(s, b) };
    let one = compile(&mut compiler, &spec, &one, Instant::now()).expect("it fits");
    assert_eq!(shares(&one), [(true, 1.0, 251), (false, 0.0, 0)]);
    let none = |s: &ServiceSpec, b: &BackendSpec| Knowledge { route: None, ..known(s, b) };
    let none = compile(&mut compiler, &spec, &none, Instant::now()).expect("it fits");
    assert_eq!(shares(&none), [(false, 0.0, 0), (false, 0.0, 0)]);
}

/// Places and ids that are no longer used are used again: there is room for two rings and five ids only.
#[test]
fn nothing_leaks() {
    let limits = Limits { slots: 251 + 241, backends: 6, ..Limits::default() };
    let mut compiler = compiler(&limits);
    let mut now = Instant::now();
    for round in 0..100 {
        let mut spec = spec(ONE, if round % 2 == 0 { 251 } else { 241 }, limits);
        spec.services[0].backends[0].address = [10, 0, 1, round].into();
        let compiled = compile(&mut compiler, &spec, &known, now).unwrap_or_else(|e| panic!("{round}: {e}"));
        compiler.settle(&compiled.tables, now);
        now += Duration::from_secs(20);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_a_remedy() {
    let refusal = |limits: Limits| {
        let spec = spec("'[2001:db8::10]:80/tcp', '192.0.2.10:80-82/tcp'", 251, limits);
        compile(&mut compiler(&limits), &spec, &known, Instant::now()).map(drop).map_err(|e| e.to_string())
    };
    let fitting = Limits { services: 4, backends: 3, slots: 251, flows: 1 };
    assert_eq!(
        refusal(fitting),
        Ok(()),
        "three ports and the address's marker; the other family has its own map"
    );
    let error = refusal(Limits { services: 3, ..fitting }).expect_err("four do not fit");
    assert!(
        error.contains("need 4 entries") && error.contains("`limits.services` is 3; raise it"),
        "{error}"
    );
    let error = refusal(Limits { backends: 2, ..fitting }).expect_err("id 0 is none");
    assert!(error.contains("all 1 backend ids"), "{error}");
    let error = refusal(Limits { slots: 250, ..fitting }).expect_err("251 do not fit");
    assert!(error.contains("no 251 free slots"), "{error}");
}

#[test]
fn a_ring_that_does_not_change_is_not_built_again() {
    let spec = spec(ONE, 251, Limits::default());
    let mut compiler = compiler(&spec.limits);
    let ring = |compiled: &Compiled| Arc::clone(&compiled.tables.rings[&0]);
    let first = compile(&mut compiler, &spec, &known, Instant::now()).expect("it fits");
    let again = compile(&mut compiler, &spec, &known, Instant::now()).expect("it fits");
    assert!(Arc::ptr_eq(&ring(&first), &ring(&again)));
    compiler.settle(&Tables::default(), Instant::now());
    let anew = compile(&mut compiler, &spec, &known, Instant::now()).expect("it fits");
    assert!(!Arc::ptr_eq(&ring(&first), &ring(&anew)), "forgotten with the tables");
    assert_eq!(first.services[0].checksum(), anew.services[0].checksum());
}
