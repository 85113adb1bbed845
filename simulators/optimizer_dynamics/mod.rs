//! Optimiser dynamics: the losses driven by what the optimiser really makes of the batches.
//!
//! A step of an optimiser with first moment `M` and preconditioner `P` moves the parameters by
//! `−η_t P_t M_t`, so that to first order `ΔL_j = −η_t ⟨∇L_j, P_t M_t⟩`. With the gradients of a
//! dataset `c` in a common direction `u_c`, as large as its examples are badly predicted,
//!
//! | | equation | stands for |
//! | --- | --- | --- |
//! | residual | `r_j = 1 − e^(−L_j)`, `z = V (r − μ)` | the gradient of a cross-entropy is proportional to it; `z`: its first components over the test examples |
//! | push | `g_c = n_c(t) ρ_c`, `ρ_c = clip(w_c · [1, z], 0, 1)` | share of the batch times the mean residual of the dataset, read out from the state |
//! | memory | `m_c^β = EMA_β(g_c) / (1 − β^t)` | the first moment, for `β` = 0, the optimiser's own, and twice as far |
//! | normalisation | `s_c = (v̂_c + 0.05)^(−p)`, `v_c = EMA_β₂(g_c²)` | the optimiser's own second moment; `p` below ½ because datasets share coordinates; 1 for SGD |
//! | pushes | `F = (η_t/η_ref)^q m_c^β s_c` | over datasets and memories; `q` below 1 because steps at high rates overshoot |
//! | increment | `ΔL_j = [F, F ⊗ z] · a_j + (F · b_j) L_j` | `⟨∇L_j, u_c⟩` depends on the state: linear in `z` and in the own loss |
//! | ensemble | `Σ_l w_l` closed loop `l` | the loop above, one whose `z` is of `σ (1 − e^(−L/σ))` with `σ` = 2.5 nats, which tells large losses apart, and one without `z` and own loss; `w` from left-out runs |
//! | linearised | `+ w` [linearised model](crate::linearised) | one more member where it is given: it knows the base model's gradients, and of the recordings two numbers only |
//! | second fit | `ΔL + γ (L − S)` from the states `S` of the simulator's own rollouts | errors fade instead of growing |
//! | examples | `ΔL_j += (η_t/η_ref)^q Σ_k V_kj Σ_c s_c EMA_β(ρ_c Σ_(i in c) x_t(i) d_ik)` | what an example does beside its dataset, shrunk to nothing, along `k` directions shared by all test examples |
//! | correction | `δ_j(u_t)`, a Gaussian process over exposures so far and the clock | what the loops miss of left-out runs, alike where curricula are alike |
//! | stacking | `ω (closed loops + δ) + (1 − ω) (mean run + δ')` | the mean run, corrected in the same way, errs elsewhere |
//!
//! `a_j` and `b_j` come from one ridge regression per test example; its penalty, `p`, `q`,
//! `γ`, the number of components and how far single examples are shrunk from simulated left-out
//! training runs. Evaluations may be missing: a regression row spans the gap
//! between two measurements of a test example, and the state in between is filled in by the fit
//! before. Shapes: `C` datasets, `k` components, `m` test examples; `a` is `[3C(1+k) × m]`, `b`
//! `[3C × m]`. Losses in nats per target token.

mod algorithm;
mod bands;
mod choice;
mod correction;
mod datasets;
mod ensemble;
mod examples;
mod file;
mod filling;
mod increments;
mod inputs;
mod mean_change;
mod model;
mod next_runs;
mod params;
mod path;
mod pushes;
mod readout;
mod space;

pub use crate::memory::{Memory, SecondMoment};
pub use algorithm::{
    LinearisedMember, OptimizerDynamicsError, OptimizerDynamicsReport, OptimizerDynamicsSimulator,
};
pub use bands::Support;
pub use choice::Candidate;
pub use correction::CorrectionChoice;
pub use datasets::LearnedDatasets;
pub use ensemble::ExampleChoice;
pub use model::State;
pub use next_runs::{NextRun, NextRuns, NextRunsError, NextRunsSettings};
pub use params::{Ingredient, OptimizerDynamicsParams, OptimizerDynamicsValidParams};

#[cfg(test)]
mod member_tests;
#[cfg(test)]
mod tests;
