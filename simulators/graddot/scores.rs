//! Scores of a model.

use super::GradDot;
use crate::attribution::{AttributionError, Axes};
use serde_json::json;
use simfluence_core::{Progress, Scores};
use simfluence_models::{Device, TokenizedExample, Weights, gradient_products};

impl GradDot {
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
        let gradients = gradient_products(weights, train, test, &settings, device, progress)?;
        let mut scores = self.scores_from_products(&gradients.products, axes)?;
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
    use crate::attribution::test_support::{axes, examples, losses_after_one_step, weights};
    use simfluence_core::NoProgress;

    #[test]
    fn ref_a_small_step_of_gradient_descent_lowers_losses_by_the_score() {
        let (weights, train, test) = (weights(3), examples(4, 0), examples(5, 2));
        let rate = 2e-5_f32;
        let method = GradDot::new(GradientParams::new(f64::from(rate))).unwrap();
        let scores = method
            .scores(
                &weights,
                &train,
                &test,
                &axes(4, 5),
                Device::Cpu,
                &NoProgress,
            )
            .unwrap();
        let largest = scores.values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for i in 0..4 {
            let (before, after) = losses_after_one_step(&weights, &train, &test, i as u32, rate);
            for j in 0..5 {
                let score = scores.values[i * 5 + j];
                let decrease = before[j] - after[j];
                assert!(
                    (score - decrease).abs() < 0.03 * largest,
                    "{i} {j}: {score} {decrease}"
                );
            }
        }
    }

    #[test]
    fn another_number_of_examples_than_keys_is_named() {
        let method = GradDot::new(GradientParams::new(1.0)).unwrap();
        let (train, test) = (examples(2, 0), examples(2, 1));
        let error = method
            .scores(
                &weights(3),
                &train,
                &test,
                &axes(2, 3),
                Device::Cpu,
                &NoProgress,
            )
            .unwrap_err();
        assert_eq!(error.to_string(), "2 test examples, but keys for 3");
    }
}
