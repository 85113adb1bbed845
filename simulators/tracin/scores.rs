//! Scores of a model's checkpoints.

use super::TracinCp;
use super::algorithm::Sum;
use crate::attribution::{AttributionError, Axes};
use serde_json::json;
use simfluence_core::{Progress, Scores};
use simfluence_models::{Device, TokenizedExample, Weights, gradient_products};

impl TracinCp {
    /// The scores of every training example for every test example over `checkpoints` of the
    /// reference run, each with the learning rate `η_k` of its step. They are taken one by one,
    /// so that an iterator may read them from disk.
    ///
    /// # Errors
    /// As [`TracinCp::scores_from_products`]; another number of examples than keys; an example
    /// that the model cannot read; a device that cannot be used.
    pub fn scores(
        &self,
        checkpoints: impl IntoIterator<Item = (Weights, f64)>,
        train: &[TokenizedExample],
        test: &[TokenizedExample],
        axes: &Axes,
        device: Device,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        axes.check(train.len(), test.len())?;
        let settings = self.params.settings();
        let mut sum = Sum::default();
        let mut used = Vec::new();
        for (weights, rate) in checkpoints {
            let found = gradient_products(&weights, train, test, &settings, device, progress)?;
            sum.add(&found.products, rate)?;
            used.push(json!({"weights": weights.fingerprint(), "learning_rate": rate}));
        }
        let mut scores = self.scores_from_sum(&sum, axes)?;
        scores.provenance.insert("checkpoints".into(), json!(used));
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;
    use crate::attribution::test_support::{axes, examples, weights};
    use crate::graddot::GradDot;
    use simfluence_core::NoProgress;

    #[test]
    fn checkpoints_are_weighted_means_of_graddot() {
        let (train, test, axes) = (examples(3, 0), examples(4, 1), axes(3, 4));
        let params = GradientParams::new(0.7);
        let at = |seed| {
            GradDot::new(params)
                .unwrap()
                .scores(
                    &weights(seed),
                    &train,
                    &test,
                    &axes,
                    Device::Cpu,
                    &NoProgress,
                )
                .unwrap()
                .values
        };
        let checkpoints = [(weights(3), 1e-3), (weights(4), 3e-3)];
        let scores = TracinCp::new(params)
            .unwrap()
            .scores(checkpoints, &train, &test, &axes, Device::Cpu, &NoProgress)
            .unwrap();
        for ((got, a), b) in scores.values.iter().zip(at(3)).zip(at(4)) {
            let expected = 0.25 * a + 0.75 * b;
            assert!((got - expected).abs() < 1e-5 * (1.0 + expected.abs()));
        }
        assert_eq!(
            scores.provenance["checkpoints"].as_array().unwrap().len(),
            2
        );
    }
}
