//! The solutions of one block of test examples along a path of penalties.
//!
//! The next solution begins at the best combination of the last ones: the `c` that minimises the
//! objective of `Σ_s c_s d_s`. As `Φᵀ Φ d_s` is known from the residual that every solution ends
//! with, this costs some dot products and no pass over the data.

use crate::FitError;
use crate::aligned::Aligned;
use crate::exact::{self, Start};
use crate::lanes::{Kernel, MulAdd, accumulate, dispatch};
use crate::teacher_forced::{Block, Target};

/// Solutions that are remembered: a fourth saves less than a dot product with it costs.
const REMEMBERED: usize = 3;
/// A solution whose part that is new has less than this share of its squared norm is no help.
const NEW: f64 = 1e-12;

/// What has been solved so far.
pub(crate) struct Path<'a, const K: usize, const N: usize> {
    block: &'a Block<'a, K, N>,
    known: Vec<Known<N>>,
}

/// A solution.
struct Known<const N: usize> {
    /// `d`, `[n × K]`.
    parameters: Aligned<f64, N>,
    /// `Φᵀ Φ d`, `[n × K]`.
    image: Aligned<f64, N>,
}

impl<'a, const K: usize, const N: usize> Path<'a, K, N> {
    pub fn new(block: &'a Block<K, N>) -> Self {
        Self {
            block,
            known: Vec::new(),
        }
    }

    /// The solution at the penalty of `target`, `[n × K]`.
    pub fn solve(&mut self, target: &Target) -> Result<&Aligned<f64, N>, FitError> {
        let penalty = target.penalty.of(target.form.variant);
        let start = dispatch(Combination::<K, N> {
            right_side: &self.block.right_side,
            known: &self.known,
            penalty,
        });
        let (solved, mut image) = exact::solve_from::<K, N>(self.block, target, start)?;
        let places = image.iter_mut().zip(self.block.right_side.iter());
        for (p, ((image, right), d)) in places.zip(solved.parameters.iter()).enumerate() {
            *image = std::array::from_fn(|l| right[l] - image[l] - penalty[p % K] * d[l]);
        }
        self.known.truncate(REMEMBERED - 1);
        self.known.insert(
            0,
            Known {
                parameters: solved.parameters,
                image,
            },
        );
        Ok(&self.known[0].parameters)
    }
}

/// The best combination of the known solutions, and its residual.
struct Combination<'a, const K: usize, const N: usize> {
    right_side: &'a Aligned<f64, N>,
    known: &'a [Known<N>],
    penalty: [f64; 2],
}

impl<const K: usize, const N: usize> Kernel for Combination<'_, K, N> {
    type Output = Start<N>;

    #[inline(always)]
    fn run<M: MulAdd>(self) -> Start<N> {
        let mut products = [[[0.0; N]; REMEMBERED]; REMEMBERED];
        let mut right = [[0.0; N]; REMEMBERED];
        for (s, one) in self.known.iter().enumerate() {
            for (t, other) in self.known[..=s].iter().enumerate() {
                products[s][t] = other.energy::<K, M>(one, &self.penalty);
            }
            for (d, b) in one.parameters.iter().zip(self.right_side.iter()) {
                accumulate::<f64, N, M>(&mut right[s], d, b);
            }
        }
        let mut shares = [[0.0; N]; REMEMBERED];
        for l in 0..N {
            let products = products.map(|row| row.map(|lanes| lanes[l]));
            let solved = minimum(&products, &right.map(|lanes| lanes[l]));
            for (share, value) in shares.iter_mut().zip(solved) {
                share[l] = value;
            }
        }
        let mut start = Start {
            parameters: Aligned::zeros(self.right_side.len()),
            residual: self.right_side.clone(),
        };
        for (known, share) in self.known.iter().zip(&shares) {
            known.add::<K, M>(share, &self.penalty, &mut start);
        }
        start
    }
}

impl<const N: usize> Known<N> {
    /// `dᵀ (Φᵀ Φ + Λ) e` of this solution `d` and another `e`.
    #[inline(always)]
    fn energy<const K: usize, M: MulAdd>(&self, other: &Self, penalty: &[f64; 2]) -> [f64; N] {
        let mut total = [0.0; N];
        let own = self.parameters.chunks_exact(K);
        let image = self.image.chunks_exact(K);
        for ((own, image), other) in own.zip(image).zip(other.parameters.chunks_exact(K)) {
            for k in 0..K {
                let mut curved = image[k];
                for l in 0..N {
                    curved[l] = M::double(penalty[k], own[k][l], curved[l]);
                }
                accumulate::<f64, N, M>(&mut total, &curved, &other[k]);
            }
        }
        total
    }

    /// Adds a share of this solution to `start`.
    #[inline(always)]
    fn add<const K: usize, M: MulAdd>(
        &self,
        share: &[f64; N],
        penalty: &[f64; 2],
        start: &mut Start<N>,
    ) {
        let own = self.parameters.chunks_exact(K);
        let own = own.zip(self.image.chunks_exact(K));
        let sums = start.parameters.chunks_exact_mut(K);
        for ((d, r), (own, image)) in sums.zip(start.residual.chunks_exact_mut(K)).zip(own) {
            for k in 0..K {
                accumulate::<f64, N, M>(&mut d[k], share, &own[k]);
                for l in 0..N {
                    let curved = M::double(penalty[k], own[k][l], image[k][l]);
                    r[k][l] = M::double(-share[l], curved, r[k][l]);
                }
            }
        }
    }
}

/// The `c` that solves `P c = q` for a positive semidefinite `P`, given by its lower triangle;
/// 0 for what the ones before it already span.
fn minimum(p: &[[f64; REMEMBERED]; REMEMBERED], q: &[f64; REMEMBERED]) -> [f64; REMEMBERED] {
    let mut lower = [[0.0; REMEMBERED]; REMEMBERED];
    let (mut pivots, mut c) = ([0.0; REMEMBERED], *q);
    for s in 0..REMEMBERED {
        let mut rest = p[s];
        for t in 0..=s {
            for u in 0..t {
                rest[t] -= lower[s][u] * pivots[u] * lower[t.min(s)][u];
            }
            if t < s && pivots[t] > 0.0 {
                lower[s][t] = rest[t] / pivots[t];
                c[s] -= lower[s][t] * c[t];
            }
        }
        pivots[s] = if rest[s] > NEW * p[s][s] {
            rest[s]
        } else {
            0.0
        };
    }
    for s in (0..REMEMBERED).rev() {
        if pivots[s] == 0.0 {
            c[s] = 0.0;
            continue;
        }
        c[s] /= pivots[s];
        for t in s + 1..REMEMBERED {
            c[s] -= lower[t][s] * c[t];
        }
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher_forced::Rows;
    use crate::test_support::noisy_problem;
    use crate::{FitSettings, LANES, Penalty};

    #[test]
    fn a_small_system_is_solved_and_what_is_not_new_left_out() {
        let p = [[4.0, 0.0, 0.0], [2.0, 5.0, 0.0], [1.0, 3.0, 6.0]];
        let expected = [0.5, -1.0, 2.0];
        let full = |s: usize, t: usize| if t <= s { p[s][t] } else { p[t][s] };
        let q = std::array::from_fn(|s| (0..3).map(|t| full(s, t) * expected[t]).sum());
        let got = minimum(&p, &q);
        assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() < 1e-14));
        let twice = [[4.0, 0.0, 0.0], [8.0, 16.0, 0.0], [0.0; 3]];
        assert_eq!(minimum(&twice, &[2.0, 4.0, 0.0]), [0.5, 0.0, 0.0]);
    }

    #[test]
    fn a_path_goes_through_the_separate_solutions() {
        let problem = noisy_problem(20, LANES, 5, 40, 3, 2);
        let rows = Rows::new(&problem, &problem.all_sequences()).unwrap();
        let settings = FitSettings::new(Penalty { a: 1.0, b: 1.0 });
        let mut target = settings.target();
        let block = Block::<2, LANES>::new(&problem, &rows, target.form, 0);
        let mut path = Path::new(&block);
        for lambda in [10.0, 1.0, 0.3, 0.1, 0.03] {
            target.penalty = Penalty {
                a: lambda,
                b: 0.5 * lambda,
            };
            let alone = exact::solve(&block, &target).unwrap();
            let on_path = path.solve(&target).unwrap();
            for (one, other) in on_path.iter().zip(alone.parameters.iter()) {
                for l in 0..LANES {
                    assert!((one[l] - other[l]).abs() <= 1e-10 * (1.0 + other[l].abs()));
                }
            }
        }
    }
}
