//! Shapes of maps: what a map must be for this program to work on it, and what is said when a pinned one is not that.

use std::{collections::BTreeMap, fmt};

use lb_common::{
    abi::maps,
    lookup::{SPARE_ENTRIES, line_bits},
};

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
    /// How many entries the map has for it.
    per: Per,
}

/// Entries of a map for a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    /// As many.
    One,
    /// One for two.
    Two,
    /// As many, the one that is nobody's, and the spare ones.
    Service,
    /// Lines, and the one that follows them.
    Line,
}

impl Size {
    /// Entries of the map.
    pub fn entries(&self) -> u32 {
        match self.per {
            Per::One => self.wanted,
            Per::Two => self.wanted.div_ceil(2),
            Per::Service => self.wanted + SPARE_ENTRIES + 1,
            Per::Line => (1 << line_bits(self.wanted)) + 1,
        }
    }

    /// What a map of so many entries was made for; of lines, at most.
    fn made_for(&self, entries: u32) -> u32 {
        match self.per {
            Per::One => entries,
            Per::Two => entries.saturating_mul(2),
            Per::Service => entries.saturating_sub(SPARE_ENTRIES + 1),
            Per::Line => entries.saturating_sub(1),
        }
    }
}

/// The maps whose sizes the file sets.
pub(super) fn sizes(limits: &Limits) -> [Size; 9] {
    let size = |map, limit, wanted, per| Size { map, limit, wanted, per };
    let services = |map, per| size(map, "services", limits.services, per);
    let backends = |map| size(map, "backends", limits.backends, Per::One);
    [
        services(maps::SERVICES4, Per::Service),
        services(maps::SERVICES6, Per::Service),
        services(maps::LINES4, Per::Line),
        services(maps::LINES6, Per::Line),
        size(maps::RING, "slots", limits.slots, Per::Two),
        backends(maps::BACKENDS),
        backends(maps::BACKEND_STATS),
        backends(maps::RECORDS),
        size(maps::FLOWS, "flows", limits.flows, Per::One),
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

impl Mismatch {
    /// The key under `limits` that it is about.
    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Limit { limit, .. } => Some(limit),
            Self::Other { .. } => None,
        }
    }
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

/// Compares pinned maps with the ones wanted, each by its name. Nothing is said twice.
pub(super) fn compare_all(
    pinned: &BTreeMap<&'static str, Shape>,
    wanted: &BTreeMap<&'static str, Shape>,
    sizes: &[Size],
) -> Vec<Mismatch> {
    let mut differ: Vec<Mismatch> = Vec::new();
    let is_lines = |name: &str| [maps::LINES4, maps::LINES6].contains(&name);
    let (lines, others): (Vec<_>, Vec<_>) = pinned.iter().partition(|(name, _)| is_lines(name));
    for (name, shape) in others.into_iter().chain(lines) {
        let Some(mismatch) = compare(name, *shape, wanted[name], sizes) else { continue };
        // Lines tell the limit only roughly: not after entries have told it.
        let is_told = mismatch.limit().is_some() && differ.iter().any(|m| m.limit() == mismatch.limit());
        if differ.contains(&mismatch) || is_lines(name) && is_told {
            continue;
        }
        differ.push(mismatch);
    }
    differ
}

/// Compares a pinned map with the one wanted. `None`: it can be used.
fn compare(map: &str, pinned: Shape, wanted: Shape, sizes: &[Size]) -> Option<Mismatch> {
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
        Some(size) => {
            Mismatch::Limit { limit: size.limit, pinned: size.made_for(pinned.entries), wanted: size.wanted }
        }
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
    #[test]
    fn entries_tell_the_limit_of_services_and_lines_only_if_nothing_else_does() {
        let shapes = |limits: &Limits, names: &[&'static str]| -> BTreeMap<_, _> {
            let sizes = sizes(limits).into_iter().filter(|size| names.contains(&size.map));
            sizes.map(|size| (size.map, Shape { entries: size.entries(), ..SHAPE })).collect()
        };
        let wanted = Limits { services: 3000, ..limits() };
        let told = |pinned: &Limits, names: &[&'static str]| -> Vec<String> {
            let (pinned, wanted_shapes) = (shapes(pinned, names), shapes(&wanted, names));
            compare_all(&pinned, &wanted_shapes, &sizes(&wanted)).iter().map(Mismatch::to_string).collect()
        };
        let pinned = Limits { services: 1000, ..wanted };
        let all = [maps::LINES4, maps::LINES6, maps::SERVICES4, maps::SERVICES6];
        let exact = "`limits.services` is 3000, but the pinned maps were made for 1000";
        assert_eq!(told(&pinned, &all), [exact]);
        assert_eq!(
            told(&pinned, &all[..1]),
            ["`limits.services` is 3000, but the pinned maps were made for 1024"]
        );
        // As many lines, another number of entries.
        let pinned = Limits { services: 2999, ..wanted };
        assert_eq!(
            told(&pinned, &all),
            ["`limits.services` is 3000, but the pinned maps were made for 2999"]
        );
        assert_eq!(told(&wanted, &all), [""; 0]);
    }
}
