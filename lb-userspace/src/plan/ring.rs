//! The **ring**: weighted Maglev (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).
//!
//! Every member walks its own permutation of the slots, `offset, offset + skip, ... (mod size)`, which visits each slot
//! once because `size` is a prime. Members take turns; a turn takes the first slot of the walk that is still free.
//! Nothing but a member's [`Identity`] seeds its permutation and its place in the turns, so neither the order of the
//! list nor the kernel ids matter: balancers with the same pool choose the same backends.
//!
//! **Turns.** Member `i` takes its `k`-th turn at the virtual time `(k + phase_i) / weight_i`, with a phase in [0, 1)
//! from its identity. When one member changes, the times of all others stay what they were. The accumulators of other
//! implementations count in units of the largest weight: as good as this, except that a change of the largest weight
//! shifts everybody's turns (weight x 2 with 1,000 backends of weights 100/200/300, size 65,537: up to 1.9 % of the
//! slots moved without need instead of 0.8 %).
//!
//! **The last slots.** Half of all probes of the plain algorithm look for the last 256 of 65,537 slots. So when few slots are
//! free the question is turned round: for each free slot, in how many steps does the walk reach it? The nearest wins.
//! The result is the same, the build takes a quarter less. (Taking a neighbour of a taken slot instead would be faster
//! still, but moves 1.6 % of the slots without need at 100 backends instead of 0.6 %.)
//!
//! Figures and how to measure them: `docs/ring.md`.

use std::net::IpAddr;

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
/// Every slot is taken, and every member holds its share of the slots but for one or two, rounded up or down; so one with a
/// share below two slots may hold none.
///
/// # Panics
/// If `size` is not a prime below 2^31, or with more than 65,536 members: both are excluded by the spec.
pub fn build(members: &[Member], size: u32) -> Vec<u16> {
    assert!(size < 1 << 31 && is_prime(size), "ring size {size} is not a prime below 2^31");
    assert!(members.len() <= 1 << 16, "{} members are too many", members.len());
    let mut entrants: Vec<_> = members.iter().filter(|member| member.weight > 0).map(Entrant::new).collect();
    entrants.sort_unstable();
    let (Some(first), Some(last)) = (entrants.first(), entrants.last()) else {
        return vec![0; size as usize];
    };
    let mut walkers: Vec<_> = entrants.iter().map(|entrant| Walker::new(entrant, size)).collect();
    if first.weight == last.weight {
        // The schedule of equal weights is the order of the hashes, again and again.
        fill(&mut walkers, (0..entrants.len()).cycle(), size)
    } else {
        let turns = schedule(&entrants, size);
        fill(&mut walkers, turns.into_iter().map(|turn| (turn & 0xffff) as usize), size)
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
}

/// At least `size` turns in the order of virtual time: time in the high 48 bits, index of the entrant in the low 16.
///
/// Floating point is safe here: IEEE 754 fixes the results of these operations to the last bit.
fn schedule(entrants: &[Entrant], size: u32) -> Vec<u64> {
    let total: u64 = entrants.iter().map(|entrant| u64::from(entrant.weight)).sum();
    // Until `end` a member takes at least weight x end - 1 turns: `size` and more together.
    let wanted = u64::from(size) + 2 * entrants.len() as u64;
    let end = wanted / total + 1;
    // Ticks of virtual time: as fine as 48 bits allow. A power of two, so that pools differ in rounding at most.
    let tick = 1u64 << (end.next_power_of_two().leading_zeros() - 17);
    let end = wanted as f64 / total as f64 * tick as f64;
    let mut turns = Vec::with_capacity(wanted as usize + entrants.len());
    let mut index = 0;
    for class in entrants.chunk_by(|a, b| a.weight == b.weight) {
        let interval = tick as f64 / f64::from(class[0].weight);
        // Phases, in ticks, with the indices; they grow with the hash.
        let phases: Vec<u64> = class
            .iter()
            .zip(index..)
            .map(|(entrant, index)| {
                let phase = (entrant.hash >> 32) as f64 / (1u64 << 32) as f64;
                ((phase * interval) as u64) << 16 | index
            })
            .collect();
        index += class.len() as u64;
        let rounds = (0..=size).map(|round| f64::from(round) * interval).take_while(|&start| start <= end);
        for start in rounds {
            turns.extend(phases.iter().map(|phase| ((start as u64) << 16) + phase));
        }
    }
    // A stable sort merges the sorted run of each class: far less work than sorting from scratch.
    #[expect(clippy::stable_sort_primitive, reason = "it is faster on sorted runs")]
    turns.sort();
    debug_assert!(turns.len() >= size as usize);
    turns
}

/// A member on its way through its permutation. Small: 1,000 of them stay in the first cache.
struct Walker {
    /// The next slot it would like.
    slot: u32,
    /// Step of the permutation, 1 to size - 1.
    skip: u32,
    /// The kernel's.
    id: u16,
}

impl Walker {
    fn new(entrant: &Entrant, size: u32) -> Self {
        Self {
            slot: (mix(entrant.hash ^ 1) % u64::from(size)) as u32,
            skip: (mix(entrant.hash ^ 2) % u64::from(size - 1)) as u32 + 1,
            id: entrant.id,
        }
    }
}

/// Lets the walkers take one slot a turn until none is free.
fn fill(walkers: &mut [Walker], mut turns: impl Iterator<Item = usize>, size: u32) -> Vec<u16> {
    let mut ring = vec![0; size as usize];
    let mut free = FreeSlots::all(size);
    // Where size / n probes (n slots are free) begin to cost more than n multiplications.
    let few = size.isqrt() / 2;
    for turn in turns.by_ref().take((size - few) as usize) {
        let Walker { slot, skip, id } = &mut walkers[turn];
        while !free.take(*slot) {
            *slot = step(*slot, *skip, size);
        }
        ring[*slot as usize] = *id;
        *slot = step(*slot, *skip, size);
    }
    let mut left = free.list();
    for turn in turns.take(left.len()) {
        let walker = &mut walkers[turn];
        let slot = left.swap_remove(nearest(walker, &left, size));
        ring[slot as usize] = walker.id;
        walker.slot = step(slot, walker.skip, size);
    }
    ring
}

/// The next slot of a permutation: `(slot + skip) % size` without a division or a branch.
fn step(slot: u32, skip: u32, size: u32) -> u32 {
    let next = slot + skip;
    // Below `size`, the subtraction wraps to a large number.
    next.min(next.wrapping_sub(size))
}

/// Index of the free slot that the walker reaches first: slot = start + steps x skip, so steps = (slot - start) / skip,
/// all modulo the prime `size`.
fn nearest(walker: &Walker, left: &[u32], size: u32) -> usize {
    let inverse = u64::from(inverse(walker.skip, size));
    let steps = |slot: u32| {
        let distance = if slot >= walker.slot { slot - walker.slot } else { slot + size - walker.slot };
        u64::from(distance) * inverse % u64::from(size)
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
    fn all(size: u32) -> Self {
        let mut words = vec![u64::MAX; size.div_ceil(64) as usize];
        if let Some(last) = words.last_mut() {
            *last >>= size.wrapping_neg() % 64;
        }
        Self(words)
    }

    /// Whether the slot was free; now it is not.
    fn take(&mut self, slot: u32) -> bool {
        let word = &mut self.0[(slot / 64) as usize];
        let bit = 1 << (slot % 64);
        let was_free = *word & bit != 0;
        *word &= !bit;
        was_free
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
