//! `simfluence check`: is this run set whole, and what is in it?

use crate::cli::{CheckArgs, Format};
use anyhow::{Context, Result, bail};
use simfluence_core::{Examples, Run, RunStatus};
use simfluence_recorder::{CheckReport, RunSet, check};
use std::collections::BTreeMap;
use std::fmt::Display;

/// Runs the subcommand.
pub fn run(args: &CheckArgs) -> Result<()> {
    let report = check(&args.run_set)?;
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Csv => print_csv(&report)?,
        Format::Table => print(&report),
    }
    if !report.is_whole() {
        bail!(
            "{}: {} problem(s), listed above",
            args.run_set.display(),
            report.problems.len()
        );
    }
    match args.learned {
        Some(share) => require_learning(args, share),
        None => Ok(()),
    }
}

fn print(report: &CheckReport) {
    println!("{}", report.path.display());
    println!(
        "  training examples  {}",
        with_parts(report.train_examples, &report.train_datasets)
    );
    println!(
        "  test examples      {}",
        with_parts(report.test_examples, &report.test_datasets)
    );
    println!("  runs               {}", report.runs.len());
    for (title, counts) in [
        ("status", &report.by_status),
        ("design", &report.by_design),
        ("split", &report.by_split),
        ("edits", &report.by_edit),
        ("optimiser", &report.by_optimizer),
    ] {
        if !counts.is_empty() {
            println!("    {title:16} {}", listed(counts));
        }
    }
    if let Some(steps) = &report.steps {
        println!("  steps per run      {}", range(steps.min, steps.max));
    }
    if let Some(rate) = &report.learning_rate {
        println!("  learning rates     {}", range(rate.min, rate.max));
    }
    for warning in &report.warnings {
        println!("  note: {warning}");
    }
    for problem in &report.problems {
        println!("  PROBLEM: {}", problem.message);
    }
    if report.is_whole() {
        println!("  whole: every table and checkpoint was read and checked");
    }
}

fn print_csv(report: &CheckReport) -> Result<()> {
    let mut writer = csv::Writer::from_writer(std::io::stdout());
    writer.write_record([
        "run",
        "status",
        "design",
        "split",
        "edit",
        "steps",
        "evaluations",
    ])?;
    for run in &report.runs {
        writer.write_record([
            run.id.as_str(),
            &run.status.to_string(),
            &run.design,
            run.split.unwrap_or(""),
            run.edit.unwrap_or(""),
            &run.steps.to_string(),
            &run.evaluations.to_string(),
        ])?;
    }
    Ok(writer.flush()?)
}

fn with_parts(total: usize, parts: &[(String, usize)]) -> String {
    let listed: Vec<String> = parts
        .iter()
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    format!("{total} ({})", listed.join(", "))
}

fn listed(counts: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = counts
        .iter()
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    parts.join(", ")
}

fn range<T: PartialEq + Display>(min: T, max: T) -> String {
    if min == max {
        min.to_string()
    } else {
        format!("{min} to {max}")
    }
}

/// Fails unless the mean test loss fell to at most `1 − share` of what it was in the unedited runs
/// that the most is expected of: ordinary ones, or all complete ones where there are none.
fn require_learning(args: &CheckArgs, share: f64) -> Result<()> {
    let set = RunSet::open(&args.run_set)?;
    let (mut infos, mut diverged) = (Vec::new(), Vec::new());
    for id in set.run_ids()? {
        let info = set.read_info(&id)?;
        if info.status == RunStatus::Diverged && info.design.edit.is_none() {
            diverged.push(id.clone());
        }
        if info.status == RunStatus::Complete && info.design.edit.is_none() {
            infos.push((id, info.design.design == "ordinary"));
        }
    }
    let followed = followed_tests(args, set.test_examples())?;
    let any_ordinary = infos.iter().any(|(_, ordinary)| *ordinary);
    infos.retain(|(_, ordinary)| *ordinary || !any_ordinary);
    let mut learned = !infos.is_empty();
    for (id, _) in &infos {
        let run = set.read_run(id)?;
        let (before, after) = mean_losses(&run, &followed)?;
        let ratio = after / before;
        let line = format!("learning: {id}: mean test loss {before:.3} → {after:.3} ({ratio:.2}×)");
        match args.format {
            Format::Table => println!("  {line}"),
            // Standard output is one document there.
            Format::Json | Format::Csv => eprintln!("{line}"),
        }
        // False for NaN too.
        learned &= ratio <= 1.0 - share;
    }
    if !diverged.is_empty() && (infos.is_empty() || !learned) {
        bail!(
            "{} run(s) diverged in {}, {} the first: lower training.learning_rate and record again",
            diverged.len(),
            args.run_set.display(),
            diverged[0]
        );
    }
    if !learned {
        bail!(
            "fine-tuning does not lower the mean test loss by {:.0} % in {}: without learning every comparison is noise. Pre-train the base model longer, or raise training.learning_rate or training.steps, and record again",
            100.0 * share,
            args.run_set.display()
        );
    }
    Ok(())
}

/// The test examples of the datasets asked for; all where none is.
fn followed_tests(args: &CheckArgs, test: &Examples) -> Result<Vec<usize>> {
    let (names, dataset_of) = test.groups("dataset");
    if let Some(unknown) = args.learned_on.iter().find(|name| !names.contains(name)) {
        bail!(
            "--learned-on: {} has no test dataset {unknown:?}; there are: {}",
            args.run_set.display(),
            names.join(", ")
        );
    }
    let asked = |dataset: usize| args.learned_on.contains(&names[dataset]);
    Ok((0..test.len())
        .filter(|&j| args.learned_on.is_empty() || asked(dataset_of[j]))
        .collect())
}

/// Mean loss before the first step and at the last evaluation, over those of the followed test
/// examples that were measured at both.
fn mean_losses(run: &Run, followed: &[usize]) -> Result<(f64, f64)> {
    let losses = &run.trajectory;
    let first = losses
        .index_of(0)
        .with_context(|| format!("run {} has no losses before step 1", run.id))?;
    let last = losses.steps().len() - 1;
    let both: Vec<(f64, f64)> = followed
        .iter()
        .filter_map(|&test| {
            let (before, after) = (losses.get(first, test)?, losses.get(last, test)?);
            Some((f64::from(before), f64::from(after)))
        })
        .collect();
    if both.is_empty() {
        bail!(
            "run {}: no test example was measured both before step 1 and at the last evaluation",
            run.id
        );
    }
    let count = both.len() as f64;
    let (before, after) = both
        .iter()
        .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    Ok((before / count, after / count))
}
