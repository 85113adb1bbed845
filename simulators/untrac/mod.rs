//! UnTrac and UnTrac-Inv: unlearn, and see which losses rise.
//!
//! **UnTrac** unlearns a unit `Z` of training examples (a dataset, or one example) by `S` steps of
//! gradient ascent `θ ← θ + η_u ∇L` on its batches, from `θ_0`, the final state of the reference
//! run, with fresh optimiser state. What rises had been lowered by training on it:
//!
//! `E(i,j) = (η_ref / η_u) [L_j(θ_S) − L_j(θ_0)] / S` for every `i` of `Z`.
//!
//! It is not divided by the size of `Z` again: a step's loss is the mean over its batch.
//!
//! **UnTrac-Inv** unlearns a unit `Z'` of test examples instead and measures training losses, so
//! that the number of walks does not grow with the training data:
//!
//! `E(i,j) = (η_ref / η_u) [L_i(θ_S) − L_i(θ_0)] / S` for every `j` of `Z'`.
//!
//! One full-batch step of stochastic gradient descent is to first order the mean of GradDot over
//! the unit, for both; one step of Adam from fresh state moves every parameter by `η_u` in the
//! direction of the sign of its gradient. The model runs in evaluation mode (no dropout), at a
//! constant learning rate and without clipping, and is left as it was found.
//!
//! The number of epochs is fixed in advance; the whole curve of losses over steps is kept
//! ([`crate::curves::LossCurves`]), and [`Untrac::scores_from_curves`] gives the scores at any of
//! its steps.
//!
//! # Reference
//! Isonuma & Titov 2024, "Unlearning traces the influential training data of language models",
//! equations (2)–(4). Their equation (1), the truth, has the opposite sign of equation (2).

mod algorithm;
mod params;
#[cfg(feature = "torch")]
mod scores;

pub use params::{UnlearningParams, Untrac, UntracInv};
