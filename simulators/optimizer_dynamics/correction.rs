//! What is left of the left-out runs, learned from how alike curricula are.

use super::inputs::{Exposed, Inputs};
use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

/// Length scales of exposures and of the clock, and noises, that are tried.
const EXPOSURE_SCALES: [f64; 3] = [1.0, 2.0, 4.0];
const CLOCK_SCALES: [f64; 3] = [0.25, 0.5, 1.0];
const NOISES: [f64; 4] = [0.1, 1.0, 10.0, 100.0];
/// Points at which residuals are learned, over all runs.
const POINTS: usize = 1_000;
/// Fewest and most points of a run.
const POINTS_PER_RUN: (usize, usize) = (6, 24);

/// A Gaussian process over curricula: `δ_j(u) = Σ_p k(u, u_p) α_pj`, with the Matérn-3/2 kernel
/// `k` over what training has seen so far (exposures to each dataset over several horizons) and
/// how far it has come (the clock).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Correction {
    pub(super) tests: usize,
    /// Mean and scale of each coordinate of `u`.
    pub(super) mean: Vec<f64>,
    pub(super) scale: Vec<f64>,
    /// `[points × coordinates]`.
    pub(super) points: Vec<f64>,
    /// `[points × tests]`.
    pub(super) weights: Vec<f64>,
}

/// How the correction was chosen.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CorrectionChoice {
    /// Length scale of exposures, in standard deviations of the recorded ones.
    pub exposure_scale: f64,
    /// Length scale of the clock, in standard deviations of the recorded one.
    pub clock_scale: f64,
    /// Variance of the noise over that of the process.
    pub noise: f64,
    /// Mean squared error of left-out runs before the correction, nats².
    pub before: f64,
    /// With it, leaving the same runs out of it, nats².
    pub after: f64,
}

/// A left-out run: its inputs and what its simulation missed, `[(steps + 1) × tests]`.
pub(super) struct Missed<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) fold: usize,
    pub(super) errors: Vec<f64>,
    /// The last step whose error is known.
    pub(super) last: usize,
}

impl Correction {
    /// Learns from left-out runs, or `None` where no setting lowers the error of runs that were
    /// left out of the correction, too. Leaving a fold out is exact and needs one inverse for
    /// all folds: its errors are `([K⁻¹]_ff)⁻¹ [K⁻¹ y]_f`.
    pub(super) fn fit(
        missed: &[Missed<'_>],
        horizons: &[f64],
        groups: usize,
        tests: usize,
    ) -> Option<(Self, CorrectionChoice)> {
        let per_run = (POINTS / missed.len().max(1)).clamp(POINTS_PER_RUN.0, POINTS_PER_RUN.1);
        let mut points = Vec::new();
        let mut errors = Vec::new();
        let mut folds = Vec::new();
        for run in missed {
            let coordinates = coordinates(run.inputs, horizons, groups);
            let width = coordinates.len() / run.inputs.len();
            for step in spread(run.last, per_run) {
                points.extend_from_slice(&coordinates[(step - 1) * width..][..width]);
                errors.extend_from_slice(&run.errors[step * tests..][..tests]);
                folds.push(run.fold);
            }
        }
        let count = folds.len();
        if count == 0 {
            return None;
        }
        let width = points.len() / count;
        let (mean, scale) = standardise(&mut points, width);
        let errors = DMatrix::from_row_slice(count, tests, &errors);
        let before = errors.norm_squared() / errors.len() as f64;
        let (exposure, clock) = distances(&points, width, count);
        let fold_count = folds.iter().max().map_or(0, |f| f + 1);
        let members: Vec<Vec<usize>> = (0..fold_count)
            .map(|fold| (0..count).filter(|&p| folds[p] == fold).collect())
            .filter(|members: &Vec<usize>| !members.is_empty())
            .collect();
        if members.len() < 2 {
            return None;
        }
        let settings: Vec<(f64, f64, f64)> = EXPOSURE_SCALES
            .iter()
            .flat_map(|&e| CLOCK_SCALES.iter().map(move |&c| (e, c)))
            .flat_map(|(e, c)| NOISES.iter().map(move |&n| (e, c, n)))
            .collect();
        let kernel = |(e, c, noise): (f64, f64, f64)| {
            let mut matrix = DMatrix::from_fn(count, count, |p, q| {
                matern(exposure[(p, q)] / (e * e) + clock[(p, q)] / (c * c))
            });
            for p in 0..count {
                matrix[(p, p)] += noise;
            }
            matrix
        };
        let tried: Vec<f64> = settings
            .par_iter()
            .map(|&setting| {
                let Some(factored) = Cholesky::new(kernel(setting)) else {
                    return f64::INFINITY;
                };
                let inverse = factored.inverse();
                let weights = &inverse * &errors;
                let mut sum = 0.0;
                for members in &members {
                    let block = DMatrix::from_fn(members.len(), members.len(), |a, b| {
                        inverse[(members[a], members[b])]
                    });
                    let own =
                        DMatrix::from_fn(members.len(), tests, |a, j| weights[(members[a], j)]);
                    match Cholesky::new(block) {
                        Some(block) => sum += block.solve(&own).norm_squared(),
                        None => return f64::INFINITY,
                    }
                }
                sum / errors.len() as f64
            })
            .collect();
        let best = (0..settings.len()).min_by(|&a, &b| tried[a].total_cmp(&tried[b]))?;
        if tried[best] >= before {
            return None;
        }
        let setting = settings[best];
        let weights = Cholesky::new(kernel(setting))?.solve(&errors);
        let (exposure_scale, clock_scale, noise) = setting;
        // The length scales go into the scales of the coordinates.
        let mut scale = scale;
        for (k, s) in scale.iter_mut().enumerate() {
            *s *= if k + 2 < width {
                exposure_scale
            } else {
                clock_scale
            };
        }
        for point in points.chunks_exact_mut(width) {
            for (k, x) in point.iter_mut().enumerate() {
                *x /= if k + 2 < width {
                    exposure_scale
                } else {
                    clock_scale
                };
            }
        }
        let choice = CorrectionChoice {
            exposure_scale,
            clock_scale,
            noise,
            before,
            after: tried[best],
        };
        let correction = Self {
            tests,
            mean,
            scale,
            points,
            weights: weights.transpose().as_slice().to_vec(),
        };
        Some((correction, choice))
    }

    /// Adds the correction to simulated losses `[(steps + 1) × tests]`; no loss falls below 0.
    pub(super) fn apply(
        &self,
        inputs: &Inputs,
        horizons: &[f64],
        groups: usize,
        losses: &mut [f64],
    ) {
        let width = self.mean.len();
        let coordinates = coordinates(inputs, horizons, groups);
        let rows = losses[self.tests..].par_chunks_exact_mut(self.tests);
        rows.zip(coordinates.par_chunks_exact(width))
            .for_each(|(losses, at)| {
                let at: Vec<f64> = (at.iter().zip(&self.mean).zip(&self.scale))
                    .map(|((x, mean), scale)| (x - mean) / scale)
                    .collect();
                for (point, weights) in self
                    .points
                    .chunks_exact(width)
                    .zip(self.weights.chunks_exact(self.tests))
                {
                    let square: f64 = point.iter().zip(&at).map(|(a, b)| (a - b) * (a - b)).sum();
                    let k = matern(square);
                    for (loss, weight) in losses.iter_mut().zip(weights) {
                        *loss += k * weight;
                    }
                }
                losses.iter_mut().for_each(|loss| *loss = loss.max(0.0));
            });
    }
}

/// Matérn-3/2 kernel of a squared distance.
fn matern(square: f64) -> f64 {
    let distance = (3.0 * square).sqrt();
    (1.0 + distance) * (-distance).exp()
}

/// What training has seen and how far it has come after every step, `[steps × coordinates]`: the
/// exposures over each horizon, then the clock.
fn coordinates(inputs: &Inputs, horizons: &[f64], groups: usize) -> Vec<f64> {
    let mut exposed = Exposed::new(horizons, groups);
    let mut out = Vec::with_capacity(inputs.len() * (horizons.len() * groups + 2));
    for step in 0..inputs.len() {
        exposed.step(inputs.shares(step), inputs.rate(step));
        out.extend_from_slice(exposed.values());
        out.extend_from_slice(&exposed.clock());
    }
    out
}

/// About `count` steps of `1..=last`, closer together at the beginning, where losses move fast.
fn spread(last: usize, count: usize) -> Vec<usize> {
    let at = |k: usize| {
        let part = k as f64 / count as f64;
        ((last as f64) * part.powf(1.5)).ceil() as usize
    };
    let mut steps: Vec<usize> = (1..=count)
        .map(at)
        .filter(|step| (1..=last).contains(step))
        .collect();
    steps.dedup();
    steps
}

/// Brings coordinates to mean 0; exposures and clock get a root mean square of 1 over all their
/// coordinates together, each coordinate the same share. Returns means and scales.
fn standardise(points: &mut [f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let count = (points.len() / width) as f64;
    let mut mean = vec![0.0; width];
    for point in points.chunks_exact(width) {
        for (sum, x) in mean.iter_mut().zip(point) {
            *sum += x / count;
        }
    }
    let mut scale = vec![0.0; width];
    for point in points.chunks_exact(width) {
        for ((sum, x), mean) in scale.iter_mut().zip(point).zip(&mean) {
            *sum += (x - mean) * (x - mean) / count;
        }
    }
    for (k, s) in scale.iter_mut().enumerate() {
        let share = if k + 2 < width { width - 2 } else { 2 };
        // A coordinate that never moves (a dataset that was never trained) keeps its own unit.
        let deviation = if *s > 1e-18 { s.sqrt() } else { 1.0 };
        *s = deviation * (share as f64).sqrt();
    }
    for point in points.chunks_exact_mut(width) {
        for ((x, mean), scale) in point.iter_mut().zip(&mean).zip(&scale) {
            *x = (*x - mean) / scale;
        }
    }
    (mean, scale)
}

/// Squared distances between points, of exposures and of the clock.
fn distances(points: &[f64], width: usize, count: usize) -> (DMatrix<f64>, DMatrix<f64>) {
    let square = |p: usize, q: usize, range: std::ops::Range<usize>| -> f64 {
        let (p, q) = (
            &points[p * width..][range.clone()],
            &points[q * width..][range],
        );
        p.iter().zip(q).map(|(a, b)| (a - b) * (a - b)).sum()
    };
    (
        DMatrix::from_fn(count, count, |p, q| square(p, q, 0..width - 2)),
        DMatrix::from_fn(count, count, |p, q| square(p, q, width - 2..width)),
    )
}
