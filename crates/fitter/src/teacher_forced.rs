//! The teacher-forced least-squares objective of a few test examples side by side.
//!
//! With `d = θ − θ₀` (`θ₀`: `A = A₀`, `B = 0`) the objective of test example `j` is
//! `Σ_t (y_t − Σ_i x_t(i) Σ_k c_{t,k} d_{i,k})² + Σ_k λ_k ‖d_k‖²` with `c_t = (L_{t-1}, 1)` for
//! the terms `(A, B)` and `y_t` what `θ₀` leaves unexplained. Its normal equations are
//! `(Φᵀ Φ + Λ) d = Φᵀ y`; `Φ` is never formed, its sparse pattern is that of the exposures.

use crate::aligned::Aligned;
use crate::lanes::{Kernel, MulAdd, Real, accumulate, axpy, dispatch};
use crate::{Exposures, FitError, Penalty, Problem, Shrinkage, Variant};
use std::cell::OnceCell;

/// The steps of some sequences with both `L_{t-1}` and `L_t` measured; shared by all test
/// examples.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Their exposures.
    pub exposures: Exposures,
    /// The values of the exposures in single precision.
    pub single: Vec<f32>,
    /// Sum of the exposures of each row: 1 up to the rounding of recorded weights.
    sums: Vec<f64>,
    /// Evaluations that hold `L_{t-1}` and `L_t`.
    pub evaluations: Vec<(usize, usize)>,
}

impl Rows {
    /// The rows of these sequences.
    ///
    /// # Errors
    /// No two consecutive steps were both measured.
    pub fn new(problem: &Problem, sequences: &[usize]) -> Result<Self, FitError> {
        let (mut rows, mut evaluations, mut smallest_gap) = (Vec::new(), Vec::new(), 0);
        for &sequence in sequences {
            let place = &problem.places[sequence];
            for (index, pair) in place.steps.windows(2).enumerate() {
                let gap = pair[1] - pair[0];
                smallest_gap = if smallest_gap == 0 {
                    gap
                } else {
                    gap.min(smallest_gap)
                };
                if gap == 1 {
                    rows.push(place.row + pair[0] as usize);
                    evaluations.push((place.evaluation + index, place.evaluation + index + 1));
                }
            }
        }
        if rows.is_empty() {
            return Err(FitError::NoConsecutivePair {
                sequences: sequences.len(),
                smallest_gap,
            });
        }
        let exposures = problem.exposures.select(rows.into_iter());
        Ok(Self {
            single: exposures.values().iter().map(|&x| x as f32).collect(),
            sums: (0..exposures.len()).map(|r| exposures.row_sum(r)).collect(),
            exposures,
            evaluations,
        })
    }

    pub fn len(&self) -> usize {
        self.evaluations.len()
    }
}

/// What is minimised, apart from the data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub variant: Variant,
    pub shrinkage: Shrinkage,
}

/// What is fitted to which losses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Data<'a> {
    pub problem: &'a Problem,
    pub rows: &'a Rows,
    pub form: Form,
    /// The test example of lane 0.
    pub first: usize,
}

impl Data<'_> {
    /// `c_{t,k}` and `y_t` of a row, both 0 where one of its losses was not measured.
    #[inline(always)]
    fn row<const K: usize, const N: usize>(&self, row: usize) -> ([[f64; N]; K], [f64; N]) {
        let (before, after) = self.rows.evaluations[row];
        let (previous, seen) = self.problem.lanes::<N>(before, self.first);
        let (next, seen_too) = self.problem.lanes::<N>(after, self.first);
        let alpha = match self.form.variant {
            Variant::Additive => 1.0,
            _ => self.form.shrinkage.value() * self.rows.sums[row],
        };
        let weight: [f64; N] = std::array::from_fn(|l| seen[l] * seen_too[l]);
        let target = std::array::from_fn(|l| weight[l] * (next[l] - alpha * previous[l]));
        let mut coefficients = [weight; K];
        if self.form.variant.has_a() {
            coefficients[0] = std::array::from_fn(|l| weight[l] * previous[l]);
        }
        (coefficients, target)
    }
}

/// The least-squares problem of `N` test examples: `K` terms per training example.
pub(crate) struct Block<'a, const K: usize, const N: usize> {
    pub data: Data<'a>,
    /// `c_{t,k}` in single precision, `[rows × K]`.
    single: Aligned<f32, N>,
    /// The same in double precision, once needed.
    double: OnceCell<Aligned<f64, N>>,
    /// `Φᵀ y`, `[n × K]`.
    pub right_side: Aligned<f64, N>,
    /// Upper triangles of the `K × K` diagonal blocks of `Φᵀ Φ`, `[n × K(K+1)/2]`.
    pub diagonal: Aligned<f64, N>,
}

/// Entries of the upper triangle of a `terms × terms` block.
pub(crate) const fn triangle(terms: usize) -> usize {
    terms * (terms + 1) / 2
}

impl<'a, const K: usize, const N: usize> Block<'a, K, N> {
    /// The problem of the test examples `first..first + N`.
    pub fn new(problem: &'a Problem, rows: &'a Rows, form: Form, first: usize) -> Self {
        let data = Data {
            problem,
            rows,
            form,
            first,
        };
        dispatch(Assemble { data })
    }

    /// `c_{t,k}`, `[rows × K]`.
    pub fn coefficients(&self) -> &[[f64; N]] {
        self.double.get_or_init(|| {
            let mut all = Aligned::zeros(self.data.rows.len() * K);
            for (row, own) in all.chunks_exact_mut(K).enumerate() {
                own.copy_from_slice(&self.data.row::<K, N>(row).0);
            }
            all
        })
    }

    /// `Φᵀ Φ + Λ` in double precision.
    pub fn normal(&self, penalty: [f64; 2]) -> Normal<'_, f64, K, N> {
        Normal {
            exposures: &self.data.rows.exposures,
            values: self.data.rows.exposures.values(),
            coefficients: self.coefficients(),
            penalty,
        }
    }

    /// `Φᵀ Φ + Λ` in single precision.
    pub fn normal_single(&self, penalty: [f64; 2]) -> Normal<'_, f32, K, N> {
        Normal {
            exposures: &self.data.rows.exposures,
            values: &self.data.rows.single,
            coefficients: &self.single,
            penalty: penalty.map(|p| p as f32),
        }
    }

    /// `r ← Φᵀ (y − Φ d) − Λ d`, half of the negative gradient; gives the objective at `d`.
    pub fn residual(&self, penalty: [f64; 2], d: &[[f64; N]], r: &mut [[f64; N]]) -> [f64; N] {
        dispatch(Residual::<K, N> {
            data: self.data,
            penalty,
            d,
            r,
        })
    }

    /// Whether test example `lane` has a measured row with training example `id` in it.
    pub fn has_seen(&self, id: usize, lane: usize) -> bool {
        let size = triangle(K);
        (0..size).any(|e| self.diagonal[id * size + e][lane] != 0.0)
    }
}

/// See [`Block::residual`].
struct Residual<'a, const K: usize, const N: usize> {
    data: Data<'a>,
    penalty: [f64; 2],
    d: &'a [[f64; N]],
    r: &'a mut [[f64; N]],
}

impl<const K: usize, const N: usize> Kernel for Residual<'_, K, N> {
    type Output = [f64; N];

    #[inline(always)]
    fn run<M: MulAdd>(self) -> [f64; N] {
        let Self {
            data,
            penalty,
            d,
            r,
        } = self;
        let mut total = [0.0; N];
        for (r, terms) in r.chunks_exact_mut(K).zip(d.chunks_exact(K)) {
            for k in 0..K {
                r[k] = std::array::from_fn(|l| -penalty[k] * terms[k][l]);
                total = std::array::from_fn(|l| M::double(-r[k][l], terms[k][l], total[l]));
            }
        }
        let exposures = &data.rows.exposures;
        for (row, (ids, values)) in exposures.rows_with(exposures.values()).enumerate() {
            let (coefficients, target) = data.row::<K, N>(row);
            let explained = predict::<f64, K, N, M>(ids, values, &coefficients, d);
            let rest: [f64; N] = std::array::from_fn(|l| target[l] - explained[l]);
            accumulate::<f64, N, M>(&mut total, &rest, &rest);
            spread::<f64, K, N, M>(ids, values, &coefficients, &rest, r);
        }
        total
    }
}

/// The matrix `Φᵀ Φ + Λ` of a block, in the precision `T`.
pub(crate) struct Normal<'a, T, const K: usize, const N: usize> {
    exposures: &'a Exposures,
    values: &'a [T],
    coefficients: &'a [[T; N]],
    penalty: [T; 2],
}

impl<T: Real, const K: usize, const N: usize> Normal<'_, T, K, N> {
    /// `(Φᵀ Φ + Λ) p` into `out`; gives `pᵀ (Φᵀ Φ + Λ) p`.
    pub fn apply(&self, p: &[[T; N]], out: &mut [[T; N]]) -> [f64; N] {
        dispatch(Apply {
            normal: self,
            p,
            out,
        })
    }
}

/// See [`Normal::apply`]; the sum is in `T` over short runs, those in double precision.
struct Apply<'a, T, const K: usize, const N: usize> {
    normal: &'a Normal<'a, T, K, N>,
    p: &'a [[T; N]],
    out: &'a mut [[T; N]],
}

impl<T: Real, const K: usize, const N: usize> Kernel for Apply<'_, T, K, N> {
    type Output = [f64; N];

    #[inline(always)]
    fn run<M: MulAdd>(self) -> [f64; N] {
        let Self { normal, p, out } = self;
        let mut parts = Vec::new();
        for (out, p) in out.chunks_mut(K * RUN).zip(p.chunks(K * RUN)) {
            let mut part = [T::ZERO; N];
            for (q, d) in out.chunks_exact_mut(K).zip(p.chunks_exact(K)) {
                for k in 0..K {
                    q[k] = std::array::from_fn(|l| normal.penalty[k] * d[k][l]);
                    accumulate::<T, N, M>(&mut part, &q[k], &d[k]);
                }
            }
            parts.push(part);
        }
        let mut rows = normal.exposures.rows_with(normal.values);
        for coefficients in normal.coefficients.chunks(K * RUN) {
            let mut part = [T::ZERO; N];
            for (coefficients, (ids, values)) in coefficients.chunks_exact(K).zip(&mut rows) {
                let explained = predict::<T, K, N, M>(ids, values, coefficients, p);
                accumulate::<T, N, M>(&mut part, &explained, &explained);
                spread::<T, K, N, M>(ids, values, coefficients, &explained, out);
            }
            parts.push(part);
        }
        total(&parts)
    }
}

/// Terms over which a dot product is summed in the precision of its factors.
pub(crate) const RUN: usize = 64;

/// The sum of such partial sums, in double precision. They are kept apart until the end because
/// a pass that widens them as it goes is compiled for vectors of half the width.
#[inline(always)]
pub(crate) fn total<T: Real, const N: usize>(parts: &[[T; N]]) -> [f64; N] {
    let mut sum = [0.0; N];
    for part in parts {
        sum = std::array::from_fn(|l| sum[l] + part[l].widen());
    }
    sum
}

/// `Σ_k c_k Σ_i x(i) p_{i,k}` of one row.
#[inline(always)]
fn predict<T: Real, const K: usize, const N: usize, M: MulAdd>(
    ids: &[u32],
    values: &[T],
    coefficients: &[[T; N]],
    p: &[[T; N]],
) -> [T; N] {
    let mut sums = [[T::ZERO; N]; K];
    let (p, _) = p.as_chunks::<K>();
    for (&id, &x) in ids.iter().zip(values) {
        let terms = &p[id as usize];
        for k in 0..K {
            axpy::<T, N, M>(&mut sums[k], x, &terms[k]);
        }
    }
    let mut explained = [T::ZERO; N];
    for k in 0..K {
        accumulate::<T, N, M>(&mut explained, &coefficients[k], &sums[k]);
    }
    explained
}

/// Adds `x(i) c_k r` of one row to every `out_{i,k}`.
#[inline(always)]
fn spread<T: Real, const K: usize, const N: usize, M: MulAdd>(
    ids: &[u32],
    values: &[T],
    coefficients: &[[T; N]],
    r: &[T; N],
    out: &mut [[T; N]],
) {
    let mut weighted = [[T::ZERO; N]; K];
    for k in 0..K {
        weighted[k] = std::array::from_fn(|l| coefficients[k][l] * r[l]);
    }
    let (out, _) = out.as_chunks_mut::<K>();
    for (&id, &x) in ids.iter().zip(values) {
        let terms = &mut out[id as usize];
        for k in 0..K {
            axpy::<T, N, M>(&mut terms[k], x, &weighted[k]);
        }
    }
}

/// Computes the coefficients in single precision, `Φᵀ y` and the diagonal blocks of `Φᵀ Φ`, in one
/// pass over the rows.
struct Assemble<'a, const K: usize, const N: usize> {
    data: Data<'a>,
}

impl<'a, const K: usize, const N: usize> Kernel for Assemble<'a, K, N> {
    type Output = Block<'a, K, N>;

    #[inline(always)]
    fn run<M: MulAdd>(self) -> Block<'a, K, N> {
        let data = self.data;
        let n = data.problem.train_count();
        let mut block = Block {
            data,
            single: Aligned::zeros(data.rows.len() * K),
            double: OnceCell::new(),
            right_side: Aligned::zeros(n * K),
            diagonal: Aligned::zeros(n * triangle(K)),
        };
        let (right_sides, _) = block.right_side.as_chunks_mut::<K>();
        let diagonals = &mut block.diagonal[..];
        for (row, single) in block.single.chunks_exact_mut(K).enumerate() {
            let (coefficients, target) = data.row::<K, N>(row);
            let mut weighted = [[0.0; N]; K];
            for k in 0..K {
                single[k] = std::array::from_fn(|l| coefficients[k][l] as f32);
                weighted[k] = std::array::from_fn(|l| coefficients[k][l] * target[l]);
            }
            let products = products::<K, N>(&coefficients);
            let (ids, values) = data.rows.exposures.entries(row);
            for (&id, &x) in ids.iter().zip(values) {
                let right_side = &mut right_sides[id as usize];
                for k in 0..K {
                    axpy::<f64, N, M>(&mut right_side[k], x, &weighted[k]);
                }
                let diagonal = &mut diagonals[id as usize * triangle(K)..][..triangle(K)];
                for e in 0..triangle(K) {
                    axpy::<f64, N, M>(&mut diagonal[e], x * x, &products[e]);
                }
            }
        }
        block
    }
}

/// `c_k c_h` for `k ≤ h`; only the first `K (K + 1) / 2` entries are used.
#[inline(always)]
fn products<const K: usize, const N: usize>(coefficients: &[[f64; N]]) -> [[f64; N]; 3] {
    let times = |k: usize, h: usize| -> [f64; N] {
        std::array::from_fn(|l| coefficients[k][l] * coefficients[h][l])
    };
    if K == 1 {
        return [times(0, 0), [0.0; N], [0.0; N]];
    }
    [times(0, 0), times(0, 1), times(1, 1)]
}

/// `θ₀` of the fitted terms.
pub(crate) fn centre(form: Form) -> [f64; 2] {
    match form.variant {
        Variant::Linear | Variant::Multiplicative => [form.shrinkage.value(), 0.0],
        Variant::Additive => [0.0, 0.0],
    }
}

/// What an example that was never seen gets: `A = 1`, `B = 0`, whatever `A₀` is, because that
/// is what changes nothing.
pub(crate) fn neutral(variant: Variant) -> [f64; 2] {
    match variant {
        Variant::Linear | Variant::Multiplicative => [1.0, 0.0],
        Variant::Additive => [0.0, 0.0],
    }
}

/// Everything that a solver needs beside the data of its block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub form: Form,
    pub penalty: Penalty,
    /// Relative residual to reach.
    pub tolerance: f64,
    /// Iterations allowed.
    pub max_iterations: u64,
}
