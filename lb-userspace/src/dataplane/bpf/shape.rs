//! Shapes of maps: what a map must be for this program to work on it, and what is said when a pinned one is not that.

use std::fmt;

use lb_common::abi::maps;

use crate::config::spec::Limits;

/// What a map is. Numbers are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Of a key, in bytes.
    pub key_size: u32,
    /// Of a value, in bytes.
    pub value_size: u32,
    /// Entries at most.
    pub entries: u32,
    /// `BPF_F_*`, without those that the kernel sets by itself.
    pub flags: u32,
}

/// A map whose size the file sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// The map.
    pub map: &'static str,
    /// The key under `limits`.
    pub limit: &'static str,
    /// What the file says.
    pub wanted: u32,
    /// What one entry of the map holds of it.
    pub per_entry: u32,
}

impl Size {
    /// Entries of the map.
    pub fn entries(&self) -> u32 {
        self.wanted.div_ceil(self.per_entry)
    }
}

/// The maps whose sizes the file sets.
pub(super) fn sizes(limits: &Limits) -> [Size; 7] {
    let size = |map, limit, wanted| Size { map, limit, wanted, per_entry: 1 };
    [
        size(maps::SERVICES4, "services", limits.services),
        size(maps::SERVICES6, "services", limits.services),
        Size { per_entry: 2, ..size(maps::RING, "slots", limits.slots) },
        size(maps::BACKENDS, "backends", limits.backends),
        size(maps::BACKEND_STATS, "backends", limits.backends),
        size(maps::RECORDS, "backends", limits.backends),
        size(maps::FLOWS, "flows", limits.flows),
    ]
}

/// How a pinned map differs from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// Only in its size, which the file sets.
    Limit {
        /// The key under `limits`.
        limit: &'static str,
        /// What the map was made for.
        pinned: u32,
        /// What the file says.
        wanted: u32,
    },
    /// It is another map.
    Other {
        /// Its name.
        map: String,
        /// In what it differs.
        what: &'static str,
        /// The kernel's number for it.
        pinned: u32,
        /// The one wanted.
        wanted: u32,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { limit, pinned, wanted } => {
                write!(f, "`limits.{limit}` is {wanted}, but the pinned maps were made for {pinned}")
            }
            Self::Other { map, what, pinned, wanted } => {
                write!(f, "the {what} of the map {map} is {pinned}, not {wanted}")
            }
        }
    }
}

/// Compares a pinned map with the one wanted. `None`: it can be used.
pub(super) fn compare(map: &str, pinned: Shape, wanted: Shape, sizes: &[Size]) -> Option<Mismatch> {
    let fields = [
        ("type", pinned.kind, wanted.kind),
        ("size of a key", pinned.key_size, wanted.key_size),
        ("size of a value", pinned.value_size, wanted.value_size),
        ("set of flags", pinned.flags, wanted.flags),
    ];
    if let Some((what, pinned, wanted)) = fields.into_iter().find(|(_, pinned, wanted)| pinned != wanted) {
        return Some(Mismatch::Other { map: map.into(), what, pinned, wanted });
    }
    if pinned.entries == wanted.entries {
        return None;
    }
    Some(match sizes.iter().find(|size| size.map == map) {
        Some(size) => Mismatch::Limit {
            limit: size.limit,
            pinned: pinned.entries * size.per_entry,
            wanted: size.wanted,
        },
        None => Mismatch::Other {
            map: map.into(),
            what: "number of entries",
            pinned: pinned.entries,
            wanted: wanted.entries,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { kind: 2, key_size: 4, value_size: 8, entries: 32769, flags: 0x400 };

    fn limits() -> Limits {
        Limits { services: 10, backends: 20, slots: 65537, ..Limits::default() }
    }

    fn said(map: &str, pinned: Shape) -> Option<String> {
        compare(map, pinned, SHAPE, &sizes(&limits())).map(|m| m.to_string())
    }

    #[test]
    fn equal_shapes_are_fine_and_every_difference_is_named() {
        assert_eq!(said("RING", SHAPE), None);
        for (pinned, text) in [
            (Shape { kind: 1, ..SHAPE }, "the type of the map RING is 1, not 2"),
            (Shape { key_size: 8, ..SHAPE }, "the size of a key of the map RING is 8, not 4"),
            (Shape { value_size: 4, ..SHAPE }, "the size of a value of the map RING is 4, not 8"),
            (Shape { flags: 0, ..SHAPE }, "the set of flags of the map RING is 0, not 1024"),
        ] {
            assert_eq!(said("RING", pinned).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_size_that_the_file_sets_is_told_in_the_files_words() {
        let other = Shape { entries: 1024, ..SHAPE };
        let limit = "`limits.slots` is 65537, but the pinned maps were made for 2048";
        assert_eq!(said("RING", other).as_deref(), Some(limit));
        let fixed = "the number of entries of the map OUTCOMES is 1024, not 32769";
        assert_eq!(said("OUTCOMES", other).as_deref(), Some(fixed));
        // Another map of another size: not a matter of the file.
        let both = said("RING", Shape { value_size: 4, ..other }).unwrap();
        assert!(both.contains("size of a value"), "{both}");
    }

    #[test]
    fn an_odd_number_of_slots_gets_its_last_half_entry() {
        let ring = sizes(&limits()).into_iter().find(|s| s.map == maps::RING).unwrap();
        assert_eq!(ring.entries(), 32769);
    }
}
