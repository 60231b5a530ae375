//! Names and sizes that the loader and the program agree on.

/// Version of the maps' layout; pins live under `<pin-dir>/v<LAYOUT_VERSION>/`.
pub const LAYOUT_VERSION: u32 = 1;

/// Largest backend id: a slot has 15 bits for it. Id 0 means none.
pub const MAX_BACKEND_ID: u16 = 0x7fff;

/// Entry point of the balancer program.
pub const PROGRAM: &str = "xlb";

/// The program that deletes pins which have not changed since they were read.
pub const SWEEP_PROGRAM: &str = "xlb_sweep";

/// The program's constant that the loader sets: see [`crate::lookup::line_bits`].
pub const LINE_BITS: &str = "LINE_BITS";

/// The maps' names: object symbols, kernel names (15 bytes at most) and pin names alike.
pub mod maps {
    /// Mmapable array: which entry of [`SERVICES4`] a key leads to, see [`crate::lookup`].
    pub const LINES4: &str = "LINES4";
    /// As [`LINES4`], for [`SERVICES6`].
    pub const LINES6: &str = "LINES6";
    /// Array by index: [`crate::lookup::Entry`].
    pub const SERVICES4: &str = "SERVICES4";
    /// Array by index: [`crate::lookup::Entry`].
    pub const SERVICES6: &str = "SERVICES6";
    /// Mmapable array: slot words of all rings, two an element, see [`crate::slot::Slot`].
    pub const RING: &str = "RING";
    /// Array by backend id: [`crate::backend::Backend`].
    pub const BACKENDS: &str = "BACKENDS";
    /// Per-CPU array by backend id: [`crate::backend::BackendStats`].
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    /// Per-CPU array by outcome: packets as `u64`.
    pub const OUTCOMES: &str = "OUTCOMES";
    /// Device map by interface index: where packets may be redirected to.
    pub const DEVICES: &str = "DEVICES";
    /// The flow table. Hash: [`crate::flow::FlowKey`] -> [`crate::flow::Pin`].
    pub const FLOWS: &str = "FLOWS";
    /// Per-CPU array of one: [`crate::flow::PinStats`].
    pub const PIN_STATS: &str = "PIN_STATS";
    /// Per-CPU array of one: UDP pins that the CPU may still make until the next sweep, as `u64`.
    pub const UDP_ROOM: &str = "UDP_ROOM";
    /// Array: [`crate::flow::SweepItem`], what the sweeping program is to delete.
    pub const SWEEP: &str = "SWEEP";
    /// Array by backend id: [`crate::record::Record`].
    pub const RECORDS: &str = "RECORDS";

    /// Every map of the balancer.
    pub const ALL: [&str; 14] = [
        LINES4,
        LINES6,
        SERVICES4,
        SERVICES6,
        RING,
        BACKENDS,
        BACKEND_STATS,
        OUTCOMES,
        DEVICES,
        FLOWS,
        PIN_STATS,
        UDP_ROOM,
        SWEEP,
        RECORDS,
    ];
}
