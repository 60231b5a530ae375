//! Figures: medians of rounds, tables, and the bars they are held against.

use super::{
    cases::{FLOOD, Group, ONE_USED, SPREAD, STRANGER, flows_of, settled_name},
    measure::Costs,
    stream::Family::{V4, V6},
    world::Forward::{Ipip, L2},
};
use crate::{
    report::{Bar, Section},
    stats::{median, spread},
};

/// A table a group.
pub fn sections(groups: &[Group], costs: &Costs) -> Vec<Section> {
    let table = |group: &Group| {
        let mut section = Section::new(group.title, &["", "ns", "x floor", "spread ns"]);
        for case in &group.cases {
            let Some(rounds) = costs.cases.get(&case.name) else { continue };
            let floor = median(&costs.floors[case.stream.family as usize].floor);
            let cost = median(rounds);
            section.row(&*case.name, [cost, cost / floor, spread(rounds)].map(Some));
        }
        section
    };
    groups.iter().map(table).collect()
}

/// What the cases are compared with, by family.
pub fn floors(costs: &Costs) -> Section {
    let mut section = Section::new("Without a balancer", &["", "ns", "spread ns"]);
    for (family, floors) in [V4, V6].into_iter().zip(&costs.floors) {
        let rows = [
            ("the driver with a stub, which all figures are beyond", &floors.stub),
            ("the floor: parse what must be parsed, encapsulate with constants", &floors.floor),
            ("the floor with xlb's parser", &floors.parsing_floor),
        ];
        for (what, rounds) in rows {
            section.row(format!("{}: {what}", family.name()), [median(rounds), spread(rounds)].map(Some));
        }
    }
    section
}

/// The bars, as far as their cases were measured.
pub fn bars(costs: &Costs) -> Section {
    let cost = |name: &str| costs.cases.get(name).map(|rounds| median(rounds));
    let floor = median(&costs.floors[V4 as usize].floor);
    let over_floor = |name: &str| cost(name).map(|cost| cost / floor);
    let ratio = |a: &str, b: &str| Some(cost(a)? / cost(b)?);
    let ipip = |flows| settled_name(V4, Ipip, flows);
    let moving = format!("IPv4 ipip, 10 % moving, {}", flows_of(1_000_000));
    let one_used = format!("{ONE_USED}, {}", flows_of(1_000));
    let all_used = |flows| format!("{SPREAD}, {}", flows_of(flows));
    let flood = format!("{FLOOD}, {}", flows_of(1_000_000));
    let stranger = format!("{STRANGER}, {}", flows_of(1_000));
    let bars = [
        ("ipip, 1,000 flows / floor", over_floor(&ipip(1_000)), 2.6),
        ("ipip, 1,000,000 flows / floor", over_floor(&ipip(1_000_000)), 3.0),
        ("ipip, 1,000,000 flows / 1 flow", ratio(&ipip(1_000_000), &ipip(1)), 1.2),
        ("l2 / ipip, 1,000 flows", ratio(&settled_name(V4, L2, 1_000), &ipip(1_000)), 0.9),
        ("IPv6 / IPv4, ipip, 1,000 flows", ratio(&settled_name(V6, Ipip, 1_000), &ipip(1_000)), 1.35),
        ("1,000 services, one used / 1, 1,000 flows", ratio(&one_used, &ipip(1_000)), 1.25),
        ("1,000 services, all used / 1, 1,000 flows", ratio(&all_used(1_000), &ipip(1_000)), 1.25),
        (
            "1,000 services, all used / 1, 1,000,000 flows",
            ratio(&all_used(1_000_000), &ipip(1_000_000)),
            1.25,
        ),
        ("10 % moving / settled, 1,000,000 flows", ratio(&moving, &ipip(1_000_000)), 1.8),
        ("SYN flood / settled, 1,000,000 flows", ratio(&flood, &ipip(1_000_000)), 1.1),
        ("no service / floor", over_floor(&stranger), 1.0),
    ];
    let mut section = Section::new("Packet cost against its bars", &[]);
    for (what, ratio, at_most) in bars {
        section.bars.extend(ratio.map(|ratio| Bar::new(what, ratio, at_most)));
    }
    section
}
