//! Krylov spaces: Arnoldi's iteration for symmetric matrices.

use super::{LinearOperator, SolveError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, Tensor};

/// Ritz values and vectors of a matrix, from largest to smallest value.
#[derive(Debug)]
pub struct Krylov {
    /// Ritz values `[values]`, 64 bits.
    pub values: Vec<f64>,
    /// Ritz vectors of length 1, `[values × length]`.
    pub vectors: Tensor,
    /// Residual `‖C u − λ u‖` of each Ritz pair.
    pub residuals: Vec<f64>,
}

impl Krylov {
    /// Largest Ritz value.
    pub fn largest(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }

    /// Smallest Ritz value.
    pub fn smallest(&self) -> f64 {
        self.values.last().copied().unwrap_or(0.0)
    }

    /// The `rank` pairs of largest absolute value, in their order.
    pub fn dominant(&self, rank: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.sort_by(|&a, &b| self.values[b].abs().total_cmp(&self.values[a].abs()));
        order.truncate(rank);
        order.sort_unstable();
        order
    }
}

/// Ritz pairs from a Krylov space of `iterations` products, started at a random vector. For
/// symmetric matrices Arnoldi's iteration is Lanczos'; every new vector is made orthogonal to all
/// earlier ones, twice.
///
/// # Errors
/// Products that are not finite.
///
/// # Reference
/// Arnoldi 1951; Schioppa, Zablotskaia, Vilar & Sokolov 2022, "Scaling up influence functions",
/// section 3.
pub fn lanczos(
    operator: &dyn LinearOperator,
    iterations: usize,
    seed: u64,
    kind: Kind,
) -> Result<Krylov, SolveError> {
    let support = operator.support().to_kind(kind);
    let parameters = support.sum(Kind::Double).double_value(&[]) as usize;
    let steps = iterations.min(parameters).max(1);
    let mut basis = Tensor::zeros([steps as i64, support.size()[0]], (kind, support.device()));
    let (mut diagonal, mut below) = (Vec::new(), Vec::new());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut next = random(&support, &mut rng);
    for step in 0..steps {
        basis.get(step as i64).copy_(&next);
        let done = basis.narrow(0, 0, step as i64 + 1);
        let product = operator.times(&next.unsqueeze(0)).squeeze_dim(0);
        let value = product.dot(&next).double_value(&[]);
        if !value.is_finite() {
            return Err(SolveError::NotFinite {
                solver: "Arnoldi's iteration",
            });
        }
        diagonal.push(value);
        let rest = orthogonal(&done, &product);
        let length = rest.norm().double_value(&[]);
        below.push(length);
        let scale = diagonal
            .iter()
            .chain(&below)
            .fold(0.0_f64, |a, v| a.max(v.abs()));
        let rounding = if kind == Kind::Double { 1e-13 } else { 1e-5 };
        if length <= rounding * scale {
            // The space is closed under the matrix: go on in what is left, if anything is.
            below[step] = 0.0;
            if step + 1 == steps {
                break;
            }
            let fresh = orthogonal(&done, &random(&support, &mut rng));
            next = &fresh / fresh.norm();
        } else {
            next = rest / length;
        }
    }
    Ok(ritz(&diagonal, &below, &mut basis))
}

fn random(support: &Tensor, rng: &mut ChaCha8Rng) -> Tensor {
    let count = support.size()[0] as usize;
    let values: Vec<f64> = (0..count).map(|_| StandardNormal.sample(rng)).collect();
    let vector = Tensor::from_slice(&values)
        .to_device(support.device())
        .to_kind(support.kind())
        * support;
    let length = vector.norm();
    vector / length
}

fn orthogonal(basis: &Tensor, vector: &Tensor) -> Tensor {
    let mut rest = vector.copy();
    for _ in 0..2 {
        rest -= basis.transpose(0, 1).mv(&basis.mv(&rest));
    }
    rest
}

fn ritz(diagonal: &[f64], below: &[f64], basis: &mut Tensor) -> Krylov {
    let size = diagonal.len() as i64;
    let projected = Tensor::from_slice(diagonal).diag(0)
        + Tensor::from_slice(&below[..diagonal.len() - 1]).diag(1)
        + Tensor::from_slice(&below[..diagonal.len() - 1]).diag(-1);
    let (values, vectors) = projected.linalg_eigh("L");
    let order = Tensor::arange(size, (Kind::Int64, tch::Device::Cpu)).flip([0]);
    let values: Vec<f64> = Vec::try_from(values.index_select(0, &order)).expect("real values");
    let vectors = vectors.index_select(1, &order);
    let last = below[diagonal.len() - 1];
    let residuals = (0..size)
        .map(|k| (last * vectors.double_value(&[size - 1, k])).abs())
        .collect();
    let mixing = vectors
        .transpose(0, 1)
        .to_device(basis.device())
        .to_kind(basis.kind());
    Krylov {
        values,
        vectors: mixing.matmul(&basis.narrow(0, 0, size)),
        residuals,
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::matrix;
    use super::*;

    #[test]
    fn ref_at_full_rank_ritz_values_are_the_eigenvalues() {
        // One is double, one is 0, one negative: a single Krylov space would miss the second.
        let expected = [5.0, 2.0, 2.0, 0.3, 0.0, -0.7];
        let operator = matrix(&expected);
        let krylov = lanczos(&operator, 6, 3, Kind::Double).unwrap();
        for (got, expected) in krylov.values.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
        let back = krylov.vectors.matmul(&operator.matrix);
        let scaled = &krylov.vectors * Tensor::from_slice(&krylov.values).unsqueeze(1);
        assert!((back - scaled).abs().max().double_value(&[]) < 1e-11);
        assert_eq!(krylov.dominant(3), [0, 1, 2]);
        assert_eq!(krylov.dominant(4), [0, 1, 2, 5]);
    }

    #[test]
    fn few_iterations_find_the_extremes_and_say_how_well() {
        let values: Vec<f64> = (0..60).map(|k| 0.8_f64.powi(k)).collect();
        let krylov = lanczos(&matrix(&values), 15, 0, Kind::Double).unwrap();
        assert!((krylov.largest() - 1.0).abs() < 1e-6);
        assert_eq!(krylov.values.len(), 15);
        for (k, residual) in krylov.residuals.iter().enumerate().take(2) {
            assert!((krylov.values[k] - values[k]).abs() <= residual + 1e-12);
        }
    }
}
