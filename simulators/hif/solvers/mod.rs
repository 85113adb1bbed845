//! Solvers of `(C + δI) x = v` for a symmetric matrix `C` that is only known by its products with
//! vectors.
//!
//! Each is a free function over a [`LinearOperator`]; none knows what the matrix belongs to.

mod conjugate_gradients;
mod dense;
mod lanczos;
mod lissa;

pub use conjugate_gradients::{ConjugateGradients, Solved, conjugate_gradients};
pub use dense::{Dense, dense};
pub use lanczos::{Krylov, lanczos};
pub use lissa::{Deflation, Lissa, LissaSolved, lissa};

use simfluence_models::{Curvature, Model};
use tch::{Kind, Tensor};

/// A symmetric matrix, known by its products with vectors.
pub trait LinearOperator {
    /// `C v` of every row of `vectors`, `[vectors × length]`.
    fn times(&self, vectors: &Tensor) -> Tensor;

    /// Ones where a vector has a value, zeros in gaps between them, `[length]`.
    fn support(&self) -> Tensor;
}

impl<M: Model> LinearOperator for Curvature<'_, M> {
    fn times(&self, vectors: &Tensor) -> Tensor {
        Curvature::times(self, vectors)
    }

    fn support(&self) -> Tensor {
        Curvature::support(self)
    }
}

/// Why a system cannot be solved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SolveError {
    /// The damped matrix is not positive definite.
    #[error(
        "the curvature is indefinite: {solver} met the eigenvalue (or Ritz value) {smallest:.3e}, and the damping is only {damping:.3e}; raise the damping above {:.3e}, or use the Gauss-Newton matrix (--curvature gauss-newton)", -smallest
    )]
    Indefinite {
        /// Which solver.
        solver: &'static str,
        /// The smallest value met.
        smallest: f64,
        /// The damping.
        damping: f64,
    },
    /// The residual stayed too large.
    #[error(
        "{solver} did not converge: after {iterations} iterations the largest relative residual is {residual:.3e}, wanted {tolerance:.1e}; raise the number of iterations (terms of the series for LiSSA: --depth; conjugate gradients: --iterations) or the damping ({damping:.3e} now), or accept a larger --tolerance"
    )]
    NotConverged {
        /// Which solver.
        solver: &'static str,
        /// Iterations made.
        iterations: usize,
        /// Relative residual reached.
        residual: f64,
        /// Relative residual wanted.
        tolerance: f64,
        /// The damping.
        damping: f64,
    },
    /// The recursion grows.
    #[error(
        "LiSSA diverges: after {iterations} iterations its largest estimate is {growth:.1e} times the right-hand side; its scale is {scale:.3e}, which must exceed half of the largest eigenvalue of every mini-batch's curvature: raise the scale, or the batch size"
    )]
    Diverged {
        /// Iterations made.
        iterations: usize,
        /// Largest norm over that of the right-hand side.
        growth: f64,
        /// The scale.
        scale: f64,
    },
    /// Too many parameters for a dense matrix.
    #[error(
        "the exact solver would need a matrix of {parameters} × {parameters}; it is for at most {limit} parameters, use another solver"
    )]
    TooLarge {
        /// Parameters of the model.
        parameters: usize,
        /// Most that are allowed.
        limit: usize,
    },
    /// NaN or infinite products.
    #[error(
        "{solver}: the product with the curvature is not finite; has the reference run diverged?"
    )]
    NotFinite {
        /// Which solver.
        solver: &'static str,
    },
}

/// `Σ` over the last axis of the product, `[vectors]`, in 64 bits.
fn dots(a: &Tensor, b: &Tensor) -> Tensor {
    (a * b).sum_dim_intlist(-1, false, Kind::Double)
}

fn norms(a: &Tensor) -> Tensor {
    dots(a, a).sqrt()
}

fn largest(values: &Tensor) -> f64 {
    values.max().double_value(&[])
}

#[cfg(test)]
pub(super) mod test_support {
    use super::LinearOperator;
    use std::cell::Cell;
    use tch::{Device, Kind, Tensor};

    /// A matrix written out, which counts the vectors that it is multiplied with.
    pub struct Matrix {
        pub matrix: Tensor,
        pub products: Cell<i64>,
    }

    impl LinearOperator for Matrix {
        fn times(&self, vectors: &Tensor) -> Tensor {
            self.products.set(self.products.get() + vectors.size()[0]);
            vectors.matmul(&self.matrix)
        }

        fn support(&self) -> Tensor {
            Tensor::ones([self.matrix.size()[0]], (Kind::Double, Device::Cpu))
        }
    }

    /// `Q diag(values) Qᵀ` with a fixed orthogonal `Q`.
    pub fn matrix(values: &[f64]) -> Matrix {
        let n = values.len() as i64;
        let raw = (Tensor::arange(n * n, (Kind::Double, Device::Cpu)) * 1.37)
            .sin()
            .view([n, n]);
        let (q, _) = Tensor::linalg_qr(&raw, "reduced");
        let diagonal = Tensor::from_slice(values).diag(0);
        Matrix {
            matrix: q.matmul(&diagonal).matmul(&q.transpose(0, 1)),
            products: Cell::new(0),
        }
    }

    /// Right-hand sides.
    pub fn vectors(count: i64, length: i64) -> Tensor {
        (Tensor::arange(count * length, (Kind::Double, Device::Cpu)) * 0.73)
            .cos()
            .view([count, length])
    }

    /// `‖(C + δI) x − v‖ / ‖v‖`, the largest.
    pub fn residual(matrix: &Matrix, damping: f64, x: &Tensor, v: &Tensor) -> f64 {
        let back = x.matmul(&matrix.matrix) + x * damping - v;
        (super::norms(&back) / super::norms(v))
            .max()
            .double_value(&[])
    }
}
