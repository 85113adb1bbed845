//! The simulators and attribution methods, one folder each.

pub mod additive;
pub mod attribution;
pub mod baselines;
pub mod gradcos;
pub mod graddot;
pub mod hif;
pub mod leave_out;
pub mod simfluence;
pub mod tracin;

mod load;

pub use load::{LoadError, load};
