//! Baselines: what any simulator has to beat.
//!
//! | name | equation |
//! | --- | --- |
//! | `no-learning` | `L_t(j) = L_0(j)` |
//! | `mean-run` | `L_t(j) = L̄_t(j)`, the mean over the training runs, for every `t ≥ 1` |
//!
//! Neither looks at the batches: a predicted effect of an edit that keeps the number of steps is
//! exactly zero.

mod algorithm;

pub use algorithm::{BaselineError, FitMeanRun, MeanRun, NoLearning};
pub(crate) use algorithm::{MeanCurve, check_runs};
