//! How badly each dataset is still predicted, read out from the losses of the test examples.

use super::model::DatasetResiduals;
use nalgebra::{Cholesky, DMatrix, DVector};

/// Ridge penalty of the readout, in examples of the recorded batches.
const PENALTY: f64 = 10.0;

/// `ρ_c = clip(w_c · [1, z], 0, 1)`: the mean residual of the training examples of dataset `c`,
/// from the components `z` of the residuals of the test examples.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Readout {
    pub(super) groups: usize,
    /// `[groups × (1 + components)]`; empty where no batch losses were recorded: `ρ ≡ 1`.
    pub(super) weights: Vec<f64>,
}

/// One recorded batch, with the components before the step.
pub(super) struct ObservedBatch {
    pub(super) z: Vec<f64>,
    pub(super) residuals: DatasetResiduals,
}

impl Readout {
    /// Weighted ridge regression on the recorded batches, each dataset by itself. A dataset that
    /// no recorded batch held keeps `ρ = 1`.
    pub(super) fn fit(observed: &[ObservedBatch], groups: usize) -> Self {
        let Some(first) = observed.first() else {
            return Self {
                groups,
                weights: Vec::new(),
            };
        };
        let width = 1 + first.z.len();
        let mut weights = Vec::with_capacity(groups * width);
        for group in 0..groups {
            let mut matrix = DMatrix::<f64>::identity(width, width) * PENALTY;
            let mut right = DVector::<f64>::zeros(width);
            let mut seen = false;
            for batch in observed {
                if let Some((mean, weight)) = batch.residuals[group] {
                    let x = DVector::from_iterator(
                        width,
                        std::iter::once(1.0).chain(batch.z.iter().copied()),
                    );
                    matrix.ger(weight, &x, &x, 1.0);
                    right.axpy(weight * mean, &x, 1.0);
                    seen = true;
                }
            }
            if seen {
                let factored = Cholesky::new(matrix).expect("a penalty makes it positive definite");
                weights.extend(factored.solve(&right).iter());
            } else {
                weights.push(1.0);
                weights.extend(std::iter::repeat_n(0.0, width - 1));
            }
        }
        Self { groups, weights }
    }

    /// The residuals `ρ` of all datasets.
    pub(super) fn residuals(&self, z: &[f64], rho: &mut [f64]) {
        if self.weights.is_empty() {
            rho.fill(1.0);
            return;
        }
        for (rho, weights) in rho.iter_mut().zip(self.weights.chunks_exact(1 + z.len())) {
            let sum: f64 = weights[1..].iter().zip(z).map(|(w, z)| w * z).sum();
            *rho = (weights[0] + sum).clamp(0.0, 1.0);
        }
    }
}
