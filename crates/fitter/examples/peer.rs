//! Our side of `benches/peers`: times the fit and the simulation on data that the peer made.
//!
//! `peer fit DATA LAMBDA TOLERANCE REPEATS` and `peer simulate DATA REPEATS`; `DATA` is a safetensors
//! file. Prints one line of JSON.

use rayon::prelude::*;
use serde_json::{Value, json};
use simfluence_core::{Artifact, Curriculum, NoProgress, Step, Tensor};
use simfluence_fitter::{
    Exposures, FitSettings, Parameters, Penalty, PenaltySearch, Problem, Sequence, Variant,
    choose_penalty, fit,
};
use std::time::Instant;

const USAGE: &str = "usage: peer fit DATA LAMBDA TOLERANCE REPEATS | peer choose DATA TOLERANCE \
                     REPEATS | peer simulate DATA REPEATS | peer what-ifs DATA COUNT REPEATS | peer triad \
                     REPEATS";

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["fit", data, lambda, tolerance, repeats] => time_fit(
            &read(data)?,
            lambda.parse()?,
            tolerance.parse()?,
            repeats.parse()?,
        )?,
        ["choose", data, tolerance, repeats] => {
            time_choice(&read(data)?, tolerance.parse()?, repeats.parse()?)?
        }
        ["simulate", data, repeats] => time_simulation(&read(data)?, repeats.parse()?)?,
        ["what-ifs", data, count, repeats] => {
            time_what_ifs(&read(data)?, count.parse()?, repeats.parse()?)?
        }
        ["triad", repeats] => time_triad(repeats.parse()?),
        _ => return Err(USAGE.into()),
    };
    println!("{result}");
    Ok(())
}

fn read(path: &str) -> Result<Artifact, Failure> {
    Ok(Artifact::from_bytes(&std::fs::read(path)?)?)
}

fn tensor<'a>(data: &'a Artifact, name: &str) -> Result<&'a Tensor, Failure> {
    data.tensors
        .get(name)
        .ok_or_else(|| format!("no array {name}").into())
}

/// `batches [runs × steps × batch]` of training ids.
fn curricula(data: &Artifact, train_count: usize) -> Result<Vec<Curriculum>, Failure> {
    let Tensor::U32 { shape, values } = tensor(data, "batches")? else {
        return Err("batches must be u32".into());
    };
    let mut curricula = Vec::new();
    for run in values.chunks(shape[1] * shape[2]) {
        let steps = run
            .chunks(shape[2])
            .map(|b| Step::new(b.to_vec(), None))
            .collect();
        curricula.push(Curriculum::new(steps, train_count)?);
    }
    Ok(curricula)
}

/// The recorded runs: `losses [runs × evaluations × m]` beside the curricula.
fn problem(data: &Artifact) -> Result<Problem, Failure> {
    let Tensor::U32 { values, .. } = tensor(data, "train_count")? else {
        return Err("train_count must be u32".into());
    };
    let n = values[0] as usize;
    let Tensor::F32 { shape, values } = tensor(data, "losses")? else {
        return Err("losses must be f32".into());
    };
    let (evaluations, m) = (shape[1], shape[2]);
    let mut sequences = Vec::new();
    for (curriculum, losses) in curricula(data, n)?
        .iter()
        .zip(values.chunks(evaluations * m))
    {
        sequences.push(Sequence {
            exposures: Exposures::from_curriculum(curriculum, n)?,
            steps: (0..evaluations as u32).collect(),
            losses: losses.iter().map(|&l| f64::from(l)).collect(),
            measured: None,
        });
    }
    Ok(Problem::new(n, m, sequences)?)
}

/// One fit with the chosen penalties, and choosing them of six by 5-fold leave-run-out rollouts,
/// in turns.
fn time_choice(data: &Artifact, tolerance: f64, repeats: usize) -> Result<Value, Failure> {
    let problem = problem(data)?;
    let all = problem.all_sequences();
    let grid = (-3..=2).map(|exponent| {
        let lambda = 10f64.powi(exponent);
        Penalty {
            a: lambda,
            b: lambda,
        }
    });
    let search = PenaltySearch {
        grid: grid.collect(),
        ..PenaltySearch::default()
    };
    let mut settings = FitSettings::new(search.grid[0]);
    settings.tolerance = tolerance;
    let choose = |settings: &FitSettings| {
        choose_penalty(&problem, &all, &all, settings, &search, &NoProgress)
    };
    let mut choice = choose(&settings)?;
    settings.penalty = choice.best;
    let (mut fit_seconds, mut choice_seconds) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let start = Instant::now();
        fit(&problem, &all, &settings, &NoProgress)?;
        fit_seconds.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        choice = choose(&settings)?;
        choice_seconds.push(start.elapsed().as_secs_f64());
    }
    let errors: Vec<Option<f64>> = choice.table.iter().map(|row| row.mse).collect();
    Ok(json!({
        "fit_seconds": fit_seconds,
        "choice_seconds": choice_seconds,
        "best": choice.best,
        "errors": errors,
        "peak_rss_mb": peak_rss_mb(),
    }))
}

fn time_fit(
    data: &Artifact,
    lambda: f64,
    tolerance: f64,
    repeats: usize,
) -> Result<Value, Failure> {
    let problem = problem(data)?;
    let mut settings = FitSettings::new(Penalty {
        a: lambda,
        b: lambda,
    });
    settings.tolerance = tolerance;
    let all = problem.all_sequences();
    let mut seconds = Vec::new();
    let mut fitted = fit(&problem, &all, &settings, &NoProgress)?;
    for _ in 0..repeats {
        let start = Instant::now();
        fitted = fit(&problem, &all, &settings, &NoProgress)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(json!({
        "seconds": seconds,
        "objective": fitted.objective,
        "iterations": fitted.iterations,
        "peak_rss_mb": peak_rss_mb(),
    }))
}

/// The parameters `A` and `B` `[n × m]`, and `n`.
fn parameters(data: &Artifact) -> Result<(Parameters, usize), Failure> {
    let shape = tensor(data, "A")?.shape().to_vec();
    let (n, m) = (shape[0], shape[1]);
    let (a, b) = (data.f64s("A", &shape)?, data.f64s("B", &shape)?);
    Ok((Parameters::from_tables(Variant::Linear, n, m, a, b), n))
}

fn time_simulation(data: &Artifact, repeats: usize) -> Result<Value, Failure> {
    let (parameters, n) = parameters(data)?;
    let m = parameters.test_count();
    let curriculum = &curricula(data, n)?[0];
    let initial = data.f32s("initial", &[m])?;
    let mut seconds = Vec::new();
    let mut last = Vec::new();
    for _ in 0..=repeats {
        let start = Instant::now();
        let exposures = Exposures::from_curriculum(curriculum, n)?;
        last = parameters.simulate(&exposures, initial);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let end = last[last.len() - m..].to_vec();
    Ok(json!({ "seconds": seconds[1..], "final": end, "peak_rss_mb": peak_rss_mb() }))
}

/// The losses at the end of `count` edits of one run (each with one step replaced, at places spread
/// evenly over it), one after the other and all at once, in turns.
fn time_what_ifs(data: &Artifact, count: usize, repeats: usize) -> Result<Value, Failure> {
    let (parameters, n) = parameters(data)?;
    let base = Exposures::from_curriculum(&curricula(data, n)?[0], n)?;
    let initial = data.f32s("initial", &[parameters.test_count()])?;
    let edit = |edit: usize| {
        let changed = edit * base.len() / count;
        let mut edited = Exposures::new(n);
        for step in 0..base.len() {
            if step == changed {
                edited.push([((edit * 7919 % n) as u32, 1.0)])?;
            } else {
                edited.push(base.row(step))?;
            }
        }
        Ok::<_, simfluence_fitter::FitError>(edited)
    };
    let edits: Vec<Exposures> = (0..count).map(edit).collect::<Result<_, _>>()?;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let start = Instant::now();
        let mut expected = Vec::new();
        for edit in &edits {
            let table = parameters.simulate(edit, initial);
            expected.extend_from_slice(&table[table.len() - parameters.test_count()..]);
        }
        alone.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let got = parameters.last_losses(&edits, initial);
        together.push(start.elapsed().as_secs_f64());
        if got != expected {
            return Err("what-ifs at once differ from what-ifs alone".into());
        }
    }
    Ok(json!({ "alone_seconds": alone, "seconds": together, "peak_rss_mb": peak_rss_mb() }))
}

/// STREAM's triad `a ← b + s c` on all cores, on arrays of 256 MiB: bytes per second, counting
/// the two reads and the write as STREAM does.
fn time_triad(repeats: usize) -> Value {
    const LENGTH: usize = 1 << 25;
    /// Elements that a core works on at a time.
    const SHARE: usize = 1 << 16;
    let (b, c) = (vec![1.0f64; LENGTH], vec![2.0f64; LENGTH]);
    let mut a = vec![0.0f64; LENGTH];
    let mut rates = Vec::new();
    for _ in 0..=repeats {
        let start = Instant::now();
        let inputs = b.par_chunks(SHARE).zip(c.par_chunks(SHARE));
        a.par_chunks_mut(SHARE).zip(inputs).for_each(|(a, (b, c))| {
            for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                *a = b + 3.0 * c;
            }
        });
        rates.push(3.0 * 8.0 * LENGTH as f64 / start.elapsed().as_secs_f64());
    }
    assert!(a.iter().all(|&a| a == 7.0));
    json!({ "bytes_per_second": rates[1..] })
}

/// Largest resident memory of this process so far (Linux; `None` elsewhere).
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
