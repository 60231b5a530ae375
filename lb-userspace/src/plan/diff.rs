//! Two tables -> the ordered operations that lead from one to the other. **Make before break**:
//!
//! ```text
//! 1 devices and backends that are new or differ
//! 2 rings that are new, slots that differ
//! 3 services that are new or differ         <- the commit point
//! 4 services that go
//! 5 rings that no service names any more
//! 6 backends and devices that nothing names any more
//! ```
//!
//! Stopped after any operation, every service in the maps has a full ring and every slot a present backend, or none
//! where none is eligible. (A ring's place is never given to another ring in the same plan: `SlotSpace` frees it
//! only after the plan is done.)

use super::tables::{Op, Ring, ServiceKey, Tables};
use lb_common::slot::Slot;
use std::{collections::BTreeMap, sync::Arc};

/// The operations that turn `applied` into `wanted`.
pub fn diff(applied: &Tables, wanted: &Tables) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(wanted.devices.difference(&applied.devices).map(|d| Op::PutDevice(*d)));
    ops.extend(changed(&applied.backends, &wanted.backends).map(|(id, b)| Op::PutBackend(*id, *b)));
    for (base, ring) in &wanted.rings {
        ops.extend(ring_op(*base, applied.rings.get(base), ring));
    }
    ops.extend(changed(&applied.services, &wanted.services).map(|(key, s)| Op::PutService(*key, *s)));
    ops.extend(
        gone(&applied.services, &wanted.services).map(|(key, _): (&ServiceKey, _)| Op::DeleteService(*key)),
    );
    ops.extend(
        gone(&applied.rings, &wanted.rings).map(|(base, ring)| Op::ClearRing(*base, ring.len() as u32)),
    );
    ops.extend(gone(&applied.backends, &wanted.backends).map(|(id, _)| Op::DeleteBackend(*id)));
    ops.extend(applied.devices.difference(&wanted.devices).map(|d| Op::DeleteDevice(*d)));
    ops
}

fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value))
}

fn gone<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    old.iter().filter(|(key, _)| !new.contains_key(key))
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
