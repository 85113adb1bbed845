//! The solvers `cg` and `lbfgs`: argmin's, on the teacher-forced problem of one test example.
//!
//! Both work in the variables of [`Whitening`] and are started again from the residual they
//! really reached (with that residual scaled to 1), until it is below the tolerance: a line
//! search that compares values of the objective cannot resolve more than half of the digits at
//! once.

use crate::aligned::Aligned;
use crate::exact::Solved;
use crate::teacher_forced::{Block, Target};
use crate::whitening::Whitening;
use crate::{FitError, Solver};
use argmin::core::{CostFunction, Error, Executor, Gradient, Operator, State};
use argmin::solver::conjugategradient::ConjugateGradient;
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use nalgebra::DVector;

/// Times that a solver is started.
const STARTS: usize = 8;
/// Steps that L-BFGS remembers.
pub(crate) const MEMORY: usize = 10;
/// Relative residual that a start of L-BFGS aims at.
const RESOLVED: f64 = 1e-6;

type Vector = DVector<f64>;

/// `C⁻¹ (Φᵀ Φ + Λ) C⁻ᵀ` of one test example.
struct Normal<'a, const K: usize> {
    block: &'a Block<'a, K, 1>,
    penalty: [f64; 2],
    whitening: &'a Whitening<K>,
}

impl<const K: usize> Normal<'_, K> {
    fn times(&self, u: &Vector) -> Vector {
        let d = self.whitening.to_parameters(u);
        let mut out = vec![[0.0]; d.len()];
        self.block.normal(self.penalty).apply(&d, &mut out);
        self.whitening.to_gradient(&out)
    }
}

/// `½ uᵀ G u − rᵀ u`, whose minimum solves `G u = r`.
struct Quadratic<'a, const K: usize> {
    normal: &'a Normal<'a, K>,
    right: &'a Vector,
}

impl<const K: usize> Operator for Quadratic<'_, K> {
    type Param = Vector;
    type Output = Vector;

    fn apply(&self, u: &Vector) -> Result<Vector, Error> {
        Ok(self.normal.times(u))
    }
}

impl<const K: usize> CostFunction for Quadratic<'_, K> {
    type Param = Vector;
    type Output = f64;

    fn cost(&self, u: &Vector) -> Result<f64, Error> {
        Ok(0.5 * u.dot(&self.normal.times(u)) - self.right.dot(u))
    }
}

impl<const K: usize> Gradient for Quadratic<'_, K> {
    type Param = Vector;
    type Gradient = Vector;

    fn gradient(&self, u: &Vector) -> Result<Vector, Error> {
        Ok(self.normal.times(u) - self.right)
    }
}

/// The best `u` for `G u = r` with `‖r‖ = 1`, if any progress was made, and the iterations.
type Answer = Result<(Option<Vector>, u64), Error>;

/// Solves by argmin's conjugate gradients.
pub(crate) fn conjugate_gradients<const K: usize>(
    block: &Block<K, 1>,
    target: &Target,
) -> Result<Solved<1>, FitError> {
    repeat(block, target, Solver::Cg, |quadratic, tolerance| {
        let solver = ConjugateGradient::new(quadratic.right.clone());
        let zero = Vector::zeros(quadratic.right.len());
        // The cost that this solver reports is the squared norm of its residual.
        let mut state = Executor::new(quadratic, solver)
            .configure(|state| {
                state
                    .param(zero)
                    .max_iters(target.max_iterations)
                    .target_cost(tolerance * tolerance)
            })
            .ctrlc(false)
            .run()?
            .state;
        let iterations = state.get_iter();
        Ok((state.take_best_param(), iterations))
    })
}

/// Solves by argmin's L-BFGS.
pub(crate) fn lbfgs<const K: usize>(
    block: &Block<K, 1>,
    target: &Target,
) -> Result<Solved<1>, FitError> {
    repeat(block, target, Solver::Lbfgs, |quadratic, tolerance| {
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY)
            .with_tolerance_grad(tolerance.max(RESOLVED))?
            .with_tolerance_cost(0.0)?;
        let zero = Vector::zeros(quadratic.right.len());
        let mut state = Executor::new(quadratic, solver)
            .configure(|state| state.param(zero).max_iters(target.max_iterations))
            .ctrlc(false)
            .run()?
            .state;
        let iterations = state.get_iter();
        Ok((state.take_best_param(), iterations))
    })
}

fn repeat<const K: usize>(
    block: &Block<K, 1>,
    target: &Target,
    solver: Solver,
    solve: impl Fn(Quadratic<'_, K>, f64) -> Answer,
) -> Result<Solved<1>, FitError> {
    let test = block.data.first;
    let penalty = target.penalty.of(target.form.variant);
    let whitening = Whitening::new(block, penalty);
    let normal = Normal {
        block,
        penalty,
        whitening: &whitening,
    };
    let right = whitening.to_gradient(&block.right_side);
    let scale = right.norm();
    let mut u = Vector::zeros(right.len());
    let (mut rest, mut iterations) = (right.clone(), 0);
    for _ in 0..STARTS {
        let reached = rest.norm();
        if scale == 0.0 || reached <= target.tolerance * scale {
            break;
        }
        let unit = &rest / reached;
        let quadratic = Quadratic {
            normal: &normal,
            right: &unit,
        };
        let (step, used) =
            solve(quadratic, target.tolerance * scale / reached).map_err(|error| {
                FitError::Solver {
                    test,
                    solver: solver.name(),
                    problem: error.to_string(),
                }
            })?;
        iterations += used;
        let Some(step) = step else { break };
        u += step * reached;
        rest = &right - normal.times(&u);
    }
    let residual = if scale == 0.0 {
        0.0
    } else {
        rest.norm() / scale
    };
    // Not `>`: a NaN is unsolved as well.
    let solved = residual <= (10.0 * target.tolerance).max(1e-10);
    if !solved {
        return Err(FitError::NotConverged {
            test,
            solver: solver.name(),
            iterations,
            residual,
            tolerance: target.tolerance,
        });
    }
    let parameters = Aligned::from(&whitening.to_parameters(&u)[..]);
    Ok(Solved {
        objective: block.residual(penalty, &parameters, &mut vec![[0.0]; parameters.len()]),
        parameters,
        iterations: [iterations],
    })
}
