//! Fitting of `L_t(j) = α_t(j) L_{t-1}(j) + β_t(j)` to recorded runs, in terms of arrays.
//!
//! `α_t(j) = Σ_i x_t(i) A[i,j]`, `β_t(j) = Σ_i x_t(i) B[i,j]` with the exposures `x_t(i)`. Each
//! test example `j` has its own parameters; what depends on the curricula alone is shared by all.
//!
//! - [`Problem`]: recorded runs as arrays; [`Exposures`]: the sparse `x_t(i)`.
//! - [`fit()`]: teacher-forced ridge regression ([`Solver::Exact`], [`Solver::Cg`],
//!   [`Solver::Lbfgs`]) or the anchored rollout objective.
//! - [`choose_penalty`]: the penalties by leave-run-out rollouts.
//! - [`Identifiability`]: what the runs cannot tell.
//! - [`Parameters::simulate`]: the simulation that fitted parameters define.

mod aligned;
mod argmin_solvers;
mod dense;
mod error;
mod exact;
mod exposures;
mod fit;
mod gradients;
mod identifiability;
mod lanes;
mod parameters;
mod path;
mod preconditioner;
mod problem;
mod rollout;
mod selection;
mod teacher_forced;
#[cfg(test)]
mod test_support;
mod whitening;

pub use error::FitError;
pub use exposures::Exposures;
pub use fit::{
    FitSettings, Fitted, MAX_ITERATIONS, Objective, ROLLOUT_TOLERANCE, Solver,
    TEACHER_FORCED_TOLERANCE, fit,
};
pub use identifiability::{Identifiability, RARELY};
pub use lanes::LANES;
pub use parameters::Parameters;
pub use problem::{Penalty, Problem, Sequence, Shrinkage, Variant};
pub use selection::{PenaltyChoice, PenaltyScore, PenaltySearch, assign_folds, choose_penalty};
