//! Influence functions (HIF): what training on an example changes, through the inverse curvature.
//!
//! `E(i,j) = g_jᵀ (C + δI)⁻¹ g_i / T_ref` at `θ_0`, the final state of the reference run of
//! `T_ref` steps, with `C` the Hessian or the Gauss-Newton matrix of the exposure-weighted mean
//! training loss `Σ_i (x̄_i / T_ref) L_i`. Removing all of `i` from it then raises `L_j` by
//! `x̄_i E(i,j)` to first order: `x̄_i / T_ref · g_jᵀ C⁻¹ g_i`.
//!
//! The solver of `(C + δI)⁻¹ v` can be chosen: exact (small models), conjugate gradients, LiSSA,
//! Arnoldi, or factored curvature (EK-FAC, K-FAC, diagonal).
//!
//! # Reference
//! Koh & Liang 2017, "Understanding black-box predictions via influence functions"; Schioppa et
//! al. 2022, "Scaling up influence functions"; Grosse et al. 2023, "Studying large language model
//! generalization with influence functions".

mod params;
#[cfg(feature = "torch")]
mod queries;
#[cfg(feature = "torch")]
mod scores;
#[cfg(feature = "torch")]
pub mod solvers;

pub use params::{
    Arnoldi, ConjugateGradientSettings, Curved, DampingParam, Drawn, Factored, Hif, HifError,
    HifParams, LissaSettings, Solver,
};
