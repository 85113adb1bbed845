//! What single training examples do beside what their dataset does.

use super::inputs::Inputs;
use super::path::Path;
use super::pushes::Pushes;
use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

/// Accuracy to which the equations are solved, as the residual over the right side.
const TOLERANCE: f64 = 1e-8;
const MOST_ITERATIONS: usize = 300;

/// Effects of single training examples: the part of an example's push that is not its dataset's.
///
/// `ΔL_j += (η_t/η_ref)^q Σ_k V_kj Σ_c s_c m_ck`, `m_ck = EMA_β(ρ_c Σ_(i in c) x_t(i) d_ik)`
///
/// The push of an example goes the way of its dataset's through the optimiser (memory `β`,
/// normalisation `s_c`, residual `ρ_c`) and then moves the losses along a few directions `V` that
/// all test examples share. An example that was never trained on has `d_i = 0`: it acts as its
/// dataset does.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExampleEffects {
    pub(super) rank: usize,
    /// `V`, `[rank × tests]`, orthonormal: principal components of the recorded losses.
    pub(super) axes: Vec<f64>,
    /// `d`, `[training examples × rank]`.
    pub(super) effects: Vec<f64>,
}

/// The first `rank` principal components of the losses of all runs and steps, `[rank × tests]`.
pub(super) fn axes(paths: &[&Path], rank: usize) -> Vec<f64> {
    let m = paths[0].row(0).len();
    let rows = || (paths.iter()).flat_map(|path| (0..=path.steps()).map(|step| path.row(step)));
    let count = rows().count() as f64;
    let mut mean = vec![0.0; m];
    for row in rows() {
        mean.iter_mut()
            .zip(row)
            .for_each(|(sum, l)| *sum += l / count);
    }
    let mut covariance = DMatrix::<f64>::zeros(m, m);
    for path in paths {
        let centred = DMatrix::from_fn(path.steps() + 1, m, |t, j| path.row(t)[j] - mean[j]);
        covariance.gemm_tr(1.0 / count, &centred, &centred, 1.0);
    }
    let eigen = SymmetricEigen::new(covariance);
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let columns = order.into_iter().take(rank);
    columns
        .flat_map(|k| {
            eigen
                .eigenvectors
                .column(k)
                .iter()
                .copied()
                .collect::<Vec<_>>()
        })
        .collect()
}

/// How a dataset's pushes pass through the optimiser at one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passage {
    /// What a push enters the moving average with, `(1 − β) ρ_c`.
    pub(super) entering: f64,
    /// What the moving average leaves with, `(η_t/η_ref)^q s_c / (1 − β^t)`.
    pub(super) leaving: f64,
}

/// The moving averages `m` of the pushes of single examples.
struct Averages {
    decay: f64,
    rank: usize,
    /// `[datasets × rank]`.
    values: Vec<f64>,
}

impl Averages {
    fn new(decay: f64, rank: usize, datasets: usize) -> Self {
        Self {
            decay,
            rank,
            values: vec![0.0; datasets * rank],
        }
    }

    /// Takes a step with the effects `d`, `[training examples × rank]`; `out` is what it moves
    /// along each axis.
    fn step(
        &mut self,
        d: &[f64],
        inputs: &Inputs,
        step: usize,
        passages: &[Passage],
        out: &mut [f64],
    ) {
        let (rank, groups) = (self.rank, inputs.groups());
        self.values.iter_mut().for_each(|a| *a *= self.decay);
        for &(example, exposure) in inputs.exposures(step) {
            let group = groups[example as usize] as usize;
            let share = exposure * passages[group].entering;
            let d = &d[example as usize * rank..][..rank];
            let averages = &mut self.values[group * rank..][..rank];
            averages
                .iter_mut()
                .zip(d)
                .for_each(|(a, d)| *a += share * d);
        }
        out.fill(0.0);
        for (passage, averages) in passages.iter().zip(self.values.chunks_exact(rank)) {
            let pairs = out.iter_mut().zip(averages);
            pairs.for_each(|(out, average)| *out += passage.leaving * average);
        }
    }
}

/// The effects of single examples in a simulation.
pub(super) struct Filter<'a> {
    inputs: &'a Inputs,
    effects: &'a ExampleEffects,
    averages: Averages,
    passages: Vec<Passage>,
    pushed: Vec<f64>,
}

impl<'a> Filter<'a> {
    /// Before the first step.
    pub(super) fn new(
        inputs: &'a Inputs,
        effects: &'a ExampleEffects,
        pushes: &Pushes<'_>,
    ) -> Self {
        let (rank, datasets) = (effects.rank, pushes.groups());
        Self {
            inputs,
            effects,
            averages: Averages::new(pushes.decay(), rank, datasets),
            passages: Vec::with_capacity(datasets),
            pushed: vec![0.0; rank],
        }
    }

    /// Adds what a step changes to `losses`, after `pushes` took the same step.
    pub(super) fn step(&mut self, step: usize, pushes: &Pushes<'_>, rate: f64, losses: &mut [f64]) {
        self.passages.clear();
        self.passages.extend(pushes.passages(rate));
        let (d, pushed) = (&self.effects.effects, &mut self.pushed);
        (self.averages).step(d, self.inputs, step, &self.passages, pushed);
        let axes = self.effects.axes.chunks_exact(losses.len());
        for (push, axis) in self.pushed.iter().zip(axes) {
            for (loss, v) in losses.iter_mut().zip(axis) {
                *loss += push * v;
            }
        }
    }
}

/// What a recorded run says of its examples.
pub(super) struct Recorded<'a> {
    pub(super) inputs: &'a Inputs,
    /// `[steps × datasets]`, at the recorded losses.
    pub(super) passages: Vec<Passage>,
    /// What the closed loop misses of each step along each axis, `[steps × rank]`.
    pub(super) missed: Vec<f64>,
}

/// The ridge regression of what the closed loop misses on the exposures to single examples,
/// without forming a matrix.
pub(super) struct Regression<'a> {
    runs: &'a [Recorded<'a>],
    decay: f64,
    datasets: usize,
    rank: usize,
    train_count: usize,
}

impl<'a> Regression<'a> {
    pub(super) fn new(
        runs: &'a [Recorded<'a>],
        train_count: usize,
        rank: usize,
        datasets: usize,
        decay: f64,
    ) -> Self {
        Self {
            runs,
            decay,
            datasets,
            rank,
            train_count,
        }
    }

    /// `d` for every strength, `[training examples × rank]` each: minimises
    /// `Σ |missed − Z d|² + λ |d|²` by conjugate gradients, `Z` the exposures as they come out of
    /// the optimiser, `λ` the strength times the mean of what one exposure after the other leaves
    /// of an example in `Σ_t z_t(i)²`, so that a strength of 1 halves the effect of an example
    /// that is seen as often as the mean one, alone.
    pub(super) fn solve(&self, strengths: &[f64]) -> Vec<Vec<f64>> {
        let right = self.gather(|run| run.missed.clone());
        let energy = self.mean_energy();
        let mut x = vec![0.0; right.len()];
        // From strong to weak: the solution before is a start that is hardly wrong.
        let mut order: Vec<usize> = (0..strengths.len()).collect();
        order.sort_by(|&a, &b| strengths[b].total_cmp(&strengths[a]));
        let mut solutions = vec![Vec::new(); strengths.len()];
        for place in order {
            self.descend(strengths[place] * energy, &right, &mut x);
            solutions[place].clone_from(&x);
        }
        solutions
    }

    /// Conjugate gradients, every axis with step lengths of its own.
    fn descend(&self, penalty: f64, right: &[f64], x: &mut [f64]) {
        let product = |v: &[f64]| -> Vec<f64> {
            let mut out = self.gather(|run| self.spread(run, v));
            out.iter_mut().zip(v).for_each(|(o, v)| *o += penalty * v);
            out
        };
        let dots = |a: &[f64], b: &[f64]| {
            let mut sums = vec![0.0; self.rank];
            for (a, b) in a.chunks_exact(self.rank).zip(b.chunks_exact(self.rank)) {
                sums.iter_mut()
                    .zip(a)
                    .zip(b)
                    .for_each(|((s, a), b)| *s += a * b);
            }
            sums
        };
        let ratio = |a: &[f64], b: &[f64]| -> Vec<f64> {
            let pairs = a.iter().zip(b);
            pairs
                .map(|(a, b)| if *b > 0.0 { a / b } else { 0.0 })
                .collect()
        };
        let add = |to: &mut [f64], factors: &[f64], from: &[f64]| {
            let rows = to
                .chunks_exact_mut(self.rank)
                .zip(from.chunks_exact(self.rank));
            for (to, from) in rows {
                for ((to, factor), from) in to.iter_mut().zip(factors).zip(from) {
                    *to += factor * from;
                }
            }
        };
        let applied = product(x);
        let mut residual: Vec<f64> = right.iter().zip(&applied).map(|(b, a)| b - a).collect();
        let mut direction = residual.clone();
        let goal = TOLERANCE * TOLERANCE * dots(right, right).iter().sum::<f64>();
        let mut square = dots(&residual, &residual);
        for _ in 0..MOST_ITERATIONS {
            if square.iter().sum::<f64>() <= goal {
                return;
            }
            let applied = product(&direction);
            let lengths = ratio(&square, &dots(&direction, &applied));
            add(x, &lengths, &direction);
            let back: Vec<f64> = lengths.iter().map(|l| -l).collect();
            add(&mut residual, &back, &applied);
            let new = dots(&residual, &residual);
            let keep = ratio(&new, &square);
            for (d, r) in direction
                .chunks_exact_mut(self.rank)
                .zip(residual.chunks_exact(self.rank))
            {
                for ((d, r), keep) in d.iter_mut().zip(r).zip(&keep) {
                    *d = r + keep * *d;
                }
            }
            square = new;
        }
    }

    /// `Z v` of one run, `[steps × rank]`.
    fn spread(&self, run: &Recorded<'_>, v: &[f64]) -> Vec<f64> {
        let mut averages = Averages::new(self.decay, self.rank, self.datasets);
        let mut out = vec![0.0; run.inputs.len() * self.rank];
        for (step, out) in out.chunks_exact_mut(self.rank).enumerate() {
            let passages = &run.passages[step * self.datasets..][..self.datasets];
            averages.step(v, run.inputs, step, passages, out);
        }
        out
    }

    /// `Zᵀ` times what `of` gives for each run, `[steps × rank]`: [`Regression::spread`] backwards
    /// in time. Runs are added up in their order.
    fn gather(&self, of: impl Fn(&Recorded<'_>) -> Vec<f64> + Sync) -> Vec<f64> {
        let rank = self.rank;
        let parts: Vec<Vec<(usize, f64)>> = (self.runs.par_iter())
            .map(|run| {
                let rows = of(run);
                let groups = run.inputs.groups();
                let mut averages = vec![0.0; self.datasets * rank];
                let mut parts = Vec::new();
                for step in (0..run.inputs.len()).rev() {
                    let passages = &run.passages[step * self.datasets..][..self.datasets];
                    let row = &rows[step * rank..][..rank];
                    for (passage, averages) in passages.iter().zip(averages.chunks_exact_mut(rank))
                    {
                        for (average, x) in averages.iter_mut().zip(row) {
                            *average = self.decay * *average + passage.leaving * x;
                        }
                    }
                    for &(example, exposure) in run.inputs.exposures(step) {
                        let group = groups[example as usize] as usize;
                        let share = exposure * passages[group].entering;
                        let averages = &averages[group * rank..][..rank];
                        let first = example as usize * rank;
                        let own = averages.iter().enumerate();
                        parts.extend(own.map(|(k, average)| (first + k, share * average)));
                    }
                }
                parts
            })
            .collect();
        let mut out = vec![0.0; self.train_count * rank];
        for (place, value) in parts.into_iter().flatten() {
            out[place] += value;
        }
        out
    }

    /// The mean over the examples that were trained on of `Σ (leaving · entering · x)²` times
    /// `1 / (1 − β²)`: `Σ_t z_t(i)²` of exposures that do not overlap.
    fn mean_energy(&self) -> f64 {
        let mut energies = vec![0.0; self.train_count];
        for run in self.runs {
            let groups = run.inputs.groups();
            for step in 0..run.inputs.len() {
                for &(example, exposure) in run.inputs.exposures(step) {
                    let group = groups[example as usize] as usize;
                    let passage = run.passages[step * self.datasets + group];
                    energies[example as usize] +=
                        (passage.leaving * passage.entering * exposure).powi(2);
                }
            }
        }
        let seen = energies.iter().filter(|&&e| e > 0.0).count().max(1) as f64;
        let mean = energies.iter().sum::<f64>() / seen;
        (mean / (1.0 - self.decay * self.decay)).max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use simfluence_core::{Curriculum, Step};

    const GROUPS: [u32; 6] = [0, 1, 0, 1, 0, 1];
    const DECAY: f64 = 0.7;

    /// Two runs of random batches, passages and misses along two axes.
    fn inputs(rng: &mut ChaCha8Rng) -> Vec<Inputs> {
        (0..2)
            .map(|_| {
                let batch = |rng: &mut ChaCha8Rng| (0..3).map(|_| rng.random_range(0..5)).collect();
                let steps = (0..15).map(|_| Step::new(batch(rng), Some(1.0))).collect();
                let curriculum = Curriculum::new(steps, GROUPS.len()).unwrap();
                Inputs::new(&curriculum, &GROUPS.into(), 2, Some(1.0), "test").unwrap()
            })
            .collect()
    }

    fn recorded<'a>(inputs: &'a [Inputs], rng: &mut ChaCha8Rng) -> Vec<Recorded<'a>> {
        (inputs.iter())
            .map(|inputs| Recorded {
                inputs,
                passages: (0..2 * inputs.len())
                    .map(|_| Passage {
                        entering: rng.random::<f64>(),
                        leaving: 0.5 + rng.random::<f64>(),
                    })
                    .collect(),
                missed: (0..2 * inputs.len())
                    .map(|_| rng.random::<f64>() - 0.5)
                    .collect(),
            })
            .collect()
    }

    /// `Z` written out: an exposure at step `s` is seen at `t ≥ s` with `β^(t−s)`.
    fn dense(run: &Recorded<'_>) -> DMatrix<f64> {
        let steps = run.inputs.len();
        let mut z = DMatrix::zeros(steps, GROUPS.len());
        for s in 0..steps {
            for &(example, exposure) in run.inputs.exposures(s) {
                let group = GROUPS[example as usize] as usize;
                let entering = run.passages[2 * s + group].entering;
                for t in s..steps {
                    let kept = DECAY.powi((t - s) as i32);
                    z[(t, example as usize)] +=
                        exposure * entering * kept * run.passages[2 * t + group].leaving;
                }
            }
        }
        z
    }

    #[test]
    fn the_regression_is_that_on_the_matrix_written_out() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let inputs = inputs(&mut rng);
        let runs = recorded(&inputs, &mut rng);
        let regression = Regression::new(&runs, GROUPS.len(), 2, 2, DECAY);
        let strengths = [0.1, 3.0];
        let solved = regression.solve(&strengths);
        let energy = regression.mean_energy();
        for (strength, solved) in strengths.iter().zip(&solved) {
            let mut gram = DMatrix::identity(GROUPS.len(), GROUPS.len()) * (strength * energy);
            let mut right = DMatrix::zeros(GROUPS.len(), 2);
            for run in &runs {
                let z = dense(run);
                gram += z.tr_mul(&z);
                right += z.tr_mul(&DMatrix::from_row_slice(run.inputs.len(), 2, &run.missed));
            }
            let exact = gram.cholesky().unwrap().solve(&right);
            let solved = DMatrix::from_row_slice(GROUPS.len(), 2, solved);
            assert!((&solved - &exact).norm() < 1e-7 * exact.norm());
            // Example 5 was never trained on.
            assert!(solved.row(5).norm() == 0.0 && exact.norm() > 0.01);
        }
    }

    #[test]
    fn energy_is_that_of_exposures_that_do_not_overlap() {
        let steps = (0..60).map(|t| Step::new(vec![if t == 3 { 0 } else { 1 }], None));
        let curriculum = Curriculum::new(steps.collect(), GROUPS.len()).unwrap();
        let inputs = Inputs::new(&curriculum, &GROUPS.into(), 2, None, "test").unwrap();
        let run = Recorded {
            inputs: &inputs,
            passages: vec![
                Passage {
                    entering: 0.3,
                    leaving: 2.0
                };
                120
            ],
            missed: vec![0.0; 60],
        };
        let alone = dense(&run).column(0).norm_squared();
        let runs = [run];
        let regression = Regression::new(&runs, GROUPS.len(), 1, 2, DECAY);
        // The other 59 are of example 1.
        let expected = 60.0 * alone / 2.0;
        assert!((regression.mean_energy() - expected).abs() < 1e-6 * expected);
    }
}
