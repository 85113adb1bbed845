//! TracIn-Ideal: the replayed run's own gradients at every step.
//!
//! `L_t(j) = L_{t-1}(j) − η_t Σ_i x_t(i) ⟨g_i, g_j⟩` with the gradients at the run's own parameters
//! `θ_{t-1}`: what TracIn-CP approximates by checkpoints of another run. Optimiser-aware it is
//! `L_t(j) = L_{t-1}(j) + ⟨θ_t − θ_{t-1}, g_j⟩`, the first-order change along the step that was
//! really made. It knows only the runs that were replayed: an oracle to compare with, no predictor.
//!
//! # Reference
//! Pruthi, Liu, Kale & Sundararajan 2020, section 3.1.

use simfluence_core::{Artifact, ArtifactError, Curriculum, SimulateError, Simulator, Tensor};
use simfluence_core::{Trajectory, check_simulation_input};

/// Version of the file of a replay.
const FORMAT_VERSION: u32 = 1;

/// What first-order changes a run would have made, step by step.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Id of the run.
    pub run: String,
    /// Predicted decrease of each test loss by each step, `[steps × test]`, row-major.
    pub decreases: Vec<f32>,
}

/// Replays of several runs, as kept in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Replays {
    /// Name of the method: `tracin-ideal` or `tracin-ideal-preconditioned`.
    pub method: String,
    /// Keys of the test examples.
    pub test_keys: Vec<String>,
    /// The runs.
    pub replays: Vec<Replay>,
}

impl Replays {
    /// The file form.
    pub fn to_artifact(&self) -> Artifact {
        let mut artifact = Artifact::new("replays", FORMAT_VERSION);
        artifact
            .metadata
            .insert("method".into(), self.method.clone());
        artifact.metadata.insert("axes".into(), "step, test".into());
        artifact.metadata.insert(
            "sign".into(),
            "larger = the step lowers the test example's loss more".into(),
        );
        artifact.metadata.insert(
            "unit".into(),
            "nats per target token, by the step as it was made".into(),
        );
        artifact.set_json("test_keys", &self.test_keys);
        let tests = self.test_keys.len();
        for replay in &self.replays {
            let tensor = Tensor::F32 {
                shape: vec![replay.decreases.len() / tests.max(1), tests],
                values: replay.decreases.clone(),
            };
            artifact.tensors.insert(replay.run.clone(), tensor);
        }
        artifact
    }

    /// Reads the artifact back.
    ///
    /// # Errors
    /// Another kind of file, absent parts, arrays of another shape.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self, ArtifactError> {
        artifact.expect("replays", FORMAT_VERSION)?;
        let test_keys: Vec<String> = artifact.json("test_keys")?;
        let mut replays = Vec::new();
        for (run, tensor) in &artifact.tensors {
            let shape = [
                tensor.shape().first().copied().unwrap_or(0),
                test_keys.len(),
            ];
            replays.push(Replay {
                run: run.clone(),
                decreases: artifact.f32s(run, &shape)?.to_vec(),
            });
        }
        Ok(Self {
            method: artifact.text("method")?.to_owned(),
            test_keys,
            replays,
        })
    }
}

/// The simulator that answers for replayed runs.
#[derive(Debug, Clone)]
pub struct TracinIdeal {
    name: String,
    train_count: usize,
    test_count: usize,
    runs: Vec<(Curriculum, Vec<f32>)>,
}

impl TracinIdeal {
    /// A simulator of these runs: their curricula, and the decrease of each test loss by each
    /// step, `[steps × test]`.
    ///
    /// # Errors
    /// Decreases of another number than steps × test examples, with the position of the run.
    pub fn new(
        name: &str,
        train_count: usize,
        test_count: usize,
        runs: Vec<(Curriculum, Vec<f32>)>,
    ) -> Result<Self, IdealError> {
        for (run, (curriculum, decreases)) in runs.iter().enumerate() {
            let expected = curriculum.len() * test_count;
            if decreases.len() != expected {
                return Err(IdealError {
                    run,
                    expected,
                    got: decreases.len(),
                });
            }
        }
        Ok(Self {
            name: name.to_owned(),
            train_count,
            test_count,
            runs,
        })
    }
}

impl Simulator for TracinIdeal {
    fn name(&self) -> &str {
        &self.name
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
        let known = self.runs.iter().find(|(own, _)| own == curriculum);
        let (_, decreases) = known.ok_or_else(|| {
            SimulateError::Other(format!(
                "{} knows only the runs that were replayed, and this curriculum is of none of them",
                self.name
            ))
        })?;
        let mut losses: Vec<f64> = initial.iter().map(|&l| f64::from(l)).collect();
        let mut values = initial.to_vec();
        for row in decreases.chunks_exact(self.test_count.max(1)) {
            for (loss, &decrease) in losses.iter_mut().zip(row) {
                *loss -= f64::from(decrease);
                values.push(*loss as f32);
            }
        }
        let steps = (0..=curriculum.len() as u32).collect();
        Trajectory::new(steps, self.test_count, values)
            .map_err(|source| SimulateError::Other(source.to_string()))
    }
}

/// Decreases of another number than steps × test examples.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("replayed run {run}: {got} decreases, expected {expected} (steps × test examples)")]
pub struct IdealError {
    /// Position of the run.
    pub run: usize,
    /// Steps × test examples.
    pub expected: usize,
    /// What was given.
    pub got: usize,
}

#[cfg(feature = "torch")]
mod replaying {
    use simfluence_core::NoProgress;
    use simfluence_models::{
        GradientError, GradientSettings, Model, Wanted, products_with_vectors, weighted_gradient,
    };
    use tch::Tensor;

    /// The decreases of the test losses by one step, to first order, `[test]` each: by
    /// `rate` along the gradient of the batch, and along the step that was really made.
    #[derive(Debug, Clone, PartialEq)]
    pub struct StepDecreases {
        /// `η_t ⟨G_t, g_j⟩`.
        pub plain: Vec<f32>,
        /// `−⟨θ_t − θ_{t-1}, g_j⟩`.
        pub preconditioned: Vec<f32>,
    }

    /// What the step from `model` (at `θ_{t-1}`) to `after` (`θ_t`, flat) lowers the test losses
    /// by; `batch` are its examples and `shares` their shares of its loss.
    ///
    /// # Errors
    /// A test example that the model cannot read.
    pub fn step_decreases<M: Model>(
        model: &M,
        after: &Tensor,
        batch: &[&M::Example],
        shares: &[f32],
        rate: f64,
        test: &[M::Example],
        settings: &GradientSettings,
    ) -> Result<StepDecreases, GradientError> {
        let shares = Tensor::from_slice(shares)
            .to_device(model.device())
            .to_kind(model.kind());
        let gradient = weighted_gradient(model, &model.batch(batch), &shares) * rate;
        let step = model.flat() - after;
        let vectors = Tensor::stack(&[gradient, step], 0);
        let wanted = Wanted::default();
        let found = products_with_vectors(model, test, &vectors, wanted, settings, &NoProgress)?;
        let column = |k: usize| found.products.iter().skip(k).step_by(2).copied().collect();
        Ok(StepDecreases {
            plain: column(0),
            preconditioned: column(1),
        })
    }
}

#[cfg(feature = "torch")]
pub use replaying::{StepDecreases, step_decreases};

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Step;

    fn curriculum(first: u32) -> Curriculum {
        let steps = vec![
            Step::new(vec![first], Some(0.1)),
            Step::new(vec![1], Some(0.2)),
        ];
        Curriculum::new(steps, 3).unwrap()
    }

    #[test]
    fn decreases_add_up_along_the_replayed_run_and_others_are_refused() {
        let runs = vec![(curriculum(0), vec![0.5, -0.25, 0.5, 0.0])];
        let ideal = TracinIdeal::new("tracin-ideal", 3, 2, runs).unwrap();
        let simulated = ideal.simulate(&curriculum(0), &[3.0, 2.0]).unwrap();
        assert_eq!(simulated.values(), [3.0, 2.0, 2.5, 2.25, 2.0, 2.25]);
        let error = ideal.simulate(&curriculum(2), &[3.0, 2.0]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("only the runs that were replayed")
        );
    }

    #[test]
    fn replays_come_back_bit_identical_and_odd_ones_are_refused() {
        let replays = Replays {
            method: "tracin-ideal".into(),
            test_keys: vec!["x".into(), "y".into()],
            replays: vec![Replay {
                run: "held-out-000".into(),
                decreases: vec![0.5, -0.25, 0.5, 1e-20],
            }],
        };
        let bytes = replays.to_artifact().to_bytes().unwrap();
        let back = Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(Replays::from_artifact(&back).unwrap(), replays);
        let error = TracinIdeal::new("x", 3, 2, vec![(curriculum(0), vec![0.0; 3])]);
        assert_eq!(error.unwrap_err().expected, 4);
    }

    /// One step of gradient descent: both variants are its first-order change.
    #[cfg(feature = "torch")]
    #[test]
    fn ref_a_small_step_lowers_the_losses_by_the_decreases() {
        use crate::attribution::test_support::{examples, losses_after_one_step, model, weights};
        use simfluence_models::{GradientSettings, Model};
        let (train, test) = (examples(4, 0), examples(5, 2));
        let rate = 2e-5_f32;
        let model = model(3);
        let gradient = {
            let shares = tch::Tensor::from_slice(&[1.0_f32]);
            simfluence_models::weighted_gradient(&model, &model.batch(&[&train[2]]), &shares)
        };
        let after = model.flat() - gradient * f64::from(rate);
        let decreases = step_decreases(
            &model,
            &after,
            &[&train[2]],
            &[1.0],
            f64::from(rate),
            &test,
            &GradientSettings::default(),
        )
        .unwrap();
        let (before, after) = losses_after_one_step(&weights(3), &train, &test, 2, rate);
        let largest = decreases.plain.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
        for j in 0..5 {
            let real = before[j] - after[j];
            assert!((decreases.plain[j] - real).abs() < 0.03 * largest);
            assert!((decreases.plain[j] - decreases.preconditioned[j]).abs() < 0.01 * largest);
        }
    }
}
