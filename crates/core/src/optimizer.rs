//! Optimisers and learning-rate schedules, as they are recorded with a run.

use serde::{Deserialize, Serialize};

/// An optimiser with all its constants (PyTorch's names and defaults).
///
/// The learning rate is not among them: it is recorded per step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent: `b ← μ b + (1 − d) g`, `θ ← θ − η b` (Nesterov: `g + μ b`).
    Sgd {
        /// Momentum `μ`, default 0.
        #[serde(default)]
        momentum: f64,
        /// Dampening `d`, default 0.
        #[serde(default)]
        dampening: f64,
        /// Nesterov momentum, default false.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty added to the gradient, default 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// RMSProp (Tieleman & Hinton 2012): `v ← α v + (1 − α) g²`, `θ ← θ − η g / (√v + ε)`.
    Rmsprop {
        /// Smoothing constant `α`, default 0.99.
        #[serde(default = "defaults::alpha")]
        alpha: f64,
        /// `ε`, default 1e-8.
        #[serde(default = "defaults::eps")]
        eps: f64,
        /// Momentum, default 0.
        #[serde(default)]
        momentum: f64,
        /// L2 penalty added to the gradient, default 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam (Kingma & Ba 2015), weight decay as an L2 penalty on the gradient.
    Adam {
        /// Decay of the first moment, default 0.9.
        #[serde(default = "defaults::beta1")]
        beta1: f64,
        /// Decay of the second moment, default 0.999.
        #[serde(default = "defaults::beta2")]
        beta2: f64,
        /// `ε`, default 1e-8.
        #[serde(default = "defaults::eps")]
        eps: f64,
        /// L2 penalty added to the gradient, default 0.
        #[serde(default)]
        weight_decay: f64,
    },
    /// AdamW (Loshchilov & Hutter 2019), weight decay applied to the parameters.
    Adamw {
        /// Decay of the first moment, default 0.9.
        #[serde(default = "defaults::beta1")]
        beta1: f64,
        /// Decay of the second moment, default 0.999.
        #[serde(default = "defaults::beta2")]
        beta2: f64,
        /// `ε`, default 1e-8.
        #[serde(default = "defaults::eps")]
        eps: f64,
        /// Decoupled weight decay, default 0.01.
        #[serde(default = "defaults::decoupled_weight_decay")]
        weight_decay: f64,
    },
    /// Adafactor (Shazeer & Stern 2018) without relative step sizes, as `torch.optim.Adafactor`:
    /// factored second moments for matrices, update clipping at RMS `d`.
    Adafactor {
        /// Exponent of the decay `β2_t = 1 − t^decay`, default −0.8.
        #[serde(default = "defaults::beta2_decay")]
        beta2_decay: f64,
        /// `ε₁`, the floor of the squared gradient; default: machine epsilon of f32.
        #[serde(default = "defaults::eps1")]
        eps1: f64,
        /// `ε₂`, the floor of a parameter's RMS, default 1e-3.
        #[serde(default = "defaults::eps2")]
        eps2: f64,
        /// Clipping threshold `d` of the update's RMS, default 1.
        #[serde(default = "defaults::clipping")]
        d: f64,
        /// Decoupled weight decay, default 0.
        #[serde(default)]
        weight_decay: f64,
    },
}

mod defaults {
    pub(super) fn alpha() -> f64 {
        0.99
    }
    pub(super) fn eps() -> f64 {
        1e-8
    }
    pub(super) fn beta1() -> f64 {
        0.9
    }
    pub(super) fn beta2() -> f64 {
        0.999
    }
    pub(super) fn decoupled_weight_decay() -> f64 {
        0.01
    }
    pub(super) fn beta2_decay() -> f64 {
        -0.8
    }
    pub(super) fn eps1() -> f64 {
        f64::from(f32::EPSILON)
    }
    pub(super) fn eps2() -> f64 {
        1e-3
    }
    pub(super) fn clipping() -> f64 {
        1.0
    }
}

impl Default for Optimizer {
    /// AdamW with PyTorch's constants.
    fn default() -> Self {
        Self::Adamw {
            beta1: defaults::beta1(),
            beta2: defaults::beta2(),
            eps: defaults::eps(),
            weight_decay: defaults::decoupled_weight_decay(),
        }
    }
}

impl Optimizer {
    /// The name as it stands in files: `sgd`, `rmsprop`, `adam`, `adamw`, `adafactor`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Rmsprop { .. } => "rmsprop",
            Self::Adam { .. } => "adam",
            Self::Adamw { .. } => "adamw",
            Self::Adafactor { .. } => "adafactor",
        }
    }
}

/// The shape of a learning-rate schedule after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// `η`.
    #[default]
    Constant,
    /// `η (T − t) / (T − w)`: from `η` after warm-up down towards 0.
    Linear,
    /// `η (1 + cos(π (t − w) / (T − w))) / 2`.
    Cosine,
}

/// A learning-rate schedule: linear warm-up over `warmup_steps`, then [`ScheduleKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Shape after warm-up, default constant.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Steps of linear warm-up, default 0.
    #[serde(default)]
    pub warmup_steps: u32,
}

impl Schedule {
    /// `η_t` relative to the peak for step `t` (counted from 1) of `steps`.
    ///
    /// As in Hugging Face's schedulers the factor of step `t` is that of `t − 1` finished
    /// updates, but warm-up starts at `1 / (warmup_steps + 1)` instead of 0, so that no step is
    /// without effect.
    pub fn factor(&self, step: u32, steps: u32) -> f64 {
        let done = f64::from(step.saturating_sub(1));
        let warmup = f64::from(self.warmup_steps);
        if done < warmup {
            return (done + 1.0) / (warmup + 1.0);
        }
        let span = (f64::from(steps) - warmup).max(1.0);
        let progress = ((done - warmup) / span).clamp(0.0, 1.0);
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optimizer_reads_from_its_name_with_defaults() {
        let optimizer: Optimizer = serde_json::from_str(r#"{"name": "adam"}"#).unwrap();
        assert_eq!(
            optimizer,
            Optimizer::Adam {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0
            }
        );
    }

    #[test]
    fn warm_up_rises_to_the_peak_and_linear_falls_to_nothing() {
        let schedule = Schedule {
            kind: ScheduleKind::Linear,
            warmup_steps: 3,
        };
        let factors: Vec<f64> = (1..=7).map(|t| schedule.factor(t, 7)).collect();
        assert_eq!(&factors[..4], &[0.25, 0.5, 0.75, 1.0]);
        assert!(factors.windows(2).skip(3).all(|w| w[1] < w[0]));
        assert!(factors[6] > 0.0);
    }

    #[test]
    fn cosine_is_half_way_down_in_the_middle() {
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            warmup_steps: 0,
        };
        assert!((schedule.factor(51, 100) - 0.5).abs() < 1e-12);
    }
}
