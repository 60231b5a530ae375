//! Whether a pin stays.

use lb_common::{flow::Pin, slot::Slot};

use super::RingView;
use crate::config::spec::{Protocol, Tracking};

/// Why a pin is dropped. Where several reasons hold, the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// No service has its slot any more.
    NoService,
    /// Its backend is dead.
    Dead,
    /// A FIN or RST was seen, and nothing for [`CLOSED_NS`].
    Closed,
    /// Nothing was seen for longer than the service's `idle_timeout`.
    Idle,
    /// It says what the slot says.
    Current,
}

impl DropReason {
    /// In the order of the numbers.
    pub const ALL: [Self; 5] = [Self::NoService, Self::Dead, Self::Closed, Self::Idle, Self::Current];

    /// Its name in texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoService => "no_service",
            Self::Dead => "dead",
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Current => "current",
        }
    }
}

/// A closing pin unseen for so long is dropped: what is still in flight of its connection has arrived by then.
pub const CLOSED_NS: u64 = 10_000_000_000;

/// Why `pin` is to go; `None`: it stays.
///
/// `ring` has the pin's slot, `slot` is its word, read **after** the pin: so a pin to current whose slot moves before
/// it is deleted is lost to previous, the same backend. `usable`: the pin's backend is not dead. `now_ns` is of
/// `CLOCK_MONOTONIC`, as the pin's time.
pub fn drop_reason(
    ring: Option<&RingView>,
    slot: Slot,
    usable: bool,
    protocol: u8,
    pin: &Pin,
    now_ns: u64,
) -> Option<DropReason> {
    let Some(ring) = ring else { return Some(DropReason::NoService) };
    if !usable {
        return Some(DropReason::Dead);
    }
    // A pin may have been seen after the clock was read.
    let unseen_ns = now_ns.saturating_sub(pin.last_seen_ns);
    if pin.closing != 0 && unseen_ns >= CLOSED_NS {
        return Some(DropReason::Closed);
    }
    let udp = protocol == Protocol::Udp.number();
    if unseen_ns > if udp { ring.idle_udp_ns } else { ring.idle_tcp_ns } {
        return Some(DropReason::Idle);
    }
    // UDP, and TCP with `tracking: always`, is pinned on purpose even where the slot says the same.
    let only_while_moving = !udp && ring.tracking == Tracking::Auto;
    (only_while_moving && !slot.is_moving() && slot.current() == pin.backend).then_some(DropReason::Current)
}

#[cfg(test)]
mod tests;
