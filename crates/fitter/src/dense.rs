//! The normal equations of one test example, formed and factored: the last resort of the solver
//! `exact`, and the truth in tests.

use crate::teacher_forced::Block;
use nalgebra::{Cholesky, DMatrix, DVector};

/// Relative residual that a factorisation must reach to count as a solution.
const SOLVED: f64 = 1e-8;

/// Solves `(Φᵀ Φ + Λ) d = Φᵀ y` for one lane; `None` where the matrix is singular. Parameters
/// that neither data nor penalty touch stay 0.
pub(crate) fn solve<const K: usize, const N: usize>(
    block: &Block<K, N>,
    penalty: [f64; 2],
    lane: usize,
) -> Option<Vec<f64>> {
    let size = block.right_side.len();
    let mut matrix = DMatrix::<f64>::zeros(size, size);
    for (row, coefficients) in block.coefficients().chunks_exact(K).enumerate() {
        for (i, x) in block.data.rows.exposures.row(row) {
            for (j, y) in block.data.rows.exposures.row(row) {
                for (k, a) in coefficients.iter().enumerate() {
                    for (h, b) in coefficients.iter().enumerate() {
                        matrix[(i as usize * K + k, j as usize * K + h)] +=
                            x * y * a[lane] * b[lane];
                    }
                }
            }
        }
    }
    for p in 0..size {
        matrix[(p, p)] += penalty[p % K];
        if matrix[(p, p)] == 0.0 {
            matrix[(p, p)] = 1.0;
        }
    }
    let right = DVector::from_iterator(size, block.right_side.iter().map(|b| b[lane]));
    let solution = Cholesky::new(matrix.clone())?.solve(&right);
    let residual = (&right - &matrix * &solution).norm();
    (residual <= SOLVED * right.norm()).then(|| solution.as_slice().to_vec())
}
