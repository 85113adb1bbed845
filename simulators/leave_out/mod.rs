//! Leave-out truth: what really happens when a part of the training data is left out.
//!
//! For a unit `Z` (a dataset, one example, any set of training examples) and a reference
//! curriculum of `T` steps, the model is really trained again from the same base, once on
//! everything (`θ_0`) and once without `Z` (`θ_{−Z}`):
//!
//! ```text
//! effect(Z, j) = L_j(θ_{−Z}) − L_j(θ_0)           larger = training on Z lowers the loss of j more
//! E(i, j)      = effect(Z, j) / x̄_Z   for i ∈ Z    x̄_Z = Σ_{i ∈ Z} x̄_i, total exposure of the unit
//! ```
//!
//! Step count, batch sizes and learning rates stay; the places that `Z` leaves are filled from the
//! other examples of the run ([`Fill::Resample`](simfluence_core::edit::Fill)), so that an effect
//! is relative to what took the place of `Z`.
//!
//! **Seeds.** A fine-tuning without dropout is deterministic, so a seed has to vary what chance
//! decides in practice: every seed, the first one too, spreads the examples of the run over its
//! steps in a new random order (the same multiset, learning rates stay with their step) and draws
//! its own replacements. Within a seed both trainings share the order, so that only the unit
//! differs. All seeds are therefore draws from one distribution, and the correlation between them
//! is an honest ceiling for whatever predicts the truth. The recorded order itself is not one of
//! them: a run that was recorded in segments is mixed here. (Where batch sizes or weights differ
//! between steps, the exposure of an example depends a little on its place; `x̄_i` is always that of
//! the reference run as it was recorded.)
//!
//! **Random subsets.** The same machinery trains on random parts of the examples, for the linear
//! datamodeling score: [`LeaveOut::subsets`].
//!
//! **Interrupted work goes on.** Every finished training is given to a [`Cache`] at once, under a
//! [key](Retraining::key) that covers everything that decides its result.
//!
//! # Reference
//! Koh & Liang 2017, section 4.1 (retraining as the truth); Isonuma & Titov 2024 (leaving out
//! datasets); Park et al. 2023 ("TRAK"), section 2 (random subsets).

mod algorithm;
mod error;
mod params;
mod retraining;
mod subsets;
#[cfg(test)]
mod test_support;
mod truth;

pub use crate::units::Unit;
pub use algorithm::{LeaveOut, Work};
pub use error::LeaveOutError;
pub use params::{LeaveOutParams, ParamsError, SubsetParams};
pub use retraining::{Cache, FinalLosses, NoCache, Retraining};
pub use subsets::SubsetTruth;
pub use truth::Truth;
