//! The simulators and attribution methods, one folder each.

pub mod additive;
pub mod attribution;
pub mod baselines;
pub mod curves;
pub mod empirical;
pub mod gradcos;
pub mod graddot;
pub mod hif;
pub mod leave_out;
pub mod linearised;
pub mod optimizer_dynamics;
pub mod pbrf;
pub mod prefilter;
pub mod simfluence;
pub mod tracin;
pub mod units;
pub mod untrac;

mod load;
mod memory;
#[cfg(feature = "torch")]
mod walk;

pub use load::{LoadError, load};
