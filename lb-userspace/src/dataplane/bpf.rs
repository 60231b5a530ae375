//! The kernel: the one file of the controller that knows aya.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, xdp::DevMapHash},
    programs::{Link as _, TestRun as _, TestRunOptions, Xdp, XdpMode, xdp::XdpLinkId},
};
use lb_common::{
    abi::{self, maps},
    backend::{BACKEND_PRESENT, Backend, BackendStats},
    outcome::Outcome,
    service::{Service, ServiceKey4, ServiceKey6},
    slot::Slot,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    os::fd::AsFd as _,
    sync::atomic::Ordering,
};

use super::{ApplyError, Dataplane, mmap::SlotMemory, objects};
use crate::{
    config::spec::Limits,
    plan::tables::{Op, ServiceKey, Tables},
};

/// The program and its maps could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No object in this binary.
    #[error(transparent)]
    NotBuilt(#[from] objects::NotBuilt),
    /// The kernel does not let this process.
    #[error("{0}: permission denied; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission(String),
    /// The kernel lacks something, or refuses.
    #[error("{what}: {reason}{hint}")]
    Kernel {
        /// Verb and object.
        what: String,
        /// The kernel's word for it.
        reason: String,
        /// What may mend it.
        hint: &'static str,
    },
}

/// The program could not be attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Another program has the interface's XDP slot.
    #[error(
        "its XDP slot is taken by another program; detach that one first (`ip link set dev NAME xdp off`)"
    )]
    Taken,
    /// The kernel does not let this process.
    #[error("permission denied; run as root, or with CAP_BPF and CAP_NET_ADMIN")]
    Permission,
    /// It is not there.
    #[error("there is no such interface")]
    NoInterface,
    /// The driver or the kernel cannot.
    #[error("{0}")]
    Refused(String),
}

/// How the program came to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// In the driver; else in the network stack.
    pub native: bool,
    /// Why not in the driver, where that was tried.
    pub note: Option<String>,
}

/// What the program did with one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRun {
    /// The XDP action.
    pub action: u32,
    /// The packet afterwards.
    pub frame: Vec<u8>,
}

/// The loaded program and its maps. Dropping it detaches and frees them.
pub struct Bpf {
    ebpf: Ebpf,
    links: BTreeMap<u32, XdpLinkId>,
    slots: SlotMemory,
    services4: HashMap<MapData, ServiceKey4, Service>,
    services6: HashMap<MapData, ServiceKey6, Service>,
    backends: Array<MapData, Backend>,
    stats: PerCpuArray<MapData, BackendStats>,
    outcomes: PerCpuArray<MapData, u64>,
    devices: DevMapHash<MapData>,
    present: BTreeSet<u16>,
    cpus: usize,
}

impl Bpf {
    /// Loads the program with maps of these sizes. Nothing is attached yet.
    pub fn load(limits: &Limits) -> Result<Self, LoadError> {
        raise_memlock();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(maps::SERVICES4, limits.services)
            .map_max_entries(maps::SERVICES6, limits.services)
            .map_max_entries(maps::RING, limits.slots)
            .map_max_entries(maps::BACKENDS, limits.backends)
            .map_max_entries(maps::BACKEND_STATS, limits.backends)
            .load(objects::balancer()?)
            .map_err(|e| load_error("create the BPF maps", &e))?;
        program(&mut ebpf).load().map_err(|e| load_error("load the XDP program", &e))?;
        let slots = map_slots(&mut ebpf, limits.slots)?;
        Ok(Self {
            links: BTreeMap::new(),
            slots,
            services4: map(&mut ebpf, maps::SERVICES4)?,
            services6: map(&mut ebpf, maps::SERVICES6)?,
            backends: map(&mut ebpf, maps::BACKENDS)?,
            stats: map(&mut ebpf, maps::BACKEND_STATS)?,
            outcomes: map(&mut ebpf, maps::OUTCOMES)?,
            devices: map(&mut ebpf, maps::DEVICES)?,
            present: BTreeSet::new(),
            cpus: aya::util::nr_cpus().map_err(|(what, e)| LoadError::Kernel {
                what: what.into(),
                reason: e.to_string(),
                hint: "",
            })?,
            ebpf,
        })
    }

    /// Attaches the program to an interface; `Auto` tries the driver first and says why when it had to go without.
    pub fn attach(
        &mut self,
        ifindex: u32,
        mode: crate::config::spec::XdpMode,
    ) -> Result<Attached, AttachError> {
        use crate::config::spec::XdpMode as Wanted;
        match mode {
            Wanted::Native => self.attach_as(ifindex, XdpMode::Driver).map(|()| native()),
            Wanted::Generic => {
                self.attach_as(ifindex, XdpMode::Skb).map(|()| Attached { native: false, note: None })
            }
            Wanted::Auto => match self.attach_as(ifindex, XdpMode::Driver) {
                Ok(()) => Ok(native()),
                Err(AttachError::Refused(why)) => {
                    self.attach_as(ifindex, XdpMode::Skb)?;
                    Ok(Attached { native: false, note: Some(format!("native XDP: {why}")) })
                }
                Err(other) => Err(other),
            },
        }
    }

    fn attach_as(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), AttachError> {
        let link =
            program(&mut self.ebpf).attach_to_if_index(ifindex, mode).map_err(|e| match errno(&e) {
                Some(libc::EBUSY | libc::EEXIST) => AttachError::Taken,
                Some(libc::EPERM | libc::EACCES) => AttachError::Permission,
                Some(libc::ENODEV) => AttachError::NoInterface,
                _ => AttachError::Refused(chain(&e)),
            })?;
        self.links.insert(ifindex, link);
        Ok(())
    }

    /// Takes the program off an interface.
    pub fn detach(&mut self, ifindex: u32) {
        if let Some(link) = self.links.remove(&ifindex) {
            // What can fail here is that the interface is gone, and the program with it.
            let _ = program(&mut self.ebpf).take_link(link).map(|link| link.detach());
        }
    }

    /// Runs the program on a packet that came in by `ingress` (an interface the program is attached to), or by `lo`.
    pub fn run_packet(&mut self, frame: &[u8], ingress: Option<u32>) -> io::Result<PacketRun> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, frame.len() as u32, 0, ingress.unwrap_or(0), 0, 0];
        let ctx: Vec<u8> = words.iter().flat_map(|w: &u32| w.to_ne_bytes()).collect();
        // Filled, so that bytes that the program should have written and did not are seen.
        let mut out = vec![0xa5; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: ingress.map(|_| &ctx[..]),
            ..TestRunOptions::default()
        };
        let result = program(&mut self.ebpf).test_run(options).map_err(|e| {
            errno(&e).map_or_else(|| io::Error::other(chain(&e)), io::Error::from_raw_os_error)
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(PacketRun { action: result.return_value, frame: out })
    }

    fn try_apply(&mut self, op: &Op) -> Result<(), String> {
        let text = |e: MapError| chain(&e);
        match op {
            Op::PutDevice(ifindex) => {
                self.devices.insert(*ifindex, *ifindex, None, 0).map_err(|e| chain(&e))?;
            }
            Op::PutBackend(id, backend) => {
                if self.present.insert(*id) {
                    self.reset_stats(*id).map_err(text)?;
                }
                self.backends.set(u32::from(*id), backend, 0).map_err(text)?;
            }
            Op::WriteRing(base, ring) => self.store(*base, (0..).zip(ring.iter().copied()))?,
            Op::WriteSlots(base, changes) => self.store(*base, changes.iter().copied())?,
            Op::PutService(ServiceKey::V4(key), service) => {
                self.services4.insert(key, service, 0).map_err(text)?
            }
            Op::PutService(ServiceKey::V6(key), service) => {
                self.services6.insert(key, service, 0).map_err(text)?
            }
            Op::DeleteService(ServiceKey::V4(key)) => gone_is_fine(self.services4.remove(key))?,
            Op::DeleteService(ServiceKey::V6(key)) => gone_is_fine(self.services6.remove(key))?,
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

    fn sum_stats(&self, id: u16) -> Result<BackendStats, MapError> {
        let mut sum = BackendStats::default();
        for cpu in self.stats.get(&u32::from(id), 0)?.iter() {
            sum.packets += cpu.packets;
            sum.bytes += cpu.bytes;
            sum.connections += cpu.connections;
        }
        Ok(sum)
    }

    fn read_tables(&self, expected: &Tables) -> Result<Tables, MapError> {
        let mut tables = Tables::default();
        for key in self.devices.keys() {
            tables.devices.insert(key?);
        }
        for (id, backend) in (0u16..).zip(self.backends.iter()) {
            let backend = backend?;
            if backend.flags & BACKEND_PRESENT != 0 {
                tables.backends.insert(id, backend);
            }
        }
        let words = self.slots.words();
        for (base, ring) in &expected.rings {
            let span = *base as usize..*base as usize + ring.len();
            let slots = words[span].iter().map(|w| Slot::from_word(w.load(Ordering::Relaxed)));
            tables.rings.insert(*base, slots.collect());
        }
        for entry in self.services4.iter() {
            let (key, service) = entry?;
            tables.services.insert(ServiceKey::V4(key), service);
        }
        for entry in self.services6.iter() {
            let (key, service) = entry?;
            tables.services.insert(ServiceKey::V6(key), service);
        }
        Ok(tables)
    }
}

impl Dataplane for Bpf {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.try_apply(op).map_err(|reason| ApplyError { op: op.to_string(), reason })
    }

    fn snapshot(&self, expected: &Tables) -> Result<Tables, ApplyError> {
        self.read_tables(expected).map_err(|e| ApplyError { op: "read the maps".into(), reason: chain(&e) })
    }

    fn backend_stats(&self, ids: &[u16]) -> Result<Vec<BackendStats>, ApplyError> {
        let read = |id: &u16| self.sum_stats(*id);
        ids.iter()
            .map(read)
            .collect::<Result<_, _>>()
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

fn native() -> Attached {
    Attached { native: true, note: None }
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut(abi::PROGRAM)
        .and_then(|program| program.try_into().ok())
        .expect("the embedded object has the XDP program: lb-ebpf defines it")
}

fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, LoadError> {
    let taken = ebpf.take_map(name).expect("the embedded object has the map: lb-ebpf defines it");
    T::try_from(taken).map_err(|e| load_error("open the BPF maps", &e))
}

fn map_slots(ebpf: &mut Ebpf, slots: u32) -> Result<SlotMemory, LoadError> {
    let Some(Map::Array(ring)) = ebpf.take_map(maps::RING) else {
        unreachable!("the embedded object has the array of slots: lb-ebpf defines it")
    };
    SlotMemory::map(ring.fd().as_fd(), slots).map_err(|e| LoadError::Kernel {
        what: "map the slots into memory".into(),
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

fn load_error(what: &str, error: &(dyn Error + 'static)) -> LoadError {
    let what = what.to_owned();
    match errno(error) {
        Some(libc::EPERM | libc::EACCES) if !chain(error).contains("Verifier output: ") => {
            LoadError::Permission(what)
        }
        Some(libc::EPERM) => LoadError::Permission(what),
        Some(libc::ENOSYS) => LoadError::Kernel {
            what,
            reason: chain(error),
            hint: "; this kernel has no BPF (CONFIG_BPF_SYSCALL)",
        },
        Some(libc::EINVAL) => {
            LoadError::Kernel { what, reason: chain(error), hint: "; xlb needs Linux 5.18 or later" }
        }
        _ => LoadError::Kernel { what, reason: chain(error), hint: "" },
    }
}

/// The error number at the bottom of an error.
fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

/// An error with all its causes, each once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Kernels before 5.11 charge maps against this limit. It may be refused, and later kernels do not need it.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}
