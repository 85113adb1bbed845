//! `simfluence compare --learning-curve`: accuracy against the number of training runs.

use crate::cli::{CompareArgs, CompareMethod, FitMethod, Format};
use crate::linearise::{self, Where};
use crate::runs::OpenRuns;
use anyhow::{Result, bail};
use comfy_table::{CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use simfluence_core::{Fit, NoProgress, Progress, Run, Simulator};
use simfluence_evaluation::{CompareSettings, Method, SplitRuns, compare};
use simfluence_simulators::baselines::FitMeanRun;
use simfluence_simulators::simfluence::Variant;

/// One method on one kind of runs, learned from so many training runs.
#[derive(Debug, Serialize)]
struct Point {
    training_runs: usize,
    method: String,
    block: String,
    mse: Option<f64>,
    effect_r2: Option<f64>,
}

/// Fits on more and more training runs, drawn with the seed, the smaller draws within the larger
/// ones, and prints the error of each.
pub fn run(
    args: &CompareArgs,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let is_fitted = |m: &&CompareMethod| matches!(m, CompareMethod::Fitted(_) | CompareMethod::All);
    if !args.methods.iter().all(|method| is_fitted(&method)) {
        bail!("--learning-curve shows what `fit` learns from runs; name only such --methods");
    }
    let mut order: Vec<&Run> = split.train.clone();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(args.split.seed));
    let mut points = Vec::new();
    for &count in &args.learning_curve {
        let count = count as usize;
        if count > order.len() {
            bail!(
                "--learning-curve {count}: there are {} training runs",
                order.len()
            );
        }
        points.extend(at(args, open, split, &order[..count], progress)?);
    }
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&points)?),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(std::io::stdout());
            for point in &points {
                writer.serialize(point)?;
            }
            writer.flush()?;
        }
        Format::Table => print(&points),
    }
    Ok(())
}

fn at(
    args: &CompareArgs,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    train: &[&Run],
    progress: &dyn Progress,
) -> Result<Vec<Point>> {
    let wants = |method| {
        args.methods.is_empty()
            || args.methods.contains(&CompareMethod::All)
            || args.methods.contains(&CompareMethod::Fitted(method))
    };
    let at = Where {
        device: &args.device,
        memory: args.memory_limit,
    };
    let mut simulators: Vec<Box<dyn Simulator>> = vec![Box::new(FitMeanRun.fit(
        train,
        open.train_count(),
        &NoProgress,
    )?)];
    if wants(FitMethod::OptimizerDynamics) {
        let seed = args.split.seed;
        let groups = crate::fit::datasets(open, train, &args.dynamics, seed, progress)?;
        let member = linearise::member(open, train, &args.dynamics, at, progress)?;
        let fit = crate::fit::optimizer_dynamics(&groups, train, member, seed, None, progress)?;
        simulators.push(Box::new(fit));
    }
    for (variant, method) in [
        (Variant::Linear, FitMethod::SimfluenceLinear),
        (Variant::Additive, FitMethod::SimfluenceAdditive),
        (Variant::Multiplicative, FitMethod::SimfluenceMultiplicative),
    ] {
        let by_default = method == FitMethod::SimfluenceLinear || !args.methods.is_empty();
        if by_default && wants(method) {
            let fit = crate::fit::with_defaults(variant, open, train, progress)?;
            simulators.push(Box::new(fit));
        }
    }
    let method = CompareMethod::Fitted(FitMethod::Linearised);
    if args.methods.contains(&method) {
        let fit = linearise::fit(open, train, at, progress)?;
        simulators.push(Box::new(fit));
    }
    let methods: Vec<Method> = (simulators.iter())
        .map(|simulator| Method::new(simulator.as_ref()))
        .collect();
    let split = SplitRuns {
        train: train.to_vec(),
        ..split.clone()
    };
    let comparison = compare(&methods, &split, &CompareSettings::default())?;
    let mut points = Vec::new();
    for block in &comparison.blocks {
        for method in &methods {
            let row = block.row(&method.name).expect("every method has a row");
            points.push(Point {
                training_runs: train.len(),
                method: method.name.clone(),
                block: block.name.clone(),
                mse: row.mse.map(|e| e.value),
                effect_r2: row.effect_r2.map(|e| e.value),
            });
        }
    }
    Ok(points)
}

/// A row per method and number of runs, a column per block.
fn print(points: &[Point]) {
    let mut blocks: Vec<&str> = Vec::new();
    let mut rows: Vec<(&str, usize)> = Vec::new();
    for point in points {
        if !blocks.contains(&point.block.as_str()) {
            blocks.push(&point.block);
        }
        let row = (point.method.as_str(), point.training_runs);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows.sort_by_key(|&(method, runs)| {
        let first = points.iter().position(|p| p.method == method);
        (first, runs)
    });
    println!("All-steps MSE (nats²), in brackets R² of the final effect, by training runs\n");
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    let mut heading = vec!["method", "training runs"];
    heading.extend(&blocks);
    table.set_header(heading);
    for (method, runs) in rows {
        let mut cells = vec![method.to_owned(), runs.to_string()];
        for block in &blocks {
            let point = points
                .iter()
                .find(|p| p.method == method && p.training_runs == runs && p.block == *block);
            let number = |value: Option<f64>| value.map_or("n/a".to_owned(), |v| format!("{v:.3}"));
            let mse = number(point.and_then(|p| p.mse));
            cells.push(match point.and_then(|p| p.effect_r2) {
                Some(r2) => format!("{mse} ({r2:.2})"),
                None => mse,
            });
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}
