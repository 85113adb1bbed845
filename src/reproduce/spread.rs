//! A value over seeds.

use serde::Serialize;

/// Mean and standard deviation over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample.
    pub deviation: f64,
    /// Number of values.
    pub count: usize,
}

impl Spread {
    /// Of at least two values.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (squares / (count as f64 - 1.0)).sqrt(),
            count,
        }
    }

    /// Half the width of the 95 % confidence interval of the mean, by Student's distribution.
    pub fn half_interval(&self) -> f64 {
        student(self.count - 1) * self.deviation / (self.count as f64).sqrt()
    }
}

/// 97.5 % quantile of Student's distribution with 1 to 15 degrees of freedom.
fn student(degrees: usize) -> f64 {
    const QUANTILES: [f64; 15] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131,
    ];
    QUANTILES[degrees.clamp(1, QUANTILES.len()) - 1]
}

/// Values less their mean, over their (population) standard deviation, as in the paper's table 3;
/// `None` if they are all the same.
pub fn standardised(values: &[f64]) -> Option<Vec<f64>> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    (variance > 0.0).then(|| {
        values
            .iter()
            .map(|v| (v - mean) / variance.sqrt())
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::paper::{PAPER_METHODS, PAPER_TRUTH};

    #[test]
    fn ref_rows_of_the_paper_are_standardised_already() {
        let rows = PAPER_METHODS.iter().map(|row| row.influences);
        for row in rows.chain([PAPER_TRUTH]) {
            let again = standardised(&row).unwrap();
            for (ours, theirs) in again.iter().zip(row) {
                assert!((ours - theirs).abs() < 2e-3, "{again:?} {row:?}");
            }
        }
    }

    #[test]
    fn the_spread_is_that_of_a_sample() {
        let spread = Spread::of(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(spread.mean, 3.0);
        assert!((spread.deviation - (14.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        // NumPy and SciPy: t.ppf(0.975, 3) * std(ddof=1) / 2.
        assert!((spread.half_interval() - 3.437_36).abs() < 1e-3);
    }

    #[test]
    fn constant_values_have_no_standard() {
        assert_eq!(standardised(&[2.0, 2.0]), None);
    }
}
