//! What must hold of the maps at every moment, and a dataplane that looks after every operation.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use lb_common::{
    backend::{BACKEND_PRESENT, BACKEND_ROUTED, BACKEND_USABLE, Backend, BackendStats},
    outcome::Outcome,
};
use lb_userspace::{
    dataplane::{ApplyError, Dataplane, Refused, memory::Memory},
    plan::tables::{Op, Ring, Tables},
};

/// Everything that a packet could meet now and must not; empty is good.
pub fn violations(tables: &Tables) -> Vec<String> {
    let mut found = Vec::new();
    for (key, service) in tables.services.iter().filter(|(_, s)| !s.is_address()) {
        match tables.rings.get(&service.ring_base) {
            None => found.push(format!("{key} names ring {}, which is not there", service.ring_base)),
            Some(ring) if ring.len() != service.ring_size as usize => found.push(format!(
                "{key} has {} slots and its ring {} has {}",
                service.ring_size,
                service.ring_base,
                ring.len()
            )),
            Some(_) => {}
        }
    }
    let mut end = 0;
    for (base, ring) in &tables.rings {
        if *base < end {
            found.push(format!("ring {base} begins within the ring before it"));
        }
        end = base + ring.len() as u32;
        found.extend(ring_violations(tables, *base, ring));
    }
    let nameless = tables.backends.keys().filter(|id| !tables.records.contains_key(id));
    found.extend(nameless.map(|id| format!("backend {id} has no record")));
    found
}

/// Each backend is complained of once.
fn ring_violations(tables: &Tables, base: u32, ring: &Ring) -> Vec<String> {
    let distinct = |mut ids: Vec<u16>| {
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| *id != 0);
        ids
    };
    let current = distinct(ring.iter().map(|slot| slot.current()).collect());
    let previous = distinct(ring.iter().filter(|s| s.is_moving()).map(|slot| slot.previous()).collect());
    let present = |id: u16| -> Result<&Backend, String> {
        let backend = tables.backends.get(&id).filter(|b| b.flags & BACKEND_PRESENT != 0);
        backend.ok_or_else(|| format!("ring {base} names backend {id}, which is not there"))
    };
    let complaint_of_previous = |id: u16| match present(id) {
        Err(missing) => Some(missing),
        Ok(backend) if backend.flags & BACKEND_USABLE == 0 => {
            Some(format!("ring {base} moves away from backend {id}, which is dead"))
        }
        Ok(_) => None,
    };
    let complaint = |id: u16| {
        let backend = match present(id) {
            Err(missing) => return Some(missing),
            Ok(backend) => backend,
        };
        if backend.flags & BACKEND_ROUTED == 0 {
            return Some(format!("ring {base} names backend {id}, which has no next hop"));
        }
        let ifindex = backend.ifindex;
        (!tables.devices.contains(&ifindex))
            .then(|| format!("ring {base} names backend {id} behind device {ifindex}, which is not there"))
    };
    let of_previous = previous.into_iter().filter_map(complaint_of_previous);
    current.into_iter().filter_map(complaint).chain(of_previous).collect()
}

/// Maps in memory that are checked after every operation, and that refuse one operation if they are told to.
#[derive(Clone)]
pub struct Watched {
    /// The maps.
    pub memory: Memory,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    /// What was done.
    done: Vec<Op>,
    violations: Vec<String>,
    /// How many operations are still done before one is refused.
    refuse_after: Option<usize>,
    /// New pins that were refused so far.
    refused_pins: u64,
    /// Packets sent, by backend id: one more with each operation, as traffic does.
    sent: BTreeMap<u16, u64>,
}

impl Watched {
    /// Around these maps.
    pub fn new(memory: Memory) -> Self {
        Self { memory, log: Arc::default() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("nothing panics while it has the log")
    }

    /// Lets so many operations pass and refuses the next one.
    pub fn refuse_after(&self, operations: usize) {
        self.log().refuse_after = Some(operations);
    }

    /// Whether that operation has yet to come.
    pub fn is_refusing(&self) -> bool {
        self.log().refuse_after.is_some()
    }

    /// The operations done since the last call.
    pub fn take_done(&self) -> Vec<Op> {
        std::mem::take(&mut self.log().done)
    }

    /// A new pin is refused.
    pub fn refuse_pin(&self) {
        self.log().refused_pins += 1;
    }

    /// Everything that was wrong after some operation since the last call.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.log().violations)
    }
}

impl Dataplane for Watched {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        // A clone is the same maps.
        let mut memory = self.memory.clone();
        let mut log = self.log();
        match &mut log.refuse_after {
            Some(0) => {
                log.refuse_after = None;
                return Err(ApplyError { op: op.to_string(), reason: "refused by the test".into() });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let is_new = |id: &u16| !memory.tables().backends.contains_key(id);
        let new = if let Op::PutBackend(id, _) = op { Some(*id).filter(is_new) } else { None };
        memory.apply(op)?;
        // As the kernel's counters: they begin with an entry and stay when it goes.
        log.sent.extend(new.map(|id| (id, 0)));
        for id in memory.tables().backends.keys() {
            *log.sent.entry(*id).or_default() += 1;
        }
        log.done.push(op.clone());
        log.violations
            .extend(violations(&memory.tables()).iter().map(|found| format!("after `{op}`: {found}")));
        Ok(())
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.memory.snapshot(expected)
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        self.memory.adopt()
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        Ok(Refused { tcp: self.log().refused_pins, udp: 0 })
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        let sent = &self.log().sent;
        let packets = |id| sent.get(id).copied().unwrap_or_default();
        Ok(ids.iter().map(|id| BackendStats { packets: packets(id), ..Default::default() }).collect())
    }

    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError> {
        self.memory.outcomes()
    }
}
