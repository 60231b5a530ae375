//! Two tables -> the ordered operations that lead from one to the other. **Make before break**:
//!
//! ```text
//! 1 devices, and backends with a next hop, that are new or differ
//! 2 rings that are new, slots that differ
//! 3 services that are new or differ         <- the commit point
//! 4 services that go
//! 5 rings that no service names any more
//! 6 backends that are without a next hop (from now on), backends and devices that nothing names any more
//! ```
//!
//! Stopped after any operation, every service in the maps has a full ring, and every slot a backend that is present and
//! has a next hop through a device of the maps; or none, where none is eligible. (A ring's place is never given to another
//! ring in the same plan: `SlotSpace` frees it only after the plan is done.)
//!
//! Services come in the order of their keys and go in the reverse: the marker of an address is there before the first
//! service on it, and until after the last.

use super::tables::{Op, Ring, Tables};
use lb_common::{
    backend::{BACKEND_ROUTED, Backend},
    slot::Slot,
};
use std::{collections::BTreeMap, sync::Arc};

/// The operations that turn `applied` into `wanted`.
pub fn diff(applied: &Tables, wanted: &Tables) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(wanted.devices.difference(&applied.devices).map(|d| Op::PutDevice(*d)));
    let (routed, unrouted): (Vec<_>, Vec<_>) =
        changed(&applied.backends, &wanted.backends).partition(is_routed);
    ops.extend(routed.iter().map(|(id, b)| Op::PutBackend(**id, **b)));
    for (base, ring) in &wanted.rings {
        ops.extend(ring_op(*base, applied.rings.get(base), ring));
    }
    ops.extend(changed(&applied.services, &wanted.services).map(|(key, s)| Op::PutService(*key, *s)));
    ops.extend(gone(&applied.services, &wanted.services).rev().map(|(key, _)| Op::DeleteService(*key)));
    ops.extend(
        gone(&applied.rings, &wanted.rings).map(|(base, ring)| Op::ClearRing(*base, ring.len() as u32)),
    );
    ops.extend(unrouted.iter().map(|(id, b)| Op::PutBackend(**id, **b)));
    ops.extend(gone(&applied.backends, &wanted.backends).map(|(id, _)| Op::DeleteBackend(*id)));
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

fn is_routed((_, backend): &(&u16, &Backend)) -> bool {
    backend.flags & BACKEND_ROUTED != 0
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
) -> impl DoubleEndedIterator<Item = (&'a K, &'a V)> {
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
