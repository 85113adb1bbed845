//! Datasets learned from recorded batch losses, where none are given or the given ones are not
//! trusted.

use super::OptimizerDynamicsError;
use super::space::residual;
use crate::simfluence::runs::groups as run_groups;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use simfluence_core::{Progress, Run};
use simfluence_fitter::assign_folds;

/// Parts of equal length that a run is cut into; the residuals of an example within one are
/// averaged.
const PARTS: usize = 6;
/// Most datasets that are looked for.
const MOST: usize = 12;
/// Random starts of a clustering.
const STARTS: u64 = 10;
/// Passes over the examples of one start, at most.
const PASSES: usize = 60;
/// Folds of runs by which the number of datasets is chosen.
const FOLDS: usize = 5;
/// Weight, in observations, with which a centroid is held to the mean of all examples.
const TO_MEAN: f64 = 1.0;
/// Weight, in observations, with which an example's own level is held to its dataset's.
const TO_DATASET: f64 = 2.0;
/// The fewest datasets are taken that predict left-out runs so much worse than the best number.
const TOLERANCE: f64 = 1.05;

/// Datasets of the training examples, from how well the model predicted each of them in the
/// batches of recorded runs.
///
/// Examples that belong together are learned and forgotten together: with `r̄_i(s)` the mean of
/// the residuals `1 − e^(−loss)` that example `i` had in its `n_i(s)` batches of part `s` of a run
/// (a sixth), the datasets minimise
///
/// `Σ_i Σ_s n_i(s) (r̄_i(s) − μ_c(i)(s) − o_i)²`
///
/// over the courses `μ_c` of the datasets and the datasets `c(i)`: k-means over what was observed.
/// The level `o_i` of an example, shrunk to 0, leaves room for hard and easy ones. Their number is
/// the smallest, up to 12, with which the residuals of left-out runs are predicted at most 5 %
/// worse than with the best one, each example by the others of its dataset in the same part of
/// the same run.
///
/// Only runs in which the datasets come in different mixtures tell them apart; from ordinary runs,
/// in which everything is learned at the same time, one dataset comes back.
///
/// # Reference
/// Distances over observed entries: Hathaway and Bezdek 2001, "Fuzzy c-means clustering of
/// incomplete data", section 3 (partial distances).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearnedDatasets {
    /// Dataset of each training example, counted from 0 in the order of first members.
    pub groups: Vec<u32>,
    /// The mean squared error of left-out runs' residuals for 1, 2, … datasets.
    pub errors: Vec<f64>,
    /// Training examples without a recorded batch loss; they count as members of the largest
    /// dataset, until they are [placed](LearnedDatasets::place).
    pub unobserved: Vec<u32>,
}

impl LearnedDatasets {
    /// Learns the datasets; the same runs and seed give the same ones.
    ///
    /// # Errors
    /// No run has batch losses; too few runs to leave some out.
    pub fn learn(
        runs: &[&Run],
        train_count: usize,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<Self, OptimizerDynamicsError> {
        let observed = Observed::new(runs, train_count);
        let seen: Vec<u32> = (0..train_count as u32)
            .filter(|&i| !observed.cells[i as usize].is_empty())
            .collect();
        if seen.is_empty() {
            return Err(OptimizerDynamicsError::NoBatchLosses);
        }
        let folds = assign_folds(&run_groups(runs), FOLDS, seed)?;
        let errors = observed.errors(&folds, MOST.min(seen.len()), seed, progress);
        let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
        let count = errors.iter().position(|&e| e <= TOLERANCE * least);
        let labels = observed.cluster(count.map_or(1, |c| c + 1), seed);
        Ok(Self::new(labels, errors, &seen))
    }

    /// Number of datasets.
    pub fn count(&self) -> usize {
        self.groups.iter().max().map_or(0, |&g| g as usize + 1)
    }

    /// Places training examples without a recorded batch loss by their features: each in the
    /// dataset whose members have the nearest mean direction (the largest cosine).
    ///
    /// # Parameters
    /// `features[i]`: those of training example `i`, all of one length; `None` where there are
    /// none, and the example stays where it is.
    pub fn place(&mut self, features: &[Option<Vec<f64>>]) {
        let width = features.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let mut means = vec![vec![0.0; width]; self.count()];
        for (i, own) in features.iter().enumerate() {
            if let (Some(own), Err(_)) = (own, self.unobserved.binary_search(&(i as u32))) {
                let length = norm(own);
                let mean = &mut means[self.groups[i] as usize];
                mean.iter_mut().zip(own).for_each(|(m, x)| *m += x / length);
            }
        }
        let lengths: Vec<f64> = means.iter().map(|mean| norm(mean)).collect();
        self.unobserved.retain(|&i| {
            let Some(own) = &features[i as usize] else {
                return true;
            };
            let cosine = |c: usize| {
                let dot: f64 = means[c].iter().zip(own).map(|(m, x)| m * x).sum();
                dot / lengths[c]
            };
            let nearest = (0..means.len())
                .rev()
                .max_by(|&a, &b| cosine(a).total_cmp(&cosine(b)));
            self.groups[i as usize] = nearest.unwrap_or(0) as u32;
            false
        });
    }

    fn new(labels: Vec<u32>, errors: Vec<f64>, seen: &[u32]) -> Self {
        let mut order: Vec<u32> = Vec::new();
        let mut sizes = [0_usize; MOST];
        for &i in seen {
            let label = labels[i as usize];
            if !order.contains(&label) {
                order.push(label);
            }
            sizes[label as usize] += 1;
        }
        let largest = (0..order.len())
            .rev()
            .max_by_key(|&c| sizes[order[c] as usize])
            .unwrap_or(0) as u32;
        let mut groups = vec![largest; labels.len()];
        for &i in seen {
            let label = labels[i as usize];
            let place = order.iter().position(|&known| known == label);
            groups[i as usize] = place.expect("its label is known") as u32;
        }
        let unobserved = (0..labels.len() as u32)
            .filter(|i| seen.binary_search(i).is_err())
            .collect();
        Self {
            groups,
            errors,
            unobserved,
        }
    }
}

/// The residuals of an example in one part of a run.
#[derive(Debug, Clone, Copy)]
struct Cell {
    /// Run times [`PARTS`] plus part.
    place: u32,
    count: f64,
    mean: f64,
}

/// What was observed of the training examples.
struct Observed {
    runs: usize,
    /// Per training example, in the order of places.
    cells: Vec<Vec<Cell>>,
}

/// Sums of residuals and their numbers, per place.
#[derive(Clone)]
struct Course {
    sums: Vec<f64>,
    counts: Vec<f64>,
}

impl Course {
    fn new(places: usize) -> Self {
        Self {
            sums: vec![0.0; places],
            counts: vec![0.0; places],
        }
    }

    fn add(&mut self, cell: Cell) {
        self.sums[cell.place as usize] += cell.count * cell.mean;
        self.counts[cell.place as usize] += cell.count;
    }

    /// The mean at a place, held to `mean`, without what `leave_out` brought in.
    fn at(&self, place: usize, mean: f64, leave_out: Option<Cell>) -> f64 {
        let (sum, count) = leave_out.map_or((0.0, 0.0), |c| (c.count * c.mean, c.count));
        (self.sums[place] - sum + TO_MEAN * mean) / (self.counts[place] - count + TO_MEAN)
    }
}

impl Observed {
    fn new(runs: &[&Run], train_count: usize) -> Self {
        let mut cells: Vec<Vec<Cell>> = vec![Vec::new(); train_count];
        for (r, run) in runs.iter().enumerate() {
            let steps = run.curriculum.steps();
            for (t, (step, losses)) in steps.iter().zip(&run.batch_losses).enumerate() {
                let place = (r * PARTS + t * PARTS / steps.len()) as u32;
                let Some(losses) = losses else { continue };
                for (&example, &loss) in step.batch.iter().zip(losses) {
                    if loss.is_finite() {
                        note(
                            &mut cells[example as usize],
                            place,
                            residual(f64::from(loss)),
                        );
                    }
                }
            }
        }
        Self {
            runs: runs.len(),
            cells,
        }
    }

    /// The same without the runs of a fold.
    fn without(&self, folds: &[usize], fold: usize) -> Self {
        let kept = |cell: &&Cell| folds[cell.place as usize / PARTS] != fold;
        let cells = self.cells.iter();
        Self {
            runs: self.runs,
            cells: cells
                .map(|own| own.iter().filter(kept).copied().collect())
                .collect(),
        }
    }

    fn course(&self, members: impl Iterator<Item = usize>) -> Course {
        let mut course = Course::new(self.runs * PARTS);
        for i in members {
            for &cell in &self.cells[i] {
                course.add(cell);
            }
        }
        course
    }

    /// The mean residual of all examples at every place.
    fn means(&self) -> Vec<f64> {
        let all = self.course(0..self.cells.len());
        let pairs = all.sums.iter().zip(&all.counts);
        pairs.map(|(sum, count)| sum / count.max(1.0)).collect()
    }

    /// The best clustering of all starts: a label for every example.
    fn cluster(&self, clusters: usize, seed: u64) -> Vec<u32> {
        let means = self.means();
        let starts: Vec<(f64, Vec<u32>)> = (0..STARTS)
            .into_par_iter()
            .map(|start| self.descend(clusters, &means, seed.wrapping_mul(STARTS) + start))
            .collect();
        let best = starts.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        best.expect("there is a start").1
    }

    /// Lloyd's iterations from random labels.
    fn descend(&self, clusters: usize, means: &[f64], seed: u64) -> (f64, Vec<u32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut labels: Vec<u32> = (0..self.cells.len())
            .map(|_| rng.random_range(0..clusters as u32))
            .collect();
        let mut total = f64::INFINITY;
        for _ in 0..PASSES {
            let centroids = self.centroids(clusters, means, &labels);
            let mut changed = false;
            total = 0.0;
            for (cells, label) in self.cells.iter().zip(&mut labels) {
                let distances = centroids.iter().map(|centroid| distance(cells, centroid));
                let nearest = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
                let (nearest, distance) = nearest.expect("there is a cluster");
                changed |= *label != nearest as u32;
                *label = nearest as u32;
                total += distance;
            }
            if !changed {
                break;
            }
        }
        (total, labels)
    }

    fn centroids(&self, clusters: usize, means: &[f64], labels: &[u32]) -> Vec<Vec<f64>> {
        (0..clusters as u32)
            .map(|c| {
                let members = (0..labels.len()).filter(|&i| labels[i] == c);
                let course = self.course(members);
                let places = means.iter().enumerate();
                places.map(|(p, &mean)| course.at(p, mean, None)).collect()
            })
            .collect()
    }

    /// Error of left-out runs with 1, 2, … clusters.
    fn errors(&self, folds: &[usize], most: usize, seed: u64, progress: &dyn Progress) -> Vec<f64> {
        let fold_count = folds.iter().max().map_or(0, |f| f + 1);
        let work: Vec<(usize, usize)> = (1..=most)
            .flat_map(|clusters| (0..fold_count).map(move |fold| (clusters, fold)))
            .collect();
        progress.begin("learning datasets (numbers × folds)", work.len() as u64);
        let others: Vec<Self> = (0..fold_count).map(|f| self.without(folds, f)).collect();
        let missed: Vec<(f64, f64)> = work
            .par_iter()
            .map(|&(clusters, fold)| {
                let labels = others[fold].cluster(clusters, seed);
                let missed = self.missed(&labels, clusters, |run| folds[run] == fold);
                progress.advance(1);
                missed
            })
            .collect();
        progress.end();
        let per_number = missed.chunks_exact(fold_count);
        per_number
            .map(|folds| {
                let sum: f64 = folds.iter().map(|f| f.0).sum();
                sum / folds.iter().map(|f| f.1).sum::<f64>()
            })
            .collect()
    }

    /// Squared errors and their number, each example predicted by the others of its cluster at
    /// the same place of the runs chosen.
    fn missed(
        &self,
        labels: &[u32],
        clusters: usize,
        chosen: impl Fn(usize) -> bool,
    ) -> (f64, f64) {
        let means = self.means();
        let (mut sum, mut count) = (0.0, 0.0);
        for c in 0..clusters as u32 {
            let members = || (0..labels.len()).filter(|&i| labels[i] == c);
            let course = self.course(members());
            for cell in members().flat_map(|i| &self.cells[i]) {
                let place = cell.place as usize;
                if chosen(place / PARTS) {
                    let error = cell.mean - course.at(place, means[place], Some(*cell));
                    sum += cell.count * error * error;
                    count += cell.count;
                }
            }
        }
        (sum, count)
    }
}

/// Adds a residual to the last cell, or to a new one: places come in order.
fn note(cells: &mut Vec<Cell>, place: u32, residual: f64) {
    match cells.last_mut() {
        Some(cell) if cell.place == place => {
            cell.count += 1.0;
            cell.mean += (residual - cell.mean) / cell.count;
        }
        _ => cells.push(Cell {
            place,
            count: 1.0,
            mean: residual,
        }),
    }
}

/// Length of a vector, never 0.
fn norm(x: &[f64]) -> f64 {
    let square: f64 = x.iter().map(|x| x * x).sum();
    square.sqrt().max(f64::MIN_POSITIVE)
}

/// `Σ n (r̄ − μ − o)²` at the best `o`, shrunk: `o = Σ n (r̄ − μ) / (Σ n + 2)`.
fn distance(cells: &[Cell], centroid: &[f64]) -> f64 {
    let (mut count, mut sum, mut square) = (0.0, 0.0, 0.0);
    for cell in cells {
        let error = cell.mean - centroid[cell.place as usize];
        count += cell.count;
        sum += cell.count * error;
        square += cell.count * error * error;
    }
    let level = sum / (count + TO_DATASET);
    square - 2.0 * level * sum + count * level * level
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::{Curriculum, NoProgress, RunInfo, RunStatus, Step, Trajectory};

    /// Twelve examples of three kinds, in turns; a kind is learned while it is trained on and
    /// forgotten while it is not. Examples differ in their level.
    fn runs(count: usize, mixed: bool) -> Vec<Run> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        (0..count)
            .map(|id| {
                let mut residuals = [0.9_f64; 3];
                let (mut steps, mut losses) = (Vec::new(), Vec::new());
                for t in 0..60 {
                    let main = rng.random_range(0..3_u32);
                    let batch: Vec<u32> = (0..4)
                        .map(|b| {
                            let other = mixed || b == 3;
                            let kind = if other { rng.random_range(0..3) } else { main };
                            3 * rng.random_range(0..4_u32) + kind
                        })
                        .collect();
                    let of = |&i: &u32| {
                        let level = 0.01 * f64::from(i / 3);
                        let noise = 0.05 * (rng.random::<f64>() - 0.5);
                        let residual = (residuals[i as usize % 3] + level + noise).min(0.99);
                        Some(-(1.0 - residual).ln() as f32)
                    };
                    losses.push(batch.iter().map(of).collect::<Option<Vec<f32>>>());
                    for (kind, residual) in residuals.iter_mut().enumerate() {
                        *residual = if mixed || kind == (t / 15 + id) % 3 {
                            0.95 * *residual
                        } else {
                            0.9 + 0.9 * (*residual - 0.9)
                        };
                    }
                    steps.push(Step::new(batch, None));
                }
                Run {
                    id: format!("run-{id:03}"),
                    info: RunInfo::new(RunStatus::Complete),
                    batch_losses: losses,
                    curriculum: Curriculum::new(steps, 13).unwrap(),
                    trajectory: Trajectory::new(vec![0, 60], 1, vec![1.0, 0.5]).unwrap(),
                }
            })
            .collect()
    }

    fn learned(runs: &[Run]) -> LearnedDatasets {
        let runs: Vec<&Run> = runs.iter().collect();
        LearnedDatasets::learn(&runs, 13, 0, &NoProgress).unwrap()
    }

    #[test]
    fn what_is_learned_and_forgotten_together_is_a_dataset() {
        let learned = learned(&runs(12, false));
        assert_eq!(learned.count(), 3, "{:?}", learned.errors);
        for i in 0..12_usize {
            assert_eq!(learned.groups[i], learned.groups[i % 3]);
        }
        assert_eq!(learned.unobserved, [12]);
    }

    #[test]
    fn an_example_that_was_never_trained_on_is_placed_by_its_features() {
        let mut learned = learned(&runs(12, false));
        let largest = learned.groups[12];
        // Kind 1 points up; other lengths than 1 change nothing.
        let direction = |kind: usize| [[1.0, 0.1], [0.2, 3.0], [-1.0, 0.0]][kind].to_vec();
        let mut features: Vec<_> = (0..13).map(|i| Some(direction(i % 3))).collect();
        features[12] = None;
        learned.place(&features);
        assert_eq!((learned.groups[12], learned.unobserved.len()), (largest, 1));
        features[12] = Some(vec![0.0, 0.5]);
        learned.place(&features);
        assert_eq!(learned.groups[12], learned.groups[1]);
        assert!(learned.unobserved.is_empty());
    }

    #[test]
    fn runs_that_learn_everything_at_once_give_one_dataset() {
        let learned = learned(&runs(12, true));
        assert_eq!(learned.count(), 1, "{:?}", learned.errors);
    }

    #[test]
    fn the_same_seed_gives_the_same_datasets() {
        let runs = runs(8, false);
        assert_eq!(learned(&runs), learned(&runs));
    }

    #[test]
    fn without_batch_losses_nothing_can_be_learned() {
        let mut runs = runs(6, false);
        runs.iter_mut().for_each(|run| run.batch_losses.fill(None));
        let runs: Vec<&Run> = runs.iter().collect();
        let error = LearnedDatasets::learn(&runs, 13, 0, &NoProgress).unwrap_err();
        assert!(error.to_string().contains("batch_loss"), "{error}");
    }
}
