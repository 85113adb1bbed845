//! The preconditioner of the teacher-forced problem: the inverse of the `K × K` diagonal block of
//! `Φᵀ Φ + Λ` of each training example. It removes the correlation between a loss and the constant
//! 1, which is what makes the plain equations ill-conditioned.

use crate::aligned::Aligned;
use crate::lanes::{Kernel, MulAdd, Real, accumulate, dispatch};
use crate::teacher_forced::triangle;

/// The inverses of the blocks whose upper triangles are `diagonal + Λ`, `[n × K(K+1)/2]`.
pub(crate) fn invert_blocks<const K: usize, const N: usize>(
    diagonal: &Aligned<f64, N>,
    penalty: [f64; 2],
) -> Aligned<f64, N> {
    let mut inverse = diagonal.clone();
    dispatch(Invert::<K, N> {
        blocks: &mut inverse,
        penalty,
    });
    inverse
}

struct Invert<'a, const K: usize, const N: usize> {
    blocks: &'a mut [[f64; N]],
    penalty: [f64; 2],
}

impl<const K: usize, const N: usize> Kernel for Invert<'_, K, N> {
    type Output = ();

    #[inline(always)]
    fn run<M: MulAdd>(self) {
        let penalty = self.penalty;
        for block in self.blocks.chunks_exact_mut(triangle(K)) {
            if let [aa] = block {
                *aa = std::array::from_fn(|l| reciprocal(aa[l] + penalty[0]));
            } else if let [aa, ab, bb] = block {
                for l in 0..N {
                    let entries = [aa[l] + penalty[0], ab[l], bb[l] + penalty[1]];
                    [aa[l], ab[l], bb[l]] = invert(entries);
                }
            }
        }
    }
}

/// The inverse of a symmetric `2 × 2` matrix; of its diagonal where it is singular, because
/// there any positive scale will do as a preconditioner.
#[inline(always)]
fn invert([aa, ab, bb]: [f64; 3]) -> [f64; 3] {
    let determinant = aa * bb - ab * ab;
    // Relative to its terms the determinant of a singular block is rounding.
    let regular = determinant > 1e-14 * aa * bb;
    [
        if regular {
            bb / determinant
        } else {
            reciprocal(aa)
        },
        if regular { -ab / determinant } else { 0.0 },
        if regular {
            aa / determinant
        } else {
            reciprocal(bb)
        },
    ]
}

/// `1 / value`, and 0 where neither data nor penalty touch a parameter, which keeps it where it
/// is.
#[inline(always)]
fn reciprocal(value: f64) -> f64 {
    if value > 0.0 { value.recip() } else { 0.0 }
}

/// `S r` for one symmetric `K × K` block given by its upper triangle.
#[inline(always)]
pub(crate) fn multiply_block<T: Real, const K: usize, const N: usize, M: MulAdd>(
    block: &[[T; N]],
    r: &[[T; N]],
) -> [[T; N]; K] {
    let mut z = [[T::ZERO; N]; K];
    for k in 0..K {
        z[k] = std::array::from_fn(|l| block[k][l] * r[0][l]);
        if K == 2 {
            z[k] = std::array::from_fn(|l| block[k + 1][l].mul_add::<M>(r[1][l], z[k][l]));
        }
    }
    z
}

/// `rᵀ M⁻¹ r` per lane.
pub(crate) fn norm<const K: usize, const N: usize>(
    inverse: &[[f64; N]],
    r: &[[f64; N]],
) -> [f64; N] {
    dispatch(Norm::<K, N> { inverse, r })
}

struct Norm<'a, const K: usize, const N: usize> {
    inverse: &'a [[f64; N]],
    r: &'a [[f64; N]],
}

impl<const K: usize, const N: usize> Kernel for Norm<'_, K, N> {
    type Output = [f64; N];

    #[inline(always)]
    fn run<M: MulAdd>(self) -> [f64; N] {
        let mut rz = [0.0; N];
        let blocks = self.inverse.chunks_exact(triangle(K));
        for (r, block) in self.r.chunks_exact(K).zip(blocks) {
            let z = multiply_block::<f64, K, N, M>(block, r);
            for k in 0..K {
                accumulate::<f64, N, M>(&mut rz, &r[k], &z[k]);
            }
        }
        rz
    }
}
