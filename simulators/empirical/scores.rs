//! Training a model on single examples.

use super::Empirical;
use crate::attribution::{Attributed, AttributionError};
use crate::curves::{Direction, LossCurves, UnitAxis};
use crate::units::Units;
use crate::walk::Walks;
use simfluence_core::{Progress, Scores};
use simfluence_models::Model;

impl Empirical {
    /// The test losses before and after training on each unit of training examples alone: on
    /// single examples ([`Units::each`], or some of them with [`Units::alone`]), as in the paper,
    /// or on the mean loss of larger units.
    ///
    /// The model is left as it was found, also on an error.
    ///
    /// # Errors
    /// Another number of examples than keys, an example that the model cannot read, units that
    /// are not among the training examples; losses or gradients that are not finite, with the
    /// unit and the step.
    pub fn curves<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<LossCurves, AttributionError> {
        let walks = Walks {
            method: "empirical",
            direction: Direction::Descent,
            unit_axis: UnitAxis::Train,
            settings: self.walk(),
            of,
            units,
        };
        walks.curves(progress)
    }

    /// The scores of every training example in a unit for every test example. Give the same list
    /// as training and test examples for the pairwise matrix.
    ///
    /// # Errors
    /// As [`Empirical::curves`] and [`Empirical::scores_from_curves`].
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        self.scores_from_curves(&self.curves(of, units, progress)?, of.axes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::test_support::{axes, bits, dense, examples, model, sgd};
    use crate::empirical::EmpiricalParams;
    use simfluence_core::NoProgress;
    use simfluence_models::{DenseExample, Mlp, Prediction, Target, per_example_gradients};

    fn close(got: f64, expected: f64, tolerance: f64) {
        let distance = (got - expected).abs();
        assert!(distance <= tolerance * expected.abs(), "{got} {expected}");
    }

    /// The losses after `k` steps on one example of a regression: its rest shrinks by
    /// `1 − η ‖φ‖²` per step, so that `Θ_k = Θ_0 − r_0 φᵀ (1 − (1 − η ‖φ‖²)ᵏ) / ‖φ‖²`.
    fn after_steps(
        model: &Mlp,
        on: &DenseExample,
        test: &[DenseExample],
        rate: f64,
        k: i32,
    ) -> Vec<f64> {
        let value = |p: usize, at: &[i64]| model.parameters()[p].double_value(at);
        let inputs = |e: &DenseExample| [&e.features[..], &[1.0]].concat();
        let rests = |e: &DenseExample| -> Vec<f64> {
            let Target::Values(targets) = &e.target else {
                unreachable!("examples of a regression");
            };
            let rest = |o: usize| {
                let products =
                    (0..e.features.len()).map(|c| value(0, &[o as i64, c as i64]) * e.features[c]);
                products.sum::<f64>() + value(1, &[o as i64]) - targets[o]
            };
            (0..targets.len()).map(rest).collect()
        };
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let square = dot(&inputs(on), &inputs(on));
        let moved = (1.0 - (1.0 - rate * square).powi(k)) / square;
        let loss = |e: &DenseExample| {
            let along = dot(&inputs(e), &inputs(on)) * moved;
            let pairs = rests(e).into_iter().zip(rests(on));
            pairs
                .map(|(own, of_on)| 0.5 * (own - along * of_on).powi(2))
                .sum()
        };
        test.iter().map(loss).collect()
    }

    #[test]
    fn ref_steps_on_one_example_of_a_quadratic_go_where_the_closed_form_says() {
        let (model, mut train) = dense(&[3, 2], Prediction::Values, 9);
        let test = train.split_off(5);
        let axes = axes(5, 4);
        let of = Attributed {
            model: &model,
            train: &train,
            test: &test,
            axes: &axes,
        };
        let (rate, k) = (0.07, 4);
        let params = EmpiricalParams::new(1e-3)
            .learning_rate(rate)
            .optimizer(sgd());
        let method = Empirical::new(params.steps(k as u32)).unwrap();
        let some = Units::alone([1, 4], &axes.train_keys).unwrap();
        let curves = method.curves(&of, &some, &NoProgress).unwrap();
        let scores = method.scores_from_curves(&curves, &axes).unwrap();
        assert_eq!(scores.train_keys, ["1", "4"]);
        assert_eq!(scores.provenance["gradient_evaluations"], 8);
        for (row, &i) in [1, 4].iter().enumerate() {
            let start = after_steps(&model, &train[i], &test, rate, 0);
            let end = after_steps(&model, &train[i], &test, rate, k);
            assert_eq!(curves.curves[row].steps, [0, 4]);
            for j in 0..4 {
                close(curves.curves[row].losses[4 + j], end[j], 1e-10);
                let expected = 1e-3 / rate * (start[j] - end[j]) / f64::from(k);
                close(f64::from(scores.values[row * 4 + j]), expected, 1e-6);
            }
        }
    }

    fn pairwise(rate: f64) -> (Scores, tch::Tensor) {
        let (model, list) = dense(&[4, 7, 3], Prediction::Classes, 8);
        let axes = axes(8, 8);
        let of = Attributed {
            model: &model,
            train: &list,
            test: &list,
            axes: &axes,
        };
        let params = EmpiricalParams::new(1.0)
            .learning_rate(rate)
            .optimizer(sgd());
        let method = Empirical::new(params).unwrap();
        let each = Units::each(&axes.train_keys).unwrap();
        let scores = method.scores(&of, &each, &NoProgress).unwrap();
        let gradients = per_example_gradients(&model, &list).unwrap();
        (scores, gradients.matmul(&gradients.transpose(0, 1)))
    }

    #[test]
    fn ref_one_step_of_gradient_descent_is_graddot_to_first_order() {
        // Scores are changes over the rate, whose error falls like the rate.
        let error = |rate| {
            let (scores, products) = pairwise(rate);
            let got = tch::Tensor::from_slice(&scores.values).view([8, 8]);
            (got - products).abs().max().double_value(&[])
        };
        let ratio = error(4e-3) / error(2e-3);
        assert!((ratio - 2.0).abs() < 0.05, "{ratio}");
    }

    #[test]
    fn pairwise_influence_of_gradient_descent_is_symmetric_to_first_order() {
        let share = |rate| {
            let (scores, _) = pairwise(rate);
            let matrix = tch::Tensor::from_slice(&scores.values).view([8, 8]);
            let apart = (&matrix - matrix.transpose(0, 1)) / 2.0;
            let others = &matrix - matrix.diagonal(0, 0, 1).diag(0);
            (apart.norm() / others.norm()).square().double_value(&[])
        };
        // The antisymmetric part falls like the rate, its share of the squares like the square.
        let (full, half) = (share(2e-2), share(1e-2));
        assert!(full < 1e-2, "{full}");
        assert!((full / half - 4.0).abs() < 0.3, "{full} {half}");
    }

    #[test]
    fn training_on_an_example_lowers_its_own_loss_and_leaves_the_model_as_it_was() {
        let examples = examples(4, 0);
        let (model, axes) = (model(3), axes(4, 4));
        let before = bits(&model);
        let of = Attributed {
            model: &model,
            train: &examples,
            test: &examples,
            axes: &axes,
        };
        let each = Units::each(&axes.train_keys).unwrap();
        let scores = |steps| {
            let method = Empirical::new(EmpiricalParams::new(1e-3).steps(steps)).unwrap();
            method.scores(&of, &each, &NoProgress).unwrap()
        };
        for steps in [1, 3] {
            let found = scores(steps);
            assert!((0..4).all(|i| found.values[i * 4 + i] > 0.0), "{found:?}");
            assert_eq!(found, scores(steps));
        }
        assert_eq!(bits(&model), before);
    }
}
