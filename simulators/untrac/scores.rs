//! Unlearning a model.

use super::{Untrac, UntracInv};
use crate::attribution::{Attributed, AttributionError};
use crate::curves::{Direction, LossCurves, UnitAxis};
use crate::units::Units;
use crate::walk::Walks;
use simfluence_core::{Progress, Scores};
use simfluence_models::Model;

impl Untrac {
    /// The test losses while each unit of training examples is unlearned.
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
            method: "untrac",
            direction: Direction::Ascent,
            unit_axis: UnitAxis::Train,
            settings: self.params.walk(),
            of,
            units,
        };
        walks.curves(progress)
    }

    /// The scores of every training example in a unit for every test example.
    ///
    /// # Errors
    /// As [`Untrac::curves`] and [`Untrac::scores_from_curves`].
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        self.scores_from_curves(&self.curves(of, units, progress)?, of.axes, None)
    }
}

impl UntracInv {
    /// The training losses while each unit of test examples is unlearned.
    ///
    /// The model is left as it was found, also on an error.
    ///
    /// # Errors
    /// As [`Untrac::curves`], with units among the test examples.
    pub fn curves<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<LossCurves, AttributionError> {
        let walks = Walks {
            method: "untrac-inv",
            direction: Direction::Ascent,
            unit_axis: UnitAxis::Test,
            settings: self.params.walk(),
            of,
            units,
        };
        walks.curves(progress)
    }

    /// The scores of every training example for every test example in a unit. Test examples of
    /// one unit have the same scores.
    ///
    /// # Errors
    /// As [`UntracInv::curves`] and [`UntracInv::scores_from_curves`].
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        self.scores_from_curves(&self.curves(of, units, progress)?, of.axes, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::test_support::{axes, bits, dense, examples, model, sgd};
    use crate::units::Unit;
    use crate::untrac::UnlearningParams;
    use simfluence_core::NoProgress;
    use simfluence_models::{DenseExample, Mlp, Prediction, Target, per_example_gradients};
    use tch::{Device, Kind, Tensor};

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn units(members: &[&[u32]]) -> Units {
        let unit = |members: &&[u32]| Unit {
            name: format!("from {}", members[0]),
            members: members.to_vec(),
        };
        Units::new(members.iter().map(unit).collect()).unwrap()
    }

    fn close(got: f64, expected: f64, tolerance: f64) {
        let distance = (got - expected).abs();
        assert!(distance <= tolerance * expected.abs(), "{got} {expected}");
    }

    /// Inputs with a 1 behind them `[examples × inputs + 1]`, and targets `[examples × outputs]`.
    fn matrices(examples: &[&DenseExample]) -> (Tensor, Tensor) {
        let rows = |values: Vec<f64>| Tensor::from_slice(&values).view([examples.len() as i64, -1]);
        let features = examples
            .iter()
            .flat_map(|e| [&e.features[..], &[1.0]].concat());
        let targets = examples.iter().flat_map(|e| match &e.target {
            Target::Values(values) => values.clone(),
            Target::Class(_) => unreachable!("examples of a regression"),
        });
        (rows(features.collect()), rows(targets.collect()))
    }

    /// `Θ_S = Θ* + (Θ_0 − Θ*)(I + η A)^S` of full-batch ascent on the mean squared error of the
    /// unit, with `A = ΦᵀΦ/n` and `Θ* A = YᵀΦ/n`; the losses of `measured` there.
    fn ascended(
        model: &Mlp,
        unit: &[&DenseExample],
        measured: &[DenseExample],
        rate: f64,
        steps: i64,
    ) -> Vec<f64> {
        let [weight, bias] = model.parameters() else {
            unreachable!("a regression has a matrix and a bias");
        };
        let start = Tensor::cat(&[&weight.detach(), &bias.detach().unsqueeze(1)], 1);
        let (inputs, targets) = matrices(unit);
        let count = unit.len() as f64;
        let curvature = inputs.transpose(0, 1).matmul(&inputs) / count;
        let right = targets.transpose(0, 1).matmul(&inputs) / count;
        let best = Tensor::linalg_solve(&curvature, &right, false);
        let growth =
            (Tensor::eye(inputs.size()[1], OPTIONS) + curvature * rate).linalg_matrix_power(steps);
        let end = &best + (start - &best).matmul(&growth);
        let (inputs, targets) = matrices(&measured.iter().collect::<Vec<_>>());
        let rests = inputs.matmul(&end.transpose(0, 1)) - targets;
        let losses = rests.square().sum_dim_intlist(1, false, None) * 0.5;
        Vec::try_from(losses).unwrap()
    }

    fn regression() -> (Mlp, Vec<DenseExample>, Vec<DenseExample>) {
        let (model, mut train) = dense(&[3, 2], Prediction::Values, 18);
        let test = train.split_off(11);
        (model, train, test)
    }

    fn check_ascent(
        curves: &LossCurves,
        stepped: &[DenseExample],
        measured: &[DenseExample],
        model: &Mlp,
        rate: f64,
    ) {
        for (unit, curve) in curves.units.as_slice().iter().zip(&curves.curves) {
            let members: Vec<&DenseExample> =
                unit.members.iter().map(|&i| &stepped[i as usize]).collect();
            for (step, losses) in curve.losses.chunks_exact(measured.len()).enumerate() {
                let expected = ascended(model, &members, measured, rate, step as i64);
                for (&got, expected) in losses.iter().zip(expected) {
                    close(got, expected, 1e-10);
                }
            }
        }
    }

    #[test]
    fn ref_unlearning_a_quadratic_goes_where_its_closed_form_says() {
        let (model, train, test) = regression();
        let axes = axes(train.len(), test.len());
        let of = Attributed {
            model: &model,
            train: &train,
            test: &test,
            axes: &axes,
        };
        let rate = 0.05;
        let params = UnlearningParams::untrac(1e-3)
            .optimizer(sgd())
            .learning_rate(rate);
        let params = params.batch_size(None).epochs(6);

        let units_of_train = units(&[&[0, 2, 4, 6, 8, 10], &[1, 3, 5, 7, 9]]);
        let untrac = Untrac::new(params).unwrap();
        let curves = untrac.curves(&of, &units_of_train, &NoProgress).unwrap();
        assert_eq!(curves.curves[0].steps.len(), 7);
        check_ascent(&curves, &train, &test, &model, rate);
        let scores = untrac.scores(&of, &units_of_train, &NoProgress).unwrap();
        let start: Vec<f64> = curves.curves[1].losses[..7].to_vec();
        let members: Vec<&DenseExample> = [1, 3, 5, 7, 9].map(|i: usize| &train[i]).to_vec();
        let end = ascended(&model, &members, &test, rate, 6);
        for j in 0..7 {
            let expected = 1e-3 / rate * (end[j] - start[j]) / 6.0;
            for i in [1, 3, 5, 7, 9] {
                close(f64::from(scores.values[i * 7 + j]), expected, 1e-6);
            }
        }

        let inverse = UntracInv::new(params).unwrap();
        let units_of_test = units(&[&[0, 2, 4, 6], &[1, 3, 5]]);
        let curves = inverse.curves(&of, &units_of_test, &NoProgress).unwrap();
        // Three examples do not determine four columns: only the first unit has a closed form.
        let first = LossCurves {
            units: units(&[&[0, 2, 4, 6]]),
            curves: curves.curves[..1].to_vec(),
            ..curves
        };
        check_ascent(&first, &test, &train, &model, rate);
    }

    /// Errors at two rates, one half of the other, fall like the square.
    fn falls_like_the_square(error: impl Fn(f64) -> f64) {
        let (rate, half) = (error(2e-4), error(1e-4));
        assert!((rate / half - 4.0).abs() < 0.05, "{rate} {half}");
    }

    struct Network {
        model: Mlp,
        train: Vec<DenseExample>,
        test: Vec<DenseExample>,
        train_gradients: Tensor,
        test_gradients: Tensor,
    }

    const Z: &[u32] = &[0, 3, 4, 7, 8];
    const Z_TEST: &[u32] = &[0, 2, 3];

    impl Network {
        fn new() -> Self {
            let (model, mut train) = dense(&[4, 7, 3], Prediction::Classes, 15);
            let test = train.split_off(11);
            Self {
                train_gradients: per_example_gradients(&model, &train).unwrap(),
                test_gradients: per_example_gradients(&model, &test).unwrap(),
                model,
                train,
                test,
            }
        }

        /// Change of each measured loss by one full-batch step on the unit.
        fn rises(
            &self,
            axis: UnitAxis,
            optimizer: simfluence_core::Optimizer,
            rate: f64,
        ) -> Vec<f64> {
            let of = Attributed {
                model: &self.model,
                train: &self.train,
                test: &self.test,
                axes: &axes(11, 4),
            };
            let params = UnlearningParams::untrac(1.0)
                .optimizer(optimizer)
                .learning_rate(rate)
                .batch_size(None);
            let curves = match axis {
                UnitAxis::Train => {
                    let untrac = Untrac::new(params).unwrap();
                    untrac.curves(&of, &units(&[Z]), &NoProgress)
                }
                UnitAxis::Test => {
                    let inverse = UntracInv::new(params).unwrap();
                    inverse.curves(&of, &units(&[Z_TEST]), &NoProgress)
                }
            };
            curves.unwrap().decreases_per_step(0, Some(1)).unwrap()
        }

        /// Gradient of the mean loss of some examples.
        fn mean(gradients: &Tensor, ids: &[u32]) -> Tensor {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let rows = gradients.index_select(0, &Tensor::from_slice(&ids));
            rows.mean_dim(0, false, None)
        }
    }

    /// Largest distance between numbers and a tensor.
    fn largest(got: &[f64], expected: &Tensor) -> f64 {
        (Tensor::from_slice(got) - expected)
            .abs()
            .max()
            .double_value(&[])
    }

    #[test]
    fn ref_one_full_batch_step_is_the_mean_of_graddot_to_first_order() {
        let network = Network::new();
        let ascent = Network::mean(&network.train_gradients, Z);
        let expected = network.test_gradients.mv(&ascent);
        falls_like_the_square(|rate| {
            let rises = network.rises(UnitAxis::Train, sgd(), rate);
            largest(&rises, &(&expected * rate))
        });
        let ascent = Network::mean(&network.test_gradients, Z_TEST);
        let expected = network.train_gradients.mv(&ascent);
        falls_like_the_square(|rate| {
            let rises = network.rises(UnitAxis::Test, sgd(), rate);
            largest(&rises, &(&expected * rate))
        });
    }

    #[test]
    fn ref_untrac_and_untrac_inv_agree_to_first_order_at_one_full_batch_step() {
        let network = Network::new();
        let mean = |values: &[f64], ids: &[u32]| {
            let sum: f64 = ids.iter().map(|&id| values[id as usize]).sum();
            sum / ids.len() as f64
        };
        let both = |rate| {
            (
                mean(&network.rises(UnitAxis::Train, sgd(), rate), Z_TEST),
                mean(&network.rises(UnitAxis::Test, sgd(), rate), Z),
            )
        };
        let (direct, inverse) = both(1e-3);
        assert!(
            (direct - inverse).abs() < 0.01 * direct.abs(),
            "{direct} {inverse}"
        );
        falls_like_the_square(|rate| {
            let (direct, inverse) = both(rate);
            (direct - inverse).abs()
        });
    }

    /// The paper likens a step of Adam to GradCos; it is the inner product with the sign of the
    /// gradient.
    #[test]
    fn ref_one_step_of_adam_is_the_product_with_the_sign_of_the_gradient() {
        let network = Network::new();
        let ascent = Network::mean(&network.train_gradients, Z).sign();
        let expected = network.test_gradients.mv(&ascent);
        let adam = crate::attribution::plain_adam();
        falls_like_the_square(|rate| {
            let rises = network.rises(UnitAxis::Train, adam, rate);
            largest(&rises, &(&expected * rate))
        });
    }

    #[test]
    fn a_training_example_that_is_also_a_test_example_has_a_positive_score_for_it() {
        let examples = examples(4, 0);
        let (model, axes) = (model(3), axes(4, 4));
        let before = bits(&model);
        let of = Attributed {
            model: &model,
            train: &examples,
            test: &examples,
            axes: &axes,
        };
        let alone = Units::each(&axes.train_keys).unwrap();
        let direct = Untrac::new(UnlearningParams::untrac(1e-3)).unwrap();
        let inverse = UntracInv::new(UnlearningParams::untrac_inv(1e-3)).unwrap();
        let scores = [
            direct.scores(&of, &alone, &NoProgress).unwrap(),
            inverse.scores(&of, &alone, &NoProgress).unwrap(),
        ];
        for scores in scores {
            for i in 0..4 {
                assert!(scores.values[i * 4 + i] > 0.0, "{} {i}", scores.method);
            }
            assert_eq!(scores.train_keys, axes.train_keys);
            assert_eq!(scores.test_keys, axes.test_keys);
        }
        assert_eq!(bits(&model), before);
    }

    #[test]
    fn the_scores_say_what_they_were_made_with_and_what_they_cost() {
        let (train, test) = (examples(6, 0), examples(3, 1));
        let (model, axes) = (model(3), axes(6, 3));
        let of = Attributed {
            model: &model,
            train: &train,
            test: &test,
            axes: &axes,
        };
        let method = Untrac::new(UnlearningParams::untrac(1e-3).batch_size(Some(2))).unwrap();
        let units = units(&[&[0, 1, 2], &[3, 4, 5]]);
        let scores = method.scores(&of, &units, &NoProgress).unwrap();
        assert_eq!(scores.provenance["gradient_evaluations"], 6);
        // Before the first step, and after two steps on each unit.
        assert_eq!(scores.provenance["loss_evaluations"], 15);
        assert_eq!(scores.provenance["settings"]["learning_rate"], 5e-5);
        assert_eq!(scores.provenance["settings"]["optimizer"]["name"], "adam");
        assert_eq!(scores.values[..3], scores.values[3..6]);
        assert!(scores.has_natural_unit);
    }
}
