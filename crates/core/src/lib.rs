//! The vocabulary of simfluence, without files and without LibTorch.
//!
//! A *run* is one recorded fine-tuning: a [`Curriculum`] (what was trained, step by step) and a
//! [`Trajectory`] (the loss of every test example after those steps). A [`Simulator`] maps a
//! curriculum and the losses before the first step to a trajectory. [`Fit`] learns a simulator
//! from recorded runs, [`Retrain`] is the real thing that a simulator stands in for.
//!
//! | word | meaning |
//! | --- | --- |
//! | training example `i`, `0..n` | what a batch is made of; belongs to a *dataset* |
//! | test example `j`, `0..m` | whose loss is followed |
//! | step `t`, `1..=T` | one optimiser update on the batch `c_t`, with learning rate `η_t` |
//! | `L_t(j)` | loss of test example `j` after step `t`, in nats per target token; `L_0` is before any step |
//! | exposure `x_t(i)` | the share of step `t`'s loss that example `i` has; sums to 1 over a batch |

mod artifact;
mod curriculum;
pub mod design;
pub mod edit;
mod example;
mod optimizer;
mod progress;
mod run;
mod scores;
mod selection;
mod simulator;
mod token_scores;
mod trajectory;

pub use artifact::{Artifact, ArtifactError, Tensor};
pub use curriculum::{Curriculum, CurriculumError, Step};
pub use example::{Example, ExampleError, Examples};
pub use optimizer::{Optimizer, Schedule, ScheduleKind};
pub use progress::{NoProgress, Progress};
pub use run::{Edit, EditKind, Run, RunDesign, RunInfo, RunStatus, Split};
pub use scores::{Scores, ScoresError};
pub use selection::{Selection, SelectionError};
pub use simulator::{
    Banded, BoxError, Fit, Retrain, SimulateError, Simulator, check_simulation_input,
};
pub use token_scores::{TargetToken, TokenScores, TokenScoresError};
pub use trajectory::{Trajectory, TrajectoryError};
