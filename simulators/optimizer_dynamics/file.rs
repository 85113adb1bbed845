//! The file form of a fitted simulator.

use super::algorithm::{NAME, OptimizerDynamicsError, OptimizerDynamicsSimulator};
use super::correction::Correction;
use super::increments::Increments;
use super::model::Model;
use super::params::OptimizerDynamicsParams;
use super::readout::Readout;
use super::space::ResidualSpace;
use serde::{Deserialize, Serialize};
use simfluence_core::{Artifact, Simulator, Tensor};

/// Version of the simulator files of this folder.
const FORMAT_VERSION: u32 = 1;

/// Sizes of the tables of a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Sizes {
    groups: usize,
    components: usize,
    pushes: usize,
    readout: usize,
    points: usize,
    coordinates: usize,
}

impl OptimizerDynamicsSimulator {
    /// The file form: the tables (f64) with the keys of the axes, settings and provenance.
    ///
    /// # Errors
    /// A number of keys other than the simulator's examples.
    pub fn to_artifact(
        &self,
        train_keys: &[String],
        test_keys: &[String],
    ) -> Result<Artifact, OptimizerDynamicsError> {
        for (axis, expected, got) in [
            ("training", self.train_count(), train_keys.len()),
            ("test", self.test_count(), test_keys.len()),
        ] {
            if expected != got {
                return Err(OptimizerDynamicsError::Malformed(format!(
                    "{got} {axis} keys for a simulator of {expected} {axis} examples"
                )));
            }
        }
        let mut artifact = Artifact::new("simulator", FORMAT_VERSION);
        for (entry, text) in [
            ("simulator", NAME),
            ("method", NAME),
            ("name", NAME),
            ("axes", "train, test"),
            ("unit", "nats per target token"),
            (
                "equation",
                "L_t = L_(t-1) + [F, F z] a_j + (F b_j) L_(t-1), then + delta_j(u_t)",
            ),
        ] {
            artifact.metadata.insert(entry.into(), text.into());
        }
        let model = &self.model;
        let sizes = Sizes {
            groups: self.group_count,
            components: model.space.rank,
            pushes: model.increments.pushes,
            readout: model.readout.weights.len(),
            points: self
                .correction
                .as_ref()
                .map_or(0, |c| c.points.len() / c.mean.len()),
            coordinates: self.correction.as_ref().map_or(0, |c| c.mean.len()),
        };
        artifact.set_json("settings", &self.params);
        artifact.set_json("provenance", &self.report);
        artifact.set_json("sizes", &sizes);
        // JSON has no infinity: the horizon of the whole run is null.
        let horizons: Vec<Option<f64>> = (self.horizons.iter())
            .map(|&h| h.is_finite().then_some(h))
            .collect();
        artifact.set_json("horizons", &horizons);
        artifact.set_json("train_keys", &train_keys);
        artifact.set_json("test_keys", &test_keys);
        for (name, shape, values) in tables(self, sizes) {
            let values = values.to_vec();
            let shape = shape.to_vec();
            artifact
                .tensors
                .insert(name.into(), Tensor::F64 { shape, values });
        }
        Ok(artifact)
    }

    /// Reads the file form back, bit for bit.
    ///
    /// # Errors
    /// Another kind of file, absent parts, tables of other shapes than the sizes say, a number
    /// that is NaN or infinite.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, OptimizerDynamicsError> {
        artifact.expect("simulator", FORMAT_VERSION)?;
        let got = artifact.text("simulator")?;
        if got != NAME {
            return Err(OptimizerDynamicsError::Malformed(format!(
                "expected a simulator file of {NAME}, got one of {got}"
            )));
        }
        let params: OptimizerDynamicsParams = artifact.json("settings")?;
        let report: super::OptimizerDynamicsReport = artifact.json("provenance")?;
        let sizes: Sizes = artifact.json("sizes")?;
        let train_keys: Vec<String> = artifact.json("train_keys")?;
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        let m = test_keys.len();
        if params.groups.len() != train_keys.len()
            || (params.groups.iter()).any(|&g| g as usize >= sizes.groups)
        {
            return Err(OptimizerDynamicsError::Malformed(
                "the datasets of the settings do not fit the training examples; the file is damaged"
                    .to_owned(),
            ));
        }
        let table = |name: &str, shape: &[usize]| -> Result<Vec<f64>, OptimizerDynamicsError> {
            let values = artifact.f64s(name, shape)?;
            match values.iter().position(|v| !v.is_finite()) {
                Some(place) => Err(OptimizerDynamicsError::Malformed(format!(
                    "entry {place} of {name} is {}; the file is damaged",
                    values[place]
                ))),
                None => Ok(values.to_vec()),
            }
        };
        let features = sizes.pushes * (1 + sizes.components);
        let model = Model {
            memory: report.memory,
            exponent: report.chosen.exponent,
            space: ResidualSpace {
                rank: sizes.components,
                mean: table("residual_mean", &[m])?,
                axes: table("residual_axes", &[sizes.components, m])?,
                low: table("state_low", &[sizes.components])?,
                high: table("state_high", &[sizes.components])?,
            },
            readout: Readout {
                groups: sizes.groups,
                weights: table("readout", &[sizes.readout])?,
            },
            increments: Increments {
                pushes: sizes.pushes,
                features,
                tests: m,
                a: table("a", &[features, m])?,
                b: table("b", &[sizes.pushes, m])?,
            },
            ceiling: table("ceiling", &[m])?,
        };
        let expected = report.memory.decays().len() * sizes.groups;
        let readout = [0, sizes.groups * (1 + sizes.components)];
        if sizes.pushes != expected || !readout.contains(&sizes.readout) {
            return Err(OptimizerDynamicsError::Malformed(
                "the sizes of the tables do not fit each other; the file is damaged".to_owned(),
            ));
        }
        let correction = (sizes.points > 0)
            .then(|| -> Result<Correction, OptimizerDynamicsError> {
                Ok(Correction {
                    tests: m,
                    mean: table("correction_mean", &[sizes.coordinates])?,
                    scale: table("correction_scale", &[sizes.coordinates])?,
                    points: table("correction_points", &[sizes.points, sizes.coordinates])?,
                    weights: table("correction_weights", &[sizes.points, m])?,
                })
            })
            .transpose()?;
        Ok(Self {
            group_count: sizes.groups,
            horizons: artifact
                .json::<Vec<Option<f64>>>("horizons")?
                .into_iter()
                .map(|h| h.unwrap_or(f64::INFINITY))
                .collect(),
            params,
            model,
            correction,
            report,
        })
    }
}

/// The tables of a file with their names and shapes.
fn tables(
    simulator: &OptimizerDynamicsSimulator,
    sizes: Sizes,
) -> Vec<(&'static str, Vec<usize>, &[f64])> {
    let Model {
        space,
        readout,
        increments,
        ceiling,
        ..
    } = &simulator.model;
    let m = ceiling.len();
    let mut tables: Vec<(&str, Vec<usize>, &[f64])> = vec![
        ("residual_mean", vec![m], &space.mean),
        ("residual_axes", vec![space.rank, m], &space.axes),
        ("state_low", vec![space.rank], &space.low),
        ("state_high", vec![space.rank], &space.high),
        ("readout", vec![sizes.readout], &readout.weights),
        ("a", vec![increments.features, m], &increments.a),
        ("b", vec![increments.pushes, m], &increments.b),
        ("ceiling", vec![m], ceiling),
    ];
    if let Some(correction) = &simulator.correction {
        let (points, width) = (sizes.points, sizes.coordinates);
        tables.extend([
            ("correction_mean", vec![width], &correction.mean[..]),
            ("correction_scale", vec![width], &correction.scale[..]),
            (
                "correction_points",
                vec![points, width],
                &correction.points[..],
            ),
            (
                "correction_weights",
                vec![points, m],
                &correction.weights[..],
            ),
        ]);
    }
    tables
}
