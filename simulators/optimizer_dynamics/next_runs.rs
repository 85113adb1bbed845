//! Which runs to record next: those that make the answers to questions surest.
//!
//! The correction of the [module](super) is a Gaussian process over curricula. How sure it is of a
//! curve depends on which curricula were recorded, not on what came out, so that the worth of a
//! run is known before it is trained (Cohn 1996). With `Σ(A, B)` the posterior covariance between
//! the points (curricula at some of their steps) `A` and `B`, recording a run with the points `C`
//! takes from the variance of the questions with the points `Q`
//!
//! | | equation |
//! | --- | --- |
//! | gain | `tr Σ(Q, C) (Σ(C, C) + νI)⁻¹ Σ(C, Q)`, every question and every point of it counting the same |
//! | after it | `Σ(A, B) ← Σ(A, B) − Σ(A, C) (Σ(C, C) + νI)⁻¹ Σ(C, B)`: an update of rank `|C|` |
//!
//! and the run with the largest gain is chosen, again and again. Variances are in nats²: the
//! process has the variance with which its uncertainty about each recorded run, left out, is the
//! error of left-out runs on average.

use super::OptimizerDynamicsSimulator;
use super::correction::{FALLBACK, coordinates, matern, square_distance};
use nalgebra::{Cholesky, DMatrix, Dyn};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use simfluence_core::{Curriculum, SimulateError};
use std::ops::Range;

/// How next runs are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct NextRunsSettings {
    /// Runs to choose, at least 1, default 4.
    pub runs: usize,
    /// Runs besides that would be chosen next, to see what they would still bring; default 4.
    pub further: usize,
    /// Points of a curriculum, evenly over its steps; at least 1, default 12.
    pub points: usize,
    /// Draws of as many runs at random to compare with, default 20; 0 for none.
    pub draws: usize,
    /// Seed of these draws, default 0.
    pub seed: u64,
}

impl Default for NextRunsSettings {
    fn default() -> Self {
        Self {
            runs: 4,
            further: 4,
            points: 12,
            draws: 20,
            seed: 0,
        }
    }
}

/// The runs to record next, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct NextRuns {
    /// Number of candidates there were.
    pub candidates: usize,
    /// Root mean variance of every question before, nats.
    pub questions: Vec<f64>,
    /// The runs chosen, then those that would be chosen next.
    pub picks: Vec<NextRun>,
    /// Root mean variance over the questions after as many runs drawn at random (mean over the
    /// draws), nats; 0 without draws.
    pub random: f64,
}

/// A run that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct NextRun {
    /// Its place among the candidates.
    pub candidate: usize,
    /// Root mean variance of every question once it and those before it are recorded, nats.
    pub questions: Vec<f64>,
}

impl NextRuns {
    /// Root mean variance over all questions before, nats.
    pub fn before(&self) -> f64 {
        root_mean_square(&self.questions)
    }
}

impl NextRun {
    /// Root mean variance over all questions after it, nats.
    pub fn after(&self) -> f64 {
        root_mean_square(&self.questions)
    }
}

fn root_mean_square(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().map(|v| v * v).sum();
    (sum / values.len() as f64).sqrt()
}

impl OptimizerDynamicsSimulator {
    /// Chooses among `candidates` the runs whose recording makes the simulator surest of the
    /// curves of `questions`, after the runs `recorded` (those it was fitted on). What came out of
    /// runs plays no part but in the settings of the process: length scales and noise as chosen
    /// for the correction, or, where none was chosen, those that bands measure distances with.
    ///
    /// # Errors
    /// No candidate or no question, no or more runs to choose than there are candidates, no
    /// points; a curriculum without learning rates where the simulator was fitted with them.
    ///
    /// # Reference
    /// D. Cohn, *Neural Network Exploration Using Optimal Experiment Design*, Neural Networks 9
    /// (1996); for Gaussian processes, Seo et al., *Gaussian process regression: active data
    /// selection and test point rejection* (2000).
    pub fn next_runs(
        &self,
        recorded: &[&Curriculum],
        candidates: &[&Curriculum],
        questions: &[&Curriculum],
        settings: &NextRunsSettings,
    ) -> Result<NextRuns, NextRunsError> {
        let all: Vec<&Curriculum> = [recorded, candidates, questions].concat();
        for (what, count) in [
            ("recorded run", recorded.len()),
            ("candidate", candidates.len()),
            ("question", questions.len()),
            ("run to choose", settings.runs),
            ("point of a curriculum", settings.points),
            (
                "step in each curriculum",
                all.iter().map(|c| c.len()).min().unwrap_or(0),
            ),
        ] {
            if count == 0 {
                return Err(NextRunsError::None { what });
            }
        }
        if settings.runs > candidates.len() {
            return Err(NextRunsError::TooFewCandidates {
                wanted: settings.runs,
                got: candidates.len(),
            });
        }
        let places: Vec<Vec<f64>> = all
            .par_iter()
            .map(|curriculum| self.places(curriculum, settings.points))
            .collect::<Result<_, SimulateError>>()?;
        let noise = (self.report.correction).map_or(FALLBACK.noise, |choice| choice.noise);
        let mut process = Process::new(places, self.correction.mean.len(), noise);
        let first_question = recorded.len() + candidates.len();
        let (pool, asked) = (recorded.len()..first_question, first_question..all.len());
        let left_out = process.left_out_variance(0..recorded.len());
        for run in 0..recorded.len() {
            process.observe(run);
        }
        let deviation = (self.report.mse / left_out).sqrt();
        let nats = |variances: Vec<f64>| -> Vec<f64> {
            let deviations = variances.into_iter().map(|v| v.max(0.0).sqrt());
            deviations.map(|d| deviation * d).collect()
        };
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let mut random = 0.0;
        for _ in 0..settings.draws {
            let drawn = sample(&mut rng, candidates.len(), settings.runs);
            let drawn: Vec<usize> = drawn.iter().map(|k| pool.start + k).collect();
            let after = process.variances_after(&drawn, asked.clone());
            random += root_mean_square(&nats(after)) / settings.draws as f64;
        }
        let before = nats(process.variances(asked.clone()));
        let count = (settings.runs + settings.further).min(candidates.len());
        let picks = process.choose(pool.clone(), asked, count);
        Ok(NextRuns {
            candidates: candidates.len(),
            questions: before,
            picks: (picks.into_iter())
                .map(|(place, variances)| NextRun {
                    candidate: place - pool.start,
                    questions: nats(variances),
                })
                .collect(),
            random,
        })
    }

    /// Where a curriculum stands at points spread evenly over its steps, in length scales,
    /// `[points × coordinates]`.
    fn places(&self, curriculum: &Curriculum, points: usize) -> Result<Vec<f64>, SimulateError> {
        let inputs = self.inputs(curriculum)?;
        let width = self.correction.mean.len();
        let coordinates = coordinates(&inputs, &self.basis);
        let points = points.min(inputs.len());
        let steps = (1..=points).map(|k| (inputs.len() * k).div_ceil(points));
        Ok(steps
            .flat_map(|step| {
                self.correction
                    .place(&coordinates[(step - 1) * width..][..width])
            })
            .collect())
    }
}

/// A Gaussian process of variance 1 given what was observed, at the points of many curricula.
struct Process {
    width: usize,
    /// Variance of the noise of observations.
    noise: f64,
    /// Per curriculum `[points × width]`.
    places: Vec<Vec<f64>>,
    /// Per curriculum, for everything observed, the whitened covariance with it: the posterior
    /// covariance of two curricula is `K(a, b) − Σ wᵀ_a w_b`.
    whitened: Vec<Vec<DMatrix<f64>>>,
}

impl Process {
    fn new(places: Vec<Vec<f64>>, width: usize, noise: f64) -> Self {
        Self {
            width,
            noise,
            whitened: vec![Vec::new(); places.len()],
            places,
        }
    }

    /// Posterior covariance between the points of two curricula.
    fn covariance(&self, a: usize, b: usize) -> DMatrix<f64> {
        let rows = self.places[a].len() / self.width;
        let columns = self.places[b].len() / self.width;
        let point = |place: usize, k: usize| &self.places[place][k * self.width..][..self.width];
        let mut covariance = DMatrix::from_fn(rows, columns, |p, q| {
            matern(square_distance(point(a, p), point(b, q)))
        });
        for (a, b) in self.whitened[a].iter().zip(&self.whitened[b]) {
            covariance.gemm_tr(-1.0, a, b, 1.0);
        }
        covariance
    }

    /// The factor of the covariance of what a run would show at its points.
    fn factor(&self, run: usize) -> DMatrix<f64> {
        let mut covariance = self.covariance(run, run);
        for p in 0..covariance.nrows() {
            covariance[(p, p)] += self.noise;
        }
        let factored: Cholesky<f64, Dyn> =
            Cholesky::new(covariance).expect("a covariance with noise is positive");
        factored.unpack()
    }

    /// Whitened covariance of what a run would show with the points of another curriculum.
    fn whiten(&self, factor: &DMatrix<f64>, run: usize, place: usize) -> DMatrix<f64> {
        let mut rows = self.covariance(run, place);
        factor.solve_lower_triangular_mut(&mut rows);
        rows
    }

    /// Records a run: an update of the rank of its points.
    fn observe(&mut self, run: usize) {
        let factor = self.factor(run);
        let rows: Vec<DMatrix<f64>> = (0..self.places.len())
            .into_par_iter()
            .map(|place| self.whiten(&factor, run, place))
            .collect();
        for (whitened, rows) in self.whitened.iter_mut().zip(rows) {
            whitened.push(rows);
        }
    }

    /// Mean posterior variance of each of these curricula.
    fn variances(&self, asked: Range<usize>) -> Vec<f64> {
        let mean = |place| {
            let covariance = self.covariance(place, place);
            covariance.trace() / covariance.nrows() as f64
        };
        asked.into_par_iter().map(mean).collect()
    }

    /// By how much recording a run lowers the sum of [`Process::variances`].
    fn gain(&self, run: usize, asked: Range<usize>) -> f64 {
        let factor = self.factor(run);
        let of_question = |place| {
            let rows = self.whiten(&factor, run, place);
            rows.norm_squared() / rows.ncols() as f64
        };
        asked.map(of_question).sum()
    }

    /// Chooses one run after the other, with the variances after each; the first of equals.
    fn choose(
        &mut self,
        pool: Range<usize>,
        asked: Range<usize>,
        count: usize,
    ) -> Vec<(usize, Vec<f64>)> {
        let mut left: Vec<usize> = pool.collect();
        let mut chosen = Vec::with_capacity(count);
        for _ in 0..count.min(left.len()) {
            let gains: Vec<f64> = (left.par_iter())
                .map(|&run| self.gain(run, asked.clone()))
                .collect();
            let best = (0..left.len())
                .reduce(|best, k| if gains[k] > gains[best] { k } else { best })
                .expect("a candidate is left");
            let run = left.remove(best);
            self.observe(run);
            chosen.push((run, self.variances(asked.clone())));
        }
        chosen
    }

    /// The variances if these runs were recorded, too.
    fn variances_after(&self, runs: &[usize], asked: Range<usize>) -> Vec<f64> {
        let taking_part = || runs.iter().copied().chain(asked.clone());
        let mut part = Self {
            width: self.width,
            noise: self.noise,
            places: taking_part().map(|k| self.places[k].clone()).collect(),
            whitened: taking_part().map(|k| self.whitened[k].clone()).collect(),
        };
        for run in 0..runs.len() {
            part.observe(run);
        }
        part.variances(runs.len()..part.places.len())
    }

    /// The mean variance, noise included, of what each of these runs shows given the others: with
    /// the covariance `S` of all, the diagonal of `([S⁻¹]_rr)⁻¹`.
    fn left_out_variance(&self, runs: Range<usize>) -> f64 {
        let starts: Vec<usize> = (runs.clone())
            .scan(0, |sum, run| {
                let start = *sum;
                *sum += self.places[run].len() / self.width;
                Some(start)
            })
            .collect();
        let count = runs
            .clone()
            .map(|run| self.places[run].len() / self.width)
            .sum();
        let mut joint = DMatrix::<f64>::identity(count, count) * self.noise;
        for (a, &row) in runs.clone().zip(&starts) {
            for (b, &column) in runs.clone().zip(&starts) {
                let covariance = self.covariance(a, b);
                let mut block = joint.view_mut((row, column), covariance.shape());
                block += covariance;
            }
        }
        let inverse = Cholesky::new(joint)
            .expect("a covariance with noise is positive")
            .inverse();
        let mut sum = 0.0;
        for (run, &start) in runs.zip(&starts) {
            let own = self.places[run].len() / self.width;
            let block = inverse.view((start, start), (own, own)).into_owned();
            let left_out = Cholesky::new(block).expect("a block of a positive matrix is positive");
            sum += left_out.inverse().trace();
        }
        sum / count as f64
    }
}

/// Why next runs cannot be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NextRunsError {
    /// Something there must be at least one of.
    #[error("next runs cannot be chosen without a {what}; give at least one")]
    None {
        /// What there is none of.
        what: &'static str,
    },
    /// Fewer candidates than runs.
    #[error("{wanted} runs cannot be chosen of {got} candidates; draw more candidates")]
    TooFewCandidates {
        /// Runs to choose.
        wanted: usize,
        /// Candidates there are.
        got: usize,
    },
    /// A curriculum that cannot be taken in.
    #[error(transparent)]
    Curriculum(#[from] SimulateError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    /// Curricula of three points in two coordinates each.
    fn drawn(count: usize, seed: u64) -> Vec<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count)
            .map(|_| (0..6).map(|_| 3.0 * rng.random::<f64>()).collect())
            .collect()
    }

    /// The sum over questions of the mean posterior variance, by solving with all observations
    /// at once.
    fn dense(places: &[Vec<f64>], noise: f64, seen: &[usize], asked: Range<usize>) -> f64 {
        let points = |of: &[usize]| -> Vec<Vec<f64>> {
            of.iter()
                .flat_map(|&k| places[k].chunks(2).map(<[f64]>::to_vec))
                .collect()
        };
        let kernel = |a: &[Vec<f64>], b: &[Vec<f64>]| {
            DMatrix::from_fn(a.len(), b.len(), |p, q| {
                matern(square_distance(&a[p], &b[q]))
            })
        };
        let asked: Vec<usize> = asked.collect();
        let (seen, asked_points) = (points(seen), points(&asked));
        let mut covariance = kernel(&asked_points, &asked_points);
        if !seen.is_empty() {
            let observed = kernel(&seen, &seen) + DMatrix::identity(seen.len(), seen.len()) * noise;
            let cross = kernel(&seen, &asked_points);
            covariance -= cross.transpose() * observed.lu().solve(&cross).unwrap();
        }
        covariance.trace() / 3.0
    }

    #[test]
    fn rank_k_updates_are_the_dense_process() {
        let places = drawn(9, 1);
        let mut process = Process::new(places.clone(), 2, 0.3);
        let mut seen = Vec::new();
        for run in [0, 4, 2] {
            let before = dense(&places, 0.3, &seen, 6..9);
            let gain = process.gain(run, 6..9);
            process.observe(run);
            seen.push(run);
            let after = dense(&places, 0.3, &seen, 6..9);
            let sum: f64 = process.variances(6..9).iter().sum();
            assert!((sum - after).abs() < 1e-10);
            assert!((gain - (before - after)).abs() < 1e-10);
        }
        let sum: f64 = (Process::new(places.clone(), 2, 0.3))
            .variances_after(&[1, 3], 6..9)
            .iter()
            .sum();
        assert!((sum - dense(&places, 0.3, &[1, 3], 6..9)).abs() < 1e-10);
    }

    #[test]
    fn the_first_choice_is_the_best_and_the_batch_close_to_the_best_batch() {
        for seed in 0..20 {
            let places = drawn(11, seed);
            let sum = |runs: &[usize]| dense(&places, 0.2, &[&[0, 1], runs].concat(), 8..11);
            let mut process = Process::new(places.clone(), 2, 0.2);
            process.observe(0);
            process.observe(1);
            let picks = process.choose(2..8, 8..11, 3);
            let chosen: Vec<usize> = picks.iter().map(|pick| pick.0).collect();
            let best = (2..8).min_by(|&a, &b| sum(&[a]).total_cmp(&sum(&[b])));
            assert_eq!(Some(chosen[0]), best);
            let mut least = f64::INFINITY;
            for a in 2..8 {
                for b in a + 1..8 {
                    for c in b + 1..8 {
                        least = least.min(sum(&[a, b, c]));
                    }
                }
            }
            let before = sum(&[]);
            // Nothing promises it, but a greedy batch is hardly worse than the best one.
            assert!(before - sum(&chosen) >= 0.9 * (before - least));
            let after: Vec<f64> = picks.iter().map(|pick| pick.1.iter().sum()).collect();
            assert!(before >= after[0] && after[0] >= after[1] && after[1] >= after[2]);
        }
    }

    #[test]
    fn what_was_recorded_is_not_recorded_again_where_something_distant_is_asked() {
        let (here, there) = (vec![0.0; 6], vec![4.0; 6]);
        // Recorded; candidates: the same again and the distant one; questions: both places.
        let places = vec![here.clone(), here.clone(), there.clone(), here, there];
        let mut process = Process::new(places, 2, 0.1);
        process.observe(0);
        let picks = process.choose(1..3, 3..5, 2);
        assert_eq!([picks[0].0, picks[1].0], [2, 1]);
    }

    #[test]
    fn left_out_variance_is_that_of_the_process_without_the_run() {
        let places = drawn(4, 7);
        let process = Process::new(places.clone(), 2, 0.5);
        let without = |run: usize| {
            let others: Vec<usize> = (0..4).filter(|&k| k != run).collect();
            dense(&places, 0.5, &others, run..run + 1) + 0.5
        };
        let expected = (0..4).map(without).sum::<f64>() / 4.0;
        assert!((process.left_out_variance(0..4) - expected).abs() < 1e-10);
    }
}
