//! Scores of a model's checkpoints.

use super::TracinCp;
use super::algorithm::Sum;
use crate::attribution::{Attributed, AttributionError, Axes, by_token, method_name, note_cost};
use simfluence_core::{Progress, Scores, TokenScores};
use simfluence_models::{Metric, Model, Wanted};

/// A checkpoint of the reference run.
#[derive(Debug)]
pub struct Checkpoint<M> {
    /// The model there.
    pub model: M,
    /// The learning rate `η_k` of its step.
    pub learning_rate: f64,
    /// What inner products are taken in: [`Metric::Identity`], or the optimiser's own
    /// preconditioner at that step.
    pub metric: Metric,
}

impl TracinCp {
    /// The scores of every training example for every test example over the checkpoints of the
    /// reference run. They are taken one by one, so that an iterator may read them from disk.
    ///
    /// - `layers`: whether to give the scores of each layer, too.
    ///
    /// # Errors
    /// As [`TracinCp::scores_from_products`]; another number of examples than keys; an example
    /// that the model cannot read; what the iterator fails with.
    pub fn scores<M: Model, E: From<AttributionError>>(
        &self,
        checkpoints: impl IntoIterator<Item = Result<Checkpoint<M>, E>>,
        train: &[M::Example],
        test: &[M::Example],
        axes: &Axes,
        layers: bool,
        progress: &dyn Progress,
    ) -> Result<Scores, E> {
        let wanted = Wanted {
            layers,
            norms: false,
            ..Wanted::default()
        };
        let mut whole = Sum::default();
        let mut parts: Vec<(String, Sum)> = Vec::new();
        let (mut evaluations, mut name) = (0, String::new());
        for checkpoint in checkpoints {
            let checkpoint = checkpoint?;
            let of = Attributed {
                model: &checkpoint.model,
                train,
                test,
                axes,
            };
            let found = of.products(&checkpoint.metric, wanted, &self.params, progress)?;
            whole.add(&found.products, checkpoint.learning_rate)?;
            for (layer, products) in &found.layers {
                if !parts.iter().any(|(known, _)| known == layer) {
                    parts.push((layer.clone(), Sum::default()));
                }
                let part = parts.iter_mut().find(|(known, _)| known == layer);
                let (_, part) = part.expect("it was added");
                part.add(products, checkpoint.learning_rate)?;
            }
            evaluations += found.gradient_evaluations;
            name = method_name("tracin-cp", &checkpoint.metric);
        }
        let mut scores = self.scores_from_sum(&whole, axes)?;
        for (layer, part) in &parts {
            let values = self.scores_from_sum(part, axes)?.values;
            scores.layers.push((layer.clone(), values));
        }
        scores.method = name;
        note_cost(&mut scores, evaluations);
        Ok(scores)
    }

    /// The scores of every target token of every training example; they sum to
    /// [`TracinCp::scores`]. With `test_tokens` for every target token of the test examples, too.
    ///
    /// # Errors
    /// As there.
    pub fn token_scores<M: Model, E: From<AttributionError>>(
        &self,
        checkpoints: impl IntoIterator<Item = Result<Checkpoint<M>, E>>,
        train: &[M::Example],
        test: &[M::Example],
        axes: &Axes,
        test_tokens: bool,
        progress: &dyn Progress,
    ) -> Result<TokenScores, E> {
        let mut sum = Sum::default();
        let mut scores = None;
        for checkpoint in checkpoints {
            let checkpoint = checkpoint?;
            let of = Attributed {
                model: &checkpoint.model,
                train,
                test,
                axes,
            };
            let wanted = by_token(test_tokens);
            let found = of.products(&checkpoint.metric, wanted, &self.params, progress)?;
            sum.add(&found.products, checkpoint.learning_rate)?;
            let name = method_name("tracin-cp", &checkpoint.metric);
            let rate = self.params.reference_learning_rate;
            scores = Some(of.token_scores(name, rate, test_tokens, found.products)?);
        }
        let values = self.values_of_sum(&sum)?;
        let scores = scores.ok_or(AttributionError::NoCheckpoint)?;
        Ok(TokenScores { values, ..scores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::GradientParams;
    use crate::attribution::test_support::{axes, examples, model};
    use crate::graddot::GradDot;
    use simfluence_core::NoProgress;

    #[test]
    fn checkpoints_are_weighted_means_of_graddot() {
        let (train, test, axes) = (examples(3, 0), examples(4, 1), axes(3, 4));
        let params = GradientParams::new(0.7);
        let at = |seed| {
            let of = Attributed {
                model: &model(seed),
                train: &train,
                test: &test,
                axes: &axes,
            };
            let method = GradDot::new(params).unwrap();
            let scores = method.scores(&of, &Metric::Identity, false, &NoProgress);
            scores.unwrap().values
        };
        let checkpoint = |(seed, learning_rate)| {
            Ok::<_, AttributionError>(Checkpoint {
                model: model(seed),
                learning_rate,
                metric: Metric::Identity,
            })
        };
        let scores = TracinCp::new(params)
            .unwrap()
            .scores(
                [(3, 1e-3), (4, 3e-3)].map(checkpoint),
                &train,
                &test,
                &axes,
                true,
                &NoProgress,
            )
            .unwrap();
        for (k, ((got, a), b)) in scores.values.iter().zip(at(3)).zip(at(4)).enumerate() {
            let expected = 0.25 * a + 0.75 * b;
            assert!((got - expected).abs() < 1e-5 * (1.0 + expected.abs()));
            let sum: f32 = scores.layers.iter().map(|(_, values)| values[k]).sum();
            assert!((got - sum).abs() < 1e-5 * (1.0 + expected.abs()));
        }
        assert_eq!(scores.provenance["gradient_evaluations"], 14);
        let tokens = TracinCp::new(params).unwrap().token_scores(
            [(3, 1e-3), (4, 3e-3)].map(checkpoint),
            &train,
            &test,
            &axes,
            false,
            &NoProgress,
        );
        let totals = tokens.unwrap().totals().unwrap();
        for (a, b) in totals.values.iter().zip(&scores.values) {
            assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
        }
    }
}
