//! Fits all test examples: blocks in parallel, one solver each.

use crate::aligned::Aligned;
use crate::lanes::LANES;
use crate::parameters::{Parameters, finish_block};
use crate::teacher_forced::{Block, Form, Rows, Target};
use crate::{FitError, Penalty, Problem, Shrinkage, Variant, argmin_solvers, exact, rollout};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use simfluence_core::Progress;

/// How the least-squares problem is solved; all agree to 1e-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Block-preconditioned conjugate gradients on eight test examples at once, to rounding;
    /// dense Cholesky where they do not get there. The fastest.
    #[default]
    Exact,
    /// argmin's conjugate gradients.
    Cg,
    /// argmin's L-BFGS with the line search of Moré and Thuente.
    Lbfgs,
}

impl Solver {
    /// The name as it stands on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Cg => "cg",
            Self::Lbfgs => "lbfgs",
        }
    }
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// `Σ_t (L_t − α_t L_{t-1} − β_t)² + λ_A‖A − A₀‖² + λ_B‖B‖²` with the recorded `L_{t-1}`.
    #[default]
    TeacherForced,
    /// `Σ_t (L̂_t − L_t)² + λ_A‖A − A*‖² + λ_B‖B − B*‖²` with `L̂` simulated from `L_0`, and
    /// `A*`, `B*` the teacher-forced solution. The anchor is needed: without it the rollout
    /// error overfits.
    Rollout,
}

/// Everything that a fit needs beside the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitSettings {
    /// Fitted terms, default linear.
    pub variant: Variant,
    /// What `A` is shrunk to, default 1.
    pub shrinkage: Shrinkage,
    /// Ridge penalties. With 0, of several parameters that fit alike those close to `A₀` and 0.
    pub penalty: Penalty,
    /// What is minimised, default teacher-forced.
    pub objective: Objective,
    /// How, default exact.
    pub solver: Solver,
    /// Relative residual (teacher-forced) or relative gradient (rollout) to reach, default 1e-12
    /// and 1e-6.
    pub tolerance: f64,
    /// Iterations allowed per test example.
    pub max_iterations: u64,
}

/// Default tolerance of the teacher-forced objective.
pub const TEACHER_FORCED_TOLERANCE: f64 = 1e-12;
/// Default tolerance of the rollout objective.
pub const ROLLOUT_TOLERANCE: f64 = 1e-6;
/// Default number of iterations.
pub const MAX_ITERATIONS: u64 = 2000;

impl FitSettings {
    /// The defaults with these penalties.
    pub fn new(penalty: Penalty) -> Self {
        Self {
            variant: Variant::default(),
            shrinkage: Shrinkage::default(),
            penalty,
            objective: Objective::default(),
            solver: Solver::default(),
            tolerance: TEACHER_FORCED_TOLERANCE,
            max_iterations: MAX_ITERATIONS,
        }
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            form: Form {
                variant: self.variant,
                shrinkage: self.shrinkage,
            },
            penalty: self.penalty,
            tolerance: self.tolerance,
            max_iterations: self.max_iterations,
        }
    }

    /// Checks the values against their ranges.
    ///
    /// # Errors
    /// A penalty that is negative or not finite, a tolerance outside `(0, 1)`, no iterations, a
    /// solver that cannot minimise the objective.
    pub fn check(&self) -> Result<(), FitError> {
        self.penalty.check()?;
        if !(self.tolerance > 0.0 && self.tolerance < 1.0) {
            return Err(FitError::Setting {
                name: "tolerance",
                got: self.tolerance.to_string(),
                must: "between 0 and 1",
            });
        }
        if self.max_iterations == 0 {
            return Err(FitError::Setting {
                name: "max_iterations",
                got: "0".to_owned(),
                must: "at least 1",
            });
        }
        if self.objective == Objective::Rollout && self.solver != Solver::Lbfgs {
            return Err(FitError::NotQuadratic {
                solver: self.solver.name(),
            });
        }
        Ok(())
    }
}

/// What a fit gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The parameters of all test examples.
    pub parameters: Parameters,
    /// Value of the objective per test example, `[m]`.
    pub objective: Vec<f64>,
    /// Iterations per test example, `[m]`.
    pub iterations: Vec<u64>,
}

/// Fits every test example on the given sequences.
///
/// Blocks of eight test examples are fitted in parallel; the results do not depend on the number
/// of threads. A training example that no measured step of a test example contains gets the
/// neutral parameters `A = 1`, `B = 0`, with either shrinkage target.
///
/// # Errors
/// No two consecutive measured steps, settings out of range, a system that the data do not
/// determine or that was not solved to the tolerance.
///
/// # Reference
/// Guu et al. (2023), "Simfluence: Modeling the Influence of Individual Training Examples by
/// Simulating Training Runs", section 3.
pub fn fit(
    problem: &Problem,
    sequences: &[usize],
    settings: &FitSettings,
    progress: &dyn Progress,
) -> Result<Fitted, FitError> {
    settings.check()?;
    let rows = Rows::new(problem, sequences)?;
    let rollouts: Vec<usize> = match settings.objective {
        Objective::TeacherForced => Vec::new(),
        Objective::Rollout => rollout::sequences(problem, sequences)?,
    };
    progress.begin("fitting test examples", problem.test_count as u64);
    let blocks: Result<Vec<FittedBlock>, FitError> = (0..problem.test_count.div_ceil(LANES))
        .into_par_iter()
        .map(|block| {
            let first = block * LANES;
            let fitted = match settings.variant.terms() {
                1 => fit_block::<1>(problem, &rows, &rollouts, settings, first),
                _ => fit_block::<2>(problem, &rows, &rollouts, settings, first),
            }?;
            progress.advance(LANES.min(problem.test_count - first) as u64);
            Ok(fitted)
        })
        .collect();
    progress.end();
    Ok(gather(problem, settings.variant, blocks?))
}

struct FittedBlock {
    parameters: Aligned<f64, LANES>,
    objective: [f64; LANES],
    iterations: [u64; LANES],
}

fn gather(problem: &Problem, variant: Variant, blocks: Vec<FittedBlock>) -> Fitted {
    let m = problem.test_count;
    Fitted {
        objective: blocks.iter().flat_map(|b| b.objective).take(m).collect(),
        iterations: blocks.iter().flat_map(|b| b.iterations).take(m).collect(),
        parameters: Parameters::from_blocks(
            variant,
            problem.train_count(),
            m,
            blocks.into_iter().map(|b| b.parameters).collect(),
        ),
    }
}

fn fit_block<const K: usize>(
    problem: &Problem,
    rows: &Rows,
    rollouts: &[usize],
    settings: &FitSettings,
    first: usize,
) -> Result<FittedBlock, FitError> {
    let target = settings.target();
    if settings.solver == Solver::Exact {
        let block = Block::<K, LANES>::new(problem, rows, target.form, first);
        let mut solved = exact::solve(&block, &target)?;
        let seen = |id, lane| block.has_seen(id, lane);
        finish_block(
            settings.variant,
            settings.shrinkage,
            &mut solved.parameters,
            seen,
        );
        return Ok(FittedBlock {
            parameters: solved.parameters,
            objective: solved.objective,
            iterations: solved.iterations,
        });
    }
    let mut fitted = FittedBlock {
        parameters: Aligned::zeros(problem.train_count() * K),
        objective: [0.0; LANES],
        iterations: [0; LANES],
    };
    for lane in 0..LANES.min(problem.test_count - first) {
        let test = first + lane;
        let block = Block::<K, 1>::new(problem, rows, target.form, test);
        let mut single = match (settings.objective, settings.solver) {
            (Objective::Rollout, _) => rollout::solve(problem, &block, rollouts, &target)?,
            (_, Solver::Cg) => argmin_solvers::conjugate_gradients(&block, &target)?,
            _ => argmin_solvers::lbfgs(&block, &target)?,
        };
        let seen = |id, lane| block.has_seen(id, lane);
        finish_block(
            settings.variant,
            settings.shrinkage,
            &mut single.parameters,
            seen,
        );
        for (all, one) in fitted.parameters.iter_mut().zip(single.parameters.iter()) {
            all[lane] = one[0];
        }
        fitted.objective[lane] = single.objective[0];
        fitted.iterations[lane] = single.iterations[0];
    }
    Ok(fitted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{noisy_problem, problem_with_noise, truth};
    use crate::{Exposures, Sequence};
    use nalgebra::{DMatrix, DVector};
    use proptest::prelude::*;
    use simfluence_core::NoProgress;

    const PENALTY: Penalty = Penalty { a: 0.2, b: 0.05 };

    fn fit_all(problem: &Problem, settings: &FitSettings) -> Result<Fitted, FitError> {
        fit(problem, &problem.all_sequences(), settings, &NoProgress)
    }

    /// `(A, B)` of one test example by the dense normal equations of the explicit matrix.
    fn dense(problem: &Problem, test: usize, penalty: Penalty) -> Vec<f64> {
        let (n, rows) = (
            problem.train_count(),
            Rows::new(problem, &problem.all_sequences()).unwrap(),
        );
        let mut phi = DMatrix::<f64>::zeros(rows.len(), 2 * n);
        let mut y = DVector::<f64>::zeros(rows.len());
        for (row, &(before, after)) in rows.evaluations.iter().enumerate() {
            let previous = problem.loss(before, test).unwrap();
            y[row] = problem.loss(after, test).unwrap() - previous;
            for (id, x) in rows.exposures.row(row) {
                phi[(row, id as usize)] = x * previous;
                phi[(row, n + id as usize)] = x;
            }
        }
        let ridge = DVector::from_fn(2 * n, |p, _| if p < n { penalty.a } else { penalty.b });
        let normal = phi.transpose() * &phi + DMatrix::from_diagonal(&ridge);
        let mut solution = normal.lu().solve(&(phi.transpose() * y)).unwrap();
        for p in 0..n {
            solution[p] += 1.0;
        }
        solution.as_slice().to_vec()
    }

    fn parameters_of(fitted: &Fitted, test: usize) -> Vec<f64> {
        let n = fitted.parameters.train_count();
        let a = (0..n).map(|i| fitted.parameters.a(i, test));
        a.chain((0..n).map(|i| fitted.parameters.b(i, test)))
            .collect()
    }

    fn relative_error(got: &[f64], expected: &[f64]) -> f64 {
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut got.iter().zip(expected).map(|(g, e)| g - e));
        difference / norm(&mut expected.iter().copied())
    }

    #[test]
    fn ref_exact_agrees_with_the_dense_normal_equations() {
        let problem = noisy_problem(30, 11, 6, 60, 4, 3);
        for scale in [1e-4, 1e-2, 1.0, 100.0] {
            let penalty = Penalty {
                a: PENALTY.a * scale,
                b: PENALTY.b * scale,
            };
            let fitted = fit_all(&problem, &FitSettings::new(penalty)).unwrap();
            for test in [0, 7, 8, 10] {
                let error = relative_error(
                    &parameters_of(&fitted, test),
                    &dense(&problem, test, penalty),
                );
                assert!(
                    error <= 1e-10,
                    "scale {scale}, test example {test}: {error:e}"
                );
            }
        }
    }

    #[test]
    fn ref_a_nearly_singular_system_is_solved_as_the_dense_solver_does() {
        // More parameters than rows and almost no penalty: single precision cannot follow.
        let problem = noisy_problem(40, 2, 2, 30, 3, 11);
        let penalty = Penalty { a: 1e-6, b: 1e-6 };
        let fitted = fit_all(&problem, &FitSettings::new(penalty)).unwrap();
        for test in 0..2 {
            let expected = dense(&problem, test, penalty);
            let error = relative_error(&parameters_of(&fitted, test), &expected);
            assert!(error <= 1e-8, "{error:e}");
        }
    }

    #[test]
    fn cg_and_lbfgs_agree_with_exact() {
        let problem = noisy_problem(40, 9, 5, 50, 4, 4);
        for variant in [Variant::Linear, Variant::Additive, Variant::Multiplicative] {
            for shrinkage in [Shrinkage::One, Shrinkage::Zero] {
                let mut settings = FitSettings::new(PENALTY);
                settings.variant = variant;
                settings.shrinkage = shrinkage;
                let exact = fit_all(&problem, &settings).unwrap();
                for solver in [Solver::Cg, Solver::Lbfgs] {
                    settings.solver = solver;
                    let other = fit_all(&problem, &settings).unwrap();
                    for test in 0..9 {
                        let (got, expected) =
                            (parameters_of(&other, test), parameters_of(&exact, test));
                        let error = relative_error(&got, &expected);
                        assert!(error <= 1e-8, "{variant:?} {solver:?} {test}: {error:e}");
                    }
                    let values = other.objective.iter().zip(&exact.objective);
                    assert!(values.clone().all(|(o, e)| (o / e - 1.0).abs() <= 1e-12));
                }
            }
        }
    }

    #[test]
    fn noiseless_runs_give_the_true_parameters_back() {
        let (n, m) = (12, 5);
        let problem = problem_with_noise((n, m), 8, 40, 2, 9, 0.0);
        let fitted = fit_all(&problem, &FitSettings::new(Penalty { a: 1e-10, b: 1e-10 })).unwrap();
        let (a, b) = truth(n, m);
        assert!(relative_error(&fitted.parameters.a_table(), &a) <= 1e-6);
        assert!(relative_error(&fitted.parameters.b_table(), &b) <= 1e-6);
    }

    #[test]
    fn without_a_penalty_identified_parameters_are_found() {
        let (n, m) = (6, 2);
        let problem = problem_with_noise((n, m), 8, 40, 2, 2, 0.0);
        let fitted = fit_all(&problem, &FitSettings::new(Penalty { a: 0.0, b: 0.0 })).unwrap();
        assert!(relative_error(&fitted.parameters.a_table(), &truth(n, m).0) <= 1e-9);
    }

    #[test]
    fn without_a_penalty_examples_that_only_come_together_share_their_effect() {
        let mut exposures = Exposures::new(2);
        for _ in 0..3 {
            exposures.push([(0, 0.5), (1, 0.5)]).unwrap();
        }
        let run = Sequence {
            exposures,
            steps: vec![0, 1, 2, 3],
            losses: vec![3.0, 2.5, 2.3, 2.0],
            measured: None,
        };
        let twins = Problem::new(2, 1, vec![run]).unwrap();
        let fitted = fit_all(&twins, &FitSettings::new(Penalty { a: 0.0, b: 0.0 })).unwrap();
        let parameters = fitted.parameters;
        assert!((parameters.a(0, 0) - parameters.a(1, 0)).abs() <= 1e-9);
        assert!((parameters.b(0, 0) - parameters.b(1, 0)).abs() <= 1e-9);
    }

    #[test]
    fn an_example_never_seen_is_neutral_with_either_target() {
        let run = |exposures: Exposures| Sequence {
            steps: (0..=exposures.len() as u32).collect(),
            losses: (0..=exposures.len())
                .map(|t| 3.0 - 0.3 * t as f64)
                .collect(),
            exposures,
            measured: None,
        };
        let mut exposures = Exposures::new(3);
        exposures.push([(0, 1.0)]).unwrap();
        exposures.push([(2, 1.0)]).unwrap();
        let problem = Problem::new(3, 1, vec![run(exposures)]).unwrap();
        for shrinkage in [Shrinkage::One, Shrinkage::Zero] {
            for solver in [Solver::Exact, Solver::Cg, Solver::Lbfgs] {
                let mut settings = FitSettings::new(PENALTY);
                settings.shrinkage = shrinkage;
                settings.solver = solver;
                let fitted = fit_all(&problem, &settings).unwrap().parameters;
                assert_eq!((fitted.a(1, 0), fitted.b(1, 0)), (1.0, 0.0));
                assert_ne!(fitted.a(0, 0), 1.0);
            }
        }
    }

    #[test]
    fn rare_evaluations_without_a_consecutive_pair_are_a_clear_error() {
        let mut exposures = Exposures::new(1);
        for _ in 0..6 {
            exposures.push([(0, 1.0)]).unwrap();
        }
        let run = Sequence {
            exposures,
            steps: vec![0, 3, 5],
            losses: vec![3.0, 2.0, 1.0],
            measured: None,
        };
        let problem = Problem::new(1, 1, vec![run]).unwrap();
        let error = fit_all(&problem, &FitSettings::new(PENALTY)).unwrap_err();
        assert_eq!(
            error,
            FitError::NoConsecutivePair {
                sequences: 1,
                smallest_gap: 2
            }
        );
        assert!(error.to_string().contains("eval_every"));
    }

    #[test]
    fn a_loss_that_was_not_measured_leaves_its_rows_out_for_that_test_example_only() {
        let full = noisy_problem(5, 3, 1, 30, 2, 8);
        let rebuild = |measured: Option<Vec<bool>>, steps: usize| {
            let mut exposures = Exposures::new(5);
            for t in 0..steps {
                exposures.push(full.exposures.row(t)).unwrap();
            }
            let losses = (0..=steps).flat_map(|e| (0..3).map(move |j| (e, j)));
            Sequence {
                exposures,
                steps: (0..=steps as u32).collect(),
                losses: losses.map(|(e, j)| full.loss(e, j).unwrap()).collect(),
                measured,
            }
        };
        // Test example 1 is not measured after step 20.
        let measured = (0..31 * 3).map(|p| p % 3 != 1 || p / 3 <= 20).collect();
        let settings = FitSettings::new(PENALTY);
        let partial = Problem::new(5, 3, vec![rebuild(Some(measured), 30)]).unwrap();
        let short = Problem::new(5, 3, vec![rebuild(None, 20)]).unwrap();
        let got = fit_all(&partial, &settings).unwrap();
        let (all, first) = (
            fit_all(&full, &settings).unwrap(),
            fit_all(&short, &settings).unwrap(),
        );
        assert!(relative_error(&parameters_of(&got, 1), &parameters_of(&first, 1)) <= 1e-10);
        assert!(relative_error(&parameters_of(&got, 2), &parameters_of(&all, 2)) <= 1e-10);
    }

    #[test]
    fn the_rollout_objective_lowers_the_closed_loop_error_and_keeps_to_its_anchor() {
        let problem = noisy_problem(8, 3, 4, 30, 2, 6);
        let mut settings = FitSettings::new(Penalty { a: 1.0, b: 1.0 });
        let anchor = fit_all(&problem, &settings).unwrap();
        settings.objective = Objective::Rollout;
        settings.solver = Solver::Lbfgs;
        settings.tolerance = ROLLOUT_TOLERANCE;
        let rollout = fit_all(&problem, &settings).unwrap();
        let error = |fitted: &Fitted, test: usize| closed_loop_error(&problem, fitted, test);
        for test in 0..3 {
            assert!(error(&rollout, test) < error(&anchor, test));
        }
        settings.penalty = Penalty { a: 1e8, b: 1e8 };
        let tight = fit_all(&problem, &settings).unwrap();
        let neutral = FitSettings::new(settings.penalty);
        let tight_anchor = fit_all(&problem, &neutral).unwrap();
        let error = relative_error(&parameters_of(&tight, 0), &parameters_of(&tight_anchor, 0));
        assert!(error <= 1e-4, "{error:e}");
    }

    fn closed_loop_error(problem: &Problem, fitted: &Fitted, test: usize) -> f64 {
        let mut sum = 0.0;
        for place in &problem.places {
            let mut state = problem.loss(place.evaluation, test).unwrap();
            for t in 0..place.step_count {
                let row = || problem.exposures.row(place.row + t);
                let alpha: f64 = row()
                    .map(|(i, x)| x * fitted.parameters.a(i as usize, test))
                    .sum();
                let beta: f64 = row()
                    .map(|(i, x)| x * fitted.parameters.b(i as usize, test))
                    .sum();
                state = alpha * state + beta;
                sum += (state - problem.loss(place.evaluation + t + 1, test).unwrap()).powi(2);
            }
        }
        sum
    }

    #[test]
    fn the_rollout_objective_refuses_solvers_for_quadratic_problems() {
        let problem = noisy_problem(3, 1, 1, 5, 1, 0);
        let mut settings = FitSettings::new(PENALTY);
        settings.objective = Objective::Rollout;
        for solver in [Solver::Exact, Solver::Cg] {
            settings.solver = solver;
            let error = fit_all(&problem, &settings).unwrap_err();
            assert_eq!(
                error,
                FitError::NotQuadratic {
                    solver: solver.name()
                }
            );
        }
    }

    #[test]
    fn a_system_that_is_not_solved_is_an_error() {
        let problem = noisy_problem(40, 2, 4, 40, 4, 1);
        let mut settings = FitSettings::new(Penalty { a: 1e-9, b: 1e-9 });
        settings.max_iterations = 1;
        for solver in [Solver::Cg, Solver::Lbfgs] {
            settings.solver = solver;
            let error = fit_all(&problem, &settings).unwrap_err();
            assert!(matches!(error, FitError::NotConverged { .. }), "{error}");
        }
        // `exact` falls back to the dense solver.
        settings.solver = Solver::Exact;
        let fallback = fit_all(&problem, &settings).unwrap();
        let error = relative_error(
            &parameters_of(&fallback, 1),
            &dense(&problem, 1, settings.penalty),
        );
        assert!(error <= 1e-6, "{error:e}");
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let problem = noisy_problem(25, 21, 4, 40, 3, 12);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| fit_all(&problem, &FitSettings::new(PENALTY)).unwrap())
        };
        let one = with(1);
        for threads in [2, 3, 8] {
            assert_eq!(with(threads), one);
        }
    }

    #[test]
    fn a_penalty_that_is_not_a_number_is_refused() {
        let problem = noisy_problem(3, 1, 1, 5, 1, 0);
        let error = fit_all(
            &problem,
            &FitSettings::new(Penalty {
                a: f64::NAN,
                b: 1.0,
            }),
        );
        assert!(matches!(error, Err(FitError::Setting { name: "λ_A", .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn permuted_test_examples_give_permuted_parameters(seed in 0u64..1000, shift in 1usize..13) {
            let m = 13;
            let problem = noisy_problem(7, m, 2, 20, 2, seed);
            let sequences = problem.places.iter().map(|place| {
                let mut exposures = Exposures::new(7);
                for t in 0..place.step_count {
                    exposures.push(problem.exposures.row(place.row + t)).unwrap();
                }
                let losses = (0..=place.step_count).flat_map(|e| (0..m).map(move |j| (e, j)));
                Sequence {
                    exposures,
                    steps: place.steps.clone(),
                    losses: losses
                        .map(|(e, j)| problem.loss(place.evaluation + e, (j + shift) % m).unwrap())
                        .collect(),
                    measured: None,
                }
            });
            let permuted = Problem::new(7, m, sequences.collect()).unwrap();
            let settings = FitSettings::new(PENALTY);
            let (one, other) =
                (fit_all(&problem, &settings).unwrap(), fit_all(&permuted, &settings).unwrap());
            for j in 0..m {
                prop_assert_eq!(
                    parameters_of(&other, j),
                    parameters_of(&one, (j + shift) % m)
                );
            }
        }

        #[test]
        fn an_example_twice_in_a_batch_is_one_with_twice_the_exposure(
            batches in prop::collection::vec(prop::collection::vec(0u32..4, 1..5), 4..12),
        ) {
            let sequence = |exposures: Exposures| Sequence {
                steps: (0..=exposures.len() as u32).collect(),
                losses: (0..=exposures.len()).map(|t| 3.0 + (t as f64).sin()).collect(),
                exposures,
                measured: None,
            };
            let (mut listed, mut weighted) = (Exposures::new(4), Exposures::new(4));
            for batch in &batches {
                let share = 1.0 / batch.len() as f64;
                listed.push(batch.iter().map(|&i| (i, share))).unwrap();
                let count = |i: u32| batch.iter().filter(|&&b| b == i).count() as f64;
                let present = (0..4).filter(|&i| count(i) > 0.0);
                weighted.push(present.map(|i| (i, share * count(i)))).unwrap();
            }
            let settings = FitSettings::new(PENALTY);
            let fit_to = |exposures| {
                let problem = Problem::new(4, 1, vec![sequence(exposures)]).unwrap();
                parameters_of(&fit_all(&problem, &settings).unwrap(), 0)
            };
            prop_assert!(relative_error(&fit_to(listed), &fit_to(weighted)) <= 1e-10);
        }
    }
}
