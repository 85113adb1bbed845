//! Scores of a model.

use super::GradDot;
use crate::attribution::{Attributed, AttributionError, by_token};
use simfluence_core::{Progress, Scores, TokenScores};
use simfluence_models::{Metric, Model, Wanted};

impl GradDot {
    /// The scores of every training example for every test example.
    ///
    /// - `metric`: [`Metric::Identity`], or the optimiser's own preconditioner
    ///   ([`simfluence_models::Updater::preconditioner`]) for the optimiser-aware scores.
    /// - `layers`: whether to give the scores of each layer, too.
    ///
    /// # Errors
    /// Another number of examples than keys, an example that the model cannot read, gradients
    /// that are not finite.
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        metric: &Metric,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        let wanted = Wanted {
            layers,
            norms: false,
            ..Wanted::default()
        };
        let found = of.products(metric, wanted, &self.params, progress)?;
        let mut scores = self.scores_from_products(&found.products, of.axes)?;
        scores.method = crate::attribution::method_name("graddot", metric);
        let rate = self.params.reference_learning_rate as f32;
        scores.layers = found.layers;
        let parts = scores.layers.iter_mut().flat_map(|(_, values)| values);
        parts.for_each(|value| *value *= rate);
        crate::attribution::note_cost(&mut scores, found.gradient_evaluations);
        Ok(scores)
    }

    /// The scores of every target token of every training example; they sum to
    /// [`GradDot::scores`].
    ///
    /// - `metric`: as there.
    /// - `test_tokens`: whether to give the scores for every target token of the test examples,
    ///   too.
    ///
    /// # Errors
    /// As there.
    pub fn token_scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        metric: &Metric,
        test_tokens: bool,
        progress: &dyn Progress,
    ) -> Result<TokenScores, AttributionError> {
        let found = of.products(metric, by_token(test_tokens), &self.params, progress)?;
        let rate = self.params.reference_learning_rate;
        let values = found.products.iter().map(|&p| (rate * f64::from(p)) as f32);
        let method = crate::attribution::method_name("graddot", metric);
        of.token_scores(method, rate, test_tokens, values.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;
    use crate::attribution::test_support::{axes, examples, losses_after_one_step, model, weights};
    use simfluence_core::NoProgress;

    #[test]
    fn ref_a_small_step_of_gradient_descent_lowers_losses_by_the_score() {
        let (train, test) = (examples(4, 0), examples(5, 2));
        let rate = 2e-5_f32;
        let method = GradDot::new(GradientParams::new(f64::from(rate))).unwrap();
        let of = Attributed {
            model: &model(3),
            train: &train,
            test: &test,
            axes: &axes(4, 5),
        };
        let scores = method
            .scores(&of, &Metric::Identity, true, &NoProgress)
            .unwrap();
        let largest = scores.values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for i in 0..4 {
            let (before, after) = losses_after_one_step(&weights(3), &train, &test, i as u32, rate);
            for j in 0..5 {
                let score = scores.values[i * 5 + j];
                let decrease = before[j] - after[j];
                assert!(
                    (score - decrease).abs() < 0.03 * largest,
                    "{i} {j}: {score} {decrease}"
                );
            }
        }
        for k in 0..scores.values.len() {
            let sum: f32 = scores.layers.iter().map(|(_, values)| values[k]).sum();
            assert!((sum - scores.values[k]).abs() < 1e-5 * largest);
        }
        assert_eq!(scores.provenance["gradient_evaluations"], 9);
    }

    #[test]
    fn tokens_sum_to_examples() {
        let (train, test) = (examples(4, 0), examples(5, 2));
        let of = Attributed {
            model: &model(3),
            train: &train,
            test: &test,
            axes: &axes(4, 5),
        };
        let method = GradDot::new(GradientParams::new(0.1)).unwrap();
        let whole = method.scores(&of, &Metric::Identity, false, &NoProgress);
        let whole = whole.unwrap().values;
        for test_tokens in [false, true] {
            let found = method.token_scores(&of, &Metric::Identity, test_tokens, &NoProgress);
            let found = found.unwrap();
            assert_eq!(found.rows.len(), 6);
            assert_eq!(found.width(), if test_tokens { 7 } else { 5 });
            for (a, b) in found.totals().unwrap().values.iter().zip(&whole) {
                assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
            }
        }
    }

    #[test]
    fn another_number_of_examples_than_keys_is_named() {
        let method = GradDot::new(GradientParams::new(1.0)).unwrap();
        let of = Attributed {
            model: &model(3),
            train: &examples(2, 0),
            test: &examples(2, 1),
            axes: &axes(2, 3),
        };
        let error = method
            .scores(&of, &Metric::Identity, false, &NoProgress)
            .unwrap_err();
        assert_eq!(error.to_string(), "2 test examples, but keys for 3");
    }
}
