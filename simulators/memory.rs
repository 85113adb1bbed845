//! How an optimiser remembers gradients and normalises them.

use serde::{Deserialize, Serialize};
use simfluence_core::Optimizer;

/// How the optimiser of the recorded runs remembers and normalises gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Decay of the first moment: `β₁`, or the momentum; 0: none.
    pub first: f64,
    /// How the squares of gradients are averaged.
    pub second: SecondMoment,
}

/// How an optimiser averages squared gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondMoment {
    /// Not at all (SGD): pushes are not normalised.
    None,
    /// With a constant decay, corrected for its start (Adam: `β₂`) or not (RMSProp: `α`).
    Decay {
        /// The decay.
        beta: f64,
        /// Whether the average is divided by `1 − β^t`.
        corrected: bool,
    },
    /// With the decay `1 − t^power` (Adafactor).
    Power {
        /// The power, negative.
        power: f64,
    },
}

impl Memory {
    /// The constants of a recorded optimiser; PyTorch's AdamW where none was recorded.
    pub fn of(optimizer: Option<&Optimizer>) -> Self {
        match *optimizer.unwrap_or(&Optimizer::default()) {
            Optimizer::Sgd { momentum, .. } => Self {
                first: momentum,
                second: SecondMoment::None,
            },
            Optimizer::Rmsprop {
                alpha, momentum, ..
            } => Self {
                first: momentum,
                second: SecondMoment::Decay {
                    beta: alpha,
                    corrected: false,
                },
            },
            Optimizer::Adam { beta1, beta2, .. } | Optimizer::Adamw { beta1, beta2, .. } => Self {
                first: beta1,
                second: SecondMoment::Decay {
                    beta: beta2,
                    corrected: true,
                },
            },
            Optimizer::Adafactor { beta2_decay, .. } => Self {
                first: 0.0,
                second: SecondMoment::Power { power: beta2_decay },
            },
        }
    }

    /// The decays of the moving averages that optimizer-dynamics follows: none, the optimiser's own,
    /// and one that reaches twice as far (the losses themselves lag behind the parameters).
    pub(crate) fn decays(self) -> Vec<f64> {
        if self.first > 0.0 {
            vec![0.0, self.first, (1.0 + self.first) / 2.0]
        } else {
            vec![0.0]
        }
    }
}
