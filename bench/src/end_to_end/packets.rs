//! Packets per second: the table.

use anyhow::Result;

use super::{
    go_on, median,
    wire::{Balancer, Moved, Wire},
};
use crate::{Options, report::Section};

/// What is measured; the first is what the others are compared with.
const CASES: [(&str, Balancer); 3] = [
    ("sent back, no balancer", Balancer::Reflector),
    ("xlb l2", Balancer::Xlb("l2")),
    ("xlb ipip", Balancer::Xlb("ipip")),
];
/// Numbers of flows.
const FLOWS: [u32; 2] = [1_000, 1_000_000];

/// Measures all cases, interleaved.
pub fn run(options: &Options) -> Result<Section> {
    let (rounds, frames) = if options.quick { (2, 100_000) } else { (7, 400_000) };
    eprintln!("packets per second: {} wires", CASES.len());
    let lay = |(_, balancer): &(&str, Balancer)| {
        go_on()?;
        Wire::new(*balancer, &FLOWS, &options.objects, &options.xlb)
    };
    let mut wires = CASES.iter().map(lay).collect::<Result<Vec<_>>>()?;
    // By number of flows, and case.
    let mut moved = vec![vec![Vec::<Moved>::new(); CASES.len()]; FLOWS.len()];
    let mut arrived = vec![0; CASES.len()];
    // The first round only warms up.
    for round in 0..=rounds {
        eprintln!("packets per second: round {round} of {rounds}");
        for (source, of_flows) in moved.iter_mut().enumerate() {
            for ((wire, runs), arrived) in wires.iter_mut().zip(of_flows).zip(&mut arrived) {
                go_on()?;
                let run = wire.run(source, frames)?;
                *arrived += run.seen;
                if round > 0 {
                    runs.push(run);
                }
            }
        }
    }
    for (wire, &arrived) in wires.iter().zip(&arrived) {
        wire.check(arrived)?;
    }
    Ok(table(&moved))
}

fn table(moved: &[Vec<Vec<Moved>>]) -> Section {
    let columns = ["case", "flows", "million packets/s", "lost, %", "CPU ns/packet", "added by xlb, ns"];
    let mut section = Section::new("Packets per second over one wire (veth), one core", &columns);
    for (flows, of_flows) in FLOWS.iter().zip(moved) {
        for ((name, balancer), runs) in CASES.iter().zip(of_flows) {
            let added = (*balancer != Balancer::Reflector).then(|| cost(runs) - cost(&of_flows[0]));
            let rate = median(runs.iter().map(|run| run.seen as f64 / run.took.as_secs_f64() / 1e6));
            let lost = median(runs.iter().map(|run| 100.0 * (1.0 - run.seen as f64 / run.sent as f64)));
            section.row(*name, [Some(f64::from(*flows)), Some(rate), Some(lost), Some(cost(runs)), added]);
        }
    }
    section.note("One CPU makes the packets, balances and counts them: live frames of BPF_PROG_TEST_RUN, xlb, an XDP sink.");
    section.note("The first row is that CPU without a balancer; the last column is what xlb adds to it. 60-byte TCP packets, 3 backends.");
    section
}

/// CPU time a packet, ns.
fn cost(runs: &[Moved]) -> f64 {
    median(runs.iter().map(|run| run.used.ours.as_nanos() as f64 / run.sent as f64))
}
