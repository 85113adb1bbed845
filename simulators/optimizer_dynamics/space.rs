//! The few directions in which the losses of the test examples move together.

use super::path::Path;
use nalgebra::{DMatrix, SymmetricEigen};

/// The residual `1 − e^(−L)`: the probability that the model still withholds from the target
/// (with several target tokens, from their geometric mean). The gradient of a cross-entropy is
/// proportional to it.
pub(super) fn residual(loss: f64) -> f64 {
    1.0 - (-loss).exp()
}

/// Principal components of the residuals over all recorded runs and steps.
///
/// `z = V (r − μ) / s` with `r = σ (1 − e^(−L/σ))`, one scale `s` for all components, so that a
/// component that hardly moves stays small; each is clipped to the range that was recorded. With a
/// reach `σ` of 1 nat `r` is the [`residual`]; a longer one also tells large losses apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ResidualSpace {
    pub(super) rank: usize,
    /// `σ`, in nats.
    pub(super) reach: f64,
    /// `[tests]`.
    pub(super) mean: Vec<f64>,
    /// `[rank × tests]`, divided by the scale.
    pub(super) axes: Vec<f64>,
    /// `[rank]` each.
    pub(super) low: Vec<f64>,
    pub(super) high: Vec<f64>,
}

impl ResidualSpace {
    /// The first `rank` components (fewer where there are fewer test examples).
    pub(super) fn new(paths: &[&Path], rank: usize, reach: f64) -> Self {
        let residual = |loss: f64| reach * residual(loss / reach);
        let m = paths[0].row(0).len();
        let rank = rank.min(m);
        let mut mean = vec![0.0; m];
        let mut count = 0.0;
        for path in paths {
            for step in 0..=path.steps() {
                for (sum, &loss) in mean.iter_mut().zip(path.row(step)) {
                    *sum += residual(loss);
                }
                count += 1.0;
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= count);
        let mut covariance = DMatrix::<f64>::zeros(m, m);
        for path in paths {
            let rows = path.steps() + 1;
            let centred = DMatrix::from_fn(rows, m, |t, j| residual(path.row(t)[j]) - mean[j]);
            covariance.gemm_tr(1.0 / count, &centred, &centred, 1.0);
        }
        let eigen = SymmetricEigen::new(covariance);
        let mut order: Vec<usize> = (0..m).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        let scale = eigen.eigenvalues[order[0]].max(f64::MIN_POSITIVE).sqrt();
        let mut axes = Vec::with_capacity(rank * m);
        for &k in &order[..rank] {
            let axis = eigen.eigenvectors.column(k);
            // The sign of an eigenvector is arbitrary: the largest entry is made positive.
            let largest =
                axis.iter().copied().fold(
                    0.0_f64,
                    |best, v| {
                        if v.abs() > best.abs() { v } else { best }
                    },
                );
            axes.extend(axis.iter().map(|v| v * largest.signum() / scale));
        }
        let mut space = Self {
            rank,
            reach,
            mean,
            axes,
            low: vec![f64::NEG_INFINITY; rank],
            high: vec![f64::INFINITY; rank],
        };
        let mut range = vec![(f64::INFINITY, f64::NEG_INFINITY); rank];
        let mut z = vec![0.0; rank];
        for path in paths {
            for step in 0..=path.steps() {
                space.project(path.row(step), &mut z);
                for ((low, high), &z) in range.iter_mut().zip(&z) {
                    (*low, *high) = (low.min(z), high.max(z));
                }
            }
        }
        (space.low, space.high) = range.into_iter().unzip();
        space
    }

    /// Where the losses of all test examples stand.
    pub(super) fn project(&self, losses: &[f64], z: &mut [f64]) {
        let m = self.mean.len();
        z.fill(0.0);
        for (j, (&loss, mean)) in losses.iter().zip(&self.mean).enumerate() {
            let centred = self.reach * residual(loss / self.reach) - mean;
            for (k, z) in z.iter_mut().enumerate() {
                *z += self.axes[k * m + j] * centred;
            }
        }
        for ((z, &low), &high) in z.iter_mut().zip(&self.low).zip(&self.high) {
            *z = z.clamp(low, high);
        }
    }
}
