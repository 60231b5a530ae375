//! The story of a packet: parse, service, slot, backend, forward.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::{BACKEND_ROUTED, Backend},
    hash,
    outcome::Outcome,
    parse::{self, Bad, Network, Packet, Parsed},
    service::{SERVICE_HASH_CLIENT, Service},
};
use lb_ebpf::packet::Frame;

use crate::{forward, maps};

/// Decides about a packet and rewrites it. `Err` is an outcome, too: the way out of the middle.
#[inline(always)]
pub fn balance(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    let frame = Frame::new(ctx);
    match parse::network(&frame) {
        Network::Ipv4(at) => ipv4(ctx, &frame, at),
        Network::Ipv6(at) => ipv6(ctx, &frame, at),
        Network::Other => Err(Outcome::PassNotOurs),
    }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, frame: &Frame, at: usize) -> Result<Outcome, Outcome> {
    let packet = match parse::ipv4(frame, at) {
        Parsed::Packet(packet) => packet,
        Parsed::Bad(to, why) => return Err(judge(maps::service4(to, [0, 0], 0), why)),
        Parsed::NotOurs => return Err(Outcome::PassNotOurs),
    };
    let service = maps::service4(packet.destination, packet.destination_port(), packet.protocol)
        .ok_or(Outcome::PassNotOurs)?;
    if parse::is_bad_source4(packet.source, packet.destination) {
        return Err(Outcome::DropBadSource);
    }
    let hash = hash::flow4(
        service.hash_key,
        packet.source,
        packet.destination,
        ports(service, &packet),
        packet.protocol,
    );
    let (id, backend) = select(service, hash)?;
    send(ctx, service, id, backend, hash, at, false, &packet)
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, frame: &Frame, at: usize) -> Result<Outcome, Outcome> {
    let packet = match parse::ipv6(frame, at) {
        Parsed::Packet(packet) => packet,
        Parsed::Bad(to, why) => return Err(judge(maps::service6(to, [0, 0], 0), why)),
        Parsed::NotOurs => return Err(Outcome::PassNotOurs),
    };
    let service = maps::service6(packet.destination, packet.destination_port(), packet.protocol)
        .ok_or(Outcome::PassNotOurs)?;
    if parse::is_bad_source6(packet.source, packet.destination) {
        return Err(Outcome::DropBadSource);
    }
    let hash = hash::flow6(
        service.hash_key,
        packet.source,
        packet.destination,
        ports(service, &packet),
        packet.protocol,
    );
    let (id, backend) = select(service, hash)?;
    send(ctx, service, id, backend, hash, at, true, &packet)
}

/// What becomes of a broken packet: dropped if its destination is a service address, else none of our business.
#[inline(always)]
fn judge(address: Option<&Service>, why: Bad) -> Outcome {
    match (address, why) {
        (None, _) => Outcome::PassNotOurs,
        (Some(_), Bad::Malformed) => Outcome::DropMalformed,
        (Some(_), Bad::Fragment) => Outcome::DropFragment,
    }
}

/// The ports that the hash covers.
#[inline(always)]
fn ports<A>(service: &Service, packet: &Packet<A>) -> [u8; 4] {
    if service.flags & SERVICE_HASH_CLIENT == 0 { packet.ports } else { [0; 4] }
}

/// The slot's backend, ready to be sent to.
#[inline(always)]
fn select(service: &Service, hash: u32) -> Result<(u16, &'static Backend), Outcome> {
    let slot = maps::slot(service, hash::slot(hash, service.ring_size));
    let id = slot.current();
    if id == 0 {
        return Err(Outcome::DropNoBackend);
    }
    let backend = maps::backend(id).ok_or(Outcome::DropNoBackend)?;
    if backend.flags & BACKEND_ROUTED == 0 {
        return Err(Outcome::DropNoNextHop);
    }
    Ok((id, backend))
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a stage of the packet path: inlined, all of it in registers")]
fn send<A>(
    ctx: &XdpContext,
    service: &Service,
    id: u16,
    backend: &Backend,
    hash: u32,
    at: usize,
    inner_v6: bool,
    packet: &Packet<A>,
) -> Result<Outcome, Outcome> {
    let inner = forward::Inner { at, ipv6: inner_v6, tos: packet.tos, ip_len: packet.ip_len, hash };
    forward::rewrite(ctx, service, backend, &inner)?;
    let outcome = if backend.ifindex as usize == ctx.ingress_ifindex() {
        Outcome::Forwarded
    } else {
        maps::redirect(backend.ifindex)?;
        Outcome::Redirected
    };
    maps::count_sent(id, packet.ip_len, packet.is_syn());
    Ok(outcome)
}
