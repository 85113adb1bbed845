//! Fitting its two numbers on recorded runs, simulating, and the file.

use super::kernel::{ALTERNATIVES, TangentKernel};
use super::rollout::{Pace, Rollout};
use crate::memory::{Memory, SecondMoment};
use crate::simfluence::LeftOut;
use crate::simfluence::runs::select;
use rayon::prelude::*;
use simfluence_core::{
    Artifact, ArtifactError, Curriculum, Fit, Progress, Run, SimulateError, Simulator, Trajectory,
    check_simulation_input,
};

/// Name of the method.
const NAME: &str = "linearised";
/// Version of its files.
const FORMAT_VERSION: u32 = 2;
/// Gains that are tried.
const GAINS: [f64; 9] = [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0];
/// Powers of the learning rate that are tried where rates differ.
const RATE_EXPONENTS: [f64; 3] = [0.5, 0.75, 1.0];
/// How far above the highest recorded loss of a test example a simulation may go.
const HEADROOM: f64 = 1.2;
/// Nats by which the losses that a simulation starts from may differ from the base model's, in the
/// mean over the test examples.
const SAME_START: f64 = 0.05;

/// Chooses gain and power of the rate for a kernel.
#[derive(Debug, Clone)]
pub struct FitLinearised {
    /// Of the model that all runs start from, in the metric of their optimiser.
    pub kernel: TangentKernel,
}

/// How a linearised simulator was fitted.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LinearisedReport {
    /// Ids of the runs that it was fitted on.
    pub training_runs: Vec<String>,
    /// Runs that could not be used.
    pub left_out: Vec<LeftOut>,
    /// How the optimiser remembers and normalises.
    pub memory: Memory,
    /// What the kernel is multiplied with.
    pub gain: f64,
    /// The power of the learning rate.
    pub rate_exponent: f64,
    /// Mean learning rate of the runs.
    pub reference_rate: f64,
    /// Mean squared error of the simulated training runs, nats².
    pub mse: f64,
}

/// Simulates training of the linearised model; see the [module](super).
#[derive(Debug, Clone, PartialEq)]
pub struct LinearisedSimulator {
    kernel: TangentKernel,
    /// `[m]`: the highest loss that a simulation may reach.
    ceiling: Vec<f32>,
    report: LinearisedReport,
}

impl FitLinearised {
    /// How the optimiser of the runs remembers and normalises, if a linearised model can be fitted on
    /// them whatever its kernel.
    ///
    /// # Errors
    /// No usable run; runs of different optimisers, or not measured before their first step; steps
    /// without learning rates, or with none above 0.
    pub fn memory(runs: &[&Run]) -> Result<Memory, LinearisedError> {
        let (kept, _) = select(runs, false);
        let first = kept
            .first()
            .ok_or(LinearisedError::NoUsableRun { given: runs.len() })?;
        let mut is_trained = false;
        for run in &kept {
            if run.info.optimizer != first.info.optimizer {
                return Err(LinearisedError::Optimizers {
                    run: run.id.clone(),
                    first: first.id.clone(),
                });
            }
            if run.trajectory.at_step(0).is_none() {
                return Err(LinearisedError::NoStart(run.id.clone()));
            }
            for step in run.curriculum.steps() {
                is_trained |= step.learning_rate.ok_or(LinearisedError::NoLearningRate)? > 0.0;
            }
        }
        match is_trained {
            true => Ok(Memory::of(first.info.optimizer.as_ref())),
            false => Err(LinearisedError::ZeroRates),
        }
    }
}

impl Fit for FitLinearised {
    type Simulator = LinearisedSimulator;
    type Error = LinearisedError;

    /// # Errors
    /// A kernel of other examples, without squares for an optimiser with a second moment, or of
    /// another base model than the runs'; no usable run; runs of different optimisers, or not
    /// measured before their first step; steps without learning rates.
    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        progress: &dyn Progress,
    ) -> Result<LinearisedSimulator, LinearisedError> {
        self.kernel.check()?;
        let (kept, left_out) = select(runs, false);
        let first = kept
            .first()
            .ok_or(LinearisedError::NoUsableRun { given: runs.len() })?;
        let test_count = first.trajectory.test_count();
        if (self.kernel.train_count, self.kernel.test_count) != (train_count, test_count) {
            return Err(LinearisedError::Examples {
                got: (self.kernel.train_count, self.kernel.test_count),
                expected: (train_count, test_count),
            });
        }
        let memory = Self::memory(runs)?;
        if memory.second != SecondMoment::None && self.kernel.squares.is_empty() {
            return Err(LinearisedError::NoSquares);
        }
        let mut ceiling = vec![0.0_f32; test_count];
        let (mut sum, mut steps, mut rates_vary) = (0.0, 0.0, false);
        let mut some = None;
        for run in &kept {
            for step in run.curriculum.steps() {
                let rate = step.learning_rate.unwrap_or(0.0);
                sum += f64::from(rate);
                steps += 1.0;
                rates_vary |= *some.get_or_insert(rate) != rate;
            }
            for row in run.trajectory.values().chunks_exact(test_count) {
                for (ceiling, &loss) in ceiling.iter_mut().zip(row) {
                    *ceiling = ceiling.max(HEADROOM as f32 * loss);
                }
            }
        }
        let pace = |gain, rate_exponent| Pace {
            gain,
            rate_exponent,
            reference_rate: sum / steps,
        };
        for run in &kept {
            check_start(&self.kernel, run.trajectory.at_step(0).unwrap_or_default())?;
        }
        let exponents = if rates_vary {
            &RATE_EXPONENTS[..]
        } else {
            &[1.0]
        };
        let paces: Vec<Pace> = (exponents.iter())
            .flat_map(|&exponent| GAINS.map(|gain| pace(gain, exponent)))
            .collect();
        let mut simulator = LinearisedSimulator {
            kernel: self.kernel.clone(),
            ceiling,
            report: LinearisedReport {
                training_runs: kept.iter().map(|run| run.id.clone()).collect(),
                left_out,
                memory,
                gain: 1.0,
                rate_exponent: 1.0,
                reference_rate: sum / steps,
                mse: f64::INFINITY,
            },
        };
        progress.begin(
            "choosing gain and power of the rate",
            (paces.len() * kept.len()) as u64,
        );
        for pace in paces {
            let errors: Vec<f64> = (kept.par_iter())
                .map(|run| {
                    let error = simulator.error(run, pace);
                    progress.advance(1);
                    error
                })
                .collect();
            let mse = errors.iter().sum::<f64>() / errors.len() as f64;
            if mse < simulator.report.mse {
                simulator.report.mse = mse;
                (simulator.report.gain, simulator.report.rate_exponent) =
                    (pace.gain, pace.rate_exponent);
            }
        }
        progress.end();
        Ok(simulator)
    }
}

/// Fails where the losses that a simulation is to start from are not the base model's.
fn check_start(kernel: &TangentKernel, initial: &[f32]) -> Result<(), LinearisedError> {
    let (choice_of, start) = (kernel.choice_of(), kernel.start());
    let differences = kernel.losses(&choice_of, &start).zip(initial);
    let sum: f64 = differences.map(|(a, &b)| (a - f64::from(b)).abs()).sum();
    let mean = sum / initial.len() as f64;
    if mean > SAME_START {
        return Err(LinearisedError::OtherModel { mean });
    }
    Ok(())
}

/// Batches and learning rates; 0 where there is no rate.
fn steps_of(
    curriculum: &Curriculum,
) -> impl Iterator<Item = (impl Iterator<Item = (u32, f64)> + '_, f64)> + '_ {
    let steps = curriculum.steps().iter();
    steps.map(|step| (step.exposures(), step.learning_rate.map_or(0.0, f64::from)))
}

impl LinearisedSimulator {
    /// How it was fitted.
    pub fn report(&self) -> &LinearisedReport {
        &self.report
    }

    /// Losses before the first and after every step, `[(steps + 1) × m]`; of each step the batch
    /// (examples with their exposures) and the learning rate.
    pub(crate) fn roll<B: Iterator<Item = (u32, f64)>>(
        &self,
        steps: impl Iterator<Item = (B, f64)>,
        initial: &[f32],
    ) -> Vec<f32> {
        self.roll_at(self.pace(), steps, initial)
    }

    fn roll_at<B: Iterator<Item = (u32, f64)>>(
        &self,
        pace: Pace,
        steps: impl Iterator<Item = (B, f64)>,
        initial: &[f32],
    ) -> Vec<f32> {
        let mut rollout = Rollout::new(&self.kernel, self.report.memory, pace);
        let mut losses = initial.to_vec();
        for (batch, rate) in steps {
            rollout.train(batch, rate);
            let after = rollout.losses().zip(&self.ceiling);
            losses.extend(after.map(|(loss, &ceiling)| match loss as f32 {
                loss if loss > ceiling => ceiling,
                loss => loss,
            }));
        }
        losses
    }

    /// Whether these losses are those of the base model that the kernel is of.
    pub(crate) fn starts_at(&self, initial: &[f64]) -> bool {
        let initial: Vec<f32> = initial.iter().map(|&l| l as f32).collect();
        self.check_start(&initial).is_ok()
    }

    /// Fails unless they are.
    pub(crate) fn check_start(&self, initial: &[f32]) -> Result<(), LinearisedError> {
        check_start(&self.kernel, initial)
    }

    fn pace(&self) -> Pace {
        Pace {
            gain: self.report.gain,
            rate_exponent: self.report.rate_exponent,
            reference_rate: self.report.reference_rate,
        }
    }

    /// Mean squared error over what was measured of a run after its first step.
    fn error(&self, run: &Run, pace: Pace) -> f64 {
        let m = self.kernel.test_count;
        let Some(initial) = run.trajectory.at_step(0) else {
            return 0.0;
        };
        let losses = self.roll_at(pace, steps_of(&run.curriculum), initial);
        let (mut sum, mut count) = (0.0, 0.0);
        let measured = run.trajectory.values().chunks_exact(m);
        for (&step, real) in run.trajectory.steps().iter().zip(measured).skip(1) {
            let simulated = &losses[step as usize * m..][..m];
            for (a, b) in real
                .iter()
                .zip(simulated)
                .filter(|(real, _)| real.is_finite())
            {
                sum += f64::from(a - b).powi(2);
                count += 1.0;
            }
        }
        sum / f64::max(count, 1.0)
    }

    /// The file form, with the keys of its axes.
    ///
    /// # Errors
    /// A number of keys other than the simulator's examples.
    pub fn to_artifact(
        &self,
        train_keys: &[String],
        test_keys: &[String],
    ) -> Result<Artifact, LinearisedError> {
        let (got, expected) = (
            (train_keys.len(), test_keys.len()),
            (self.kernel.train_count, self.kernel.test_count),
        );
        if got != expected {
            return Err(LinearisedError::Examples { got, expected });
        }
        let mut artifact = Artifact::new("simulator", FORMAT_VERSION);
        artifact
            .metadata
            .insert("simulator".to_owned(), NAME.to_owned());
        artifact.set_json("train_keys", &train_keys);
        artifact.set_json("test_keys", &test_keys);
        self.store(&mut artifact, "");
        Ok(artifact)
    }

    /// Adds it to a file, with every entry's name after `prefix`.
    pub(crate) fn store(&self, artifact: &mut Artifact, prefix: &str) {
        artifact.set_json(&format!("{prefix}provenance"), &self.report);
        self.kernel.store(artifact, prefix);
        let ceiling = simfluence_core::Tensor::F32 {
            shape: vec![self.ceiling.len()],
            values: self.ceiling.clone(),
        };
        artifact.tensors.insert(format!("{prefix}ceiling"), ceiling);
    }

    /// Reads what [`Self::store`] added.
    pub(crate) fn read(
        artifact: &Artifact,
        prefix: &str,
        train_count: usize,
        test_count: usize,
    ) -> Result<Self, LinearisedError> {
        let ceiling = artifact.f32s(&format!("{prefix}ceiling"), &[test_count])?;
        Ok(Self {
            kernel: TangentKernel::read(artifact, prefix, train_count, test_count)?,
            ceiling: ceiling.to_vec(),
            report: artifact.json(&format!("{prefix}provenance"))?,
        })
    }

    /// Reads the file form back.
    ///
    /// # Errors
    /// Another kind of file, an absent or damaged part.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, LinearisedError> {
        artifact.expect("simulator", FORMAT_VERSION)?;
        let train_keys: Vec<String> = artifact.json("train_keys")?;
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        Self::read(artifact, "", train_keys.len(), test_keys.len())
    }
}

impl Simulator for LinearisedSimulator {
    fn name(&self) -> &str {
        NAME
    }

    fn train_count(&self) -> usize {
        self.kernel.train_count
    }

    fn test_count(&self) -> usize {
        self.kernel.test_count
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, self.train_count(), self.test_count())?;
        let mut steps = curriculum.steps().iter();
        if let Some(step) = steps.position(|step| step.learning_rate.is_none()) {
            return Err(SimulateError::NoLearningRate {
                step: step as u32 + 1,
                method: NAME.to_owned(),
            });
        }
        let other = |e: &dyn std::fmt::Display| SimulateError::Other(e.to_string());
        self.check_start(initial).map_err(|e| other(&e))?;
        let losses = self.roll(steps_of(curriculum), initial);
        let steps = (0..=curriculum.len() as u32).collect();
        Trajectory::new(steps, self.test_count(), losses).map_err(|e| other(&e))
    }
}

/// Why a linearised simulator cannot be fitted, used or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LinearisedError {
    /// A kernel of other examples.
    #[error(
        "{} training and {} test examples where there are {} and {}; the kernel is of another run set",
        got.0, got.1, expected.0, expected.1
    )]
    Examples {
        /// Training and test examples given.
        got: (usize, usize),
        /// Those that there are.
        expected: (usize, usize),
    },
    /// Parts of a kernel that do not fit each other.
    #[error("the kernel's {name} has {got} entries where it must have {expected}")]
    Size {
        /// The part.
        name: &'static str,
        /// Its entries.
        got: usize,
        /// What it must have.
        expected: usize,
    },
    /// Answers that are not made of what there is.
    #[error("the kernel's answers or their paths point at what it does not have, or are empty")]
    Path,
    /// A kernel with NaN or infinite values.
    #[error("the kernel has values that are not finite; the base model's gradients overflow")]
    NotFinite,
    /// A kernel made for SGD.
    #[error(
        "the runs' optimiser divides by its second moment, and the kernel has no squares; make it for this optimiser"
    )]
    NoSquares,
    /// No run to fit on.
    #[error(
        "none of the {given} runs given can be fitted on: they diverged or have no measured step"
    )]
    NoUsableRun {
        /// Number of runs given.
        given: usize,
    },
    /// Runs of different optimisers.
    #[error(
        "run {run} was trained by another optimiser than run {first}; the kernel is in the metric of one: choose runs with --train-runs"
    )]
    Optimizers {
        /// The run.
        run: String,
        /// The first of them.
        first: String,
    },
    /// A run that was not measured before its first step.
    #[error("run {0} was not measured before its first step, where the linearised model starts")]
    NoStart(String),
    /// A step without a learning rate.
    #[error("a run has steps without a learning rate, which the linearised model is trained with")]
    NoLearningRate,
    /// Runs that train nothing.
    #[error("every learning rate of the runs is 0")]
    ZeroRates,
    /// Losses that are not those of the kernel's model.
    #[error(
        "the losses before the first step differ from those of the linearised model by {mean:.3} nats in the mean; it can only start where its base model does"
    )]
    OtherModel {
        /// Mean difference over the test examples, nats.
        mean: f64,
    },
    /// An example whose targets are not one answer.
    #[error(
        "the linearised model is for one answer at the end of a text, or a class, and {side} example {id} has loss elsewhere"
    )]
    NoAnswer {
        /// `training` or `test`.
        side: &'static str,
        /// Id of the example.
        id: usize,
    },
    /// Too many different answers, or only one.
    #[error(
        "the answers have {got} alternatives in all (different tokens after each beginning of an answer); the linearised model is for at least two answers and at most {ALTERNATIVES} alternatives"
    )]
    Alternatives {
        /// Alternatives of all choices.
        got: usize,
    },
    /// Gradients that cannot be computed.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Gradients(#[from] simfluence_models::GradientError),
    /// A file that is not one of these.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}
