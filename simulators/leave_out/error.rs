//! Why there is no leave-out truth.

use simfluence_core::edit::EditError;
use simfluence_core::{ArtifactError, BoxError, ScoresError};

/// Why there is no leave-out truth.
#[derive(Debug, thiserror::Error)]
pub enum LeaveOutError {
    /// Nothing is to be left out.
    #[error("there is no unit to leave out")]
    NoUnits,
    /// A unit with an example that is not there.
    #[error(
        "unit {unit:?}: training id {id} is out of range; there are {train_count} training examples"
    )]
    UnknownExample {
        /// Name of the unit.
        unit: String,
        /// The id.
        id: u32,
        /// Number of training examples.
        train_count: usize,
    },
    /// What is trained cannot be made from the reference run.
    #[error("{what}: {source}")]
    Edit {
        /// What was to be trained.
        what: String,
        /// What the edit says.
        source: EditError,
    },
    /// A training failed.
    #[error("{what}, seed {seed}: {source}")]
    Training {
        /// What was trained.
        what: String,
        /// Its seed.
        seed: u64,
        /// What the model says.
        source: BoxError,
    },
    /// A result cannot be kept or read back.
    #[error("{what}, seed {seed}: the result of the training: {source}")]
    Cache {
        /// What was trained.
        what: String,
        /// Its seed.
        seed: u64,
        /// What the cache says.
        source: BoxError,
    },
    /// The threads cannot be started.
    #[error("cannot start the threads that train: {source}")]
    Threads {
        /// What the system says.
        source: rayon::ThreadPoolBuildError,
    },
    /// A training did not measure what is needed.
    #[error("{what}, seed {seed}: not every test loss was measured at step {step}")]
    NotMeasured {
        /// What was trained.
        what: String,
        /// Its seed.
        seed: u64,
        /// The step.
        step: u32,
    },
    /// Trainings that measured different test examples.
    #[error("{what}, seed {seed}: losses of {got} test examples, of {expected} in the others")]
    TestCount {
        /// What was trained.
        what: String,
        /// Its seed.
        seed: u64,
        /// Test examples of the first training.
        expected: usize,
        /// Test examples of this one.
        got: usize,
    },
    /// A loss that is NaN or infinite.
    #[error(
        "{what}, seed {seed}: the training diverged (the loss of test example {test} is {got}), so that there is no effect to speak of; take a reference run with a lower learning rate, or leave this unit out of the units"
    )]
    Diverged {
        /// What was trained.
        what: String,
        /// Its seed.
        seed: u64,
        /// Id of the test example.
        test: usize,
        /// The loss.
        got: f32,
    },
    /// A step without a learning rate.
    #[error(
        "step {step} of the reference run has no learning rate, which predictions for subsets need"
    )]
    NoLearningRate {
        /// Step, counted from 1.
        step: u32,
    },
    /// Subsets that keep nothing or everything.
    #[error(
        "a subset would keep {keep} of the {trained} examples of the run (fraction {fraction}); it must keep at least one and leave at least one out"
    )]
    SubsetSize {
        /// The share.
        fraction: f64,
        /// Examples that it keeps.
        keep: usize,
        /// Examples that the run trained on.
        trained: usize,
    },
    /// Examples that are in no unit, so that they have no score.
    #[error(
        "{count} of {train_count} training examples are in no unit that was left out (the first is {first:?}), so they have no score; scores need units that cover every training example"
    )]
    Uncovered {
        /// Number of examples without a unit.
        count: usize,
        /// Number of training examples.
        train_count: usize,
        /// Key of the first.
        first: String,
    },
    /// An example in two units, so that it has two scores.
    #[error(
        "training example {key:?} is in the units {first:?} and {second:?}; scores need units that do not overlap"
    )]
    Overlap {
        /// Key of the example.
        key: String,
        /// One unit.
        first: String,
        /// The other.
        second: String,
    },
    /// The scores.
    #[error(transparent)]
    Scores(#[from] ScoresError),
    /// The file form.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}
