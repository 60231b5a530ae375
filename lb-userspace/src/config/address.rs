//! Addresses of the file: backends and listens. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    error::shown,
    scalar::{Scalar, Wrong, choice},
    spec::{Listen, Ports, Protocol},
};

/// The address of a backend.
pub(super) fn backend_address(scalar: Scalar<'_>) -> Result<IpAddr, Wrong> {
    let text = scalar.text;
    if let Ok(with_port) = text.parse::<std::net::SocketAddr>() {
        let help =
            format!("write `{}`: a backend is sent to on the port that the client used", with_port.ip());
        return Err(Wrong::new(format!("the address `{}` has a port", shown(text)), help));
    }
    unicast(ip_address(text)?, "a backend")
}

/// A listen: `ADDRESS:PORTS/PROTOCOL`.
pub(super) fn listen(scalar: Scalar<'_>) -> Result<Listen, Wrong> {
    let text = scalar.text;
    if text.contains("://") {
        let help = "write ADDRESS:PORT/PROTOCOL, such as 192.0.2.10:80/tcp";
        return Err(Wrong::new(format!("`{}` looks like a URL", shown(text)), help));
    }
    let Some((place, protocol)) = text.rsplit_once('/') else {
        let help = format!("write `{0}/tcp` or `{0}/udp`", shown(text));
        return Err(Wrong::new(format!("the listen `{}` has no protocol", shown(text)), help));
    };
    let (address, ports) = split_port(place, protocol)?;
    let protocol = choice(
        Scalar { text: protocol, plain: true },
        &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)],
        &["sctp", "icmp", "quic"],
    )
    .map_err(|wrong| Wrong {
        message: format!("in `{}`: the protocol {}", shown(text), wrong.message),
        ..wrong
    })?;
    let address = unicast(ip_address(address)?, "a listen")?;
    Ok(Listen { address, ports: read_ports(ports)?, protocol })
}

/// Splits `ADDRESS:PORTS`, with brackets around IPv6.
fn split_port<'t>(place: &'t str, protocol: &str) -> Result<(&'t str, &'t str), Wrong> {
    let no_port = |example: &str| {
        let help = format!("write `{}:80/{}`, a range (8000-8099) or `*`", shown(example), shown(protocol));
        Wrong::new(format!("the listen `{}/{}` has no port", shown(place), shown(protocol)), help)
    };
    if let Some(rest) = place.strip_prefix('[') {
        let Some((address, ports)) = rest.split_once(']') else {
            let help = "IPv6 listens are written as [2001:db8::10]:80/tcp";
            return Err(Wrong::new(format!("the bracket of `{}` is not closed", shown(place)), help));
        };
        if address.parse::<Ipv4Addr>().is_ok() {
            let help =
                format!("brackets are for IPv6 only: write `{address}{}/{}`", shown(ports), shown(protocol));
            return Err(Wrong::new(format!("`{}` has brackets around an IPv4 address", shown(place)), help));
        }
        return ports.strip_prefix(':').map(|ports| (address, ports)).ok_or_else(|| no_port(place));
    }
    if place.matches(':').count() > 1 {
        let help = format!("write brackets around the address: [2001:db8::10]:80/{}", shown(protocol));
        return Err(Wrong::new(format!("the IPv6 address in `{}` has no brackets", shown(place)), help));
    }
    place.split_once(':').ok_or_else(|| no_port(place))
}

fn read_ports(text: &str) -> Result<Ports, Wrong> {
    if text == "*" {
        return Ok(Ports::Any);
    }
    let number = |part: &str| match part.parse::<u16>() {
        Ok(port) if port > 0 && !part.starts_with(['0', '+']) => Ok(port),
        _ => {
            let help = "write a port from 1 to 65535, a range (8000-8099) or `*` for all";
            Err(Wrong::new(format!("`{}` is not a port", shown(text)), help))
        }
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        let help = format!("write {last}-{first}");
        return Err(Wrong::new(format!("the range {first}-{last} runs backwards"), help));
    }
    Ok(Ports::Range(first, last))
}

/// An IP address in its usual spelling.
fn ip_address(text: &str) -> Result<IpAddr, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address);
    }
    let message = format!("`{}` is not an IP address", shown(text));
    let help = if text.is_empty() {
        "write the address in front of the port; all addresses of the host at once are not possible"
            .to_owned()
    } else if text.contains('%') {
        "zones (`%eth0`) are not supported, as link-local addresses are not".to_owned()
    } else if text.contains('/') {
        "write one address without a prefix length".to_owned()
    } else if text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains(':') {
        "host names are not resolved, because the data path must not depend on DNS: write the address"
            .to_owned()
    } else {
        "write it as 192.0.2.10 or 2001:db8::10, without leading zeros".to_owned()
    };
    Err(Wrong::new(message, help))
}

/// Refuses what is no address of one machine that others can reach.
fn unicast(address: IpAddr, of: &str) -> Result<IpAddr, Wrong> {
    let kind = match address {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    };
    let Some(kind) = kind else { return Ok(address) };
    let help = match address {
        IpAddr::V6(v6) if kind == "an IPv4-mapped address" => match v6.to_ipv4_mapped() {
            Some(v4) => format!("write `{v4}`"),
            None => "write the IPv4 address".to_owned(),
        },
        _ => format!("the address of {of} is one that other machines can send to"),
    };
    Err(Wrong::new(format!("{address} is {kind}"), help))
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        _ if address.is_unspecified() => Some("the unspecified address"),
        [0, ..] => Some("an address of \"this network\" (0.0.0.0/8)"),
        [127, ..] => Some("a loopback address"),
        [169, 254, ..] => Some("a link-local address"),
        [224..=239, ..] => Some("a multicast address"),
        [255, 255, 255, 255] => Some("the broadcast address"),
        [240..=255, ..] => Some("a reserved address (240.0.0.0/4)"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.to_ipv4_mapped().is_some() => Some("an IPv4-mapped address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0, 0, 0, 0, 0, 0, ..] => Some("an IPv4-compatible address (deprecated, RFC 4291 2.5.5.1)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar<'_> {
        Scalar { text, plain: true }
    }

    #[test]
    fn listens_display_as_read() {
        for text in [
            "192.0.2.10:80/tcp",
            "192.0.2.10:8000-8099/udp",
            "192.0.2.10:*/tcp",
            "[2001:db8::10]:443/tcp",
            "[2001:db8::10]:*/udp",
            "10.0.0.1:1-65535/tcp",
        ] {
            assert_eq!(listen(plain(text)).expect(text).to_string(), text);
        }
    }

    #[test]
    fn bad_listens_are_refused() {
        for text in [
            "",
            "/",
            ":80/tcp",
            "192.0.2.10",
            "192.0.2.10:80",
            "192.0.2.10/tcp",
            "192.0.2.10:0/tcp",
            "192.0.2.10:65536/tcp",
            "192.0.2.10:080/tcp",
            "192.0.2.10:+80/tcp",
            "192.0.2.10:90-80/tcp",
            "192.0.2.10:-/tcp",
            "192.0.2.10:80/TCP",
            "192.0.2.10:80/sctp",
            "192.0.2.010:80/tcp",
            "www:80/tcp",
            "2001:db8::10:80/tcp",
            "[2001:db8::10:80/tcp",
            "[2001:db8::10]80/tcp",
            "[2001:db8::10]/tcp",
            "tcp://192.0.2.10:80",
            "*:80/tcp",
            "[::]:80/tcp",
            "0.0.0.0:80/tcp",
            "[fe80::1%eth0]:80/tcp",
            "[192.0.2.10]:80/tcp",
            "192.0.2.0/24:80/tcp",
        ] {
            assert!(listen(plain(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn special_addresses_are_refused_and_their_neighbours_are_not() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.1.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "10.0.0.1:80",
            "localhost",
            "10.0.0.0/8",
            "10.0.0",
            "fe80::1%eth0",
            "",
        ] {
            assert!(backend_address(plain(text)).is_err(), "{text}");
        }
        for text in [
            "1.0.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "223.255.255.255",
            "fec0::1",
            "fd00::1",
            "2001:db8::1",
        ] {
            assert!(backend_address(plain(text)).is_ok(), "{text}");
        }
    }
}
