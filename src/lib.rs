//! A training-run simulator engine.
//!
//! Record real fine-tuning runs, learn from them how each training example moves the loss of each
//! test example, and answer *"what if I had trained on z1, then z2, …, then zn?"* without
//! training. This crate re-exports the libraries that the `simfluence` program is made of:
//!
//! | module | what |
//! | --- | --- |
//! | [`core`] | curricula, trajectories, runs, scores, designs, edits, and the traits |
//! | [`recorder`] | run sets on disk |
//! | [`fitter`] | objectives and solvers |
//! | [`models`] | tasks, and with the feature `torch` models and fine-tuning |
//! | [`simulators`] | the simulators and attribution methods, one module each |
//! | [`evaluation`] | splits, metrics, comparisons, pictures |
//! | [`program`] | the program and its subcommands |

pub use simfluence_core as core;
pub use simfluence_evaluation as evaluation;
pub use simfluence_fitter as fitter;
pub use simfluence_models as models;
pub use simfluence_recorder as recorder;
pub use simfluence_simulators as simulators;

mod attribute;
mod check;
mod cli;
mod compare;
mod cost;
mod edits;
mod fit;
mod import;
mod kept_models;
mod learning_curve;
mod linearise;
mod merge;
mod next_runs;
mod plan;
mod preview;
pub mod program;
mod progress;
mod record;
mod report;
mod reproduce;
mod runs;
mod save_model;
mod simulate;
#[cfg(feature = "torch")]
mod train;
mod truth;
mod whatif;

#[cfg(feature = "torch")]
use program::message;
#[cfg(not(feature = "torch"))]
use program::needs_torch;
