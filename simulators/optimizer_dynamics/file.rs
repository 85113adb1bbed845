//! The file form of a fitted simulator.

use super::algorithm::{NAME, OptimizerDynamicsError, OptimizerDynamicsSimulator};
use super::bands::Bands;
use super::correction::{Basis, Correction};
use super::ensemble::Ensemble;
use super::examples::ExampleEffects;
use super::increments::Increments;
use super::mean_change::MeanChange;
use super::model::{Model, State};
use super::params::OptimizerDynamicsParams;
use super::readout::Readout;
use super::space::ResidualSpace;
use crate::linearised::LinearisedSimulator;
use serde::{Deserialize, Serialize};
use simfluence_core::{Artifact, Simulator, Tensor};
use std::sync::Arc;

/// Version of the simulator files of this folder.
const FORMAT_VERSION: u32 = 5;
/// What the names of the linearised model's entries begin with.
const LINEARISED: &str = "linearised_";

/// Sizes of the tables of a closed loop.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct LoopSizes {
    components: usize,
    /// Pushes with own terms.
    pushes: usize,
    features: usize,
    readout: usize,
    /// Directions of the effects of single examples; 0: there are none.
    example_axes: usize,
}

/// Sizes of the other tables of a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Sizes {
    groups: usize,
    points: usize,
    coordinates: usize,
    corrected: bool,
    mean_corrected: bool,
    mean_steps: usize,
    knots: usize,
    quantiles: usize,
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
                "L_t = L_(t-1) + [F, F z] a_j + (F b_j) L_(t-1), mean over members, then + delta_j(u_t)",
            ),
        ] {
            artifact.metadata.insert(entry.into(), text.into());
        }
        let loop_sizes = |model: &Model| LoopSizes {
            components: model.space.rank,
            pushes: model.increments.pushes,
            features: model.increments.features,
            readout: model.readout.weights.len(),
            example_axes: model.examples.as_ref().map_or(0, |e| e.rank),
        };
        let loops: Vec<LoopSizes> = self.ensemble.loops.iter().map(loop_sizes).collect();
        let sizes = Sizes {
            groups: self.basis.groups,
            points: self.correction.points.len() / self.correction.mean.len(),
            coordinates: self.correction.mean.len(),
            corrected: !self.correction.weights.is_empty(),
            mean_corrected: !self.mean_correction.weights.is_empty(),
            mean_steps: self.mean.changes.len() / self.mean.tests,
            knots: self.bands.knots.len(),
            quantiles: self.bands.quantiles.len(),
        };
        artifact.set_json("settings", &self.params);
        artifact.set_json("provenance", &self.report);
        artifact.set_json("sizes", &sizes);
        artifact.set_json("loops", &loops);
        // JSON has no infinity: the horizon of the whole run is null.
        let horizons: Vec<Option<f64>> = (self.basis.horizons.iter())
            .map(|&h| h.is_finite().then_some(h))
            .collect();
        artifact.set_json("horizons", &horizons);
        artifact.set_json("train_keys", &train_keys);
        artifact.set_json("test_keys", &test_keys);
        for (name, shape, values) in tables(self, sizes) {
            let values = values.to_vec();
            let shape = shape.to_vec();
            artifact.tensors.insert(name, Tensor::F64 { shape, values });
        }
        if let Some(linearised) = &self.ensemble.linearised {
            linearised.store(&mut artifact, LINEARISED);
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
        let loops: Vec<LoopSizes> = artifact.json("loops")?;
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
        if loops.is_empty()
            || loops.len() != report.chosen.len()
            || loops.len() != report.loop_weights.len()
        {
            return Err(OptimizerDynamicsError::Malformed(format!(
                "tables of {} closed loops where {} were chosen; the file is damaged",
                loops.len(),
                report.chosen.len()
            )));
        }
        let pushes = report.memory.decays().len() * sizes.groups;
        let read_loop = |(place, of): (usize, &LoopSizes)| {
            let chosen = &report.chosen[place];
            let part = |name: &str, shape: &[usize]| table(&loop_table(place, name), shape);
            let (expected, reach) = match chosen.state {
                State::Residuals(reach) => ((pushes, pushes * (1 + of.components)), reach),
                State::None => ((0, pushes), 1.0),
            };
            let readout = [0, sizes.groups * (1 + of.components)];
            if (of.pushes, of.features) != expected || !readout.contains(&of.readout) {
                return Err(OptimizerDynamicsError::Malformed(
                    "the sizes of the tables do not fit each other; the file is damaged".to_owned(),
                ));
            }
            Ok(Model {
                memory: report.memory,
                exponent: chosen.exponent,
                rate_exponent: chosen.rate_exponent,
                space: ResidualSpace {
                    rank: of.components,
                    reach,
                    mean: part("residual_mean", &[m])?,
                    axes: part("residual_axes", &[of.components, m])?,
                    low: part("state_low", &[of.components])?,
                    high: part("state_high", &[of.components])?,
                },
                readout: Readout {
                    groups: sizes.groups,
                    weights: part("readout", &[of.readout])?,
                },
                increments: Increments {
                    pushes: of.pushes,
                    features: of.features,
                    tests: m,
                    a: part("a", &[of.features, m])?,
                    b: part("b", &[of.pushes, m])?,
                },
                examples: match of.example_axes {
                    0 => None,
                    rank => Some(ExampleEffects {
                        rank,
                        axes: part("example_axes", &[rank, m])?,
                        effects: part("example_effects", &[train_keys.len(), rank])?,
                    }),
                },
                ceiling: part("ceiling", &[m])?,
            })
        };
        let member = report.linearised.filter(|member| member.weight > 0.0);
        let linearised = member.map(|_| {
            LinearisedSimulator::read(artifact, LINEARISED, train_keys.len(), m).map(Arc::new)
        });
        let weights = report.loop_weights.iter().copied();
        let ensemble = Ensemble {
            loops: (loops.iter().enumerate())
                .map(read_loop)
                .collect::<Result<_, _>>()?,
            linearised: linearised.transpose()?,
            weights: weights
                .chain(report.linearised.map(|member| member.weight))
                .collect(),
        };
        let correction = |prefix: &str, corrected: bool| {
            let part = |name: &str, shape: &[usize]| table(&format!("{prefix}_{name}"), shape);
            let corrected_tests = if corrected { m } else { 0 };
            Ok::<_, OptimizerDynamicsError>(Correction {
                tests: m,
                mean: part("mean", &[sizes.coordinates])?,
                scale: part("scale", &[sizes.coordinates])?,
                points: part("points", &[sizes.points, sizes.coordinates])?,
                weights: part("weights", &[sizes.points, corrected_tests])?,
            })
        };
        let mean = MeanChange {
            tests: m,
            changes: table("mean_change", &[sizes.mean_steps, m])?,
        };
        let bands = Bands {
            knots: table("band_knots", &[sizes.knots])?,
            scales: table("band_scales", &[sizes.knots, m])?,
            distances: table("band_distances", &[sizes.knots])?,
            quantiles: table("band_quantiles", &[sizes.quantiles])?,
            support: report.support,
        };
        let basis = Basis {
            horizons: artifact
                .json::<Vec<Option<f64>>>("horizons")?
                .into_iter()
                .map(|h| h.unwrap_or(f64::INFINITY))
                .collect(),
            groups: sizes.groups,
            rate_exponent: report.chosen[0].rate_exponent,
        };
        if basis.width() != sizes.coordinates {
            return Err(OptimizerDynamicsError::Malformed(
                "the sizes of the tables do not fit each other; the file is damaged".to_owned(),
            ));
        }
        Ok(Self {
            groups: params.groups.as_slice().into(),
            basis,
            params,
            ensemble,
            correction: correction("correction", sizes.corrected)?,
            mean,
            mean_correction: correction("mean_correction", sizes.mean_corrected)?,
            bands,
            report,
        })
    }
}

/// Name of a table of the closed loop at this place.
fn loop_table(place: usize, name: &str) -> String {
    format!("loop_{place}_{name}")
}

/// The tables of a file with their names and shapes.
fn tables(
    simulator: &OptimizerDynamicsSimulator,
    sizes: Sizes,
) -> Vec<(String, Vec<usize>, &[f64])> {
    let m = simulator.test_count();
    let mut tables: Vec<(String, Vec<usize>, &[f64])> = Vec::new();
    for (place, model) in simulator.ensemble.loops.iter().enumerate() {
        let Model {
            space,
            readout,
            increments,
            examples,
            ceiling,
            ..
        } = model;
        let weights = &readout.weights;
        let of_loop: [(&str, Vec<usize>, &[f64]); 8] = [
            ("residual_mean", vec![m], &space.mean),
            ("residual_axes", vec![space.rank, m], &space.axes),
            ("state_low", vec![space.rank], &space.low),
            ("state_high", vec![space.rank], &space.high),
            ("readout", vec![weights.len()], weights),
            ("a", vec![increments.features, m], &increments.a),
            ("b", vec![increments.pushes, m], &increments.b),
            ("ceiling", vec![m], ceiling),
        ];
        tables
            .extend(of_loop.map(|(name, shape, values)| (loop_table(place, name), shape, values)));
        if let Some(examples) = examples {
            let (rank, count) = (examples.rank, simulator.train_count());
            let (axes, effects) = (&examples.axes[..], &examples.effects[..]);
            tables.push((loop_table(place, "example_axes"), vec![rank, m], axes));
            let name = loop_table(place, "example_effects");
            tables.push((name, vec![count, rank], effects));
        }
    }
    let (points, width) = (sizes.points, sizes.coordinates);
    let bands = &simulator.bands;
    for (prefix, correction) in [
        ("correction", &simulator.correction),
        ("mean_correction", &simulator.mean_correction),
    ] {
        let corrected_tests = correction.weights.len() / points;
        tables.extend([
            (format!("{prefix}_mean"), vec![width], &correction.mean[..]),
            (format!("{prefix}_scale"), vec![width], &correction.scale),
            (
                format!("{prefix}_points"),
                vec![points, width],
                &correction.points,
            ),
            (
                format!("{prefix}_weights"),
                vec![points, corrected_tests],
                &correction.weights,
            ),
        ]);
    }
    let changes = &simulator.mean.changes;
    for (name, shape, values) in [
        ("mean_change", vec![sizes.mean_steps, m], changes),
        ("band_knots", vec![sizes.knots], &bands.knots),
        ("band_scales", vec![sizes.knots, m], &bands.scales),
        ("band_distances", vec![sizes.knots], &bands.distances),
        ("band_quantiles", vec![sizes.quantiles], &bands.quantiles),
    ] {
        tables.push((name.to_owned(), shape, values));
    }
    tables
}
