//! The driver, see `lb-ebpf/src/bench`: runs a program on a stream of packets, and says what a packet cost.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    stream::{Family, Stream},
    traffic::Traffic,
};

// SAFETY: `repr(C)`, without padding: its size is asserted; every bit pattern is valid.
unsafe impl aya::Pod for Traffic {}

/// The programs in the object, all loaded.
const PROGRAMS: [&str; 5] = ["drive4", "drive6", STUB, FLOOR, PARSING_FLOOR];
/// Returns `XDP_TX`.
pub const STUB: &str = "stub";
/// Encapsulates with constants.
pub const FLOOR: &str = "floor";
/// The same behind the balancer's parser.
pub const PARSING_FLOOR: &str = "parsing_floor";

/// See the module.
pub struct Driver {
    ebpf: Ebpf,
    traffic: Array<MapData, Traffic>,
    slot: ProgramArray<MapData>,
}

/// What a run did.
pub struct Run {
    /// Time of a packet, driver included.
    pub ns: f64,
    /// What the program said about the last packet.
    pub action: u32,
    /// The last packet afterwards.
    pub frame: Vec<u8>,
}

impl Driver {
    /// Loads the object `bench` from this directory.
    pub fn load(objects: &Path) -> Result<Self> {
        let path = objects.join("bench");
        let mut ebpf = EbpfLoader::new()
            .load_file(&path)
            .with_context(|| format!("load {}, which `cargo xtask build` makes", path.display()))?;
        for name in PROGRAMS {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("load the program {name}"))?;
        }
        let traffic = Array::try_from(ebpf.take_map("TRAFFIC").context("no map TRAFFIC")?)?;
        let slot = ProgramArray::try_from(ebpf.take_map("SLOT").context("no map SLOT")?)?;
        Ok(Self { ebpf, traffic, slot })
    }

    /// The next runs measure this program.
    pub fn put(&mut self, program: &ProgramFd) -> Result<()> {
        Ok(self.slot.set(0, program, 0)?)
    }

    /// The next runs measure this program of the driver's object.
    pub fn put_own(&mut self, name: &str) -> Result<()> {
        let program = xdp(&mut self.ebpf, name)?.fd()?.try_clone()?;
        self.put(&program)
    }

    /// Runs the program in the slot on the first `repeat` packets of a stream.
    pub fn run(&mut self, stream: &Stream, repeat: u32) -> Result<Run> {
        self.traffic.set(0, stream.traffic(), 0)?;
        let frame = stream.packet(0);
        let mut out = vec![0; frame.len() + 256];
        let driver = xdp(&mut self.ebpf, if stream.family == Family::V4 { "drive4" } else { "drive6" })?;
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let start = cpu_time();
        let result = driver.test_run(options)?;
        let took = cpu_time().saturating_sub(start);
        out.truncate(result.data_size_out as usize);
        let packets = self.traffic.get(&0, 0)?.packets;
        ensure!(packets == u64::from(repeat), "the driver sent {packets} packets instead of {repeat}");
        Ok(Run { ns: took.as_nanos() as f64 / f64::from(repeat), action: result.return_value, frame: out })
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// What this thread has had of its CPU.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
