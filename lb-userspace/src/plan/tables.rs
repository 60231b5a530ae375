//! The exact contents of the kernel's maps, and the operations that change them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use lb_common::{
    backend::{BACKEND_IPV6, BACKEND_ROUTED, BACKEND_USABLE, Backend},
    record::Record,
    service::{Service, ServiceKey4, ServiceKey6},
    slot::{Slot, SlotState},
};

/// Key of a service entry, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKey {
    /// Of `SERVICES4`.
    V4(ServiceKey4),
    /// Of `SERVICES6`.
    V6(ServiceKey6),
}

impl ServiceKey {
    /// The key of (address, port, protocol). Port 0 is any; port 0 and protocol 0 mark a service address.
    pub fn new(address: IpAddr, port: u16, protocol: u8) -> Self {
        match address {
            IpAddr::V4(a) => Self::V4(ServiceKey4::new(a.octets(), port.to_be_bytes(), protocol)),
            IpAddr::V6(a) => Self::V6(ServiceKey6::new(a.octets(), port.to_be_bytes(), protocol)),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, port, protocol) = match self {
            Self::V4(k) => (IpAddr::from(k.address), k.port, k.protocol),
            Self::V6(k) => (IpAddr::from(k.address), k.port, k.protocol),
        };
        match address {
            IpAddr::V4(a) => write!(f, "{a}")?,
            IpAddr::V6(a) => write!(f, "[{a}]")?,
        }
        match (u16::from_be_bytes(port), protocol) {
            (0, 0) => f.write_str(" (address)"),
            (0, p) => write!(f, ":*/{p}"),
            (port, p) => write!(f, ":{port}/{p}"),
        }
    }
}

/// The slot words of one ring, shared while they do not change.
pub type Ring = Arc<[Slot]>;

/// What the maps hold, or shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// `DEVICES`: interfaces that may be redirected to.
    pub devices: BTreeSet<u32>,
    /// `BACKENDS`, by id.
    pub backends: BTreeMap<u16, Backend>,
    /// `RECORDS`, by id: whose it is. The program does not read it; dumps show those without a backend only.
    pub records: BTreeMap<u16, Arc<Record>>,
    /// `RING`, by first slot. Rings do not overlap.
    pub rings: BTreeMap<u32, Ring>,
    /// `SERVICES4` and `SERVICES6`.
    pub services: BTreeMap<ServiceKey, Service>,
}

impl Tables {
    /// Whether nothing is in any map.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
            && self.backends.is_empty()
            && self.records.is_empty()
            && self.rings.is_empty()
            && self.services.is_empty()
    }
}

/// One operation on the maps. Each is idempotent: it may be repeated after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Allows redirection to an interface.
    PutDevice(u32),
    /// Notes whose a backend id is, and what is known of it.
    PutRecord(u16, Arc<Record>),
    /// Adds a backend or replaces its entry.
    PutBackend(u16, Backend),
    /// Writes a whole ring at its first slot.
    WriteRing(u32, Ring),
    /// Changes some slots of the ring at `base`: (index in the ring, new word).
    WriteSlots(u32, Vec<(u32, Slot)>),
    /// Adds a service or replaces its entry: the commit point.
    PutService(ServiceKey, Service),
    /// From here on its packets pass.
    DeleteService(ServiceKey),
    /// Empties a ring that no service names: (first slot, size).
    ClearRing(u32, u32),
    /// Removes a backend that no slot names.
    DeleteBackend(u16),
    /// The id is nobody's.
    DeleteRecord(u16),
    /// Forbids redirection to an interface.
    DeleteDevice(u32),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutDevice(ifindex) => write!(f, "+ device {ifindex}"),
            Self::PutRecord(id, _) => write!(f, "+ record {id}"),
            Self::DeleteRecord(id) => write!(f, "- record {id}"),
            Self::PutBackend(id, backend) => write!(f, "+ backend {id} {}", Shown(backend)),
            Self::WriteRing(base, ring) => write!(f, "+ ring {base} of {} slots", ring.len()),
            Self::WriteSlots(base, changes) => write!(f, "~ ring {base}: {} slots", changes.len()),
            Self::PutService(key, service) => {
                write!(f, "+ service {key} ring {} of {} slots", service.ring_base, service.ring_size)
            }
            Self::DeleteService(key) => write!(f, "- service {key}"),
            Self::ClearRing(base, size) => write!(f, "- ring {base} of {size} slots"),
            Self::DeleteBackend(id) => write!(f, "- backend {id}"),
            Self::DeleteDevice(ifindex) => write!(f, "- device {ifindex}"),
        }
    }
}

impl Op {
    /// What the operation makes of the maps.
    pub fn apply_to(&self, tables: &mut Tables) {
        match self {
            Self::PutDevice(ifindex) => drop(tables.devices.insert(*ifindex)),
            Self::PutRecord(id, record) => drop(tables.records.insert(*id, record.clone())),
            Self::DeleteRecord(id) => drop(tables.records.remove(id)),
            Self::PutBackend(id, backend) => drop(tables.backends.insert(*id, *backend)),
            Self::WriteRing(base, ring) => drop(tables.rings.insert(*base, Arc::clone(ring))),
            Self::WriteSlots(base, changes) => {
                if let Some(ring) = tables.rings.get_mut(base) {
                    let slots = Arc::make_mut(ring);
                    for (index, slot) in changes {
                        slots[*index as usize] = *slot;
                    }
                }
            }
            Self::PutService(key, service) => drop(tables.services.insert(*key, *service)),
            Self::DeleteService(key) => drop(tables.services.remove(key)),
            Self::ClearRing(base, _) => drop(tables.rings.remove(base)),
            Self::DeleteBackend(id) => drop(tables.backends.remove(id)),
            Self::DeleteDevice(ifindex) => drop(tables.devices.remove(ifindex)),
        }
    }
}

/// A readable dump, one entry a line; rings as slots per backend.
impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "empty");
        }
        for ifindex in &self.devices {
            writeln!(f, "device {ifindex}")?;
        }
        for (id, backend) in &self.backends {
            writeln!(f, "backend {id} {}", Shown(backend))?;
        }
        for id in self.records.keys().filter(|id| !self.backends.contains_key(id)) {
            writeln!(f, "record {id}")?;
        }
        for (base, ring) in &self.rings {
            let mut counts = BTreeMap::new();
            for slot in ring.iter() {
                *counts.entry(ShownSlot(*slot)).or_insert(0u32) += 1;
            }
            let counts: Vec<String> = counts.iter().map(|(slot, n)| format!("{slot}x{n}")).collect();
            writeln!(f, "ring {base} of {}: {}", ring.len(), counts.join(" "))?;
        }
        for (key, s) in &self.services {
            if s.is_address() {
                writeln!(f, "service {key}")?;
            } else {
                writeln!(f, "service {key} forward {} flags {} ring {}", s.forward, s.flags, s.ring_base)?;
            }
        }
        Ok(())
    }
}

/// A slot in a dump: `2` is settled on backend 2, `2p` pinned, `2<1` moving there from 1.
#[derive(PartialEq, Eq)]
struct ShownSlot(Slot);

impl Ord for ShownSlot {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |slot: Slot| (slot.current(), slot.is_moving(), slot.previous(), !slot.is_settled());
        key(self.0).cmp(&key(other.0))
    }
}

impl PartialOrd for ShownSlot {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ShownSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = self.0;
        match slot.state() {
            SlotState::Settled => write!(f, "{}", slot.current()),
            SlotState::Pinned => write!(f, "{}p", slot.current()),
            SlotState::Moving => write!(f, "{}<{}", slot.current(), slot.previous()),
        }
    }
}

struct Shown<'a>(&'a Backend);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = self.0;
        write!(f, "{}", address(backend))?;
        if backend.flags & BACKEND_USABLE == 0 {
            f.write_str(" dead")?;
        }
        if backend.flags & BACKEND_ROUTED == 0 {
            return f.write_str(" no next hop");
        }
        let next_hop = backend.next_hop.map(|octet| format!("{octet:02x}")).join(":");
        write!(f, " via {next_hop} device {}", backend.ifindex)
    }
}

/// The address in a backend's entry.
pub fn address(backend: &Backend) -> IpAddr {
    let [a, b, c, d, ..] = backend.address;
    if backend.flags & BACKEND_IPV6 == 0 { IpAddr::from([a, b, c, d]) } else { IpAddr::from(backend.address) }
}
