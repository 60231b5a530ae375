//! The **ring**: weighted Maglev (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).
//!
//! Every member walks a permutation of the slots of its own. Members take turns; a turn takes the first slot of the walk that
//! is still free. Nothing but a member's [`Identity`] seeds its permutation and its place in the turns, so neither the
//! order of the list nor the kernel's ids matter: balancers with the same pool choose the same backends.
//!
//! **Permutations.** Section 3.4 has `offset, offset + skip, ... (mod size)` for a prime `size`. Two members whose skips are
//! equal, opposite or in a simple ratio (one pool of 100 in six has such a pair) then follow each other, and a slot that one of
//! them loses passes through the whole walk of the other: with 30 members and 65,537 slots the worst of 200 pools moved 2.7 %
//! of the slots without need. So each member turns positions into slots with a mask of its own, by exclusive or: 0.7 %.
//!
//! **Turns.** Member `i` takes its `k`-th turn at the virtual time `(k + phase_i) / weight_i`, with a phase in [0, 1)
//! from its identity. When one member changes, the times of all others stay what they were. Accumulators that count in
//! units of the largest weight are as good, except that a change of the largest weight shifts everybody's turns (weight x
//! 2 with 1,000 members of weights 100/200/300: up to 1.9 % of 65,537 slots moved without need instead of 0.8 %).
//!
//! **The last slots.** Half of all probes look for the last 256 of 65,537 slots. So when few are free the question is turned
//! round: for each free slot, in how many steps does the walk reach it? The nearest wins. The result is the same, the
//! build takes a quarter less. (The neighbour of a taken slot would be faster still, but moves more.)
//!
//! **Who is away.** [`build`] is for the pool as the file has it; [`refill`] hands out what belongs to those who are not eligible.
//! So a death moves the dead one's slots and no other, which also makes it quick.
//!
//! Figures and how to measure them: `docs/ring.md`.

use std::net::IpAddr;

use crate::flows::BackendSet;

/// What a backend is, on every balancer and whatever its id: the only thing that seeds its permutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Where packets go.
    pub address: IpAddr,
    /// `None` keeps the packet's port.
    pub port: Option<u16>,
}

impl Identity {
    /// 64 well-mixed bits, the same on every machine and in every version: changing this function moves every flow.
    fn hash(&self) -> u64 {
        let (family, bits) = match self.address {
            IpAddr::V4(address) => (4, u128::from(address.to_bits())),
            IpAddr::V6(address) => (6, address.to_bits()),
        };
        let port = self.port.map_or(0, |port| 1 << 16 | u64::from(port));
        [family << 32 | port, (bits >> 64) as u64, bits as u64]
            .into_iter()
            .fold(0, |hash, word| mix(hash ^ word))
    }
}

/// A backend that takes new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The kernel's id of it, 1 to 32,767.
    pub id: u16,
    /// Unique among the members of a ring.
    pub identity: Identity,
    /// Its share of the slots, in proportion to the sum; zero takes none.
    pub weight: u32,
}

/// One step of `SplitMix64`: bijective, every input bit reaches every output bit.
fn mix(input: u64) -> u64 {
    let z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Ids by slot; all zero without members of a weight.
///
/// Every slot is taken, and every member holds its share of them but for about one; so one with a share of less than two may
/// hold none.
///
/// # Panics
/// If `size` is not a prime below 2^31, or with more than 65,536 members: both are excluded by the spec.
pub fn build(members: &[Member], size: u32) -> Vec<u16> {
    assert!(size < 1 << 31 && is_prime(size), "ring size {size} is not a prime below 2^31");
    hand_out(members, vec![0; size as usize])
}

/// The ring of the whole pool, with the slots of those that are not among `eligible` handed out to the others: each walks
/// its permutation again and takes its turns at these slots only.
///
/// So when a backend goes away, no slot of another one moves, and when it returns it gets back exactly what it had. What
/// comes out depends on the pool and on who is eligible, not on the order of events.
pub fn refill(whole: &[u16], eligible: &[Member]) -> Vec<u16> {
    let ids: BackendSet = eligible.iter().filter(|m| m.weight > 0).map(|m| m.id).collect();
    let keep = |id: &u16| if ids.contains(*id) { *id } else { 0 };
    hand_out(eligible, whole.iter().map(keep).collect())
}

/// Hands the free slots of a ring, those of id 0, out to the members.
fn hand_out(members: &[Member], ring: Vec<u16>) -> Vec<u16> {
    assert!(members.len() <= 1 << 16, "{} members are too many", members.len());
    let mut entrants: Vec<_> = members.iter().filter(|member| member.weight > 0).map(Entrant::new).collect();
    entrants.sort_unstable();
    let (Some(first), Some(last)) = (entrants.first(), entrants.last()) else {
        return ring;
    };
    let space = Space::new(ring.len() as u32);
    let mut walkers: Vec<_> = entrants.iter().map(|entrant| Walker::new(entrant, space)).collect();
    if first.weight == last.weight {
        // The schedule of equal weights is the order of the hashes, again and again.
        let (count, mut next) = (walkers.len(), 0);
        let turns = || {
            let turn = next;
            next = if turn + 1 == count { 0 } else { turn + 1 };
            turn
        };
        fill(ring, &mut walkers, turns, space)
    } else {
        let mut schedule = Schedule::new(&entrants, space.size);
        fill(ring, &mut walkers, || schedule.next(), space)
    }
}

/// A member in the order of turns: by weight, then by hash. The rest is for members whose hashes collide.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entrant {
    weight: u32,
    hash: u64,
    identity: Identity,
    id: u16,
}

impl Entrant {
    fn new(member: &Member) -> Self {
        let Member { id, identity, weight } = *member;
        Self { weight, hash: identity.hash(), identity, id }
    }

    /// By which part of a turn, in [0, 1), this member's turns are late. Grows with the hash.
    fn phase(&self) -> f64 {
        (self.hash >> 32) as f64 / (1u64 << 32) as f64
    }
}

/// Turns in the order of virtual time, without end.
///
/// A turn is one number: its time in the high 48 bits, the index of the entrant in the low 16. The turns of members of equal
/// weight come in order by themselves; those of a window of time are collected and sorted, so that all of this stays in the
/// first cache. Floating point is safe here: IEEE 754 fixes the results of these operations to the last bit.
struct Schedule {
    classes: Vec<Class>,
    /// Length of a window, shifted like a turn.
    window: u64,
    /// End of the present one.
    end: u64,
    turns: Vec<u64>,
    next: usize,
}

/// Members of equal weight.
struct Class {
    /// Ticks from one turn of a member to its next.
    interval: f64,
    /// First turns of the members.
    phases: Vec<u64>,
    /// The next turn is this member's, in this round.
    member: usize,
    round: u32,
    /// Start of the round, shifted like a turn.
    start: u64,
}

impl Schedule {
    fn new(entrants: &[Entrant], size: u32) -> Self {
        let total: u64 = entrants.iter().map(|entrant| u64::from(entrant.weight)).sum();
        // A member takes at least weight x time - 1 turns, so `size` of them are over by then, and a window or two.
        let longest = (u64::from(size) + entrants.len() as u64 + 2 * Self::TURNS_PER_WINDOW) / total + 1;
        // Ticks in a unit of time: as fine as 48 bits allow. A power of two, so that pools differ in rounding at most.
        let tick = 1u64 << (longest.next_power_of_two().leading_zeros() - 17);
        let mut index = 0;
        let class = |members: &[Entrant]| {
            let interval = tick as f64 / f64::from(members[0].weight);
            let phase = |(member, index): (&Entrant, u64)| ((member.phase() * interval) as u64) << 16 | index;
            let phases = members.iter().zip(index..).map(phase).collect();
            index += members.len() as u64;
            Class { interval, phases, member: 0, round: 0, start: 0 }
        };
        let classes = entrants.chunk_by(|a, b| a.weight == b.weight).map(class).collect();
        let window = ((Self::TURNS_PER_WINDOW as f64 / total as f64 * tick as f64) as u64 + 1) << 16;
        Self { classes, window, end: 0, turns: Vec::new(), next: 0 }
    }

    const TURNS_PER_WINDOW: u64 = 1024;

    /// Index of the entrant whose turn it is.
    fn next(&mut self) -> usize {
        while self.next == self.turns.len() {
            self.advance();
        }
        self.next += 1;
        (self.turns[self.next - 1] & 0xffff) as usize
    }

    #[expect(
        clippy::stable_sort_primitive,
        reason = "it is faster where sorted runs follow each other, as here"
    )]
    fn advance(&mut self) {
        self.turns.clear();
        self.next = 0;
        self.end += self.window;
        for class in &mut self.classes {
            class.take_until(self.end, &mut self.turns);
        }
        self.turns.sort();
    }
}

impl Class {
    fn take_until(&mut self, end: u64, turns: &mut Vec<u64>) {
        loop {
            for phase in &self.phases[self.member..] {
                let turn = self.start + phase;
                if turn >= end {
                    return;
                }
                turns.push(turn);
                self.member += 1;
            }
            self.member = 0;
            self.round += 1;
            self.start = ((f64::from(self.round) * self.interval) as u64) << 16;
        }
    }
}

/// A member on its way through its permutation. Small: 1,000 of them stay in the first cache.
struct Walker {
    /// Its next position in the sequence.
    position: u32,
    /// Step of the sequence, 1 to size - 1.
    skip: u32,
    /// What exchanges positions for slots.
    mask: u32,
    /// The kernel's.
    id: u16,
}

impl Walker {
    fn new(entrant: &Entrant, space: Space) -> Self {
        let size = u64::from(space.size);
        Self {
            position: (mix(entrant.hash ^ 1) % size) as u32,
            skip: (mix(entrant.hash ^ 2) % (size - 1)) as u32 + 1,
            mask: mix(entrant.hash ^ 3) as u32 % space.block,
            id: entrant.id,
        }
    }
}

/// The numbers below a prime: positions of a sequence, or slots.
#[derive(Clone, Copy)]
struct Space {
    size: u32,
    /// A power of two: positions are exchanged within blocks of so many.
    block: u32,
    /// Numbers in whole blocks. The few others stay themselves.
    whole: u32,
}

impl Space {
    fn new(size: u32) -> Self {
        // A sixteenth of the numbers is left over at most.
        let block = 1 << (size.ilog2().saturating_sub(4));
        Self { size, block, whole: size - size % block }
    }

    /// `(position + skip) % size` without a division or a branch.
    fn step(self, position: u32, skip: u32) -> u32 {
        let next = position + skip;
        // Below `size`, the subtraction wraps to a large number.
        next.min(next.wrapping_sub(self.size))
    }

    /// The slot of a position, and the position of a slot.
    fn exchange(self, number: u32, mask: u32) -> u32 {
        if number < self.whole { number ^ mask } else { number }
    }
}

/// Lets the walkers take one slot a turn until none is free. `turn` says whose turn it is, for at least `size` turns.
fn fill(
    mut ring: Vec<u16>,
    walkers: &mut [Walker],
    mut turn: impl FnMut() -> usize,
    space: Space,
) -> Vec<u16> {
    let mut free = FreeSlots::of(&ring);
    let count = free.count();
    // Where size / n probes (n slots are free) begin to cost more than n multiplications.
    let few = space.size.isqrt() / 2;
    for _ in few..count {
        let walker = &mut walkers[turn()];
        let (mut position, skip, mask) = (walker.position, walker.skip, walker.mask);
        let slot = loop {
            let slot = space.exchange(position, mask);
            position = space.step(position, skip);
            if free.contains(slot) {
                break slot;
            }
        };
        free.remove(slot);
        ring[slot as usize] = walker.id;
        walker.position = position;
    }
    let mut left = free.list();
    while !left.is_empty() {
        let walker = &mut walkers[turn()];
        let slot = left.swap_remove(nearest(walker, &left, space));
        ring[slot as usize] = walker.id;
        walker.position = space.step(space.exchange(slot, walker.mask), walker.skip);
    }
    ring
}

/// Index of the free slot that the walker reaches first. Position = start + steps x skip, so steps = (position - start) /
/// skip, all modulo the prime size.
fn nearest(walker: &Walker, left: &[u32], space: Space) -> usize {
    let inverse = u64::from(inverse(walker.skip, space.size));
    let start = space.size - walker.position;
    let steps = |slot: u32| {
        let distance = space.exchange(slot, walker.mask) + start;
        u64::from(distance) * inverse % u64::from(space.size)
    };
    let mut best = (u64::MAX, 0);
    for (index, &slot) in left.iter().enumerate() {
        best = best.min((steps(slot), index));
    }
    best.1
}

/// `x` with `x * value % prime == 1`, by the extended Euclidean algorithm.
fn inverse(value: u32, prime: u32) -> u32 {
    let (mut rest, mut next_rest) = (i64::from(prime), i64::from(value));
    let (mut factor, mut next_factor) = (0, 1);
    while next_rest != 0 {
        let quotient = rest / next_rest;
        (rest, next_rest) = (next_rest, rest - quotient * next_rest);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(i64::from(prime)) as u32
}

/// A bit for each slot, set while nobody has it. 8 KiB for 65,537 slots: it stays in the first cache.
struct FreeSlots(Vec<u64>);

impl FreeSlots {
    fn of(ring: &[u16]) -> Self {
        let word = |ids: &[u16]| ids.iter().rev().fold(0, |word, id| word << 1 | u64::from(*id == 0));
        Self(ring.chunks(64).map(word).collect())
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn contains(&self, slot: u32) -> bool {
        self.0[(slot / 64) as usize] >> (slot % 64) & 1 == 1
    }

    fn remove(&mut self, slot: u32) {
        self.0[(slot / 64) as usize] &= !(1 << (slot % 64));
    }

    fn list(&self) -> Vec<u32> {
        let slots = self.0.iter().zip(0u32..).flat_map(|(&word, index)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        });
        slots.collect()
    }
}

/// Whether a ring may have this many slots: by trial division, some microseconds for the largest `u32`.
pub fn is_prime(number: u32) -> bool {
    number >= 2 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}

/// What a ring does, as 16 hexadecimal digits: equal on two balancers that send each slot to the same backend,
/// whatever ids they use and in whatever order their files list the backends.
///
/// It folds the identities' hashes over the slots in order, starting with their number. `members` names the ids of the ring;
/// a slot without a member among them counts as empty.
pub fn table_checksum(ring: &[u16], members: &[Member]) -> String {
    let most = members.iter().map(|member| member.id).max().unwrap_or(0);
    let mut hashes = vec![0; most as usize + 1];
    for member in members {
        hashes[member.id as usize] = member.identity.hash();
    }
    let fold = ring.iter().fold(ring.len() as u64, |sum, &id| {
        // Odd multiplier: no slot is forgotten. The rotation brings high bits down.
        (sum.rotate_left(23) ^ hashes.get(id as usize).copied().unwrap_or(0))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    format!("{:016x}", mix(fold))
}

#[cfg(test)]
mod tests;
