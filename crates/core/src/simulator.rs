//! The traits that everything meets at.

use crate::{Curriculum, Progress, Run, Trajectory};

/// Any error, where a trait cannot know which.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Curriculum + `L_0` → trajectory, without training.
pub trait Simulator: Send + Sync {
    /// Name of the method, as it stands in tables.
    fn name(&self) -> &str;

    /// Number of training examples `n` it knows.
    fn train_count(&self) -> usize;

    /// Number of test examples `m` it predicts.
    fn test_count(&self) -> usize;

    /// The loss of every test example at every step `0..=T` of `curriculum`, from the true
    /// losses `initial` (`[m]`, nats per target token) before the first step.
    ///
    /// # Errors
    /// A training id that the simulator does not know; `initial` of another length or not
    /// finite; something the method needs that the curriculum lacks.
    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError>;

    /// As [`Simulator::simulate`] for several curricula from the same `initial`, such as many
    /// edits of one run; methods that can share work between them do.
    ///
    /// # Errors
    /// As [`Simulator::simulate`], of the first curriculum that has one.
    fn simulate_many(
        &self,
        curricula: &[&Curriculum],
        initial: &[f32],
    ) -> Result<Vec<Trajectory>, SimulateError> {
        let each = curricula.iter();
        each.map(|curriculum| self.simulate(curriculum, initial))
            .collect()
    }

    /// As [`Simulator::simulate`], with bands that hold a share `level` (above 0, below 1) of the
    /// real losses; `None` where the method has none.
    ///
    /// # Errors
    /// As [`Simulator::simulate`]; a level out of range.
    fn simulate_banded(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
        level: f64,
    ) -> Result<Option<Banded>, SimulateError> {
        let _ = (curriculum, initial, level);
        Ok(None)
    }
}

/// A simulation with its bands.
#[derive(Debug, Clone, PartialEq)]
pub struct Banded {
    /// The simulation.
    pub simulated: Trajectory,
    /// Lower ends of the bands, at the same steps; never below 0.
    pub low: Trajectory,
    /// Upper ends.
    pub high: Trajectory,
    /// The share of real losses that the bands are made to hold, such as 0.9.
    pub level: f64,
    /// How far the curriculum lies from what was recorded, at its farthest step: its uncertainty
    /// over that which 95 % of recorded runs stay below when they are left out. Above 1 the
    /// recordings do not support the answer, and bands hold less than they promise.
    pub distance: f64,
}

/// Learns a simulator from recorded runs.
pub trait Fit {
    /// What comes out.
    type Simulator: Simulator;
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Fits on `runs`, all over the same `train_count` training and test examples.
    ///
    /// # Errors
    /// No usable run, runs that disagree, numerical failure; each method says which.
    fn fit(
        &self,
        runs: &[&Run],
        train_count: usize,
        progress: &dyn Progress,
    ) -> Result<Self::Simulator, Self::Error>;
}

/// Really trains. Models implement it; tests fake it.
pub trait Retrain {
    /// Fine-tunes on `curriculum` from the base model with `seed`, and measures every test
    /// example's loss before the first and after every step.
    ///
    /// # Errors
    /// Whatever training can fail with.
    fn retrain(
        &self,
        curriculum: &Curriculum,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<Trajectory, BoxError>;
}

/// Why a curriculum cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimulateError {
    /// A training id that the simulator does not know.
    #[error(
        "step {step}: training id {id} is unknown to the simulator; it knows {train_count} training examples"
    )]
    UnknownExample {
        /// Step, counted from 1.
        step: u32,
        /// The id.
        id: u32,
        /// Number of training examples it knows.
        train_count: usize,
    },
    /// `L_0` of another length.
    #[error("{got} initial losses for a simulator of {expected} test examples")]
    InitialCount {
        /// Test examples of the simulator.
        expected: usize,
        /// Losses given.
        got: usize,
    },
    /// `L_0` that is NaN or infinite.
    #[error(
        "the initial loss of test example {test} is {got}; a simulation needs finite losses to start from"
    )]
    InitialNotFinite {
        /// Id of the test example.
        test: usize,
        /// The loss.
        got: f32,
    },
    /// The method needs learning rates.
    #[error("step {step} has no learning rate, and {method} needs one for every step")]
    NoLearningRate {
        /// Step, counted from 1.
        step: u32,
        /// Name of the method.
        method: String,
    },
    /// Anything else a method cannot do.
    #[error("{0}")]
    Other(String),
}

/// Checks that every simulator makes before it simulates.
///
/// # Errors
/// See [`SimulateError`].
pub fn check_simulation_input(
    curriculum: &Curriculum,
    initial: &[f32],
    train_count: usize,
    test_count: usize,
) -> Result<(), SimulateError> {
    if initial.len() != test_count {
        return Err(SimulateError::InitialCount {
            expected: test_count,
            got: initial.len(),
        });
    }
    if let Some(test) = initial.iter().position(|l| !l.is_finite()) {
        return Err(SimulateError::InitialNotFinite {
            test,
            got: initial[test],
        });
    }
    for (index, step) in curriculum.steps().iter().enumerate() {
        if let Some(&id) = step.batch.iter().find(|&&id| id as usize >= train_count) {
            return Err(SimulateError::UnknownExample {
                step: index as u32 + 1,
                id,
                train_count,
            });
        }
    }
    Ok(())
}
