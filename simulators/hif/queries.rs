//! Whose influences are asked for.

use crate::attribution::{Attributed, Axes};
use crate::units::Units;
use simfluence_models::{GradientError, Model, PreparedExamples, check_all, per_example_gradients};
use tch::Tensor;

/// Examples per backward pass of a unit's mean gradient.
const EXAMPLES_PER_PASS: usize = 64;

/// The losses that influence is on: of every test example, or the mean of each unit of them.
pub(super) struct Queries<'a, M: Model> {
    pub of: &'a Attributed<'a, M>,
    pub units: Option<&'a Units>,
}

impl<M: Model> Queries<'_, M> {
    /// Number of losses.
    pub fn count(&self) -> usize {
        self.units
            .map_or(self.of.test.len(), |units| units.as_slice().len())
    }

    /// Their gradients, `[count × flat length]`.
    pub fn gradients(&self) -> Result<Tensor, GradientError> {
        let Attributed { model, test, .. } = *self.of;
        let Some(units) = self.units else {
            return per_example_gradients(model, test);
        };
        check_all(model, test)
            .map_err(|(example, problem)| GradientError::TestExample { example, problem })?;
        let gradients: Vec<Tensor> = (units.as_slice().iter())
            .map(|unit| {
                let members: Vec<&M::Example> =
                    unit.members.iter().map(|&j| &test[j as usize]).collect();
                PreparedExamples::new(model, &members, EXAMPLES_PER_PASS).mean_gradient(model)
            })
            .collect();
        Ok(Tensor::stack(&gradients, 0))
    }

    /// The axes of the scores: test examples that are in no unit are left out.
    pub fn axes(&self) -> Axes {
        let mut axes = self.of.axes.clone();
        if let Some(units) = self.units {
            let key = |&(id, _): &(u32, usize)| self.of.axes.test_keys[id as usize].clone();
            axes.test_keys = units.covered().iter().map(key).collect();
        }
        axes
    }

    /// `[train × test]` from `[train × count]`: every member of a unit has what its unit has.
    pub fn spread(&self, products: Vec<f32>) -> Vec<f32> {
        let Some(units) = self.units else {
            return products;
        };
        let covered = units.covered();
        let row = |row: &[f32]| -> Vec<f32> { covered.iter().map(|&(_, u)| row[u]).collect() };
        products.chunks(self.count()).flat_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::attribution::test_support::{axes, dense};
    use crate::attribution::{Attributed, GradientParams};
    use crate::hif::{
        Arnoldi, ConjugateGradientSettings, DampingParam, Drawn, Factored, Hif, HifParams,
        LissaSettings, Solver,
    };
    use crate::units::{Unit, Units};
    use simfluence_core::{NoProgress, Scores};
    use simfluence_models::Prediction;

    const STEPS: usize = 5;

    fn solvers() -> [Solver; 6] {
        [
            Solver::Exact,
            Solver::ConjugateGradients(ConjugateGradientSettings {
                tolerance: 1e-10,
                iterations: 200,
            }),
            Solver::Lissa(LissaSettings {
                depth: 3000,
                repeats: 1,
                batch_size: None,
                scale: None,
                deflation: true,
                tolerance: 1e-8,
            }),
            Solver::Arnoldi(Arnoldi {
                iterations: 12,
                rank: 6,
                complement: false,
            }),
            Solver::Arnoldi(Arnoldi {
                iterations: 12,
                rank: 6,
                complement: true,
            }),
            Solver::Factored(Factored::Ekfac(Drawn::Given)),
        ]
    }

    /// Scores of 5 training examples: for each of 4 test examples, for units of them, and for
    /// units with the curvature of 3 drawn training examples.
    fn scores(solver: Solver, units: &Units) -> [Scores; 3] {
        let (model, examples) = dense(&[3, 4, 3], Prediction::Classes, 9);
        let of = Attributed {
            model: &model,
            train: &examples[..5],
            test: &examples[5..],
            axes: &axes(5, 4),
        };
        let mut params = HifParams::new(GradientParams::new(0.1), solver);
        params.damping = DampingParam::Absolute(0.05);
        let exposures = [2.0, 1.0, 1.0, 0.5, 0.5];
        let of_units = |params| {
            let method = Hif::new(params).unwrap();
            let scores = method.scores_of_units(&of, units, &exposures, STEPS, true, &NoProgress);
            scores.unwrap()
        };
        let each = Hif::new(params).unwrap();
        let each = each.scores(&of, &exposures, STEPS, true, &NoProgress);
        let whole = of_units(params);
        params.curvature_examples = Some(3);
        [each.unwrap(), whole, of_units(params)]
    }

    #[test]
    fn members_of_a_unit_have_the_mean_of_their_own_scores_with_every_solver() {
        let unit = |name: &str, members: &[u32]| Unit {
            name: name.into(),
            members: members.to_vec(),
        };
        let units = Units::new(vec![unit("a", &[3, 0]), unit("b", &[2])]).unwrap();
        for solver in solvers() {
            let [each, whole, drawn] = scores(solver, &units);
            assert_eq!(whole.test_keys, ["0", "2", "3"]);
            let layers = whole.layers.iter().map(|(_, values)| values);
            for k in 0..5 {
                let own = |j: usize| each.values[4 * k + j];
                let unit = (own(0) + own(3)) / 2.0;
                let largest = each.values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
                for (got, expected) in whole.values[3 * k..].iter().zip([unit, own(2), unit]) {
                    let difference = (got - expected).abs() / largest;
                    assert!(difference < 2e-5, "{solver:?}: {got} {expected}");
                }
                let sum: f32 = layers.clone().map(|values| values[3 * k]).sum();
                assert!((sum - whole.values[3 * k]).abs() < 2e-5 * largest);
            }
            assert_ne!(drawn.values, whole.values, "{solver:?}");
        }
    }

    #[test]
    fn units_that_are_not_among_the_test_examples_are_named() {
        let (model, examples) = dense(&[3, 2], Prediction::Classes, 4);
        let of = Attributed {
            model: &model,
            train: &examples[..2],
            test: &examples[2..],
            axes: &axes(2, 2),
        };
        let units = Units::new(vec![Unit {
            name: "far".into(),
            members: vec![7],
        }]);
        let method = Hif::new(HifParams::new(GradientParams::new(0.1), Solver::Exact)).unwrap();
        let scores = method.scores_of_units(&of, &units.unwrap(), &[1.0; 2], 2, false, &NoProgress);
        let message = scores.unwrap_err().to_string();
        assert!(
            message.contains("far") && message.contains('7'),
            "{message}"
        );
    }
}
