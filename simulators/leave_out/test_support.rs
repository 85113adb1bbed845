//! Models whose trainings are known exactly, and caches that misbehave.

use super::{Cache, FinalLosses, Retraining};
use simfluence_core::{BoxError, Curriculum, Progress, Retrain, Scores, Step, Trajectory};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Numbers that look random and are the same everywhere, in −1 to 1.
pub fn noise(k: usize) -> f64 {
    let mixed = (k as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// `steps` steps of `size` of the `train_count` examples in turn, the learning rate falling.
pub fn in_turn(steps: usize, size: usize, train_count: usize) -> Curriculum {
    let step = |t: usize| {
        let batch = (0..size).map(|k| ((t * size + k) % train_count) as u32);
        Step::new(batch.collect(), Some(0.1 / (t + 1) as f32))
    };
    Curriculum::new((0..steps).map(step).collect(), train_count).unwrap()
}

/// What an example counts in a [`Regression`].
#[derive(Clone, Copy, PartialEq)]
pub enum Weight {
    /// 1 if it was trained at all.
    Presence,
    /// Its total exposure.
    Exposure,
}

/// Least squares `min_θ Σ_i w_i (x_i·θ − y_i)²`, trained to convergence: the exact minimiser.
/// The loss of a test example is its squared error.
pub struct Regression {
    pub x: Vec<Vec<f64>>,
    pub y: Vec<f64>,
    pub test_x: Vec<Vec<f64>>,
    pub test_y: Vec<f64>,
    pub weight: Weight,
}

impl Regression {
    pub fn new(train: usize, test: usize, parameters: usize, weight: Weight) -> Self {
        let row = |start: usize| {
            move |i: usize| {
                (0..parameters)
                    .map(|p| noise(start + i * parameters + p))
                    .collect()
            }
        };
        Self {
            x: (0..train).map(row(0)).collect(),
            y: (0..train).map(|i| noise(5000 + i)).collect(),
            test_x: (0..test).map(row(10_000)).collect(),
            test_y: (0..test).map(|j| 2.0 + noise(20_000 + j)).collect(),
            weight,
        }
    }

    pub fn weights(&self, curriculum: &Curriculum) -> Vec<f64> {
        let exposure = curriculum.total_exposure(self.x.len());
        let presence = |&x: &f64| f64::from(u8::from(x > 0.0));
        match self.weight {
            Weight::Presence => exposure.iter().map(presence).collect(),
            Weight::Exposure => exposure,
        }
    }

    /// `A = Σ w_i x_i x_iᵀ` and `b = Σ w_i y_i x_i`.
    pub fn normal_equations(&self, weights: &[f64]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let size = self.x[0].len();
        let (mut a, mut b) = (vec![vec![0.0; size]; size], vec![0.0; size]);
        for ((x, y), weight) in self.x.iter().zip(&self.y).zip(weights) {
            for p in 0..size {
                b[p] += weight * y * x[p];
                for q in 0..size {
                    a[p][q] += weight * x[p] * x[q];
                }
            }
        }
        (a, b)
    }

    /// The test losses of parameters.
    pub fn losses(&self, theta: &[f64]) -> Vec<f64> {
        let tests = self.test_x.iter().zip(&self.test_y);
        tests.map(|(x, y)| (dot(x, theta) - y).powi(2)).collect()
    }
}

impl Retrain for Regression {
    fn retrain(
        &self,
        curriculum: &Curriculum,
        _: u64,
        progress: &dyn Progress,
    ) -> Result<Trajectory, BoxError> {
        let (a, b) = self.normal_equations(&self.weights(curriculum));
        let before = self.losses(&vec![0.0; b.len()]);
        let after = self.losses(&solve(a, b));
        progress.advance(curriculum.len() as u64);
        ends(curriculum, before, after)
    }
}

/// `L_T(j) = L_0(j) − Σ_t (η_t/η_ref) Σ_i x_t(i) E(i,j)`: additive, without noise.
pub struct AdditiveWorld(pub Scores);

impl Retrain for AdditiveWorld {
    fn retrain(&self, c: &Curriculum, _: u64, _: &dyn Progress) -> Result<Trajectory, BoxError> {
        let tests = self.0.test_keys.len();
        let before = vec![8.0; tests];
        let mut after = before.clone();
        for step in c.steps() {
            let rate = f64::from(step.learning_rate.ok_or("no rate")?);
            for (example, exposure) in step.exposures() {
                for (test, loss) in after.iter_mut().enumerate() {
                    let score = f64::from(self.0.values[example as usize * tests + test]);
                    *loss -= rate / self.0.reference_learning_rate * exposure * score;
                }
            }
        }
        ends(c, before, after)
    }
}

/// Scores of any size.
pub fn scores(train: usize, test: usize, value: impl Fn(usize, usize) -> f64) -> Scores {
    let keys = |count| (0..count).map(|k: usize| format!("k{k}")).collect();
    let pairs = (0..train).flat_map(|i| (0..test).map(move |j| (i, j)));
    Scores {
        method: "made up".into(),
        train_keys: keys(train),
        test_keys: keys(test),
        reference_learning_rate: 0.05,
        has_natural_unit: true,
        values: pairs.map(|(i, j)| value(i, j) as f32).collect(),
        layers: Vec::new(),
        provenance: BTreeMap::new(),
    }
}

/// Counts trainings, remembers what was trained, and fails from the `limit`-th training on.
pub struct Watched<M> {
    pub model: M,
    pub count: AtomicUsize,
    pub limit: usize,
    pub trained: Mutex<Vec<(u64, Curriculum)>>,
}

impl<M> Watched<M> {
    pub fn new(model: M, limit: usize) -> Self {
        Self {
            model,
            count: AtomicUsize::new(0),
            limit,
            trained: Mutex::new(Vec::new()),
        }
    }

    pub fn trainings(&self) -> usize {
        self.trained.lock().unwrap().len()
    }
}

impl<M: Retrain> Retrain for Watched<M> {
    fn retrain(&self, c: &Curriculum, seed: u64, p: &dyn Progress) -> Result<Trajectory, BoxError> {
        if self.count.fetch_add(1, Ordering::SeqCst) >= self.limit {
            return Err("pulled the plug".into());
        }
        let trajectory = self.model.retrain(c, seed, p)?;
        self.trained.lock().unwrap().push((seed, c.clone()));
        Ok(trajectory)
    }
}

/// Keeps results in memory, under keys with this context.
#[derive(Default)]
pub struct MemoryCache {
    pub context: String,
    pub kept: Mutex<BTreeMap<String, FinalLosses>>,
}

impl Cache for MemoryCache {
    fn load(&self, retraining: &Retraining) -> Result<Option<FinalLosses>, BoxError> {
        let key = retraining.key(&self.context);
        Ok(self.kept.lock().unwrap().get(&key).cloned())
    }

    fn store(&self, retraining: &Retraining, result: &FinalLosses) -> Result<(), BoxError> {
        let key = retraining.key(&self.context);
        self.kept.lock().unwrap().insert(key, result.clone());
        Ok(())
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gaussian elimination with the largest pivot.
pub fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let size = b.len();
    for column in 0..size {
        let largest = |&r: &usize, &s: &usize| a[r][column].abs().total_cmp(&a[s][column].abs());
        let pivot = (column..size).max_by(largest).unwrap();
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..size {
            let factor = a[row][column] / a[column][column];
            let (above, below) = a.split_at_mut(row);
            for (value, upper) in below[0].iter_mut().zip(&above[column]) {
                *value -= factor * upper;
            }
            b[row] -= factor * b[column];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|k| a[row][k] * b[k]).sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    b
}

fn ends(c: &Curriculum, before: Vec<f64>, after: Vec<f64>) -> Result<Trajectory, BoxError> {
    let tests = before.len();
    let values = before.into_iter().chain(after).map(|l| l as f32).collect();
    Ok(Trajectory::new(vec![0, c.len() as u32], tests, values)?)
}
