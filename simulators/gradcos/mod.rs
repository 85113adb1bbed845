//! GradCos: the cosine of two gradients.
//!
//! `E(i,j) = ⟨g_i, g_j⟩ / (‖g_i‖ ‖g_j‖)` at `θ_0`, the final state of the reference run. It has
//! no unit, so that only a fitted gain makes a simulator of it.
//!
//! # Reference
//! Charpiat et al. 2019, "Input similarity from the neural network perspective", equation (3).

mod algorithm;
mod params;
#[cfg(feature = "torch")]
mod scores;

pub use params::GradCos;
