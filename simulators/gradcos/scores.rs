//! Scores of a model.

use super::GradCos;
use crate::attribution::{AttributionError, Axes};
use serde_json::json;
use simfluence_core::{Progress, Scores};
use simfluence_models::{Device, TokenizedExample, Weights, gradient_products};

impl GradCos {
    /// The scores of every training example for every test example at `weights`, the final state
    /// of the reference run.
    ///
    /// # Errors
    /// Another number of examples than keys, an example that the model cannot read, a device that
    /// cannot be used, gradients that are not finite.
    pub fn scores(
        &self,
        weights: &Weights,
        train: &[TokenizedExample],
        test: &[TokenizedExample],
        axes: &Axes,
        device: Device,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        axes.check(train.len(), test.len())?;
        let settings = self.params.settings();
        let found = gradient_products(weights, train, test, &settings, device, progress)?;
        let mut scores = self.scores_from_products(
            &found.products,
            &found.train_norms,
            &found.test_norms,
            axes,
        )?;
        scores
            .provenance
            .insert("weights".into(), json!(weights.fingerprint()));
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;
    use crate::attribution::test_support::{axes, examples, weights};
    use simfluence_core::NoProgress;

    #[test]
    fn an_example_is_most_like_itself() {
        let both = examples(6, 0);
        let method = GradCos::new(GradientParams::new(1.0)).unwrap();
        let scores = method
            .scores(
                &weights(3),
                &both,
                &both,
                &axes(6, 6),
                Device::Cpu,
                &NoProgress,
            )
            .unwrap();
        for i in 0..6 {
            assert!((scores.values[i * 6 + i] - 1.0).abs() < 1e-5);
            let others = (0..6).filter(|&j| j != i).map(|j| scores.values[i * 6 + j]);
            assert!(others.clone().all(|cosine| cosine.abs() < 1.0 - 1e-4));
        }
    }
}
