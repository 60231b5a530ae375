//! The sweeper: a thread of its own that walks the flow table when it is asked to. What it decides is
//! [`crate::flows`]'s; here are the map, the program that deletes, the clock and the thread.

use aya::{
    Ebpf,
    maps::{HashMap, IterableMap as _, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::Xdp,
};
use lb_common::{
    abi::{SWEEP_PROGRAM, maps},
    flow::{FlowKey, Pin, SweepItem},
    slot::Slot,
};
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    error::{LoadError, chain, load_error},
    maps::map,
    walk::{BatchReader, run},
};
use crate::{
    dataplane::mmap::{SlotMemory, SweepMemory},
    flows::{SweepResult, SweepView, Walk, udp_room},
};

/// Pins read by one system call. A kernel without preemption lets nobody else on the core meanwhile: a quarter of a
/// millisecond.
const READ_BATCH: usize = 1024;
/// Of the sweeper's thread: the controller goes first where they share a core.
const NICE: i32 = 10;

/// What a walk needs of the kernel, apart from the maps that the controller writes.
pub struct SweepParts {
    flows: HashMap<MapData, FlowKey, Pin>,
    slots: SlotMemory,
    udp_room: PerCpuArray<MapData, u64>,
    reader: BatchReader<FlowKey, Pin>,
    eraser: Eraser,
}

/// The kernel's half: deletes pins that have not changed.
struct Eraser {
    program: OwnedFd,
    items: SweepMemory,
}

/// A walk that failed. What it had deleted is gone; the next walk counts anew.
#[derive(Debug, thiserror::Error)]
#[error("walk the flow table: {what}: {reason}")]
pub struct SweepError {
    what: &'static str,
    reason: String,
}

/// Asks for walks. Dropping it ends the thread.
pub struct SweepHandle {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

/// Of the walks asked for, one each.
pub type SweepResults = UnboundedReceiver<Result<SweepResult, SweepError>>;

impl SweepParts {
    /// Loads the sweeping program, and takes what a walk needs out of a loaded object. `slots` and `flows` are of `limits`.
    pub(super) fn take(ebpf: &mut Ebpf, slots: u32, flows: u32) -> Result<Self, LoadError> {
        let failed = |e: io::Error| load_error("open the maps for the sweeper", &e);
        let program: &mut Xdp = ebpf
            .program_mut(SWEEP_PROGRAM)
            .and_then(|program| program.try_into().ok())
            .expect("the embedded object has the sweeping program: lb-ebpf defines it");
        program.load().map_err(|e| load_error("load the sweeping program", &e))?;
        let fd = program.fd().map_err(|e| load_error("load the sweeping program", &e))?;
        let program = fd.as_fd().try_clone_to_owned().map_err(failed)?;
        let fd = |name| array_fd(ebpf, name).map_err(failed);
        let (ring, items) = (fd(maps::RING)?, fd(maps::SWEEP)?);
        let mut parts = Self {
            flows: map(ebpf, maps::FLOWS)?,
            slots: SlotMemory::map(ring.as_fd(), slots).map_err(failed)?,
            udp_room: map(ebpf, maps::UDP_ROOM)?,
            reader: BatchReader::new(READ_BATCH, FlowKey::new([0; 16], [0; 16], [0; 4], 0), Pin::default()),
            eraser: Eraser { program, items: SweepMemory::map(items.as_fd()).map_err(failed)? },
        };
        // UDP need not wait for the first walk.
        parts
            .set_udp_room(u64::from(flows / 2), 0, &[])
            .map_err(|e| load_error("open the flow table to UDP", &e))?;
        Ok(parts)
    }

    /// Starts the sweeper's thread. It does nothing until it is asked.
    pub fn spawn(self) -> io::Result<(SweepHandle, SweepResults)> {
        let mailbox = Arc::new(Mailbox::default());
        let (results, receiver) = unbounded_channel();
        let theirs = Arc::clone(&mailbox);
        let thread =
            thread::Builder::new().name("sweeper".into()).spawn(move || serve(self, &theirs, &results))?;
        Ok((SweepHandle { mailbox, thread: Some(thread) }, receiver))
    }

    /// Walks once, here and now; `None` if a stop was asked for meanwhile.
    pub fn walk(
        &mut self,
        view: SweepView,
        is_stopped: impl Fn() -> bool,
    ) -> Result<Option<SweepResult>, SweepError> {
        let udp_limit = view.udp_limit;
        let room_before = self.udp_room()?;
        let mut walk = Walk::new(view, Instant::now());
        let mut cursor = None;
        loop {
            if is_stopped() {
                return Ok(None);
            }
            // Read before the pins: none looks older than it is.
            let now_ns = monotonic_ns();
            let words = self.slots.words();
            let slot_at = |index: u32| {
                let word = words.get(index as usize).map_or(0, |word| word.load(Ordering::Relaxed));
                Slot::from_word(word)
            };
            let read = self.reader.read(self.flows.map().fd().as_fd(), cursor);
            let (pins, next) = read.map_err(|e| SweepError::new("read the pins", &e))?;
            for (key, pin) in pins {
                walk.look(key, pin, slot_at, now_ns);
                if walk.is_full() {
                    self.eraser.delete_candidates(&mut walk)?;
                }
            }
            self.eraser.delete_candidates(&mut walk)?;
            if next.is_none() {
                break;
            }
            cursor = next;
        }
        let result = walk.finish(Instant::now());
        self.set_udp_room(udp_limit, result.udp, &room_before)?;
        Ok(Some(result))
    }

    /// Deletes those pins that are as the items say, of the first `SWEEP_BATCH`; answers what became of each
    /// ([`SweepItem::done`]), and how long the program ran.
    pub fn delete(&mut self, items: &[SweepItem]) -> Result<(Vec<u32>, Duration), SweepError> {
        self.eraser.delete(items)
    }

    /// The flow table.
    pub fn flows(&self) -> BorrowedFd<'_> {
        self.flows.map().fd().as_fd()
    }

    /// UDP pins that each CPU may make until the next walk.
    pub fn udp_room(&self) -> Result<Vec<u64>, SweepError> {
        let room = self.udp_room.get(&0, 0);
        room.map(|room| room.to_vec()).map_err(|e| SweepError::new("read UDP's room", &e))
    }

    /// Gives UDP what is left of its share. What the CPUs used up during the walk counts as pins that it missed.
    fn set_udp_room(&mut self, limit: u64, udp: u64, before: &[u64]) -> Result<(), SweepError> {
        let now = self.udp_room()?;
        let made = before.iter().zip(&now).map(|(before, now)| before.saturating_sub(*now)).sum();
        let cpus = aya::util::online_cpus().map_or(now.len(), |cpus| cpus.len());
        let room = vec![udp_room(limit, udp, made, cpus as u64); now.len()];
        PerCpuValues::try_from(room)
            .map_err(MapError::IoError)
            .and_then(|room| self.udp_room.set(0, room, 0))
            .map_err(|e| SweepError::new("set UDP's room", &e))
    }
}

impl Eraser {
    fn delete(&mut self, items: &[SweepItem]) -> Result<(Vec<u32>, Duration), SweepError> {
        let count = self.items.write(items);
        // As long as a frame has to be.
        let mut frame = [0; 64];
        frame[..4].copy_from_slice(&count.to_ne_bytes());
        let (_, took) =
            run(self.program.as_fd(), &frame).map_err(|e| SweepError::new("run the sweeping program", &e))?;
        Ok((self.items.done(count).collect(), took))
    }

    fn delete_candidates(&mut self, walk: &mut Walk) -> Result<(), SweepError> {
        if walk.candidates().is_empty() {
            return Ok(());
        }
        let (done, took) = self.delete(walk.candidates())?;
        walk.done(done, took);
        Ok(())
    }
}

/// The thread.
fn serve(
    mut parts: SweepParts,
    mailbox: &Mailbox,
    results: &UnboundedSender<Result<SweepResult, SweepError>>,
) {
    // On Linux this is the thread's alone. Without it the sweeper works as well, only less politely.
    let _ = rustix::process::setpriority_process(None, NICE);
    // The table was empty, and no pin can have been made since.
    let mut is_empty = false;
    while let Some(view) = mailbox.next() {
        let is_quiet = !view.needs_walk;
        let result = if is_quiet && is_empty {
            let now = Instant::now();
            Ok(Some(Walk::new(view, now).finish(now)))
        } else {
            parts.walk(view, || mailbox.lock().is_closed)
        };
        is_empty = is_quiet && matches!(&result, Ok(Some(found)) if found.left == 0);
        let Some(result) = result.transpose() else { return };
        if results.send(result).is_err() {
            return;
        }
    }
}

impl SweepHandle {
    /// Asks for a walk with this view. One that was asked for and has not begun gives way to this one.
    pub fn request(&self, view: SweepView) {
        self.mailbox.lock().view = Some(view);
        self.mailbox.changed.notify_one();
    }
}

impl Drop for SweepHandle {
    fn drop(&mut self) {
        self.mailbox.lock().is_closed = true;
        self.mailbox.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panicked: that was reported when it did.
            let _ = thread.join();
        }
    }
}

/// The walk that is wanted: one at most.
#[derive(Default)]
struct Mailbox {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    view: Option<SweepView>,
    is_closed: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a view; `None`: no more will come.
    fn next(&self) -> Option<SweepView> {
        let wait = |wanted: &mut Wanted| wanted.view.is_none() && !wanted.is_closed;
        let mut wanted = self.changed.wait_while(self.lock(), wait).unwrap_or_else(PoisonError::into_inner);
        if wanted.is_closed { None } else { wanted.view.take() }
    }
}

impl SweepError {
    fn new(what: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { what, reason: chain(error) }
    }
}

/// The clock of [`Pin::last_seen_ns`].
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn array_fd(ebpf: &Ebpf, name: &str) -> io::Result<OwnedFd> {
    let Some(aya::maps::Map::Array(array)) = ebpf.map(name) else {
        unreachable!("the embedded object has the array: lb-ebpf defines it")
    };
    array.fd().as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::BackendSet;

    fn view(udp_limit: u64) -> SweepView {
        let usable = Arc::new(BackendSet::from_iter([]));
        SweepView { rings: [].into(), usable, udp_limit, needs_walk: true }
    }

    #[test]
    fn one_walk_is_wanted_at_most_the_latest() {
        let mailbox = Arc::new(Mailbox::default());
        let handle = SweepHandle { mailbox: Arc::clone(&mailbox), thread: None };
        handle.request(view(1));
        handle.request(view(2));
        assert_eq!(mailbox.next().map(|view| view.udp_limit), Some(2));
        assert!(mailbox.lock().view.is_none(), "the first was never queued");
        handle.request(view(3));
        drop(handle);
        assert!(mailbox.next().is_none(), "who is gone wants no walk");
    }
}
