//! Packets per second over one wire: what a core moves from a source through the balancer to a sink.
//!
//! ```text
//!   outside                              balancer
//!   source --> eth0 ===== wire ========> eth0: xlb (XDP)
//!   sink   <-- eth0 <==== wire ========= eth0   XDP_TX
//! ```
//!
//! All of it is XDP, frames never become socket buffers. The source runs on one CPU, and so does everything that it
//! sets off.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::PerCpuArray,
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use lb_lab::{Netns, SERVICE_V4, Xlb, netns::unique, wait_for};

use super::cpu::{Meter, Place, Used, pin};

/// The shortest frame, less its checksum.
const FRAME: [u8; 60] = [0; 60];
/// Frames that the kernel makes at once: less than a veth's queue of 256.
const BATCH: u32 = 64;
/// A controller is ready in so long.
const LONGEST_START: Duration = Duration::from_secs(15);

/// What turns the packets round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancer {
    /// A program that only sends back: source, wire and sink alone.
    Reflector,
    /// `xlb` with this word for `forward`.
    Xlb(&'static str),
}

/// A wire with a sink on it, and sources.
pub struct Wire {
    // Dropped in order: programs and xlb before the namespaces.
    sources: Vec<Source>,
    sink: Ebpf,
    xlb: Option<Xlb>,
    _reflector: Option<Ebpf>,
    outside: Netns,
    _balancer: Netns,
    meter: Meter,
}

/// A source, run from outside.
struct Source {
    ebpf: Ebpf,
    ingress: u32,
}

/// What one run moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// Frames made.
    pub sent: u64,
    /// Frames at the sink.
    pub seen: u64,
    /// How long it took.
    pub took: Duration,
    /// What it cost.
    pub used: Used,
}

impl Wire {
    /// Lays the wire; a source for each number of flows.
    pub fn new(balancer: Balancer, flows: &[u32], objects: &Path, xlb: &Path) -> Result<Self> {
        let group = unique();
        let outside = Netns::create(group, "outside")?;
        let inside = Netns::create(group, "balancer")?;
        outside.ip_batch(&format!(
            "link add eth0 type veth peer name eth0 netns {}\n\
             address add 10.88.0.2/24 dev eth0\naddress add 10.88.0.11/24 dev eth0\n\
             address add 10.88.0.12/24 dev eth0\naddress add 10.88.0.13/24 dev eth0\nlink set eth0 up\n",
            inside.name()
        ))?;
        inside.ip_batch("address add 10.88.0.5/24 dev eth0\nlink set eth0 up\n")?;

        let object = objects.join("traffic");
        let mut sink = load(&object, 1, [0; 12])?;
        outside.run(|| attach(&mut sink, "sink"))??;
        let (mut reflector, mut controller) = (None, None);
        match balancer {
            Balancer::Reflector => {
                let mut ebpf = load(&object, 1, [0; 12])?;
                inside.run(|| attach(&mut ebpf, "reflect"))??;
                reflector = Some(ebpf);
            }
            Balancer::Xlb(forward) => controller = Some(start(xlb, &inside, forward)?),
        }
        let ingress = link(&outside)?;
        let macs = [link(&inside)?.mac, ingress.mac].concat().try_into().unwrap_or_default();
        let source = |&flows: &u32| {
            let mut ebpf = load(&object, flows, macs)?;
            program(&mut ebpf, "generate")?.load().context("load the source")?;
            Ok(Source { ebpf, ingress: ingress.index })
        };
        let sources = flows.iter().map(source).collect::<Result<_>>()?;
        let meter = Meter::new()?;
        Ok(Self { sources, sink, xlb: controller, _reflector: reflector, outside, _balancer: inside, meter })
    }

    /// Sends frames of a source.
    pub fn run(&mut self, source: usize, frames: u32) -> Result<Moved> {
        let before = seen(&self.sink)?;
        let (source, meter) = (&mut self.sources[source], &self.meter);
        let (took, used) = self.outside.run(|| {
            pin(Place::Last)?;
            let start = meter.read()?;
            let clock = std::time::Instant::now();
            source.send(frames)?;
            let took = clock.elapsed();
            Ok::<_, anyhow::Error>((took, meter.read()? - start))
        })??;
        Ok(Moved { sent: frames.into(), seen: seen(&self.sink)? - before, took, used })
    }

    /// Fails unless xlb says that it forwarded as many as there were, to all three backends alike.
    pub fn check(&self, forwarded: u64) -> Result<()> {
        let Some(xlb) = &self.xlb else { return Ok(()) };
        let packets = || -> Option<Vec<u64>> {
            let backends = xlb.status().ok()?.backends("web");
            Some(backends.iter().map(|backend| backend.packets).collect())
        };
        // Its counters are read once a second.
        let settled =
            wait_for(Duration::from_secs(5), || packets().filter(|p| p.iter().sum::<u64>() >= forwarded));
        let packets = settled.or_else(packets).context("ask xlb for its counters")?;
        let fair = packets.iter().all(|&p| p * 4 > forwarded && p * 5 < forwarded * 2);
        ensure!(
            packets.iter().sum::<u64>() == forwarded && fair,
            "xlb says that its backends got {packets:?} of {forwarded}"
        );
        Ok(())
    }
}

impl Source {
    fn send(&mut self, frames: u32) -> Result<()> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, FRAME.len() as u32, 0, self.ingress, 0, 0];
        let ctx: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(&FRAME),
            ctx_in: Some(&ctx),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program(&mut self.ebpf, "generate")?.test_run(options).context("run the source with live frames")?;
        Ok(())
    }
}

/// Loads the object's maps, and sets its source.
fn load(object: &Path, flows: u32, macs: [u8; 12]) -> Result<Ebpf> {
    let [head @ .., a, b, c, d] = macs;
    let (head, tail) = (u64::from_ne_bytes(head), u32::from_ne_bytes([a, b, c, d]));
    let mut loader = EbpfLoader::new();
    loader.override_global("FLOWS", &flows, true);
    loader.override_global("MACS_HEAD", &head, true).override_global("MACS_TAIL", &tail, true);
    loader.load_file(object).with_context(|| format!("load {}", object.display()))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    program.try_into().with_context(|| format!("{name} is no XDP program"))
}

/// Attaches a program to `eth0` of the calling thread's namespace, until its object is dropped.
fn attach(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = program(ebpf, name)?;
    program.load().with_context(|| format!("load {name}"))?;
    program.attach("eth0", XdpMode::Driver).with_context(|| format!("attach {name} to eth0"))?;
    Ok(())
}

/// Frames at the sink so far.
fn seen(sink: &Ebpf) -> Result<u64> {
    let map = sink.map("SEEN").context("no map SEEN")?;
    let values = PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0).context("read the sink's counter")?;
    Ok(values.iter().sum())
}

fn start(binary: &Path, netns: &Netns, forward: &str) -> Result<Xlb> {
    let mut xlb = Xlb::new(binary, netns.handle(), None, &[])?;
    let text = format!(
        "interfaces: [eth0]
admin: {{listen: off}}
services:
  - name: web
    listen: [\"{SERVICE_V4}:80/tcp\"]
    forward: {forward}
    health: {{type: none}}
    backends: [{{address: 10.88.0.11}}, {{address: 10.88.0.12}}, {{address: 10.88.0.13}}]
"
    );
    fs::write(xlb.config_path(), text).context("write the configuration")?;
    xlb.start()?;
    xlb.wait_ready(LONGEST_START)?;
    let in_use = |xlb: &Xlb| xlb.status().ok().filter(|s| s.backends("web").iter().all(|b| b.slots > 0));
    if wait_for(LONGEST_START, || in_use(&xlb)).is_none() {
        bail!("xlb does not use all backends; its log:\n{}", xlb.last_log(40));
    }
    Ok(xlb)
}

/// `eth0` of a namespace.
struct Link {
    index: u32,
    mac: [u8; 6],
}

fn link(netns: &Netns) -> Result<Link> {
    netns.run(|| {
        use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None).context("open a socket")?;
        let index = name_to_index(&any, "eth0").context("find eth0")?;
        Ok(Link { index, mac: mac(netns.name())? })
    })?
}

/// The MAC of `eth0` in the namespace of this name. (`/sys` shows the outer one's interfaces.)
fn mac(netns: &str) -> Result<[u8; 6]> {
    let arguments = ["-netns", netns, "-json", "link", "show", "eth0"];
    let output = std::process::Command::new("ip").args(arguments).output().context("run ip")?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).context("read what ip says")?;
    let text = links[0]["address"].as_str().context("eth0 has no address")?;
    let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    <[u8; 6]>::try_from(bytes).map_err(|_| anyhow::anyhow!("not a MAC address: {text}"))
}
