//! The flow table: where a packet goes whose slot is not settled, or whose flow is always tracked.
//!
//! The decision is [`lb_common::track::decide`]'s; here it is carried out on the maps.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_ktime_get_coarse_ns, programs::XdpContext};
use lb_common::{
    backend::BACKEND_USABLE,
    flow::{FlowKey, PINS_PER_WINDOW, Pin, RATE_WINDOW_NS},
    parse::{self, Packet, Parsed, TCP_FIN, TCP_RST, UDP},
    plain,
    track::{self, Decision, PinState, Segment},
};
use lb_ebpf::packet::Frame;

use crate::maps::{self, Inserted};

/// Where the packet goes, in one word.
#[derive(Clone, Copy)]
pub struct Answer(u32);

const LOST: u32 = 1 << 16;
const NEW: u32 = 1 << 17;

impl Answer {
    /// The backend's id, 0 for nobody; `None` if the flow's backend is dead.
    #[inline(always)]
    pub fn backend(self) -> Option<u16> {
        (self.0 & LOST == 0).then_some(self.0 as u16)
    }

    /// Whether the flow got a new pin.
    #[inline(always)]
    pub fn is_new(self) -> bool {
        self.0 & NEW != 0
    }
}

/// Where the IPv4 packet at `at` goes, which falls on the slot at `index`. `always`: its flow is tracked whatever the
/// slot's state.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext, at: usize, index: u32, always: bool) -> Answer {
    Answer(xlb_track4(ctx.ctx, at as u32, index, u32::from(always)))
}

/// As [`ipv4`].
#[inline(always)]
pub fn ipv6(ctx: &XdpContext, at: usize, index: u32, always: bool) -> Answer {
    Answer(xlb_track6(ctx.ctx, at as u32, index, u32::from(always)))
}

/// The IP header's offset, passed to a global function. Of an argument the verifier knows nothing, and offsets into packets
/// want bounds: here it has three paths with a constant in each.
#[inline(always)]
pub fn header_at(at: u32) -> usize {
    match at {
        14 => 14,
        18 => 18,
        _ => 22,
    }
}

/// Two *global* functions: the verifier checks each once by itself, not for each state that a caller can be in. Inlined,
/// or static, they take the program past the limits of a million instructions and of 512 bytes of stack. They parse the
/// packet again, since their arguments are scalars, five at most.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xlb_track4(ctx: *mut xdp_md, at: u32, index: u32, always: u32) -> u32 {
    let frame = Frame::new(&XdpContext::new(ctx));
    let packet = match plain::ipv4(&frame) {
        Some(packet) => packet,
        None => match parse::ipv4(&frame, header_at(at)) {
            Parsed::Packet(packet) => packet,
            Parsed::Bad(..) | Parsed::NotOurs => return 0,
        },
    };
    let key = FlowKey::ipv4(packet.source, packet.destination, packet.ports, packet.protocol);
    choose(&key, index, &Request::new(&packet, always != 0))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xlb_track6(ctx: *mut xdp_md, at: u32, index: u32, always: u32) -> u32 {
    let frame = Frame::new(&XdpContext::new(ctx));
    let packet = match plain::ipv6(&frame) {
        Some(packet) => packet,
        None => match parse::ipv6(&frame, header_at(at)) {
            Parsed::Packet(packet) => packet,
            Parsed::Bad(..) | Parsed::NotOurs => return 0,
        },
    };
    let key = FlowKey::ipv6(packet.source, packet.destination, packet.ports, packet.protocol);
    choose(&key, index, &Request::new(&packet, always != 0))
}

/// What is asked about a packet.
struct Request {
    segment: Segment,
    closes: bool,
    always: bool,
}

impl Request {
    #[inline(always)]
    fn new<A>(packet: &Packet<A>, always: bool) -> Self {
        let segment = if packet.protocol == UDP {
            Segment::Datagram
        } else if packet.is_syn() {
            Segment::Opens
        } else if packet.tcp_flags & TCP_RST != 0 {
            Segment::Resets
        } else {
            Segment::Continues
        };
        Self { segment, closes: packet.tcp_flags & (TCP_FIN | TCP_RST) != 0, always }
    }
}

/// Looks the flow up, decides, writes.
#[inline(always)]
fn choose(key: &FlowKey, index: u32, request: &Request) -> u32 {
    // SAFETY: the helper takes no argument. Coarse: a tick's resolution at a fraction of the cost.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let pin = maps::pin(key);
    let state = match &pin {
        None => PinState::None,
        Some(pin) if is_usable(pin.backend) => {
            PinState::Usable { closing: pin.closing != 0, quiet_ns: now.saturating_sub(pin.last_seen_ns) }
        }
        Some(_) => PinState::Dead,
    };
    // After the pin: one that the sweeper has dropped because its slot moves no more is missed in a slot that does not.
    let slot = maps::slot(index);
    let closes = request.closes;
    let new = |backend| Pin { last_seen_ns: now, slot: index, backend, closing: u16::from(closes) };
    let decision = track::decide(slot, request.segment, request.always, state);
    #[cfg(feature = "control-refused-to-current")]
    let decision = refused_to_current(decision);
    match decision {
        Decision::Send(id) => u32::from(id),
        Decision::Follow => pin.map_or(0, |pin| {
            note(pin, now, request.segment, closes);
            u32::from(pin.backend)
        }),
        Decision::Repin(to) => {
            if let Some(pin) = pin {
                *pin = new(to);
            }
            u32::from(to)
        }
        Decision::Pin { to, refused } => match pin {
            Some(pin) => {
                *pin = new(to);
                u32::from(to) | NEW
            }
            None => insert(key, &new(to), refused, request.segment == Segment::Datagram),
        },
        Decision::Lost => {
            maps::delete_pin(key);
            LOST
        }
    }
}

/// Breaks a rule on purpose, for the test that shows what it is for: a SYN whose pin is refused goes where the pin would
/// have led it, to current.
#[cfg(feature = "control-refused-to-current")]
#[inline(always)]
fn refused_to_current(decision: Decision) -> Decision {
    match decision {
        Decision::Pin { to, .. } => Decision::Pin { to, refused: to },
        other => other,
    }
}

/// Notes that a pin's flow was seen.
#[inline(always)]
fn note(pin: &mut Pin, now: u64, segment: Segment, closes: bool) {
    // Not at every packet: a line that all CPUs write is slow, and nothing looks closer than this.
    if now.wrapping_sub(pin.last_seen_ns) > NOTE_NS {
        pin.last_seen_ns = now;
    }
    if closes {
        pin.closing = 1;
    } else if segment == Segment::Opens && pin.closing != 0 {
        pin.closing = 0;
    }
}

/// `last_seen_ns` may be behind by so much.
const NOTE_NS: u64 = 100_000_000;

/// Makes a new pin; answers where the packet goes.
#[inline(always)]
fn insert(key: &FlowKey, pin: &Pin, refused: u16, is_datagram: bool) -> u32 {
    if !may_insert(pin.last_seen_ns, is_datagram) {
        return u32::from(refused);
    }
    match maps::insert_pin(key, pin) {
        Inserted::New => u32::from(pin.backend) | NEW,
        // Another CPU was faster: its pin counts.
        Inserted::Exists => maps::pin(key).map_or(u32::from(refused), |winner| u32::from(winner.backend)),
        Inserted::Refused => {
            maps::count_refused(is_datagram);
            u32::from(refused)
        }
    }
}

/// Whether this CPU may make another pin now.
#[inline(always)]
fn may_insert(now: u64, is_datagram: bool) -> bool {
    let Some(stats) = maps::pin_stats() else { return false };
    let window = now / RATE_WINDOW_NS;
    if stats.window != window {
        (stats.window, stats.in_window, stats.answers_in_window) = (window, 0, 0);
    }
    stats.in_window += 1;
    if stats.in_window > PINS_PER_WINDOW || (is_datagram && !maps::take_udp_room()) {
        maps::count_refused(is_datagram);
        return false;
    }
    true
}

/// Whether a backend is there and not dead.
#[inline(always)]
fn is_usable(id: u16) -> bool {
    maps::backend(id).is_some_and(|backend| backend.flags & BACKEND_USABLE != 0)
}
