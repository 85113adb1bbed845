//! PBRF: how a model responds to weighing an example more, its predictions on all others held.
//!
//! The proximal Bregman response to a unit `Z` of training examples with the extra weight `ε` is
//!
//! `θ(ε) = argmin_θ Σ_k w_k D(h(θ, x_k), h(θ_0, x_k)) + ε L_Z(θ) + ½ λ ‖θ − θ_0‖²`
//!
//! with `D` the Bregman divergence of the loss in the predictions `h` (for classes
//! `KL(p_0 ‖ p)`, for values `½ ‖·‖²`), `w_k` the share of training example `k` in the training
//! loss (they sum to 1), and `L_Z` the mean loss of the unit. Positive `ε` trains more on `Z`,
//! negative `ε` takes it away. The scores are the response per unit of weight, at the scale of
//! influence functions:
//!
//! `E(i,j) = [L_j(θ(−ε)) − L_j(θ(ε))] / (2 ε T_ref)` for every `i` of `Z`;
//!
//! one-sided: `[L_j(θ_0) − L_j(θ(ε))] / (ε T_ref)`. As `ε → 0` this is
//! `g_jᵀ (G + λI)⁻¹ g_i / T_ref` with `G` the Gauss-Newton matrix of the training loss: what damped
//! influence functions compute. Unlike leaving out and training again it asks for no convergence
//! of the reference run, which makes it the truth that influence functions can be held to on
//! models that have not converged.
//!
//! The minimisation is Newton's method by conjugate gradients on the true Hessian, judged by the
//! gradient alone; one that does not reach the tolerance is an error. Responses are small
//! differences: open the model in 64-bit floats where it fits its training examples well.
//!
//! Every unit takes a minimisation of its own (two with central differences), each of whose steps
//! passes over all training examples, and the predictions for all of them are kept in memory: ask
//! for few units.
//!
//! # Reference
//! Bae et al. 2022, "If influence functions are the answer, then what is the question?", section
//! 4; Grosse et al. 2023, "Studying large language model generalization with influence
//! functions", section 2.1.1.

mod algorithm;
mod params;
#[cfg(feature = "torch")]
mod scores;
#[cfg(feature = "torch")]
mod solver;

pub use algorithm::{Responses, Solve};
pub use params::{Pbrf, PbrfParams};
