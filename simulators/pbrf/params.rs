//! Settings of the proximal Bregman response.

use crate::attribution::{AttributionError, at_least_one, positive};
use serde::Serialize;

/// Settings of the response and of its minimisation.
///
/// ```
/// use simfluence_simulators::pbrf::{Pbrf, PbrfParams};
/// let params = PbrfParams::new(1e-3, 96).damping(1e-2);
/// assert!(Pbrf::new(params).is_ok());
/// assert!(Pbrf::new(params.tolerance(0.0)).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PbrfParams {
    /// `η_ref`: mean learning rate of the reference run; positive.
    pub reference_learning_rate: f64,
    /// `T_ref`: steps of the reference run, at least 1.
    pub reference_steps: u32,
    /// `λ`: how strongly the parameters are held, default 0.1; positive. Much less, and on a model
    /// that has not converged the objective has no minimum nearby.
    pub damping: f64,
    /// `ε`: the extra weight; positive. Default `None`: one over the number of training examples
    /// that have weight, the size of what leaving one out takes away.
    pub epsilon: Option<f64>,
    /// Whether to take the difference between `−ε` and `ε` (error `O(ε²)`, twice the work) or
    /// between `0` and `ε` (error `O(ε)`); default true.
    pub central: bool,
    /// Norm of the gradient, over that at `θ_0`, at which a minimisation is done; default 1e-4,
    /// above 0 and below 1. A model in 32-bit floats may not resolve that for examples that it
    /// fits well: open it in 64-bit floats.
    pub tolerance: f64,
    /// Products with the Hessian that a minimisation may take, default 2000, at least 1.
    pub max_iterations: u32,
    /// Examples per forward or backward pass, default 64, at least 1.
    pub examples_per_pass: usize,
    /// LibTorch threads, default 1, at least 1.
    pub threads: u32,
}

impl PbrfParams {
    /// Defaults, at the mean learning rate and the number of steps of the reference run.
    pub fn new(reference_learning_rate: f64, reference_steps: u32) -> Self {
        Self {
            reference_learning_rate,
            reference_steps,
            damping: 0.1,
            epsilon: None,
            central: true,
            tolerance: 1e-4,
            max_iterations: 2000,
            examples_per_pass: 64,
            threads: 1,
        }
    }

    /// Sets the damping.
    #[must_use]
    pub fn damping(mut self, damping: f64) -> Self {
        self.damping = damping;
        self
    }

    /// Sets the extra weight, `None` for one over the number of training examples with weight.
    #[must_use]
    pub fn epsilon(mut self, epsilon: Option<f64>) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets whether differences are central.
    #[must_use]
    pub fn central(mut self, central: bool) -> Self {
        self.central = central;
        self
    }

    /// Sets the relative gradient norm at which a minimisation is done.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Sets the number of iterations allowed.
    #[must_use]
    pub fn max_iterations(mut self, max_iterations: u32) -> Self {
        self.max_iterations = max_iterations;
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
}

/// The method with checked settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pbrf {
    pub(super) params: PbrfParams,
}

impl Pbrf {
    /// Checks the settings.
    ///
    /// # Errors
    /// A rate, damping or weight that is not positive and finite, a tolerance that is not between
    /// 0 and 1, a count of 0.
    pub fn new(params: PbrfParams) -> Result<Self, AttributionError> {
        positive("reference_learning_rate", params.reference_learning_rate)?;
        at_least_one("reference_steps", params.reference_steps as usize)?;
        positive("damping", params.damping)?;
        positive("epsilon", params.epsilon.unwrap_or(1.0))?;
        if !(params.tolerance > 0.0 && params.tolerance < 1.0) {
            return Err(AttributionError::Setting(
                simfluence_models::SettingsError::Range {
                    setting: "tolerance",
                    expected: "above 0 and below 1",
                    got: params.tolerance,
                },
            ));
        }
        at_least_one("max_iterations", params.max_iterations as usize)?;
        at_least_one("examples_per_pass", params.examples_per_pass)?;
        at_least_one("threads", params.threads as usize)?;
        Ok(Self { params })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let params = PbrfParams::new(1e-3, 10);
        for (params, setting) in [
            (PbrfParams::new(0.0, 10), "reference_learning_rate"),
            (PbrfParams::new(1e-3, 0), "reference_steps"),
            (params.damping(0.0), "damping"),
            (params.epsilon(Some(-0.1)), "epsilon"),
            (params.tolerance(1.0), "tolerance"),
            (params.tolerance(f64::NAN), "tolerance"),
            (params.max_iterations(0), "max_iterations"),
            (params.examples_per_pass(0), "examples_per_pass"),
            (params.threads(0), "threads"),
        ] {
            let message = Pbrf::new(params).unwrap_err().to_string();
            assert!(message.starts_with(setting), "{message}");
        }
    }
}
