//! A change of variables after which the objective curves alike in all directions.
//!
//! With `C_i C_iᵀ` the Cholesky factorisation of the `(A_i, B_i)` block of `Φᵀ Φ + Λ`, the new
//! variables are `u_i = C_iᵀ d_i`. General solvers, which know nothing of the problem, converge in
//! `u` as fast as the solver `exact` does with its preconditioner.

use crate::teacher_forced::{Block, triangle};
use nalgebra::DVector;

/// The factors of one test example.
pub(crate) struct Whitening<const K: usize> {
    /// Per training example `(1/c₁₁, c₂₁, 1/c₂₂)` or `(1/c₁₁)`; all 0 for one that no measured
    /// step contains, which keeps its parameters where they are.
    factors: Vec<f64>,
}

impl<const K: usize> Whitening<K> {
    pub fn new(block: &Block<K, 1>, penalty: [f64; 2]) -> Self {
        let reciprocal = |v: f64| if v > 0.0 { v.sqrt().recip() } else { 0.0 };
        let mut factors = Vec::with_capacity(block.diagonal.len());
        for entries in block.diagonal.chunks_exact(triangle(K)) {
            if entries.iter().all(|e| e[0] == 0.0) {
                factors.extend(std::iter::repeat_n(0.0, triangle(K)));
                continue;
            }
            let first = entries[0][0] + penalty[0];
            factors.push(reciprocal(first));
            if K == 2 {
                let second = entries[2][0] + penalty[1];
                let low = entries[1][0] * reciprocal(first);
                let rest = second - low * low;
                factors.push(low);
                factors.push(reciprocal(if rest > 1e-14 * second { rest } else { 0.0 }));
            }
        }
        Self { factors }
    }

    /// `d = C⁻ᵀ u`.
    pub fn to_parameters(&self, u: &DVector<f64>) -> Vec<[f64; 1]> {
        let mut d = Vec::with_capacity(u.len());
        for (c, u) in self
            .factors
            .chunks_exact(triangle(K))
            .zip(u.as_slice().chunks_exact(K))
        {
            if K == 2 {
                let second = u[1] * c[2];
                d.push([(u[0] - c[1] * second) * c[0]]);
                d.push([second]);
            } else {
                d.push([u[0] * c[0]]);
            }
        }
        d
    }

    /// `C⁻¹ g`: a gradient with respect to `d` as one with respect to `u`.
    pub fn to_gradient(&self, g: &[[f64; 1]]) -> DVector<f64> {
        let mut v = Vec::with_capacity(g.len());
        for (c, g) in self
            .factors
            .chunks_exact(triangle(K))
            .zip(g.chunks_exact(K))
        {
            let first = g[0][0] * c[0];
            v.push(first);
            if K == 2 {
                v.push((g[1][0] - c[1] * first) * c[2]);
            }
        }
        DVector::from_vec(v)
    }
}
