//! TracIn-CP: inner products of gradients, weighted over checkpoints of a run.
//!
//! `E(i,j) = η_ref Σ_k η_k ⟨g_i, g_j⟩_k / Σ_k η_k` over the checkpoints `k` of the reference run,
//! with `η_k` the learning rate there. The published score is `Σ_k η_k ⟨g_i, g_j⟩_k`; the
//! division makes it the decrease by one step of unit exposure at `η_ref`.
//!
//! # Reference
//! Pruthi, Liu, Kale & Sundararajan 2020, "Estimating training data influence by tracing gradient
//! descent", section 3.3.

mod algorithm;
mod params;
#[cfg(feature = "torch")]
mod scores;

pub use params::TracinCp;
#[cfg(feature = "torch")]
pub use scores::Checkpoint;
