//! LiSSA: the Neumann series of the inverse, with mini-batches.

use super::{Krylov, LinearOperator, SolveError, largest, norms};
use tch::Tensor;

/// How long the recursion runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lissa {
    /// Terms of the series.
    pub depth: usize,
    /// How often the recursion is run; the results are averaged.
    pub repeats: usize,
    /// Relative residual at which the recursion stops; only where every product is of the whole
    /// matrix.
    pub tolerance: f64,
}

/// A solution with its residual.
#[derive(Debug)]
pub struct LissaSolved {
    /// `[vectors × length]`.
    pub solution: Tensor,
    /// Terms of the longest recursion.
    pub iterations: usize,
    /// Largest relative change of the last ten terms; with the whole matrix the relative residual.
    pub change: f64,
}

/// Growth of the estimate over the right-hand side at which it is given up, beyond what the
/// inverse itself may give.
const TOO_LARGE: f64 = 10.0;

/// Terms between two looks at the estimate.
const LOOK_EVERY: usize = 10;

/// Estimates `(C + δI)⁻¹ v` for every row of `vectors`:
///
/// ```text
/// r_0 = v,   r_{k+1} = v + r_k − (C_k r_k + δ r_k) / σ,   x = r / σ
/// ```
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
        }
        sum += estimate;
    }
    Ok(LissaSolved {
        solution: sum / (scale * settings.repeats.max(1) as f64),
        iterations,
        change,
    })
}

impl Lissa {
    /// [`lissa`] with the whole matrix `A = C + δI` at every term, until the relative residual is
    /// within the tolerance:
    ///
    /// ```text
    /// x ← x + M (v − A x),   M = Σ_k u_k u_kᵀ / (λ_k + δ) + (I − Σ_k u_k u_kᵀ) / σ
    /// ```
    ///
    /// from `x = M v`. Without Ritz pairs it is LiSSA's recursion, `x = r / σ`. With them
    /// (*deflation*) the dominant directions are solved at once, and only what lies outside of
    /// them is left to the series, with a `σ` of its own: the fixed point is the same, and far
    /// fewer terms lead to it.
    ///
    /// # Errors
    /// As [`lissa`].
    pub fn whole(
        &self,
        operator: &dyn LinearOperator,
        damping: f64,
        scale: f64,
        deflation: Option<&Deflation>,
        vectors: &Tensor,
    ) -> Result<LissaSolved, SolveError> {
        let wanted = norms(vectors).clamp_min(f64::MIN_POSITIVE);
        let step = |rest: &Tensor| match deflation {
            None => rest / scale,
            Some(deflation) => deflation.apply(rest, scale),
        };
        let mut solution = step(vectors);
        let mut smallest = f64::INFINITY;
        for k in 1..=self.depth {
            let rest = vectors - operator.times(&solution) - &solution * damping;
            let residual = largest(&(norms(&rest) / &wanted));
            if residual.is_nan() {
                return Err(SolveError::NotFinite { solver: "LiSSA" });
            }
            smallest = smallest.min(residual);
            if residual > TOO_LARGE * smallest.max(1.0) {
                return Err(SolveError::Diverged {
                    iterations: k,
                    growth: residual,
                    scale,
                });
            }
            if residual <= self.tolerance || k == self.depth {
                return Ok(LissaSolved {
                    solution,
                    iterations: k,
                    change: residual,
                });
            }
            solution += step(&rest);
        }
        unreachable!("the last term returns")
    }
}

/// Ritz pairs that are solved at once.
#[derive(Debug)]
pub struct Deflation {
    /// `[pairs × length]`, orthonormal.
    vectors: Tensor,
    /// `1 / (λ_k + δ)`.
    inverse: Tensor,
    /// Bounds of the spectrum outside of them.
    outside: (f64, f64),
}

impl Deflation {
    /// The Ritz pairs at both ends whose residual is below a thousandth of the largest Ritz value;
    /// `None` if there is none. Pairs converge from the ends, so that what is left of the spectrum
    /// is taken to lie between the innermost of them.
    pub fn of(krylov: &Krylov, damping: f64) -> Option<Self> {
        let size = krylov.largest().abs().max(krylov.smallest().abs());
        let count = krylov.values.len();
        let settled = |k: &usize| krylov.residuals[*k] < 1e-3 * size;
        let top: Vec<usize> = (0..count).take_while(settled).collect();
        let bottom: Vec<usize> = (top.len()..count).rev().take_while(settled).collect();
        // The first value that has not settled, or else the last that has.
        let high = top.len().min(count - 1);
        let low = (count - bottom.len()).saturating_sub(1);
        let outside = (krylov.values[low], krylov.values[high]);
        let kept: Vec<usize> = top.into_iter().chain(bottom).collect();
        if kept.is_empty() {
            return None;
        }
        let index: Vec<i64> = kept.iter().map(|&k| k as i64).collect();
        let index = Tensor::from_slice(&index).to_device(krylov.vectors.device());
        let inverse: Vec<f64> = (kept.iter())
            .map(|&k| 1.0 / (krylov.values[k] + damping))
            .collect();
        Some(Self {
            vectors: krylov.vectors.index_select(0, &index),
            inverse: Tensor::from_slice(&inverse)
                .to_device(krylov.vectors.device())
                .to_kind(krylov.vectors.kind()),
            outside: (outside.0.min(0.0), outside.1.max(0.0)),
        })
    }

    /// `σ` of what lies outside: half of its largest eigenvalue would do, the middle of its
    /// spectrum is best.
    pub fn scale(&self, damping: f64) -> f64 {
        let (low, high) = self.outside;
        damping + 0.5 * (1.1 * high + low)
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.vectors.size()[0] as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn apply(&self, rest: &Tensor, scale: f64) -> Tensor {
        let inside = rest.matmul(&self.vectors.transpose(0, 1));
        let shift = &inside * (&self.inverse - 1.0 / scale);
        rest / scale + shift.matmul(&self.vectors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanczos;
    use super::super::test_support::{matrix, residual, vectors};
    use super::*;
    use tch::Kind;

    const SETTINGS: Lissa = Lissa {
        depth: 5_000,
        repeats: 1,
        tolerance: 1e-13,
    };

    #[test]
    fn ref_the_series_converges_to_the_inverse() {
        let operator = matrix(&[5.0, 2.0, 1.0, 0.3, 0.0]);
        let v = vectors(3, 5);
        let solved = SETTINGS.whole(&operator, 0.05, 5.5, None, &v).unwrap();
        assert!(residual(&operator, 0.05, &solved.solution, &v) < 1e-10);
        assert!(solved.iterations < 5_000);
    }

    #[test]
    fn ref_deflation_leads_to_the_same_solution_in_fewer_terms() {
        let values: Vec<f64> = (0..40).map(|k| 9.0 * 0.7_f64.powi(k) - 0.05).collect();
        let operator = matrix(&values);
        let v = vectors(4, 40);
        let krylov = lanczos(&operator, 20, 1, Kind::Double).unwrap();
        let deflation = Deflation::of(&krylov, 0.3).unwrap();
        assert!(deflation.len() > 3 && !deflation.is_empty());
        let settings = Lissa {
            tolerance: 1e-9,
            ..SETTINGS
        };
        let plain = settings.whole(&operator, 0.3, 10.0, None, &v).unwrap();
        let scale = deflation.scale(0.3);
        let fast = settings.whole(&operator, 0.3, scale, Some(&deflation), &v);
        let fast = fast.unwrap();
        assert!(residual(&operator, 0.3, &fast.solution, &v) < 1e-8);
        let apart = (&plain.solution - &fast.solution)
            .abs()
            .max()
            .double_value(&[]);
        assert!(apart < 1e-6, "{apart}");
        assert!(
            4 * fast.iterations < plain.iterations,
            "{} {}",
            fast.iterations,
            plain.iterations
        );
    }

    #[test]
    fn a_negative_eigenvalue_below_the_damping_is_harmless_and_above_it_diverges() {
        let operator = matrix(&[5.0, 1.0, -0.3]);
        let v = vectors(2, 3);
        let solved = SETTINGS.whole(&operator, 0.5, 6.0, None, &v).unwrap();
        assert!(residual(&operator, 0.5, &solved.solution, &v) < 1e-9);
        let error = SETTINGS.whole(&operator, 0.1, 6.0, None, &v).unwrap_err();
        assert!(matches!(error, SolveError::Diverged { .. }), "{error}");
    }

    #[test]
    fn a_scale_below_half_of_the_spectral_radius_diverges() {
        let operator = matrix(&[5.0, 1.0, 0.3]);
        let error = SETTINGS
            .whole(&operator, 0.1, 2.0, None, &vectors(1, 3))
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
        let solved = lissa(&times, 0.5, 50.0, &v, &settings).unwrap();
        let eye = tch::Tensor::eye(3, (tch::Kind::Double, tch::Device::Cpu));
        let expected = v.matmul(&(whole + eye * 0.5).inverse());
        let error = ((&solved.solution - &expected).norm() / expected.norm()).double_value(&[]);
        assert!(error < 0.03, "{error}");
    }
}
