//! Simfluence-Linear, -Additive and -Multiplicative: simulators fitted on recorded runs.
//!
//! `L_t(j) = α_t(j) L_{t-1}(j) + β_t(j)` with `α_t(j) = Σ_i x_t(i) A[i,j]` and
//! `β_t(j) = Σ_i x_t(i) B[i,j]`, where `x_t(i)` is the exposure of training example `i` at step
//! `t`. (The paper sums over the batch; its `A` and `B` are ours over `|c_t|`.)
//!
//! | name | equation | parameters per test example |
//! | --- | --- | --- |
//! | `simfluence-linear` | as above | `2n` |
//! | `simfluence-additive` | `α ≡ 1` | `n` |
//! | `simfluence-multiplicative` | `β ≡ 0` | `n` |
//!
//! Each test example is fitted by itself, by ridge regression on the recorded steps
//! (teacher-forced), or on the simulated runs as a whole (rollout). A simulation starts from the
//! true `L_0` and then feeds on itself.
//!
//! # Reference
//! Guu, Webson, Pavlick, Dixon, Tenney and Bolukbasi (2023), "Simfluence: Modeling the Influence
//! of Individual Training Examples by Simulating Training Runs", section 3.

mod algorithm;
mod params;
pub(crate) mod runs;

pub use algorithm::{FitReport, SimfluenceError, SimfluenceSimulator};
pub use params::{Lambda, SimfluenceParams, SimfluenceValidParams};
pub use runs::{LeftOut, LeftOutReason};
pub use simfluence_fitter::{
    Identifiability, Objective, Penalty, PenaltyChoice, PenaltySearch, Shrinkage, Solver, Variant,
};
