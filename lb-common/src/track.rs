//! What becomes of a packet of a tracked flow: the table of slot states, packets and pins, as one pure function.

use crate::{flow::REUSE_NS, slot::Slot};

/// What a packet is to the flow table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Segment {
    /// A TCP SYN without ACK: may open a connection.
    Opens,
    /// Any other TCP segment but a RST.
    Continues,
    /// A TCP RST.
    Resets,
    /// UDP: each packet may be the first.
    Datagram,
}

/// What the flow table says of the packet's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PinState {
    /// No pin.
    None,
    /// To a backend that is not dead.
    Usable {
        /// A FIN or RST was seen.
        closing: bool,
        /// For so long nothing was seen.
        quiet_ns: u64,
    },
    /// To a dead backend.
    Dead,
}

/// Where the packet goes, and what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// To this backend (0: nobody is there); the flow table stays as it is.
    Send(u16),
    /// Along the pin; last seen is noted.
    Follow,
    /// The flow is pinned to `to`. A pin that is there already is rewritten, which no limit refuses; a new one that is
    /// refused leaves the packet to `refused`.
    Pin {
        /// Backend of the pin.
        to: u16,
        /// Where the packet goes without one.
        refused: u16,
    },
    /// As `Send`, but a pin that is there already is rewritten.
    Repin(u16),
    /// The flow's backend is dead: the pin is deleted, the dead answer sent.
    Lost,
}

/// Decides. `always`: every flow is pinned, as UDP's are (`tracking: always`).
///
/// A settled slot without `always` never comes here: its packets go to current.
#[inline(always)]
pub fn decide(slot: Slot, segment: Segment, always: bool, pin: PinState) -> Decision {
    match segment {
        Segment::Datagram => datagram(slot, pin),
        Segment::Opens => opens(slot, always, pin),
        Segment::Continues | Segment::Resets => continues(slot, segment, always, pin),
    }
}

#[inline(always)]
fn datagram(slot: Slot, pin: PinState) -> Decision {
    match pin {
        PinState::Usable { .. } => Decision::Follow,
        PinState::None | PinState::Dead => pin_to(slot.current(), slot.current()),
    }
}

#[inline(always)]
fn opens(slot: Slot, always: bool, pin: PinState) -> Decision {
    // A retransmission, or a blind attack (RFC 5961): the server decides. But a closed connection that has been quiet
    // is over: the client uses its port again.
    if let PinState::Usable { closing, quiet_ns } = pin
        && (!closing || quiet_ns < REUSE_NS)
    {
        return Decision::Follow;
    }
    // Refused, it goes where the rest of its flow will go without a pin; previous is current unless the slot moves.
    if slot.is_moving() || always || slot.current() == 0 {
        pin_to(slot.current(), slot.previous())
    } else {
        Decision::Repin(slot.current())
    }
}

#[inline(always)]
fn continues(slot: Slot, segment: Segment, always: bool, pin: PinState) -> Decision {
    match pin {
        PinState::Usable { .. } => return Decision::Follow,
        PinState::Dead => return Decision::Lost,
        PinState::None => {}
    }
    // Of a moving slot it is an old connection; of others previous is current.
    let to = slot.previous();
    if segment == Segment::Resets || !(slot.is_moving() || always) {
        Decision::Send(to)
    } else {
        pin_to(to, to)
    }
}

/// Nobody is nobody: no flow is pinned to that.
#[inline(always)]
fn pin_to(to: u16, refused: u16) -> Decision {
    if to == 0 { Decision::Send(0) } else { Decision::Pin { to, refused } }
}

#[cfg(test)]
mod tests;
