//! What a restarted controller has to know of a backend, besides its entry: element of `RECORDS`, by backend id.
//! The program never reads it.

/// Bytes of a name in a [`Record`], zeros behind it. Names have 63 at most.
pub const NAME_LEN: usize = 64;

/// Who has a backend id, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// The service's name.
    pub service: [u8; NAME_LEN],
    /// The backend's name in it.
    pub name: [u8; NAME_LEN],
    /// What its health rests on, as it displays (`L7STS 503`), zeros behind it.
    pub cause: [u8; 16],
    /// When its drain began: `CLOCK_MONOTONIC`, ns; 0: it does not drain.
    pub drain_since_ns: u64,
    /// Its port, host order; 0: the packet's.
    pub port: u16,
    /// One of the `HEALTH_*` constants.
    pub health: u8,
    /// The operator's word: one of the `STATE_*` constants.
    pub operator: u8,
    /// What the file said when the operator spoke: one of the `STATE_*` constants.
    pub file: u8,
    /// 1: the file no longer names it.
    pub leaving: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// No verdict yet.
pub const HEALTH_UNKNOWN: u8 = 0;
/// Up.
pub const HEALTH_UP: u8 = 1;
/// Down.
pub const HEALTH_DOWN: u8 = 2;

/// The operator said nothing.
pub const STATE_NONE: u8 = 0;
/// `active`.
pub const STATE_ACTIVE: u8 = 1;
/// `drain`.
pub const STATE_DRAIN: u8 = 2;
/// `disabled`.
pub const STATE_DISABLED: u8 = 3;

impl Record {
    /// An entry that is not in use.
    pub const NONE: Self = Self {
        service: [0; NAME_LEN],
        name: [0; NAME_LEN],
        cause: [0; 16],
        drain_since_ns: 0,
        port: 0,
        health: HEALTH_UNKNOWN,
        operator: STATE_NONE,
        file: STATE_NONE,
        leaving: 0,
        reserved: [0; 2],
    };
}

const _: () = assert!(size_of::<Record>() == 160);
