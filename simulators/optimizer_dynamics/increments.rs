//! What a step changes in every test example's loss: a ridge regression per test example on
//! pushes that all of them share.

use super::path::Path;
use nalgebra::{Cholesky, DMatrix, DVector};
use rayon::prelude::*;

/// `ΔL_j = Φ · a_j + (F · b_j) L_j`, with the pushes `F` and `Φ = [F, F ⊗ z]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Increments {
    /// Number of pushes with own terms: all, or none.
    pub(super) pushes: usize,
    /// Number of features `Φ`.
    pub(super) features: usize,
    pub(super) tests: usize,
    /// `[features × tests]`.
    pub(super) a: Vec<f64>,
    /// `[pushes × tests]`.
    pub(super) b: Vec<f64>,
}

/// A run's features `[steps × features]` along the states that it went through, or that a
/// simulation of it did.
pub(super) struct Featured<'a> {
    /// What was recorded.
    pub(super) path: &'a Path,
    /// Where the increments start from: the recorded losses, or simulated ones.
    pub(super) states: &'a Path,
    /// The part of the distance to the recorded losses that a step is to make good.
    pub(super) pull: f64,
    pub(super) phi: DMatrix<f64>,
}

impl Increments {
    /// Adds what a step changes to `losses`.
    pub(super) fn apply(&self, phi: &[f64], losses: &mut [f64], scratch: &mut [f64]) {
        let m = self.tests;
        let (change, slope) = scratch.split_at_mut(m);
        change.fill(0.0);
        slope.fill(0.0);
        for (x, row) in phi.iter().zip(self.a.chunks_exact(m)) {
            for (change, a) in change.iter_mut().zip(row) {
                *change += x * a;
            }
        }
        for (x, row) in phi.iter().zip(self.b.chunks_exact(m)) {
            for (slope, b) in slope.iter_mut().zip(row) {
                *slope += x * b;
            }
        }
        for ((loss, change), slope) in losses.iter_mut().zip(change).zip(slope) {
            *loss += *change + *slope * *loss;
        }
    }

    /// Fits with every penalty: minimises
    /// `Σ (ΔL + γ Σ (L − S) − Φ·a − (F·b) S)² / gap + λ |scaled [a, b]|²` over pairs of
    /// neighbouring measurements, `gap` steps apart, for every test example; `S` are the states
    /// that the increments start from (`L` itself where they are the recorded ones), `γ` the pull.
    ///
    /// Pushes and own terms are scaled to a root mean square of 1 each, the products with the
    /// state together, so that a component that hardly moves is held back by the penalty.
    pub(super) fn fit(runs: &[Featured<'_>], pushes: usize, penalties: &[f64]) -> Vec<Self> {
        let tests = runs[0].path.row(0).len();
        let features = runs[0].phi.ncols();
        let complete = runs.iter().all(|run| run.path.is_complete());
        let shared = complete.then(|| Shared::new(runs, 0, pushes));
        let solved: Vec<Vec<DVector<f64>>> = (0..tests)
            .into_par_iter()
            .map(|test| {
                let own;
                let shared = match &shared {
                    Some(shared) => shared,
                    None => {
                        own = Shared::new(runs, test, pushes);
                        &own
                    }
                };
                shared.solve(runs, test, pushes, penalties)
            })
            .collect();
        (0..penalties.len())
            .map(|p| {
                let entry = |row: usize, test: usize| solved[test][p][row];
                let table = |from: usize, rows: usize| {
                    let rows = from..from + rows;
                    rows.flat_map(|row| (0..tests).map(move |test| (row, test)))
                        .map(|(row, test)| entry(row, test))
                        .collect()
                };
                Self {
                    pushes,
                    features,
                    tests,
                    a: table(0, features),
                    b: table(features, pushes),
                }
            })
            .collect()
    }
}

/// What the regressions of test examples measured at the same steps share.
struct Shared {
    /// `[rows × features]`, scaled and weighted.
    phi: DMatrix<f64>,
    scale: Vec<f64>,
    gram: DMatrix<f64>,
}

impl Shared {
    fn new(runs: &[Featured<'_>], test: usize, pushes: usize) -> Self {
        let features = runs[0].phi.ncols();
        let gaps: Vec<(usize, u32, u32)> = gaps(runs, test).collect();
        let mut phi = DMatrix::<f64>::zeros(gaps.len(), features);
        for (row, &(run, from, to)) in gaps.iter().enumerate() {
            let weight = 1.0 / f64::from(to - from).sqrt();
            for step in from..to {
                for f in 0..features {
                    phi[(row, f)] += weight * runs[run].phi[(step as usize, f)];
                }
            }
        }
        let rows = gaps.len().max(1) as f64;
        let square = |f: usize| phi.column(f).norm_squared() / rows;
        let mut scale: Vec<f64> = (0..features).map(|f| square(f).sqrt().max(1e-12)).collect();
        if pushes > 0 && features > pushes {
            let mean = (pushes..features).map(square).sum::<f64>() / (features - pushes) as f64;
            scale[pushes..].fill(mean.sqrt().max(1e-12));
        }
        for (f, s) in scale.iter().enumerate() {
            phi.column_mut(f).scale_mut(1.0 / s);
        }
        let gram = phi.tr_mul(&phi);
        Self { phi, scale, gram }
    }

    fn solve(
        &self,
        runs: &[Featured<'_>],
        test: usize,
        pushes: usize,
        penalties: &[f64],
    ) -> Vec<DVector<f64>> {
        let features = self.gram.nrows();
        let rows = self.phi.nrows();
        let mut own = DMatrix::<f64>::zeros(rows, pushes);
        let mut target = DVector::<f64>::zeros(rows);
        for (row, (run, from, to)) in gaps(runs, test).enumerate() {
            let Featured {
                path,
                states,
                pull,
                phi,
            } = &runs[run];
            let weight = 1.0 / f64::from(to - from).sqrt();
            target[row] = weight * (path.at(to, test) - path.at(from, test));
            for step in from..to {
                let state = states.at(step, test);
                target[row] += weight * pull * (path.at(step, test) - state);
                let loss = weight * state;
                for f in 0..pushes {
                    own[(row, f)] += loss * phi[(step as usize, f)];
                }
            }
        }
        let mut scale = self.scale.clone();
        for f in 0..pushes {
            let s = (own.column(f).norm_squared() / rows.max(1) as f64)
                .sqrt()
                .max(1e-12);
            own.column_mut(f).scale_mut(1.0 / s);
            scale.push(s);
        }
        let size = features + pushes;
        let mut gram = DMatrix::<f64>::zeros(size, size);
        gram.view_mut((0, 0), (features, features))
            .copy_from(&self.gram);
        let cross = self.phi.tr_mul(&own);
        gram.view_mut((0, features), (features, pushes))
            .copy_from(&cross);
        gram.view_mut((features, 0), (pushes, features))
            .copy_from(&cross.transpose());
        gram.view_mut((features, features), (pushes, pushes))
            .copy_from(&own.tr_mul(&own));
        let mut right = DVector::<f64>::zeros(size);
        right
            .rows_mut(0, features)
            .copy_from(&self.phi.tr_mul(&target));
        right
            .rows_mut(features, pushes)
            .copy_from(&own.tr_mul(&target));
        penalties
            .iter()
            .map(|&penalty| {
                let mut matrix = gram.clone();
                for d in 0..size {
                    matrix[(d, d)] += penalty;
                }
                let factored = Cholesky::new(matrix).expect("a penalty makes it positive definite");
                let mut solution = factored.solve(&right);
                for (x, s) in solution.iter_mut().zip(&scale) {
                    *x /= s;
                }
                solution
            })
            .collect()
    }
}

/// Pairs of neighbouring measurements of a test example: run, from, to.
fn gaps<'a>(runs: &'a [Featured<'_>], test: usize) -> impl Iterator<Item = (usize, u32, u32)> + 'a {
    runs.iter().enumerate().flat_map(move |(run, featured)| {
        let gaps = featured.path.gaps(test).into_iter();
        gaps.map(move |(from, to)| (run, from, to))
    })
}
