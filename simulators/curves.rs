//! Losses along a walk of the parameters: what unlearning and empirical influence measure.

use crate::attribution::{AttributionError, Axes};
use crate::units::Units;
use serde::{Deserialize, Serialize};
use simfluence_core::{Artifact, ArtifactError, Scores, Tensor};

/// Version of the file of loss curves.
const FORMAT_VERSION: u32 = 1;

/// Which way a walk goes on the loss of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Training: the unit's loss falls.
    Descent,
    /// Unlearning: the unit's loss rises.
    Ascent,
}

impl Direction {
    /// What the walk says of training on its unit: how much that lowers a loss which the walk
    /// took from `before` to `after`. This is the one place where the sign of a published score
    /// becomes ours: training lowers what unlearning raises.
    pub fn decrease_by_training(self, before: f64, after: f64) -> f64 {
        match self {
            Self::Descent => before - after,
            Self::Ascent => after - before,
        }
    }
}

/// Which axis of the scores the units of a walk are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitAxis {
    /// Units of training examples; test losses are measured.
    Train,
    /// Units of test examples; training losses are measured.
    Test,
}

/// The losses measured along the walk of one unit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve {
    /// Steps after which they were measured, rising, from 0 (before any step) to the last.
    pub steps: Vec<u32>,
    /// Losses in nats, row-major `[measured steps × measured examples]`.
    pub losses: Vec<f64>,
}

/// The losses along the walks of all units, each from the same parameters: the curves
/// `[steps + 1 × unit × example]` of figures 2 and 3 of the UnTrac paper. Units of different size
/// take a different number of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct LossCurves {
    /// Name of the method.
    pub method: String,
    /// Which way the walks went.
    pub direction: Direction,
    /// Which axis of the scores the units are on.
    pub unit_axis: UnitAxis,
    /// Learning rate of the walks.
    pub learning_rate: f64,
    /// The units.
    pub units: Units,
    /// Keys of the examples whose losses were measured.
    pub measured_keys: Vec<String>,
    /// One curve per unit.
    pub curves: Vec<Curve>,
    /// Examples that went through the model forward and backward.
    pub gradient_evaluations: u64,
    /// Examples that went through the model forward only.
    pub loss_evaluations: u64,
}

impl LossCurves {
    /// What one step on unit `unit` says that training on it does to each measured loss: the
    /// decrease of the whole walk, or of its first `after` steps, over the number of steps. A
    /// walk that is shorter counts whole.
    ///
    /// # Errors
    /// No losses were measured after that step, or that step is 0.
    pub fn decreases_per_step(
        &self,
        unit: usize,
        after: Option<u32>,
    ) -> Result<Vec<f64>, AttributionError> {
        let curve = &self.curves[unit];
        let last = *curve.steps.last().expect("a curve has its start");
        let step = after.unwrap_or(last).min(last);
        let not_measured = || AttributionError::NotMeasured {
            unit: self.units.as_slice()[unit].name.clone(),
            step,
        };
        if step == 0 {
            return Err(not_measured());
        }
        let row = curve
            .steps
            .binary_search(&step)
            .map_err(|_| not_measured())?;
        let m = self.measured_keys.len();
        let (start, end) = (&curve.losses[..m], &curve.losses[row * m..][..m]);
        let per_step = |(&before, &after): (&f64, &f64)| {
            self.direction.decrease_by_training(before, after) / f64::from(step)
        };
        Ok(start.iter().zip(end).map(per_step).collect())
    }

    /// `E(i,j) = (η_ref / η) · decrease / S`: every example of a unit gets what its unit got, not
    /// divided by the size of the unit again (a step's loss is the mean over its batch). Examples
    /// in no unit are left out.
    ///
    /// - `after`: `S`; `None`: the whole walk of each unit.
    pub(crate) fn scores(
        &self,
        reference_learning_rate: f64,
        axes: &Axes,
        after: Option<u32>,
    ) -> Result<Scores, AttributionError> {
        let unit_keys = match self.unit_axis {
            UnitAxis::Train => &axes.train_keys,
            UnitAxis::Test => &axes.test_keys,
        };
        self.units.check(unit_keys.len())?;
        let scale = reference_learning_rate / self.learning_rate;
        let rows: Vec<Vec<f64>> = (0..self.curves.len())
            .map(|unit| self.decreases_per_step(unit, after))
            .collect::<Result<_, _>>()?;
        let covered = self.units.covered();
        let covered_keys = (covered.iter())
            .map(|&(id, _)| unit_keys[id as usize].clone())
            .collect();
        let measured = self.measured_keys.len();
        let (axes, values) = match self.unit_axis {
            UnitAxis::Train => {
                let of = covered.iter().flat_map(|&(_, unit)| &rows[unit]);
                let values: Vec<f32> = of.map(|&d| (scale * d) as f32).collect();
                let axes = Axes {
                    train_keys: covered_keys,
                    test_keys: self.measured_keys.clone(),
                };
                (axes, values)
            }
            UnitAxis::Test => {
                let of = (0..measured)
                    .flat_map(|i| covered.iter().map(move |&(_, unit)| (i, unit)))
                    .map(|(i, unit)| rows[unit][i]);
                let values = of.map(|d| (scale * d) as f32).collect();
                let axes = Axes {
                    train_keys: self.measured_keys.clone(),
                    test_keys: covered_keys,
                };
                (axes, values)
            }
        };
        let mut scores = axes.scores(&self.method, reference_learning_rate, true, values)?;
        let mut note = |name: &str, value: serde_json::Value| {
            scores.provenance.insert(name.to_owned(), value);
        };
        note("gradient_evaluations", self.gradient_evaluations.into());
        note("loss_evaluations", self.loss_evaluations.into());
        note("units", self.units.as_slice().len().into());
        let axis = serde_json::to_value(self.unit_axis).expect("a name");
        note("unit_axis", axis);
        if let Some(steps) = after {
            note("steps", steps.into());
        }
        Ok(scores)
    }

    /// The curves as an artifact that says its axes and unit: per unit `K` the arrays `steps/K`
    /// and `losses/K` `[measured steps × measured examples]`.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new("loss_curves", FORMAT_VERSION);
        let mut text = |name: &str, value: &str| {
            artifact.metadata.insert(name.into(), value.into());
        };
        text("method", &self.method);
        text("axes", "measured step, measured example");
        text("unit", "nats per target token");
        artifact.set_json("direction", &self.direction);
        artifact.set_json("unit_axis", &self.unit_axis);
        artifact.set_json("learning_rate", &self.learning_rate);
        artifact.set_json("units", &self.units);
        artifact.set_json("measured_keys", &self.measured_keys);
        artifact.set_json("gradient_evaluations", &self.gradient_evaluations);
        artifact.set_json("loss_evaluations", &self.loss_evaluations);
        for (k, curve) in self.curves.iter().enumerate() {
            let steps = Tensor::U32 {
                shape: vec![curve.steps.len()],
                values: curve.steps.clone(),
            };
            let losses = Tensor::F64 {
                shape: vec![curve.steps.len(), self.measured_keys.len()],
                values: curve.losses.clone(),
            };
            artifact.tensors.insert(format!("steps/{k}"), steps);
            artifact.tensors.insert(format!("losses/{k}"), losses);
        }
        artifact
    }

    /// Reads the artifact back.
    ///
    /// # Errors
    /// Another kind of file, absent parts, arrays of another type or shape.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, ArtifactError> {
        artifact.expect("loss_curves", FORMAT_VERSION)?;
        let units: Units = artifact.json("units")?;
        let measured_keys: Vec<String> = artifact.json("measured_keys")?;
        let curve = |k: usize| {
            let steps = steps_of(artifact, &format!("steps/{k}"))?;
            let shape = [steps.len(), measured_keys.len()];
            let losses = artifact.f64s(&format!("losses/{k}"), &shape)?.to_vec();
            Ok(Curve { steps, losses })
        };
        let count = units.as_slice().len();
        Ok(Self {
            method: artifact.text("method")?.to_owned(),
            direction: artifact.json("direction")?,
            unit_axis: artifact.json("unit_axis")?,
            learning_rate: artifact.json("learning_rate")?,
            curves: (0..count)
                .map(curve)
                .collect::<Result<_, ArtifactError>>()?,
            units,
            measured_keys,
            gradient_evaluations: artifact.json("gradient_evaluations")?,
            loss_evaluations: artifact.json("loss_evaluations")?,
        })
    }
}

/// Steps that begin with 0 and rise.
fn steps_of(artifact: &Artifact, name: &str) -> Result<Vec<u32>, ArtifactError> {
    let Some(tensor) = artifact.tensors.get(name) else {
        return Err(ArtifactError::MissingTensor { name: name.into() });
    };
    match tensor {
        Tensor::U32 { values, .. }
            if values.first() == Some(&0) && values.windows(2).all(|w| w[0] < w[1]) =>
        {
            Ok(values.clone())
        }
        _ => Err(ArtifactError::Metadata {
            name: name.to_owned(),
            problem: "the steps must be whole numbers that begin with 0 and rise".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Unit;

    fn keys(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|k| format!("{prefix}{k}")).collect()
    }

    fn curves(unit_axis: UnitAxis, direction: Direction) -> LossCurves {
        let unit = |name: &str, members: &[u32]| Unit {
            name: name.into(),
            members: members.to_vec(),
        };
        LossCurves {
            method: "walk".into(),
            direction,
            unit_axis,
            learning_rate: 0.5,
            units: Units::new(vec![unit("a", &[0, 3]), unit("b", &[1])]).unwrap(),
            measured_keys: keys("m", 2),
            curves: vec![
                Curve {
                    steps: vec![0, 2, 4],
                    losses: vec![1.0, 1.0, 2.0, 1.5, 5.0, 0.0],
                },
                Curve {
                    steps: vec![0, 2],
                    losses: vec![1.0, 1.0, 3.0, 1.0],
                },
            ],
            gradient_evaluations: 6,
            loss_evaluations: 12,
        }
    }

    fn axes(unit_axis: UnitAxis) -> Axes {
        let (units, measured) = (keys("e", 5), keys("m", 2));
        match unit_axis {
            UnitAxis::Train => Axes {
                train_keys: units,
                test_keys: measured,
            },
            UnitAxis::Test => Axes {
                train_keys: measured,
                test_keys: units,
            },
        }
    }

    #[test]
    fn members_of_a_unit_share_its_change_per_step_at_the_reference_rate() {
        let scores = |after| {
            let curves = curves(UnitAxis::Train, Direction::Ascent);
            curves.scores(0.25, &axes(UnitAxis::Train), after).unwrap()
        };
        let whole = scores(None);
        assert_eq!(whole.train_keys, ["e0", "e1", "e3"]);
        assert_eq!(whole.test_keys, ["m0", "m1"]);
        // (0.25 / 0.5) (after − before) / steps.
        assert_eq!(whole.values, [0.5, -0.125, 0.5, 0.0, 0.5, -0.125]);
        assert_eq!(whole.provenance["unit_axis"], "train");
        assert_eq!(whole.provenance["gradient_evaluations"], 6);
        // The shorter walk counts whole; its last step is 2.
        assert_eq!(scores(Some(2)).values, [0.25, 0.125, 0.5, 0.0, 0.25, 0.125]);
        assert_eq!(scores(Some(9)).values, whole.values);
    }

    #[test]
    fn units_of_test_examples_fill_columns() {
        let curves = curves(UnitAxis::Test, Direction::Ascent);
        let scores = curves.scores(0.25, &axes(UnitAxis::Test), None).unwrap();
        assert_eq!(scores.train_keys, ["m0", "m1"]);
        assert_eq!(scores.test_keys, ["e0", "e1", "e3"]);
        assert_eq!(scores.values, [0.5, 0.5, 0.5, -0.125, 0.0, -0.125]);
    }

    #[test]
    fn training_lowers_what_training_lowered_and_what_unlearning_raised() {
        assert_eq!(Direction::Ascent.decrease_by_training(1.0, 3.0), 2.0);
        assert_eq!(Direction::Descent.decrease_by_training(3.0, 1.0), 2.0);
    }

    #[test]
    fn a_step_without_losses_is_named() {
        let curves = curves(UnitAxis::Train, Direction::Ascent);
        for step in [0, 3] {
            let error = curves.scores(0.25, &axes(UnitAxis::Train), Some(step));
            let message = error.unwrap_err().to_string();
            let expected = format!("no losses were measured after step {step} of unit \"a\"");
            assert!(message.starts_with(&expected), "{message}");
        }
    }

    #[test]
    fn curves_come_back_bit_identical() {
        let mut curves = curves(UnitAxis::Test, Direction::Descent);
        curves.curves[0].losses[3] = 0.1 + 1e-17;
        let bytes = curves.to_artifact().to_bytes().unwrap();
        let back = LossCurves::from_artifact(&Artifact::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!(back, curves);
    }

    #[test]
    fn curves_whose_steps_do_not_rise_are_refused() {
        let mut artifact = curves(UnitAxis::Test, Direction::Descent).to_artifact();
        let falling = Tensor::U32 {
            shape: vec![2],
            values: vec![2, 0],
        };
        artifact.tensors.insert("steps/1".into(), falling);
        let error = LossCurves::from_artifact(&artifact).unwrap_err();
        assert!(
            error.to_string().contains("begin with 0 and rise"),
            "{error}"
        );
    }
}
