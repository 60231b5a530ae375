//! Packets and requests per second through namespaces, beside other balancers.

mod cpu;
mod load;
mod packets;
mod requests;
mod rivals;
mod server;
mod tables;
mod wire;

pub use server::{SUBCOMMAND as SERVE, main as serve};

use anyhow::{Result, bail};
use lb_lab::stop;

use crate::{Options, report::Section};

/// Measures all cases.
pub fn run(options: &Options) -> Result<Vec<Section>> {
    stop::on_signals();
    let mut sections = vec![packets::run(options)?];
    sections.extend(tables::of(&requests::measure(options)?));
    Ok(sections)
}

/// Fails if a signal asked for an end.
fn go_on() -> Result<()> {
    if stop::requested() {
        bail!("interrupted");
    }
    Ok(())
}

/// The middle one of some figures, or between the two in the middle; 0 of none.
fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    quantile(figures, 0.5)
}

/// The figure below which this share of them lies, between neighbours in proportion; 0 of none.
fn quantile(figures: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((quantile([0.0, 10.0], 0.25) - 2.5).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
    }
}
