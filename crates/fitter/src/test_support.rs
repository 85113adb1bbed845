//! Synthetic runs for the tests of this crate.

use crate::{Exposures, Problem, Sequence};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// True parameters `(A, B)` of the synthetic runs, row-major `[n × m]`.
pub(crate) fn truth(n: usize, m: usize) -> (Vec<f64>, Vec<f64>) {
    let at = |i: usize, j: usize, k: usize| ((i * 31 + j * 17 + k * 7) % 23) as f64 / 23.0;
    let a = (0..n * m)
        .map(|p| 0.85 + 0.2 * at(p / m, p % m, 0))
        .collect();
    let b = (0..n * m)
        .map(|p| 0.25 - 0.3 * at(p / m, p % m, 1))
        .collect();
    (a, b)
}

/// Runs drawn from [`truth`] with Gaussian-like noise of the given size on every step.
pub(crate) fn problem_with_noise(
    (n, m): (usize, usize),
    runs: usize,
    steps: usize,
    batch: usize,
    seed: u64,
    noise: f64,
) -> Problem {
    let (a, b) = truth(n, m);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let sequences = (0..runs)
        .map(|_| {
            let mut exposures = Exposures::new(n);
            let mut losses: Vec<f64> = (0..m).map(|_| rng.random_range(2.0..5.0)).collect();
            for step in 0..steps {
                let members: Vec<u32> = (0..batch).map(|_| rng.random_range(0..n as u32)).collect();
                exposures
                    .push(members.iter().map(|&i| (i, 1.0 / batch as f64)))
                    .expect("ids are in range");
                for j in 0..m {
                    let mean = |table: &[f64]| {
                        let sum: f64 = members.iter().map(|&i| table[i as usize * m + j]).sum();
                        sum / batch as f64
                    };
                    let shock: f64 = (0..4).map(|_| rng.random_range(-1.0..1.0)).sum();
                    let last = losses[step * m + j];
                    losses.push(mean(&a) * last + mean(&b) + noise * shock);
                }
            }
            Sequence {
                exposures,
                steps: (0..=steps as u32).collect(),
                losses,
                measured: None,
            }
        })
        .collect();
    Problem::new(n, m, sequences).expect("synthetic runs are well-formed")
}

/// Noisy runs.
pub(crate) fn noisy_problem(
    n: usize,
    m: usize,
    runs: usize,
    steps: usize,
    batch: usize,
    seed: u64,
) -> Problem {
    problem_with_noise((n, m), runs, steps, batch, seed, 0.05)
}
