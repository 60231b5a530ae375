//! The packet hash: which slot a flow falls on. The same function in the kernel and in the controller.
//!
//! Rounds of xor, 64-bit multiply and xor-shift (the shape of wyhash and of splitmix64, see Steele et al., OOPSLA 2014),
//! keyed: who does not know the key cannot aim flows at one backend. It is no cryptographic hash. What is the same for all
//! packets of a service, its address and protocol, is hashed by the controller ([`service4`]); the program goes on from there.

/// Odd, with about half of the bits set; the constant of splitmix64's second round.
const MULTIPLIER: u64 = 0x94d0_49bb_1331_11eb;

#[inline(always)]
const fn mix(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 32)
}

/// The 64-bit key of a `hash_seed`; splitmix64's finaliser, so that neighbouring seeds share nothing.
pub const fn key(hash_seed: u32) -> u64 {
    let mut z = (hash_seed as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(MULTIPLIER);
    z ^ (z >> 31)
}

/// Key of the flows to a service's IPv4 address; `key` from [`key`].
pub const fn service4(key: u64, address: [u8; 4], protocol: u8) -> u64 {
    mix(key, (u32::from_ne_bytes(address) as u64) << 8 | protocol as u64)
}

/// As [`service4`].
pub const fn service6(key: u64, address: [u8; 16], protocol: u8) -> u64 {
    let [high, low] = halves(address);
    mix(mix(mix(key, high), low), protocol as u64)
}

/// Hash of an IPv4 flow; `key` from [`service4`]. `ports` is source then destination; zeros when the service hashes by client.
#[inline(always)]
pub const fn flow4(key: u64, source: [u8; 4], ports: [u8; 4]) -> u32 {
    fold(mix(key, (u32::from_ne_bytes(source) as u64) << 32 | u32::from_ne_bytes(ports) as u64))
}

/// Hash of an IPv6 flow, see [`flow4`]; `key` from [`service6`]. The halves of the address do not wait for each other.
#[inline(always)]
pub const fn flow6(key: u64, source: [u8; 16], ports: [u8; 4]) -> u32 {
    let [high, low] = halves(source);
    let address = mix(key, high) ^ mix(key.rotate_left(32), low);
    fold(mix(address, u32::from_ne_bytes(ports) as u64))
}

/// Slot of a hash on a ring of `ring_size` slots: high bits of hash x size, no division.
#[inline(always)]
pub const fn slot(hash: u32, ring_size: u32) -> u32 {
    ((hash as u64 * ring_size as u64) >> 32) as u32
}

#[inline(always)]
const fn fold(state: u64) -> u32 {
    (state.wrapping_mul(MULTIPLIER) >> 32) as u32
}

/// An IPv6 address as the two words that stand in the packet. (As single bytes the compiler would take it apart.)
#[inline(always)]
pub const fn halves(address: [u8; 16]) -> [u64; 2] {
    let both = u128::from_ne_bytes(address);
    let (low, high) = (both as u64, (both >> 64) as u64);
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

#[cfg(test)]
mod tests {
    use super::{key, service4, service6, slot};
    use std::vec;

    /// Largest share of one of `buckets` relative to the even share.
    fn worst(hashes: impl Iterator<Item = u32>, buckets: u32) -> f64 {
        let mut counts = vec![0u32; buckets as usize];
        let mut total = 0u32;
        for hash in hashes {
            counts[slot(hash, buckets) as usize] += 1;
            total += 1;
        }
        f64::from(*counts.iter().max().unwrap()) * f64::from(buckets) / f64::from(total)
    }

    #[test]
    fn sequential_ports_of_one_client_spread_evenly() {
        for seed in 0..50 {
            let flows =
                (1024u16..61024).map(|p| flow4(key(seed), [10, 0, 0, 1], [192, 0, 2, 10], port_pair(p), 6));
            let w = worst(flows, 16);
            assert!(w < 1.06, "seed {seed}: {w}");
        }
    }

    #[test]
    fn sequential_clients_spread_evenly() {
        for seed in 0..50 {
            let flows = (0..60_000u32)
                .map(|i| flow4(key(seed), (0x0a00_0000 + i).to_be_bytes(), [192, 0, 2, 10], [0; 4], 6));
            assert!(worst(flows, 16) < 1.06, "seed {seed}");
            let flows6 = (0..60_000u64).map(|i| {
                let mut source = [0x20; 16];
                source[8..].copy_from_slice(&i.to_be_bytes());
                flow6(key(seed), source, [9; 16], [0; 4], 17)
            });
            assert!(worst(flows6, 16) < 1.06, "seed {seed}");
        }
    }

    #[test]
    fn every_input_bit_changes_half_of_the_output() {
        let base = flow4(key(7), [10, 1, 2, 3], [192, 0, 2, 10], [4, 5, 6, 7], 6);
        let mut flipped = 0;
        for bit in 0..96 {
            let mut bytes = [10, 1, 2, 3, 192, 0, 2, 10, 4, 5, 6, 7];
            bytes[bit / 8] ^= 1 << (bit % 8);
            let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
            let other = flow4(key(7), [a, b, c, d], [e, f, g, h], [i, j, k, l], 6);
            let changed = (base ^ other).count_ones();
            assert!((5..=27).contains(&changed), "bit {bit}: {changed} bits changed");
            flipped += changed;
        }
        assert!((14 * 96..=18 * 96).contains(&flipped), "{flipped}");
    }

    #[test]
    fn every_input_bit_of_ipv6_changes_half_of_the_output() {
        let input: [u8; 36] = core::array::from_fn(|i| (i * 37 + 5) as u8);
        let hash = |input: [u8; 36]| {
            let (source, rest) = input.split_first_chunk().unwrap();
            let (destination, ports) = rest.split_first_chunk().unwrap();
            flow6(key(7), *source, *destination, ports.try_into().unwrap(), 6)
        };
        let mut flipped = 0;
        for bit in 0..36 * 8 {
            let mut other = input;
            other[bit / 8] ^= 1 << (bit % 8);
            let changed = (hash(input) ^ hash(other)).count_ones();
            assert!((4..=28).contains(&changed), "bit {bit}: {changed} bits changed");
            flipped += changed;
        }
        assert!((14 * 288..=18 * 288).contains(&flipped), "{flipped}");
    }

    #[test]
    fn address_port_protocol_and_seed_all_matter() {
        let base = flow4(key(0), [1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], 6);
        assert_ne!(base, flow4(key(0), [1, 2, 3, 4], [5, 6, 7, 9], [1, 2, 3, 4], 6));
        assert_ne!(base, flow4(key(0), [1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 5], 6));
        assert_ne!(base, flow4(key(0), [1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], 17));
        assert_ne!(base, flow4(key(1), [1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], 6));
    }

    #[test]
    fn slots_stay_inside_the_ring() {
        for size in [1, 2, 3, 4093, 65537, 4_194_301] {
            assert_eq!(slot(0, size), 0);
            assert_eq!(slot(u32::MAX, size), size - 1);
        }
    }

    fn flow4(key: u64, source: [u8; 4], destination: [u8; 4], ports: [u8; 4], protocol: u8) -> u32 {
        super::flow4(service4(key, destination, protocol), source, ports)
    }

    fn flow6(key: u64, source: [u8; 16], destination: [u8; 16], ports: [u8; 4], protocol: u8) -> u32 {
        super::flow6(service6(key, destination, protocol), source, ports)
    }

    fn port_pair(source: u16) -> [u8; 4] {
        let [a, b] = source.to_be_bytes();
        [a, b, 0, 80]
    }
}
