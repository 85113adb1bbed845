//! `simfluence plan --after`: how many runs, and which next?

use crate::cli::{DatasetsArg, DynamicsArgs, EditArgs, FillArg, Format, PlanArgs};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::Serialize;
use simfluence_core::design::{
    DesignKind, DesignSettings, PlannedRun, RunShape, SuiteSettings, draw_edits, draw_plan,
};
use simfluence_core::{Curriculum, EditKind, Progress, Run, RunDesign, Split, Step};
use simfluence_evaluation::RunSelection;
use simfluence_models::{Task, TaskError, TrainingSettings};
use simfluence_recorder::{read_curriculum, read_plan, write_plan};
use simfluence_simulators::optimizer_dynamics::{NextRuns, NextRunsSettings};
use std::collections::HashSet;
use std::path::Path;

/// Diversified curricula among the questions, besides an ordinary one and its edits.
const DIVERSIFIED_QUESTIONS: u32 = 8;
/// Most pairs of datasets kept alone among the questions.
const KEPT_PAIRS: u32 = 6;
/// Seeds of questions and of candidates must not be those of the recorded runs.
const QUESTIONS: u64 = 0x7175_6573_7469_6f6e;
const CANDIDATES: u64 = 0x6361_6e64_6964_6174;
/// Share of a segment's places below which a dataset goes unnamed.
const NAMED_SHARE: f64 = 0.1;

/// What is printed.
#[derive(Debug, Serialize)]
struct Answer {
    file: String,
    training_runs: usize,
    candidates: usize,
    questions: usize,
    unit: &'static str,
    /// Root mean variance of the questions' curves that further runs can remove.
    before: f64,
    runs: Vec<Chosen>,
    /// The same after as many runs of the pool, drawn at random (mean over draws).
    after_random_runs: f64,
    /// After each run that would be chosen next.
    further: Vec<f64>,
    most_uncertain: Uncertain,
}

/// A run that is to be recorded.
#[derive(Debug, Serialize)]
struct Chosen {
    run: String,
    trains_on: String,
    before: f64,
    after: f64,
}

/// A question with what remains of its uncertainty.
#[derive(Debug, Serialize)]
struct Uncertain {
    question: String,
    before: f64,
    after: f64,
}

/// A question: a curriculum with its name.
struct Question {
    name: String,
    curriculum: Curriculum,
}

/// How the curricula of the run set are drawn.
struct Design {
    settings: DesignSettings,
    shape: RunShape,
    /// Whether the recorded runs have learning rates.
    rates: bool,
    datasets: Vec<String>,
    dataset_of: Vec<usize>,
}

/// Runs the subcommand.
pub fn run(args: &PlanArgs, run_set: &Path, progress: &dyn Progress) -> Result<()> {
    if args.pool < args.runs {
        bail!(
            "--pool {} is smaller than --runs {}: draw at least as many candidates as runs are to be chosen from them",
            args.pool,
            args.runs
        );
    }
    let open = OpenRuns::read(run_set, progress)?;
    let mut train = training_runs(&open, &args.train_runs)?;
    let seed = args.seed.unwrap_or(0);
    let given = DynamicsArgs {
        datasets: DatasetsArg::Given,
        ..DynamicsArgs::default()
    };
    let groups = crate::fit::datasets(&open, &train, &given, seed, progress)?;
    // What a run teaches is the correction's, which depends on curricula alone: without the linearised
    // model.
    let simulator = crate::fit::optimizer_dynamics(&groups, &train, None, seed, None, progress)?;
    // What the fit left out (killed at once, diverged) tells nothing about the design either.
    let report = simulator.report();
    train.retain(|run| report.training_runs.contains(&run.id));
    let recorded: Vec<&Curriculum> = train.iter().map(|run| &run.curriculum).collect();
    let design = Design::find(args, &open, &train, report.reference_rate.is_some())?;
    let questions = questions(args, &open, &design)?;
    let candidates = candidates(args, &open, &design)?;
    let further = args.runs.min(args.pool - args.runs) as usize;
    let settings = NextRunsSettings {
        runs: args.runs as usize,
        further,
        seed: args.seed.unwrap_or(0),
        ..NextRunsSettings::default()
    };
    let chosen = simulator.next_runs(
        &recorded,
        &candidates.iter().map(|c| &c.curriculum).collect::<Vec<_>>(),
        &questions.iter().map(|q| &q.curriculum).collect::<Vec<_>>(),
        &settings,
    )?;
    let plan = named(&open, &chosen, &candidates, args)?;
    write_plan(&args.out, &plan)?;
    let answer = answer(args, &chosen, &plan, &design, &questions, recorded.len());
    print(&answer, args, run_set)
}

/// The runs that are learned from: those named; else those designed for training, or all where
/// none was designed for either side.
fn training_runs<'a>(open: &'a OpenRuns, wanted: &[String]) -> Result<Vec<&'a Run>> {
    let chosen: Vec<&Run> = if wanted.is_empty() {
        let side = |run: &&Run| run.info.design.split;
        let designed = open.runs.iter().any(|run| side(&run).is_some());
        (open.runs.iter())
            .filter(|run| !designed || side(run) == Some(Split::Train))
            .collect()
    } else {
        let ids: Vec<&str> = open.runs.iter().map(|r| r.id.as_str()).collect();
        let selected = RunSelection::parse(&wanted.join(","))?.select(&ids)?;
        selected.into_iter().map(|k| &open.runs[k]).collect()
    };
    if chosen.is_empty() {
        bail!(
            "{}: none of its runs is a training run, so that there is nothing to learn from yet; record some first, or name them with --train-runs",
            open.set.path().display()
        );
    }
    Ok(chosen)
}

impl Design {
    /// The design of the task file given or kept; else what the recorded runs tell.
    fn find(args: &PlanArgs, open: &OpenRuns, train: &[&Run], rates: bool) -> Result<Self> {
        let kept = open.set.path().join("task.toml");
        let kept = if kept.exists() {
            Some(Task::load(&kept)?)
        } else {
            None
        };
        let given = match &args.task {
            Some(path) => {
                let task = Task::load(path)?;
                refuse_other_task(&task, path, kept.as_ref(), args, open)?;
                Some(task)
            }
            None => kept,
        };
        let (settings, shape) = match given {
            Some(task) => {
                let training = &task.training;
                let shape = RunShape {
                    steps: training.steps,
                    batch_size: training.batch_size,
                    learning_rate: training.learning_rate,
                    schedule: training.schedule,
                };
                (task.design, shape)
            }
            None => (DesignSettings::default(), recorded_shape(train)),
        };
        let (datasets, dataset_of) = open.set.train_examples().groups("dataset");
        let design = Self {
            settings,
            shape,
            rates,
            datasets,
            dataset_of,
        };
        if design.settings.kind == DesignKind::Ordinary {
            eprintln!(
                "note: the design draws ordinary runs, which differ in little but the order of examples; diversified ones (design.kind) tell datasets apart"
            );
        }
        Ok(design)
    }

    /// Draws curricula with the seeds of the design, of the command and of a purpose.
    fn draw(&self, settings: DesignSettings, seed: u64) -> Result<Vec<PlannedRun>> {
        let mixed = (self.settings.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(seed);
        let settings = DesignSettings {
            seed: mixed,
            ..settings
        };
        let mut drawn = draw_plan(&settings, &self.shape, &self.datasets, &self.dataset_of)?;
        if !self.rates {
            for run in &mut drawn {
                run.curriculum = without_rates(&run.curriculum)?;
            }
        }
        Ok(drawn)
    }
}

/// Fails if a task file is about other examples or another training than the run set.
fn refuse_other_task(
    task: &Task,
    path: &Path,
    kept: Option<&Task>,
    args: &PlanArgs,
    open: &OpenRuns,
) -> Result<()> {
    let refuse = |what: &str| -> Result<()> {
        bail!(
            "{}: {what} not those of {}; give the task file that it was recorded from, or none",
            path.display(),
            open.set.path().display()
        )
    };
    if let Some(kept) = kept {
        let model = |task: &'_ Task| {
            let task = task.clone();
            (task.data, task.tokenizer, task.model, task.trainable)
        };
        if model(kept) != model(task) {
            return refuse(
                "its examples or its model ([data], tokenizer, [model], [trainable]) are",
            );
        }
        let essential = |task: &Task| TrainingSettings {
            threads: 1,
            checkpoint_every: None,
            ..task.training.clone()
        };
        if essential(kept) != essential(task) {
            return refuse("its [training] settings are");
        }
        return Ok(());
    }
    match task.prepare(args.data.as_deref()) {
        Ok(prepared) if prepared.train.keys() == open.set.train_examples().keys() => Ok(()),
        Ok(_) => refuse("its training examples are"),
        // The examples are in the run set; the design needs no more.
        Err(TaskError::NoDataPath { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Steps, batch size and learning rate as recorded: medians over the training runs.
fn recorded_shape(train: &[&Run]) -> RunShape {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let peak = |run: &&Run| {
        let rates = run
            .curriculum
            .steps()
            .iter()
            .filter_map(|s| s.learning_rate);
        f64::from(rates.fold(0.0_f32, f32::max))
    };
    let steps = |run: &&Run| run.curriculum.len() as f64;
    let batch = |run: &&Run| {
        let steps = run.curriculum.steps();
        median(steps.iter().map(|s| s.batch.len() as f64).collect())
    };
    let rate = median(train.iter().map(peak).collect());
    RunShape {
        steps: median(train.iter().map(steps).collect()) as u32,
        batch_size: median(train.iter().map(batch).collect()) as u32,
        learning_rate: if rate > 0.0 { rate } else { 1.0 },
        schedule: (train.iter())
            .find_map(|run| run.info.schedule)
            .unwrap_or_default(),
    }
}

fn without_rates(curriculum: &Curriculum) -> Result<Curriculum> {
    let steps = curriculum.steps().iter().map(|step| Step {
        learning_rate: None,
        ..step.clone()
    });
    Ok(Curriculum::new(steps.collect(), usize::MAX)?)
}

/// One question of the command line, in the syntax of `whatif`.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Edited {
    #[command(flatten)]
    edits: EditArgs,
}

/// The questions asked for; else an ordinary run, its edits as in the counterfactual suite, and
/// diversified runs.
fn questions(args: &PlanArgs, open: &OpenRuns, design: &Design) -> Result<Vec<Question>> {
    let seed = args.seed.unwrap_or(0).wrapping_add(QUESTIONS);
    let drawn = design.draw(
        DesignSettings {
            runs: 0,
            ordinary: 0,
            held_out: DIVERSIFIED_QUESTIONS,
            held_out_ordinary: 1,
            suite: SuiteSettings {
                bases: 0,
                ..design.settings.suite.clone()
            },
            kind: DesignKind::Diversified,
            ..design.settings.clone()
        },
        seed,
    )?;
    let ordinary = drawn.last().expect("an ordinary run is drawn").clone();
    let base = match &args.base {
        Some(id) => PlannedRun {
            id: id.clone(),
            curriculum: open.run(id)?.curriculum.clone(),
            ..ordinary
        },
        None => PlannedRun {
            id: "ordinary".to_owned(),
            ..ordinary
        },
    };
    if !args.question.is_empty() {
        let asked = args.question.iter();
        return asked.map(|q| asked_for(q, &base, open, args)).collect();
    }
    let mut suite = design.settings.suite.clone();
    suite.kept_pairs = KEPT_PAIRS;
    if !design.rates {
        suite.kinds.retain(|&kind| kind != EditKind::LearningRate);
    }
    let (datasets, dataset_of) = (&design.datasets, &design.dataset_of);
    let edits = draw_edits(&suite, &base, datasets, dataset_of, seed)?;
    let mut questions = vec![Question {
        name: base.id.clone(),
        curriculum: base.curriculum.clone(),
    }];
    questions.extend(edits.into_iter().map(|run| Question {
        name: format!(
            "{}, {}",
            base.id,
            run.design.edit.map(|edit| edit.label).unwrap_or_default()
        ),
        curriculum: run.curriculum,
    }));
    let diversified = drawn.into_iter().take(DIVERSIFIED_QUESTIONS as usize);
    questions.extend((1..).zip(diversified).map(|(k, run)| Question {
        name: format!("diversified {k}"),
        curriculum: run.curriculum,
    }));
    Ok(questions)
}

/// A question of the command line: a curriculum file, or edits of the base run.
fn asked_for(text: &str, base: &PlannedRun, open: &OpenRuns, args: &PlanArgs) -> Result<Question> {
    let path = Path::new(text);
    if path.exists() {
        let curriculum = read_curriculum(path, open.train_count())?;
        let name = text.to_owned();
        return Ok(Question { name, curriculum });
    }
    let in_question = || {
        format!(
            "--question {text:?}: write edits as `whatif` has them, such as \"--drop dataset:NAME\" or \"--repeat NAME=3 --learning-rate 0.5\", or name a curriculum file"
        )
    };
    let edits = Edited::try_parse_from(words(text))
        .map_err(|error| {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            anyhow::anyhow!("{}", first.trim_start_matches("error: ").to_owned())
        })
        .with_context(in_question)?
        .edits;
    let edits = crate::edits::parse(&edits, open.set.train_examples())
        .with_context(|| format!("--question {text:?}"))?;
    let labels: Vec<&str> = edits.iter().map(|edit| edit.label.as_str()).collect();
    let name = format!("{}, {}", base.id, labels.join("; "));
    let seed = args.seed.unwrap_or(0);
    let curriculum = crate::edits::apply_all(&base.curriculum, &edits, FillArg::Resample, seed)
        .with_context(|| format!("--question {text:?}"))?;
    Ok(Question { name, curriculum })
}

/// The words of a text; quotes hold words with spaces together.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Fresh curricula of the design's training runs; none that was recorded.
fn candidates(args: &PlanArgs, open: &OpenRuns, design: &Design) -> Result<Vec<PlannedRun>> {
    // More runs recorded, another pool: what was chosen before is not drawn again.
    let seed = (args.seed.unwrap_or(0).wrapping_add(CANDIDATES))
        .wrapping_add((open.runs.len() as u64).wrapping_mul(0x1_0000_0001));
    let mut drawn = design.draw(
        DesignSettings {
            runs: args.pool,
            ordinary: 0,
            held_out: 0,
            held_out_ordinary: 0,
            suite: SuiteSettings {
                bases: 0,
                ..design.settings.suite.clone()
            },
            ..design.settings.clone()
        },
        seed,
    )?;
    drawn.retain(|run| open.runs.iter().all(|r| r.curriculum != run.curriculum));
    Ok(drawn)
}

/// The chosen candidates as a plan, with ids that are not taken yet.
fn named(
    open: &OpenRuns,
    chosen: &NextRuns,
    candidates: &[PlannedRun],
    args: &PlanArgs,
) -> Result<Vec<PlannedRun>> {
    let mut taken: HashSet<String> = open.set.run_ids()?.into_iter().collect();
    let kept = open.set.path().join("plan.parquet");
    if kept.exists() {
        let planned = read_plan(&kept, open.train_count())?;
        taken.extend(planned.into_iter().map(|run| run.id));
    }
    let number = |id: &String| id.strip_prefix("train-")?.parse::<u32>().ok();
    let next = taken.iter().filter_map(number).max().map_or(0, |n| n + 1);
    let picks = chosen.picks.iter().take(args.runs as usize);
    Ok((next..)
        .zip(picks)
        .map(|(number, pick)| {
            let run = &candidates[pick.candidate];
            PlannedRun {
                id: format!("train-{number:03}"),
                design: RunDesign {
                    split: Some(Split::Train),
                    ..run.design.clone()
                },
                ..run.clone()
            }
        })
        .collect())
}

fn answer(
    args: &PlanArgs,
    chosen: &NextRuns,
    plan: &[PlannedRun],
    design: &Design,
    questions: &[Question],
    training_runs: usize,
) -> Answer {
    let mut before = chosen.before();
    let mut runs = Vec::new();
    for (run, pick) in plan.iter().zip(&chosen.picks) {
        let after = pick.after();
        runs.push(Chosen {
            run: run.id.clone(),
            trains_on: trains_on(&run.curriculum, design),
            before,
            after,
        });
        before = after;
    }
    let last = &chosen.picks[plan.len() - 1].questions;
    let worst = (0..last.len())
        .max_by(|&a, &b| last[a].total_cmp(&last[b]))
        .expect("there is a question");
    Answer {
        file: args.out.display().to_string(),
        training_runs,
        candidates: chosen.candidates,
        questions: questions.len(),
        unit: "nats per target token",
        before: chosen.before(),
        runs,
        after_random_runs: chosen.random,
        further: chosen.picks[plan.len()..]
            .iter()
            .map(|p| p.after())
            .collect(),
        most_uncertain: Uncertain {
            question: questions[worst].name.clone(),
            before: chosen.questions[worst],
            after: last[worst],
        },
    }
}

/// What a curriculum trains on, in words: segments with the datasets that make most of them.
fn trains_on(curriculum: &Curriculum, design: &Design) -> String {
    let segments = segments(curriculum, &design.dataset_of, design.datasets.len());
    let mut words: Vec<String> = Vec::new();
    for (steps, shares) in segments {
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        let named: Vec<String> = (order.into_iter())
            .filter(|&d| shares[d] >= NAMED_SHARE)
            .map(|d| format!("{} {:.0} %", design.datasets[d], 100.0 * shares[d]))
            .collect();
        words.push(format!("{steps} steps of {}", named.join(", ")));
    }
    let rates: Option<Vec<f32>> = curriculum.steps().iter().map(|s| s.learning_rate).collect();
    let rate = rates.map_or(String::new(), |rates| {
        let peak = rates.iter().copied().fold(0.0_f32, f32::max);
        let last = rates.last().copied().unwrap_or(peak);
        let falls = if last < 0.9 * peak { ", falling" } else { "" };
        format!("; rate {peak:.2e}{falls}")
    });
    format!("{}{rate}", words.join(" → "))
}

/// Cuts a curriculum where its mixture of datasets changes: the segments, with their number of
/// steps and the share of each dataset, of the most likely multinomial mixtures, a segment more
/// costing as much as in the Bayesian information criterion.
fn segments(
    curriculum: &Curriculum,
    dataset_of: &[usize],
    datasets: usize,
) -> Vec<(usize, Vec<f64>)> {
    /// Cells that a long curriculum is looked at in.
    const CELLS: usize = 96;
    let steps = curriculum.steps();
    let cells = steps.len().min(CELLS);
    let bound = |cell: usize| cell * steps.len() / cells;
    let mut sums = vec![vec![0.0; datasets]];
    let mut places = 0.0;
    for cell in 0..cells {
        let mut sum = sums[cell].clone();
        for step in &steps[bound(cell)..bound(cell + 1)] {
            places += step.batch.len() as f64;
            for (example, share) in step.exposures() {
                sum[dataset_of[example as usize]] += share * step.batch.len() as f64;
            }
        }
        sums.push(sum);
    }
    let counts = |from: usize, to: usize| -> Vec<f64> {
        (sums[to].iter().zip(&sums[from]))
            .map(|(b, a)| b - a)
            .collect()
    };
    let cost = |from: usize, to: usize| -> f64 {
        let counts = counts(from, to);
        let all: f64 = counts.iter().sum();
        let surprise = |n: &f64| if *n > 0.0 { -n * (n / all).ln() } else { 0.0 };
        counts.iter().map(surprise).sum()
    };
    let price = 0.5 * datasets as f64 * places.ln();
    let mut best = vec![(0.0, 0); cells + 1];
    for to in 1..=cells {
        best[to] = (0..to)
            .map(|from| (best[from].0 + cost(from, to) + price, from))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there is a cell before");
    }
    let mut segments = Vec::new();
    let mut to = cells;
    while to > 0 {
        let from = best[to].1;
        let counts = counts(from, to);
        let all: f64 = counts.iter().sum();
        let shares = counts.iter().map(|n| n / all).collect();
        segments.push((bound(to) - bound(from), shares));
        to = from;
    }
    segments.reverse();
    segments
}

fn print(answer: &Answer, args: &PlanArgs, run_set: &Path) -> Result<()> {
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(answer)?),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(std::io::stdout());
            for run in &answer.runs {
                writer.serialize(run)?;
            }
            writer.flush()?;
        }
        Format::Table => print_table(answer, args, run_set),
    }
    Ok(())
}

fn print_table(answer: &Answer, args: &PlanArgs, run_set: &Path) {
    println!(
        "{}: {} runs chosen of {} candidates, after {} training runs; questions: {}\n",
        answer.file,
        answer.runs.len(),
        answer.candidates,
        answer.training_runs,
        answer.questions
    );
    println!(
        "Expected uncertainty of the questions (root mean variance that runs can remove, nats): {:.4}",
        answer.before
    );
    for run in &answer.runs {
        println!(
            "  {}: {:.4} after it ({:+.1} %)\n    {}",
            run.run,
            run.after,
            100.0 * (run.after / run.before - 1.0),
            run.trains_on
        );
    }
    let count = answer.runs.len();
    println!(
        "As many runs of the pool drawn at random: {:.4} (mean)",
        answer.after_random_runs
    );
    if !answer.further.is_empty() {
        let further: Vec<String> = answer.further.iter().map(|u| format!("{u:.4}")).collect();
        println!(
            "Recording further, the next {} would bring it to {}",
            further.len(),
            further.join(", ")
        );
    }
    let worst = &answer.most_uncertain;
    println!(
        "Most uncertain question after {count} runs: {} ({:.4}, now {:.4})",
        worst.question, worst.after, worst.before
    );
    let task = match &args.task {
        Some(path) => path.display().to_string(),
        None => run_set.join("task.toml").display().to_string(),
    };
    let data =
        (args.data.as_ref()).map_or(String::new(), |path| format!(" --data {}", path.display()));
    if args.task.is_some() || run_set.join("task.toml").exists() {
        println!(
            "Record them with: simfluence record {task}{data} --plan {} --out {}",
            answer.file,
            run_set.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(
            words("--drop 'dataset:Sci Tech'  --repeat \"a b\"=3"),
            ["--drop", "dataset:Sci Tech", "--repeat", "a b=3"]
        );
        assert_eq!(words("  "), Vec::<String>::new());
    }

    #[test]
    fn a_curriculum_is_cut_where_its_mixture_changes() {
        let batch = |first: bool| {
            if first {
                vec![0, 0, 0, 1]
            } else {
                vec![1, 1, 1, 1]
            }
        };
        let steps = (0..40).map(|t| Step::new(batch(t < 25), None)).collect();
        let curriculum = Curriculum::new(steps, 2).unwrap();
        let found = segments(&curriculum, &[0, 1], 2);
        assert_eq!(found, [(25, vec![0.75, 0.25]), (15, vec![0.0, 1.0])]);
        let one = Curriculum::new(vec![Step::new(vec![0, 1], None); 300], 2).unwrap();
        assert_eq!(segments(&one, &[0, 1], 2), [(300, vec![0.5, 0.5])]);
    }
}
