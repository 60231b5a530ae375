//! Service keys and values.

/// Key of an IPv4 service. Port 0 is "any port"; port 0 with protocol 0 marks a *service address* (see
/// [`Service::is_address`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey4 {
    /// Destination address.
    pub address: [u8; 4],
    /// Destination port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// Key of an IPv6 service, see [`ServiceKey4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey6 {
    /// Destination address.
    pub address: [u8; 16],
    /// Destination port, network order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

impl ServiceKey4 {
    /// Key of a packet to (address, port, protocol).
    #[inline(always)]
    pub const fn new(address: [u8; 4], port: [u8; 2], protocol: u8) -> Self {
        Self { address, port, protocol, reserved: 0 }
    }
}

impl ServiceKey6 {
    /// Key of a packet to (address, port, protocol).
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: [u8; 2], protocol: u8) -> Self {
        Self { address, port, protocol, reserved: 0 }
    }
}

/// What the program knows of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Key of the packet hash for this address and protocol, see [`crate::hash::service4`].
    pub hash_key: u64,
    /// First slot of its ring in `RING`.
    pub ring_base: u32,
    /// Slots of its ring; 0 only in a service address's entry.
    pub ring_size: u32,
    /// One of the `FORWARD_*` constants.
    pub forward: u8,
    /// `SERVICE_*` flags.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// Not a service: this address is one that services listen on.
pub const FORWARD_NONE: u8 = 0;
/// The destination MAC becomes the backend's.
pub const FORWARD_L2: u8 = 1;
/// IP in IP.
pub const FORWARD_IPIP: u8 = 2;

/// The hash covers the client's address only.
pub const SERVICE_HASH_CLIENT: u8 = 1 << 0;
/// `tracking: always`: every flow is pinned.
pub const SERVICE_TRACK_ALWAYS: u8 = 1 << 1;
/// `tracking: never`: no flow is pinned.
pub const SERVICE_TRACK_NEVER: u8 = 1 << 2;
/// `on_all_down: reject`: a client whom nobody can serve is told so.
pub const SERVICE_REJECT: u8 = 1 << 3;

impl Service {
    /// The entry that marks an address that services listen on: malformed packets are judged for these only.
    pub const ADDRESS: Self =
        Self { hash_key: 0, ring_base: 0, ring_size: 0, forward: FORWARD_NONE, flags: 0, reserved: [0; 6] };

    /// Whether this entry marks an address and is no service.
    #[inline(always)]
    pub const fn is_address(&self) -> bool {
        self.forward == FORWARD_NONE
    }
}

const _: () = assert!(size_of::<ServiceKey4>() == 8);
const _: () = assert!(size_of::<ServiceKey6>() == 20);
const _: () = assert!(size_of::<Service>() == 24);
