//! The closed loop: pushes from the state, increments from the pushes, the next state.

use super::examples::{ExampleEffects, Filter, Recorded};
use super::increments::{Featured, Increments};
use super::inputs::Inputs;
use super::path::Path;
use super::pushes::Pushes;
use super::readout::{ObservedBatch, Readout};
use super::space::{ResidualSpace, residual};
use crate::memory::Memory;
use nalgebra::DMatrix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simfluence_core::Run;

/// How far above the highest recorded loss of a test example a simulation may go.
const HEADROOM: f64 = 1.2;

/// Per dataset the mean residual of the members of a batch with their number; `None` for datasets
/// without a member.
pub(super) type DatasetResiduals = Vec<Option<(f64, f64)>>;

/// A recorded run, prepared.
#[derive(Clone)]
pub(super) struct Prepared {
    pub(super) inputs: Inputs,
    pub(super) path: Path,
    /// Per step; absent where batch losses were not recorded.
    pub(super) batches: Vec<Option<DatasetResiduals>>,
    /// What the linearised model simulates, `[(steps + 1) × tests]`, where there is one.
    pub(super) linearised: Option<Vec<f64>>,
}

impl Prepared {
    pub(super) fn new(run: &Run, inputs: Inputs, groups: &[u32], group_count: usize) -> Self {
        let steps = run.curriculum.steps();
        let batches = steps
            .iter()
            .zip(&run.batch_losses)
            .map(|(step, losses)| {
                let losses = losses.as_ref()?;
                let mut sums = vec![(0.0, 0.0); group_count];
                for (&example, &loss) in step.batch.iter().zip(losses) {
                    if loss.is_finite() {
                        let (sum, count) = &mut sums[groups[example as usize] as usize];
                        *sum += residual(f64::from(loss));
                        *count += 1.0;
                    }
                }
                let mean = |(sum, count): (f64, f64)| (count > 0.0).then(|| (sum / count, count));
                Some(sums.into_iter().map(mean).collect())
            })
            .collect();
        Self {
            path: Path::new(&run.trajectory, steps.len()),
            inputs,
            batches,
            linearised: None,
        }
    }
}

/// What the effects of pushes depend on beside the pushes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The first components of `σ (1 − e^(−L/σ))` over the test examples, for this reach `σ` (nats),
    /// and the own loss.
    Residuals(f64),
    /// Nothing: a push does the same at every loss.
    None,
}

/// What is fixed before the fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) memory: Memory,
    pub(super) exponent: f64,
    /// The exponent `q` of the learning rate.
    pub(super) rate_exponent: f64,
    pub(super) rank: usize,
    pub(super) groups: usize,
    /// Whether pushes fall with the residuals of the datasets.
    pub(super) saturation: bool,
    /// What effects depend on.
    pub(super) state: State,
}

/// A fitted closed loop.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model {
    pub(super) memory: Memory,
    pub(super) exponent: f64,
    pub(super) rate_exponent: f64,
    pub(super) space: ResidualSpace,
    pub(super) readout: Readout,
    pub(super) increments: Increments,
    /// What single examples do beside their datasets; `None`: nothing.
    pub(super) examples: Option<ExampleEffects>,
    /// `[tests]`: the highest loss that a simulation may reach.
    pub(super) ceiling: Vec<f64>,
}

impl Model {
    /// Fits with every penalty, in their order; `paths` are those of the runs with gaps filled.
    pub(super) fn fit(
        runs: &[&Prepared],
        paths: &[Path],
        shape: Shape,
        penalties: &[f64],
    ) -> Vec<Self> {
        let all: Vec<&Path> = paths.iter().collect();
        let reach = match shape.state {
            State::Residuals(reach) => reach,
            State::None => 1.0,
        };
        let space = ResidualSpace::new(&all, shape.rank, reach);
        let mut observed = Vec::new();
        for (run, path) in runs.iter().zip(paths) {
            for (step, batch) in run.batches.iter().enumerate() {
                if let (Some(residuals), true) = (batch, shape.saturation) {
                    let mut z = vec![0.0; space.rank];
                    space.project(path.row(step), &mut z);
                    observed.push(ObservedBatch {
                        z,
                        residuals: residuals.clone(),
                    });
                }
            }
        }
        let readout = Readout::fit(&observed, shape.groups);
        let own = match shape.state {
            State::Residuals(_) => Pushes::count(shape.memory, shape.groups),
            State::None => 0,
        };
        let featured: Vec<Featured<'_>> = runs
            .par_iter()
            .zip(paths)
            .map(|(run, path)| Featured {
                path,
                states: path,
                pull: 0.0,
                phi: features(shape, &space, &readout, run, path),
            })
            .collect();
        let mut ceiling = vec![0.0_f64; space.mean.len()];
        for path in paths {
            for step in 0..=path.steps() {
                for (ceiling, &loss) in ceiling.iter_mut().zip(path.row(step)) {
                    *ceiling = ceiling.max(HEADROOM * loss);
                }
            }
        }
        Increments::fit(&featured, own, penalties)
            .into_iter()
            .map(|increments| Self {
                memory: shape.memory,
                exponent: shape.exponent,
                rate_exponent: shape.rate_exponent,
                space: space.clone(),
                readout: readout.clone(),
                increments,
                examples: None,
                ceiling: ceiling.clone(),
            })
            .collect()
    }

    /// Fits the increments again, on the recorded runs and on this model's own simulations of
    /// them, for every pull `γ`: from a simulated state the increment is to be the recorded one
    /// plus `γ` times the distance to the recorded state, so that errors fade instead of growing.
    pub(super) fn refit(
        &self,
        runs: &[&Prepared],
        paths: &[Path],
        penalty: f64,
        pulls: &[f64],
    ) -> Vec<Self> {
        if pulls.is_empty() {
            return Vec::new();
        }
        let shape = self.shape();
        let features = |run, path| features(shape, &self.space, &self.readout, run, path);
        let simulated: Vec<Path> = runs
            .par_iter()
            .zip(paths)
            .map(|(run, path)| path.with_losses(self.roll(&run.inputs, path.row(0))))
            .collect();
        let mut featured: Vec<Featured<'_>> = runs
            .par_iter()
            .zip(paths)
            .zip(&simulated)
            .flat_map_iter(|((run, path), simulated)| {
                [path, simulated].map(|states| Featured {
                    path,
                    states,
                    pull: 0.0,
                    phi: features(run, states),
                })
            })
            .collect();
        pulls
            .iter()
            .map(|&pull| {
                for run in featured.iter_mut().skip(1).step_by(2) {
                    run.pull = pull;
                }
                // Twice as many rows: twice the penalty is as strong.
                let mut increments =
                    Increments::fit(&featured, self.increments.pushes, &[2.0 * penalty]);
                Self {
                    increments: increments.pop().expect("one per penalty"),
                    ..self.clone()
                }
            })
            .collect()
    }

    fn shape(&self) -> Shape {
        Shape {
            memory: self.memory,
            exponent: self.exponent,
            rate_exponent: self.rate_exponent,
            rank: self.space.rank,
            groups: self.readout.groups,
            saturation: !self.readout.weights.is_empty(),
            state: if self.increments.pushes > 0 {
                State::Residuals(self.space.reach)
            } else {
                State::None
            },
        }
    }

    /// What every step changes from where a path stands, `[steps × tests]`.
    pub(super) fn increments_along(&self, run: &Prepared, path: &Path) -> Vec<f64> {
        let shape = self.shape();
        let phi = features(shape, &self.space, &self.readout, run, path);
        let m = self.ceiling.len();
        let mut changes = Vec::with_capacity(phi.nrows() * m);
        let mut scratch = vec![0.0; 2 * m];
        for step in 0..phi.nrows() {
            let row: Vec<f64> = phi.row(step).iter().copied().collect();
            let mut losses = path.row(step).to_vec();
            self.increments.apply(&row, &mut losses, &mut scratch);
            changes.extend(losses.iter().zip(path.row(step)).map(|(a, b)| a - b));
        }
        changes
    }

    /// What a recorded run shows of single examples: what every step changes beside what this model
    /// says, along the axes `[rank × tests]`.
    pub(super) fn recorded<'a>(
        &self,
        run: &'a Prepared,
        path: &Path,
        axes: &[f64],
    ) -> Recorded<'a> {
        let m = self.ceiling.len();
        let said = self.increments_along(run, path);
        let mut pushes = Pushes::new(self.memory, self.exponent, &self.space, &self.readout);
        let mut phi = vec![0.0; pushes.width()];
        let inputs = &run.inputs;
        let (mut passages, mut missed) = (Vec::new(), Vec::new());
        for (step, said) in said.chunks_exact(m).enumerate() {
            let rate = inputs.rate(step, self.rate_exponent);
            let (before, after) = (path.row(step), path.row(step + 1));
            pushes.step(before, inputs.shares(step), rate, &mut phi);
            passages.extend(pushes.passages(rate));
            missed.extend(axes.chunks_exact(m).map(|axis| {
                let along = |j: usize| axis[j] * (after[j] - before[j] - said[j]);
                (0..m).map(along).sum::<f64>()
            }));
        }
        Recorded {
            inputs,
            passages,
            missed,
        }
    }

    pub(super) fn roll_run(&self, run: &Prepared) -> Vec<f64> {
        self.roll(&run.inputs, run.path.row(0))
    }

    /// Simulates: `[(steps + 1) × tests]`.
    pub(super) fn roll(&self, inputs: &Inputs, initial: &[f64]) -> Vec<f64> {
        let m = initial.len();
        let mut pushes = Pushes::new(self.memory, self.exponent, &self.space, &self.readout);
        let mut losses = initial.to_vec();
        let mut out = Vec::with_capacity((inputs.len() + 1) * m);
        out.extend_from_slice(&losses);
        let mut phi = vec![0.0; pushes.width()];
        let used = self.increments.features;
        let mut scratch = vec![0.0; 2 * m];
        let mut examples =
            (self.examples.as_ref()).map(|effects| Filter::new(inputs, effects, &pushes));
        for step in 0..inputs.len() {
            let rate = inputs.rate(step, self.rate_exponent);
            pushes.step(&losses, inputs.shares(step), rate, &mut phi);
            (self.increments).apply(&phi[..used], &mut losses, &mut scratch);
            if let Some(examples) = &mut examples {
                examples.step(step, &pushes, rate, &mut losses);
            }
            for (loss, &ceiling) in losses.iter_mut().zip(&self.ceiling) {
                *loss = loss.clamp(0.0, ceiling);
            }
            out.extend_from_slice(&losses);
        }
        out
    }
}

/// The features of every step of a run, from where its path stands.
fn features(
    shape: Shape,
    space: &ResidualSpace,
    readout: &Readout,
    run: &Prepared,
    path: &Path,
) -> DMatrix<f64> {
    let mut pushes = Pushes::new(shape.memory, shape.exponent, space, readout);
    let mut row = vec![0.0; pushes.width()];
    let used = match shape.state {
        State::Residuals(_) => row.len(),
        State::None => Pushes::count(shape.memory, shape.groups),
    };
    let mut phi = DMatrix::<f64>::zeros(run.inputs.len(), used);
    for step in 0..run.inputs.len() {
        let inputs = &run.inputs;
        pushes.step(
            path.row(step),
            inputs.shares(step),
            inputs.rate(step, shape.rate_exponent),
            &mut row,
        );
        for (f, &x) in row[..used].iter().enumerate() {
            phi[(step, f)] = x;
        }
    }
    phi
}
