//! `simfluence check`: is this run set whole, and what is in it?

use crate::cli::{CheckArgs, Format};
use anyhow::{Context, Result, bail};
use simfluence_core::{Run, RunStatus};
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
        println!("  whole: every file was read and checked");
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
    let mut infos = Vec::new();
    for id in set.run_ids()? {
        let info = set.read_info(&id)?;
        if info.status == RunStatus::Complete && info.design.edit.is_none() {
            infos.push((id, info.design.design == "ordinary"));
        }
    }
    let any_ordinary = infos.iter().any(|(_, ordinary)| *ordinary);
    infos.retain(|(_, ordinary)| *ordinary || !any_ordinary);
    let mut worst: f64 = 0.0;
    for (id, _) in &infos {
        let run = set.read_run(id)?;
        let (before, after) = mean_losses(&run)?;
        let ratio = after / before;
        println!("  learning: {id}: mean test loss {before:.3} → {after:.3} ({ratio:.2}×)");
        worst = worst.max(ratio);
    }
    if infos.is_empty() || worst > 1.0 - share {
        bail!(
            "fine-tuning does not lower the mean test loss by {:.0} % in {}: without learning every comparison is noise. Pre-train the base model longer, or raise training.learning_rate or training.steps, and record again",
            100.0 * share,
            args.run_set.display()
        );
    }
    Ok(())
}

fn mean_losses(run: &Run) -> Result<(f64, f64)> {
    let mean =
        |losses: &[f32]| losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    let initial = run.trajectory.initial();
    let before = initial.with_context(|| format!("run {} has no losses before step 1", run.id))?;
    let last = run.trajectory.last().unwrap_or(before);
    Ok((mean(before), mean(last)))
}
