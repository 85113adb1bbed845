//! The linearised model (neural tangent kernel) as a simulator, for tasks whose answers are a few
//! different ones.
//!
//! An answer is a path through choices between a few alternatives, one per token ([`TangentKernel`]).
//! Let `u_a(x)` be the log-odds of alternative `a` against every output that is none of its choice.
//! To first order in the change of the parameters since the base model,
//!
//! ```text
//! u(x) = u₀(x) + ∇u₀(x) · δ         p_a(x) = e^(u_a) / (1 + Σ_b e^(u_b)) over the choice
//! r_a(x) = (p_a(x) − [a is taken]) / T on the path of the answer, of T tokens, else 0
//! d_t(x) = Σ_(i in the batch) x_t(i) K(x, x_i) r(x_i)                      K = ∇u₀ M⁻¹ ∇u₀ᵀ
//! L(x) = mean over the path of −ln p_taken(x)
//! ```
//!
//! so that a training step on the linearised model needs no parameters, only the kernel `K` between
//! the alternatives of all examples, `M` the metric of the optimiser: the identity for SGD, the root of
//! the mean square of the examples' gradients at the base model, coordinate by coordinate, for
//! optimisers that divide by theirs. What the optimiser makes of the `d_t` follows its own moving
//! averages; its second moment is the mean of the squared gradient in units of those, one number
//! for all coordinates. Nothing of the losses is fitted but two numbers: the *gain* of the kernel
//! and the power `q` of the learning rate (`η_ref (η/η_ref)^q`), those with the smallest error of
//! the simulated training runs. No loss rises above 1.2 times the highest recorded one of its test
//! example. Weight decay is left out.
//!
//! Limits: one answer per example, at most [`ALTERNATIVES`] alternatives in all; the losses have to
//! start at those of the base model that the kernel is of. The farther training moves the parameters,
//! the less its kernel stays what it was: answers about many steps of few classes are too large.
//!
//! Sources: Jacot, Gabriel & Hongler 2018, *Neural Tangent Kernel*; Lee et al. 2019, *Wide Neural
//! Networks of Any Depth Evolve as Linear Models under Gradient Descent* (section 2.2).

mod algorithm;
mod kernel;
#[cfg(feature = "torch")]
mod model;
mod rollout;

pub use crate::memory::{Memory, SecondMoment};
pub use algorithm::{FitLinearised, LinearisedError, LinearisedReport, LinearisedSimulator};
pub use kernel::{ALTERNATIVES, TangentKernel};
#[cfg(feature = "torch")]
pub use model::Answered;

#[cfg(test)]
pub(crate) mod softmax_regression;
#[cfg(test)]
mod tests;
