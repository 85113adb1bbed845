//! Fitting on recorded runs, simulating, and the file form.

use super::params::{Lambda, SimfluenceParams, SimfluenceValidParams, name};
use super::runs::{LeftOut, groups, select, sequence};
use serde::{Deserialize, Serialize};
use simfluence_core::{
    Artifact, ArtifactError, Curriculum, Fit, Progress, Run, SimulateError, Simulator, Tensor,
    Trajectory, check_simulation_input,
};
use simfluence_fitter::{
    Exposures, FitError, Identifiability, Objective, Parameters, Penalty, PenaltyChoice, Problem,
    Variant, choose_penalty, fit,
};
use std::time::Instant;

/// Version of the simulator files of this folder.
const FORMAT_VERSION: u32 = 1;
/// What the entry `simulator` of such a file says.
const KIND: &str = "simfluence";

/// What a fit did and found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Ids of the runs it was fitted on.
    pub training_runs: Vec<String>,
    /// Runs that were given and not used, with the reason.
    pub left_out: Vec<LeftOut>,
    /// The penalties.
    pub penalty: Penalty,
    /// How they were chosen, where they were.
    pub choice: Option<PenaltyChoice>,
    /// Value of the objective, summed over test examples (nats²).
    pub objective: f64,
    /// Iterations of the solver, summed over test examples.
    pub iterations: u64,
    /// Largest number of iterations for one test example.
    pub most_iterations: u64,
    /// Training examples that the runs say nothing or little about.
    pub identifiability: Identifiability,
    /// Wall time (seconds); not stored in files, which would differ from fit to fit.
    #[serde(skip)]
    pub seconds: f64,
}

impl PartialEq for SimfluenceSimulator {
    /// Everything but the wall time of the fit.
    fn eq(&self, other: &Self) -> bool {
        let untimed = |report: &FitReport| FitReport {
            seconds: 0.0,
            ..report.clone()
        };
        self.parameters == other.parameters
            && self.params == other.params
            && untimed(&self.report) == untimed(&other.report)
    }
}

/// A fitted Simfluence simulator: `L_t(j) = α_t(j) L_{t-1}(j) + β_t(j)`.
///
/// Computes in f64 and gives losses in f32. The learning rates of a curriculum do not matter to
/// it. A simulation that overflows gives infinite losses.
///
/// ```
/// use simfluence_core::{Curriculum, Fit, NoProgress, Run, RunInfo, RunStatus, Simulator, Step, Trajectory};
/// use simfluence_simulators::simfluence::{Lambda, Penalty, SimfluenceParams};
/// // One recorded run: example 0 halves the loss, example 1 does nothing.
/// let steps = [0, 1, 0, 1].map(|i| Step::new(vec![i], None)).to_vec();
/// let run = Run {
///     id: "run-000".into(),
///     info: RunInfo::new(RunStatus::Complete),
///     curriculum: Curriculum::new(steps.clone(), 2)?,
///     trajectory: Trajectory::new(vec![0, 1, 2, 3, 4], 1, vec![4.0, 2.0, 2.0, 1.0, 1.0])?,
///     batch_losses: vec![None; 4],
/// };
/// let lambda = Lambda::Fixed(Penalty { a: 1e-9, b: 1e-9 });
/// let simulator = SimfluenceParams::new().lambda(lambda).check()?.fit(&[&run], 2, &NoProgress)?;
/// let what_if = Curriculum::new(vec![Step::new(vec![0, 1], None)], 2)?;
/// let loss = simulator.simulate(&what_if, &[4.0])?.at_step(1).unwrap()[0];
/// assert!((loss - 3.0).abs() < 1e-4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Reference
/// Guu et al. (2023), section 3.
#[derive(Debug, Clone)]
pub struct SimfluenceSimulator {
    parameters: Parameters,
    params: SimfluenceParams,
    report: FitReport,
}

impl SimfluenceSimulator {
    /// What the fit did and found.
    pub fn report(&self) -> &FitReport {
        &self.report
    }

    /// The settings it was fitted with.
    pub fn params(&self) -> &SimfluenceParams {
        &self.params
    }

    /// The fitted `A` and `B`.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The file form: `A` and `B` (f64, `[train × test]`), the keys of the axes, settings and
    /// provenance.
    ///
    /// # Errors
    /// A number of keys other than the simulator's examples.
    pub fn to_artifact(
        &self,
        train_keys: &[String],
        test_keys: &[String],
    ) -> Result<Artifact, SimfluenceError> {
        for (axis, expected, got) in [
            ("training", self.train_count(), train_keys.len()),
            ("test", self.test_count(), test_keys.len()),
        ] {
            if expected != got {
                return Err(SimfluenceError::KeyCount {
                    axis,
                    expected,
                    got,
                });
            }
        }
        let mut artifact = Artifact::new("simulator", FORMAT_VERSION);
        for (entry, text) in [
            ("simulator", KIND),
            ("method", self.name()),
            ("name", self.name()),
            ("axes", "train, test"),
            ("unit", "nats per target token"),
            (
                "equation",
                "L_t = sum_i x_t(i) A[i,j] L_(t-1) + sum_i x_t(i) B[i,j]",
            ),
        ] {
            artifact.metadata.insert(entry.into(), text.into());
        }
        artifact.set_json("variant", &self.parameters.variant());
        artifact.set_json("settings", &self.params);
        artifact.set_json("provenance", &self.report);
        artifact.set_json("train_keys", &train_keys);
        artifact.set_json("test_keys", &test_keys);
        let shape = vec![self.train_count(), self.test_count()];
        for (table, values) in [
            ("A", self.parameters.a_table()),
            ("B", self.parameters.b_table()),
        ] {
            let shape = shape.clone();
            artifact
                .tensors
                .insert(table.into(), Tensor::F64 { shape, values });
        }
        Ok(artifact)
    }

    /// Reads the file form back, bit for bit.
    ///
    /// # Errors
    /// Another kind of file, absent parts, tables of another shape than the keys say, a parameter
    /// that is NaN or infinite.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, SimfluenceError> {
        artifact.expect("simulator", FORMAT_VERSION)?;
        let got = artifact.text("simulator")?;
        if got != KIND {
            return Err(SimfluenceError::Simulator {
                got: got.to_owned(),
            });
        }
        let variant: Variant = artifact.json("variant")?;
        let train_keys: Vec<String> = artifact.json("train_keys")?;
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        let (n, m) = (train_keys.len(), test_keys.len());
        let (a, b) = (artifact.f64s("A", &[n, m])?, artifact.f64s("B", &[n, m])?);
        for (table, values) in [("A", a), ("B", b)] {
            if let Some(position) = values.iter().position(|v| !v.is_finite()) {
                return Err(SimfluenceError::NotFinite {
                    table,
                    train_key: train_keys[position / m].clone(),
                    test_key: test_keys[position % m].clone(),
                    got: values[position],
                });
            }
        }
        Ok(Self {
            parameters: Parameters::from_tables(variant, n, m, a, b),
            params: artifact.json("settings")?,
            report: artifact.json("provenance")?,
        })
    }

    fn exposures(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Exposures, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count(), self.test_count())?;
        Exposures::from_curriculum(curriculum, self.train_count())
            .map_err(|e| SimulateError::Other(e.to_string()))
    }

    /// The losses after `0..=T` steps as a trajectory.
    fn trajectory(
        &self,
        curriculum: &Curriculum,
        losses: Vec<f32>,
    ) -> Result<Trajectory, SimulateError> {
        let steps = (0..=curriculum.len() as u32).collect();
        Trajectory::new(steps, self.test_count(), losses)
            .map_err(|e| SimulateError::Other(e.to_string()))
    }
}

impl Simulator for SimfluenceSimulator {
    fn name(&self) -> &str {
        name(self.parameters.variant())
    }

    fn train_count(&self) -> usize {
        self.parameters.train_count()
    }

    fn test_count(&self) -> usize {
        self.parameters.test_count()
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        let exposures = self.exposures(curriculum, initial)?;
        self.trajectory(curriculum, self.parameters.simulate(&exposures, initial))
    }

    /// Simulates steps that begin several curricula once, with the same result to the bit.
    fn simulate_many(
        &self,
        curricula: &[&Curriculum],
        initial: &[f32],
    ) -> Result<Vec<Trajectory>, SimulateError> {
        let exposures: Result<Vec<Exposures>, SimulateError> = curricula
            .iter()
            .map(|curriculum| self.exposures(curriculum, initial))
            .collect();
        let tables = self.parameters.simulate_many(&exposures?, initial);
        let pairs = curricula.iter().zip(tables);
        pairs
            .map(|(curriculum, losses)| self.trajectory(curriculum, losses))
            .collect()
    }
}

impl Fit for SimfluenceValidParams {
    type Simulator = SimfluenceSimulator;
    type Error = SimfluenceError;

    /// Fits on the runs that can be used; [`SimfluenceSimulator::report`] names the others.
    ///
    /// # Errors
    /// No usable run, runs over different numbers of test examples, a training id out of range,
    /// and what the fitter refuses ([`FitError`]).
    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        progress: &dyn Progress,
    ) -> Result<SimfluenceSimulator, SimfluenceError> {
        let start = Instant::now();
        let mut settings = self.settings();
        let (kept, left_out) = select(runs, settings.objective == Objective::TeacherForced);
        let problem = problem(&kept, &left_out, train_count)?;
        let all = problem.all_sequences();
        let choice = match self.lambda() {
            Lambda::Fixed(_) => None,
            Lambda::LeaveRunOut(search) => Some(choose_penalty(
                &problem,
                &all,
                &groups(&kept),
                &settings,
                search,
                progress,
            )?),
        };
        if let Some(choice) = &choice {
            settings.penalty = choice.best;
        }
        let fitted = fit(&problem, &all, &settings, progress)?;
        let report = FitReport {
            training_runs: kept.iter().map(|run| run.id.clone()).collect(),
            left_out,
            penalty: settings.penalty,
            choice,
            objective: fitted.objective.iter().sum(),
            iterations: fitted.iterations.iter().sum(),
            most_iterations: fitted.iterations.iter().copied().max().unwrap_or(0),
            identifiability: Identifiability::new(&problem, &all)?,
            seconds: start.elapsed().as_secs_f64(),
        };
        Ok(SimfluenceSimulator {
            parameters: fitted.parameters,
            params: self.params().clone(),
            report,
        })
    }
}

fn problem(
    runs: &[&Run],
    left_out: &[LeftOut],
    train_count: usize,
) -> Result<Problem, SimfluenceError> {
    let first = runs.first().ok_or_else(|| SimfluenceError::NoUsableRun {
        given: left_out.len(),
        left_out: left_out.to_vec(),
    })?;
    let expected = first.trajectory.test_count();
    let mut sequences = Vec::with_capacity(runs.len());
    for run in runs {
        let in_run = |source| SimfluenceError::Run {
            run: run.id.clone(),
            source,
        };
        let got = run.trajectory.test_count();
        if got != expected {
            return Err(SimfluenceError::TestCount {
                run: run.id.clone(),
                got,
                first: first.id.clone(),
                expected,
            });
        }
        sequences.push(sequence(run, train_count).map_err(in_run)?);
    }
    Problem::new(train_count, expected, sequences).map_err(|error| match sequence_of(&error) {
        Some(index) => SimfluenceError::Run {
            run: runs[index].id.clone(),
            source: error,
        },
        None => error.into(),
    })
}

/// The sequence that an error is about.
fn sequence_of(error: &FitError) -> Option<usize> {
    match error {
        FitError::Shape { sequence, .. }
        | FitError::EvaluatedSteps { sequence, .. }
        | FitError::LossNotFinite { sequence, .. } => Some(*sequence),
        _ => None,
    }
}

/// Why a Simfluence simulator cannot be fitted, written or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimfluenceError {
    /// No run to fit on.
    #[error("none of the {given} runs given can be fitted on{}", reasons(left_out))]
    NoUsableRun {
        /// Number of runs given.
        given: usize,
        /// Why each was left out.
        left_out: Vec<LeftOut>,
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
    /// Something is wrong with one run.
    #[error("run {run}: {source}")]
    Run {
        /// Id of the run.
        run: String,
        /// What is wrong.
        source: FitError,
    },
    /// The fit.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A number of keys other than the simulator's examples.
    #[error("{got} {axis} keys for a simulator of {expected} {axis} examples")]
    KeyCount {
        /// `training` or `test`.
        axis: &'static str,
        /// Examples of the simulator.
        expected: usize,
        /// Keys given.
        got: usize,
    },
    /// A simulator file of another method.
    #[error("expected a simulator file of simfluence, got one of {got}")]
    Simulator {
        /// The method found.
        got: String,
    },
    /// A parameter that is NaN or infinite.
    #[error("{table}[{train_key:?}, {test_key:?}] is {got}; the file is damaged")]
    NotFinite {
        /// `A` or `B`.
        table: &'static str,
        /// Key of the training example.
        train_key: String,
        /// Key of the test example.
        test_key: String,
        /// The value.
        got: f64,
    },
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

fn reasons(left_out: &[LeftOut]) -> String {
    left_out.iter().map(|l| format!("; {l}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{LeftOutReason, PenaltySearch, Shrinkage, Solver};
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use simfluence_core::{NoProgress, RunInfo, RunStatus, Step};

    const N: usize = 12;
    const M: usize = 5;
    const FIXED: Lambda = Lambda::Fixed(Penalty { a: 0.1, b: 0.1 });

    /// Runs in which example `i` pulls the losses towards a floor at its own pace.
    fn runs(count: usize, steps: usize, noise: f64, seed: u64) -> Vec<Run> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|r| {
                let batches: Vec<Vec<u32>> = (0..steps)
                    .map(|_| (0..3).map(|_| rng.random_range(0..N as u32)).collect())
                    .collect();
                let mut losses: Vec<f32> = (0..M).map(|j| 3.0 + j as f32 / 4.0).collect();
                for (t, batch) in batches.iter().enumerate() {
                    for j in 0..M {
                        let pace = |i: u32| 0.02 * ((i as usize * 5 + j * 3) % 7) as f64;
                        let push = batch.iter().map(|&i| pace(i)).sum::<f64>() / 3.0;
                        let last = f64::from(losses[t * M + j]);
                        let shock = noise * rng.random_range(-1.0..1.0);
                        losses.push((last - push * (last - 0.5) + shock) as f32);
                    }
                }
                let steps: Vec<Step> = batches.into_iter().map(|b| Step::new(b, None)).collect();
                Run {
                    id: format!("run-{r:03}"),
                    info: RunInfo::new(RunStatus::Complete),
                    batch_losses: vec![None; steps.len()],
                    trajectory: Trajectory::new((0..=steps.len() as u32).collect(), M, losses)
                        .unwrap(),
                    curriculum: Curriculum::new(steps, N).unwrap(),
                }
            })
            .collect()
    }

    fn fit_to(
        params: SimfluenceParams,
        runs: &[Run],
    ) -> Result<SimfluenceSimulator, SimfluenceError> {
        let runs: Vec<&Run> = runs.iter().collect();
        params.check()?.fit(&runs, N, &NoProgress)
    }

    fn keys(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|k| format!("{prefix}{k}")).collect()
    }

    #[test]
    fn a_held_out_run_is_simulated_from_its_first_losses() {
        let all = runs(9, 40, 0.0, 1);
        let (held_out, training) = all.split_first().unwrap();
        let weak = Lambda::Fixed(Penalty { a: 1e-6, b: 1e-6 });
        let simulator = fit_to(SimfluenceParams::new().lambda(weak), training).unwrap();
        let initial = held_out.trajectory.initial().unwrap();
        let simulated = simulator.simulate(&held_out.curriculum, initial).unwrap();
        let pairs = simulated.values().iter().zip(held_out.trajectory.values());
        let worst = pairs.map(|(s, t)| (s - t).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn a_simulator_comes_back_bit_identical_from_its_file() {
        for variant in [Variant::Linear, Variant::Additive, Variant::Multiplicative] {
            let params = SimfluenceParams::new().variant(variant).lambda(FIXED);
            let simulator = fit_to(params, &runs(4, 20, 0.05, 2)).unwrap();
            let artifact = simulator.to_artifact(&keys("z", N), &keys("q", M)).unwrap();
            let bytes = artifact.to_bytes().unwrap();
            let read = Artifact::from_bytes(&bytes).unwrap();
            let back = SimfluenceSimulator::from_artifact(&read).unwrap();
            assert_eq!(back, simulator);
            assert_eq!(
                back.to_artifact(&keys("z", N), &keys("q", M))
                    .unwrap()
                    .to_bytes()
                    .unwrap(),
                bytes
            );
        }
    }

    #[test]
    fn a_file_with_a_nan_or_of_another_method_is_refused() {
        let simulator =
            fit_to(SimfluenceParams::new().lambda(FIXED), &runs(2, 10, 0.05, 2)).unwrap();
        let good = simulator.to_artifact(&keys("z", N), &keys("q", M)).unwrap();
        let mut broken = good.clone();
        if let Some(Tensor::F64 { values, .. }) = broken.tensors.get_mut("B") {
            values[M + 2] = f64::NAN;
        }
        let message = SimfluenceSimulator::from_artifact(&broken)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("\"z1\"") && message.contains("\"q2\""),
            "{message}"
        );
        let mut other = good;
        other.metadata.insert("simulator".into(), "additive".into());
        let error = SimfluenceSimulator::from_artifact(&other).unwrap_err();
        assert!(matches!(error, SimfluenceError::Simulator { .. }));
    }

    #[test]
    fn a_wrong_number_of_keys_is_refused() {
        let simulator =
            fit_to(SimfluenceParams::new().lambda(FIXED), &runs(2, 10, 0.05, 2)).unwrap();
        let error = simulator
            .to_artifact(&keys("z", N - 1), &keys("q", M))
            .unwrap_err();
        assert_eq!(
            error,
            SimfluenceError::KeyCount {
                axis: "training",
                expected: N,
                got: N - 1
            }
        );
    }

    #[test]
    fn runs_that_diverged_are_left_out_by_name_and_change_nothing() {
        let good = runs(3, 20, 0.05, 3);
        let mut wild = good[0].clone();
        wild.id = "wild".into();
        wild.info.status = RunStatus::Diverged;
        let params = SimfluenceParams::new().lambda(FIXED);
        let without = fit_to(params.clone(), &good).unwrap();
        let with = fit_to(params, &[good, vec![wild]].concat()).unwrap();
        assert_eq!(with.parameters(), without.parameters());
        assert_eq!(
            with.report().left_out,
            [LeftOut {
                run: "wild".into(),
                reason: LeftOutReason::Diverged
            }]
        );
    }

    #[test]
    fn no_usable_run_is_an_error_that_names_them() {
        let mut wild = runs(1, 5, 0.0, 0);
        wild[0].info.status = RunStatus::Diverged;
        let message = fit_to(SimfluenceParams::new(), &wild)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("run-000") && message.contains("diverged"),
            "{message}"
        );
    }

    #[test]
    fn penalties_are_chosen_by_leave_run_out_rollouts() {
        let search = PenaltySearch {
            folds: 4,
            ..PenaltySearch::default()
        };
        let params = SimfluenceParams::new().lambda(Lambda::LeaveRunOut(search));
        let simulator = fit_to(params, &runs(8, 30, 0.1, 5)).unwrap();
        let choice = simulator.report().choice.as_ref().unwrap();
        assert_eq!(choice.table.len(), 18);
        assert_eq!(simulator.report().penalty, choice.best);
        let best = choice
            .table
            .iter()
            .find(|row| row.penalty == choice.best)
            .unwrap();
        assert!(choice.table.iter().all(|row| row.mse >= best.mse));
    }

    #[test]
    fn all_solvers_give_the_same_simulator() {
        let training = runs(4, 25, 0.1, 6);
        for shrinkage in [Shrinkage::One, Shrinkage::Zero] {
            let params = SimfluenceParams::new().shrinkage(shrinkage).lambda(FIXED);
            let exact = fit_to(params.clone(), &training).unwrap();
            for solver in [Solver::Cg, Solver::Lbfgs] {
                let other = fit_to(params.clone().solver(solver), &training).unwrap();
                let tables = exact
                    .parameters
                    .a_table()
                    .into_iter()
                    .zip(other.parameters.a_table());
                assert!(tables.map(|(e, o)| (e - o).abs()).fold(0.0, f64::max) <= 1e-8);
            }
        }
    }

    #[test]
    fn an_unknown_training_example_is_named_with_its_run() {
        let training = runs(2, 10, 0.1, 7);
        let refs: Vec<&Run> = training.iter().collect();
        let params = SimfluenceParams::new().lambda(FIXED).check().unwrap();
        let message = params.fit(&refs, 3, &NoProgress).unwrap_err().to_string();
        assert!(
            message.contains("run-000") && message.contains("step"),
            "{message}"
        );
    }

    #[test]
    fn an_example_never_trained_on_is_reported_and_neutral() {
        let training = runs(3, 20, 0.1, 8);
        let refs: Vec<&Run> = training.iter().collect();
        let params = SimfluenceParams::new().lambda(FIXED).check().unwrap();
        let simulator = params.fit(&refs, N + 1, &NoProgress).unwrap();
        assert_eq!(simulator.report().identifiability.never, [N as u32]);
        assert!(simulator.report().identifiability.sentence().is_some());
        let unseen = Curriculum::new(vec![Step::new(vec![N as u32], None)], N + 1).unwrap();
        let initial = [2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(
            simulator
                .simulate(&unseen, &initial)
                .unwrap()
                .at_step(1)
                .unwrap(),
            initial
        );
    }
}
