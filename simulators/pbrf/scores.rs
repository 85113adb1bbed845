//! Responses of a model.

use super::solver::{Minimum, Smooth, minimise, norm};
use super::{Pbrf, Responses, Solve};
use crate::attribution::{Attributed, AttributionError};
use crate::units::{Unit, Units};
use simfluence_core::{Progress, Scores};
use simfluence_models::{
    GradientError, Model, PreparedExamples, Snapshot, check_all, gradient_of, hessian_product,
};
use tch::Tensor;

/// By how much the weights of the training examples may miss a sum of 1: exposures are recorded
/// as 32-bit floats.
const SUM_TOLERANCE: f64 = 1e-4;
/// Curvature below this share of the damping belongs to no minimum that the response could be.
const LEAST_CURVATURE: f64 = 0.1;

impl Pbrf {
    /// How the test losses respond to weighing each unit of training examples more.
    ///
    /// - `weights`: `w_k`, the share of each training example in the training loss
    ///   (`x̄_k / T_ref`, its total exposure over the number of steps); not negative, they sum to
    ///   1.
    ///
    /// The model is left as it was found, also on an error. Progress is counted in units.
    ///
    /// # Errors
    /// Another number of examples than keys or weights, weights out of range, an example that the
    /// model cannot read, units that are not among the training examples; a minimisation that did
    /// not converge, with the unit and what to change.
    pub fn responses<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        weights: &[f64],
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<Responses, AttributionError> {
        let objective = Objective::new(self, of, weights, units)?;
        let test: Vec<&M::Example> = of.test.iter().collect();
        let test = PreparedExamples::new(of.model, &test, self.params.examples_per_pass);
        let start = test.losses(of.model);
        let mut responses = Responses {
            units: units.clone(),
            decreases: Vec::with_capacity(units.as_slice().len() * start.len()),
            solves: Vec::new(),
            gradient_evaluations: 0,
        };
        progress.begin("responses of units", units.as_slice().len() as u64);
        for unit in units.as_slice() {
            let losses = objective.losses(unit, &test, &start, &mut responses)?;
            responses.decreases.extend(losses);
            progress.advance(1);
        }
        progress.end();
        Ok(responses)
    }

    /// The scores of every training example in a unit for every test example.
    ///
    /// # Errors
    /// As [`Pbrf::responses`] and [`Pbrf::scores_from_responses`].
    pub fn scores<M: Model>(
        &self,
        of: &Attributed<'_, M>,
        weights: &[f64],
        units: &Units,
        progress: &dyn Progress,
    ) -> Result<Scores, AttributionError> {
        let responses = self.responses(of, weights, units, progress)?;
        self.scores_from_responses(&responses, of.axes)
    }
}

/// What is minimised, but for the unit: divergences and distance from `θ_0`.
struct Objective<'a, M: Model> {
    method: &'a Pbrf,
    of: &'a Attributed<'a, M>,
    epsilon: f64,
    start: Snapshot,
    /// Training examples with weight.
    held: PreparedExamples<M>,
    /// Of each batch: the weights of its examples, and their predictions at `θ_0`.
    anchors: Vec<(Tensor, Tensor)>,
}

impl<'a, M: Model> Objective<'a, M> {
    fn new(
        method: &'a Pbrf,
        of: &'a Attributed<'a, M>,
        weights: &[f64],
        units: &Units,
    ) -> Result<Self, AttributionError> {
        check(of, weights, units)?;
        tch::set_num_threads(method.params.threads as i32);
        let (model, train) = (of.model, of.train);
        let held: Vec<usize> = (0..train.len()).filter(|&k| weights[k] > 0.0).collect();
        let members: Vec<&M::Example> = held.iter().map(|&k| &train[k]).collect();
        let prepared = PreparedExamples::new(model, &members, method.params.examples_per_pass);
        let anchor = |(batch, places): (&M::Batch, &[usize])| {
            let weights: Vec<f64> = places.iter().map(|&p| weights[held[p]]).collect();
            let weights = Tensor::from_slice(&weights)
                .to_device(model.device())
                .to_kind(model.kind());
            let predictions = tch::no_grad(|| model.outputs(batch, None).predictions);
            (weights, predictions)
        };
        Ok(Self {
            method,
            of,
            epsilon: (method.params.epsilon).unwrap_or(1.0 / held.len() as f64),
            start: Snapshot::of(model),
            anchors: prepared.batches().map(anchor).collect(),
            held: prepared,
        })
    }

    /// The decrease of each test loss per unit of extra weight on a unit.
    fn losses(
        &self,
        unit: &Unit,
        test: &PreparedExamples<M>,
        start: &[f64],
        responses: &mut Responses,
    ) -> Result<Vec<f64>, AttributionError> {
        let zero = self.of.model.flat().zeros_like();
        let (towards, after) = self.respond(unit, self.epsilon, zero, test, responses)?;
        let (before, weight) = match self.method.params.central {
            true => {
                // To first order the response to −ε is the opposite one.
                let guess = towards.neg();
                let (_, before) = self.respond(unit, -self.epsilon, guess, test, responses)?;
                (before, 2.0 * self.epsilon)
            }
            false => (start.to_vec(), self.epsilon),
        };
        let decrease = |(before, after): (&f64, &f64)| (before - after) / weight;
        Ok(before.iter().zip(&after).map(decrease).collect())
    }

    /// `θ(weight) − θ_0` and the test losses at `θ(weight)`.
    fn respond(
        &self,
        unit: &Unit,
        weight: f64,
        guess: Tensor,
        test: &PreparedExamples<M>,
        responses: &mut Responses,
    ) -> Result<(Tensor, Vec<f64>), AttributionError> {
        let (params, model) = (&self.method.params, self.of.model);
        let members: Vec<&M::Example> = (unit.members.iter())
            .map(|&id| &self.of.train[id as usize])
            .collect();
        let members = PreparedExamples::new(model, &members, params.examples_per_pass);
        // At θ_0 the divergences and the distance have no gradient.
        self.start.restore();
        let first = norm(&(members.mean_gradient(model) * weight));
        if !first.is_finite() {
            return Err(AttributionError::NotFinite {
                method: "pbrf".to_owned(),
                what: format!("the norm of the gradient of unit {:?}", unit.name),
                got: first,
            });
        }
        responses.gradient_evaluations += members.len() as u64;
        let mut weighed = Weighed {
            objective: self,
            members,
            weight,
            passes: 0,
        };
        let goal = params.tolerance * first;
        let floor = LEAST_CURVATURE * params.damping;
        let found = minimise(&mut weighed, guess, goal, floor, params.max_iterations);
        let examples = (self.held.len() + weighed.members.len()) as u64;
        responses.gradient_evaluations += weighed.passes * examples;
        let converged = found.gradient_norm <= goal;
        if !converged {
            return Err(self.not_converged(unit, &found, first));
        }
        responses.solves.push(Solve {
            unit: unit.name.clone(),
            weight,
            iterations: found.iterations,
            relative_gradient: match first > 0.0 {
                true => found.gradient_norm / first,
                false => 0.0,
            },
        });
        self.start.shift(&found.at);
        let losses = test.losses(model);
        self.start.restore();
        Ok((found.at, losses))
    }

    fn not_converged(&self, unit: &Unit, found: &Minimum, first: f64) -> AttributionError {
        let params = &self.method.params;
        AttributionError::NotConverged {
            method: "pbrf".to_owned(),
            unit: unit.name.clone(),
            iterations: found.iterations,
            max_iterations: params.max_iterations,
            reached: found.gradient_norm / first,
            tolerance: params.tolerance,
            damping: params.damping,
            epsilon: self.epsilon,
        }
    }
}

/// The objective of one unit at `θ_0` + a shift.
struct Weighed<'a, M: Model> {
    objective: &'a Objective<'a, M>,
    members: PreparedExamples<M>,
    weight: f64,
    /// Gradients and products with the Hessian, each of all examples.
    passes: u64,
}

impl<M: Model> Weighed<'_, M> {
    /// Sums a linear function of the parts of the objective: `λ x` of the distance, `part` of
    /// what each batch adds.
    fn sum(
        &mut self,
        shift: &Tensor,
        distance: &Tensor,
        part: impl Fn(&M, &Tensor) -> Tensor,
    ) -> Tensor {
        self.passes += 1;
        let (objective, model) = (self.objective, self.objective.of.model);
        objective.start.shift(shift);
        let mut sum = distance * objective.method.params.damping;
        for ((batch, _), (weights, predictions)) in objective.held.batches().zip(&objective.anchors)
        {
            let outputs = model.outputs(batch, None);
            sum += part(model, &outputs.divergences(predictions).dot(weights));
        }
        let share = self.weight / self.members.len() as f64;
        for (batch, _) in self.members.batches() {
            let loss = model.outputs(batch, None).losses().sum(model.kind());
            sum += part(model, &(loss * share));
        }
        sum
    }
}

impl<M: Model> Smooth for Weighed<'_, M> {
    fn gradient(&mut self, shift: &Tensor) -> Tensor {
        self.sum(shift, shift, |model, value| gradient_of(model, value))
    }

    fn hessian_times(&mut self, shift: &Tensor, vector: &Tensor) -> Tensor {
        self.sum(shift, vector, |model, value| {
            hessian_product(model, value, vector)
        })
    }
}

fn check<M: Model>(
    of: &Attributed<'_, M>,
    weights: &[f64],
    units: &Units,
) -> Result<(), AttributionError> {
    let (train, test) = (of.train, of.test);
    of.axes.check(train.len(), test.len())?;
    units.check(train.len())?;
    check_all(of.model, train)
        .map_err(|(example, problem)| GradientError::TrainExample { example, problem })?;
    check_all(of.model, test)
        .map_err(|(example, problem)| GradientError::TestExample { example, problem })?;
    let wrong = |expected: String, got: String| {
        AttributionError::Gradients(GradientError::Weights {
            what: "weights of the training examples",
            expected,
            got,
        })
    };
    if weights.len() != train.len() {
        let got = weights.len().to_string();
        return Err(wrong(format!("{} of them", train.len()), got));
    }
    if let Some(k) = (weights.iter()).position(|w| !(w.is_finite() && *w >= 0.0)) {
        let got = format!("{} for example {k}", weights[k]);
        return Err(wrong("finite numbers of at least 0".into(), got));
    }
    let sum: f64 = weights.iter().sum();
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(wrong("a sum of 1".into(), sum.to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::test_support::{axes, bits, dense, examples, weights};
    use crate::pbrf::PbrfParams;
    use simfluence_core::NoProgress;
    use simfluence_models::{DenseExample, Mlp, Prediction, Transformer, per_example_gradients};
    use tch::{Device, Kind};

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);
    const DAMPING: f64 = 0.05;

    struct Case {
        model: Mlp,
        train: Vec<DenseExample>,
        test: Vec<DenseExample>,
        weights: Vec<f64>,
    }

    impl Case {
        /// Weights are uneven, one is 0.
        fn new(sizes: &[usize], prediction: Prediction) -> Self {
            let (model, mut train) = dense(sizes, prediction, 12);
            let test = train.split_off(8);
            let total: f64 = (0..8).map(f64::from).sum();
            Self {
                model,
                train,
                test,
                weights: (0..8).map(|k| f64::from(k) / total).collect(),
            }
        }

        /// Decreases `[unit × test]` per unit of weight.
        fn responses(&self, epsilon: f64, central: bool) -> Tensor {
            let of = Attributed {
                model: &self.model,
                train: &self.train,
                test: &self.test,
                axes: &axes(8, 4),
            };
            let params = PbrfParams::new(1e-3, 10)
                .damping(DAMPING)
                .tolerance(1e-11)
                .epsilon(Some(epsilon))
                .central(central);
            let each = Units::each(&of.axes.train_keys).unwrap();
            let before = bits(&self.model);
            let found = Pbrf::new(params)
                .unwrap()
                .responses(&of, &self.weights, &each, &NoProgress)
                .unwrap();
            assert_eq!(bits(&self.model), before);
            assert_eq!(found.solves.len(), if central { 16 } else { 8 });
            assert!(found.solves.iter().all(|s| s.relative_gradient <= 1e-11));
            Tensor::from_slice(&found.decreases).view([8, 4])
        }

        fn gradients(&self) -> (Tensor, Tensor) {
            let of = |examples| per_example_gradients(&self.model, examples).unwrap();
            (of(&self.train), of(&self.test))
        }

        /// Predictions of some examples, one row each.
        fn predictions(&self, examples: &[DenseExample]) -> Tensor {
            let members: Vec<&DenseExample> = examples.iter().collect();
            let batch = self.model.batch(&members);
            tch::no_grad(|| self.model.outputs(&batch, None).predictions)
        }

        /// Gauss-Newton matrix `[flat × flat]` of the examples with these weights: Jacobians by
        /// central differences of each parameter, the Hessian of the loss written out.
        fn gauss_newton(&self, examples: &[DenseExample], weights: &[f64]) -> Tensor {
            let snapshot = Snapshot::of(&self.model);
            let size = self.model.layout().flat_len() as i64;
            let unit = Tensor::eye(size, OPTIONS);
            let inside: Vec<bool> = (0..size as usize)
                .map(|k| {
                    let specs = self.model.layout().specs();
                    specs
                        .iter()
                        .any(|s| (s.offset..s.offset + s.len()).contains(&k))
                })
                .collect();
            let column = |k: i64| {
                if !inside[k as usize] {
                    return self.predictions(examples).zeros_like();
                }
                let at = |h: f64| {
                    snapshot.shift(&(unit.get(k) * h));
                    self.predictions(examples)
                };
                (at(1e-5) - at(-1e-5)) / 2e-5
            };
            // [examples × outputs × flat]
            let columns: Vec<Tensor> = (0..size).map(column).collect();
            let jacobians = Tensor::stack(&columns, 2);
            snapshot.restore();
            let predictions = self.predictions(examples);
            let mut matrix = Tensor::zeros([size, size], OPTIONS);
            for (k, &weight) in weights.iter().enumerate() {
                let jacobian = jacobians.get(k as i64);
                let hessian = match self.is_classes() {
                    true => {
                        let p = predictions.get(k as i64).softmax(-1, None);
                        p.diag(0) - p.outer(&p)
                    }
                    false => Tensor::eye(predictions.size()[1], OPTIONS),
                };
                matrix += jacobian.transpose(0, 1).matmul(&hessian.matmul(&jacobian)) * weight;
            }
            matrix
        }

        fn is_classes(&self) -> bool {
            matches!(self.train[0].target, simfluence_models::Target::Class(_))
        }

        /// `g_jᵀ (G + λI)⁻¹ g_i`, `[train × test]`.
        fn damped_influence(&self) -> Tensor {
            let (train, test) = self.gradients();
            let size = train.size()[1];
            let damped = self.gauss_newton(&self.train, &self.weights)
                + Tensor::eye(size, OPTIONS) * DAMPING;
            train.matmul(&Tensor::linalg_solve(&damped, &test.transpose(0, 1), true))
        }
    }

    /// Largest distance over the largest expected number.
    fn error(got: &Tensor, expected: &Tensor) -> f64 {
        let largest = |t: &Tensor| t.abs().max().double_value(&[]);
        largest(&(got - expected)) / largest(expected)
    }

    #[test]
    fn ref_responses_of_a_quadratic_are_the_exact_ones_at_any_weight() {
        let case = Case::new(&[3, 2], Prediction::Values);
        let (train, test) = case.gradients();
        let size = train.size()[1];
        let held =
            case.gauss_newton(&case.train, &case.weights) + Tensor::eye(size, OPTIONS) * DAMPING;
        let epsilon = 0.01;
        let own: Vec<Tensor> = (0..4)
            .map(|j| case.gauss_newton(&case.test[j..=j], &[1.0]))
            .collect();
        let expected = |i: usize| -> Vec<f64> {
            let of_unit = case.gauss_newton(&case.train[i..=i], &[1.0]);
            let gradient = train.get(i as i64).unsqueeze(1);
            let shift = |weight: f64| {
                let curvature = &held + &of_unit * weight;
                Tensor::linalg_solve(&curvature, &(&gradient * -weight), true).squeeze_dim(1)
            };
            let change = |j: usize, shift: &Tensor| {
                let bend = shift.dot(&own[j].mv(shift)) * 0.5;
                (test.get(j as i64).dot(shift) + bend).double_value(&[])
            };
            let (down, up) = (shift(-epsilon), shift(epsilon));
            let response = |j| (change(j, &down) - change(j, &up)) / (2.0 * epsilon);
            (0..4).map(response).collect()
        };
        let all: Vec<f64> = (0..8).flat_map(expected).collect();
        let expected = Tensor::from_slice(&all).view([8, 4]);
        let off = error(&case.responses(epsilon, true), &expected);
        assert!(off < 1e-8, "{off}");
    }

    #[test]
    fn ref_responses_of_a_quadratic_tend_to_damped_influence() {
        let case = Case::new(&[3, 2], Prediction::Values);
        let off = error(&case.responses(3e-5, true), &case.damped_influence());
        assert!(off < 1e-6, "{off}");
    }

    #[test]
    fn ref_responses_of_a_classifier_tend_to_damped_gauss_newton_influence() {
        for sizes in [&[3, 3][..], &[4, 5, 3]] {
            let case = Case::new(sizes, Prediction::Classes);
            let expected = case.damped_influence();
            let off = |epsilon, central| error(&case.responses(epsilon, central), &expected);
            let central = (off(1e-3, true), off(5e-4, true));
            assert!((central.0 / central.1 - 4.0).abs() < 0.2, "{central:?}");
            let one_sided = (off(2e-4, false), off(1e-4, false));
            assert!(
                (one_sided.0 / one_sided.1 - 2.0).abs() < 0.1,
                "{one_sided:?}"
            );
            let smallest = off(1e-5, true);
            assert!(smallest < 1e-6, "{smallest}");
        }
    }

    /// On a transformer that has not been trained, in 64-bit floats.
    #[test]
    fn a_training_example_that_is_also_a_test_example_has_a_positive_score_for_it() {
        let list = examples(5, 0);
        let model = Transformer::with_kind(&weights(3), Device::Cpu, Kind::Double);
        let axes = axes(5, 5);
        let before = bits(&model);
        let of = Attributed {
            model: &model,
            train: &list,
            test: &list,
            axes: &axes,
        };
        let params = PbrfParams::new(1e-3, 10).damping(0.1).epsilon(Some(1e-3));
        let method = Pbrf::new(params).unwrap();
        let some = Units::alone([1, 3], &axes.train_keys).unwrap();
        let scores = || method.scores(&of, &[0.2; 5], &some, &NoProgress).unwrap();
        let found = scores();
        assert_eq!(found.train_keys, ["1", "3"]);
        assert!(
            found.values[1] > 0.0 && found.values[5 + 3] > 0.0,
            "{found:?}"
        );
        let worst = &found.provenance["worst_relative_gradient"];
        assert!(worst.as_f64().unwrap() <= 1e-4);
        assert_eq!(found, scores());
        assert_eq!(bits(&model), before);
    }

    #[test]
    fn a_minimisation_that_does_not_converge_says_what_to_change() {
        let case = Case::new(&[4, 5, 3], Prediction::Classes);
        let of = Attributed {
            model: &case.model,
            train: &case.train,
            test: &case.test,
            axes: &axes(8, 4),
        };
        let before = bits(&case.model);
        let method = Pbrf::new(PbrfParams::new(1e-3, 10).max_iterations(2)).unwrap();
        let each = Units::each(&of.axes.train_keys).unwrap();
        let error = method.scores(&of, &case.weights, &each, &NoProgress);
        let message = error.unwrap_err().to_string();
        assert!(
            message.starts_with("pbrf: for unit \"0\" the gradient came to"),
            "{message}"
        );
        assert!(
            message.contains("the iterations (now 2)") && message.contains("raise the damping"),
            "{message}"
        );
        assert_eq!(bits(&case.model), before);
    }

    #[test]
    fn weights_that_are_no_shares_are_named() {
        let case = Case::new(&[3, 2], Prediction::Values);
        let of = Attributed {
            model: &case.model,
            train: &case.train,
            test: &case.test,
            axes: &axes(8, 4),
        };
        let method = Pbrf::new(PbrfParams::new(1e-3, 10)).unwrap();
        let each = Units::each(&of.axes.train_keys).unwrap();
        let message = |weights: &[f64]| {
            let scores = method.scores(&of, weights, &each, &NoProgress);
            scores.unwrap_err().to_string()
        };
        assert!(message(&[0.5; 2]).ends_with("expected 8 of them, got 2"));
        assert!(message(&[0.5; 8]).ends_with("expected a sum of 1, got 4"));
        let mut negative = case.weights.clone();
        negative[3] = -0.5;
        assert!(message(&negative).ends_with("got -0.5 for example 3"));
    }
}
