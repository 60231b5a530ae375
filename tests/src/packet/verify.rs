//! Whether a frame is right, and what it is. Everything here is etherparse's opinion.

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpNumber, LaxNetSlice, LaxSlicedPacket, LinkSlice, NetSlice, SlicedPacket,
    TcpSlice, TransportSlice, UdpSlice, checksum::Sum16BitWords,
};
use std::{fmt::Write, net::IpAddr};

/// The least payload of an Ethernet frame: shorter packets may be followed by padding.
const LEAST_ETHERNET_PAYLOAD: usize = 46;

/// Whether all lengths and checksums of an Ethernet frame with IP in it are right, of each layer of IP in IP.
///
/// Transport checksums of fragments cannot be told and are not looked at, nor is what ICMP errors quote. UDP may go without a
/// checksum in IPv4.
///
/// # Errors
/// What is wrong first, from outside in.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let packet = ip_packet(frame)?;
    let len = ip_length(packet)?;
    if len < packet.len() && packet.len() > LEAST_ETHERNET_PAYLOAD {
        return Err(format!("{} bytes after the IP packet of {len}", packet.len() - len));
    }
    verify_ip(&packet[..len])
}

/// What follows the Ethernet header and VLAN tags.
pub(super) fn ip_packet(frame: &[u8]) -> Result<&[u8], String> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let payload = sliced.ether_payload().ok_or("no Ethernet payload")?;
    match payload.ether_type.0 {
        0x0800 | 0x86dd => Ok(payload.payload),
        other => Err(format!("Ethernet type {other:#06x} is not IP")),
    }
}

/// What the IP header says. At most what is there.
fn ip_length(packet: &[u8]) -> Result<usize, String> {
    let sliced = SlicedPacket::from_ip(packet).map_err(|error| error.to_string())?;
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => Ok(ip.header().total_len().into()),
        Some(NetSlice::Ipv6(ip)) => Ok(40 + usize::from(ip.header().payload_length())),
        _ => Err("not IP".into()),
    }
}

/// Checks a packet that ends where its slice ends.
fn verify_ip(packet: &[u8]) -> Result<(), String> {
    let len = ip_length(packet)?;
    if len != packet.len() {
        return Err(format!("IP length {len} in {} bytes", packet.len()));
    }
    let sliced = SlicedPacket::from_ip(packet).map_err(|error| error.to_string())?;
    let (addresses, payload) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let right = header.to_header().calc_header_checksum();
            if right != header.header_checksum() {
                return Err(format!("IPv4 checksum {:#06x}, not {right:#06x}", header.header_checksum()));
            }
            ((header.source_addr().into(), header.destination_addr().into()), ip.payload())
        }
        Some(NetSlice::Ipv6(ip)) => {
            ((ip.header().source_addr().into(), ip.header().destination_addr().into()), ip.payload())
        }
        _ => return Err("not IP".into()),
    };
    if payload.fragmented {
        return Ok(());
    }
    match (payload.ip_number, &sliced.transport) {
        (IpNumber::IPV4 | IpNumber::IPV6, _) => {
            verify_ip(payload.payload).map_err(|error| format!("inner {error}"))
        }
        (_, Some(TransportSlice::Tcp(tcp))) => verify_tcp(tcp, addresses),
        (_, Some(TransportSlice::Udp(udp))) => verify_udp(udp, payload.payload.len(), addresses),
        (_, Some(TransportSlice::Icmpv4(icmp))) => verify_icmpv4(icmp),
        (_, Some(TransportSlice::Icmpv6(icmp))) => verify_icmpv6(icmp, addresses),
        _ => Ok(()),
    }
}

fn verify_tcp(tcp: &TcpSlice<'_>, addresses: (IpAddr, IpAddr)) -> Result<(), String> {
    let right = match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            tcp.calc_checksum_ipv4(source.octets(), destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            tcp.calc_checksum_ipv6(source.octets(), destination.octets())
        }
        _ => return Err("addresses of two families".into()),
    };
    check("TCP", tcp.checksum(), right.map_err(|error| error.to_string())?)
}

fn verify_udp(udp: &UdpSlice<'_>, len: usize, addresses: (IpAddr, IpAddr)) -> Result<(), String> {
    if usize::from(udp.length()) != len {
        return Err(format!("UDP length {} in {len} bytes", udp.length()));
    }
    let header = udp.to_header();
    let right = match addresses {
        (IpAddr::V4(_), _) if udp.checksum() == 0 => return Ok(()),
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), udp.payload())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), udp.payload())
        }
        _ => return Err("addresses of two families".into()),
    };
    check("UDP", udp.checksum(), right.map_err(|error| error.to_string())?)
}

fn verify_icmpv4(icmp: &Icmpv4Slice<'_>) -> Result<(), String> {
    // RFC 1071: with a right checksum in it, the message sums up to zero.
    let sum = Sum16BitWords::new().add_slice(icmp.slice()).ones_complement();
    if sum == 0 { Ok(()) } else { Err(format!("ICMP checksum {:#06x} is wrong", icmp.checksum())) }
}

fn verify_icmpv6(icmp: &Icmpv6Slice<'_>, addresses: (IpAddr, IpAddr)) -> Result<(), String> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = addresses else {
        return Err("ICMPv6 in IPv4".into());
    };
    let right = icmp.is_checksum_valid(source.octets(), destination.octets());
    if right { Ok(()) } else { Err(format!("ICMPv6 checksum {:#06x} is wrong", icmp.checksum())) }
}

fn check(what: &str, found: u16, right: u16) -> Result<(), String> {
    if found == right { Ok(()) } else { Err(format!("{what} checksum {found:#06x}, not {right:#06x}")) }
}

/// A frame in one line, as far as it can be understood:
/// `eth 02:00:00:00:00:01>02:00:00:00:00:02 vlan 5 ipv4 1.2.3.4>5.6.7.8 tcp 1>2 [S] len 60`.
///
/// `len` is the frame's. Where parsing stops before the end, the reason follows in parentheses.
pub fn describe(frame: &[u8]) -> String {
    let mut text = String::new();
    let stop = match LaxSlicedPacket::from_ethernet(frame) {
        Ok(packet) => {
            if let Some(LinkSlice::Ethernet2(eth)) = &packet.link {
                text += &format!("eth {}>{}", mac(eth.source()), mac(eth.destination()));
            }
            for id in packet.vlan_ids() {
                let _ = write!(text, " vlan {}", id.value());
            }
            if packet.net.is_none() && packet.stop_err.is_none() {
                let ether_type = packet.ether_payload().map(|payload| payload.ether_type.0);
                let _ = write!(text, " type {:#06x}", ether_type.unwrap_or_default());
            }
            describe_net(&packet, &mut text)
        }
        Err(error) => Some(error.to_string()),
    };
    let _ = write!(text, " len {}", frame.len());
    if let Some(stop) = stop {
        let _ = write!(text, " ({stop})");
    }
    text.trim_start().to_owned()
}

/// Appends IP and what is in it; returns why parsing stopped.
fn describe_net(packet: &LaxSlicedPacket<'_>, text: &mut String) -> Option<String> {
    let payload = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let _ = write!(text, " ipv4 {}>{}", header.source_addr(), header.destination_addr());
            if header.is_fragmenting_payload() {
                let more = if header.more_fragments() { "+" } else { "" };
                let _ = write!(text, " frag {}{more}", header.fragments_offset().value());
            }
            ip.payload()
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let _ = write!(text, " ipv6 {}>{}", header.source_addr(), header.destination_addr());
            if ip.is_payload_fragmented() {
                *text += " frag";
            }
            ip.payload()
        }
        Some(LaxNetSlice::Arp(_)) => {
            *text += " arp";
            return None;
        }
        None => return packet.stop_err.as_ref().map(|(error, _)| error.to_string()),
    };
    match &packet.transport {
        Some(transport) => describe_transport(transport, text),
        None if matches!(payload.ip_number, IpNumber::IPV4 | IpNumber::IPV6) && !payload.fragmented => {
            return match LaxSlicedPacket::from_ip(payload.payload) {
                Ok(inner) => describe_net(&inner, text),
                Err(error) => Some(error.to_string()),
            };
        }
        None => {
            let _ = write!(text, " proto {}", payload.ip_number.0);
        }
    }
    packet.stop_err.as_ref().map(|(error, _)| error.to_string())
}

fn describe_transport(transport: &TransportSlice<'_>, text: &mut String) {
    let _ = match transport {
        TransportSlice::Tcp(tcp) => {
            write!(text, " tcp {}>{} [{}]", tcp.source_port(), tcp.destination_port(), flags(tcp))
        }
        TransportSlice::Udp(udp) => write!(text, " udp {}>{}", udp.source_port(), udp.destination_port()),
        TransportSlice::Icmpv4(icmp) => write!(text, " icmp {}/{}", icmp.type_u8(), icmp.code_u8()),
        TransportSlice::Icmpv6(icmp) => write!(text, " icmp6 {}/{}", icmp.type_u8(), icmp.code_u8()),
        TransportSlice::Igmp(_) => write!(text, " igmp"),
    };
}

/// As tcpdump has them: `.` is ACK.
fn flags(tcp: &TcpSlice<'_>) -> String {
    let all = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), '.'),
        (tcp.urg(), 'U'),
    ];
    all.into_iter().filter_map(|(set, letter)| set.then_some(letter)).collect()
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
