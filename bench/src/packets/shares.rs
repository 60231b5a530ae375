//! What the nanoseconds of a packet buy: differences between cases.

use super::{
    cases::{FLOOD, ONE_USED, SPREAD, STRANGER, flows_of, settled_name},
    measure::Costs,
    stream::Family::{V4, V6},
    world::Forward::{Ipip, L2},
};
use crate::{report::Section, stats::median};

/// A table of parts; what was not measured is left out.
pub fn shares(costs: &Costs) -> Section {
    let cost = |name: &str| costs.cases.get(name).map(|rounds| median(rounds));
    let minus = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
    let settled = |family, forward, flows| cost(&settled_name(family, forward, flows));
    let with_flows = |case: &str, flows| cost(&format!("{case}, {}", flows_of(flows)));
    let stranger = with_flows(STRANGER, 1_000);
    let (l2, ipip) = (settled(V4, L2, 1_000), settled(V4, Ipip, 1_000));
    let largest = settled(V4, Ipip, 1_000_000);
    let moving = "IPv4 ipip, all moving";
    let floors = &costs.floors[V4 as usize];
    let parsers = minus(Some(median(&floors.parsing_floor)), Some(median(&floors.floor)));
    let rows = [
        ("read the headers, find that no service has the address, count it (`no service`)", stranger),
        (
            "service, hash, slot, backend; two MACs; counters of the backend (`l2` - `no service`)",
            minus(l2, stranger),
        ),
        ("room in front, an outer header, its checksum (`ipip` - `l2`)", minus(ipip, l2)),
        ("all of it (`ipip`)", ipip),
        (
            "slots, backends and counters out of the nearest cache (1,000,000 flows - 1)",
            minus(largest, settled(V4, Ipip, 1)),
        ),
        ("addresses of 16 bytes (IPv6 - IPv4, `l2`)", minus(settled(V6, L2, 1_000), l2)),
        ("and outer addresses of 16 bytes (IPv6 - IPv4, `ipip`)", minus(settled(V6, Ipip, 1_000), ipip)),
        ("one of 1,000 services (one used - 1 service)", minus(with_flows(ONE_USED, 1_000), ipip)),
        ("any of 1,000 services (all used - 1 service)", minus(with_flows(SPREAD, 1_000), ipip)),
        ("a pin, found and kept young (all moving - settled)", minus(with_flows(moving, 1_000), ipip)),
        ("the same, of 1,000,000 pins", minus(with_flows(moving, 1_000_000), largest)),
        (
            "a SYN instead of an ACK: one counter more (SYN flood - settled, 1,000,000)",
            minus(with_flows(FLOOD, 1_000_000), largest),
        ),
        ("VLAN tags and options, where they may be: the other parser, in the floor's place", parsers),
    ];
    let mut section =
        Section::new("What the nanoseconds buy; IPv4, 1,000 flows if nothing else is said", &["", "ns"]);
    for (what, ns) in rows {
        if ns.is_some() {
            section.row(what, [ns]);
        }
    }
    section
}
