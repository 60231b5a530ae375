//! Packets and requests per second through namespaces, beside other balancers.

use crate::{Options, report::Section};

/// Measures all cases.
pub fn run(_options: &Options) -> anyhow::Result<Vec<Section>> {
    Ok(Vec::new())
}
