//! One walk over the flow table: what is to go, what is left.

use std::time::{Duration, Instant};

use lb_common::{
    flow::{FlowKey, Pin, SWEEP_BATCH, SWEEP_DELETED, SWEEP_GONE, SWEEP_NOT_DONE, SweepItem},
    slot::Slot,
};

use super::{DropReason, SweepView, drop_reason};
use crate::config::spec::Protocol;

/// A walk under way. Pins are shown to it with [`Self::look`]; whenever it [`Self::is_full`], and at the end, the
/// caller has its [`Self::candidates`] deleted and says what became of them.
#[derive(Debug)]
pub struct Walk {
    view: SweepView,
    candidates: Vec<SweepItem>,
    reasons: Vec<DropReason>,
    result: SweepResult,
}

/// What a walk found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepResult {
    /// When it began.
    pub started: Instant,
    /// When it was through.
    pub finished: Instant,
    /// Pins seen.
    pub walked: u64,
    /// Pins left.
    pub left: u64,
    /// UDP pins left.
    pub udp: u64,
    /// The longest run of the sweeping program: for so long a CPU handled no packet.
    pub longest_run: Duration,
    dropped: [u64; DropReason::ALL.len()],
    /// (first slot, TCP pins by slot); no numbers for a ring without any. By first slot.
    rings: Vec<(u32, Vec<u32>)>,
    /// By id, up to the last one with pins.
    backends: Vec<u32>,
}

impl Walk {
    /// A walk that begins now.
    pub fn new(view: SweepView, started: Instant) -> Self {
        let rings = view.rings.iter().map(|ring| (ring.base, Vec::new())).collect();
        let batch = SWEEP_BATCH as usize;
        Self {
            view,
            candidates: Vec::with_capacity(batch),
            reasons: Vec::with_capacity(batch),
            result: SweepResult {
                started,
                finished: started,
                walked: 0,
                left: 0,
                udp: 0,
                longest_run: Duration::ZERO,
                dropped: [0; DropReason::ALL.len()],
                rings,
                backends: Vec::new(),
            },
        }
    }

    /// Looks at a pin: counts it, or makes it a candidate. `slot_at` reads a slot's word, `now_ns` is of
    /// `CLOCK_MONOTONIC`.
    pub fn look(&mut self, key: &FlowKey, pin: &Pin, slot_at: impl Fn(u32) -> Slot, now_ns: u64) {
        self.result.walked += 1;
        let ring = self.view.ring_of(pin.slot);
        let reason = drop_reason(
            ring.map(|at| &self.view.rings[at]),
            slot_at(pin.slot),
            self.view.usable.contains(pin.backend),
            key.protocol,
            pin,
            now_ns,
        );
        if let Some(reason) = reason {
            self.candidates.push(SweepItem { key: *key, pin: *pin, done: SWEEP_NOT_DONE, reserved: 0 });
            self.reasons.push(reason);
        } else {
            self.result.count(&self.view, ring, key.protocol, pin);
        }
    }

    /// Whether one run of the program is worth of candidates.
    pub fn is_full(&self) -> bool {
        self.candidates.len() >= SWEEP_BATCH as usize
    }

    /// The pins to delete: at most [`SWEEP_BATCH`] if the caller heeds [`Self::is_full`].
    pub fn candidates(&self) -> &[SweepItem] {
        &self.candidates
    }

    /// What became of each candidate, as in [`SweepItem::done`], in a run that took `took`; the next ones may come.
    /// What was not deleted counts as left.
    pub fn done(&mut self, done: impl IntoIterator<Item = u32>, took: Duration) {
        self.result.longest_run = self.result.longest_run.max(took);
        let mut candidates = std::mem::take(&mut self.candidates);
        let mut done = done.into_iter();
        for (item, reason) in candidates.drain(..).zip(self.reasons.drain(..)) {
            match done.next() {
                Some(SWEEP_DELETED) => self.result.dropped[reason as usize] += 1,
                Some(SWEEP_GONE) => {}
                _ => {
                    let ring = self.view.ring_of(item.pin.slot);
                    self.result.count(&self.view, ring, item.key.protocol, &item.pin);
                }
            }
        }
        self.candidates = candidates;
    }

    /// All pins were seen.
    pub fn finish(mut self, finished: Instant) -> SweepResult {
        self.done([], Duration::ZERO);
        self.result.finished = finished;
        self.result
    }
}

impl SweepResult {
    fn count(&mut self, view: &SweepView, ring: Option<usize>, protocol: u8, pin: &Pin) {
        self.left += 1;
        let is_udp = protocol == Protocol::Udp.number();
        self.udp += u64::from(is_udp);
        // UDP flows are looked up in a settled slot, too: their pins keep none from settling.
        if let Some(at) = ring.filter(|_| !is_udp) {
            let (base, pins) = &mut self.rings[at];
            if pins.is_empty() {
                // Zeroed pages come from the kernel as they are touched: few pins in a large ring cost little.
                *pins = vec![0; view.rings[at].size as usize];
            }
            pins[(pin.slot - *base) as usize] += 1;
        }
        let backend = usize::from(pin.backend);
        if self.backends.len() <= backend {
            self.backends.resize(backend + 1, 0);
        }
        self.backends[backend] += 1;
    }

    /// Pins dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// TCP pins left in each slot of the ring at `base`; empty where there are none.
    pub fn slots(&self, base: u32) -> &[u32] {
        self.rings.binary_search_by_key(&base, |(base, _)| *base).map_or(&[], |at| &self.rings[at].1)
    }

    /// TCP pins left in the ring at `base`.
    pub fn in_ring(&self, base: u32) -> u64 {
        self.slots(base).iter().copied().map(u64::from).sum()
    }

    /// Pins left to a backend.
    pub fn to_backend(&self, id: u16) -> u64 {
        self.backends.get(usize::from(id)).copied().map_or(0, u64::from)
    }
}

/// UDP pins that each of `cpus` CPUs may make until the next walk, where `udp` were seen and up to `made` more came to
/// be during the walk.
pub fn udp_room(limit: u64, udp: u64, made: u64, cpus: u64) -> u64 {
    limit.saturating_sub(udp).saturating_sub(made) / cpus.max(1)
}

#[cfg(test)]
mod tests;
