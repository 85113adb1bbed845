//! Fitting on recorded runs and simulating.

use super::bands::{Bands, Support};
use super::choice::{Candidate, Filled, Folded, choose_loops, shapes};
use super::correction::{Basis, Correction, CorrectionChoice, LeftOutPoint, Missed};
use super::ensemble::{Ensemble, ExampleChoice, choose_examples, roll_linearised, stacked};
use super::inputs::Inputs;
use super::mean_change::MeanChange;
use super::model::Prepared;
use super::params::{Ingredient, OptimizerDynamicsParams, OptimizerDynamicsValidParams};
use super::path::Path;
use crate::linearised::{LinearisedError, LinearisedSimulator};
use crate::memory::{Memory, SecondMoment};
use crate::simfluence::LeftOut;
use crate::simfluence::runs::{groups as run_groups, select};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simfluence_core::{
    ArtifactError, Banded, Curriculum, Fit, Progress, Run, SimulateError, Simulator, Trajectory,
    check_simulation_input,
};
use simfluence_fitter::{FitError, assign_folds};
use std::sync::Arc;
use std::time::Instant;

/// Name of the method, as it stands in tables.
pub(super) const NAME: &str = "optimizer-dynamics";

/// What a fit did and found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerDynamicsReport {
    /// Ids of the runs it was fitted on.
    pub training_runs: Vec<String>,
    /// Runs that were given and not used, with the reason.
    pub left_out: Vec<LeftOut>,
    /// The constants of the recorded optimiser.
    pub memory: Memory,
    /// Mean learning rate of the runs; `None` where rates were not recorded.
    pub reference_rate: Option<f64>,
    /// Whether the residuals of the datasets were learned from recorded batch losses.
    pub batch_losses: bool,
    /// Whether evaluations were left out that had to be filled in.
    pub sparse: bool,
    /// The candidates, and
    pub candidates: Vec<Candidate>,
    /// those that were chosen: one for each closed loop.
    pub chosen: Vec<Candidate>,
    /// The weight of each of them in the mean.
    pub loop_weights: Vec<f64>,
    /// The linearised model and its weight in the mean; `None` where there is none.
    pub linearised: Option<LinearisedMember>,
    /// How the effects of single examples were chosen; `None` where they do not clearly lower the
    /// error of left-out runs.
    #[serde(default)]
    pub examples: Option<ExampleChoice>,
    /// How the correction was chosen; `None` without one.
    pub correction: Option<CorrectionChoice>,
    /// The same for the mean run.
    pub mean_correction: Option<CorrectionChoice>,
    /// Weight of the closed loop; the mean run has the rest.
    pub closed_loop_weight: f64,
    /// Mean squared error of left-out runs of both together, nats².
    pub mse: f64,
    /// How alike the recorded runs are to each other.
    pub support: Support,
    /// Wall time of the fit (seconds); not stored in files.
    #[serde(skip)]
    pub seconds: f64,
}

/// What the linearised model is worth in the mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinearisedMember {
    /// Its weight; the closed loops have the rest.
    pub weight: f64,
    /// What its kernel is multiplied with.
    pub gain: f64,
    /// Its power of the learning rate.
    pub rate_exponent: f64,
    /// Mean squared error of the runs that it simulates alone, nats².
    pub mse: f64,
}

/// A fitted simulator; see the [module](super) for its equation.
///
/// ```
/// use simfluence_core::{Curriculum, Fit, NoProgress, Run, RunInfo, RunStatus, Simulator, Step, Trajectory};
/// use simfluence_simulators::optimizer_dynamics::OptimizerDynamicsParams;
/// // Dataset 0 lowers the loss by a tenth a step, dataset 1 does nothing.
/// let run = |id: &str, order: &[u32]| {
///     let mut losses = vec![4.0_f32];
///     for &example in order {
///         let last = losses[losses.len() - 1];
///         losses.push(if example == 0 { 0.9 * last } else { last });
///     }
///     let steps = order.iter().map(|&i| Step::new(vec![i], Some(1e-3))).collect();
///     Run {
///         id: id.into(),
///         info: RunInfo::new(RunStatus::Complete),
///         batch_losses: vec![None; order.len()],
///         curriculum: Curriculum::new(steps, 2).unwrap(),
///         trajectory: Trajectory::new((0..losses.len() as u32).collect(), 1, losses).unwrap(),
///     }
/// };
/// let runs = [
///     run("a", &[0, 0, 0, 0, 0, 0]), run("b", &[1, 1, 1, 0, 0, 0]), run("c", &[1, 1, 1, 1, 1, 1]),
///     run("d", &[0, 0, 0, 1, 1, 1]), run("e", &[0, 1, 0, 1, 0, 1]), run("f", &[1, 0, 1, 0, 1, 0]),
/// ];
/// let runs: Vec<&Run> = runs.iter().collect();
/// let simulator = OptimizerDynamicsParams::new(vec![0, 1]).check()?.fit(&runs, 2, &NoProgress)?;
/// let what_if = |example| {
///     let steps = vec![Step::new(vec![example], Some(1e-3)); 6];
///     let losses = simulator.simulate(&Curriculum::new(steps, 2).unwrap(), &[4.0]).unwrap();
///     losses.last().unwrap()[0]
/// };
/// assert!(what_if(0) < what_if(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct OptimizerDynamicsSimulator {
    pub(super) params: OptimizerDynamicsParams,
    /// The dataset of each training example.
    pub(super) groups: Arc<[u32]>,
    pub(super) basis: Basis,
    pub(super) ensemble: Ensemble,
    pub(super) correction: Correction,
    pub(super) mean: MeanChange,
    pub(super) mean_correction: Correction,
    pub(super) bands: Bands,
    pub(super) report: OptimizerDynamicsReport,
}

impl OptimizerDynamicsSimulator {
    /// What the fit did and found.
    pub fn report(&self) -> &OptimizerDynamicsReport {
        &self.report
    }

    /// The settings it was fitted with.
    pub fn params(&self) -> &OptimizerDynamicsParams {
        &self.params
    }

    pub(super) fn inputs(&self, curriculum: &Curriculum) -> Result<Inputs, SimulateError> {
        let (groups, count) = (&self.groups, self.basis.groups);
        Inputs::new(curriculum, groups, count, self.report.reference_rate, NAME)
    }

    /// `[(steps + 1) × tests]`.
    fn losses(&self, inputs: &Inputs, initial: &[f32]) -> Vec<f64> {
        let initial: Vec<f64> = initial.iter().map(|&l| f64::from(l)).collect();
        let weight = self.report.closed_loop_weight;
        let reference_rate = self.report.reference_rate;
        let mut losses = self.ensemble.roll(inputs, reference_rate, &initial);
        self.correction.apply(inputs, &self.basis, &mut losses);
        if weight < 1.0 {
            let mut mean = self.mean.simulate(inputs.len(), &initial);
            self.mean_correction.apply(inputs, &self.basis, &mut mean);
            for (loss, mean) in losses.iter_mut().zip(&mean) {
                *loss = weight * *loss + (1.0 - weight) * mean;
            }
        }
        losses
    }

    fn trajectory(&self, losses: &[f64]) -> Result<Trajectory, SimulateError> {
        let tests = self.mean.tests;
        let steps = (0..(losses.len() / tests) as u32).collect();
        let losses = losses.iter().map(|&l| l as f32).collect();
        Trajectory::new(steps, tests, losses).map_err(|e| SimulateError::Other(e.to_string()))
    }
}

impl Simulator for OptimizerDynamicsSimulator {
    fn name(&self) -> &str {
        NAME
    }

    fn train_count(&self) -> usize {
        self.params.groups.len()
    }

    fn test_count(&self) -> usize {
        self.mean.tests
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count(), self.test_count())?;
        let inputs = self.inputs(curriculum)?;
        self.trajectory(&self.losses(&inputs, initial))
    }

    fn simulate_banded(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
        level: f64,
    ) -> Result<Option<Banded>, SimulateError> {
        if !(level > 0.0 && level < 1.0) {
            return Err(SimulateError::Other(format!(
                "the level of the bands is {level}; it must be above 0 and below 1, such as 0.9"
            )));
        }
        check_simulation_input(curriculum, initial, self.train_count(), self.test_count())?;
        let inputs = self.inputs(curriculum)?;
        let losses = self.losses(&inputs, initial);
        let (widths, distance) =
            (self.bands).half_widths(&self.correction, &inputs, &self.basis, &losses, level);
        let shifted = |sign: f64| -> Vec<f64> {
            let ends = losses.iter().zip(&widths);
            ends.map(|(loss, width)| (loss + sign * width).max(0.0))
                .collect()
        };
        Ok(Some(Banded {
            simulated: self.trajectory(&losses)?,
            low: self.trajectory(&shifted(-1.0))?,
            high: self.trajectory(&shifted(1.0))?,
            level,
            distance,
        }))
    }
}

impl Fit for OptimizerDynamicsValidParams {
    type Simulator = OptimizerDynamicsSimulator;
    type Error = OptimizerDynamicsError;

    /// Fits on the runs that can be used; [`OptimizerDynamicsSimulator::report`] names the others.
    ///
    /// # Errors
    /// No usable run, runs of different optimisers or over different test examples, groups for
    /// another number of training examples, too few runs for leave-run-out validation, a linearised
    /// model of other runs or another base model.
    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        progress: &dyn Progress,
    ) -> Result<OptimizerDynamicsSimulator, OptimizerDynamicsError> {
        let start = Instant::now();
        let params = &self.params;
        if params.groups.len() != train_count {
            return Err(OptimizerDynamicsError::GroupCount {
                expected: train_count,
                got: params.groups.len(),
            });
        }
        let (kept, left_out) = select(runs, false);
        let first = *kept
            .first()
            .ok_or_else(|| OptimizerDynamicsError::NoUsableRun {
                given: runs.len(),
                left_out: left_out.clone(),
            })?;
        check_runs(&kept, first)?;
        let group_count = params.groups.iter().max().map_or(0, |&g| g as usize + 1);
        let mut memory = Memory::of(first.info.optimizer.as_ref());
        if !params.has(Ingredient::Memory) {
            memory.first = 0.0;
        }
        if !params.has(Ingredient::Normalisation) {
            memory.second = SecondMoment::None;
        }
        let reference_rate = reference_rate(&kept).filter(|_| params.has(Ingredient::LearningRate));
        let groups: Arc<[u32]> = params.groups.as_slice().into();
        let mut prepared: Vec<Prepared> = kept
            .iter()
            .map(|run| {
                let inputs =
                    Inputs::new(&run.curriculum, &groups, group_count, reference_rate, NAME);
                Ok(Prepared::new(run, inputs?, &groups, group_count))
            })
            .collect::<Result<_, SimulateError>>()?;
        if let Some(linearised) = &self.linearised {
            check_linearised(linearised, &kept, train_count)?;
            prepared.par_iter_mut().for_each(|run| {
                let initial = run.path.row(0);
                let losses = roll_linearised(linearised, &run.inputs, reference_rate, initial);
                run.linearised = Some(losses);
            });
        }
        let folds = assign_folds(&run_groups(&kept), params.folds, params.seed)?;
        let rate_exponents = match reference_rate {
            Some(_) if rates_vary(&kept) => &params.rate_exponents[..],
            Some(_) => &params.rate_exponents[..1],
            None => &[1.0],
        };
        let tests = first.trajectory.test_count();
        let state = params.states()[0];
        let shapes = shapes(memory, group_count, rate_exponents, params, tests, state);
        let filled = Filled::new(&prepared, &folds, &shapes, &params.penalties, progress);
        let folded = Folded {
            prepared: &prepared,
            folds: &folds,
            filled: &filled,
        };
        let loops = choose_loops(folded, &shapes, params, progress);
        let (mut ensemble, mut left_out_ensembles) =
            stacked(folded, &loops, self.linearised.as_ref());
        let paths = &filled.all;
        let strengths = if params.has(Ingredient::Examples) {
            &params.example_strengths[..]
        } else {
            &[]
        };
        let examples = choose_examples(
            folded,
            paths,
            &mut ensemble,
            &mut left_out_ensembles,
            strengths,
        );
        let basis = Basis {
            horizons: horizons(&kept),
            groups: group_count,
            rate_exponent: loops[0].chosen.rate_exponent,
        };
        let corrected = params.has(Ingredient::Correction);
        let fit_correction =
            |missed: &[Missed<'_>]| Correction::fit(missed, &basis, tests, corrected);
        let closed = missed(folded, paths, |fold| {
            let ensemble = &left_out_ensembles[fold];
            move |run: &Prepared| ensemble.roll_run(run)
        });
        let (correction, correction_choice, mut points) = fit_correction(&closed);
        let (mean_correction, mean_choice, mean_points) =
            fit_correction(&mean_missed(folded, paths));
        if points.is_empty() {
            return Err(OptimizerDynamicsError::NotMeasured);
        }
        let weight = if corrected && params.has(Ingredient::Stacking) {
            stack(&mut points, &mean_points)
        } else {
            1.0
        };
        let bands = Bands::fit(&points, prepared.len());
        let all: Vec<&Path> = paths.iter().collect();
        let mean = MeanChange::new(&all);
        let report = OptimizerDynamicsReport {
            training_runs: kept.iter().map(|run| run.id.clone()).collect(),
            left_out,
            memory,
            reference_rate,
            batch_losses: !ensemble.loops[0].readout.weights.is_empty(),
            sparse: !prepared.iter().all(|run| run.path.is_complete()),
            candidates: loops.iter().flat_map(|l| l.tried.clone()).collect(),
            chosen: loops.iter().map(|l| l.chosen).collect(),
            loop_weights: ensemble.weights[..loops.len()].to_vec(),
            linearised: self.linearised.as_ref().map(|simulator| LinearisedMember {
                weight: ensemble.weights[loops.len()],
                gain: simulator.report().gain,
                rate_exponent: simulator.report().rate_exponent,
                mse: simulator.report().mse,
            }),
            examples,
            correction: correction_choice,
            mean_correction: mean_choice,
            closed_loop_weight: weight,
            mse: mean_square(&points),
            support: bands.support,
            seconds: start.elapsed().as_secs_f64(),
        };
        Ok(OptimizerDynamicsSimulator {
            params: params.clone(),
            groups,
            basis,
            ensemble,
            correction,
            mean,
            mean_correction,
            bands,
            report,
        })
    }
}

fn check_runs(runs: &[&Run], first: &Run) -> Result<(), OptimizerDynamicsError> {
    let expected = first.trajectory.test_count();
    for run in runs {
        let got = run.trajectory.test_count();
        if got != expected {
            return Err(OptimizerDynamicsError::TestCount {
                run: run.id.clone(),
                got,
                first: first.id.clone(),
                expected,
            });
        }
        if run.trajectory.initial().is_none() {
            return Err(OptimizerDynamicsError::NoInitialLosses {
                run: run.id.clone(),
            });
        }
        if run.info.optimizer != first.info.optimizer {
            return Err(OptimizerDynamicsError::Optimizer {
                run: run.id.clone(),
                first: first.id.clone(),
            });
        }
    }
    Ok(())
}

/// Fails unless the linearised model is of these runs.
fn check_linearised(
    linearised: &LinearisedSimulator,
    runs: &[&Run],
    train_count: usize,
) -> Result<(), OptimizerDynamicsError> {
    let got = (linearised.train_count(), linearised.test_count());
    let expected = (train_count, runs[0].trajectory.test_count());
    if got != expected {
        return Err(LinearisedError::Examples { got, expected }.into());
    }
    let ids = runs.iter().map(|run| &run.id);
    if !ids.eq(&linearised.report().training_runs) {
        return Err(OptimizerDynamicsError::LinearisedRuns);
    }
    for run in runs {
        linearised.check_start(run.trajectory.initial().unwrap_or_default())?;
    }
    Ok(())
}

/// Mean learning rate over the steps of all runs, where every step has one and it is not 0.
fn reference_rate(runs: &[&Run]) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for run in runs {
        for step in run.curriculum.steps() {
            sum += f64::from(step.learning_rate?);
            count += 1.0;
        }
    }
    (sum > 0.0).then(|| sum / count)
}

/// Whether any two steps differ in their rate.
fn rates_vary(runs: &[&Run]) -> bool {
    let mut rates = (runs.iter())
        .flat_map(|run| run.curriculum.steps())
        .map(|step| step.learning_rate);
    let first = rates.next();
    rates.any(|rate| Some(rate) != first)
}

/// How far back the correction looks: the whole run, a fifth and a twentieth of a typical one.
fn horizons(runs: &[&Run]) -> Vec<f64> {
    let mut lengths: Vec<usize> = runs.iter().map(|run| run.curriculum.len()).collect();
    lengths.sort_unstable();
    let typical = lengths[lengths.len() / 2] as f64;
    vec![
        f64::INFINITY,
        (typical / 5.0).max(2.0),
        (typical / 20.0).max(2.0),
    ]
}

/// What the mean run misses of left-out runs.
fn mean_missed<'a>(folded: Folded<'a>, paths: &'a [Path]) -> Vec<Missed<'a>> {
    missed(folded, paths, |fold| {
        let others = folded.others(fold).into_iter().map(|r| &paths[r]);
        let mean = MeanChange::new(&others.collect::<Vec<_>>());
        move |run: &Prepared| mean.simulate(run.inputs.len(), run.path.row(0))
    })
}

/// What simulations of left-out runs miss, in the order of the runs; `fit` gives the simulation
/// that leaves a fold out.
fn missed<'a, S: Fn(&Prepared) -> Vec<f64>>(
    folded: Folded<'a>,
    paths: &'a [Path],
    fit: impl Fn(usize) -> S + Sync,
) -> Vec<Missed<'a>> {
    let mut missed: Vec<(usize, Missed<'a>)> = (0..folded.count())
        .into_par_iter()
        .flat_map_iter(|fold| {
            let simulate = fit(fold);
            folded.of(fold).into_iter().map(move |r| {
                let (run, path) = (&folded.prepared[r], &paths[r]);
                let tests = path.row(0).len();
                let mut errors = simulate(run);
                for (step, row) in errors.chunks_exact_mut(tests).enumerate() {
                    for (error, real) in row.iter_mut().zip(path.row(step)) {
                        *error = real - *error;
                    }
                }
                let last = (0..tests).map(|test| path.last(test)).min().unwrap_or(0);
                let missed = Missed {
                    inputs: &run.inputs,
                    fold,
                    errors,
                    real: path,
                    last: last as usize,
                };
                (r, missed)
            })
        })
        .collect();
    missed.sort_by_key(|(r, _)| *r);
    missed.into_iter().map(|(_, missed)| missed).collect()
}

/// The weight of the closed loop, from 0 to 1, with which both together miss left-out runs least
/// (stacking); their errors take the place of the closed loop's.
fn stack(closed: &mut [LeftOutPoint], mean: &[LeftOutPoint]) -> f64 {
    let (mut along, mut square) = (0.0, 0.0);
    for (closed, mean) in closed.iter().zip(mean) {
        for (c, m) in closed.errors.iter().zip(&mean.errors) {
            along += (m - c) * m;
            square += (m - c) * (m - c);
        }
    }
    let weight = if square > 0.0 {
        (along / square).clamp(0.0, 1.0)
    } else {
        1.0
    };
    for (closed, mean) in closed.iter_mut().zip(mean) {
        for (c, m) in closed.errors.iter_mut().zip(&mean.errors) {
            *c = weight * *c + (1.0 - weight) * m;
        }
    }
    weight
}

fn mean_square(points: &[LeftOutPoint]) -> f64 {
    let errors = || points.iter().flat_map(|point| &point.errors);
    errors().map(|e| e * e).sum::<f64>() / errors().count().max(1) as f64
}

/// Why an optimiser-dynamics simulator cannot be fitted, written or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptimizerDynamicsError {
    /// A setting out of range.
    #[error("{name} is {got}; it must be {must}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given.
        got: String,
        /// What it must be.
        must: &'static str,
    },
    /// No run to fit on.
    #[error("none of the {given} runs given can be fitted on{}", left_out.iter().map(|l| format!("; {l}")).collect::<String>())]
    NoUsableRun {
        /// Number of runs given.
        given: usize,
        /// Why each was left out.
        left_out: Vec<LeftOut>,
    },
    /// Datasets for another number of training examples.
    #[error("datasets are given for {got} training examples; the runs have {expected}")]
    GroupCount {
        /// Training examples of the runs.
        expected: usize,
        /// Datasets given.
        got: usize,
    },
    /// Runs over different test examples.
    #[error(
        "run {run} has {got} test examples, run {first} has {expected}; all runs of a fit must be over the same ones"
    )]
    TestCount {
        /// Id of the run.
        run: String,
        /// Its test examples.
        got: usize,
        /// Id of the first run.
        first: String,
        /// The test examples of that one.
        expected: usize,
    },
    /// A run without losses before its first step.
    #[error(
        "run {run} has no losses of all test examples before the first step; measure them at step 0, or leave the run out"
    )]
    NoInitialLosses {
        /// Id of the run.
        run: String,
    },
    /// Nothing to judge left-out runs by.
    #[error(
        "no run has losses of all test examples after its first step; measure each of them at least once during training"
    )]
    NotMeasured,
    /// Nothing to learn datasets from.
    #[error(
        "no run has losses of its batches, from which datasets are learned: record batch_loss, or give every training example its dataset"
    )]
    NoBatchLosses,
    /// Runs of different optimisers.
    #[error(
        "run {run} was trained with another optimiser than run {first}; the simulator follows one optimiser: fit on the runs of one"
    )]
    Optimizer {
        /// Id of the run.
        run: String,
        /// Id of the first run.
        first: String,
    },
    /// A linearised model of other runs.
    #[error(
        "the linearised model was fitted on other runs; fit it on the same, so that no left-out run decides on its weight"
    )]
    LinearisedRuns,
    /// A linearised model that is not of these examples, or of another base model.
    #[error(transparent)]
    Linearised(#[from] LinearisedError),
    /// A curriculum that cannot be taken in.
    #[error(transparent)]
    Curriculum(#[from] SimulateError),
    /// Too few runs for validation.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A number of keys other than the simulator's examples, or tables of other shapes.
    #[error("{0}")]
    Malformed(String),
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}
