//! Medians and the like.

/// The middle one of some figures, or between the two in the middle; there must be one.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// From quartile to quartile.
pub fn spread(values: &[f64]) -> f64 {
    quantile(values, 0.75) - quantile(values, 0.25)
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
        assert!((median(&values) - 2.5).abs() < 1e-9 && (spread(&values) - 1.5).abs() < 1e-9);
    }
}
