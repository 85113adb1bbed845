//! The effects of leaving units out.

use super::{LeaveOutError, Unit};
use crate::attribution::Axes;
use serde_json::json;
use simfluence_core::{Artifact, Scores, Tensor};
use std::collections::BTreeMap;

/// Kind and version of the file form.
const KIND: (&str, u32) = ("leave_out_truth", 1);

/// What leaving each unit out did, in each seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    /// The units.
    pub units: Vec<Unit>,
    /// `x̄_Z`: total exposure of each unit in the reference run, in steps.
    pub exposures: Vec<f64>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Number of test examples.
    pub test_count: usize,
    /// `L_j(θ_{−Z}) − L_j(θ_0)` after the last step, `[seed × unit × test]`, nats per target
    /// token; larger = training on the unit lowers the loss more.
    pub effects: Vec<f64>,
}

impl Truth {
    /// The effects in one seed, a row of test examples per unit.
    pub fn of_seed(&self, seed: usize) -> Vec<Vec<f64>> {
        let size = self.units.len() * self.test_count;
        self.effects[seed * size..(seed + 1) * size]
            .chunks(self.test_count)
            .map(<[f64]>::to_vec)
            .collect()
    }

    /// The effects, mean over seeds, a row of test examples per unit.
    pub fn mean(&self) -> Vec<Vec<f64>> {
        mean_over(&self.effects, self.seeds.len(), self.units.len())
    }

    /// What a method's scores say about each unit: `Σ_{i ∈ Z} x̄_i E(i,j)`, a row of test examples
    /// per unit, with `x̄_i` the total exposure in the reference run.
    ///
    /// It is the loss that training on the unit took away by the method's account; what takes the
    /// unit's place is not in it, as in the attribution literature.
    ///
    /// - `scores`: over the training and test examples of the truth, `[train × test]`.
    /// - `exposure`: `x̄`, `[train]`.
    pub fn predicted(&self, scores: &Scores, exposure: &[f64]) -> Vec<Vec<f64>> {
        let row = |unit: &Unit| {
            let mut sum = vec![0.0; self.test_count];
            for &example in &unit.members {
                let example = example as usize;
                let row = &scores.values[example * self.test_count..][..self.test_count];
                for (sum, &score) in sum.iter_mut().zip(row) {
                    *sum += exposure[example] * f64::from(score);
                }
            }
            sum
        };
        self.units.iter().map(row).collect()
    }

    /// `E(i,j) = effect(Z, j) / x̄_Z` for every member `i` of the unit `Z`, mean over seeds: nats
    /// per step whose batch is only `i`, at the mean learning rate of the reference run. All
    /// members of a unit share its score, also those that the run never trained on.
    ///
    /// # Errors
    /// Units that overlap or do not cover the training examples: their examples would have two
    /// scores or none.
    pub fn scores(
        &self,
        axes: &Axes,
        reference_learning_rate: f64,
    ) -> Result<Scores, LeaveOutError> {
        let unit_of = self.unit_of(axes)?;
        let mean = self.mean();
        let values = unit_of.iter().flat_map(|&unit| {
            let exposure = self.exposures[unit];
            mean[unit]
                .iter()
                .map(move |effect| (effect / exposure) as f32)
        });
        let scores = Scores {
            method: "leave-out".to_owned(),
            train_keys: axes.train_keys.clone(),
            test_keys: axes.test_keys.clone(),
            reference_learning_rate,
            has_natural_unit: true,
            values: values.collect(),
            layers: Vec::new(),
            provenance: BTreeMap::from([
                ("seeds".to_owned(), json!(self.seeds)),
                ("units".to_owned(), json!(self.units.len())),
            ]),
        };
        scores.check()?;
        Ok(scores)
    }

    /// The unit of every training example.
    fn unit_of(&self, axes: &Axes) -> Result<Vec<usize>, LeaveOutError> {
        let mut unit_of: Vec<Option<usize>> = vec![None; axes.train_keys.len()];
        for (index, unit) in self.units.iter().enumerate() {
            for &example in &unit.members {
                if let Some(first) = unit_of[example as usize].replace(index)
                    && first != index
                {
                    return Err(LeaveOutError::Overlap {
                        key: axes.train_keys[example as usize].clone(),
                        first: self.units[first].name.clone(),
                        second: unit.name.clone(),
                    });
                }
            }
        }
        let uncovered = unit_of.iter().filter(|unit| unit.is_none()).count();
        match unit_of.iter().position(Option::is_none) {
            None => Ok(unit_of.into_iter().flatten().collect()),
            Some(first) => Err(LeaveOutError::Uncovered {
                count: uncovered,
                train_count: unit_of.len(),
                first: axes.train_keys[first].clone(),
            }),
        }
    }

    /// The file form; what it was made from is for the caller to add to the metadata.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new(KIND.0, KIND.1);
        let sign = "larger = training on the unit lowers the test example's loss more";
        artifact.metadata.insert("sign".into(), sign.into());
        let axes = "seed, unit, test";
        artifact.metadata.insert("axes".into(), axes.into());
        artifact.set_json("units", &self.units);
        artifact.set_json("seeds", &self.seeds);
        artifact.set_json("test_count", &self.test_count);
        let mut tensor = |name: &str, shape, values: &[f64]| {
            let values = values.to_vec();
            artifact
                .tensors
                .insert(name.into(), Tensor::F64 { shape, values });
        };
        tensor("exposures", vec![self.units.len()], &self.exposures);
        let shape = vec![self.seeds.len(), self.units.len(), self.test_count];
        tensor("effects", shape, &self.effects);
        artifact
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file, an absent part.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, LeaveOutError> {
        artifact.expect(KIND.0, KIND.1)?;
        let units: Vec<Unit> = artifact.json("units")?;
        let seeds: Vec<u64> = artifact.json("seeds")?;
        let test_count = artifact.json("test_count")?;
        let shape = [seeds.len(), units.len(), test_count];
        Ok(Self {
            exposures: artifact.f64s("exposures", &[units.len()])?.to_vec(),
            effects: artifact.f64s("effects", &shape)?.to_vec(),
            units,
            seeds,
            test_count,
        })
    }
}

/// The mean over the first axis of `[count × rows × …]`, as rows.
pub(super) fn mean_over(values: &[f64], count: usize, rows: usize) -> Vec<Vec<f64>> {
    let size = values.len() / count;
    let mut mean = vec![0.0; size];
    for part in values.chunks(size) {
        for (mean, value) in mean.iter_mut().zip(part) {
            *mean += value / count as f64;
        }
    }
    mean.chunks(size / rows).map(<[f64]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> Truth {
        let unit = |name: &str, examples: Vec<u32>| Unit {
            name: name.into(),
            members: examples,
        };
        Truth {
            units: vec![unit("x", vec![0, 2]), unit("y", vec![1])],
            exposures: vec![4.0, 0.5],
            seeds: vec![0, 1],
            test_count: 2,
            effects: vec![1.0, -2.0, 0.25, 0.0, 3.0, -4.0, 0.75, 1.0],
        }
    }

    fn axes(train: usize) -> Axes {
        let keys = |count| (0..count).map(|k: usize| format!("k{k}")).collect();
        Axes {
            train_keys: keys(train),
            test_keys: keys(2),
        }
    }

    #[test]
    fn members_share_the_mean_effect_per_exposure_and_add_up_to_it() {
        let scores = truth().scores(&axes(3), 0.1).unwrap();
        assert_eq!(scores.values, [0.5, -0.75, 1.0, 1.0, 0.5, -0.75]);
        assert!(scores.has_natural_unit);
        // Examples 0 and 2 make up the unit's exposure of 4 steps.
        let predicted = truth().predicted(&scores, &[1.5, 0.5, 2.5]);
        assert_eq!(predicted, truth().mean());
        assert_eq!(predicted, [vec![2.0, -3.0], vec![0.5, 0.5]]);
    }

    #[test]
    fn scores_need_units_that_cover_every_example_once() {
        let error = truth().scores(&axes(5), 0.1).unwrap_err().to_string();
        assert!(
            error.starts_with("2 of 5") && error.contains("\"k3\""),
            "{error}"
        );
        let mut twice = truth();
        twice.units[1].members.push(2);
        let error = twice.scores(&axes(3), 0.1).unwrap_err().to_string();
        assert!(
            error.contains("\"k2\"") && error.contains("\"x\""),
            "{error}"
        );
    }

    #[test]
    fn the_file_form_comes_back() {
        let bytes = truth().to_artifact().to_bytes().unwrap();
        let artifact = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(Truth::from_artifact(&artifact).unwrap(), truth());
    }
}
