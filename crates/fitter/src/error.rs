//! What can go wrong in a fit.

/// Why a problem cannot be set up or solved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    /// A training id out of range or an exposure that is not finite.
    #[error(
        "step {step}: training id {id} with exposure {exposure}; ids must be below {train_count} and exposures finite"
    )]
    Exposure {
        /// Step, counted from 1.
        step: usize,
        /// The training id.
        id: u32,
        /// Number of training examples.
        train_count: usize,
        /// Its exposure.
        exposure: f64,
    },
    /// A sequence whose parts do not fit together.
    #[error("sequence {sequence}: expected {expected} {what}, got {got}")]
    Shape {
        /// Index of the sequence.
        sequence: usize,
        /// What is counted.
        what: &'static str,
        /// Number wanted.
        expected: usize,
        /// Number found.
        got: usize,
    },
    /// Evaluated steps that do not increase or lie outside `0..=T`.
    #[error(
        "sequence {sequence}: evaluated step {got} after {before:?}; evaluated steps must increase and lie in 0..={steps}"
    )]
    EvaluatedSteps {
        /// Index of the sequence.
        sequence: usize,
        /// The evaluated step before.
        before: Option<u32>,
        /// The offending one.
        got: u32,
        /// Steps of the sequence.
        steps: usize,
    },
    /// A measured loss that is NaN or infinite.
    #[error(
        "sequence {sequence}, step {step}, test example {test}: the loss is {got}; leave runs that diverged out of the fit"
    )]
    LossNotFinite {
        /// Index of the sequence.
        sequence: usize,
        /// The evaluated step.
        step: u32,
        /// The test example.
        test: usize,
        /// The loss.
        got: f64,
    },
    /// No row to fit on.
    #[error(
        "no two consecutive steps were both measured in any of the {sequences} runs (smallest distance between evaluations: {smallest_gap} steps), and the fit needs L_(t-1) and L_t; record with eval_every = 1"
    )]
    NoConsecutivePair {
        /// Number of runs looked at.
        sequences: usize,
        /// Smallest distance between two evaluated steps, 0 where no run has two.
        smallest_gap: u32,
    },
    /// No run that can be simulated from its true `L_0`.
    #[error(
        "none of the {sequences} runs has the losses of all test examples before the first step (L_0) and a later evaluation, which simulated comparison with the real run needs"
    )]
    NoRollout {
        /// Number of runs looked at.
        sequences: usize,
    },
    /// A setting out of range.
    #[error("{name} is {got}; it must be {must}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// What was given.
        got: String,
        /// What it must be.
        must: &'static str,
    },
    /// A solver that cannot minimise this objective.
    #[error(
        "the rollout objective is not quadratic, so the solver {solver} cannot minimise it; use lbfgs"
    )]
    NotQuadratic {
        /// Name of the solver.
        solver: &'static str,
    },
    /// A solver that did not reach its tolerance.
    #[error(
        "test example {test}: {solver} stopped after {iterations} iterations at a relative residual of {residual:e} (wanted {tolerance:e}); raise the penalty or the number of iterations"
    )]
    NotConverged {
        /// The test example.
        test: usize,
        /// Name of the solver.
        solver: &'static str,
        /// Iterations made.
        iterations: u64,
        /// Residual reached.
        residual: f64,
        /// Residual wanted.
        tolerance: f64,
    },
    /// Normal equations without a unique solution.
    #[error(
        "test example {test}: the recorded steps do not identify the parameters (the normal equations are singular at λ_A = {lambda_a}, λ_B = {lambda_b}); raise the penalty"
    )]
    NotIdentified {
        /// The test example.
        test: usize,
        /// Penalty on A.
        lambda_a: f64,
        /// Penalty on B.
        lambda_b: f64,
    },
    /// argmin gave up.
    #[error("test example {test}: {solver} failed: {problem}")]
    Solver {
        /// The test example.
        test: usize,
        /// Name of the solver.
        solver: &'static str,
        /// What it says.
        problem: String,
    },
    /// A rollout that grows without bound where the optimisation has to start.
    #[error(
        "test example {test}: simulated losses overflow with the teacher-forced parameters, so the rollout objective has no place to start from; raise the penalty"
    )]
    RolloutOverflow {
        /// The test example.
        test: usize,
    },
    /// Too few groups of runs for leave-run-out validation.
    #[error(
        "leave-run-out validation needs at least 2 groups of runs with different curricula, got {groups}; record more runs or give the penalties"
    )]
    TooFewGroups {
        /// Groups found.
        groups: usize,
    },
    /// Every candidate penalty gives rollouts that overflow.
    #[error(
        "with every one of the {candidates} candidate penalties some simulated left-out run overflows; add larger penalties to the grid"
    )]
    NoFinitePenalty {
        /// Number of candidates.
        candidates: usize,
    },
}
