//! Nanoseconds of a packet, inside the kernel.
//!
//! BPF_PROG_TEST_RUN repeats a *driver* (`lb-ebpf/src/bench`) that makes each packet and calls the program under test.
//! `stream.rs` says what packets, `driver.rs` runs and times, `world.rs` is the balancer with its maps filled,
//! `cases.rs` lists what is measured, `measure.rs` takes turns among it and checks with `check.rs` that each case did what
//! it is said to, `table.rs` makes tables of it,
//! `shares.rs` says what of a packet's cost is for what.

mod cases;
mod check;
mod cpu;
mod driver;
mod measure;
mod progress;
mod shared;
mod shares;
mod stream;
mod table;
#[path = "../../../lb-ebpf/src/bench/traffic.rs"]
mod traffic;
mod world;

use crate::{Options, report::Section};
use measure::Effort;

/// Measures all cases.
pub fn run(options: &Options) -> anyhow::Result<Vec<Section>> {
    let effort = if options.quick {
        Effort { loads: 1, rounds: 3, repeat: 100_000 }
    } else {
        Effort { loads: 5, rounds: 1, repeat: 1_000_000 }
    };
    let cpu = cpu::pin()?;
    let groups = cases::groups(options.quick);
    let cases: Vec<_> = groups.iter().flat_map(|group| group.cases.iter().cloned()).collect();
    let costs = measure::run(&cases, effort, &options.objects)?;
    let mut sections = table::sections(&groups, &costs);
    if let Some(first) = sections.first_mut() {
        first.note("ns: CPU time of a packet in the program, beyond a stub that returns XDP_TX.");
        first.note("floor: a program that only parses and encapsulates with constants, on the same packets.");
        first.note(format!(
            "Medians of {} interleaved rounds, the programs loaded {} times, of at least {} packets on CPU {cpu}; spread: \
             quartile to quartile.",
            effort.loads * effort.rounds,
            effort.loads,
            effort.repeat
        ));
    }
    sections.extend([table::floors(&costs), shares::shares(&costs), table::bars(&costs)]);
    Ok(sections)
}
