//! The solver `exact`: preconditioned conjugate gradients on the normal equations of
//! [`LANES`](crate::LANES) test examples at once, down to rounding; dense Cholesky where they do
//! not get there.
//!
//! The time goes into reading vectors from the caches, so the gradients run in single precision,
//! which halves that, inside an iterative refinement: the residual is computed in double
//! precision, its correction in single, until the *double-precision* residual is below the
//! tolerance. Where single precision makes no progress the corrections go on in double precision.
//!
//! The preconditioner is the `2 × 2` block of `(A_i, B_i)` per training example. It removes the
//! correlation between a loss and the constant 1, which is what makes the plain equations
//! ill-conditioned.

use crate::aligned::Aligned;
use crate::lanes::{Kernel, MulAdd, Real, accumulate, dispatch};
use crate::teacher_forced::{Block, Normal, RUN, Target, triangle};
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
    let penalty = target.penalty.of(target.form.variant);
    let mut state = dispatch(Refinement {
        block,
        penalty,
        target,
        start,
    });
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
        state.objective = dispatch(Residual {
            block,
            penalty,
            parameters: &state.parameters,
            residual: &mut state.residual,
        });
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

/// The residual `Φᵀ y − (Φᵀ Φ + Λ) d`; gives the objective at `d` per test example.
pub(crate) struct Residual<'a, const K: usize, const N: usize> {
    pub block: &'a Block<'a, K, N>,
    pub penalty: [f64; 2],
    pub parameters: &'a [[f64; N]],
    pub residual: &'a mut [[f64; N]],
}

impl<const K: usize, const N: usize> Kernel for Residual<'_, K, N> {
    type Output = [f64; N];

    #[inline(always)]
    fn run<M: MulAdd>(self) -> [f64; N] {
        self.block
            .residual::<M>(&self.penalty, self.parameters, self.residual)
    }
}

/// Iterative refinement: the residual in double precision, its correction by conjugate gradients
/// in single precision as long as that makes progress.
struct Refinement<'a, const K: usize, const N: usize> {
    block: &'a Block<'a, K, N>,
    penalty: [f64; 2],
    target: &'a Target,
    start: Start<N>,
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

impl<const K: usize, const N: usize> Kernel for Refinement<'_, K, N> {
    type Output = Reached<N>;

    #[inline(always)]
    fn run<M: MulAdd>(self) -> Reached<N> {
        let Self {
            block,
            penalty,
            target,
            start,
        } = self;
        let Start {
            parameters: mut x,
            residual: mut r,
        } = start;
        let inverse = invert_blocks::<K, N>(&block.diagonal, &penalty);
        let scale = norm::<K, N, M>(&inverse, &block.right_side);
        let mut norms = norm::<K, N, M>(&inverse, &r);
        let mut engine = Engine::single(block, penalty, &inverse);
        let (mut objective, mut iterations) = (None, [0; N]);
        for _ in 0..CORRECTIONS {
            let goal = Goal::new(target, &norms, &scale);
            if goal.units == [0.0; N] {
                break;
            }
            let used = engine.correct::<M>(&mut x, &r, &goal);

            iterations = std::array::from_fn(|l| iterations[l] + used[l]);
            objective = Some(block.residual::<M>(&penalty, &x, &mut r));

            let before = std::mem::replace(&mut norms, norm::<K, N, M>(&inverse, &r));
            let stalled = |l: usize| goal.units[l] > 0.0 && norms[l] > STALLED * before[l];
            if (0..N).any(stalled) {
                engine = Engine::double(block, penalty, &inverse);
            }
        }
        let objective = match objective {
            Some(objective) => objective,
            None => block.residual::<M>(&penalty, &x, &mut r),
        };
        Reached {
            parameters: x,
            iterations,
            residual: r,
            relative: std::array::from_fn(|l| relative(norms[l], scale[l])),
            objective,
        }
    }
}

/// What a correction has to do.
struct Goal<const N: usize> {
    /// Norms of the residuals; 0: leave the lane alone.
    units: [f64; N],
    /// To what share of them they are to be reduced.
    reduction: [f64; N],
    max_iterations: u64,
}

impl<const N: usize> Goal<N> {
    /// From the squared norms of residual and right side.
    #[inline(always)]
    fn new(target: &Target, norms: &[f64; N], scale: &[f64; N]) -> Self {
        let residual: [f64; N] = std::array::from_fn(|l| relative(norms[l], scale[l]));
        let wanted = |l: usize| residual[l] > target.tolerance * SLACK;
        Self {
            units: std::array::from_fn(|l| if wanted(l) { norms[l].sqrt() } else { 0.0 }),
            reduction: residual.map(|r| (target.tolerance / r).clamp(RESOLVED, 1.0)),
            max_iterations: target.max_iterations,
        }
    }
}

/// The precision that corrections are computed in.
enum Engine<'a, const K: usize, const N: usize> {
    Single(Gradients<'a, f32, K, N>),
    Double(Gradients<'a, f64, K, N>),
}

impl<'a, const K: usize, const N: usize> Engine<'a, K, N> {
    fn single(block: &'a Block<K, N>, penalty: [f64; 2], inverse: &[[f64; N]]) -> Self {
        Self::Single(Gradients::new(block.normal_single(penalty), inverse))
    }

    fn double(block: &'a Block<K, N>, penalty: [f64; 2], inverse: &[[f64; N]]) -> Self {
        Self::Double(Gradients::new(block.normal(penalty), inverse))
    }

    #[inline(always)]
    fn correct<M: MulAdd>(
        &mut self,
        x: &mut [[f64; N]],
        r: &[[f64; N]],
        goal: &Goal<N>,
    ) -> [u64; N] {
        match self {
            Self::Single(gradients) => gradients.correct::<M>(x, r, goal),
            Self::Double(gradients) => gradients.correct::<M>(x, r, goal),
        }
    }
}

/// Conjugate gradients in the precision `T`, with their vectors `[n × K]`.
struct Gradients<'a, T, const K: usize, const N: usize> {
    normal: Normal<'a, T, K, N>,
    inverse: Aligned<T, N>,
    x: Aligned<T, N>,
    r: Aligned<T, N>,
    p: Aligned<T, N>,
    q: Aligned<T, N>,
}

impl<'a, T: Real, const K: usize, const N: usize> Gradients<'a, T, K, N> {
    fn new(normal: Normal<'a, T, K, N>, inverse: &[[f64; N]]) -> Self {
        let zeros = || Aligned::zeros(inverse.len() / triangle(K) * K);
        let mut own = Aligned::zeros(inverse.len());
        for (own, from) in own.iter_mut().zip(inverse) {
            *own = from.map(T::of);
        }
        Self {
            normal,
            inverse: own,
            x: zeros(),
            r: zeros(),
            p: zeros(),
            q: zeros(),
        }
    }

    /// Adds to `x` the solution for the right side `r`. A lane that has reached its goal stands
    /// still, so that its result does not depend on its neighbours.
    #[inline(always)]
    fn correct<M: MulAdd>(
        &mut self,
        x: &mut [[f64; N]],
        r: &[[f64; N]],
        goal: &Goal<N>,
    ) -> [u64; N] {
        let units = &goal.units;
        let per_unit = units.map(|u| if u > 0.0 { u.recip() } else { 0.0 });
        for (own, from) in self.r.iter_mut().zip(r) {
            *own = std::array::from_fn(|l| T::of(from[l] * per_unit[l]));
        }
        self.x.fill([T::ZERO; N]);
        self.p.fill([T::ZERO; N]);
        self.q.fill([T::ZERO; N]);
        let goals = goal.reduction.map(|r| r * r);
        let mut iterations = [0; N];
        let mut rz = self.reduce::<M>(&[0.0; N]);
        self.turn::<M>(&[0.0; N], &[0.0; N]);
        let mut active: [bool; N] = std::array::from_fn(|l| rz[l] > goals[l]);
        for _ in 0..goal.max_iterations {
            if !active.contains(&true) {
                break;
            }
            let curvature = self.normal.apply::<M>(&self.p, &mut self.q);
            let alpha: [f64; N] =
                std::array::from_fn(|l| if active[l] { rz[l] / curvature[l] } else { 0.0 });
            let next = self.reduce::<M>(&alpha);
            let beta: [f64; N] =
                std::array::from_fn(|l| if active[l] { next[l] / rz[l] } else { 0.0 });
            self.turn::<M>(&alpha, &beta);
            for l in 0..N {
                iterations[l] += u64::from(active[l]);
                if active[l] {
                    rz[l] = next[l];
                }
                active[l] = active[l] && rz[l] > goals[l];
            }
        }
        for (x, own) in x.iter_mut().zip(self.x.iter()) {
            *x = std::array::from_fn(|l| M::double(units[l], own[l].widen(), x[l]));
        }
        iterations
    }

    /// `r ← r − α q`; gives `rᵀ M⁻¹ r`, summed in `T` over short runs, those in double precision.
    #[inline(always)]
    fn reduce<M: MulAdd>(&mut self, alpha: &[f64; N]) -> [f64; N] {
        let backward = alpha.map(|a| T::of(-a));
        let mut rz = [0.0; N];
        let vectors = self.r.chunks_mut(K * RUN).zip(self.q.chunks(K * RUN));
        for ((r, q), inverse) in vectors.zip(self.inverse.chunks(triangle(K) * RUN)) {
            let mut part = [T::ZERO; N];
            let terms = r.chunks_exact_mut(K).zip(q.chunks_exact(K));
            for ((r, q), block) in terms.zip(inverse.chunks_exact(triangle(K))) {
                for k in 0..K {
                    accumulate::<T, N, M>(&mut r[k], &backward, &q[k]);
                }
                let z = multiply_block::<T, K, N, M>(block, r);
                for k in 0..K {
                    accumulate::<T, N, M>(&mut part, &r[k], &z[k]);
                }
            }
            rz = std::array::from_fn(|l| rz[l] + part[l].widen());
        }
        rz
    }

    /// `x ← x + α p`, then `p ← M⁻¹ r + β p`.
    #[inline(always)]
    fn turn<M: MulAdd>(&mut self, alpha: &[f64; N], beta: &[f64; N]) {
        let (alpha, beta) = (alpha.map(T::of), beta.map(T::of));
        let terms = self.x.chunks_exact_mut(K).zip(self.p.chunks_exact_mut(K));
        let residuals = self.r.chunks_exact(K);
        let blocks = self.inverse.chunks_exact(triangle(K));
        for (((x, p), r), block) in terms.zip(residuals).zip(blocks) {
            let z = multiply_block::<T, K, N, M>(block, r);
            for k in 0..K {
                accumulate::<T, N, M>(&mut x[k], &alpha, &p[k]);
                p[k] = std::array::from_fn(|l| beta[l].mul_add::<M>(p[k][l], z[k][l]));
            }
        }
    }
}

/// `S r` for one symmetric `K × K` block given by its upper triangle.
#[inline(always)]
fn multiply_block<T: Real, const K: usize, const N: usize, M: MulAdd>(
    block: &[[T; N]],
    r: &[[T; N]],
) -> [[T; N]; K] {
    let mut z = [[T::ZERO; N]; K];
    for l in 0..N {
        if K == 1 {
            z[0][l] = block[0][l] * r[0][l];
        } else {
            z[0][l] = block[1][l].mul_add::<M>(r[1][l], block[0][l] * r[0][l]);
            z[1][l] = block[2][l].mul_add::<M>(r[1][l], block[1][l] * r[0][l]);
        }
    }
    z
}

/// `rᵀ M⁻¹ r` per lane.
#[inline(always)]
fn norm<const K: usize, const N: usize, M: MulAdd>(
    inverse: &[[f64; N]],
    r: &[[f64; N]],
) -> [f64; N] {
    let mut rz = [0.0; N];
    for (r, block) in r.chunks_exact(K).zip(inverse.chunks_exact(triangle(K))) {
        let z = multiply_block::<f64, K, N, M>(block, r);
        for k in 0..K {
            accumulate::<f64, N, M>(&mut rz, &r[k], &z[k]);
        }
    }
    rz
}

/// The inverses of the diagonal blocks of `Φᵀ Φ + Λ`.
#[inline(always)]
fn invert_blocks<const K: usize, const N: usize>(
    diagonal: &Aligned<f64, N>,
    penalty: &[f64; 2],
) -> Aligned<f64, N> {
    let mut inverse = diagonal.clone();
    for block in inverse.chunks_exact_mut(triangle(K)) {
        if let [aa] = block {
            *aa = aa.map(|value| reciprocal(value + penalty[0]));
        } else if let [aa, ab, bb] = block {
            for l in 0..N {
                let entries = [aa[l] + penalty[0], ab[l], bb[l] + penalty[1]];
                [aa[l], ab[l], bb[l]] = invert(entries);
            }
        }
    }
    inverse
}

/// The inverse of a symmetric `2 × 2` matrix; of its diagonal where it is singular, because
/// there any positive scale will do as a preconditioner.
#[inline(always)]
fn invert([aa, ab, bb]: [f64; 3]) -> [f64; 3] {
    let determinant = aa * bb - ab * ab;
    // Relative to its terms the determinant of a singular block is rounding.
    let regular = determinant > 1e-14 * aa * bb;
    [
        if regular {
            bb / determinant
        } else {
            reciprocal(aa)
        },
        if regular { -ab / determinant } else { 0.0 },
        if regular {
            aa / determinant
        } else {
            reciprocal(bb)
        },
    ]
}

/// `1 / value`, and 0 where neither data nor penalty touch a parameter, which keeps it where it
/// is.
#[inline(always)]
fn reciprocal(value: f64) -> f64 {
    if value > 0.0 { value.recip() } else { 0.0 }
}

/// `√(reached / scale)`, 0 where there is nothing to reach.
#[inline(always)]
fn relative(reached: f64, scale: f64) -> f64 {
    if scale == 0.0 {
        return 0.0;
    }
    (reached / scale).sqrt()
}
