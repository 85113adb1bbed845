//! Attribution scores as additive simulators.
//!
//! Every attribution method gives `E(i,j)`: the predicted decrease of `L_j` by one step whose
//! batch is only `i`, at the reference learning rate `η_ref` (see [`simfluence_core::Scores`]).
//! With the exposures `x_t(i)` of a curriculum the cumulative predicted decrease is
//!
//! `P_t(j) = Σ_{s ≤ t} (η_s/η_ref) Σ_i x_s(i) E(i,j)`
//!
//! and two simulators come out of it, the same way for every method:
//!
//! | name | equation |
//! | --- | --- |
//! | [`AdditiveSimulator`] | `L_t(j) = L_0(j) − gain · P_t(j)` |
//! | [`CalibratedSimulator`] | `L_t(j) = L̄_t(j) − gain · (P_t(j) − P̄_t(j))`, with the mean run `L̄` |

mod algorithm;
mod params;

pub use algorithm::{
    AdditiveError, AdditiveSimulator, CalibratedSimulator, FitAdditive, FitCalibrated,
};
pub use params::Gain;
