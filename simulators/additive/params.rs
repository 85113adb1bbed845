//! The one setting of an additive simulator: its gain.

use serde::{Deserialize, Serialize};

/// How the gain of an additive simulator is found.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gain {
    /// Least squares on the training runs, never negative (the default):
    /// `max(0, Σ (L_0 − L_t) P_t / Σ P_t²)` over all steps ≥ 1 and test examples of all runs,
    /// values never measured skipped; 0 where every `P_t` is 0.
    #[default]
    Fitted,
    /// 1: the scores are taken at their word, which needs scores in nats.
    Natural,
    /// A given value, finite and not negative; dimensionless.
    Fixed(f64),
}
