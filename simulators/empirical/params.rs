//! Settings of empirical influence.

use crate::attribution::{AttributionError, at_least_one, plain_adam, positive};
use serde::Serialize;
use simfluence_core::Optimizer;
use simfluence_models::check_optimizer;

/// Settings of the training on single examples.
///
/// ```
/// use simfluence_simulators::empirical::{Empirical, EmpiricalParams};
/// assert!(Empirical::new(EmpiricalParams::new(1e-3).steps(3)).is_ok());
/// assert!(Empirical::new(EmpiricalParams::new(1e-3).steps(0)).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EmpiricalParams {
    /// `η_ref`: mean learning rate of the reference run; positive.
    pub reference_learning_rate: f64,
    /// `η_e`: constant learning rate of the steps; positive, default `η_ref`, so that nothing is
    /// extrapolated.
    pub learning_rate: f64,
    /// Optimiser, with fresh state for every example; default Adam with β 0.9 and 0.999, ε 1e-8,
    /// without weight decay.
    pub optimizer: Optimizer,
    /// `k`: steps on the example, default 1 (a single epoch of it), at least 1.
    pub steps: u32,
    /// Examples per forward pass, default 64, at least 1.
    pub examples_per_pass: usize,
    /// LibTorch threads, default 1, at least 1.
    pub threads: u32,
}

impl EmpiricalParams {
    /// Defaults, at this reference learning rate.
    pub fn new(reference_learning_rate: f64) -> Self {
        Self {
            reference_learning_rate,
            learning_rate: reference_learning_rate,
            optimizer: plain_adam(),
            steps: 1,
            examples_per_pass: 64,
            threads: 1,
        }
    }

    /// Sets the learning rate of the steps.
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

    /// Sets the number of steps.
    #[must_use]
    pub fn steps(mut self, steps: u32) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the number of examples per forward pass.
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
}

/// The method with checked settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Empirical {
    pub(super) params: EmpiricalParams,
}

impl Empirical {
    /// Checks the settings.
    ///
    /// # Errors
    /// A rate that is not positive and finite, a count of 0, a constant of the optimiser out of
    /// its range.
    pub fn new(params: EmpiricalParams) -> Result<Self, AttributionError> {
        positive("reference_learning_rate", params.reference_learning_rate)?;
        positive("learning_rate", params.learning_rate)?;
        check_optimizer(&params.optimizer)?;
        at_least_one("steps", params.steps as usize)?;
        at_least_one("examples_per_pass", params.examples_per_pass)?;
        at_least_one("threads", params.threads as usize)?;
        Ok(Self { params })
    }

    #[cfg(feature = "torch")]
    pub(super) fn walk(&self) -> crate::walk::WalkSettings {
        let params = &self.params;
        crate::walk::WalkSettings {
            optimizer: params.optimizer,
            learning_rate: params.learning_rate,
            batch_size: None,
            epochs: params.steps,
            seed: 0,
            curve_every: params.steps,
            examples_per_pass: params.examples_per_pass,
            threads: params.threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let params = EmpiricalParams::new(1e-3);
        assert_eq!(params.learning_rate, 1e-3);
        for (params, setting) in [
            (EmpiricalParams::new(-1.0), "reference_learning_rate"),
            (params.learning_rate(0.0), "learning_rate"),
            (params.steps(0), "steps"),
            (params.examples_per_pass(0), "examples_per_pass"),
            (params.threads(0), "threads"),
        ] {
            let message = Empirical::new(params).unwrap_err().to_string();
            assert!(message.starts_with(setting), "{message}");
        }
    }
}
