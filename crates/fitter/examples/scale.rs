//! A fit of any size on synthetic runs made in memory, for time and memory against the size.
//!
//! `scale N M STEPS BATCH LAMBDA TOLERANCE`: runs of 100 steps in which every test example falls
//! towards a floor at the pace of the batch, with noise. Prints one line of JSON.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::json;
use simfluence_core::NoProgress;
use simfluence_fitter::{Exposures, FitError, FitSettings, Penalty, Problem, Sequence, fit};
use std::time::Instant;

/// Steps of a run.
const LENGTH: usize = 100;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [n, m, steps, batch, lambda, tolerance] = words.as_slice() else {
        return Err("usage: scale N M STEPS BATCH LAMBDA TOLERANCE".into());
    };
    let (n, m, steps, batch) = (n.parse()?, m.parse()?, steps.parse()?, batch.parse()?);
    let lambda: f64 = lambda.parse()?;
    let start = Instant::now();
    let problem = problem(n, m, steps, batch)?;
    let made = start.elapsed().as_secs_f64();
    let data_peak = peak_rss_mb();
    let mut settings = FitSettings::new(Penalty {
        a: lambda,
        b: lambda,
    });
    settings.tolerance = tolerance.parse()?;
    let start = Instant::now();
    let fitted = fit(&problem, &problem.all_sequences(), &settings, &NoProgress)?;
    let seconds = start.elapsed().as_secs_f64();
    let iterations = fitted.iterations.iter().sum::<u64>() as f64 / m as f64;
    let entries = (steps * batch * m) as f64;
    println!(
        "{}",
        json!({
            "n": n, "m": m, "steps": steps, "batch": batch, "lambda": lambda,
            "seconds": seconds,
            "iterations": iterations,
            "nanoseconds_per_entry": seconds / entries * 1e9,
            "nanoseconds_per_entry_and_iteration": seconds / entries / iterations * 1e9,
            "making_the_data_seconds": made,
            "data_peak_rss_mb": data_peak,
            "peak_rss_mb": peak_rss_mb(),
        })
    );
    Ok(())
}

/// `steps / LENGTH` runs.
fn problem(n: usize, m: usize, steps: usize, batch: usize) -> Result<Problem, Failure> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pace: Vec<f32> = (0..n * m).map(|_| rng.random_range(0.0..0.08)).collect();
    let runs = steps.div_ceil(LENGTH) as u64;
    let sequences: Result<Vec<Sequence>, FitError> = (0..runs)
        .into_par_iter()
        .map(|run| sequence(n, m, batch, &pace, run))
        .collect();
    Ok(Problem::new(n, m, sequences?)?)
}

fn sequence(
    n: usize,
    m: usize,
    batch: usize,
    pace: &[f32],
    run: u64,
) -> Result<Sequence, FitError> {
    const FLOOR: f64 = 0.3;
    let mut rng = ChaCha8Rng::seed_from_u64(run + 1);
    let mut exposures = Exposures::new(n);
    let mut losses: Vec<f64> = (0..m).map(|_| rng.random_range(2.0..5.0)).collect();
    losses.reserve_exact(LENGTH * m);
    for _ in 0..LENGTH {
        let members: Vec<usize> = (0..batch).map(|_| rng.random_range(0..n)).collect();
        exposures.push(members.iter().map(|&i| (i as u32, 1.0 / batch as f64)))?;
        let last = losses.len() - m;
        for j in 0..m {
            let push: f32 = members.iter().map(|&i| pace[i * m + j]).sum();
            let before = losses[last + j];
            let noise: f64 = rng.random_range(-0.05..0.05);
            let after = before - f64::from(push) / batch as f64 * (before - FLOOR) + noise;
            losses.push(f64::from(after as f32));
        }
    }
    Ok(Sequence {
        steps: (0..=LENGTH as u32).collect(),
        exposures,
        losses,
        measured: None,
    })
}

/// Largest resident memory of this process so far (Linux; `None` elsewhere).
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
