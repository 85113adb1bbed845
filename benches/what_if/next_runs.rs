//! Would the runs that `plan --after` chooses have taught more than as many drawn at random?
//!
//! `next_runs STARTS DRAWS RUN_SET…`: of the training runs of each run set 6 are drawn (STARTS
//! times); the 4 and the 8 next ones are chosen among the others, without a look at their losses,
//! and drawn at random (DRAWS times). optimizer-dynamics is fitted on each and judged by the
//! all-steps MSE on held-out runs and edits. The questions are those that `plan --after` asks by
//! default, drawn anew: the judging curricula are not known to the choice. Prints a Markdown table,
//! and to standard error every choice.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use simfluence::core::design::{
    DesignKind, DesignSettings, PlannedRun, RunShape, SuiteSettings, draw_edits, draw_plan,
};
use simfluence::core::{Curriculum, Fit, NoProgress, Run};
use simfluence::evaluation::{
    SplitRuns, SplitSettings, all_steps_errors, simulate_run, split_runs,
};
use simfluence::models::Task;
use simfluence::recorder::RunSet;
use simfluence::simulators::optimizer_dynamics::{
    NextRunsSettings, OptimizerDynamicsParams, OptimizerDynamicsSimulator,
};
use std::path::Path;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs to start from.
const START: usize = 6;
/// Runs that are added.
const ADDED: [usize; 2] = [4, 8];
/// Added to the seed of the design, so that questions are not the judging runs.
const QUESTIONS: u64 = 0x5eed;

/// Mean all-steps MSE per kind of judging run.
type Errors = Vec<(String, f64)>;

/// One start: errors from it, and for every number of added runs those of the choice and of each
/// random draw.
struct Outcome {
    start: Errors,
    chosen: Vec<Errors>,
    random: Vec<Vec<Errors>>,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [starts, draws, folders @ ..] = &arguments[..] else {
        return Err("usage: next_runs STARTS DRAWS RUN_SET…".into());
    };
    let (starts, draws) = (starts.parse()?, draws.parse()?);
    println!(
        "| run set | added to {START} | MSE held-out: before, chosen, random | MSE suite: before, chosen, random | chosen over random [mean ± 2 s.e. over {starts} starts] | spread of one random draw | random draws beaten |"
    );
    println!("| --- | ---: | --- | --- | ---: | ---: | ---: |");
    let mut all = vec![Vec::new(); ADDED.len()];
    for folder in folders {
        let outcomes = run_set(Path::new(folder), starts, draws)?;
        for (k, added) in ADDED.into_iter().enumerate() {
            let ratios = row(folder, added, k, &outcomes);
            all[k].extend(ratios);
        }
    }
    for (added, ratios) in ADDED.into_iter().zip(&all) {
        println!("| all | {added} | | | {} | | |", geometric(ratios));
    }
    Ok(())
}

/// Prints a row; gives the logarithm of chosen over random for every start.
fn row(folder: &str, added: usize, k: usize, outcomes: &[Outcome]) -> Vec<f64> {
    let mean = |errors: &[&Errors], held_out: bool| {
        let of_side = |e: &&&Errors| -> f64 {
            let side: Vec<f64> = (e.iter())
                .filter(|(kind, _)| kind.starts_with("held-out") == held_out)
                .map(|(_, mse)| *mse)
                .collect();
            side.iter().sum::<f64>() / side.len() as f64
        };
        errors.iter().map(|e| of_side(&e)).sum::<f64>() / errors.len() as f64
    };
    let side = |held_out| {
        let start: Vec<&Errors> = outcomes.iter().map(|o| &o.start).collect();
        let chosen: Vec<&Errors> = outcomes.iter().map(|o| &o.chosen[k]).collect();
        let random: Vec<&Errors> = outcomes.iter().flat_map(|o| &o.random[k]).collect();
        let [start, chosen, random] = [start, chosen, random].map(|e| mean(&e, held_out));
        format!("{start:.4}, {chosen:.4}, {random:.4}")
    };
    let (mut ratios, mut spread, mut beaten, mut draws) = (Vec::new(), 0.0, 0.0, 0.0);
    for outcome in outcomes {
        let random = &outcome.random[k];
        let score = |errors: &Errors| log_ratio(errors, random);
        let chosen = score(&outcome.chosen[k]);
        ratios.push(chosen);
        for draw in random {
            let drawn = score(draw);
            spread += drawn * drawn;
            beaten += f64::from(u8::from(chosen < drawn));
            draws += 1.0;
        }
    }
    let name = Path::new(folder);
    println!(
        "| {} | {added} | {} | {} | {} | {:.2} | {:.0} % |",
        name.iter()
            .rev()
            .take(2)
            .map(|p| p.to_string_lossy())
            .collect::<Vec<_>>()
            .join(", "),
        side(true),
        side(false),
        geometric(&ratios),
        (spread / draws).sqrt().exp(),
        100.0 * beaten / draws
    );
    ratios
}

/// The mean logarithm over kinds of the error over the mean error of random draws.
fn log_ratio(errors: &Errors, random: &[Errors]) -> f64 {
    let of_kind = |k: usize| {
        let mean = random.iter().map(|draw| draw[k].1).sum::<f64>() / random.len() as f64;
        (errors[k].1 / mean).ln()
    };
    (0..errors.len()).map(of_kind).sum::<f64>() / errors.len() as f64
}

/// Geometric mean with two standard errors.
fn geometric(logs: &[f64]) -> String {
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let error = 2.0 * (variance / count).sqrt();
    format!(
        "{:.3} [{:.3}, {:.3}]",
        mean.exp(),
        (mean - error).exp(),
        (mean + error).exp()
    )
}

fn run_set(folder: &Path, starts: u64, draws: u64) -> Result<Vec<Outcome>, Failure> {
    let set = RunSet::open(folder)?;
    let task = Task::load(&folder.join("task.toml"))?;
    let runs = set.read_runs(&set.run_ids()?, &NoProgress)?;
    let split = split_runs(&runs, &SplitSettings::default())?;
    let (datasets, dataset_of) = set.train_examples().groups("dataset");
    let groups: Vec<u32> = dataset_of.iter().map(|&g| g as u32).collect();
    let questions = questions(&task, &datasets, &dataset_of)?;
    let mut outcomes = Vec::new();
    for start in 0..starts {
        let mut order: Vec<&Run> = split.train.clone();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(start));
        let (first, others) = order.split_at(START);
        let simulator = fit(&groups, first)?;
        let settings = NextRunsSettings {
            runs: ADDED[ADDED.len() - 1],
            further: 0,
            draws: 0,
            ..NextRunsSettings::default()
        };
        let next = simulator.next_runs(
            &curricula(first),
            &curricula(others),
            &questions
                .iter()
                .map(|run| &run.curriculum)
                .collect::<Vec<_>>(),
            &settings,
        )?;
        let picked: Vec<&Run> = next.picks.iter().map(|p| others[p.candidate]).collect();
        let after: Vec<String> = next
            .picks
            .iter()
            .map(|p| format!("{:.3}", p.after()))
            .collect();
        let ids: Vec<&str> = picked.iter().map(|run| run.id.as_str()).collect();
        eprintln!(
            "{}, start {start}: uncertainty {:.3}, after {ids:?}: {}",
            folder.display(),
            next.before(),
            after.join(", ")
        );
        let judged = |added: &[&Run]| -> Result<Errors, Failure> {
            errors(&fit(&groups, &[first, added].concat())?, &split)
        };
        let by_count = |order: &[&Run]| -> Result<Vec<Errors>, Failure> {
            ADDED.iter().map(|&count| judged(&order[..count])).collect()
        };
        let mut random = vec![Vec::new(); ADDED.len()];
        for draw in 0..draws {
            let mut order = others.to_vec();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(1_000 * (start + 1) + draw));
            for (all, errors) in random.iter_mut().zip(by_count(&order)?) {
                all.push(errors);
            }
        }
        outcomes.push(Outcome {
            start: errors(&simulator, &split)?,
            chosen: by_count(&picked)?,
            random,
        });
    }
    Ok(outcomes)
}

/// An ordinary run with its edits and diversified runs, none of them recorded.
fn questions(
    task: &Task,
    datasets: &[String],
    dataset_of: &[usize],
) -> Result<Vec<PlannedRun>, Failure> {
    let shape = RunShape {
        steps: task.training.steps,
        batch_size: task.training.batch_size,
        learning_rate: task.training.learning_rate,
        schedule: task.training.schedule,
    };
    let seed = task.design.seed + QUESTIONS;
    let suite = SuiteSettings {
        bases: 0,
        kept_pairs: 6,
        ..task.design.suite.clone()
    };
    let design = DesignSettings {
        runs: 0,
        held_out: 8,
        held_out_ordinary: 1,
        kind: DesignKind::Diversified,
        suite: suite.clone(),
        seed,
        ..task.design.clone()
    };
    let mut questions = draw_plan(&design, &shape, datasets, dataset_of)?;
    let base = questions[questions.len() - 1].clone();
    questions.extend(draw_edits(&suite, &base, datasets, dataset_of, seed)?);
    Ok(questions)
}

fn curricula<'a>(runs: &[&'a Run]) -> Vec<&'a Curriculum> {
    runs.iter().map(|run| &run.curriculum).collect()
}

fn fit(groups: &[u32], train: &[&Run]) -> Result<OptimizerDynamicsSimulator, Failure> {
    let params = OptimizerDynamicsParams::new(groups.to_vec()).check()?;
    Ok(params.fit(train, groups.len(), &NoProgress)?)
}

fn errors(
    simulator: &OptimizerDynamicsSimulator,
    split: &SplitRuns<'_>,
) -> Result<Errors, Failure> {
    let held_out =
        (split.held_out.iter()).map(|run| (format!("held-out {}", run.info.design.design), *run));
    let edits = (split.suite.iter()).map(|pair| (pair.kind.name().to_owned(), pair.edited));
    let judged: Vec<(String, &Run)> = held_out.chain(edits).collect();
    let each = judged
        .par_iter()
        .map(|(kind, run)| -> Result<(&str, f64), Failure> {
            let simulated = simulate_run(simulator, run)?;
            let errors = all_steps_errors(&run.trajectory, &simulated);
            let mse = errors.ok_or("a judging run has no losses")?.mse;
            Ok((kind.as_str(), mse))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut kinds: Vec<&str> = each.iter().map(|(kind, _)| *kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mean = |kind: &str| {
        let of: Vec<f64> = (each.iter())
            .filter(|(k, _)| *k == kind)
            .map(|(_, mse)| *mse)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    Ok(kinds
        .into_iter()
        .map(|kind| (kind.to_owned(), mean(kind)))
        .collect())
}
