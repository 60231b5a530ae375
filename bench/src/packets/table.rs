//! Figures: medians of rounds, tables, and the bars they are held against.

use std::collections::BTreeMap;

use super::{
    cases::{FLOOD, Group, ONE_USED, SPREAD, STRANGER, flows_of, settled_name},
    measure::Costs,
    stream::Family::{V4, V6},
    world::Forward::{Ipip, L2},
};
use crate::report::{Bar, Section};

/// One case's figures.
struct Figures {
    /// ns beyond the stub, median.
    cost: f64,
    /// The floor's, median.
    floor: f64,
    /// Quartile to quartile, ns.
    spread: f64,
}

impl Figures {
    fn new(costs: &Costs) -> Self {
        let spread = quantile(&costs.case, 0.75) - quantile(&costs.case, 0.25);
        Self { cost: quantile(&costs.case, 0.5), floor: quantile(&costs.floor, 0.5), spread }
    }
}

/// A table a group.
pub fn sections(groups: &[Group], costs: &BTreeMap<String, Costs>) -> Vec<Section> {
    let table = |group: &Group| {
        let mut section = Section::new(group.title, &["", "ns", "floor ns", "x floor", "spread ns"]);
        for case in &group.cases {
            let Some(costs) = costs.get(&case.name) else { continue };
            let Figures { cost, floor, spread } = Figures::new(costs);
            section.row(&*case.name, [cost, floor, cost / floor, spread].map(Some));
        }
        section
    };
    groups.iter().map(table).collect()
}

/// What the cases are compared with, by family.
pub fn floors(costs: &BTreeMap<String, Costs>) -> Section {
    let mut section = Section::new("What a packet costs without a balancer, 1,000 flows", &["", "ns"]);
    for family in [V4, V6] {
        let Some(costs) = costs.get(&settled_name(family, Ipip, 1_000)) else { continue };
        let rows = [
            ("the driver with a stub, which all figures are beyond", &costs.stub),
            ("the floor: parse what must be parsed, encapsulate with constants", &costs.floor),
            ("the floor with xlb's parser", &costs.parsing_floor),
        ];
        for (what, rounds) in rows {
            section.row(format!("{}: {what}", family.name()), [Some(quantile(rounds, 0.5))]);
        }
    }
    section
}

/// The bars, as far as their cases were measured.
pub fn bars(costs: &BTreeMap<String, Costs>) -> Section {
    let figures = |name: &str| costs.get(name).map(Figures::new);
    let cost = |name: &str| figures(name).map(|f| f.cost);
    let over_floor = |name: &str| figures(name).map(|f| f.cost / f.floor);
    let ratio = |a: &str, b: &str| Some(cost(a)? / cost(b)?);
    let ipip = |flows| settled_name(V4, Ipip, flows);
    let moving = format!("IPv4 ipip, 10 % moving, {}", flows_of(1_000_000));
    let one_used = format!("{ONE_USED}, {}", flows_of(1_000));
    let spread = |flows| format!("{SPREAD}, {}", flows_of(flows));
    let flood = format!("{FLOOD}, {}", flows_of(1_000_000));
    let stranger = format!("{STRANGER}, {}", flows_of(1_000));
    let bars = [
        ("ipip, 1,000 flows / floor", over_floor(&ipip(1_000)), 2.6),
        ("ipip, 1,000,000 flows / floor", over_floor(&ipip(1_000_000)), 3.0),
        ("ipip, 1,000,000 flows / 1 flow", ratio(&ipip(1_000_000), &ipip(1)), 1.2),
        ("l2 / ipip, 1,000 flows", ratio(&settled_name(V4, L2, 1_000), &ipip(1_000)), 0.9),
        ("IPv6 / IPv4, ipip, 1,000 flows", ratio(&settled_name(V6, Ipip, 1_000), &ipip(1_000)), 1.35),
        ("1,000 services, one used / 1, 1,000 flows", ratio(&one_used, &ipip(1_000)), 1.25),
        ("1,000 services, all used / 1, 1,000 flows", ratio(&spread(1_000), &ipip(1_000)), 1.25),
        ("1,000 services, all used / 1, 1,000,000 flows", ratio(&spread(1_000_000), &ipip(1_000_000)), 1.25),
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

/// By linear interpolation.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() - 1) as f64 * part;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        let found = [0.0, 0.5, 0.75, 1.0].map(|part| quantile(&values, part));
        assert!(found.iter().zip([1.0, 2.5, 3.25, 4.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
    }
}
