//! What the controller does: rings, plans, reloads, memory.

use crate::{Options, report::Section};

/// Measures all cases.
#[expect(clippy::unnecessary_wraps, reason = "to come")]
pub fn run(_options: &Options) -> anyhow::Result<Vec<Section>> {
    Ok(Vec::new())
}
