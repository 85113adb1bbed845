//! What an attribution method gives: one number per training and test example.

use crate::artifact::{Artifact, ArtifactError, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of the scores file.
const FORMAT_VERSION: u32 = 1;

/// What the sign of scores means.
pub(crate) const METHOD_SIGN: &str =
    "larger = training on the train example lowers the test example's loss more";

/// The unit of scores, as written into files.
pub(crate) fn unit_name(has_natural_unit: bool) -> &'static str {
    match has_natural_unit {
        true => {
            "nats per target token, per step whose batch is only the train example, at the reference learning rate"
        }
        false => "none",
    }
}

/// Attribution scores `s(i→j)`, shape `[train × test]`.
///
/// Orientation is the same for every method: **larger = training on `i` lowers the loss of `j`
/// more**. Where [`Scores::has_natural_unit`] is set, a score is `E(i,j)`: the predicted decrease
/// of `L_j` (nats per target token) by one step whose batch is only `i`, at
/// [`Scores::reference_learning_rate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Name of the method.
    pub method: String,
    /// Keys of the training examples, axis 0.
    pub train_keys: Vec<String>,
    /// Keys of the test examples, axis 1.
    pub test_keys: Vec<String>,
    /// `η_ref`, at which the scores hold.
    pub reference_learning_rate: f64,
    /// Whether the scores are in nats, so that a gain of 1 means something.
    pub has_natural_unit: bool,
    /// Scores, row-major `[train × test]`.
    pub values: Vec<f32>,
    /// Parts of the scores by layer of the model, each `[train × test]`, where the method gives
    /// them; they sum to the scores.
    pub layers: Vec<(String, Vec<f32>)>,
    /// Settings and provenance of the computation.
    pub provenance: BTreeMap<String, Value>,
}

impl Scores {
    /// Checks the parts against each other.
    ///
    /// # Errors
    /// A number of values other than `train × test`; a score that is NaN or infinite, with its
    /// place; a reference learning rate that is not positive.
    pub fn check(&self) -> Result<(), ScoresError> {
        let (n, m) = (self.train_keys.len(), self.test_keys.len());
        let parts = self.layers.iter().map(|(_, values)| values);
        for values in parts.chain([&self.values]) {
            if values.len() != n * m {
                return Err(ScoresError::Shape {
                    train: n,
                    test: m,
                    got: values.len(),
                });
            }
        }
        if !(self.reference_learning_rate.is_finite() && self.reference_learning_rate > 0.0) {
            return Err(ScoresError::LearningRate {
                got: self.reference_learning_rate,
            });
        }
        match self.values.iter().position(|v| !v.is_finite()) {
            Some(position) => Err(ScoresError::NotFinite {
                method: self.method.clone(),
                train_key: self.train_keys[position / m].clone(),
                test_key: self.test_keys[position % m].clone(),
                got: self.values[position],
            }),
            None => Ok(()),
        }
    }

    /// The scores as an artifact that says its axes, sign and unit.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new("scores", FORMAT_VERSION);
        artifact
            .metadata
            .insert("method".into(), self.method.clone());
        artifact
            .metadata
            .insert("axes".into(), "train, test".into());
        artifact.metadata.insert("sign".into(), METHOD_SIGN.into());
        let unit = unit_name(self.has_natural_unit);
        artifact.metadata.insert("unit".into(), unit.into());
        artifact.set_json("train_keys", &self.train_keys);
        artifact.set_json("test_keys", &self.test_keys);
        artifact.set_json("reference_learning_rate", &self.reference_learning_rate);
        artifact.set_json("has_natural_unit", &self.has_natural_unit);
        artifact.set_json("provenance", &self.provenance);
        let mut insert = |name: String, values: &[f32]| {
            let tensor = Tensor::F32 {
                shape: vec![self.train_keys.len(), self.test_keys.len()],
                values: values.to_vec(),
            };
            artifact.tensors.insert(name, tensor);
        };
        insert("scores".into(), &self.values);
        for (layer, values) in &self.layers {
            insert(layer_tensor(layer), values);
        }
        let layers: Vec<&String> = self.layers.iter().map(|(layer, _)| layer).collect();
        artifact.set_json("layers", &layers);
        artifact
    }

    /// Reads the artifact back.
    ///
    /// # Errors
    /// Another kind of file, absent parts, or what [`Scores::check`] refuses.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, ScoresError> {
        artifact.expect("scores", FORMAT_VERSION)?;
        Self::read(artifact)
    }

    /// Reads the scores from any artifact that holds what [`Scores::to_artifact`] writes.
    ///
    /// # Errors
    /// Absent parts, or what [`Scores::check`] refuses.
    pub fn read(artifact: &Artifact) -> Result<Self, ScoresError> {
        let train_keys: Vec<String> = artifact.json("train_keys")?;
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        let shape = [train_keys.len(), test_keys.len()];
        // Files from before there were scores by layer have no such entry.
        let layers: Vec<String> = match artifact.metadata.contains_key("layers") {
            true => artifact.json("layers")?,
            false => Vec::new(),
        };
        let layer = |name: String| -> Result<(String, Vec<f32>), ScoresError> {
            let values = artifact.f32s(&layer_tensor(&name), &shape)?.to_vec();
            Ok((name, values))
        };
        let scores = Self {
            method: artifact.text("method")?.to_owned(),
            values: artifact.f32s("scores", &shape)?.to_vec(),
            layers: layers.into_iter().map(layer).collect::<Result<_, _>>()?,
            train_keys,
            test_keys,
            reference_learning_rate: artifact.json("reference_learning_rate")?,
            has_natural_unit: artifact.json("has_natural_unit")?,
            provenance: artifact.json("provenance")?,
        };
        scores.check()?;
        Ok(scores)
    }
}

fn layer_tensor(layer: &str) -> String {
    format!("layer:{layer}")
}

/// What is wrong with scores.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoresError {
    /// Another number of values.
    #[error("{got} scores for {train} training and {test} test examples, expected {}", train * test)]
    Shape {
        /// Training examples.
        train: usize,
        /// Test examples.
        test: usize,
        /// Number of values.
        got: usize,
    },
    /// A score that is NaN or infinite.
    #[error(
        "{method}: the score of training example {train_key:?} for test example {test_key:?} is {got}; a damping or learning rate may be beyond what 32-bit floats hold"
    )]
    NotFinite {
        /// Name of the method.
        method: String,
        /// Key of the training example.
        train_key: String,
        /// Key of the test example.
        test_key: String,
        /// The score.
        got: f32,
    },
    /// A reference learning rate that is not positive and finite.
    #[error("the reference learning rate is {got}; it must be positive and finite")]
    LearningRate {
        /// What was given.
        got: f64,
    },
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores() -> Scores {
        Scores {
            method: "graddot".into(),
            train_keys: vec!["a".into(), "b".into()],
            test_keys: vec!["x".into(), "y".into(), "z".into()],
            reference_learning_rate: 1e-3,
            has_natural_unit: true,
            values: vec![0.1, -0.2, 0.3, 1e-30, 5.0, 0.0],
            layers: vec![("layers.0.mlp.up".into(), vec![0.5; 6])],
            provenance: BTreeMap::from([("seed".into(), Value::from(3))]),
        }
    }

    #[test]
    fn scores_come_back_bit_identical() {
        let bytes = scores().to_artifact().to_bytes().unwrap();
        let back = Scores::from_artifact(&Artifact::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!(back, scores());
    }

    #[test]
    fn a_nan_is_reported_with_its_place() {
        let mut broken = scores();
        broken.values[4] = f32::NAN;
        let message = broken.check().unwrap_err().to_string();
        assert!(
            message.contains("\"b\"") && message.contains("\"y\""),
            "{message}"
        );
    }
}
