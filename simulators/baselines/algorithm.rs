//! The two baselines, and the mean over runs that calibrated simulators share.

use rayon::prelude::*;
use simfluence_core::{
    Artifact, ArtifactError, Curriculum, Fit, Progress, Run, SimulateError, Simulator, Tensor,
    Trajectory, check_simulation_input,
};

/// Version of the simulator files of this folder.
const FORMAT_VERSION: u32 = 1;

/// Nothing is learned: `L_t(j) = L_0(j)` for every step.
///
/// ```
/// use simfluence_core::{Curriculum, Simulator, Step};
/// use simfluence_simulators::baselines::NoLearning;
/// let curriculum = Curriculum::new(vec![Step::new(vec![0, 1], None)], 2)?;
/// let trajectory = NoLearning::new(2, 1).simulate(&curriculum, &[3.5])?;
/// assert_eq!(trajectory.at_step(1), Some(&[3.5][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoLearning {
    train_count: usize,
    test_count: usize,
}

impl NoLearning {
    /// For `train_count` training and `test_count` test examples.
    pub fn new(train_count: usize, test_count: usize) -> Self {
        Self {
            train_count,
            test_count,
        }
    }

    /// The file form, with the keys of its axes.
    ///
    /// # Errors
    /// A number of keys other than the simulator's examples.
    pub fn to_artifact(
        &self,
        train_keys: &[String],
        test_keys: &[String],
    ) -> Result<Artifact, BaselineError> {
        header(self, train_keys, test_keys)
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file or an absent entry.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, BaselineError> {
        let (train_count, test_count) = read_header(artifact, "no-learning")?;
        Ok(Self::new(train_count, test_count))
    }
}

impl Simulator for NoLearning {
    fn name(&self) -> &str {
        "no-learning"
    }

    fn train_count(&self) -> usize {
        self.train_count
    }

    fn test_count(&self) -> usize {
        self.test_count
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count, self.test_count)?;
        complete(initial.repeat(curriculum.len() + 1), self.test_count)
    }
}

/// The mean of the training runs: `L_t(j) = L̄_t(j)` for every `t ≥ 1`, and the true `L_0`.
///
/// `L̄_t(j)` is the mean over the runs that reach step `t` and measured `j` there. Between two
/// steps at which `j` was measured it is interpolated linearly; beyond the last it is held.
///
/// ```
/// use simfluence_core::{Curriculum, Fit, NoProgress, Run, RunInfo, RunStatus};
/// use simfluence_core::{Simulator, Step, Trajectory};
/// use simfluence_simulators::baselines::FitMeanRun;
/// let run = |id: &str, last| Run {
///     id: id.into(),
///     info: RunInfo::new(RunStatus::Complete),
///     curriculum: Curriculum::new(vec![Step::new(vec![0], None)], 1).unwrap(),
///     trajectory: Trajectory::new(vec![0, 1], 1, vec![4.0, last]).unwrap(),
///     batch_losses: vec![None],
/// };
/// let (a, b) = (run("a", 2.0), run("b", 3.0));
/// let mean = FitMeanRun.fit(&[&a, &b], 1, &NoProgress)?;
/// let simulated = mean.simulate(&a.curriculum, &[5.0])?;
/// assert_eq!(simulated.values(), &[5.0, 2.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MeanRun {
    train_count: usize,
    curve: MeanCurve,
    runs: Vec<String>,
}

impl MeanRun {
    /// Number of steps of the longest training run; beyond it the last mean is held.
    pub fn step_count(&self) -> usize {
        self.curve.rows() - 1
    }

    /// Ids of the runs that it is the mean of.
    pub fn runs(&self) -> &[String] {
        &self.runs
    }

    /// The mean losses alone.
    pub(crate) fn into_curve(self) -> MeanCurve {
        self.curve
    }

    /// The file form, with the keys of its axes; the mean curve is the array `mean`,
    /// `[steps + 1 × test]`.
    ///
    /// # Errors
    /// A number of keys other than the simulator's examples.
    pub fn to_artifact(
        &self,
        train_keys: &[String],
        test_keys: &[String],
    ) -> Result<Artifact, BaselineError> {
        let mut artifact = header(self, train_keys, test_keys)?;
        artifact.set_json("training_runs", &self.runs);
        self.curve.store(&mut artifact, "mean");
        Ok(artifact)
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file, an absent part, or a mean that is not finite.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, BaselineError> {
        let (train_count, test_count) = read_header(artifact, "mean-run")?;
        Ok(Self {
            train_count,
            curve: MeanCurve::load(artifact, "mean", test_count)?,
            runs: artifact.json("training_runs")?,
        })
    }
}

impl Simulator for MeanRun {
    fn name(&self) -> &str {
        "mean-run"
    }

    fn train_count(&self) -> usize {
        self.train_count
    }

    fn test_count(&self) -> usize {
        self.curve.test_count
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count, self.test_count())?;
        let mut values = initial.to_vec();
        for step in 1..=curriculum.len() {
            values.extend(self.curve.row(step).iter().map(|&mean| mean as f32));
        }
        complete(values, self.test_count())
    }
}

/// Learns [`MeanRun`]; there is nothing to set.
#[derive(Debug, Clone, Copy, Default)]
pub struct FitMeanRun;

impl Fit for FitMeanRun {
    type Simulator = MeanRun;
    type Error = BaselineError;

    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        _progress: &dyn Progress,
    ) -> Result<MeanRun, BaselineError> {
        check_runs(runs, train_count)?;
        let trajectories: Vec<&Trajectory> = runs.iter().map(|run| &run.trajectory).collect();
        let curve = MeanCurve::over(&trajectories);
        Ok(MeanRun {
            train_count,
            curve,
            runs: runs.iter().map(|run| run.id.clone()).collect(),
        })
    }
}

/// A mean over runs per step and test example, `[steps + 1 × test]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MeanCurve {
    pub(crate) test_count: usize,
    values: Vec<f64>,
}

impl MeanCurve {
    /// The mean over the trajectories that measured a value; each has a complete step 0
    /// ([`check_runs`]).
    pub(crate) fn over(trajectories: &[&Trajectory]) -> Self {
        let test_count = trajectories.first().map_or(0, |t| t.test_count());
        let last = trajectories.iter().filter_map(|t| t.steps().last()).max();
        let rows = last.map_or(1, |&step| step as usize + 1);
        let means: Vec<Vec<Option<f64>>> = (0..rows as u32)
            .into_par_iter()
            .map(|step| mean_row(trajectories, step, test_count))
            .collect();
        let mut values = vec![0.0; rows * test_count];
        for test in 0..test_count {
            let known: Vec<Option<f64>> = means.iter().map(|row| row[test]).collect();
            for (row, value) in fill_gaps(&known).into_iter().enumerate() {
                values[row * test_count + test] = value;
            }
        }
        Self { test_count, values }
    }

    pub(crate) fn rows(&self) -> usize {
        self.values.len().checked_div(self.test_count).unwrap_or(1)
    }

    /// The means after `step`; the last row is held.
    pub(crate) fn row(&self, step: usize) -> &[f64] {
        let row = step.min(self.rows() - 1);
        &self.values[row * self.test_count..(row + 1) * self.test_count]
    }

    pub(crate) fn store(&self, artifact: &mut Artifact, name: &str) {
        artifact.set_json(&format!("{name}_rows"), &self.rows());
        artifact.tensors.insert(
            name.into(),
            Tensor::F64 {
                shape: vec![self.rows(), self.test_count],
                values: self.values.clone(),
            },
        );
    }

    pub(crate) fn load(
        artifact: &Artifact,
        name: &str,
        test_count: usize,
    ) -> Result<Self, ArtifactError> {
        let rows_name = format!("{name}_rows");
        let rows: usize = artifact.json(&rows_name)?;
        let values = artifact.f64s(name, &[rows, test_count])?.to_vec();
        let problem = if rows == 0 {
            "a mean over runs has at least the row of step 0".to_owned()
        } else if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            format!(
                "row {}, column {} of {name:?} is {}",
                at / test_count,
                at % test_count,
                values[at]
            )
        } else {
            return Ok(Self { test_count, values });
        };
        Err(ArtifactError::Metadata {
            name: rows_name,
            problem,
        })
    }
}

/// Per test example the mean over the trajectories that measured it at `step`.
fn mean_row(trajectories: &[&Trajectory], step: u32, test_count: usize) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0usize); test_count];
    for trajectory in trajectories {
        let Some(row) = trajectory.index_of(step) else {
            continue;
        };
        for (test, (sum, count)) in sums.iter_mut().enumerate() {
            if let Some(loss) = trajectory.get(row, test) {
                *sum += f64::from(loss);
                *count += 1;
            }
        }
    }
    let mean = |(sum, count)| (count > 0).then(|| sum / count as f64);
    sums.into_iter().map(mean).collect()
}

/// Linear between known values, held after the last; the first is known.
fn fill_gaps(known: &[Option<f64>]) -> Vec<f64> {
    let anchors = known
        .iter()
        .enumerate()
        .filter_map(|(step, v)| v.map(|v| (step, v)));
    let mut filled: Vec<f64> = Vec::with_capacity(known.len());
    let mut before = None;
    for (step, value) in anchors {
        let (from, start) = before.unwrap_or((step, value));
        for gap in filled.len()..step {
            let share = (gap - from) as f64 / (step - from) as f64;
            filled.push(start + share * (value - start));
        }
        filled.push(value);
        before = Some((step, value));
    }
    let held = before.map_or(f64::NAN, |(_, value)| value);
    filled.resize(known.len(), held);
    filled
}

/// Whether `runs` can be learned from: at least one, all usable and over the same examples.
pub(crate) fn check_runs(runs: &[&Run], train_count: usize) -> Result<(), BaselineError> {
    let first = runs.first().ok_or(BaselineError::NoRuns)?;
    let expected = first.trajectory.test_count();
    for run in runs {
        if !run.is_usable() {
            return Err(BaselineError::Unusable {
                run: run.id.clone(),
            });
        }
        let got = run.trajectory.test_count();
        if got != expected {
            return Err(BaselineError::TestCount {
                run: run.id.clone(),
                expected,
                got,
                first: first.id.clone(),
            });
        }
        if let Some(id) = run
            .curriculum
            .max_id()
            .filter(|&id| id as usize >= train_count)
        {
            return Err(BaselineError::UnknownExample {
                run: run.id.clone(),
                id,
                train_count,
            });
        }
    }
    Ok(())
}

fn header(
    simulator: &dyn Simulator,
    train_keys: &[String],
    test_keys: &[String],
) -> Result<Artifact, BaselineError> {
    for (axis, expected, got) in [
        ("training", simulator.train_count(), train_keys.len()),
        ("test", simulator.test_count(), test_keys.len()),
    ] {
        if expected != got {
            return Err(BaselineError::KeyCount {
                axis,
                expected,
                got,
            });
        }
    }
    let mut artifact = Artifact::new("simulator", FORMAT_VERSION);
    artifact
        .metadata
        .insert("simulator".into(), simulator.name().to_owned());
    artifact
        .metadata
        .insert("method".into(), simulator.name().to_owned());
    artifact
        .metadata
        .insert("unit".into(), "nats per target token".into());
    artifact.set_json("train_keys", &train_keys);
    artifact.set_json("test_keys", &test_keys);
    Ok(artifact)
}

fn read_header(artifact: &Artifact, simulator: &str) -> Result<(usize, usize), BaselineError> {
    artifact.expect("simulator", FORMAT_VERSION)?;
    let got = artifact.text("simulator")?;
    if got != simulator {
        return Err(BaselineError::Simulator {
            expected: simulator.to_owned(),
            got: got.to_owned(),
        });
    }
    let train_keys: Vec<String> = artifact.json("train_keys")?;
    let test_keys: Vec<String> = artifact.json("test_keys")?;
    Ok((train_keys.len(), test_keys.len()))
}

/// A trajectory of every step from 0 on.
fn complete(values: Vec<f32>, test_count: usize) -> Result<Trajectory, SimulateError> {
    let rows = values.len().checked_div(test_count).unwrap_or(0);
    Trajectory::new((0..rows as u32).collect(), test_count, values)
        .map_err(|source| SimulateError::Other(source.to_string()))
}

/// Why a baseline cannot be learned or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BaselineError {
    /// No run to learn from.
    #[error("no training run was given; the mean run needs at least one")]
    NoRuns,
    /// A run that diverged or lacks losses.
    #[error(
        "run {run:?} diverged or lacks its losses before the first step; leave it out of the training runs"
    )]
    Unusable {
        /// Id of the run.
        run: String,
    },
    /// Runs over different test examples.
    #[error("run {run:?} has {got} test examples, but run {first:?} has {expected}")]
    TestCount {
        /// Id of the run.
        run: String,
        /// Test examples of the first run.
        expected: usize,
        /// Test examples of this run.
        got: usize,
        /// Id of the first run.
        first: String,
    },
    /// A training id out of range.
    #[error("run {run:?} trains on id {id}, but there are {train_count} training examples")]
    UnknownExample {
        /// Id of the run.
        run: String,
        /// The training id.
        id: u32,
        /// Number of training examples.
        train_count: usize,
    },
    /// Another number of keys than examples.
    #[error("{got} keys for {expected} {axis} examples")]
    KeyCount {
        /// `training` or `test`.
        axis: &'static str,
        /// Examples of the simulator.
        expected: usize,
        /// Keys given.
        got: usize,
    },
    /// The file of another simulator.
    #[error("expected the simulator {expected:?}, got {got:?}")]
    Simulator {
        /// Simulator wanted.
        expected: String,
        /// Simulator found.
        got: String,
    },
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::{NoProgress, RunInfo, RunStatus, Step};

    fn run(id: &str, steps: Vec<u32>, values: Vec<f32>) -> Run {
        let length = steps.last().copied().unwrap_or(0) as usize;
        let batches = (0..length).map(|t| Step::new(vec![t as u32 % 2], Some(0.1)));
        Run {
            id: id.into(),
            info: RunInfo::new(RunStatus::Complete),
            curriculum: Curriculum::new(batches.collect(), 2).unwrap(),
            trajectory: Trajectory::new(steps, 1, values).unwrap(),
            batch_losses: vec![None; length],
        }
    }

    fn fit(runs: &[&Run]) -> Result<MeanRun, BaselineError> {
        FitMeanRun.fit(runs, 2, &NoProgress)
    }

    #[test]
    fn the_mean_is_over_the_runs_that_reach_a_step_and_the_last_is_held() {
        let short = run("short", vec![0, 1], vec![4.0, 2.0]);
        let long = run("long", vec![0, 1, 2], vec![6.0, 3.0, 1.0]);
        let longer = run("longer", vec![0, 1, 2, 3, 4], vec![0.0; 5]);
        let mean = fit(&[&short, &long]).unwrap();
        assert_eq!(mean.step_count(), 2);
        let simulated = mean.simulate(&longer.curriculum, &[9.0]).unwrap();
        assert_eq!(simulated.values(), &[9.0, 2.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn steps_between_two_evaluations_are_interpolated() {
        let sparse = run("sparse", vec![0, 4], vec![4.0, 2.0]);
        let mean = fit(&[&sparse]).unwrap();
        let simulated = mean.simulate(&sparse.curriculum, &[4.0]).unwrap();
        assert_eq!(simulated.values(), &[4.0, 3.5, 3.0, 2.5, 2.0]);
    }

    #[test]
    fn missing_values_do_not_enter_the_mean() {
        let mut a = run("a", vec![0, 1], vec![4.0, 2.0]);
        let b = run("b", vec![0, 1], vec![4.0, 3.0]);
        a.trajectory =
            Trajectory::with_missing(vec![0, 1], 1, vec![4.0, f32::NAN], vec![true, false])
                .unwrap();
        let simulated = fit(&[&a, &b])
            .unwrap()
            .simulate(&b.curriculum, &[4.0])
            .unwrap();
        assert_eq!(simulated.values(), &[4.0, 3.0]);
    }

    #[test]
    fn a_diverged_run_is_refused_by_name() {
        let bad = run("bad", vec![0, 1], vec![4.0, f32::INFINITY]);
        assert_eq!(
            fit(&[&bad]),
            Err(BaselineError::Unusable { run: "bad".into() })
        );
        assert_eq!(fit(&[]), Err(BaselineError::NoRuns));
    }

    #[test]
    fn both_come_back_bit_identical() {
        let a = run("a", vec![0, 1, 2], vec![4.1, 2.3, 0.7]);
        let mean = fit(&[&a]).unwrap();
        let (train, test) = (vec!["x".to_owned(), "y".to_owned()], vec!["z".to_owned()]);
        let bytes = mean.to_artifact(&train, &test).unwrap().to_bytes().unwrap();
        let artifact = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(MeanRun::from_artifact(&artifact).unwrap(), mean);
        assert!(matches!(
            NoLearning::from_artifact(&artifact),
            Err(BaselineError::Simulator { .. })
        ));
        let none = NoLearning::new(2, 1);
        let artifact = none.to_artifact(&train, &test).unwrap();
        assert_eq!(NoLearning::from_artifact(&artifact).unwrap(), none);
        assert!(matches!(
            none.to_artifact(&test, &test),
            Err(BaselineError::KeyCount { .. })
        ));
    }

    #[test]
    fn an_unknown_training_example_is_refused() {
        let a = run("a", vec![0, 1, 2], vec![4.0, 2.0, 1.0]);
        assert!(matches!(
            FitMeanRun.fit(&[&a], 1, &NoProgress),
            Err(BaselineError::UnknownExample { id: 1, .. })
        ));
        assert!(matches!(
            NoLearning::new(1, 1).simulate(&a.curriculum, &[4.0]),
            Err(SimulateError::UnknownExample { step: 2, .. })
        ));
    }
}
