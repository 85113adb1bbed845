//! Conformal bands from what left-out runs were missed by.

use super::correction::{Basis, Correction, LeftOutPoint};
use super::inputs::Inputs;
use serde::{Deserialize, Serialize};

/// Quantiles that are kept, evenly from 0 to 1.
const QUANTILES: usize = 400;
/// How much of the scale of a test example is that of all of them: its own errors are few.
const POOLED: f64 = 0.3;
/// Least usual distance, in length scales: recorded runs may all be the same in what they were
/// trained on.
const LEAST_DISTANCE: f64 = 0.05;
/// Bands grow at least in proportion to the distance, as the error of a first-order expansion
/// does: left-out runs lie too close to others to show it.
const LEAST_GROWTH: f64 = 1.0;
/// What is added to simulated losses before their logarithm is taken, over their mean.
const LEVEL_FLOOR: f64 = 0.1;
/// Smallest error whose logarithm counts, over the root mean square.
const SMALL_ERROR: f64 = 0.01;

/// Smallest distance whose logarithm counts, over the usual one: recorded points may coincide.
const SMALL_RATIO: f64 = 1e-3;

/// What bands are made of: the band of test example `j` after step `t` of a curriculum is
/// `L̂ ± q(level) · σ_j(t) · (L̂ + c)^κ · max(1, d)^γ`, where `d` is the distance to the nearest
/// recorded point over the usual one, of left-out runs near that step.
///
/// A high loss is missed by more than a low one: `κ` is the slope of the logarithm of the errors of
/// left-out runs against that of the simulated loss (0 to 1), among those of a test example near a
/// step; `c` is a tenth of the mean simulated loss. `σ_j(t)` is the root mean square of the errors
/// over `(L̂ + c)^κ` near step `t`, `γ` the slope of their logarithm against that of `d` (at least
/// 1), and `q` the quantile of what then remains over all left-out runs, steps and test examples
/// (cross-conformal prediction, with the usual `(R + 1)/R` for `R` left-out runs). The same
/// left-out runs chose the settings, so that the promise holds about, not exactly.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bands {
    /// Steps at which scales and distances stand.
    pub(super) knots: Vec<f64>,
    /// `[knots × tests]`.
    pub(super) scales: Vec<f64>,
    /// `[knots]`: the median distance of left-out points.
    pub(super) distances: Vec<f64>,
    pub(super) quantiles: Vec<f64>,
    pub(super) support: Support,
}

/// What the recorded runs say about bands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Support {
    /// Number of left-out runs.
    pub runs: usize,
    /// The exponent `γ` with which bands grow with the distance from what was recorded.
    pub growth: f64,
    /// The exponent `κ` with which bands grow with the simulated loss, and
    pub level_exponent: f64,
    /// what is added to it (nats).
    pub level_floor: f64,
}

impl Support {
    /// How wide bands are at this simulated loss, but for a constant.
    fn width_at(&self, simulated: f64) -> f64 {
        (simulated.max(0.0) + self.level_floor).powf(self.level_exponent)
    }

    /// What is left of an error when its size at this loss is taken out.
    fn relative(&self, point: &LeftOutPoint, test: usize) -> f64 {
        point.errors[test] / self.width_at(simulated(point, test))
    }
}

fn simulated(point: &LeftOutPoint, test: usize) -> f64 {
    point.real[test] - point.errors[test]
}

impl Bands {
    /// From the points of left-out runs.
    pub(super) fn fit(points: &[LeftOutPoint], runs: usize) -> Self {
        let tests = points[0].errors.len();
        let mut knots: Vec<usize> = points.iter().map(|p| p.step).collect();
        knots.sort_unstable();
        knots.dedup();
        // Runs of different lengths have different steps: about as many knots as one run has.
        let stride = (knots.len() * runs).div_ceil(points.len()).max(1);
        let knots: Vec<f64> = knots.iter().step_by(stride).map(|&k| k as f64).collect();
        let mut near: Vec<Vec<&LeftOutPoint>> = vec![Vec::new(); knots.len()];
        for point in points {
            let distance = |k: &usize| (knots[*k] - point.step as f64).abs();
            let knot = (0..knots.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)));
            near[knot.expect("there is a knot")].push(point);
        }
        let support = Support {
            runs,
            growth: 0.0,
            ..level_support(&near, tests)
        };
        let mut distances = Vec::with_capacity(knots.len());
        let mut scales = Vec::with_capacity(knots.len() * tests);
        for near in &near {
            let mut sorted: Vec<f64> = near.iter().map(|p| p.distance).collect();
            sorted.sort_by(f64::total_cmp);
            distances.push(
                sorted
                    .get(sorted.len() / 2)
                    .copied()
                    .unwrap_or(1.0)
                    .max(LEAST_DISTANCE),
            );
            let square = |test: usize| -> f64 {
                let sum: f64 = (near.iter())
                    .map(|p| support.relative(p, test).powi(2))
                    .sum();
                sum / near.len().max(1) as f64
            };
            let own: Vec<f64> = (0..tests).map(square).collect();
            let pooled = own.iter().sum::<f64>() / tests as f64;
            let mixed = own.iter().map(|own| POOLED * pooled + (1.0 - POOLED) * own);
            scales.extend(mixed.map(|square| square.sqrt().max(1e-9)));
        }
        let mut bands = Self {
            knots,
            scales,
            distances,
            quantiles: Vec::new(),
            support,
        };
        bands.support.growth = bands.fit_growth(points);
        let mut scores = Vec::with_capacity(points.len() * tests);
        for point in points {
            let grown = bands.ratio(point.step as f64, point.distance).max(1.0);
            let grown = grown.powf(bands.support.growth);
            for test in 0..tests {
                let error = support.relative(point, test).abs();
                scores.push(error / (bands.scale(point.step as f64, test) * grown));
            }
        }
        scores.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let rank = (part * scores.len() as f64).ceil() as usize;
            scores[rank.clamp(1, scores.len()) - 1]
        };
        let parts = (0..=QUANTILES).map(|k| k as f64 / QUANTILES as f64);
        bands.quantiles = parts.map(at).collect();
        bands
    }

    /// The slope of the log error against the log distance, not below [`LEAST_GROWTH`].
    fn fit_growth(&self, points: &[LeftOutPoint]) -> f64 {
        let (mut xy, mut xx) = (0.0, 0.0);
        let mut rows = Vec::new();
        for point in points {
            let ratio = self
                .ratio(point.step as f64, point.distance)
                .max(SMALL_RATIO);
            let relative = |test| self.support.relative(point, test);
            let square: f64 = (0..point.errors.len())
                .map(|test| (relative(test) / self.scale(point.step as f64, test)).powi(2))
                .sum();
            rows.push((
                ratio.ln(),
                0.5 * (square / point.errors.len() as f64 + 1e-12).ln(),
            ));
        }
        let count = rows.len() as f64;
        let mean_x = rows.iter().map(|r| r.0).sum::<f64>() / count;
        let mean_y = rows.iter().map(|r| r.1).sum::<f64>() / count;
        for (x, y) in rows {
            xy += (x - mean_x) * (y - mean_y);
            xx += (x - mean_x) * (x - mean_x);
        }
        (xy / xx.max(1e-12)).max(LEAST_GROWTH)
    }

    /// Place of a step among the knots: the knot before, and the part of the way to the next.
    fn between(&self, step: f64) -> (usize, usize, f64) {
        let after = self.knots.partition_point(|&knot| knot < step);
        if after == 0 {
            return (0, 0, 0.0);
        }
        if after == self.knots.len() {
            return (after - 1, after - 1, 0.0);
        }
        let (low, high) = (self.knots[after - 1], self.knots[after]);
        (after - 1, after, (step - low) / (high - low))
    }

    fn scale(&self, step: f64, test: usize) -> f64 {
        let tests = self.scales.len() / self.knots.len();
        let (a, b, part) = self.between(step);
        let at = |knot: usize| self.scales[knot * tests + test];
        at(a) * (1.0 - part) + at(b) * part
    }

    /// A distance over the usual one at that step.
    fn ratio(&self, step: f64, distance: f64) -> f64 {
        let (a, b, part) = self.between(step);
        distance / (self.distances[a] * (1.0 - part) + self.distances[b] * part)
    }

    /// Half widths around simulated `losses` (both `[(steps + 1) × tests]`, 0 before the first
    /// step), and the mean over the steps of the distance from what was recorded over the usual
    /// one.
    pub(super) fn half_widths(
        &self,
        correction: &Correction,
        inputs: &Inputs,
        basis: &Basis,
        losses: &[f64],
        level: f64,
    ) -> (Vec<f64>, f64) {
        let runs = self.support.runs as f64;
        let part = (level * (runs + 1.0) / runs).min(1.0);
        let quantile = self.quantiles[(part * QUANTILES as f64).ceil() as usize];
        let tests = correction.tests;
        let mut widths = vec![0.0; tests];
        let mut sum = 0.0;
        let distances = correction.distances(inputs, basis);
        let ratio = |step: usize| self.ratio(step as f64, distances[step - 1]);
        for step in 1..=distances.len() {
            // Between knots no point was recorded, so that all are far by the clock alone.
            let (a, b, part) = self.between(step as f64);
            let (before, after) = (self.knots[a] as usize, self.knots[b] as usize);
            let ratio = if before < step && step < after && after <= distances.len() {
                ratio(before) * (1.0 - part) + ratio(after) * part
            } else {
                ratio(step)
            };
            sum += ratio;
            let factor = quantile * ratio.max(1.0).powf(self.support.growth);
            let simulated = &losses[step * tests..][..tests];
            widths.extend(simulated.iter().enumerate().map(|(test, &loss)| {
                factor * self.scale(step as f64, test) * self.support.width_at(loss)
            }));
        }
        (widths, sum / distances.len().max(1) as f64)
    }
}

/// How errors grow with the simulated loss; `near` are the points near each knot.
fn level_support(near: &[Vec<&LeftOutPoint>], tests: usize) -> Support {
    let all = || {
        near.iter()
            .flatten()
            .flat_map(|p| (0..tests).map(|test| simulated(p, test)))
    };
    let mean = all().sum::<f64>() / all().count().max(1) as f64;
    let level_floor = (LEVEL_FLOOR * mean).max(1e-9);
    let (mut xy, mut xx) = (0.0, 0.0);
    for near in near {
        for test in 0..tests {
            let count = near.len() as f64;
            let square = near.iter().map(|p| p.errors[test].powi(2)).sum::<f64>() / count;
            // An error that happens to be next to nothing says no more than a small one.
            let least = (SMALL_ERROR * SMALL_ERROR * square).max(1e-18);
            let at = |p: &&LeftOutPoint| {
                let level = simulated(p, test).max(0.0) + level_floor;
                (level.ln(), 0.5 * (p.errors[test].powi(2) + least).ln())
            };
            let rows: Vec<(f64, f64)> = near.iter().map(at).collect();
            let mean_x = rows.iter().map(|r| r.0).sum::<f64>() / count;
            let mean_y = rows.iter().map(|r| r.1).sum::<f64>() / count;
            for (x, y) in rows {
                xy += (x - mean_x) * (y - mean_y);
                xx += (x - mean_x) * (x - mean_x);
            }
        }
    }
    Support {
        runs: 0,
        growth: 0.0,
        level_exponent: (xy / xx.max(1e-12)).clamp(0.0, 1.0),
        level_floor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Points of 40 runs whose errors are `size(simulated loss)` times noise.
    fn points(size: impl Fn(f64) -> f64) -> Vec<LeftOutPoint> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut draw = |spread: f64| spread * (rng.random::<f64>() - 0.5);
        (0..40 * 10)
            .map(|p| {
                let simulated: Vec<f64> = (0..5).map(|_| 3.0 + draw(5.8)).collect();
                let errors: Vec<f64> = simulated.iter().map(|&l| size(l) * draw(2.0)).collect();
                LeftOutPoint {
                    step: 1 + p % 10,
                    distance: 1.0,
                    real: simulated.iter().zip(&errors).map(|(l, e)| l + e).collect(),
                    errors,
                }
            })
            .collect()
    }

    #[test]
    fn the_growth_of_errors_with_the_loss_is_found_and_only_where_there_is_one() {
        // `c` is a tenth of the mean loss of 3.
        for exponent in [0.0, 0.5, 1.0] {
            let bands = Bands::fit(&points(|loss| 0.2 * (loss + 0.3).powf(exponent)), 40);
            let found = bands.support.level_exponent;
            assert!((found - exponent).abs() < 0.1, "{found} for {exponent}");
            assert!((bands.support.level_floor - 0.3).abs() < 0.02);
        }
        // Low losses that are missed by more: not below 0.
        let bands = Bands::fit(&points(|loss| 1.0 / (loss + 0.3)), 40);
        assert_eq!(bands.support.level_exponent, 0.0);
    }
}
