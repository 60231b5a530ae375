//! The story of a packet: parse, service, slot, backend, forward.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::{BACKEND_ROUTED, Backend},
    hash,
    outcome::Outcome,
    parse::{self, Bad, Network, Packet, Parsed, UDP},
    plain,
    service::{SERVICE_HASH_CLIENT, SERVICE_REJECT, SERVICE_TRACK_ALWAYS, SERVICE_TRACK_NEVER, Service},
};
use lb_ebpf::packet::Frame;

use crate::{
    answer, forward, maps,
    track::{self, Answer},
};

/// Decides about a plain IPv4 packet and rewrites it; `None` if it is none.
#[inline(always)]
pub fn plain4(ctx: &XdpContext) -> Option<Outcome> {
    let packet = plain::ipv4(&Frame::new(ctx))?;
    Some(ipv4(ctx, plain::AT, &packet).unwrap_or_else(|refused| refused))
}

/// As [`plain4`].
#[inline(always)]
pub fn plain6(ctx: &XdpContext) -> Option<Outcome> {
    let packet = plain::ipv6(&Frame::new(ctx))?;
    Some(ipv6(ctx, plain::AT, &packet).unwrap_or_else(|refused| refused))
}

/// Decides about any packet and rewrites it.
#[inline(always)]
pub fn any(ctx: &XdpContext) -> Outcome {
    let frame = Frame::new(ctx);
    let outcome = match parse::network(&frame) {
        Network::Ipv4(at) => match parse::ipv4(&frame, at) {
            Parsed::Packet(packet) => ipv4(ctx, at, &packet),
            Parsed::Bad(to, why) => Err(judge(maps::is_service_address4(to), why)),
            Parsed::NotOurs => Err(Outcome::PassNotOurs),
        },
        Network::Ipv6(at) => match parse::ipv6(&frame, at) {
            Parsed::Packet(packet) => ipv6(ctx, at, &packet),
            Parsed::Bad(to, why) => Err(judge(maps::is_service_address6(to), why)),
            Parsed::NotOurs => Err(Outcome::PassNotOurs),
        },
        Network::Other => Err(Outcome::PassNotOurs),
    };
    outcome.unwrap_or_else(|refused| refused)
}

/// The IPv4 packet whose header stands at `at`. `Err` is an outcome, too: the way out of the middle.
#[inline(always)]
fn ipv4(ctx: &XdpContext, at: usize, packet: &Packet<[u8; 4]>) -> Result<Outcome, Outcome> {
    let service = maps::service4(packet.destination, packet.destination_port(), packet.protocol)
        .ok_or(Outcome::PassNotOurs)?;
    if parse::is_bad_source4(packet.source, packet.destination) {
        return Err(Outcome::DropBadSource);
    }
    let ports = ports(service, packet);
    let hash = hash::flow4(service.hash_key, packet.source, ports);
    let track = |index, always| track::ipv4(ctx, at, index, always);
    let Some(target) = select(service, hash, packet, track)? else { return Err(answer::ipv4(ctx, at)) };
    send(ctx, service, &target, hash, at, false, packet)
}

/// As [`ipv4`].
#[inline(always)]
fn ipv6(ctx: &XdpContext, at: usize, packet: &Packet<[u8; 16]>) -> Result<Outcome, Outcome> {
    let service = maps::service6(packet.destination, packet.destination_port(), packet.protocol)
        .ok_or(Outcome::PassNotOurs)?;
    if parse::is_bad_source6(packet.source, packet.destination) {
        return Err(Outcome::DropBadSource);
    }
    let ports = ports(service, packet);
    let hash = hash::flow6(service.hash_key, packet.source, ports);
    let track = |index, always| track::ipv6(ctx, at, index, always);
    let Some(target) = select(service, hash, packet, track)? else { return Err(answer::ipv6(ctx, at)) };
    send(ctx, service, &target, hash, at, true, packet)
}

/// What becomes of a broken packet: dropped if its destination is a service address, else none of our business.
#[inline(always)]
fn judge(is_service_address: bool, why: Bad) -> Outcome {
    match (is_service_address, why) {
        (false, _) => Outcome::PassNotOurs,
        (true, Bad::Malformed) => Outcome::DropMalformed,
        (true, Bad::Fragment) => Outcome::DropFragment,
    }
}

/// The ports that the hash covers.
#[inline(always)]
fn ports<A>(service: &Service, packet: &Packet<A>) -> [u8; 4] {
    let mask = if service.flags & SERVICE_HASH_CLIENT == 0 { u32::MAX } else { 0 };
    (u32::from_ne_bytes(packet.ports) & mask).to_ne_bytes()
}

/// Where a packet goes.
struct Target {
    id: u16,
    backend: &'static Backend,
    /// It opens a connection, or is the first of a datagram's flow.
    is_new: bool,
}

/// The backend of the packet, ready to be sent to; `None` if its client is to be told that there is nobody. `track` asks
/// the flow table.
#[inline(always)]
fn select<A>(
    service: &Service,
    hash: u32,
    packet: &Packet<A>,
    track: impl Fn(u32, bool) -> Answer,
) -> Result<Option<Target>, Outcome> {
    let index = service.ring_base + hash::slot(hash, service.ring_size);
    let slot = maps::slot(index);
    let always = packet.protocol == UDP || service.flags & SERVICE_TRACK_ALWAYS != 0;
    let mut is_new = packet.is_syn();
    let mut id = slot.current();
    if service.flags & SERVICE_TRACK_NEVER == 0 && (always || !slot.is_settled()) {
        let answer = track(index, always);
        let Some(chosen) = answer.backend() else { return Ok(None) };
        id = chosen;
        is_new |= packet.protocol == UDP && answer.is_new();
    }
    if id == 0 {
        return if service.flags & SERVICE_REJECT != 0 { Ok(None) } else { Err(Outcome::DropNoBackend) };
    }
    let backend = maps::backend(id).ok_or(Outcome::DropNoBackend)?;
    if backend.flags & BACKEND_ROUTED == 0 {
        return Err(Outcome::DropNoNextHop);
    }
    Ok(Some(Target { id, backend, is_new }))
}

#[inline(always)]
fn send<A>(
    ctx: &XdpContext,
    service: &Service,
    target: &Target,
    hash: u32,
    at: usize,
    inner_v6: bool,
    packet: &Packet<A>,
) -> Result<Outcome, Outcome> {
    let inner = forward::Inner { at, ipv6: inner_v6, tos: packet.tos, ip_len: packet.ip_len, hash };
    forward::rewrite(ctx, service, target.backend, &inner)?;
    let outcome = if target.backend.ifindex as usize == ctx.ingress_ifindex() {
        Outcome::Forwarded
    } else {
        maps::redirect(target.backend.ifindex)?;
        Outcome::Redirected
    };
    maps::count_sent(target.id, packet.ip_len, target.is_new);
    Ok(outcome)
}
