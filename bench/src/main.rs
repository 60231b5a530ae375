//! The harness behind `cargo xtask bench`: what a packet, a request and a change of the tables cost.
//!
//! `packets/` counts nanoseconds inside the kernel, `end_to_end/` packets and requests through namespaces, `controller/`
//! what the controller does. Each part answers sections of a report, which prints as tables (`report.rs`), is
//! written into a page (`markdown.rs`) and drawn (`plot.rs`).

mod controller;
mod end_to_end;
mod markdown;
mod packets;
mod plot;
mod report;
mod stats;

use std::{path::PathBuf, process::ExitCode, thread};

use clap::{Parser, ValueEnum};

/// What xlb costs on this machine; needs root. Built and started by `cargo xtask bench`.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
pub struct Options {
    /// Shows that it works, in about 20 s; the figures are rough
    #[arg(long)]
    pub quick: bool,
    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,
    /// Draws packet cost over flows and CPU time by balancer, as SVG files there
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Puts the tables between the marks of this page (docs/performance.md), too
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Only these parts
    #[arg(value_enum)]
    pub parts: Vec<Part>,
    /// Directory of the eBPF objects of the bench
    #[arg(long, hide = true, default_value = "target/bpf")]
    pub objects: PathBuf,
    /// The `xlb` to run
    #[arg(long, hide = true, default_value = "target/release/xlb")]
    pub xlb: PathBuf,
}

/// A part of the bench.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Part {
    /// Nanoseconds of a packet, inside the kernel
    Packets,
    /// Packets and requests per second through namespaces, beside other balancers
    EndToEnd,
    /// Rings, plans, reloads, memory
    Controller,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(end_to_end::SERVE) {
        return end_to_end::serve(words);
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    let mut report = report::Report::new(options.quick);
    if wanted(Part::Packets) {
        // It stays on one CPU; in a thread of its own, so that nothing else has to.
        let packets = thread::scope(|scope| scope.spawn(|| packets::run(options)).join());
        report.sections.extend(packets.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    if wanted(Part::EndToEnd) {
        report.sections.extend(end_to_end::run(options)?);
    }
    if wanted(Part::Controller) {
        report.sections.extend(controller::run(options)?);
    }
    report.finish();
    if let Some(dir) = &options.plots {
        plot::write(&report, dir)?;
    }
    if let Some(page) = &options.markdown {
        markdown::insert(&report, page)?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
