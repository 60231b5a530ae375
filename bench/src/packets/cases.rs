//! What is measured.

use super::{
    stream::{Family, Stream},
    world::{Forward, Shape},
};

/// What must become of every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes to a backend.
    Sent,
    /// It goes to the host's stack as it came.
    Passed,
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Unique.
    pub name: String,
    /// The packets.
    pub stream: Stream,
    /// What they meet.
    pub shape: Shape,
    /// What becomes of them.
    pub fate: Fate,
    /// New pins may be made and refused: the flow table is emptied after each run.
    pub makes_pins: bool,
}

/// A table of cases.
pub struct Group {
    /// What it is about.
    pub title: &'static str,
    /// In order.
    pub cases: Vec<Case>,
}

/// A number that no service has.
const NOBODY: u32 = 70_000;

/// All cases, or a handful.
pub fn groups(quick: bool) -> Vec<Group> {
    let flows: &[u32] = if quick { &[1_000] } else { &[1, 1_000, 100_000, 1_000_000] };
    let many = if quick { 100_000 } else { 1_000_000 };
    let some_flows: &[u32] = if quick { &[many] } else { &[1_000, many] };
    vec![
        Group { title: "Settled slots; 1 service, 100 backends", cases: settled(flows) },
        Group {
            title: "Slots that move, flows that are tracked; as above",
            cases: moving(some_flows, quick),
        },
        Group { title: "SYN floods, and packets for nobody", cases: strangers(many) },
        Group { title: "Services and backends; IPv4 ipip, settled", cases: sizes(some_flows, quick) },
    ]
}

fn settled(flows: &[u32]) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for forward in [Forward::L2, Forward::Ipip] {
            cases.extend(flows.iter().map(|&flows| Case::settled(family, forward, flows)));
        }
    }
    cases
}

fn moving(flows: &[u32], quick: bool) -> Vec<Case> {
    let mut kinds = vec![
        (Family::V4, 10, false, "10 % moving"),
        (Family::V4, 1, false, "all moving"),
        (Family::V4, 0, true, "tracking: always"),
    ];
    if !quick {
        kinds.push((Family::V6, 1, false, "all moving"));
    }
    let mut cases = Vec::new();
    for (family, moving_every, always, what) in kinds {
        cases.extend(flows.iter().map(|&flows| {
            let shape = Shape {
                moving_every,
                always,
                pins: flows,
                flow_limit: table_for(flows),
                ..Shape::new(family, Forward::Ipip)
            };
            let name = format!("{} ipip, {what}, {}", family.name(), flows_of(flows));
            Case::new(name, Stream::new(family, flows), shape)
        }));
    }
    cases
}

/// Names that the bars ask for.
pub const FLOOD: &str = "SYN flood, settled";
/// A packet for no service.
pub const STRANGER: &str = "no service, IPv4";

fn strangers(many: u32) -> Vec<Case> {
    let base = Shape::new(Family::V4, Forward::Ipip);
    let flood = Stream { is_syn: true, ..Stream::new(Family::V4, many) };
    let moving = Shape { moving_every: 1, flow_limit: table_for(many), ..base };
    let mut cases = vec![
        Case::new(format!("{FLOOD}, {}", flows_of(many)), flood, base),
        Case {
            makes_pins: true,
            ..Case::new(format!("SYN flood, moving, {}", flows_of(many)), flood, moving)
        },
    ];
    for family in [Family::V4, Family::V6] {
        let stream = Stream { first_service: NOBODY, ..Stream::new(family, 1_000) };
        let name = format!("no service, {}, {}", family.name(), flows_of(1_000));
        let case = Case::new(name, stream, Shape::new(family, Forward::Ipip));
        cases.push(Case { fate: Fate::Passed, ..case });
    }
    cases
}

/// Packets for one of them.
pub const ONE_USED: &str = "1,000 services x 10 backends, one used";
/// Packets spread over all services.
pub const SPREAD: &str = "1,000 services x 10 backends, all used";

fn sizes(flows: &[u32], quick: bool) -> Vec<Case> {
    let base = Shape::new(Family::V4, Forward::Ipip);
    let full = Shape { services: 1_000, backends: 10, ring_size: 4_093, ..base };
    let mut cases = Vec::new();
    let mut add = |what: &str, shape, services, first_service, flows| {
        let stream = Stream { services, first_service, ..Stream::new(Family::V4, flows) };
        cases.push(Case::new(format!("{what}, {}", flows_of(flows)), stream, shape));
    };
    for &flows in flows {
        add("3 backends", Shape { backends: 3, ..base }, 1, 0, flows);
        add("1,000 backends", Shape { backends: 1_000, ..base }, 1, 0, flows);
        if !quick {
            add(ONE_USED, full, 1, 500, flows);
            add(SPREAD, full, 1_000, 0, flows);
        }
    }
    cases
}

impl Case {
    fn new(name: String, stream: Stream, shape: Shape) -> Self {
        Self { name, stream, shape, fate: Fate::Sent, makes_pins: false }
    }

    fn settled(family: Family, forward: Forward, flows: u32) -> Self {
        Self::new(
            settled_name(family, forward, flows),
            Stream::new(family, flows),
            Shape::new(family, forward),
        )
    }
}

/// Name of a settled case.
pub fn settled_name(family: Family, forward: Forward, flows: u32) -> String {
    format!("{} {}, {}", family.name(), forward.name(), flows_of(flows))
}

/// `1,000 flows`.
pub fn flows_of(flows: u32) -> String {
    match flows {
        1 => "1 flow".into(),
        2..1_000 => format!("{flows} flows"),
        1_000..1_000_000 => format!("{},{:03} flows", flows / 1_000, flows % 1_000),
        _ => format!("{},{:03},{:03} flows", flows / 1_000_000, flows / 1_000 % 1_000, flows % 1_000),
    }
}

/// Size of a flow table that is half full with so many pins.
fn table_for(flows: u32) -> u32 {
    (flows * 2).next_power_of_two().max(65_536)
}
