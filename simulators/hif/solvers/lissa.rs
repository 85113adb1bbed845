//! LiSSA: the Neumann series of the inverse, with mini-batches.

use super::{LinearOperator, SolveError, largest, norms};
use tch::Tensor;

/// How long the recursion runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lissa {
    /// Terms of the series.
    pub depth: usize,
    /// How often the recursion is run; the results are averaged.
    pub repeats: usize,
    /// Stop when the estimate changes by less than this relative to itself over ten terms; only
    /// where every product is of the whole matrix.
    pub tolerance: f64,
}

/// A solution with its residual.
#[derive(Debug)]
pub struct LissaSolved {
    /// `[vectors × length]`.
    pub solution: Tensor,
    /// Terms of the longest recursion.
    pub iterations: usize,
    /// Largest relative change of the last ten terms.
    pub change: f64,
}

/// Growth of the estimate over the right-hand side at which it is given up, beyond what the
/// inverse itself may give.
const TOO_LARGE: f64 = 10.0;

/// Terms between two looks at the estimate.
const LOOK_EVERY: usize = 10;

/// Estimates `(C + δI)⁻¹ v` for every row of `vectors`:
///
///     r_0 = v,   r_{k+1} = v + r_k − (C_k r_k + δ r_k) / σ,   x = r / σ
///
/// with `C_k` the curvature of mini-batch `k` (`operators`, taken in turn, `repeat · depth + k`)
/// and `σ` the `scale`, above half of the largest eigenvalue of every `C_k + δI`.
///
/// # Errors
/// An estimate that grows beyond what the inverse of the damping allows; products that are not
/// finite.
///
/// # Reference
/// Agarwal, Bullins & Hazan 2017; Koh & Liang 2017, section 3.
pub fn lissa(
    operators: &dyn Fn(usize, &Tensor) -> Tensor,
    is_whole: bool,
    damping: f64,
    scale: f64,
    vectors: &Tensor,
    settings: &Lissa,
) -> Result<LissaSolved, SolveError> {
    let wanted = norms(vectors).clamp_min(f64::MIN_POSITIVE);
    let mut sum = vectors.zeros_like();
    let (mut iterations, mut change) = (0, 0.0_f64);
    for repeat in 0..settings.repeats.max(1) {
        let mut estimate = vectors.copy();
        let mut before = estimate.copy();
        for k in 1..=settings.depth {
            let product = operators(repeat * settings.depth + k - 1, &estimate);
            estimate = vectors + &estimate - (product + &estimate * damping) / scale;
            if k % LOOK_EVERY != 0 && k != settings.depth {
                continue;
            }
            iterations = iterations.max(k);
            // ‖(C + δI)⁻¹ v‖ ≤ ‖v‖ / δ, where `C` is not negative.
            let growth = largest(&(norms(&estimate) / &wanted));
            if growth.is_nan() {
                return Err(SolveError::NotFinite { solver: "LiSSA" });
            }
            if growth > TOO_LARGE * (scale / damping).max(1.0) {
                return Err(SolveError::Diverged {
                    iterations: k,
                    growth,
                    scale,
                });
            }
            let moved = largest(
                &(norms(&(&estimate - &before)) / norms(&estimate).clamp_min(f64::MIN_POSITIVE)),
            );
            before = estimate.copy();
            change = moved;
            if is_whole && moved < settings.tolerance {
                break;
            }
        }
        sum += estimate;
    }
    Ok(LissaSolved {
        solution: sum / (scale * settings.repeats.max(1) as f64),
        iterations,
        change,
    })
}

/// For operators that are always the whole matrix.
impl Lissa {
    /// [`lissa`] with the whole matrix at every term.
    ///
    /// # Errors
    /// As [`lissa`].
    pub fn whole(
        &self,
        operator: &dyn LinearOperator,
        damping: f64,
        scale: f64,
        vectors: &Tensor,
    ) -> Result<LissaSolved, SolveError> {
        let times = |_: usize, x: &Tensor| operator.times(x);
        lissa(&times, true, damping, scale, vectors, self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{matrix, residual, vectors};
    use super::*;

    const SETTINGS: Lissa = Lissa {
        depth: 5_000,
        repeats: 1,
        tolerance: 1e-13,
    };

    #[test]
    fn ref_the_series_converges_to_the_inverse() {
        let operator = matrix(&[5.0, 2.0, 1.0, 0.3, 0.0]);
        let v = vectors(3, 5);
        let solved = SETTINGS.whole(&operator, 0.05, 5.5, &v).unwrap();
        assert!(residual(&operator, 0.05, &solved.solution, &v) < 1e-10);
        assert!(solved.iterations < 5_000);
    }

    #[test]
    fn a_negative_eigenvalue_below_the_damping_is_harmless_and_above_it_diverges() {
        let operator = matrix(&[5.0, 1.0, -0.3]);
        let v = vectors(2, 3);
        let solved = SETTINGS.whole(&operator, 0.5, 6.0, &v).unwrap();
        assert!(residual(&operator, 0.5, &solved.solution, &v) < 1e-9);
        let error = SETTINGS.whole(&operator, 0.1, 6.0, &v).unwrap_err();
        assert!(matches!(error, SolveError::Diverged { .. }), "{error}");
    }

    #[test]
    fn a_scale_below_half_of_the_spectral_radius_diverges() {
        let operator = matrix(&[5.0, 1.0, 0.3]);
        let error = SETTINGS
            .whole(&operator, 0.1, 2.0, &vectors(1, 3))
            .unwrap_err();
        let message = error.to_string();
        assert!(message.contains("raise the scale"), "{message}");
    }

    #[test]
    fn mini_batches_average_to_the_whole() {
        let parts = [matrix(&[4.0, 0.0, 1.0]), matrix(&[2.0, 1.0, 0.2])];
        let whole = (&parts[0].matrix + &parts[1].matrix) * 0.5;
        let v = vectors(1, 3);
        // In a random order, by a fixed linear congruence.
        let part = |k: usize| ((k.wrapping_mul(2_654_435_761)) >> 7) % 2;
        let times = |k: usize, x: &Tensor| x.matmul(&parts[part(k)].matrix);
        let settings = Lissa {
            depth: 2_000,
            repeats: 40,
            tolerance: 0.0,
        };
        let solved = lissa(&times, false, 0.5, 50.0, &v, &settings).unwrap();
        let eye = tch::Tensor::eye(3, (tch::Kind::Double, tch::Device::Cpu));
        let expected = v.matmul(&(whole + eye * 0.5).inverse());
        let error = ((&solved.solution - &expected).norm() / expected.norm()).double_value(&[]);
        assert!(error < 0.03, "{error}");
    }
}
