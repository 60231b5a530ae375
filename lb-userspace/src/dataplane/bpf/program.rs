//! The program: loaded, attached, run on single packets.

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{self, maps},
    lookup,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use super::{
    adopt::{self, OwnMap},
    error::{AttachError, LoadError, PinError, chain, errno, load_error},
    link::Link,
    maps::BpfMaps,
    pins::PinDir,
    shape,
    sweep::SweepParts,
};
use crate::{
    config::spec::{Limits, XdpMode as Wanted},
    dataplane::objects,
    net::{AttachedMode, LinkInfo},
};

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

/// The data path, ready to be filled and attached.
pub struct Opened {
    /// The maps.
    pub maps: BpfMaps,
    /// The program that uses them.
    pub program: BpfProgram,
    /// An earlier controller left maps (all or some) and they are these: they hold its tables and counters.
    pub adopted: bool,
}

/// The loaded program. Dropping it leaves what is pinned as it is; see [`Self::remove`].
pub struct BpfProgram {
    ebpf: Ebpf,
    /// The kernel's id of the program.
    pub(super) id: u32,
    /// `None`: nothing is pinned, and all ends with this value.
    pub(super) pins: Option<PinDir>,
    /// By interface.
    pub(super) links: BTreeMap<String, Held>,
    /// To be pinned again.
    pub(super) maps: Vec<OwnMap>,
    /// What last kept [`Self::check`] from mending, so that it is said once.
    pub(super) unmended: Option<String>,
    sweep: Option<SweepParts>,
}

/// A link that we hold.
pub(super) struct Held {
    pub link: Link,
    /// Where it is; `None`: an earlier controller's, which has not been taken over yet.
    pub ifindex: Option<u32>,
}

/// Loads the program with maps of these sizes, without pins: all of it ends with the process. Nothing is attached yet.
pub fn load(limits: &Limits) -> Result<(BpfMaps, BpfProgram), LoadError> {
    raise_memlock();
    load_object(objects::balancer()?, limits, None)
}

/// Loads the program with the pinned maps of an earlier controller, or makes and pins new ones. What is attached goes
/// on with the program that it has, until [`BpfProgram::attach`] puts this one in its place. A failure leaves what
/// was there before.
pub fn open(limits: &Limits, pins: PinDir) -> Result<Opened, LoadError> {
    raise_memlock();
    let object = objects::balancer()?;
    pins.finish()?;
    let adopted = adopt::adopt(object, limits, &pins)?;
    match open_pinned(object, limits, &pins, adopted) {
        Ok((maps, mut program)) => {
            program.pins = Some(pins);
            Ok(Opened { maps, program, adopted })
        }
        Err(error) => {
            if !adopted && let Err(also) = pins.remove() {
                tracing::warn!("{}", chain(&also));
            }
            Err(error)
        }
    }
}

fn open_pinned(
    object: &[u8],
    limits: &Limits,
    pins: &PinDir,
    adopted: bool,
) -> Result<(BpfMaps, BpfProgram), LoadError> {
    let (mut maps, mut program) = load_object(object, limits, Some(pins))?;
    if adopted {
        maps.note_present().map_err(|e| load_error("read the pinned maps", &e))?;
    }
    program.maps = adopt::pinned_maps(pins)?;
    pins.put(program.fd(), &pins.program())?;
    for (interface, link) in pins.links()? {
        program.links.insert(interface, Held { link, ifindex: None });
    }
    Ok((maps, program))
}

fn load_object(
    object: &[u8],
    limits: &Limits,
    pins: Option<&PinDir>,
) -> Result<(BpfMaps, BpfProgram), LoadError> {
    let line_bits = lookup::line_bits(limits.services);
    let mut loader = EbpfLoader::new();
    loader.override_global(abi::LINE_BITS, &line_bits, true);
    for size in shape::sizes(limits) {
        loader.map_max_entries(size.map, size.entries());
    }
    if let Some(pins) = pins {
        for name in maps::ALL {
            loader.map_pin_path(name, pins.maps().join(name));
        }
    }
    let mut ebpf = loader.load(object).map_err(|e| load_error("create the BPF maps", &e))?;
    program(&mut ebpf).load().map_err(|e| load_error("load the XDP program", &e))?;
    let info = program(&mut ebpf).info().map_err(|e| load_error("look at the XDP program", &e))?;
    // Before the controller's maps leave the object.
    let sweep = Some(SweepParts::take(&mut ebpf, limits.slots, limits.flows)?);
    let maps = BpfMaps::take(&mut ebpf, limits)?;
    let (id, links) = (info.id(), BTreeMap::new());
    Ok((maps, BpfProgram { ebpf, id, pins: None, links, maps: Vec::new(), unmended: None, sweep }))
}

impl BpfProgram {
    /// Attaches the program to an interface; `Auto` tries the driver first and says why when it had to go without. A
    /// pinned link of an earlier controller is taken over: the program is replaced without a gap.
    pub fn attach(&mut self, link: &LinkInfo, mode: Wanted) -> Result<Attached, AttachError> {
        if let Some(held) = self.links.get_mut(&link.name) {
            if let Some(native) = taken_over(held, program_fd(&self.ebpf).as_fd(), link, mode) {
                return Ok(Attached { native, note: None });
            }
            self.detach(&link.name);
        }
        match mode {
            Wanted::Native => self.attach_as(link, true).map(|()| native()),
            Wanted::Generic => self.attach_as(link, false).map(|()| Attached { native: false, note: None }),
            Wanted::Auto => match self.attach_as(link, true) {
                Ok(()) => Ok(native()),
                Err(AttachError::Refused(why)) => {
                    self.attach_as(link, false)?;
                    Ok(Attached { native: false, note: Some(format!("native XDP: {why}")) })
                }
                Err(other) => Err(other),
            },
        }
    }

    fn attach_as(&mut self, to: &LinkInfo, native: bool) -> Result<(), AttachError> {
        let link = Link::create(program_fd(&self.ebpf).as_fd(), to.ifindex, native)
            .map_err(|e| self.refusal(&e, to))?;
        if let Some(pins) = &self.pins
            && let Err(error) = pins.put(link.as_fd(), &pins.link(&to.name))
        {
            // What cannot be pinned would not outlive us.
            drop(link);
            return Err(error.into());
        }
        self.links.insert(to.name.clone(), Held { link, ifindex: Some(to.ifindex) });
        Ok(())
    }

    fn refusal(&self, error: &io::Error, to: &LinkInfo) -> AttachError {
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => {
                let other = self.pins.as_ref().and_then(|pins| pins.other_layout_of(&to.name));
                other.map_or(AttachError::Taken, AttachError::OtherLayout)
            }
            Some(libc::EPERM | libc::EACCES) => AttachError::Permission,
            Some(libc::ENODEV) => AttachError::NoInterface,
            // The kernel says so about an interface that is not there, too.
            Some(libc::EINVAL) if !is_there(to.ifindex) => AttachError::NoInterface,
            _ => AttachError::Refused(error.to_string()),
        }
    }

    /// What the sweeper needs; there is one sweeper.
    pub fn take_sweep_parts(&mut self) -> Option<SweepParts> {
        self.sweep.take()
    }

    /// Takes the program off an interface, and its pin away.
    pub fn detach(&mut self, interface: &str) {
        if let Some(held) = self.links.remove(interface) {
            // What can fail here is that the interface is gone, and the program with it.
            let _ = held.link.detach();
        }
        if let Some(pins) = &self.pins
            && let Err(error) = pins.remove_link(interface)
        {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// The interfaces whose links are held, also those of an earlier controller that were not taken over.
    pub fn held(&self) -> Vec<String> {
        self.links.keys().cloned().collect()
    }

    /// The programs that run through the links held: this one, and those of an earlier controller.
    pub fn running(&self) -> BTreeSet<u32> {
        self.links.values().filter_map(|held| Some(held.link.state().ok()?.program)).collect()
    }

    /// Takes the program off all interfaces and removes the pins.
    pub fn remove(&mut self) -> Result<(), PinError> {
        for held in std::mem::take(&mut self.links).into_values() {
            let _ = held.link.detach();
        }
        self.pins.as_ref().map_or(Ok(()), PinDir::remove)
    }

    /// The program's file descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        program_fd(&self.ebpf).as_fd()
    }

    /// The program as an array of programs takes it: who measures it calls it from another one.
    pub fn program_fd(&self) -> &ProgramFd {
        program_fd(&self.ebpf)
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
}

fn native() -> Attached {
    Attached { native: true, note: None }
}

/// Puts the program into a link of an earlier controller, if that is on this very interface and in a mode that will
/// do. Answers whether the mode is native.
fn taken_over(held: &mut Held, program: BorrowedFd<'_>, to: &LinkInfo, mode: Wanted) -> Option<bool> {
    let state = held.link.state().ok().filter(|state| state.ifindex == to.ifindex)?;
    // An index says little: the link may be in another network namespace. What runs here is told by the interface.
    let here = to.xdp.iter().find(|xdp| xdp.program_id == state.program)?;
    let native = match (mode, here.mode) {
        (Wanted::Auto | Wanted::Native, AttachedMode::Native) => true,
        (Wanted::Auto | Wanted::Generic, AttachedMode::Generic) => false,
        _ => return None,
    };
    held.link.update(program).ok()?;
    held.ifindex = Some(to.ifindex);
    Some(native)
}

fn is_there(ifindex: u32) -> bool {
    use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};
    // Without an answer it is taken to be there.
    let ask = || index_to_name(socket(AddressFamily::UNIX, SocketType::DGRAM, None)?, ifindex);
    !matches!(ask(), Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO))
}

fn program_fd(ebpf: &Ebpf) -> &ProgramFd {
    ebpf.program(abi::PROGRAM)
        .and_then(|program| program.fd().ok())
        .expect("the program is loaded before its file descriptor is asked for")
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut(abi::PROGRAM)
        .and_then(|program| program.try_into().ok())
        .expect("the embedded object has the XDP program: lb-ebpf defines it")
}

/// Kernels before 5.11 charge maps against this limit. It may be refused, and later kernels do not need it.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}
