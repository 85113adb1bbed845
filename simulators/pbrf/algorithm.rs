//! From responses to scores.

use super::Pbrf;
use crate::attribution::{AttributionError, Axes};
use crate::units::Units;
use simfluence_core::Scores;

/// How one minimisation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Solve {
    /// Name of the unit.
    pub unit: String,
    /// The weight, `ε` or `−ε`.
    pub weight: f64,
    /// Products with the Hessian.
    pub iterations: u32,
    /// Norm of the gradient over that at `θ_0`; at most the tolerance.
    pub relative_gradient: f64,
}

/// How the test losses respond to weighing each unit more.
#[derive(Debug, Clone, PartialEq)]
pub struct Responses {
    /// The units.
    pub units: Units,
    /// Decrease of each test loss per unit of extra weight, row-major `[unit × test]`.
    pub decreases: Vec<f64>,
    /// How the minimisations ended.
    pub solves: Vec<Solve>,
    /// Examples that went through the model forward and backward.
    pub gradient_evaluations: u64,
}

impl Pbrf {
    /// `E(i,j)`: the response of `L_j` over `T_ref`, for every `i` of a unit. Examples in no unit
    /// are left out. The provenance says how well the worst minimisation converged.
    ///
    /// # Errors
    /// Units or responses that do not fit the axes, a score too large for 32-bit floats.
    pub fn scores_from_responses(
        &self,
        responses: &Responses,
        axes: &Axes,
    ) -> Result<Scores, AttributionError> {
        responses.units.check(axes.train_keys.len())?;
        let steps = f64::from(self.params.reference_steps);
        let m = axes.test_keys.len();
        let covered = responses.units.covered();
        let row = |unit: usize| &responses.decreases[unit * m..][..m];
        let values = (covered.iter())
            .flat_map(|&(_, unit)| row(unit))
            .map(|decrease| (decrease / steps) as f32);
        let covered_axes = Axes {
            train_keys: (covered.iter())
                .map(|&(id, _)| axes.train_keys[id as usize].clone())
                .collect(),
            test_keys: axes.test_keys.clone(),
        };
        let rate = self.params.reference_learning_rate;
        let mut scores = covered_axes.scores("pbrf", rate, true, values.collect())?;
        let mut note = |name: &str, value: serde_json::Value| {
            scores.provenance.insert(name.to_owned(), value);
        };
        let solves = &responses.solves;
        let worst = solves
            .iter()
            .map(|s| s.relative_gradient)
            .fold(0.0, f64::max);
        let longest = solves.iter().map(|s| s.iterations).max();
        note(
            "gradient_evaluations",
            responses.gradient_evaluations.into(),
        );
        note("units", responses.units.as_slice().len().into());
        note("worst_relative_gradient", worst.into());
        note("most_iterations", longest.into());
        let settings = serde_json::to_value(self.params).expect("settings are plain values");
        note("settings", settings);
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pbrf::PbrfParams;
    use crate::units::Unit;

    #[test]
    fn responses_are_shared_in_a_unit_and_divided_by_the_steps() {
        let unit = |name: &str, members: &[u32]| Unit {
            name: name.into(),
            members: members.to_vec(),
        };
        let responses = Responses {
            units: Units::new(vec![unit("a", &[2, 0]), unit("b", &[1])]).unwrap(),
            decreases: vec![4.0, -8.0, 1.0, 2.0],
            solves: vec![Solve {
                unit: "a".into(),
                weight: 0.1,
                iterations: 7,
                relative_gradient: 1e-5,
            }],
            gradient_evaluations: 5,
        };
        let keys = |count: usize| (0..count).map(|k| k.to_string()).collect();
        let axes = Axes {
            train_keys: keys(4),
            test_keys: keys(2),
        };
        let method = Pbrf::new(PbrfParams::new(1e-3, 4)).unwrap();
        let scores = method.scores_from_responses(&responses, &axes).unwrap();
        assert_eq!(scores.train_keys, ["0", "1", "2"]);
        assert_eq!(scores.values, [1.0, -2.0, 0.25, 0.5, 1.0, -2.0]);
        assert_eq!(scores.provenance["most_iterations"], 7);
        assert_eq!(scores.provenance["worst_relative_gradient"], 1e-5);
    }
}
