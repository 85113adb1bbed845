//! The solver `exact`: preconditioned conjugate gradients on the normal equations of
//! [`LANES`](crate::LANES) test examples at once, down to rounding; dense Cholesky where they do
//! not get there.
//!
//! The time goes into reading vectors from the caches, so the gradients run in single precision,
//! which halves that, inside an iterative refinement: the residual is computed in double
//! precision, its correction in single, until the *double-precision* residual is below the
//! tolerance. Where single precision makes no progress the corrections go on in double precision.

use crate::aligned::Aligned;
use crate::gradients::{Goal, Gradients};
use crate::preconditioner::{invert_blocks, norm};
use crate::teacher_forced::{Block, Target};
use crate::{FitError, dense};

/// Largest number of parameters for which the dense solver is tried (a matrix of 128 MiB).
const DENSE_LIMIT: usize = 4096;
/// Corrections allowed; three are usual.
const CORRECTIONS: usize = 12;
/// A reached residual may exceed the tolerance by this factor: the recursion of conjugate
/// gradients and the true residual differ a little.
const SLACK: f64 = 1.5;
/// Reduction of the residual that a correction aims at, at most: what single precision resolves.
const RESOLVED: f64 = 1e-5;
/// A correction in single precision that leaves more than this share of the squared residual is
/// the last of its kind.
const STALLED: f64 = 1e-2;
/// Relative residual that counts as solved although the tolerance is finer: the rounding of an
/// ill-conditioned system.
const ROUNDING: f64 = 1e-10;

/// The solution of a block.
pub(crate) struct Solved<const N: usize> {
    /// `d`, `[n × K]`.
    pub parameters: Aligned<f64, N>,
    /// Iterations per test example.
    pub iterations: [u64; N],
    /// Objective per test example.
    pub objective: [f64; N],
}

/// Where a solution begins.
pub(crate) struct Start<const N: usize> {
    /// `d`, `[n × K]`.
    pub parameters: Aligned<f64, N>,
    /// `Φᵀ y − (Φᵀ Φ + Λ) d`, `[n × K]`.
    pub residual: Aligned<f64, N>,
}

/// Solves a block.
pub(crate) fn solve<const K: usize, const N: usize>(
    block: &Block<K, N>,
    target: &Target,
) -> Result<Solved<N>, FitError> {
    let start = Start {
        parameters: Aligned::zeros(block.right_side.len()),
        residual: block.right_side.clone(),
    };
    Ok(solve_from(block, target, start)?.0)
}

/// As [`solve`], from `start`; gives the residual of the solution as well.
pub(crate) fn solve_from<const K: usize, const N: usize>(
    block: &Block<K, N>,
    target: &Target,
    start: Start<N>,
) -> Result<(Solved<N>, Aligned<f64, N>), FitError> {
    let mut state = refine(block, target, start);
    let mut replaced = false;
    for lane in 0..N {
        // A NaN is unsolved as well.
        let solved = state.relative[lane] <= (10.0 * target.tolerance).max(ROUNDING);
        if !solved {
            let solution = solve_dense(block, target, &state, lane)?;
            for (p, value) in state.parameters.iter_mut().zip(solution) {
                p[lane] = value;
            }
            replaced = true;
        }
    }
    if replaced {
        let penalty = target.penalty.of(target.form.variant);
        state.objective = block.residual(penalty, &state.parameters, &mut state.residual);
    }
    let solved = Solved {
        parameters: state.parameters,
        iterations: state.iterations,
        objective: state.objective,
    };
    Ok((solved, state.residual))
}

/// The solution of a lane that the gradients did not solve.
fn solve_dense<const K: usize, const N: usize>(
    block: &Block<K, N>,
    target: &Target,
    state: &Reached<N>,
    lane: usize,
) -> Result<Vec<f64>, FitError> {
    let test = block.data.first + lane;
    if block.right_side.len() > DENSE_LIMIT {
        return Err(FitError::NotConverged {
            test,
            solver: "exact",
            iterations: state.iterations[lane],
            residual: state.relative[lane],
            tolerance: target.tolerance,
        });
    }
    let penalty = target.penalty.of(target.form.variant);
    dense::solve(block, penalty, lane).ok_or(FitError::NotIdentified {
        test,
        lambda_a: target.penalty.a,
        lambda_b: target.penalty.b,
    })
}

/// Iterative refinement: the residual in double precision, its correction by conjugate gradients
/// in single precision as long as that makes progress.
fn refine<const K: usize, const N: usize>(
    block: &Block<K, N>,
    target: &Target,
    start: Start<N>,
) -> Reached<N> {
    let Start {
        parameters: mut x,
        residual: mut r,
    } = start;
    let penalty = target.penalty.of(target.form.variant);
    let inverse = invert_blocks::<K, N>(&block.diagonal, penalty);
    let scale = norm::<K, N>(&inverse, &block.right_side);
    let mut norms = norm::<K, N>(&inverse, &r);
    let mut engine = Engine::Single(Gradients::new(block.normal_single(penalty), &inverse));
    let (mut objective, mut iterations) = (None, [0; N]);
    for _ in 0..CORRECTIONS {
        let goal = goal(target, &norms, &scale);
        if goal.units == [0.0; N] {
            break;
        }
        let used = match &mut engine {
            Engine::Single(gradients) => gradients.correct(&mut x, &r, &goal),
            Engine::Double(gradients) => gradients.correct(&mut x, &r, &goal),
        };
        iterations = std::array::from_fn(|l| iterations[l] + used[l]);
        objective = Some(block.residual(penalty, &x, &mut r));
        let before = std::mem::replace(&mut norms, norm::<K, N>(&inverse, &r));
        let stalled = |l: usize| goal.units[l] > 0.0 && norms[l] > STALLED * before[l];
        if (0..N).any(stalled) {
            engine = Engine::Double(Gradients::new(block.normal(penalty), &inverse));
        }
    }
    Reached {
        objective: objective.unwrap_or_else(|| block.residual(penalty, &x, &mut r)),
        parameters: x,
        iterations,
        residual: r,
        relative: std::array::from_fn(|l| relative(norms[l], scale[l])),
    }
}

struct Reached<const N: usize> {
    parameters: Aligned<f64, N>,
    iterations: [u64; N],
    /// The true residual.
    residual: Aligned<f64, N>,
    /// Its norm over that of the right side, both in the norm of the preconditioner.
    relative: [f64; N],
    objective: [f64; N],
}

/// The precision that corrections are computed in.
enum Engine<'a, const K: usize, const N: usize> {
    Single(Gradients<'a, f32, K, N>),
    Double(Gradients<'a, f64, K, N>),
}

/// What the next correction has to do, from the squared norms of residual and right side.
fn goal<const N: usize>(target: &Target, norms: &[f64; N], scale: &[f64; N]) -> Goal<N> {
    let residual: [f64; N] = std::array::from_fn(|l| relative(norms[l], scale[l]));
    let wanted = |l: usize| residual[l] > target.tolerance * SLACK;
    Goal {
        units: std::array::from_fn(|l| if wanted(l) { norms[l].sqrt() } else { 0.0 }),
        reduction: residual.map(|r| (target.tolerance / r).clamp(RESOLVED, 1.0)),
        max_iterations: target.max_iterations,
    }
}

/// `√(reached / scale)`, 0 where there is nothing to reach.
fn relative(reached: f64, scale: f64) -> f64 {
    if scale == 0.0 {
        return 0.0;
    }
    (reached / scale).sqrt()
}
