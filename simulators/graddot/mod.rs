//! GradDot: the decrease of a test loss by one step of gradient descent, to first order.
//!
//! `E(i,j) = η_ref ⟨g_i, g_j⟩` at `θ_0`, the final state of the reference run, with `g` the
//! gradient of an example's loss with respect to the trainable parameters: a step
//! `θ ← θ − η_ref g_i` changes `L_j` by `−η_ref ⟨g_i, g_j⟩ + O(η_ref²)`.
//!
//! # Reference
//! Charpiat et al. 2019, "Input similarity from the neural network perspective", section 2;
//! one checkpoint of Pruthi et al. 2020.

mod algorithm;
mod params;
#[cfg(feature = "torch")]
mod scores;

pub use params::GradDot;
