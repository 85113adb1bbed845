//! Settings of UnTrac and UnTrac-Inv.

use crate::attribution::{AttributionError, at_least_one, plain_adam, positive};
use serde::Serialize;
use simfluence_core::Optimizer;
use simfluence_models::check_optimizer;

/// Settings of the unlearning.
///
/// ```
/// use simfluence_simulators::untrac::{UnlearningParams, Untrac};
/// let params = UnlearningParams::untrac(1e-3).learning_rate(1e-4).batch_size(Some(4));
/// assert!(Untrac::new(params).is_ok());
/// assert!(Untrac::new(params.epochs(0)).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct UnlearningParams {
    /// `η_ref`: mean learning rate of the reference run; positive.
    pub reference_learning_rate: f64,
    /// `η_u`: constant learning rate of the ascent, default 5e-5 (the paper's); positive.
    pub learning_rate: f64,
    /// Optimiser, with fresh state for every unit; default Adam with β 0.9 and 0.999, ε 1e-8,
    /// without weight decay.
    pub optimizer: Optimizer,
    /// Examples per step, at least 1, or `None` for the whole unit. Default of UnTrac 1, of
    /// UnTrac-Inv the whole unit.
    pub batch_size: Option<usize>,
    /// Passes over the unit, at least 1. Default of UnTrac 1, of UnTrac-Inv 5.
    pub epochs: u32,
    /// Seed of the order of the examples, default 0; without effect on whole units.
    pub seed: u64,
    /// Losses are measured after every so many steps, and after the last; default 1, at least 1.
    pub curve_every: u32,
    /// Examples per forward or backward pass, default 64, at least 1: bounds memory, changes
    /// results by rounding only.
    pub examples_per_pass: usize,
    /// LibTorch threads, default 1, at least 1.
    pub threads: u32,
}

impl UnlearningParams {
    /// Defaults of UnTrac, at this reference learning rate: one epoch, one example per step.
    pub fn untrac(reference_learning_rate: f64) -> Self {
        Self {
            reference_learning_rate,
            learning_rate: 5e-5,
            optimizer: plain_adam(),
            batch_size: Some(1),
            epochs: 1,
            seed: 0,
            curve_every: 1,
            examples_per_pass: 64,
            threads: 1,
        }
    }

    /// Defaults of UnTrac-Inv, at this reference learning rate: five steps on the whole unit.
    pub fn untrac_inv(reference_learning_rate: f64) -> Self {
        Self {
            batch_size: None,
            epochs: 5,
            ..Self::untrac(reference_learning_rate)
        }
    }

    /// Sets the learning rate of the ascent.
    #[must_use]
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the optimiser.
    #[must_use]
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the number of examples per step, `None` for the whole unit.
    #[must_use]
    pub fn batch_size(mut self, batch_size: Option<usize>) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the number of passes over the unit.
    #[must_use]
    pub fn epochs(mut self, epochs: u32) -> Self {
        self.epochs = epochs;
        self
    }

    /// Sets the seed of the order.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets after how many steps losses are measured.
    #[must_use]
    pub fn curve_every(mut self, curve_every: u32) -> Self {
        self.curve_every = curve_every;
        self
    }

    /// Sets the number of examples per pass.
    #[must_use]
    pub fn examples_per_pass(mut self, examples_per_pass: usize) -> Self {
        self.examples_per_pass = examples_per_pass;
        self
    }

    /// Sets the number of LibTorch threads.
    #[must_use]
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    fn check(self) -> Result<Self, AttributionError> {
        positive("reference_learning_rate", self.reference_learning_rate)?;
        positive("learning_rate", self.learning_rate)?;
        check_optimizer(&self.optimizer)?;
        at_least_one("batch_size", self.batch_size.unwrap_or(1))?;
        at_least_one("epochs", self.epochs as usize)?;
        at_least_one("curve_every", self.curve_every as usize)?;
        at_least_one("examples_per_pass", self.examples_per_pass)?;
        at_least_one("threads", self.threads as usize)?;
        Ok(self)
    }

    #[cfg(feature = "torch")]
    pub(super) fn walk(&self) -> crate::walk::WalkSettings {
        crate::walk::WalkSettings {
            optimizer: self.optimizer,
            learning_rate: self.learning_rate,
            batch_size: self.batch_size,
            epochs: self.epochs,
            seed: self.seed,
            curve_every: self.curve_every,
            examples_per_pass: self.examples_per_pass,
            threads: self.threads,
        }
    }
}

/// UnTrac with checked settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Untrac {
    pub(super) params: UnlearningParams,
}

impl Untrac {
    /// Checks the settings.
    ///
    /// # Errors
    /// A rate that is not positive and finite, a count of 0, a constant of the optimiser out of
    /// its range.
    pub fn new(params: UnlearningParams) -> Result<Self, AttributionError> {
        Ok(Self {
            params: params.check()?,
        })
    }
}

/// UnTrac-Inv with checked settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UntracInv {
    pub(super) params: UnlearningParams,
}

impl UntracInv {
    /// Checks the settings.
    ///
    /// # Errors
    /// As [`Untrac::new`].
    pub fn new(params: UnlearningParams) -> Result<Self, AttributionError> {
        Ok(Self {
            params: params.check()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_paper() {
        let untrac = UnlearningParams::untrac(1e-3);
        assert_eq!((untrac.batch_size, untrac.epochs), (Some(1), 1));
        let inverse = UnlearningParams::untrac_inv(1e-3);
        assert_eq!((inverse.batch_size, inverse.epochs), (None, 5));
        assert_eq!(inverse.learning_rate, 5e-5);
        assert_eq!(inverse.optimizer.name(), "adam");
        assert!(Untrac::new(untrac).is_ok() && UntracInv::new(inverse).is_ok());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let params = UnlearningParams::untrac(1e-3);
        let momentum = Optimizer::Sgd {
            momentum: 1.5,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        };
        for (params, setting) in [
            (UnlearningParams::untrac(0.0), "reference_learning_rate"),
            (params.learning_rate(f64::NAN), "learning_rate"),
            (params.optimizer(momentum), "optimizer.momentum"),
            (params.batch_size(Some(0)), "batch_size"),
            (params.epochs(0), "epochs"),
            (params.curve_every(0), "curve_every"),
            (params.examples_per_pass(0), "examples_per_pass"),
            (params.threads(0), "threads"),
        ] {
            let message = Untrac::new(params).unwrap_err().to_string();
            assert!(message.starts_with(setting), "{message}");
        }
    }
}
