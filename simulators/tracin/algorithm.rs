//! Adding up checkpoints.

use super::TracinCp;
use crate::attribution::{AttributionError, Axes};
use simfluence_core::Scores;

/// `Σ_k η_k ⟨g_i, g_j⟩_k` and `Σ_k η_k` of the checkpoints so far.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sum {
    products: Vec<f64>,
    rates: Vec<f64>,
}

impl Sum {
    /// Adds one checkpoint.
    pub(super) fn add(&mut self, products: &[f32], rate: f64) -> Result<(), AttributionError> {
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(AttributionError::CheckpointRate {
                checkpoint: self.rates.len(),
                got: rate,
            });
        }
        self.products.resize(products.len(), 0.0);
        for (sum, &product) in self.products.iter_mut().zip(products) {
            *sum += rate * f64::from(product);
        }
        self.rates.push(rate);
        Ok(())
    }
}

impl TracinCp {
    /// `η_ref Σ_k η_k ⟨g_i, g_j⟩_k / Σ_k η_k`.
    pub(super) fn scores_from_sum(
        &self,
        sum: &Sum,
        axes: &Axes,
    ) -> Result<Scores, AttributionError> {
        let values = self.values_of_sum(sum)?;
        axes.scores(
            "tracin-cp",
            self.params.reference_learning_rate,
            true,
            values,
        )
    }

    /// The same without axes.
    pub(super) fn values_of_sum(&self, sum: &Sum) -> Result<Vec<f32>, AttributionError> {
        let total: f64 = sum.rates.iter().sum();
        if sum.rates.is_empty() {
            return Err(AttributionError::NoCheckpoint);
        }
        if total == 0.0 {
            return Err(AttributionError::CheckpointRate {
                checkpoint: 0,
                got: 0.0,
            });
        }
        let rate = self.params.reference_learning_rate;
        let values = sum.products.iter().map(|p| (rate * p / total) as f32);
        Ok(values.collect())
    }

    /// The scores from the inner products of each checkpoint, `[train × test]` row-major, and its
    /// learning rate `η_k`.
    ///
    /// # Errors
    /// No checkpoint; learning rates that are negative, not finite or all 0; products that are
    /// NaN or infinite, or of another number than the axes say.
    pub fn scores_from_products(
        &self,
        checkpoints: &[(Vec<f32>, f64)],
        axes: &Axes,
    ) -> Result<Scores, AttributionError> {
        let mut sum = Sum::default();
        for (products, rate) in checkpoints {
            sum.add(products, *rate)?;
        }
        self.scores_from_sum(&sum, axes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;

    fn axes() -> Axes {
        Axes {
            train_keys: vec!["a".into()],
            test_keys: vec!["x".into(), "y".into()],
        }
    }

    fn method() -> TracinCp {
        TracinCp::new(GradientParams::new(0.5)).unwrap()
    }

    #[test]
    fn checkpoints_weigh_as_their_learning_rates() {
        let checkpoints = [(vec![4.0, -2.0], 0.1), (vec![8.0, 2.0], 0.3)];
        let scores = method()
            .scores_from_products(&checkpoints, &axes())
            .unwrap();
        // 0.5 (0.1·4 + 0.3·8) / 0.4 and 0.5 (−0.1·2 + 0.3·2) / 0.4.
        assert!((scores.values[0] - 3.5).abs() < 1e-6);
        assert!((scores.values[1] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn checkpoints_that_cannot_be_weighed_are_refused() {
        let none = method().scores_from_products(&[], &axes());
        assert_eq!(none, Err(AttributionError::NoCheckpoint));
        for rate in [0.0, -1.0, f64::NAN] {
            let error = method().scores_from_products(&[(vec![1.0, 1.0], rate)], &axes());
            assert!(matches!(
                error,
                Err(AttributionError::CheckpointRate { .. })
            ));
        }
    }
}
