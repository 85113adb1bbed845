//! Gradients of matrices as products of thin ones, by a randomised singular value decomposition.

use super::blocks::Block;
use super::tape::{Left, Piece};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Kind, Tensor};

/// Columns of the test matrix beyond the rank.
const OVERSAMPLING: i64 = 8;

/// Products with `G Gᵀ` before the range is taken: each sharpens a spectrum that decays slowly.
const POWER_ITERATIONS: usize = 2;

/// `U` and `V`, `[gradients × rows × rank]` and `[gradients × columns × rank]`, with
/// `G ≈ U Vᵀ` for every `G` of `[gradients × rows × columns]`.
///
/// The range `Q` of `(G Gᵀ)^q G Ω` for a random normal `Ω`; then the best approximation of that
/// rank within it, `Q W Wᵀ Qᵀ G` with `W` the leading eigenvectors of `(Qᵀ G)(Qᵀ G)ᵀ`.
pub(super) fn low_rank(matrices: &Tensor, rank: usize, rng: &mut ChaCha8Rng) -> (Tensor, Tensor) {
    let size = matrices.size();
    let smallest = size[1].min(size[2]);
    let rank = (rank as i64).min(smallest);
    let width = (rank + OVERSAMPLING).min(smallest);
    let normal: Vec<f32> = (0..size[2] * width)
        .map(|_| StandardNormal.sample(rng))
        .collect();
    let options = (matrices.kind(), matrices.device());
    let test = Tensor::from_slice(&normal)
        .to_device(options.1)
        .to_kind(options.0)
        .view([size[2], width]);
    let transposed = matrices.transpose(1, 2);
    let mut range = orthogonal(&matrices.matmul(&test));
    for _ in 0..POWER_ITERATIONS {
        range = orthogonal(&matrices.matmul(&transposed.matmul(&range)));
    }
    // `Bᵀ = Gᵀ Q`.
    let small = transposed.matmul(&range);
    let double = small.to_kind(Kind::Double);
    let (_, vectors) = double.transpose(1, 2).matmul(&double).linalg_eigh("L");
    // Eigenvalues come in ascending order.
    let leading = vectors.narrow(2, width - rank, rank).to_kind(options.0);
    (range.matmul(&leading), small.matmul(&leading))
}

/// An orthonormal basis of each matrix's columns.
fn orthogonal(matrices: &Tensor) -> Tensor {
    Tensor::linalg_qr(matrices, "reduced").0
}

/// The piece of a block whose gradients are `matrices`, `[gradients × formed shape]`; `rotation`
/// leads back from the basis in which they are.
pub(super) fn low_rank_piece(
    block: &Block,
    matrices: &Tensor,
    rank: usize,
    seed: u64,
    stream: u64,
    rotation: Option<&(Tensor, Tensor)>,
) -> Piece {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let (long, short) = low_rank(matrices, rank, &mut rng);
    let (mut left, mut right) = if block.is_formed_transposed {
        (short, long)
    } else {
        (long, short)
    };
    if let Some((rows, columns)) = rotation {
        left = rows.matmul(&left);
        right = columns.matmul(&right);
    }
    Piece::Outer {
        weight: 0,
        bias: None,
        first_row: 0,
        left: Left::Dense(left.transpose(1, 2).contiguous()),
        right: right.transpose(1, 2).contiguous(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn error(rank: usize, matrices: &Tensor) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (u, v) = low_rank(matrices, rank, &mut rng);
        (matrices - u.matmul(&v.transpose(1, 2)))
            .norm()
            .double_value(&[])
    }

    /// Two matrices `[20 × 30]` with the singular values `0.6^k`.
    fn decaying() -> Tensor {
        let wave = |count: i64, columns: i64, speed: f64| {
            let values = Tensor::arange(count * columns * 2, (Kind::Double, Device::Cpu)) * speed;
            orthogonal(&values.sin().view([2, count, columns]))
        };
        let values = (Tensor::arange(20, (Kind::Double, Device::Cpu)) * 0.6_f64.ln()).exp();
        (wave(20, 20, 0.7) * values).matmul(&wave(30, 20, 1.3).transpose(1, 2))
    }

    #[test]
    fn ref_low_rank_products_are_the_truncated_singular_value_decomposition() {
        let matrices = decaying();
        let mut last = f64::INFINITY;
        for rank in [1, 2, 4, 8, 16] {
            // Two matrices with the same singular values; the best error is the tail's norm.
            let tail: f64 = (rank..20).map(|k| 0.36_f64.powi(k as i32)).sum();
            let best = (2.0 * tail).sqrt();
            let got = error(rank, &matrices);
            assert!(got >= best * (1.0 - 1e-9), "{rank}: {got} {best}");
            assert!(got < best * 1.001, "{rank}: {got} {best}");
            assert!(got < last);
            last = got;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (u, v) = low_rank(&matrices, 4, &mut rng);
        let (left, values, right) = matrices.svd(true, true);
        let truncated = (left.narrow(2, 0, 4) * values.narrow(1, 0, 4).unsqueeze(1))
            .matmul(&right.narrow(2, 0, 4).transpose(1, 2));
        let worst = (u.matmul(&v.transpose(1, 2)) - truncated).abs().max();
        assert!(worst.double_value(&[]) < 1e-4, "{worst:?}");
    }

    #[test]
    fn full_rank_and_matrices_of_zeros_are_exact() {
        let matrices = decaying();
        assert!(error(20, &matrices) < 1e-13);
        assert!(error(99, &matrices) < 1e-13);
        assert_eq!(error(3, &matrices.zeros_like()), 0.0);
    }
}
