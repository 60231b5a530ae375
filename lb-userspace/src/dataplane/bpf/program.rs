//! The program: loaded, attached, run on single packets.

use aya::{
    Ebpf, EbpfLoader,
    programs::{TestRun as _, TestRunOptions, Xdp, XdpMode, xdp::XdpLinkId},
};
use lb_common::abi::{self, maps};
use std::{collections::BTreeMap, io};

use super::{
    error::{AttachError, LoadError, chain, errno, load_error},
    maps::BpfMaps,
    sweep::SweepParts,
};
use crate::{
    config::spec::{Limits, XdpMode as Wanted},
    dataplane::objects,
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

/// The loaded program. Dropping it takes it off the interfaces.
pub struct BpfProgram {
    ebpf: Ebpf,
    links: BTreeMap<u32, XdpLinkId>,
    sweep: Option<SweepParts>,
}

/// Loads the program with maps of these sizes. Nothing is attached yet.
pub fn load(limits: &Limits) -> Result<(BpfMaps, BpfProgram), LoadError> {
    raise_memlock();
    let mut ebpf = EbpfLoader::new()
        .map_max_entries(maps::SERVICES4, limits.services)
        .map_max_entries(maps::SERVICES6, limits.services)
        .map_max_entries(maps::RING, limits.slots.div_ceil(2))
        .map_max_entries(maps::BACKENDS, limits.backends)
        .map_max_entries(maps::BACKEND_STATS, limits.backends)
        .map_max_entries(maps::RECORDS, limits.backends)
        .map_max_entries(maps::FLOWS, limits.flows)
        .load(objects::balancer()?)
        .map_err(|e| load_error("create the BPF maps", &e))?;
    program(&mut ebpf).load().map_err(|e| load_error("load the XDP program", &e))?;
    // Before the controller's maps leave the object.
    let sweep = Some(SweepParts::take(&mut ebpf, limits.slots, limits.flows)?);
    let maps = BpfMaps::take(&mut ebpf, limits.slots)?;
    Ok((maps, BpfProgram { ebpf, links: BTreeMap::new(), sweep }))
}

impl BpfProgram {
    /// Attaches the program to an interface; `Auto` tries the driver first and says why when it had to go without.
    pub fn attach(&mut self, ifindex: u32, mode: Wanted) -> Result<Attached, AttachError> {
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
            let _ = program(&mut self.ebpf).take_link(link).map(aya::programs::Link::detach);
        }
    }

    /// What the sweeper needs; there is one sweeper.
    pub fn take_sweep_parts(&mut self) -> Option<SweepParts> {
        self.sweep.take()
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
