//! Whether the last packet of a run came out as it should.

use anyhow::{Context as _, Result, ensure};

use super::{
    cases::{Case, Fate},
    driver::Run,
    stream::{ETHERNET, Family, Stream},
    world::{Forward, World},
};

/// The packet goes to the host's stack.
pub const XDP_PASS: u32 = 2;
/// It goes out by the interface it came in by.
pub const XDP_TX: u32 = 3;

/// A floor has put a header in front.
pub fn floor(stream: &Stream, flow: u32, run: &Run) -> Result<()> {
    ensure!(run.action == XDP_TX, "it returned {}", run.action);
    encapsulated(stream, flow, run).map(drop)
}

/// The case's packet is as it came, or as its backend wants it.
pub fn packet(case: &Case, world: &World, flow: u32, run: &Run) -> Result<()> {
    let sent = case.stream.packet(flow);
    if case.fate == Fate::Passed {
        ensure!(run.frame == sent, "the packet is not as it came");
        return Ok(());
    }
    let outer = match case.shape.forward {
        Forward::L2 => {
            ensure!(run.frame[ETHERNET..] == sent[ETHERNET..], "more than the MACs has changed");
            None
        }
        Forward::Ipip => Some(encapsulated(&case.stream, flow, run)?),
    };
    // Where it depends on the limit of pins, the backend is not known.
    let Some(backend) = world.target(&case.stream, flow)? else { return Ok(()) };
    let (address, next_hop) = world.backend(backend).with_context(|| format!("no backend {backend}"))?;
    ensure!(run.frame[..6] == next_hop, "not to the next hop of backend {backend}");
    if let Some(destination) = outer {
        ensure!(address.starts_with(destination), "not to the address of backend {backend}");
    }
    Ok(())
}

/// The packet stands behind an outer header of its own family, whose destination is answered.
fn encapsulated<'a>(stream: &Stream, flow: u32, run: &'a Run) -> Result<&'a [u8]> {
    let (header, sent) = (stream.family.header_len(), stream.packet(flow));
    let frame = &run.frame;
    ensure!(frame.len() == sent.len() + header, "{} bytes became {}", sent.len(), frame.len());
    ensure!(frame[ETHERNET + header..] == sent[ETHERNET..], "the inner packet has changed");
    let outer = &frame[ETHERNET..ETHERNET + header];
    let (protocol, length, destination) = match stream.family {
        Family::V4 => (outer[9], u16::from_be_bytes([outer[2], outer[3]]), &outer[16..]),
        Family::V6 => (outer[6], u16::from_be_bytes([outer[4], outer[5]]) + 40, &outer[24..]),
    };
    let inner = match stream.family {
        Family::V4 => 4,
        Family::V6 => 41,
    };
    ensure!(protocol == inner, "the outer header's protocol is {protocol}");
    ensure!(usize::from(length) == frame.len() - ETHERNET, "the outer header's length is {length}");
    Ok(destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the floor makes of a packet.
    fn tunnelled(stream: &Stream, flow: u32) -> Run {
        let (packet, length) = (stream.packet(flow), stream.ip_len() as u8);
        let mut frame = packet[..ETHERNET].to_vec();
        match stream.family {
            Family::V4 => frame.extend([0x45, 0, 0, length + 20, 0, 0, 0x40, 0, 64, 4, 0, 0]),
            Family::V6 => frame.extend([0x60, 0, 0, 0, 0, length, 41, 64]),
        }
        frame.resize(ETHERNET + stream.family.header_len(), 7);
        frame.extend(&packet[ETHERNET..]);
        Run { ns: 1.0, action: XDP_TX, frame }
    }

    #[test]
    fn a_packet_that_is_not_as_it_should_be_is_seen() {
        for family in [Family::V4, Family::V6] {
            let stream = Stream::new(family, 10);
            let right = || tunnelled(&stream, 3);
            floor(&stream, 3, &right()).unwrap();
            floor(&stream, 4, &right()).unwrap_err();
            floor(&stream, 3, &Run { action: XDP_PASS, ..right() }).unwrap_err();
            floor(&stream, 3, &Run { frame: stream.packet(3), ..right() }).unwrap_err();
            let mut cut = right();
            cut.frame.pop();
            floor(&stream, 3, &cut).unwrap_err();
        }
    }
}
