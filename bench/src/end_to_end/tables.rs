//! What the requests say: a table for each shape of load, and the bars.

use super::{
    median, quantile,
    requests::{Measured, SHAPES, Sample, Target, What},
    rivals::Kind,
};
use crate::report::Section;

const MICRO: f64 = 1e6;
/// If others use more of the machine, its busy time says little about what was measured.
const MOST_FOREIGN: f64 = 0.1;

/// The loads of the bars: their numbers among [`SHAPES`], and what to call them.
const BAR_LOADS: [(usize, &str); 2] = [(2, "32 at a time"), (0, "3,000 a second")];

/// CPU time that a target adds to a request, a figure a round, in microseconds.
struct Added {
    /// By the tasks that take part.
    ours: Vec<f64>,
    /// By the whole machine.
    machine: Vec<f64>,
}

/// All tables.
pub fn of(measured: &Measured) -> Vec<Section> {
    let mut sections: Vec<_> = (0..SHAPES.len()).map(|shape| table(measured, shape)).collect();
    sections.push(bars(measured));
    sections
}

fn table(measured: &Measured, shape: usize) -> Section {
    let columns = [
        "through",
        "requests/s",
        "p50 \u{b5}s",
        "p90",
        "p99",
        "p99.9",
        "CPU \u{b5}s/request",
        "added",
        "from",
        "to",
        "own process",
        "machine, added",
    ];
    let mut section = Section::new(&format!("Requests: {}", SHAPES[shape].title), &columns);
    for (number, target) in measured.targets.iter().enumerate() {
        let samples = &measured.samples[shape][number];
        let over = |figure: &dyn Fn(&Sample) -> f64| Some(median(samples.iter().map(figure)));
        let latency = |share: f64| over(&|s| MICRO * quantile(s.answers.latencies.iter().copied(), share));
        let added = added(measured, shape, number);
        let of_added = |figures: &[f64], share| {
            (target.what != What::Direct).then(|| quantile(figures.iter().copied(), share))
        };
        let process = samples.iter().filter_map(|s| Some(s.process?.as_secs_f64() * MICRO / requests(s)));
        section.row(
            target.name,
            [
                over(&|s| requests(s) / s.answers.took.as_secs_f64()),
                latency(0.5),
                latency(0.9),
                latency(0.99),
                latency(0.999),
                over(&|s| s.used.ours.as_secs_f64() * MICRO / requests(s)),
                of_added(&added.ours, 0.5),
                of_added(&added.ours, 0.25),
                of_added(&added.ours, 0.75),
                samples[0].process.map(|_| median(process)),
                of_added(&added.machine, 0.5).filter(|_| is_quiet(measured, shape)),
            ],
        );
    }
    section.note("Medians of rounds that take turns. Added: minus `direct` of the same round, with the quartiles of the rounds.");
    let quiet = if is_quiet(measured, shape) {
        ""
    } else {
        ": times are as much theirs, and its busy time is no measure"
    };
    section.note(format!(
        "Others used {:.0} % of the machine meanwhile{quiet}.",
        100.0 * foreign(measured, shape)
    ));
    section
}

fn bars(measured: &Measured) -> Section {
    let mut section = Section::new(
        "Bars: CPU time that the balancer adds to a request",
        &["a connection for each request", "figure", "at most"],
    );
    for (shape, load) in BAR_LOADS {
        for kind in Kind::ALL {
            bars_beside(&mut section, measured, shape, load, kind);
        }
    }
    for note in &measured.notes {
        section.note(note);
    }
    for note in NOTES {
        section.note(note);
    }
    section
}

/// The bars beside one other balancer, if it was there.
fn bars_beside(section: &mut Section, measured: &Measured, shape: usize, load: &str, kind: Kind) {
    let of = |what: What| measured.targets.iter().position(|target: &Target| target.what == what);
    let (Some(l2), Some(rival)) = (of(What::L2), of(What::Rival(kind))) else { return };
    let (l2, rival) = (added(measured, shape, l2), added(measured, shape, rival));
    for (whose, xlb, other) in [("tasks", &l2.ours, &rival.ours), ("machine", &l2.machine, &rival.machine)] {
        if whose == "machine" && !is_quiet(measured, shape) {
            continue;
        }
        let (xlb, middle) = (median(xlb.iter().copied()), median(other.iter().copied()));
        let (what, figure, limit) = match kind {
            Kind::Haproxy | Kind::Nginx => ("share of", xlb / middle, 1.0 / 3.0),
            // Its upper quartile is what is within its spread.
            Kind::Nftables => ("\u{b5}s, beside", xlb, quantile(other.iter().copied(), 0.75)),
        };
        let verdict = if figure <= limit { "holds" } else { "MISSED" };
        section.row(
            format!("{verdict}: {load}: xlb l2, {what} {} ({whose})", kind.name()),
            [Some(figure), Some(limit)],
        );
    }
}

const NOTES: [&str; 7] = [
    "Tasks: CPU time of client, servers, balancers and ksoftirqd (schedstat); softirqs run on their time. Machine: all that was not idle (/proc/stat), others' work included.",
    "veth makes XDP copy each packet, which a network card does not: what xlb adds here is more than it adds there.",
    "The switch is a bridge on the same CPUs: a request crosses it twice with any balancer, an answer once with xlb and twice with the others.",
    "HAProxy has a thread a CPU and nginx a worker, without logs; nftables has DNAT by jhash of the source, and masquerades.",
    "Client and servers are kept on the first and the last CPU; balancers are where the kernel puts them.",
    "32 at a time keep the CPUs busy, whatever else runs; at a rate the cost of waking up is in it, which others' work changes.",
    "xlb's work is in softirqs, not in its process.",
];

/// The share of the machine that went to others while this was measured.
fn foreign(measured: &Measured, shape: usize) -> f64 {
    median(measured.samples[shape].iter().flatten().map(|sample| sample.used.foreign()))
}

fn is_quiet(measured: &Measured, shape: usize) -> bool {
    foreign(measured, shape) <= MOST_FOREIGN
}

fn requests(sample: &Sample) -> f64 {
    sample.answers.latencies.len() as f64
}

fn added(measured: &Measured, shape: usize, number: usize) -> Added {
    let samples = &measured.samples[shape];
    let rounds = || samples[number].iter().zip(&samples[measured.targets[number].base]);
    let difference = |cost: fn(&Sample) -> f64| {
        rounds()
            .map(|(with, without)| cost(with) / requests(with) - cost(without) / requests(without))
            .collect()
    };
    Added {
        ours: difference(|s| s.used.ours.as_secs_f64() * MICRO),
        machine: difference(|s| s.used.machine.as_secs_f64() * MICRO),
    }
}
