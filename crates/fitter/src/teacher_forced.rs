//! The teacher-forced least-squares objective of a few test examples side by side.
//!
//! With `d = θ − θ₀` (`θ₀`: `A = A₀`, `B = 0`) the objective of test example `j` is
//! `Σ_t (y_t − Σ_i x_t(i) Σ_k c_{t,k} d_{i,k})² + Σ_k λ_k ‖d_k‖²` with `c_t = (L_{t-1}, 1)` for
//! the terms `(A, B)` and `y_t` what `θ₀` leaves unexplained. Its normal equations are
//! `(Φᵀ Φ + Λ) d = Φᵀ y`; `Φ` is never formed, its sparse pattern is that of the exposures.

use crate::lanes::{Kernel, MulAdd, Real, accumulate, axpy, dispatch};
use crate::{Exposures, FitError, Penalty, Problem, Shrinkage, Variant};

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

/// The least-squares problem of `N` test examples: `K` terms per training example.
pub(crate) struct Block<const K: usize, const N: usize> {
    /// `c_{t,k}`, `[rows × K]`.
    pub coefficients: Vec<[f64; N]>,
    /// The same in single precision.
    pub single: Vec<[f32; N]>,
    /// `y_t`, `[rows]`.
    pub targets: Vec<[f64; N]>,
    /// `Φᵀ y`, `[n × K]`.
    pub right_side: Vec<[f64; N]>,
    /// Upper triangles of the `K × K` diagonal blocks of `Φᵀ Φ`, `[n × K(K+1)/2]`.
    pub diagonal: Vec<[f64; N]>,
}

/// Entries of the upper triangle of a `terms × terms` block.
pub(crate) const fn triangle(terms: usize) -> usize {
    terms * (terms + 1) / 2
}

impl<const K: usize, const N: usize> Block<K, N> {
    /// The problem of the test examples `first..first + N`.
    pub fn new(problem: &Problem, rows: &Rows, form: Form, first: usize) -> Self {
        dispatch(Assemble::<K, N> {
            problem,
            rows,
            form,
            first,
        })
    }

    /// `Φᵀ Φ + Λ` in double precision.
    #[inline(always)]
    pub fn normal<'a>(&'a self, rows: &'a Rows, penalty: [f64; 2]) -> Normal<'a, f64, K, N> {
        Normal {
            exposures: &rows.exposures,
            values: rows.exposures.values(),
            coefficients: &self.coefficients,
            penalty,
        }
    }

    /// `Φᵀ Φ + Λ` in single precision.
    #[inline(always)]
    pub fn normal_single<'a>(&'a self, rows: &'a Rows, penalty: [f64; 2]) -> Normal<'a, f32, K, N> {
        Normal {
            exposures: &rows.exposures,
            values: &rows.single,
            coefficients: &self.single,
            penalty: penalty.map(|p| p as f32),
        }
    }

    /// `r ← Φᵀ (y − Φ d) − Λ d`, half of the negative gradient; gives the objective at `d`.
    #[inline(always)]
    pub fn residual<M: MulAdd>(
        &self,
        exposures: &Exposures,
        penalty: &[f64; 2],
        d: &[[f64; N]],
        r: &mut [[f64; N]],
    ) -> [f64; N] {
        let mut total = [0.0; N];
        for (r, terms) in r.chunks_exact_mut(K).zip(d.chunks_exact(K)) {
            for k in 0..K {
                r[k] = std::array::from_fn(|l| -penalty[k] * terms[k][l]);
                for l in 0..N {
                    total[l] = M::double(-r[k][l], terms[k][l], total[l]);
                }
            }
        }
        for (row, coefficients) in self.coefficients.chunks_exact(K).enumerate() {
            let (ids, values) = exposures.entries(row);
            let explained = predict::<f64, K, N, M>(ids, values, coefficients, d);
            let rest: [f64; N] = std::array::from_fn(|l| self.targets[row][l] - explained[l]);
            accumulate::<f64, N, M>(&mut total, &rest, &rest);
            spread::<f64, K, N, M>(ids, values, coefficients, &rest, r);
        }
        total
    }

    /// Whether test example `lane` has a measured row with training example `id` in it.
    pub fn has_seen(&self, id: usize, lane: usize) -> bool {
        let size = triangle(K);
        (0..size).any(|e| self.diagonal[id * size + e][lane] != 0.0)
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
    /// `(Φᵀ Φ + Λ) p` into `out`; gives `pᵀ (Φᵀ Φ + Λ) p`, summed in `T` over short runs, those
    /// in double precision.
    #[inline(always)]
    pub fn apply<M: MulAdd>(&self, p: &[[T; N]], out: &mut [[T; N]]) -> [f64; N] {
        let mut curvature = [0.0; N];
        for (out, p) in out.chunks_mut(K * RUN).zip(p.chunks(K * RUN)) {
            let mut part = [T::ZERO; N];
            for (q, d) in out.chunks_exact_mut(K).zip(p.chunks_exact(K)) {
                for k in 0..K {
                    q[k] = std::array::from_fn(|l| self.penalty[k] * d[k][l]);
                    accumulate::<T, N, M>(&mut part, &q[k], &d[k]);
                }
            }
            curvature = std::array::from_fn(|l| curvature[l] + part[l].widen());
        }
        let runs = self.coefficients.chunks(K * RUN);
        for (coefficients, first) in runs.zip((0..).step_by(RUN)) {
            let mut part = [T::ZERO; N];
            for (coefficients, row) in coefficients.chunks_exact(K).zip(first..) {
                let (ids, values) = self.exposures.entries_with(row, self.values);
                let explained = predict::<T, K, N, M>(ids, values, coefficients, p);
                accumulate::<T, N, M>(&mut part, &explained, &explained);
                spread::<T, K, N, M>(ids, values, coefficients, &explained, out);
            }
            curvature = std::array::from_fn(|l| curvature[l] + part[l].widen());
        }
        curvature
    }
}

/// Terms over which a dot product is summed in the precision of its factors.
pub(crate) const RUN: usize = 64;

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

/// Reads the losses of a block and computes `Φᵀ y` and the diagonal blocks of `Φᵀ Φ`, in one pass
/// over the rows.
struct Assemble<'a, const K: usize, const N: usize> {
    problem: &'a Problem,
    rows: &'a Rows,
    form: Form,
    first: usize,
}

impl<const K: usize, const N: usize> Kernel for Assemble<'_, K, N> {
    type Output = Block<K, N>;

    #[inline(always)]
    fn run<M: MulAdd>(self) -> Block<K, N> {
        let Assemble {
            problem,
            rows,
            form,
            first,
        } = self;
        let n = problem.train_count();
        let mut block = Block {
            coefficients: Vec::with_capacity(rows.len() * K),
            single: Vec::with_capacity(rows.len() * K),
            targets: Vec::with_capacity(rows.len()),
            right_side: vec![[0.0; N]; n * K],
            diagonal: vec![[0.0; N]; n * triangle(K)],
        };
        for (row, &(before, after)) in rows.evaluations.iter().enumerate() {
            let (previous, seen) = problem.lanes::<N>(before, first);
            let (next, seen_too) = problem.lanes::<N>(after, first);
            let alpha = match form.variant {
                Variant::Additive => 1.0,
                _ => form.shrinkage.value() * rows.sums[row],
            };
            let weight: [f64; N] = std::array::from_fn(|l| seen[l] * seen_too[l]);
            let target: [f64; N] =
                std::array::from_fn(|l| weight[l] * (next[l] - alpha * previous[l]));
            let mut coefficients = [weight; K];
            if form.variant.has_a() {
                coefficients[0] = std::array::from_fn(|l| weight[l] * previous[l]);
            }
            let (ids, values) = rows.exposures.entries(row);
            let right_side = &mut block.right_side;
            spread::<f64, K, N, M>(ids, values, &coefficients, &target, right_side);
            let products = products::<K, N>(&coefficients);
            let size = triangle(K);
            for (&id, &x) in ids.iter().zip(values) {
                let entries = &mut block.diagonal[id as usize * size..(id as usize + 1) * size];
                for (entry, product) in entries.iter_mut().zip(&products) {
                    axpy::<f64, N, M>(entry, x * x, product);
                }
            }
            block.targets.push(target);
            for lanes in coefficients {
                block.coefficients.push(lanes);
                block.single.push(std::array::from_fn(|l| lanes[l] as f32));
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
