//! Settings of the optimiser dynamics: builder → [`OptimizerDynamicsParams::check`] → valid
//! settings.

use super::OptimizerDynamicsError;
use super::model::State;
use crate::linearised::LinearisedSimulator;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Up to about how many nats the state of the second closed loop tells losses apart.
const REACH: f64 = 2.5;

/// What the simulator is made of; each part can be left out, to see what it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ingredient {
    /// Pushes grow with the learning rate of the step.
    LearningRate,
    /// Moving averages of the pushes.
    Memory,
    /// The second moment of the optimiser.
    Normalisation,
    /// Pushes fall with the residuals of the datasets.
    Saturation,
    /// Effects of pushes depend on the state and on the own loss.
    State,
    /// The second fit, on the simulator's own rollouts.
    Rollouts,
    /// The mean of several closed loops.
    Ensemble,
    /// The linearised model as a member of that mean, where it is given.
    Linearised,
    /// What single examples do beside their datasets.
    Examples,
    /// The Gaussian process over curricula (and with it the stacking).
    Correction,
    /// The mean run as second member.
    Stacking,
}

impl Ingredient {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::LearningRate,
        Self::Memory,
        Self::Normalisation,
        Self::Saturation,
        Self::State,
        Self::Rollouts,
        Self::Ensemble,
        Self::Linearised,
        Self::Examples,
        Self::Correction,
        Self::Stacking,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::LearningRate => "learning rate",
            Self::Memory => "memory",
            Self::Normalisation => "normalisation",
            Self::Saturation => "saturation",
            Self::State => "state",
            Self::Rollouts => "rollouts",
            Self::Ensemble => "ensemble",
            Self::Linearised => "linearised model",
            Self::Examples => "examples",
            Self::Correction => "correction",
            Self::Stacking => "stacking",
        }
    }
}

/// Settings that have not been checked yet.
///
/// | setting | default | range |
/// | --- | --- | --- |
/// | `penalties` | 3, 10, 30, 100, 300, 1 000 | at least 1e-7, at least one |
/// | `exponents` | 0.25, 0.5 (none for SGD, which does not normalise) | 0 to 1, at least one |
/// | `rate_exponents` | 0.5, 0.75, 1 | above 0, to 1, at least one |
/// | `pulls` | 0.05, 0.1 | 0 to 1; none: no second fit |
/// | `example_strengths` | ¼, 1, 4, 16, 64, 256 | above 0; none: no effects of single examples |
/// | `rank` | number of datasets or twice as many, 2 to 8, chosen | at least 1 |
/// | `without` | nothing | any of [`Ingredient::ALL`] |
/// | `folds` | 5 | at least 2 |
/// | `seed` | 0 | any |
///
/// Penalties, both kinds of exponents, pulls and the rank are chosen by leave-run-out rollouts where there are several;
/// that there is no second fit, and no effects of single examples, are among the choices.
///
/// ```
/// use simfluence_simulators::optimizer_dynamics::OptimizerDynamicsParams;
/// // Two datasets of two training examples each.
/// let params = OptimizerDynamicsParams::new(vec![0, 0, 1, 1]);
/// assert!(params.clone().check().is_ok());
/// assert!(params.penalties(vec![-1.0]).check().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerDynamicsParams {
    pub(super) groups: Vec<u32>,
    pub(super) penalties: Vec<f64>,
    pub(super) exponents: Vec<f64>,
    pub(super) rate_exponents: Vec<f64>,
    pub(super) pulls: Vec<f64>,
    pub(super) example_strengths: Vec<f64>,
    pub(super) rank: Option<usize>,
    #[serde(default)]
    pub(super) without: Vec<Ingredient>,
    pub(super) folds: usize,
    pub(super) seed: u64,
}

impl OptimizerDynamicsParams {
    /// The defaults; `groups[i]` is the dataset of training example `i`, counted from 0.
    pub fn new(groups: Vec<u32>) -> Self {
        Self {
            groups,
            penalties: vec![3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0],
            exponents: vec![0.25, 0.5],
            rate_exponents: vec![0.5, 0.75, 1.0],
            pulls: vec![0.05, 0.1],
            example_strengths: vec![0.25, 1.0, 4.0, 16.0, 64.0, 256.0],
            rank: None,
            without: Vec::new(),
            folds: 5,
            seed: 0,
        }
    }

    /// Candidates for the ridge penalty `λ`.
    #[must_use]
    pub fn penalties(mut self, penalties: Vec<f64>) -> Self {
        self.penalties = penalties;
        self
    }

    /// Candidates for the exponent `p` of the normalisation.
    #[must_use]
    pub fn exponents(mut self, exponents: Vec<f64>) -> Self {
        self.exponents = exponents;
        self
    }

    /// Candidates for the exponent `q` of the learning rate. Where all recorded rates are the
    /// same, the first is taken.
    #[must_use]
    pub fn rate_exponents(mut self, rate_exponents: Vec<f64>) -> Self {
        self.rate_exponents = rate_exponents;
        self
    }

    /// Candidates for the pull `γ` of the second fit, per step.
    #[must_use]
    pub fn pulls(mut self, pulls: Vec<f64>) -> Self {
        self.pulls = pulls;
        self
    }

    /// Candidates for the strength with which effects of single examples are shrunk to those of
    /// their datasets: an example that is seen as often as the mean one keeps `1/(1 + strength)`
    /// of what it alone would show.
    #[must_use]
    pub fn example_strengths(mut self, strengths: Vec<f64>) -> Self {
        self.example_strengths = strengths;
        self
    }

    /// Number of components of the state.
    #[must_use]
    pub fn rank(mut self, rank: usize) -> Self {
        self.rank = Some(rank);
        self
    }

    /// Leaves an ingredient out.
    #[must_use]
    pub fn without(mut self, ingredient: Ingredient) -> Self {
        self.without.push(ingredient);
        self
    }

    /// The states of the closed loops of which the mean is taken.
    pub(super) fn states(&self) -> Vec<State> {
        let all = [State::Residuals(1.0), State::Residuals(REACH), State::None];
        match (self.has(Ingredient::State), self.has(Ingredient::Ensemble)) {
            (true, true) => all.to_vec(),
            (true, false) => all[..1].to_vec(),
            (false, _) => all[2..].to_vec(),
        }
    }

    pub(super) fn has(&self, ingredient: Ingredient) -> bool {
        !self.without.contains(&ingredient)
    }

    /// Folds of the leave-run-out rollouts.
    #[must_use]
    pub fn folds(mut self, folds: usize) -> Self {
        self.folds = folds;
        self
    }

    /// Seed of the folds.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// A setting out of range, with its name.
    pub fn check(self) -> Result<OptimizerDynamicsValidParams, OptimizerDynamicsError> {
        let refuse =
            |name, got: String, must| Err(OptimizerDynamicsError::Setting { name, got, must });
        // A smaller one would be lost in rounding, and the equations with it.
        let positive = |x: &f64| x.is_finite() && *x >= 1e-7;
        if self.groups.is_empty() {
            return refuse("groups", "none".into(), "one for every training example");
        }
        if self.penalties.is_empty() || !self.penalties.iter().all(positive) {
            let got = format!("{:?}", self.penalties);
            return refuse(
                "penalties",
                got,
                "at least one, each at least 1e-7 and finite",
            );
        }
        if self.exponents.is_empty() || !self.exponents.iter().all(|e| (0.0..=1.0).contains(e)) {
            let got = format!("{:?}", self.exponents);
            return refuse("exponents", got, "at least one, each from 0 to 1");
        }
        let power = |q: &f64| *q > 0.0 && *q <= 1.0;
        if self.rate_exponents.is_empty() || !self.rate_exponents.iter().all(power) {
            let got = format!("{:?}", self.rate_exponents);
            return refuse("rate_exponents", got, "at least one, each above 0, to 1");
        }
        if !self.pulls.iter().all(|pull| (0.0..=1.0).contains(pull)) {
            let got = format!("{:?}", self.pulls);
            return refuse("pulls", got, "each from 0 to 1");
        }
        let strengths = &self.example_strengths;
        if !strengths.iter().all(|s| s.is_finite() && *s > 0.0) {
            let got = format!("{strengths:?}");
            return refuse("example_strengths", got, "each above 0 and finite");
        }
        if self.rank == Some(0) {
            return refuse("rank", "0".into(), "at least 1");
        }
        if self.folds < 2 {
            return refuse("folds", self.folds.to_string(), "at least 2");
        }
        Ok(OptimizerDynamicsValidParams {
            params: self,
            linearised: None,
        })
    }
}

/// Settings that have been checked; they can be fitted with ([`simfluence_core::Fit`]).
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerDynamicsValidParams {
    pub(super) params: OptimizerDynamicsParams,
    pub(super) linearised: Option<Arc<LinearisedSimulator>>,
}

impl OptimizerDynamicsValidParams {
    /// The settings as they were given.
    pub fn params(&self) -> &OptimizerDynamicsParams {
        &self.params
    }

    /// Takes the linearised model into the mean of the closed loops, with the weight that left-out
    /// runs give it. It has to be fitted on the same runs.
    #[must_use]
    pub fn with_linearised(mut self, simulator: LinearisedSimulator) -> Self {
        let wanted = self.params.has(Ingredient::Linearised);
        self.linearised = wanted.then(|| Arc::new(simulator));
        self
    }
}
