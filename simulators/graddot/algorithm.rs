//! From inner products of gradients to scores.

use super::GradDot;
use crate::attribution::{AttributionError, Axes};
use simfluence_core::Scores;

impl GradDot {
    /// `E(i,j) = η_ref ⟨g_i, g_j⟩` from the inner products, `[train × test]` row-major.
    ///
    /// # Errors
    /// Products that are NaN or infinite, or of another number than the axes say.
    pub fn scores_from_products(
        &self,
        products: &[f32],
        axes: &Axes,
    ) -> Result<Scores, AttributionError> {
        let rate = self.params.reference_learning_rate;
        let values = products.iter().map(|&p| (rate * f64::from(p)) as f32);
        axes.scores("graddot", rate, true, values.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;

    #[test]
    fn products_are_scaled_by_the_learning_rate_and_keep_their_sign() {
        let method = GradDot::new(GradientParams::new(0.5)).unwrap();
        let axes = Axes {
            train_keys: vec!["a".into()],
            test_keys: vec!["x".into(), "y".into()],
        };
        let scores = method.scores_from_products(&[4.0, -2.0], &axes).unwrap();
        assert_eq!(scores.values, [2.0, -1.0]);
        assert!(scores.has_natural_unit);
        assert!(
            method
                .scores_from_products(&[4.0, f32::NAN], &axes)
                .is_err()
        );
    }
}
