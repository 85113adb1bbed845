//! Empirical influence: train on one example alone, and see which losses fall.
//!
//! `E(i,j) = (η_ref / η_e) [L_j(θ) − L_j(θ after k steps on i alone)] / k`, from `θ`, the
//! parameters of the model that is given: the final state of the reference run, or the base model
//! where that is asked about. Nothing is approximated but the sum over steps: with `k = 1` and
//! `η_e = η_ref` it is what one such step really does.
//!
//! Between the examples of one list it is a square matrix; its symmetry is in `simfluence report`
//! and which way it points.
//!
//! # Reference
//! Matelsky, Ungar & Körding 2024, "Empirical influence functions to understand the logic of
//! fine-tuning" (arXiv 2406.00509): a single epoch on a single example, changes of the loss per
//! token of every other. Their optimiser and learning rate are left to the settings here.

mod algorithm;
mod params;
#[cfg(feature = "torch")]
mod scores;

pub use params::{Empirical, EmpiricalParams};
