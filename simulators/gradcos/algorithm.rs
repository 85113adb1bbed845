//! From inner products and norms of gradients to scores.

use super::GradCos;
use crate::attribution::{AttributionError, Axes};
use simfluence_core::Scores;

impl GradCos {
    /// Cosines from the inner products, `[train × test]` row-major, and the norms of the training
    /// and test gradients. A gradient of 0 has no direction and lowers no loss: its cosine is 0.
    ///
    /// # Errors
    /// Products or norms that are NaN or infinite, or of another number than the axes say.
    pub fn scores_from_products(
        &self,
        products: &[f32],
        train_norms: &[f32],
        test_norms: &[f32],
        axes: &Axes,
    ) -> Result<Scores, AttributionError> {
        let cosine = |(k, &product): (usize, &f32)| {
            let norms = f64::from(train_norms[k / test_norms.len()])
                * f64::from(test_norms[k % test_norms.len()]);
            if norms == 0.0 {
                0.0
            } else {
                (f64::from(product) / norms) as f32
            }
        };
        let values =
            if products.len() == train_norms.len() * test_norms.len() && !products.is_empty() {
                products.iter().enumerate().map(cosine).collect()
            } else {
                Vec::new()
            };
        axes.scores(
            "gradcos",
            self.params.reference_learning_rate,
            false,
            values,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;

    #[test]
    fn products_are_divided_by_both_norms() {
        let method = GradCos::new(GradientParams::new(0.5)).unwrap();
        let axes = Axes {
            train_keys: vec!["a".into(), "b".into()],
            test_keys: vec!["x".into(), "y".into()],
        };
        let products = [4.0, -2.0, 0.0, 0.0];
        let scores = method
            .scores_from_products(&products, &[2.0, 0.0], &[2.0, 4.0], &axes)
            .unwrap();
        assert_eq!(scores.values, [1.0, -0.25, 0.0, 0.0]);
        assert!(!scores.has_natural_unit);
        assert!(
            method
                .scores_from_products(&products, &[2.0], &[2.0, 4.0], &axes)
                .is_err()
        );
    }
}
