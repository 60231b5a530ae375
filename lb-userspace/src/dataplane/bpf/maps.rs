//! The maps.

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues, xdp::DevMapHash},
};
use lb_common::{
    abi::maps,
    backend::{BACKEND_PRESENT, Backend, BackendStats},
    flow::PinStats,
    outcome::Outcome,
    record::Record,
    slot::Slot,
};
use std::{
    collections::BTreeSet,
    error::Error,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::Ordering,
};

use super::{
    error::{LoadError, chain, errno, load_error},
    services::Services,
    sys,
};
use crate::{
    config::spec::Limits,
    dataplane::{ApplyError, Dataplane, Refused, mmap::SlotMemory},
    plan::tables::{Op, Ring, Tables},
};

/// The kernel's maps. They live as long as this, or as a program that uses them.
pub struct BpfMaps {
    slots: SlotMemory,
    services: Services,
    backends: Array<MapData, Backend>,
    stats: PerCpuArray<MapData, BackendStats>,
    outcomes: PerCpuArray<MapData, u64>,
    devices: DevMapHash<MapData>,
    records: Array<MapData, Record>,
    pins: PerCpuArray<MapData, PinStats>,
    present: BTreeSet<u16>,
    cpus: usize,
}

/// Over all CPUs.
fn sum(of_cpus: &[BackendStats]) -> BackendStats {
    let mut sum = BackendStats::default();
    for cpu in of_cpus {
        sum.packets += cpu.packets;
        sum.bytes += cpu.bytes;
        sum.connections += cpu.connections;
    }
    sum
}

impl BpfMaps {
    /// Counters of so many backends are read all by one system call, not one by one.
    const MANY: usize = 100;

    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, limits: &Limits) -> Result<Self, LoadError> {
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| LoadError::Kernel {
            what: what.into(),
            reason: e.to_string(),
            hint: "",
        })?;
        Ok(Self {
            slots: map_memory(ebpf, maps::RING, "map the slots into memory", |fd| {
                SlotMemory::map(fd, limits.slots)
            })?,
            services: Services::take(ebpf, limits.services)?,
            backends: map(ebpf, maps::BACKENDS)?,
            stats: map(ebpf, maps::BACKEND_STATS)?,
            outcomes: map(ebpf, maps::OUTCOMES)?,
            devices: map(ebpf, maps::DEVICES)?,
            records: map(ebpf, maps::RECORDS)?,
            pins: map(ebpf, maps::PIN_STATS)?,
            present: BTreeSet::new(),
            cpus,
        })
    }

    /// Notes what the maps hold already: which backends, whose counters go on, and which services, and where.
    pub(super) fn note_present(&mut self) -> Result<(), MapError> {
        self.present = self.read_backends()?.into_iter().map(|(id, _)| id).collect();
        self.services.adopt().map_err(MapError::IoError)
    }

    fn read_backends(&self) -> Result<Vec<(u16, Backend)>, MapError> {
        // Not entry by entry: 16,384 system calls take 11 ms.
        let all = sys::read_array(&self.backends, Backend::NONE)?;
        let present = |(_, backend): &(u16, Backend)| backend.flags & BACKEND_PRESENT != 0;
        Ok((0u16..).zip(all).filter(present).collect())
    }

    fn try_apply(&mut self, op: &Op) -> Result<(), String> {
        let text = |e: MapError| chain(&e);
        match op {
            Op::PutDevice(ifindex) => {
                self.devices.insert(*ifindex, *ifindex, None, 0).map_err(|e| chain(&e))?;
            }
            Op::PutRecord(id, record) => self.records.set(u32::from(*id), **record, 0).map_err(text)?,
            Op::DeleteRecord(id) => self.records.set(u32::from(*id), Record::NONE, 0).map_err(text)?,
            Op::PutBackend(id, backend) => {
                if self.present.insert(*id) {
                    self.reset_stats(*id).map_err(text)?;
                }
                self.backends.set(u32::from(*id), backend, 0).map_err(text)?;
            }
            Op::WriteRing(base, ring) => self.store(*base, (0..).zip(ring.iter().copied()))?,
            Op::WriteSlots(base, changes) => self.store(*base, changes.iter().copied())?,
            Op::PutService(key, service) => self.services.put(key, service)?,
            Op::DeleteService(key) => self.services.delete(key),
            Op::ClearRing(base, size) => self.store(*base, (0..*size).map(|i| (i, Slot::EMPTY)))?,
            Op::DeleteBackend(id) => {
                self.backends.set(u32::from(*id), Backend::NONE, 0).map_err(text)?;
                self.present.remove(id);
            }
            Op::DeleteDevice(ifindex) => gone_is_fine(self.devices.remove(*ifindex))?,
        }
        Ok(())
    }

    fn store(&self, base: u32, slots: impl Iterator<Item = (u32, Slot)>) -> Result<(), String> {
        for (index, slot) in slots {
            self.slots.store(base + index, slot.to_word()).ok_or("the slot lies outside of limits.slots")?;
        }
        Ok(())
    }

    fn reset_stats(&mut self, id: u16) -> Result<(), MapError> {
        let zero =
            PerCpuValues::try_from(vec![BackendStats::default(); self.cpus]).map_err(MapError::IoError)?;
        self.stats.set(u32::from(id), zero, 0)
    }

    fn read_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, MapError> {
        let many = (ids.len() >= Self::MANY)
            .then(|| sys::read_per_cpu(&self.stats, self.cpus, BackendStats::default()));
        // Kernels before 5.13 read such maps one by one only.
        if let Some(Ok(all)) = many {
            let of =
                |id: &u16| all.chunks(self.cpus).nth(usize::from(*id)).map_or_else(Default::default, sum);
            return Ok(ids.iter().map(of).collect());
        }
        let read = |id: &u16| Ok(sum(&self.stats.get(&u32::from(*id), 0)?));
        ids.iter().map(read).collect()
    }

    fn read_tables(&self, expected: &Tables) -> Result<Tables, MapError> {
        let mut tables = Tables::default();
        for key in self.devices.keys() {
            tables.devices.insert(key?);
        }
        tables.backends = self.read_backends()?.into_iter().collect();
        let records = sys::read_array(&self.records, Record::NONE).map_err(MapError::IoError)?;
        let records = (0u16..).zip(records).filter(|(_, record)| *record != Record::NONE);
        tables.records = records.map(|(id, record)| (id, record.into())).collect();
        let words = self.slots.words();
        for (base, ring) in &expected.rings {
            let span = *base as usize..*base as usize + ring.len();
            let slots = || words[span.clone()].iter().map(|w| Slot::from_word(w.load(Ordering::Relaxed)));
            // Nothing is copied while nothing differs, and whoever compares then sees that it is the same ring.
            let same = slots().eq(ring.iter().copied());
            tables.rings.insert(*base, if same { Ring::clone(ring) } else { slots().collect() });
        }
        tables.services = self.services.read().map_err(MapError::IoError)?.into_iter().collect();
        Ok(tables)
    }

    fn read_ring(&self, base: u32, size: u32) -> Ring {
        let (from, to) = (base as usize, base as usize + size as usize);
        let words = self.slots.words().get(from..to).unwrap_or_default();
        words.iter().map(|word| Slot::from_word(word.load(Ordering::Relaxed))).collect()
    }
}

impl Dataplane for BpfMaps {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.try_apply(op).map_err(|reason| ApplyError { op: op.to_string(), reason })
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.read_tables(expected).map_err(|e| ApplyError { op: "read the maps".into(), reason: chain(&e) })
    }

    fn adopt(&self) -> Result<Tables, ApplyError> {
        let mut tables = self.snapshot(&Tables::default())?;
        for service in tables.services.values().filter(|service| !service.is_address()) {
            let ring = || self.read_ring(service.ring_base, service.ring_size);
            tables.rings.entry(service.ring_base).or_insert_with(ring);
        }
        Ok(tables)
    }

    fn refused_pins(&self) -> Result<Refused, ApplyError> {
        let stats = self.pins.get(&0, 0);
        let stats =
            stats.map_err(|e| ApplyError { op: "read the count of pins".into(), reason: chain(&e) })?;
        let sum = |sum: Refused, cpu: &PinStats| Refused {
            tcp: sum.tcp + cpu.refused,
            udp: sum.udp + cpu.refused_udp,
        };
        Ok(stats.iter().fold(Refused::default(), sum))
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        self.read_stats(ids)
            .map_err(|e| ApplyError { op: "read the backends' counters".into(), reason: chain(&e) })
    }

    fn outcomes(&self) -> Result<[u64; Outcome::ALL.len()], ApplyError> {
        let mut counts = [0; Outcome::ALL.len()];
        for (index, count) in (0u32..).zip(&mut counts) {
            let per_cpu = self
                .outcomes
                .get(&index, 0)
                .map_err(|e| ApplyError { op: "read the outcomes' counters".into(), reason: chain(&e) })?;
            *count = per_cpu.iter().sum();
        }
        Ok(counts)
    }
}

pub(super) fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, LoadError> {
    let taken = ebpf.take_map(name).expect("the embedded object has the map: lb-ebpf defines it");
    T::try_from(taken).map_err(|e| load_error("open the BPF maps", &e))
}

/// An mmapable array in our memory.
pub(super) fn map_memory<T>(
    ebpf: &mut Ebpf,
    name: &str,
    what: &str,
    map: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> Result<T, LoadError> {
    let Some(Map::Array(array)) = ebpf.take_map(name) else {
        unreachable!("the embedded object has the array: lb-ebpf defines it")
    };
    map(array.fd().as_fd()).map_err(|e| LoadError::Kernel {
        what: what.into(),
        reason: e.to_string(),
        hint: "; BPF_F_MMAPABLE needs Linux 5.5",
    })
}

fn gone_is_fine<E: Error + 'static>(result: Result<(), E>) -> Result<(), String> {
    match result {
        Err(e) if errno(&e) != Some(libc::ENOENT) && !chain(&e).contains("not found") => Err(chain(&e)),
        _ => Ok(()),
    }
}
