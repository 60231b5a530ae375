//! Two tables -> the ordered operations that lead from one to the other. **Make before break**:
//!
//! ```text
//! 1 records, devices and backends that are new or differ, but for those of 6
//! 2 rings that are new, slots that differ
//! 3 services that are new or differ         <- the commit point
//! 4 services that go
//! 5 rings that no service names any more
//! 6 backends that lose their next hop or are dead from now on; backends, records and devices that nothing names any
//!   more
//! ```
//!
//! Stopped after any operation, every service in the maps has a full ring, and every slot a backend that is present and
//! has a next hop through a device of the maps; or none, where none is eligible. A moving slot's previous backend is not
//! dead. (A ring's place is never given to another ring in the same plan: `SlotSpace` frees it only after the plan is done.)
//!
//! Services come in the order of their keys and go in the reverse: the marker of an address is there before the first
//! service on it, and until after the last.

use super::tables::{Op, Ring, Tables};
use lb_common::{
    backend::{BACKEND_ROUTED, BACKEND_USABLE, Backend},
    slot::Slot,
};
use std::{collections::BTreeMap, sync::Arc};

/// The operations that turn `applied` into `wanted`.
pub fn diff(applied: &Tables, wanted: &Tables) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(changed(&applied.records, &wanted.records).map(|(id, r)| Op::PutRecord(*id, r.clone())));
    ops.extend(wanted.devices.difference(&applied.devices).map(|d| Op::PutDevice(*d)));
    let (losing, others): (Vec<_>, Vec<_>) = changed(&applied.backends, &wanted.backends)
        .partition(|(id, backend)| applied.backends.get(id).is_some_and(|old| loses(old, backend)));
    ops.extend(others.iter().map(|(id, b)| Op::PutBackend(**id, **b)));
    for (base, ring) in &wanted.rings {
        ops.extend(ring_op(*base, applied.rings.get(base), ring));
    }
    ops.extend(changed(&applied.services, &wanted.services).map(|(key, s)| Op::PutService(*key, *s)));
    let services: Vec<_> = gone(&applied.services, &wanted.services).collect();
    ops.extend(services.iter().rev().map(|(key, _)| Op::DeleteService(**key)));
    ops.extend(
        gone(&applied.rings, &wanted.rings).map(|(base, ring)| Op::ClearRing(*base, ring.len() as u32)),
    );
    ops.extend(losing.iter().map(|(id, b)| Op::PutBackend(**id, **b)));
    ops.extend(gone(&applied.backends, &wanted.backends).map(|(id, _)| Op::DeleteBackend(*id)));
    ops.extend(gone(&applied.records, &wanted.records).map(|(id, _)| Op::DeleteRecord(*id)));
    ops.extend(applied.devices.difference(&wanted.devices).map(|d| Op::DeleteDevice(*d)));
    ops
}

/// The same operations, with the services that go before those that come: for a map too full to hold both for a
/// moment. Between the two, ports that move from one listen to another (`*` to `80`) are not served.
pub fn services_go_first(mut ops: Vec<Op>) -> Vec<Op> {
    let is_service = |op: &Op| matches!(op, Op::PutService(..) | Op::DeleteService(_));
    let Some(first) = ops.iter().position(is_service) else { return ops };
    let count = ops[first..].iter().take_while(|op| is_service(op)).count();
    ops[first..first + count].sort_by_key(|op| !matches!(op, Op::DeleteService(_)));
    ops
}

/// Slots that name the backend have to leave it first. (No slot names one that is dead.)
fn loses(old: &Backend, new: &Backend) -> bool {
    let lost = old.flags & !new.flags;
    old.flags & BACKEND_USABLE != 0 && lost & (BACKEND_USABLE | BACKEND_ROUTED) != 0
}

/// Both in one pass: tables are long, and differ little.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let mut old = old.iter().peekable();
    new.iter().filter(move |(key, value)| {
        while old.next_if(|(old, _)| old < key).is_some() {}
        old.next_if(|(old, _)| old == key).is_none_or(|(_, old)| old != *value)
    })
}

fn gone<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let mut new = new.keys().peekable();
    old.iter().filter(move |(key, _)| {
        while new.next_if(|new| new < key).is_some() {}
        new.next_if(|new| new == key).is_none()
    })
}

fn ring_op(base: u32, old: Option<&Ring>, new: &Ring) -> Option<Op> {
    let Some(old) = old.filter(|old| old.len() == new.len()) else {
        return Some(Op::WriteRing(base, Arc::clone(new)));
    };
    if Arc::ptr_eq(old, new) {
        return None;
    }
    let changes: Vec<(u32, Slot)> = (0..)
        .zip(old.iter().zip(new.iter()))
        .filter(|(_, (o, n))| o != n)
        .map(|(i, (_, n))| (i, *n))
        .collect();
    (!changes.is_empty()).then_some(Op::WriteSlots(base, changes))
}

#[cfg(test)]
mod tests {
    use lb_common::{
        backend::BACKEND_PRESENT,
        record::Record,
        service::{FORWARD_L2, Service},
    };

    use super::*;
    use crate::plan::tables::ServiceKey;

    fn backend(flags: u32) -> Backend {
        Backend { flags: BACKEND_PRESENT | BACKEND_USABLE | flags, ifindex: 2, ..Backend::NONE }
    }

    fn key(port: u16) -> ServiceKey {
        ServiceKey::new([192, 0, 2, 10].into(), port, if port == 0 { 0 } else { 6 })
    }

    /// One service on `port` with a ring at `base` all of whose slots are backend `id`'s.
    fn tables(port: u16, base: u32, size: u32, id: u16) -> Tables {
        let service = Service { ring_base: base, ring_size: size, forward: FORWARD_L2, ..Service::ADDRESS };
        Tables {
            devices: [2].into(),
            backends: [(id, backend(BACKEND_ROUTED))].into(),
            rings: [(base, vec![Slot::settled(id); size as usize].into())].into(),
            records: [(id, Arc::new(Record::NONE))].into(),
            services: [(key(0), Service::ADDRESS), (key(port), service)].into(),
        }
    }

    fn shown(ops: &[Op]) -> Vec<String> {
        ops.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn makes_before_it_breaks() {
        let ops = diff(&tables(80, 0, 5, 1), &tables(443, 5, 7, 2));
        assert_eq!(
            shown(&ops),
            [
                "+ record 2",
                "+ backend 2 0.0.0.0 via 00:00:00:00:00:00 device 2",
                "+ ring 5 of 7 slots",
                "+ service 192.0.2.10:443/6 ring 5 of 7 slots",
                "- service 192.0.2.10:80/6",
                "- ring 0 of 5 slots",
                "- backend 1",
                "- record 1",
            ]
        );
        let ops = shown(&services_go_first(ops));
        assert_eq!(ops[3..5], ["- service 192.0.2.10:80/6", "+ service 192.0.2.10:443/6 ring 5 of 7 slots"]);
        assert_eq!(services_go_first(vec![Op::PutDevice(1)]), [Op::PutDevice(1)]);
    }

    #[test]
    fn markers_come_first_and_go_last() {
        let full = tables(80, 0, 5, 1);
        let positions = |ops: &[Op]| {
            let at = |wanted: ServiceKey| {
                let is = |op: &Op| matches!(op, Op::PutService(k, _) | Op::DeleteService(k) if *k == wanted);
                ops.iter().position(is).expect("it is among them")
            };
            (at(key(0)), at(key(80)))
        };
        let (marker, service) = positions(&diff(&Tables::default(), &full));
        assert!(marker < service);
        let (marker, service) = positions(&diff(&full, &Tables::default()));
        assert!(marker > service);
    }

    #[test]
    fn slots_leave_a_backend_before_it_loses_its_next_hop() {
        let old = tables(80, 0, 5, 1);
        let mut new = old.clone();
        new.backends.insert(1, backend(0));
        new.rings.insert(0, vec![Slot::EMPTY; 5].into());
        assert_eq!(shown(&diff(&old, &new)), ["~ ring 0: 5 slots", "+ backend 1 0.0.0.0 no next hop"]);
        assert_eq!(
            shown(&diff(&new, &old)),
            ["+ backend 1 0.0.0.0 via 00:00:00:00:00:00 device 2", "~ ring 0: 5 slots"]
        );
    }

    #[test]
    fn only_slots_that_differ_are_written() {
        let old = tables(80, 0, 5, 1);
        let mut new = old.clone();
        let mut slots = old.rings[&0].to_vec();
        slots[3] = Slot::EMPTY;
        new.rings.insert(0, slots.into());
        assert_eq!(diff(&old, &new), [Op::WriteSlots(0, vec![(3, Slot::EMPTY)])]);
        new.rings.insert(0, old.rings[&0].to_vec().into());
        assert_eq!(diff(&old, &new), [], "equal, though not the same");
    }
}
