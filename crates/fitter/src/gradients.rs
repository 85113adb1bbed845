//! Preconditioned conjugate gradients on the normal equations of several test examples at once, in
//! single or double precision.

use crate::aligned::Aligned;
use crate::lanes::{Kernel, MulAdd, Real, accumulate, dispatch};
use crate::preconditioner::multiply_block;
use crate::teacher_forced::{Normal, RUN, total, triangle};

/// What a correction has to do.
pub(crate) struct Goal<const N: usize> {
    /// Norms of the residuals; 0: leave the lane alone.
    pub units: [f64; N],
    /// To what share of them they are to be reduced.
    pub reduction: [f64; N],
    pub max_iterations: u64,
}

/// Conjugate gradients in the precision `T`, with their vectors `[n × K]`.
pub(crate) struct Gradients<'a, T, const K: usize, const N: usize> {
    normal: Normal<'a, T, K, N>,
    inverse: Aligned<T, N>,
    x: Aligned<T, N>,
    r: Aligned<T, N>,
    p: Aligned<T, N>,
    q: Aligned<T, N>,
}

impl<'a, T: Real, const K: usize, const N: usize> Gradients<'a, T, K, N> {
    /// For this matrix and these inverses of its diagonal blocks.
    pub fn new(normal: Normal<'a, T, K, N>, inverse: &[[f64; N]]) -> Self {
        let zeros = || Aligned::zeros(inverse.len() / triangle(K) * K);
        let mut own = Aligned::zeros(inverse.len());
        for (own, from) in own.iter_mut().zip(inverse) {
            *own = std::array::from_fn(|l| T::of(from[l]));
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

    /// Adds to `x` the solution for the right side `r`; gives the iterations. A lane that has
    /// reached its goal stands still, so that its result does not depend on its neighbours.
    pub fn correct(&mut self, x: &mut [[f64; N]], r: &[[f64; N]], goal: &Goal<N>) -> [u64; N] {
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
        let mut rz = self.reduce(&[0.0; N]);
        self.turn(&[0.0; N], &[0.0; N]);
        let mut active: [bool; N] = std::array::from_fn(|l| rz[l] > goals[l]);
        for _ in 0..goal.max_iterations {
            if !active.contains(&true) {
                break;
            }
            let curvature = self.normal.apply(&self.p, &mut self.q);
            let alpha: [f64; N] =
                std::array::from_fn(|l| if active[l] { rz[l] / curvature[l] } else { 0.0 });
            let next = self.reduce(&alpha);
            let beta: [f64; N] =
                std::array::from_fn(|l| if active[l] { next[l] / rz[l] } else { 0.0 });
            self.turn(&alpha, &beta);
            for l in 0..N {
                iterations[l] += u64::from(active[l]);
                if active[l] {
                    rz[l] = next[l];
                }
                active[l] = active[l] && rz[l] > goals[l];
            }
        }
        for (x, own) in x.iter_mut().zip(self.x.iter()) {
            *x = std::array::from_fn(|l| x[l] + units[l] * own[l].widen());
        }
        iterations
    }

    /// `r ← r − α q`; gives `rᵀ M⁻¹ r`.
    fn reduce(&mut self, alpha: &[f64; N]) -> [f64; N] {
        dispatch(Reduce::<T, K, N> {
            r: &mut self.r,
            q: &self.q,
            inverse: &self.inverse,
            backward: alpha.map(|a| T::of(-a)),
        })
    }

    /// `x ← x + α p`, then `p ← M⁻¹ r + β p`.
    fn turn(&mut self, alpha: &[f64; N], beta: &[f64; N]) {
        dispatch(Turn::<T, K, N> {
            x: &mut self.x,
            p: &mut self.p,
            r: &self.r,
            inverse: &self.inverse,
            alpha: alpha.map(T::of),
            beta: beta.map(T::of),
        });
    }
}

/// See [`Gradients::reduce`]; the sum is in `T` over short runs, those in double precision.
struct Reduce<'a, T, const K: usize, const N: usize> {
    r: &'a mut [[T; N]],
    q: &'a [[T; N]],
    inverse: &'a [[T; N]],
    backward: [T; N],
}

impl<T: Real, const K: usize, const N: usize> Kernel for Reduce<'_, T, K, N> {
    type Output = [f64; N];

    #[inline(always)]
    fn run<M: MulAdd>(self) -> [f64; N] {
        let mut parts = Vec::new();
        let vectors = self.r.chunks_mut(K * RUN).zip(self.q.chunks(K * RUN));
        for ((r, q), inverse) in vectors.zip(self.inverse.chunks(triangle(K) * RUN)) {
            let mut part = [T::ZERO; N];
            let terms = r.chunks_exact_mut(K).zip(q.chunks_exact(K));
            for ((r, q), block) in terms.zip(inverse.chunks_exact(triangle(K))) {
                for k in 0..K {
                    accumulate::<T, N, M>(&mut r[k], &self.backward, &q[k]);
                }
                let z = multiply_block::<T, K, N, M>(block, r);
                for k in 0..K {
                    accumulate::<T, N, M>(&mut part, &r[k], &z[k]);
                }
            }
            parts.push(part);
        }
        total(&parts)
    }
}

/// See [`Gradients::turn`].
struct Turn<'a, T, const K: usize, const N: usize> {
    x: &'a mut [[T; N]],
    p: &'a mut [[T; N]],
    r: &'a [[T; N]],
    inverse: &'a [[T; N]],
    alpha: [T; N],
    beta: [T; N],
}

impl<T: Real, const K: usize, const N: usize> Kernel for Turn<'_, T, K, N> {
    type Output = ();

    #[inline(always)]
    fn run<M: MulAdd>(self) {
        let terms = self.x.chunks_exact_mut(K).zip(self.p.chunks_exact_mut(K));
        let blocks = self.inverse.chunks_exact(triangle(K));
        for (((x, p), r), block) in terms.zip(self.r.chunks_exact(K)).zip(blocks) {
            let z = multiply_block::<T, K, N, M>(block, r);
            for k in 0..K {
                accumulate::<T, N, M>(&mut x[k], &self.alpha, &p[k]);
                p[k] = std::array::from_fn(|l| self.beta[l].mul_add::<M>(p[k][l], z[k][l]));
            }
        }
    }
}
