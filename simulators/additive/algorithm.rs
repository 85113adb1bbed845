//! Rolling scores out along a curriculum, and fitting the gain.

use super::Gain;
use crate::baselines::{BaselineError, FitMeanRun, MeanCurve, MeanRun, check_runs};
use rayon::prelude::*;
use simfluence_core::{
    Artifact, ArtifactError, Curriculum, Fit, NoProgress, Progress, Run, Scores, ScoresError,
    SimulateError, Simulator, Step, Trajectory, check_simulation_input,
};
use std::ops::Range;

/// Version of the simulator files of this folder.
const FORMAT_VERSION: u32 = 1;

/// Test examples that one task rolls out at a time: its accumulators stay in the L1 cache.
const TEST_BLOCK: usize = 256;

/// `L_t(j) = L_0(j) − gain · Σ_{s ≤ t} (η_s/η_ref) Σ_i x_s(i) E(i,j)`.
///
/// Shapes: scores `[train × test]`. Every step of a curriculum needs a learning rate.
///
/// ```
/// use simfluence_core::{Curriculum, Scores, Simulator, Step};
/// use simfluence_simulators::additive::AdditiveSimulator;
/// let scores = Scores {
///     method: "graddot".into(),
///     train_keys: vec!["a".into(), "b".into()],
///     test_keys: vec!["x".into()],
///     reference_learning_rate: 0.5,
///     has_natural_unit: true,
///     values: vec![1.0, 0.0],
///     layers: Vec::new(),
///     provenance: Default::default(),
/// };
/// let simulator = AdditiveSimulator::new(scores, 1.0)?;
/// // Half of the batch is `a`, at half of the reference learning rate.
/// let curriculum = Curriculum::new(vec![Step::new(vec![0, 1], Some(0.25))], 2)?;
/// assert_eq!(simulator.simulate(&curriculum, &[3.0])?.at_step(1), Some(&[2.75][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Reference
/// Simfluence-Additive is the case in which the scores are fitted: Guu et al. 2023, section 3.
#[derive(Debug, Clone, PartialEq)]
pub struct AdditiveSimulator {
    name: String,
    scores: Scores,
    gain: f64,
}

impl AdditiveSimulator {
    /// Takes scores and a gain; the simulator is named after the method.
    ///
    /// # Errors
    /// What [`Scores::check`] refuses; a gain that is negative or not finite.
    pub fn new(scores: Scores, gain: f64) -> Result<Self, AdditiveError> {
        scores.check()?;
        check_gain(&scores.method, gain)?;
        Ok(Self {
            name: scores.method.clone(),
            scores,
            gain,
        })
    }

    /// Gives the simulator another name, as it is to stand in tables.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The gain.
    pub fn gain(&self) -> f64 {
        self.gain
    }

    /// The scores.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// The file form: the scores with their axes and provenance, and the gain.
    pub fn to_artifact(&self) -> Artifact {
        header(&self.scores, &self.name, "additive", self.gain)
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file, an absent part, or what [`AdditiveSimulator::new`] refuses.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, AdditiveError> {
        let (scores, name, gain) = read_header(artifact, "additive")?;
        Ok(Self::new(scores, gain)?.with_name(name))
    }
}

impl Simulator for AdditiveSimulator {
    fn name(&self) -> &str {
        &self.name
    }

    fn train_count(&self) -> usize {
        self.scores.train_keys.len()
    }

    fn test_count(&self) -> usize {
        self.scores.test_keys.len()
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count(), self.test_count())?;
        roll_out(&self.scores, &self.name, curriculum, |_, test, decrease| {
            (f64::from(initial[test]) - self.gain * decrease) as f32
        })
    }
}

/// `L_t(j) = L̄_t(j) − gain · (P_t(j) − P̄_t(j))` for `t ≥ 1`, and the true `L_0`.
///
/// `L̄_t` is the mean of the training runs ([`MeanRun`]) and `P̄_t` the mean of their cumulative
/// predicted decreases, taken over the same runs at every step and test example. Beyond the
/// longest training run both are held.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibratedSimulator {
    name: String,
    scores: Scores,
    gain: f64,
    mean_loss: MeanCurve,
    mean_decrease: MeanCurve,
    runs: Vec<String>,
}

impl CalibratedSimulator {
    /// Gives the simulator another name, as it is to stand in tables.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The gain.
    pub fn gain(&self) -> f64 {
        self.gain
    }

    /// The scores.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// Ids of the training runs.
    pub fn runs(&self) -> &[String] {
        &self.runs
    }

    /// The file form: as [`AdditiveSimulator::to_artifact`], and the arrays `mean_loss` and
    /// `mean_decrease`, `[steps + 1 × test]`.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = header(&self.scores, &self.name, "calibrated", self.gain);
        artifact.set_json("training_runs", &self.runs);
        self.mean_loss.store(&mut artifact, "mean_loss");
        self.mean_decrease.store(&mut artifact, "mean_decrease");
        artifact
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file, an absent part, scores or a gain that are refused.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, AdditiveError> {
        let (scores, name, gain) = read_header(artifact, "calibrated")?;
        check_gain(&name, gain)?;
        let test_count = scores.test_keys.len();
        Ok(Self {
            mean_loss: MeanCurve::load(artifact, "mean_loss", test_count)?,
            mean_decrease: MeanCurve::load(artifact, "mean_decrease", test_count)?,
            runs: artifact.json("training_runs")?,
            name,
            scores,
            gain,
        })
    }
}

impl Simulator for CalibratedSimulator {
    fn name(&self) -> &str {
        &self.name
    }

    fn train_count(&self) -> usize {
        self.scores.train_keys.len()
    }

    fn test_count(&self) -> usize {
        self.scores.test_keys.len()
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count(), self.test_count())?;
        roll_out(
            &self.scores,
            &self.name,
            curriculum,
            |step, test, decrease| {
                if step == 0 {
                    return initial[test];
                }
                let deviation = decrease - self.mean_decrease.row(step)[test];
                (self.mean_loss.row(step)[test] - self.gain * deviation) as f32
            },
        )
    }
}

/// Learns the gain of an [`AdditiveSimulator`] from training runs.
#[derive(Debug, Clone, PartialEq)]
pub struct FitAdditive {
    /// Scores over the same training and test examples as the runs, in the same order.
    pub scores: Scores,
    /// How the gain is found.
    pub gain: Gain,
}

impl Fit for FitAdditive {
    type Simulator = AdditiveSimulator;
    type Error = AdditiveError;

    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        progress: &dyn Progress,
    ) -> Result<AdditiveSimulator, AdditiveError> {
        let decreases = decreases(&self.scores, runs, train_count, progress)?;
        let gain = gain(&self.scores, self.gain, runs, &decreases)?;
        AdditiveSimulator::new(self.scores.clone(), gain)
    }
}

/// Learns a [`CalibratedSimulator`] from training runs: the gain of [`FitAdditive`], the mean run
/// and the mean predicted decrease. It is named `<method> (calibrated)`.
#[derive(Debug, Clone, PartialEq)]
pub struct FitCalibrated {
    /// Scores over the same training and test examples as the runs, in the same order.
    pub scores: Scores,
    /// How the gain is found.
    pub gain: Gain,
}

impl Fit for FitCalibrated {
    type Simulator = CalibratedSimulator;
    type Error = AdditiveError;

    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        progress: &dyn Progress,
    ) -> Result<CalibratedSimulator, AdditiveError> {
        let decreases = decreases(&self.scores, runs, train_count, progress)?;
        let gain = gain(&self.scores, self.gain, runs, &decreases)?;
        let mean_run: MeanRun = FitMeanRun.fit(runs, train_count, &NoProgress)?;
        let masked: Vec<Trajectory> = runs
            .iter()
            .zip(&decreases)
            .map(|(run, decrease)| as_measured(run, decrease))
            .collect::<Result<_, _>>()?;
        Ok(CalibratedSimulator {
            name: format!("{} (calibrated)", self.scores.method),
            scores: self.scores.clone(),
            gain,
            mean_loss: mean_run.into_curve(),
            mean_decrease: MeanCurve::over(&masked.iter().collect::<Vec<_>>()),
            runs: runs.iter().map(|run| run.id.clone()).collect(),
        })
    }
}

/// `P_t` of every run, one trajectory each.
fn decreases(
    scores: &Scores,
    runs: &[&Run],
    train_count: usize,
    progress: &dyn Progress,
) -> Result<Vec<Trajectory>, AdditiveError> {
    scores.check()?;
    check_runs(runs, train_count)?;
    let expected = (scores.train_keys.len(), scores.test_keys.len());
    progress.begin("rolling out the scores (runs)", runs.len() as u64);
    let decreases = runs.iter().map(|run| {
        let got = (train_count, run.trajectory.test_count());
        if got != expected {
            return Err(AdditiveError::Examples {
                run: run.id.clone(),
                method: scores.method.clone(),
                expected,
                got,
            });
        }
        let decrease = roll_out(scores, &scores.method, &run.curriculum, |_, _, p| p as f32)
            .map_err(|source| AdditiveError::Run {
                run: run.id.clone(),
                source,
            })?;
        let (steps, last) = (run.curriculum.len(), run.trajectory.steps().last());
        if let Some(&step) = last.filter(|&&step| step as usize > steps) {
            return Err(AdditiveError::StepBeyondCurriculum {
                run: run.id.clone(),
                step,
                steps,
            });
        }
        progress.advance(1);
        Ok(decrease)
    });
    let decreases = decreases.collect();
    progress.end();
    decreases
}

fn gain(
    scores: &Scores,
    gain: Gain,
    runs: &[&Run],
    decreases: &[Trajectory],
) -> Result<f64, AdditiveError> {
    match gain {
        Gain::Fixed(gain) => check_gain(&scores.method, gain).map(|()| gain),
        Gain::Natural if scores.has_natural_unit => Ok(1.0),
        Gain::Natural => Err(AdditiveError::NoNaturalUnit {
            method: scores.method.clone(),
        }),
        Gain::Fitted => {
            let (mut product, mut square) = (0.0, 0.0);
            for (run, decrease) in runs.iter().zip(decreases) {
                let (run_product, run_square) = gain_sums(&run.trajectory, decrease);
                product += run_product;
                square += run_square;
            }
            Ok(if square > 0.0 {
                (product / square).max(0.0)
            } else {
                0.0
            })
        }
    }
}

/// `Σ (L_0 − L_t) P_t` and `Σ P_t²` of one run, over steps ≥ 1 and measured values.
fn gain_sums(real: &Trajectory, decrease: &Trajectory) -> (f64, f64) {
    let (mut product, mut square) = (0.0, 0.0);
    let initial = real.row(0);
    for (row, &step) in real.steps().iter().enumerate().skip(1) {
        let predicted = decrease.row(step as usize);
        for (test, &p) in predicted.iter().enumerate() {
            if let Some(loss) = real.get(row, test) {
                product += (f64::from(initial[test]) - f64::from(loss)) * f64::from(p);
                square += f64::from(p) * f64::from(p);
            }
        }
    }
    (product, square)
}

/// `P_t` at the steps and test examples that the run measured.
fn as_measured(run: &Run, decrease: &Trajectory) -> Result<Trajectory, AdditiveError> {
    let real = &run.trajectory;
    let tests = real.test_count();
    let values = real
        .steps()
        .iter()
        .flat_map(|&step| decrease.row(step as usize));
    let measured = (0..real.steps().len() * tests)
        .map(|at| real.get(at / tests, at % tests).is_some())
        .collect();
    Trajectory::with_missing(
        real.steps().to_vec(),
        tests,
        values.copied().collect(),
        measured,
    )
    .map_err(|source| AdditiveError::Run {
        run: run.id.clone(),
        source: SimulateError::Other(source.to_string()),
    })
}

/// Applies `loss(step, test, P_step(test))` at every step `0..=T`; test examples in parallel.
fn roll_out(
    scores: &Scores,
    method: &str,
    curriculum: &Curriculum,
    loss: impl Fn(usize, usize, f64) -> f32 + Sync,
) -> Result<Trajectory, SimulateError> {
    let tests = scores.test_keys.len();
    let rates = relative_rates(scores, method, curriculum)?;
    let rows = curriculum.len() + 1;
    let mut values = vec![0.0f32; rows * tests];
    let mut blocks: Vec<Vec<&mut [f32]>> = Vec::new();
    blocks.resize_with(tests.div_ceil(TEST_BLOCK), Vec::new);
    for row in values.chunks_mut(tests.max(1)) {
        for (block, part) in row.chunks_mut(TEST_BLOCK).enumerate() {
            blocks[block].push(part);
        }
    }
    blocks
        .into_par_iter()
        .enumerate()
        .for_each(|(block, rows)| {
            let first = block * TEST_BLOCK;
            let mut decrease = [0.0f64; TEST_BLOCK];
            for (step, row) in rows.into_iter().enumerate() {
                if step > 0 {
                    let columns = first..first + row.len();
                    let push = step_push(scores, &curriculum.steps()[step - 1], columns);
                    for (sum, push) in decrease.iter_mut().zip(push) {
                        *sum += rates[step - 1] * f64::from(push);
                    }
                }
                for (offset, (value, &sum)) in row.iter_mut().zip(&decrease).enumerate() {
                    *value = loss(step, first + offset, sum);
                }
            }
        });
    Trajectory::new((0..rows as u32).collect(), tests, values)
        .map_err(|source| SimulateError::Other(source.to_string()))
}

/// `Σ_i x_t(i) E(i,j)` for a block of test examples: few terms, so that `f32` is enough; the sum
/// over steps is taken in `f64`.
fn step_push(scores: &Scores, step: &Step, columns: Range<usize>) -> [f32; TEST_BLOCK] {
    let tests = scores.test_keys.len();
    let mut push = [0.0; TEST_BLOCK];
    for (example, exposure) in step.exposures() {
        let row = &scores.values[example as usize * tests..][..tests];
        let exposure = exposure as f32;
        for (sum, &effect) in push.iter_mut().zip(&row[columns.clone()]) {
            *sum += exposure * effect;
        }
    }
    push
}

/// `η_t/η_ref` of every step.
fn relative_rates(
    scores: &Scores,
    method: &str,
    curriculum: &Curriculum,
) -> Result<Vec<f64>, SimulateError> {
    let rate = |(index, step): (usize, &Step)| match step.learning_rate {
        Some(rate) => Ok(f64::from(rate) / scores.reference_learning_rate),
        None => Err(SimulateError::NoLearningRate {
            step: index as u32 + 1,
            method: method.to_owned(),
        }),
    };
    curriculum.steps().iter().enumerate().map(rate).collect()
}

fn check_gain(method: &str, gain: f64) -> Result<(), AdditiveError> {
    if gain.is_finite() && gain >= 0.0 {
        return Ok(());
    }
    Err(AdditiveError::Gain {
        method: method.to_owned(),
        got: gain,
    })
}

fn header(scores: &Scores, name: &str, simulator: &str, gain: f64) -> Artifact {
    let mut artifact = Artifact::new("simulator", FORMAT_VERSION);
    let described = scores.to_artifact();
    for (entry, text) in described.metadata {
        artifact.metadata.entry(entry).or_insert(text);
    }
    artifact.tensors = described.tensors;
    artifact
        .metadata
        .insert("simulator".into(), simulator.into());
    artifact.metadata.insert("name".into(), name.into());
    artifact.set_json("gain", &gain);
    artifact
}

fn read_header(
    artifact: &Artifact,
    simulator: &str,
) -> Result<(Scores, String, f64), AdditiveError> {
    artifact.expect("simulator", FORMAT_VERSION)?;
    let got = artifact.text("simulator")?;
    if got != simulator {
        return Err(AdditiveError::Simulator {
            expected: simulator.to_owned(),
            got: got.to_owned(),
        });
    }
    let scores = Scores::read(artifact)?;
    Ok((
        scores,
        artifact.text("name")?.to_owned(),
        artifact.json("gain")?,
    ))
}

/// Why scores cannot become a simulator.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdditiveError {
    /// The scores themselves.
    #[error(transparent)]
    Scores(#[from] ScoresError),
    /// The training runs.
    #[error(transparent)]
    Runs(#[from] BaselineError),
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A gain that is negative or not finite.
    #[error("{method}: the gain is {got}; it must be finite and not negative")]
    Gain {
        /// Name of the method.
        method: String,
        /// What was given.
        got: f64,
    },
    /// Scores without a unit have no natural gain.
    #[error(
        "{method}: the scores are not in nats, so a gain of 1 means nothing; fit the gain on training runs"
    )]
    NoNaturalUnit {
        /// Name of the method.
        method: String,
    },
    /// Scores and runs over different examples.
    #[error("{method}: scores of {} training and {} test examples, but run {run:?} has {} and {}", expected.0, expected.1, got.0, got.1)]
    Examples {
        /// Id of the run.
        run: String,
        /// Name of the method.
        method: String,
        /// Training and test examples of the scores.
        expected: (usize, usize),
        /// Training and test examples of the run.
        got: (usize, usize),
    },
    /// A training run that the scores cannot be rolled out along.
    #[error("run {run:?}: {source}")]
    Run {
        /// Id of the run.
        run: String,
        /// Why.
        source: SimulateError,
    },
    /// Losses after more steps than the curriculum has.
    #[error("run {run:?} has losses after step {step}, but its curriculum has {steps} steps")]
    StepBeyondCurriculum {
        /// Id of the run.
        run: String,
        /// The step.
        step: u32,
        /// Steps of the curriculum.
        steps: usize,
    },
    /// The file of another simulator.
    #[error("expected the simulator {expected:?}, got {got:?}")]
    Simulator {
        /// Simulator wanted.
        expected: String,
        /// Simulator found.
        got: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simfluence_core::{RunInfo, RunStatus};
    use std::collections::BTreeMap;

    fn scores(train: usize, test: usize, values: Vec<f32>, reference: f64) -> Scores {
        let keys = |prefix: &str, count| (0..count).map(|k| format!("{prefix}{k}")).collect();
        Scores {
            method: "graddot".into(),
            train_keys: keys("train", train),
            test_keys: keys("test", test),
            reference_learning_rate: reference,
            has_natural_unit: true,
            values,
            layers: Vec::new(),
            provenance: BTreeMap::from([("seed".into(), 3.into())]),
        }
    }

    fn run(id: &str, curriculum: Curriculum, trajectory: Trajectory) -> Run {
        Run {
            id: id.into(),
            info: RunInfo::new(RunStatus::Complete),
            batch_losses: vec![None; curriculum.len()],
            curriculum,
            trajectory,
        }
    }

    /// Two runs over three training and two test examples, the world of `ref_numbers.py`.
    fn world() -> (Scores, Vec<Run>) {
        let scores = scores(3, 2, vec![0.4, -0.1, 0.2, 0.3, -0.3, 0.5], 0.2);
        let weighted = Step {
            batch: vec![2, 1],
            weights: Some(vec![0.25, 0.75]),
            learning_rate: Some(0.4),
        };
        let first = vec![
            Step::new(vec![0, 1], Some(0.2)),
            weighted,
            Step::new(vec![0], Some(0.1)),
        ];
        let second = vec![
            Step::new(vec![1, 1, 2], Some(0.2)),
            Step::new(vec![2], Some(0.3)),
        ];
        let first = run(
            "first",
            Curriculum::new(first, 3).unwrap(),
            Trajectory::new(
                vec![0, 1, 2, 3],
                2,
                vec![3.0, 2.0, 2.8, 1.9, 2.7, 1.4, 2.5, 1.45],
            )
            .unwrap(),
        );
        let second = run(
            "second",
            Curriculum::new(second, 3).unwrap(),
            Trajectory::with_missing(
                vec![0, 1, 2],
                2,
                vec![3.1, 2.1, 3.0, 1.6, 3.4, f32::NAN],
                vec![true, true, true, true, true, false],
            )
            .unwrap(),
        );
        (scores, vec![first, second])
    }

    fn assert_close(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 2e-6, "{got:?} instead of {expected:?}");
        }
    }

    // Made by ref_numbers.py.
    const REF_GAIN: f64 = 0.7753353204172877;
    const REF_ADDITIVE: [f32; 8] = [
        3.0, 2.0, 2.767399, 1.922466, 2.651099, 1.379732, 2.496032, 1.418499,
    ];
    const REF_CALIBRATED: [f32; 8] = [3.0, 2.0, 2.796622, 1.853378, 2.714021, 1.4, 2.5, 1.45];

    #[test]
    fn ref_gain_and_roll_outs_of_numpy() {
        let (scores, runs) = world();
        let training: Vec<&Run> = runs.iter().collect();
        let fitted = FitAdditive {
            scores: scores.clone(),
            gain: Gain::Fitted,
        };
        let fitted = fitted.fit(&training, 3, &NoProgress).unwrap();
        assert!((fitted.gain() - REF_GAIN).abs() < 1e-6, "{}", fitted.gain());
        let simulated = fitted.simulate(&runs[0].curriculum, &[3.0, 2.0]).unwrap();
        assert_close(simulated.values(), &REF_ADDITIVE);
        let calibrated = FitCalibrated {
            scores,
            gain: Gain::Fitted,
        };
        let calibrated = calibrated.fit(&training, 3, &NoProgress).unwrap();
        let simulated = calibrated
            .simulate(&runs[0].curriculum, &[3.0, 2.0])
            .unwrap();
        assert_close(simulated.values(), &REF_CALIBRATED);
    }

    proptest! {
        #[test]
        fn blocks_agree_with_one_example_at_a_time(
            seed in 0u64..1000, tests in 1usize..600, steps in 0usize..12,
        ) {
            let train = 5;
            let value = |k: usize| ((k as u64 * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
            let all = scores(train, tests, (0..train * tests).map(value).collect(), 0.3);
            let batches = (0..steps).map(|t| {
                let batch = (0..1 + (t + seed as usize) % 4).map(|k| ((t * 3 + k * 2) % train) as u32);
                Step::new(batch.collect(), Some(0.1 + t as f32 * 0.05))
            });
            let curriculum = Curriculum::new(batches.collect(), train).unwrap();
            let initial: Vec<f32> = (0..tests).map(|j| 3.0 + value(j)).collect();
            let simulator = AdditiveSimulator::new(all.clone(), 1.5).unwrap();
            let simulated = simulator.simulate(&curriculum, &initial).unwrap();
            for test in [0, tests / 2, tests - 1] {
                let mut loss = f64::from(initial[test]);
                for (index, step) in curriculum.steps().iter().enumerate() {
                    for (example, exposure) in step.exposures() {
                        let rate = f64::from(step.learning_rate.unwrap()) / 0.3;
                        let effect = all.values[example as usize * tests + test];
                        loss -= 1.5 * rate * exposure * f64::from(effect);
                    }
                    let got = simulated.at_step(index as u32 + 1).unwrap()[test];
                    prop_assert!((f64::from(got) - loss).abs() < 1e-5);
                }
            }
        }

        #[test]
        fn the_fitted_gain_is_the_one_that_made_the_runs(gain in 0.01f64..20.0) {
            let (scores, runs) = world();
            let maker = AdditiveSimulator::new(scores.clone(), gain).unwrap();
            let curriculum = runs[0].curriculum.clone();
            let made = maker.simulate(&curriculum, &[3.0, 2.0]).unwrap();
            let made = run("made", curriculum, made);
            let fit = FitAdditive { scores, gain: Gain::Fitted };
            let fitted = fit.fit(&[&made], 3, &NoProgress).unwrap();
            prop_assert!((fitted.gain() / gain - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn scores_that_point_the_wrong_way_get_the_gain_zero() {
        let (mut scores, runs) = world();
        for value in &mut scores.values {
            *value = -value.abs();
        }
        let fit = FitAdditive {
            scores,
            gain: Gain::Fitted,
        };
        assert_eq!(fit.fit(&[&runs[0]], 3, &NoProgress).unwrap().gain(), 0.0);
    }

    #[test]
    fn a_step_without_a_learning_rate_is_named() {
        let (scores, _) = world();
        let steps = vec![Step::new(vec![0], Some(0.1)), Step::new(vec![0], None)];
        let curriculum = Curriculum::new(steps, 3).unwrap();
        let simulator = AdditiveSimulator::new(scores, 1.0).unwrap();
        assert_eq!(
            simulator.simulate(&curriculum, &[3.0, 2.0]),
            Err(SimulateError::NoLearningRate {
                step: 2,
                method: "graddot".into()
            })
        );
    }

    #[test]
    fn scores_without_a_unit_have_no_natural_gain() {
        let (mut scores, runs) = world();
        scores.has_natural_unit = false;
        let fit = FitAdditive {
            scores,
            gain: Gain::Natural,
        };
        assert!(matches!(
            fit.fit(&[&runs[0]], 3, &NoProgress),
            Err(AdditiveError::NoNaturalUnit { .. })
        ));
    }

    #[test]
    fn scores_over_other_examples_are_refused_with_the_run() {
        let (_, runs) = world();
        let fit = FitAdditive {
            scores: scores(3, 1, vec![0.0; 3], 0.1),
            gain: Gain::Fitted,
        };
        let message = fit
            .fit(&[&runs[0]], 3, &NoProgress)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("\"first\"") && message.contains("1 test"),
            "{message}"
        );
    }

    #[test]
    fn both_come_back_bit_identical_and_are_not_mistaken_for_each_other() {
        let (scores, runs) = world();
        let gain = Gain::Fitted;
        let training: Vec<&Run> = runs.iter().collect();
        let additive = FitAdditive {
            scores: scores.clone(),
            gain,
        };
        let additive = additive
            .fit(&training, 3, &NoProgress)
            .unwrap()
            .with_name("GradDot");
        let bytes = additive.to_artifact().to_bytes().unwrap();
        let file = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(AdditiveSimulator::from_artifact(&file).unwrap(), additive);
        assert!(matches!(
            CalibratedSimulator::from_artifact(&file),
            Err(AdditiveError::Simulator { .. })
        ));
        let calibrated = FitCalibrated { scores, gain };
        let calibrated = calibrated.fit(&training, 3, &NoProgress).unwrap();
        let bytes = calibrated.to_artifact().to_bytes().unwrap();
        let file = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(
            CalibratedSimulator::from_artifact(&file).unwrap(),
            calibrated
        );
    }
}
