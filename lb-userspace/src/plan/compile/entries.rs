//! Map entries of services and backends.

use std::net::IpAddr;

use lb_common::{
    backend::{BACKEND_IPV6, BACKEND_PRESENT, BACKEND_ROUTED, BACKEND_USABLE, Backend},
    checksum, hash,
    service::{
        FORWARD_IPIP, FORWARD_L2, SERVICE_HASH_CLIENT, SERVICE_REJECT, SERVICE_TRACK_ALWAYS,
        SERVICE_TRACK_NEVER, Service,
    },
};

use super::Knowledge;
use crate::{
    config::spec::{Forward, HashMode, OnAllDown, Ports, ServiceSpec, Tracking},
    plan::{rings::Placed, tables::ServiceKey},
};

/// TTL of outer IPv4 headers.
const OUTER_TTL: u8 = 64;

/// The map entry of a service at one of its keys; `hash_key` is the seed's.
pub(super) fn value(service: &ServiceSpec, hash_key: u64, placed: &Placed, key: &ServiceKey) -> Service {
    let flags = [
        (service.hash == HashMode::Client, SERVICE_HASH_CLIENT),
        (service.tracking == Tracking::Always, SERVICE_TRACK_ALWAYS),
        (service.tracking == Tracking::Never, SERVICE_TRACK_NEVER),
        (service.on_all_down == OnAllDown::Reject, SERVICE_REJECT),
    ];
    Service {
        hash_key: match key {
            ServiceKey::V4(key) => hash::service4(hash_key, key.address, key.protocol),
            ServiceKey::V6(key) => hash::service6(hash_key, key.address, key.protocol),
        },
        ring_base: placed.base,
        ring_size: placed.size,
        forward: match service.forward {
            Forward::L2 => FORWARD_L2,
            Forward::Ipip => FORWARD_IPIP,
        },
        flags: flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum(),
        reserved: [0; 6],
    }
}

/// How many keys the fuller map of services holds.
pub fn most_of_a_family<'a>(keys: impl Iterator<Item = &'a ServiceKey>) -> usize {
    let [mut v4, mut v6] = [0, 0];
    for key in keys {
        match key {
            ServiceKey::V4(_) => v4 += 1,
            ServiceKey::V6(_) => v6 += 1,
        }
    }
    v4.max(v6)
}

/// The keys that a service answers on, without the markers of its addresses.
pub(super) fn keys(service: &ServiceSpec) -> impl Iterator<Item = ServiceKey> + '_ {
    service.listen.iter().flat_map(|listen| {
        let (first, last) = match listen.ports {
            Ports::Any => (0, 0),
            Ports::Range(first, last) => (first, last),
        };
        (first..=last).map(|port| ServiceKey::new(listen.address, port, listen.protocol.number()))
    })
}

/// The map entry of a backend.
pub(super) fn entry(address: IpAddr, knowledge: &Knowledge) -> Backend {
    let mut backend = Backend { flags: BACKEND_PRESENT, ..Backend::NONE };
    store(&mut backend.address, address);
    if address.is_ipv6() {
        backend.flags |= BACKEND_IPV6;
    }
    if knowledge.is_usable {
        backend.flags |= BACKEND_USABLE;
    }
    if let Some(route) = knowledge.route {
        backend.flags |= BACKEND_ROUTED;
        backend.ifindex = route.ifindex;
        backend.next_hop = route.next_hop;
        backend.own = route.own;
        store(&mut backend.outer_source, route.outer_source);
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = (route.outer_source, address) {
            backend.outer_sum = checksum::outer_header4(OUTER_TTL, source.octets(), destination.octets());
        }
    }
    backend
}

fn store(field: &mut [u8; 16], address: IpAddr) {
    match address {
        IpAddr::V4(a) => field[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => *field = a.octets(),
    }
}
