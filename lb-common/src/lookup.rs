//! Service lookup: (address, port, protocol) -> the index of a service's entry, in one read of one cache line.
//!
//! A **line** is eight **words**, one a key; a key's hash picks its line. A word holds the key and the index, so that one
//! store of eight bytes adds, replaces or removes a service: a reader sees the old or the new, never half of each.
//!
//! ```text
//! 63            32 31      16 15      14 13        0
//! |     tag       |   port   | protocol |   index  |
//! ```
//!
//! The tag is the IPv4 address itself, of an IPv6 address a hash, and the entry has the whole address to compare with.
//! Words fill a line from its start and are never moved. A removed one keeps its key, with index 0. Only a line without an
//! empty word sends the reader on to the key's second line.
//!
//! The controller lays the lines out (`dataplane/bpf/services.rs`), the program reads them ([`find`]).

use crate::{
    parse::{TCP, UDP},
    service::Service,
};

/// Words of a line.
pub const LINE_WORDS: usize = 8;
/// The largest index: a word has 14 bits for it. 0 means none.
pub const MAX_INDEX: u32 = (1 << INDEX_BITS) - 1;

/// Entries beyond `limits.services`, so that a new value stands beside the old one, and an index rests before it is used
/// again.
pub const SPARE_ENTRIES: u32 = 256;

/// A removed word that no key makes.
pub const NOBODY: u64 = 3 << INDEX_BITS;

const INDEX_BITS: u32 = 14;
/// As in [`crate::hash`].
const MULTIPLIER: u64 = 0x94d0_49bb_1331_11eb;

/// A cache line of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub [u64; LINE_WORDS]);

/// A service's entry, a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Entry {
    /// What the program knows of the service.
    pub service: Service,
    /// Destination port, network order; see [`crate::service::ServiceKey4::port`].
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// Destination address; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Zero.
    pub reserved2: [u64; 2],
}

const _: () = assert!(size_of::<Line>() == 64 && size_of::<Entry>() == 64);

/// There are `1 << bits` lines for so many keys: one a line on average. One more line follows them, whose first word counts
/// the keys with any port: while there is none, nobody looks for one.
pub const fn line_bits(services: u32) -> u32 {
    let bits = services.saturating_sub(1).checked_ilog2();
    match bits {
        Some(bits) => bits + 1,
        None => 1,
    }
}

impl Line {
    /// Without any key.
    pub const EMPTY: Self = Self([0; LINE_WORDS]);
}

impl Entry {
    /// Never used. One that was used once and is not any more stays as it is.
    pub const NONE: Self = Self {
        service: Service::ADDRESS,
        port: [0; 2],
        protocol: 0,
        reserved: [0; 5],
        address: [0; 16],
        reserved2: [0; 2],
    };
}

/// A key as it stands in a word, with index 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// Of an IPv4 address; `port` in network order.
    #[inline(always)]
    pub const fn ipv4(address: [u8; 4], port: [u8; 2], protocol: u8) -> Self {
        Self::new(u32::from_ne_bytes(address), port, protocol)
    }

    /// Of an IPv6 address, two words as they stand in the packet.
    #[inline(always)]
    pub const fn ipv6(address: [u64; 2], port: [u8; 2], protocol: u8) -> Self {
        let [high, low] = address;
        let product = (high ^ low.rotate_left(32)).wrapping_mul(MULTIPLIER) ^ low;
        Self::new((product.wrapping_mul(MULTIPLIER) >> 32) as u32, port, protocol)
    }

    #[inline(always)]
    const fn new(tag: u32, port: [u8; 2], protocol: u8) -> Self {
        // 1 TCP, 2 UDP, 0 the marker of an address.
        let protocol = if protocol == 0 {
            0
        } else if protocol == TCP {
            1
        } else {
            2
        };
        let rest = (u16::from_ne_bytes(port) as u64) << 16 | protocol << INDEX_BITS;
        Self((tag as u64) << 32 | rest)
    }

    /// The numbers of its first and second line, of `1 << bits` lines; `bits` is 1 to 31.
    #[inline(always)]
    pub const fn lines(self, bits: u32) -> [u32; 2] {
        let product = self.0.wrapping_mul(MULTIPLIER);
        let first = (product >> 32) as u32 >> (32 - bits);
        let second = (product ^ product >> 29).wrapping_mul(MULTIPLIER) >> 32;
        [first, second as u32 >> (32 - bits)]
    }

    /// The word that leads from this key to an entry; with 0, to none.
    #[inline(always)]
    pub const fn word(self, index: u32) -> u64 {
        self.0 | (index & MAX_INDEX) as u64
    }

    /// The key in a word, whatever its index.
    pub const fn in_word(word: u64) -> Self {
        Self(word & !(MAX_INDEX as u64))
    }

    /// The address of an IPv4 key.
    pub const fn ipv4_address(self) -> [u8; 4] {
        ((self.0 >> 32) as u32).to_ne_bytes()
    }

    /// Its port, in network order.
    pub const fn port(self) -> [u8; 2] {
        ((self.0 >> 16) as u16).to_ne_bytes()
    }

    /// Its protocol, 0 for the marker of an address; `None` in a word that no key makes.
    pub const fn protocol(self) -> Option<u8> {
        match self.0 >> INDEX_BITS & 3 {
            0 => Some(0),
            1 => Some(TCP),
            2 => Some(UDP),
            _ => None,
        }
    }

    /// The index in a word of this key; `None` if it is another key's.
    #[inline(always)]
    pub const fn index_in(self, word: u64) -> Option<u32> {
        let rest = word ^ self.0;
        if rest <= MAX_INDEX as u64 { Some(rest as u32) } else { None }
    }
}

/// What a line says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its entry.
    Entry(u32),
    /// There is no such key.
    Nothing,
    /// It may be in its second line.
    Further,
}

/// Looks a key up in one of its lines.
#[inline(always)]
pub fn find(line: &Line, key: Key) -> Found {
    for word in line.0 {
        match key.index_in(word) {
            Some(0) => return Found::Nothing,
            Some(index) => return Found::Entry(index),
            None if word == 0 => return Found::Nothing,
            None => {}
        }
    }
    Found::Further
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_leads_from_its_own_key_only() {
        let key = Key::ipv4([192, 0, 2, 10], [0, 80], TCP);
        assert_eq!(key.index_in(key.word(7)), Some(7));
        assert_eq!(key.index_in(key.word(MAX_INDEX)), Some(MAX_INDEX));
        assert_eq!(key.index_in(key.word(0)), Some(0));
        for other in [
            Key::ipv4([192, 0, 2, 11], [0, 80], TCP),
            Key::ipv4([192, 0, 2, 10], [0, 81], TCP),
            Key::ipv4([192, 0, 2, 10], [0, 80], UDP),
            Key::ipv4([192, 0, 2, 10], [0, 80], 0),
            Key::ipv4([192, 0, 2, 10], [80, 0], TCP),
        ] {
            assert_eq!(other.index_in(key.word(7)), None, "{other:?}");
        }
    }

    #[test]
    fn a_word_tells_its_key() {
        for protocol in [TCP, UDP, 0] {
            let key = Key::in_word(Key::ipv4([192, 0, 2, 10], [1, 187], protocol).word(MAX_INDEX));
            assert_eq!(key, Key::ipv4([192, 0, 2, 10], [1, 187], protocol));
            let parts = (key.ipv4_address(), key.port(), key.protocol());
            assert_eq!(parts, ([192, 0, 2, 10], [1, 187], Some(protocol)));
        }
        assert_eq!(Key::in_word(NOBODY).protocol(), None);
    }

    #[test]
    fn a_line_is_read_up_to_its_first_empty_word() {
        let keys: [Key; 9] = core::array::from_fn(|n| Key::ipv4([10, 0, 0, n as u8], [0, 80], TCP));
        let mut line = Line::EMPTY;
        assert_eq!(find(&line, keys[0]), Found::Nothing);
        for (index, word) in line.0.iter_mut().enumerate() {
            *word = keys[index].word(index as u32 + 1);
        }
        for (key, index) in keys.iter().zip(1..=8) {
            assert_eq!(find(&line, *key), Found::Entry(index));
        }
        assert_eq!(find(&line, keys[8]), Found::Further, "a full line is not the last word");
        line.0[3] = keys[3].word(0);
        assert_eq!(find(&line, keys[3]), Found::Nothing, "it was removed");
        assert_eq!(find(&line, keys[7]), Found::Entry(8), "those behind it were not");
        line.0[7] = 0;
        assert_eq!(find(&line, keys[8]), Found::Nothing);
    }

    #[test]
    fn there_are_lines_for_all() {
        for (services, bits) in
            [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (1024, 10), (1025, 11), (15_000, 14)]
        {
            assert_eq!(line_bits(services), bits, "{services}");
        }
    }

    #[test]
    fn keys_spread_over_the_lines() {
        for bits in [1, 4, 10] {
            let lines = 1usize << bits;
            let mut most = [0, 0];
            for (family, most) in most.iter_mut().enumerate() {
                let mut counts = std::vec![0u32; lines];
                for n in 0..lines as u32 {
                    let [a, b] = (n as u16).to_be_bytes();
                    let key = match family {
                        0 => Key::ipv4([198, 18, a, b], [0, 80], TCP),
                        _ => Key::ipv6([0x20, u64::from(n)], [1, 187], TCP),
                    };
                    let [first, second] = key.lines(bits);
                    assert!((first as usize) < lines && (second as usize) < lines);
                    counts[first as usize] += 1;
                }
                *most = counts.into_iter().max().unwrap();
            }
            assert!(most.iter().all(|most| *most <= 7), "{bits} bits: {most:?} keys in one line");
        }
    }
}
