//! What is left of the left-out runs, learned from how alike curricula are.

use super::inputs::{Exposed, Inputs};
use super::path::Path;
use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

/// Length scales of exposures and of the clock, and noises, that are tried.
const EXPOSURE_SCALES: [f64; 3] = [1.0, 2.0, 4.0];
const CLOCK_SCALES: [f64; 3] = [0.25, 0.5, 1.0];
const NOISES: [f64; 4] = [0.1, 1.0, 10.0, 100.0];
/// Points at which residuals are learned, over all runs.
const POINTS: usize = 1_000;
/// Points among them with which settings are compared first.
const CHOOSING_POINTS: usize = 400;
/// Settings that are then tried on all points.
const FINALISTS: usize = 6;
/// Fewest and most points of a run.
const POINTS_PER_RUN: (usize, usize) = (6, 24);

/// Coordinates after the exposures: the clock, and the rate so far.
const CLOCK: usize = 2;
/// Length scale of the rate, in nats. It is long, so that what the closed loop misses at one rate
/// is taken to be missed at others too; a change of the rate itself is left to the pushes.
const RATE_SCALE: f64 = 4.0;
/// The same for distances: a rate that was not recorded is far all the same.
const RATE_REACH: f64 = 1.0;
const FARTHER: f64 = (RATE_SCALE / RATE_REACH) * (RATE_SCALE / RATE_REACH) - 1.0;
/// Where no setting helps: what bands measure likeness with.
pub(super) const FALLBACK: Setting = Setting {
    exposure: 2.0,
    clock: 0.5,
    noise: 1.0,
};

/// What the coordinates of curricula are made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Basis {
    /// Steps after which exposures are forgotten.
    pub(super) horizons: Vec<f64>,
    pub(super) groups: usize,
    /// The exponent `q` of the learning rate.
    pub(super) rate_exponent: f64,
}

impl Basis {
    /// Number of coordinates.
    pub(super) fn width(&self) -> usize {
        self.horizons.len() * self.groups + CLOCK
    }
}

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
    /// `[points × tests]`; empty where no setting lowers the error of left-out runs.
    pub(super) weights: Vec<f64>,
}

/// What a left-out point was missed by, for the bands.
#[derive(Debug, Clone)]
pub(super) struct LeftOutPoint {
    /// Step, counted from 1.
    pub(super) step: usize,
    /// Distance to the nearest point of the other folds, in length scales.
    pub(super) distance: f64,
    /// `[tests]`: recorded minus simulated losses.
    pub(super) errors: Vec<f64>,
    /// `[tests]`: recorded losses.
    pub(super) real: Vec<f64>,
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
    /// What was recorded.
    pub(super) real: &'a Path,
    /// The last step whose error is known.
    pub(super) last: usize,
}

impl Correction {
    /// Learns from left-out runs. Leaving a fold out of the process, too, is exact and needs one
    /// inverse for all folds: its errors are `([K⁻¹]_ff)⁻¹ [K⁻¹ y]_f`. Where no setting makes
    /// them smaller by more than a standard error over runs (or it is not wanted) there is no
    /// correction and no choice, only the points.
    pub(super) fn fit(
        missed: &[Missed<'_>],
        basis: &Basis,
        tests: usize,
        wanted: bool,
    ) -> (Self, Option<CorrectionChoice>, Vec<LeftOutPoint>) {
        let per_run = (POINTS / missed.len().max(1)).clamp(POINTS_PER_RUN.0, POINTS_PER_RUN.1);
        let (mut points, mut errors) = (Vec::new(), Vec::new());
        let (mut folds, mut steps, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut real = Vec::new();
        let width = basis.width();
        for run in missed {
            let coordinates = coordinates(run.inputs, basis);
            for step in spread(run.last, per_run) {
                points.extend_from_slice(&coordinates[(step - 1) * width..][..width]);
                errors.extend_from_slice(&run.errors[step * tests..][..tests]);
                folds.push(run.fold);
                steps.push(step);
                real.push(run.real.row(step).to_vec());
            }
            ends.push(folds.len());
        }
        let count = folds.len();
        let (mean, mut scale) = standardise(&mut points, width);
        let errors = DMatrix::from_row_slice(count, tests, &errors);
        // Every so many points, evenly over runs and steps, tell the settings apart as well.
        let some: Vec<usize> = (0..count)
            .step_by(count.div_ceil(CHOOSING_POINTS).max(1))
            .collect();
        let choosing = Problem::new(&points, width, &folds, &errors, &some);
        let settings: Vec<Setting> = EXPOSURE_SCALES
            .iter()
            .flat_map(|&exposure| CLOCK_SCALES.iter().map(move |&clock| (exposure, clock)))
            .flat_map(|(exposure, clock)| {
                NOISES.iter().map(move |&noise| Setting {
                    exposure,
                    clock,
                    noise,
                })
            })
            .collect();
        let mean_square = |errors: &DMatrix<f64>| errors.norm_squared() / errors.len() as f64;
        let tried: Vec<f64> = settings
            .par_iter()
            .map(|setting| {
                let left_out = choosing.left_out(setting);
                left_out.map_or(f64::INFINITY, |errors| mean_square(&errors))
            })
            .collect();
        let before = mean_square(&errors);
        let mut order: Vec<usize> = (0..settings.len()).collect();
        order.sort_by(|&a, &b| tried[a].total_cmp(&tried[b]));
        let all: Vec<usize> = (0..count).collect();
        let problem = Problem::new(&points, width, &folds, &errors, &all);
        let mut setting = FALLBACK;
        let (mut remaining, mut after) = (errors.clone(), before);
        let finalists = if wanted { FINALISTS } else { 0 };
        let finalists: Vec<_> = order[..finalists]
            .par_iter()
            .filter_map(|&k| Some((settings[k], problem.left_out(&settings[k])?)))
            .collect();
        for (finalist, left_out) in finalists {
            if mean_square(&left_out) < after {
                after = mean_square(&left_out);
                (setting, remaining) = (finalist, left_out);
            }
        }
        let corrected = clearly_smaller(&remaining, &errors, &ends);
        if !corrected {
            (setting, remaining) = (FALLBACK, errors.clone());
        }
        let weights = if corrected {
            let factored = Cholesky::new(problem.kernel(&setting)).expect("it was factored before");
            factored.solve(&errors).transpose().as_slice().to_vec()
        } else {
            Vec::new()
        };
        let left_out = (0..count)
            .zip(real)
            .map(|(p, real)| LeftOutPoint {
                step: steps[p],
                distance: (0..count)
                    .filter(|&q| folds[q] != folds[p])
                    .map(|q| {
                        problem.square_distance(&setting, p, q) + FARTHER * problem.rate[(p, q)]
                    })
                    .fold(f64::INFINITY, f64::min)
                    .sqrt(),
                errors: remaining.row(p).iter().copied().collect(),
                real,
            })
            .collect();
        // The length scales go into the scales of the coordinates.
        let stretch = |k: usize| match width - k {
            1 => 1.0,
            CLOCK => setting.clock,
            _ => setting.exposure,
        };
        for point in points.chunks_exact_mut(width) {
            for (k, x) in point.iter_mut().enumerate() {
                *x /= stretch(k);
            }
        }
        for (k, s) in scale.iter_mut().enumerate() {
            *s *= stretch(k);
        }
        let choice = corrected.then_some(CorrectionChoice {
            exposure_scale: setting.exposure,
            clock_scale: setting.clock,
            noise: setting.noise,
            before,
            after,
        });
        let correction = Self {
            tests,
            mean,
            scale,
            points,
            weights,
        };
        (correction, choice, left_out)
    }

    /// Distance of every step to the nearest recorded point, in length scales (rates in
    /// [`RATE_REACH`]), `[steps]`.
    pub(super) fn distances(&self, inputs: &Inputs, basis: &Basis) -> Vec<f64> {
        let width = self.mean.len();
        coordinates(inputs, basis)
            .par_chunks_exact(width)
            .map(|at| {
                let at = self.place(at);
                (self.points.chunks_exact(width))
                    .map(|point| {
                        let rate = point[width - 1] - at[width - 1];
                        square_distance(point, &at) + FARTHER * rate * rate
                    })
                    .fold(f64::INFINITY, f64::min)
                    .sqrt()
            })
            .collect()
    }

    /// Coordinates in units of the length scales.
    pub(super) fn place(&self, at: &[f64]) -> Vec<f64> {
        (at.iter().zip(&self.mean).zip(&self.scale))
            .map(|((x, mean), scale)| (x - mean) / scale)
            .collect()
    }

    /// Adds the correction to simulated losses `[(steps + 1) × tests]`; no loss falls below 0.
    pub(super) fn apply(&self, inputs: &Inputs, basis: &Basis, losses: &mut [f64]) {
        if self.weights.is_empty() {
            return;
        }
        let width = self.mean.len();
        let coordinates = coordinates(inputs, basis);
        let rows = losses[self.tests..].par_chunks_exact_mut(self.tests);
        rows.zip(coordinates.par_chunks_exact(width))
            .for_each(|(losses, at)| {
                let at = self.place(at);
                for (point, weights) in self
                    .points
                    .chunks_exact(width)
                    .zip(self.weights.chunks_exact(self.tests))
                {
                    let k = matern(square_distance(point, &at));
                    for (loss, weight) in losses.iter_mut().zip(weights) {
                        *loss += k * weight;
                    }
                }
                losses.iter_mut().for_each(|loss| *loss = loss.max(0.0));
            });
    }
}

/// Whether errors are smaller than others by more than the standard error of the difference over
/// runs; `ends[r]` is the first point after run `r`.
fn clearly_smaller(errors: &DMatrix<f64>, than: &DMatrix<f64>, ends: &[usize]) -> bool {
    let mut from = 0;
    let gains: Vec<f64> = ends
        .iter()
        .map(|&end| {
            let square = |m: &DMatrix<f64>| m.rows(from, end - from).norm_squared();
            let gain = square(than) - square(errors);
            from = end;
            gain
        })
        .collect();
    clearly_positive(&gains)
}

/// Whether the mean of some runs' gains is above its standard error.
pub(super) fn clearly_positive(gains: &[f64]) -> bool {
    let count = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / count;
    let variance = gains.iter().map(|g| (g - mean) * (g - mean)).sum::<f64>() / (count - 1.0);
    mean > (variance / count).sqrt()
}

/// Matérn-3/2 kernel of a squared distance.
pub(super) fn matern(square: f64) -> f64 {
    let distance = (3.0 * square).sqrt();
    (1.0 + distance) * (-distance).exp()
}

/// What training has seen and how far it has come after every step, `[steps × coordinates]`: the
/// exposures over each horizon, then the clock.
pub(super) fn coordinates(inputs: &Inputs, basis: &Basis) -> Vec<f64> {
    let mut exposed = Exposed::new(&basis.horizons, basis.groups);
    let mut out = Vec::with_capacity(inputs.len() * basis.width());
    for step in 0..inputs.len() {
        exposed.step(inputs.shares(step), inputs.rate(step, basis.rate_exponent));
        out.extend(exposed.values());
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

/// Brings coordinates to mean 0; exposures get a root mean square of 1 over all their coordinates
/// together, each the same share, the clock one of 1, and the rate is in units of its length
/// scale. Returns means and scales.
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
    let exposures = width - CLOCK;
    for (k, s) in scale.iter_mut().enumerate() {
        // A coordinate that never moves (a dataset that was never trained) keeps its own unit.
        let deviation = if *s > 1e-18 { s.sqrt() } else { 1.0 };
        *s = if k < exposures {
            deviation * (exposures as f64).sqrt()
        } else if k == exposures {
            deviation
        } else {
            RATE_SCALE
        };
    }
    for point in points.chunks_exact_mut(width) {
        for ((x, mean), scale) in point.iter_mut().zip(&mean).zip(&scale) {
            *x = (*x - mean) / scale;
        }
    }
    (mean, scale)
}

pub(super) fn square_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Length scales and noise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    exposure: f64,
    clock: f64,
    pub(super) noise: f64,
}

/// What all settings share: distances between points, the folds, the errors.
struct Problem {
    exposure: DMatrix<f64>,
    clock: DMatrix<f64>,
    rate: DMatrix<f64>,
    /// The points of each fold.
    members: Vec<Vec<usize>>,
    errors: DMatrix<f64>,
}

impl Problem {
    /// The problem of the points `chosen`.
    fn new(
        points: &[f64],
        width: usize,
        folds: &[usize],
        errors: &DMatrix<f64>,
        chosen: &[usize],
    ) -> Self {
        let count = chosen.len();
        let square = |p: usize, q: usize, range: std::ops::Range<usize>| {
            let part = |p: usize| &points[chosen[p] * width..][range.clone()];
            square_distance(part(p), part(q))
        };
        let fold_count = folds.iter().max().map_or(0, |f| f + 1);
        let of_fold = |fold: usize| (0..count).filter(|&p| folds[chosen[p]] == fold).collect();
        Self {
            exposure: DMatrix::from_fn(count, count, |p, q| square(p, q, 0..width - CLOCK)),
            clock: DMatrix::from_fn(count, count, |p, q| square(p, q, width - CLOCK..width - 1)),
            rate: DMatrix::from_fn(count, count, |p, q| square(p, q, width - 1..width)),
            members: (0..fold_count)
                .map(of_fold)
                .filter(|members: &Vec<usize>| !members.is_empty())
                .collect(),
            errors: errors.select_rows(chosen),
        }
    }

    fn square_distance(&self, setting: &Setting, p: usize, q: usize) -> f64 {
        self.exposure[(p, q)] / setting.exposure.powi(2)
            + self.clock[(p, q)] / setting.clock.powi(2)
            + self.rate[(p, q)]
    }

    fn kernel(&self, setting: &Setting) -> DMatrix<f64> {
        let count = self.clock.nrows();
        let mut kernel = DMatrix::from_fn(count, count, |p, q| {
            matern(self.square_distance(setting, p, q))
        });
        for p in 0..kernel.nrows() {
            kernel[(p, p)] += setting.noise;
        }
        kernel
    }

    /// The errors that remain when the fold of each point is left out.
    fn left_out(&self, setting: &Setting) -> Option<DMatrix<f64>> {
        let inverse = Cholesky::new(self.kernel(setting))?.inverse();
        let weights = &inverse * &self.errors;
        let mut remaining = DMatrix::zeros(weights.nrows(), weights.ncols());
        for members in &self.members {
            let block = inverse.select_rows(members).select_columns(members);
            let solved = Cholesky::new(block)?.solve(&weights.select_rows(members));
            for (row, &p) in members.iter().enumerate() {
                remaining.row_mut(p).copy_from(&solved.row(row));
            }
        }
        Some(remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_a_fold_out_is_the_same_as_learning_without_it() {
        let (count, width) = (14, 5);
        let points: Vec<f64> = (0..count * width)
            .map(|k| ((k * 37 % 23) as f64) / 11.0)
            .collect();
        let errors = DMatrix::from_fn(count, 2, |p, j| ((p * 7 + j * 3) % 5) as f64 - 2.0);
        let folds: Vec<usize> = (0..count).map(|p| p % 3).collect();
        let all: Vec<usize> = (0..count).collect();
        let problem = Problem::new(&points, width, &folds, &errors, &all);
        let setting = Setting {
            exposure: 1.5,
            clock: 0.7,
            noise: 0.3,
        };
        let kernel = problem.kernel(&setting);
        let fast = problem.left_out(&setting).unwrap();
        for fold in 0..3 {
            let (own, others): (Vec<usize>, Vec<usize>) =
                all.iter().partition(|&&p| folds[p] == fold);
            let learned = kernel.select_rows(&others).select_columns(&others);
            let weights = learned.lu().solve(&errors.select_rows(&others)).unwrap();
            let predicted = kernel.select_rows(&own).select_columns(&others) * weights;
            let remaining = errors.select_rows(&own) - predicted;
            assert!((fast.select_rows(&own) - remaining).amax() < 1e-10);
        }
    }

    #[test]
    fn a_gain_counts_only_where_most_runs_have_it() {
        let errors = DMatrix::from_element(8, 1, 1.0);
        let ends = [2, 4, 6, 8];
        let better = DMatrix::from_element(8, 1, 0.9);
        assert!(clearly_smaller(&better, &errors, &ends));
        // As large a gain on average, but all of it in one run.
        let mut one = errors.clone();
        one[(0, 0)] = 0.2;
        one[(3, 0)] = 1.3;
        assert!(one.norm() < errors.norm());
        assert!(!clearly_smaller(&one, &errors, &ends));
        assert!(!clearly_smaller(&errors, &errors, &ends));
    }
}
