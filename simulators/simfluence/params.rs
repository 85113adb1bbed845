//! Settings of the Simfluence simulators: builder → [`SimfluenceParams::check`] → valid settings.

use serde::{Deserialize, Serialize};
use simfluence_fitter::{
    FitError, FitSettings, MAX_ITERATIONS, Objective, Penalty, PenaltySearch, ROLLOUT_TOLERANCE,
    Shrinkage, Solver, TEACHER_FORCED_TOLERANCE, Variant,
};

/// Where the ridge penalties come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lambda {
    /// Given: `λ_A` and `λ_B`, finite and not negative, in units of squared exposure.
    Fixed(Penalty),
    /// Those with the smallest error of simulated left-out training runs (the default).
    LeaveRunOut(PenaltySearch),
}

impl Default for Lambda {
    fn default() -> Self {
        Self::LeaveRunOut(PenaltySearch::default())
    }
}

/// Settings that have not been checked yet.
///
/// | setting | default | range |
/// | --- | --- | --- |
/// | `variant` | linear | linear, additive, multiplicative |
/// | `shrinkage` | `A₀ = 1` | 1, or 0 as in the paper |
/// | `lambda` | leave-run-out, [`PenaltySearch::default`] | penalties ≥ 0, folds ≥ 2 |
/// | `objective` | teacher-forced | teacher-forced, rollout |
/// | `solver` | exact; lbfgs for rollout | exact, cg, lbfgs; rollout takes only lbfgs |
/// | `tolerance` | 1e-12; 1e-6 for rollout | between 0 and 1: relative residual, relative gradient |
/// | `max_iterations` | 2000 | at least 1, per test example |
///
/// ```
/// use simfluence_simulators::simfluence::{Lambda, Penalty, SimfluenceParams, Variant};
/// let params = SimfluenceParams::new()
///     .variant(Variant::Additive)
///     .lambda(Lambda::Fixed(Penalty { a: 1.0, b: 0.1 }))
///     .check()?;
/// assert_eq!(params.name(), "simfluence-additive");
/// assert!(SimfluenceParams::new().tolerance(2.0).check().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimfluenceParams {
    variant: Variant,
    shrinkage: Shrinkage,
    lambda: Lambda,
    objective: Objective,
    solver: Option<Solver>,
    tolerance: Option<f64>,
    max_iterations: Option<u64>,
}

impl SimfluenceParams {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which terms are fitted.
    #[must_use]
    pub fn variant(mut self, variant: Variant) -> Self {
        self.variant = variant;
        self
    }

    /// What `A` is shrunk to.
    #[must_use]
    pub fn shrinkage(mut self, shrinkage: Shrinkage) -> Self {
        self.shrinkage = shrinkage;
        self
    }

    /// Where the penalties come from.
    #[must_use]
    pub fn lambda(mut self, lambda: Lambda) -> Self {
        self.lambda = lambda;
        self
    }

    /// What is minimised.
    #[must_use]
    pub fn objective(mut self, objective: Objective) -> Self {
        self.objective = objective;
        self
    }

    /// How it is minimised.
    #[must_use]
    pub fn solver(mut self, solver: Solver) -> Self {
        self.solver = Some(solver);
        self
    }

    /// Relative residual or gradient to reach.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = Some(tolerance);
        self
    }

    /// Iterations allowed per test example.
    #[must_use]
    pub fn max_iterations(mut self, max_iterations: u64) -> Self {
        self.max_iterations = Some(max_iterations);
        self
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// A setting out of range, or the rollout objective with a solver for quadratic problems.
    pub fn check(self) -> Result<SimfluenceValidParams, FitError> {
        let (solver, tolerance) = match self.objective {
            Objective::TeacherForced => (Solver::Exact, TEACHER_FORCED_TOLERANCE),
            Objective::Rollout => (Solver::Lbfgs, ROLLOUT_TOLERANCE),
        };
        let penalty = match &self.lambda {
            Lambda::Fixed(penalty) => *penalty,
            Lambda::LeaveRunOut(search) => {
                search.check()?;
                search.grid[0]
            }
        };
        let settings = FitSettings {
            variant: self.variant,
            shrinkage: self.shrinkage,
            penalty,
            objective: self.objective,
            solver: self.solver.unwrap_or(solver),
            tolerance: self.tolerance.unwrap_or(tolerance),
            max_iterations: self.max_iterations.unwrap_or(MAX_ITERATIONS),
        };
        settings.check()?;
        Ok(SimfluenceValidParams {
            params: self,
            settings,
        })
    }
}

/// Settings that have been checked; they can be fitted with ([`simfluence_core::Fit`]).
#[derive(Debug, Clone, PartialEq)]
pub struct SimfluenceValidParams {
    params: SimfluenceParams,
    settings: FitSettings,
}

impl SimfluenceValidParams {
    /// `simfluence-linear`, `simfluence-additive` or `simfluence-multiplicative`.
    pub fn name(&self) -> &'static str {
        name(self.settings.variant)
    }

    /// Where the penalties come from.
    pub fn lambda(&self) -> &Lambda {
        &self.params.lambda
    }

    /// The settings as they were given.
    pub fn params(&self) -> &SimfluenceParams {
        &self.params
    }

    /// What the fitter gets; with leave-run-out penalties they are still to be chosen.
    pub(super) fn settings(&self) -> FitSettings {
        self.settings
    }
}

/// The name of a variant as it stands in tables.
pub(super) fn name(variant: Variant) -> &'static str {
    match variant {
        Variant::Linear => "simfluence-linear",
        Variant::Additive => "simfluence-additive",
        Variant::Multiplicative => "simfluence-multiplicative",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solver_that_cannot_minimise_the_rollout_objective_is_refused() {
        let params = SimfluenceParams::new().objective(Objective::Rollout);
        assert!(params.clone().check().is_ok());
        let error = params.solver(Solver::Exact).check().unwrap_err();
        assert!(error.to_string().contains("lbfgs"), "{error}");
    }

    #[test]
    fn an_empty_grid_or_a_negative_penalty_is_refused() {
        let empty = PenaltySearch {
            grid: vec![],
            ..PenaltySearch::default()
        };
        let lambda = Lambda::LeaveRunOut(empty);
        assert!(SimfluenceParams::new().lambda(lambda).check().is_err());
        let lambda = Lambda::Fixed(Penalty { a: -1.0, b: 0.0 });
        assert!(SimfluenceParams::new().lambda(lambda).check().is_err());
    }

    #[test]
    fn settings_come_back_from_json() {
        let params = SimfluenceParams::new()
            .shrinkage(Shrinkage::Zero)
            .solver(Solver::Cg)
            .lambda(Lambda::Fixed(Penalty { a: 0.1, b: 1e-3 }));
        let text = serde_json::to_string(&params).unwrap();
        assert_eq!(
            serde_json::from_str::<SimfluenceParams>(&text).unwrap(),
            params
        );
    }
}
