//! `simfluence plan`: draw the curricula of a run set as a file.

use crate::cli::{Format, PlanArgs};
use anyhow::{Context, Result};
use serde::Serialize;
use simfluence_core::Progress;
use simfluence_models::Task;
use simfluence_recorder::write_plan;
use std::collections::BTreeMap;

/// What is printed.
#[derive(Debug, Serialize)]
struct Answer {
    file: String,
    runs: usize,
    steps: u32,
    training_examples: usize,
    kinds: BTreeMap<String, usize>,
}

/// Runs the subcommand.
pub fn run(args: &PlanArgs, progress: &dyn Progress) -> Result<()> {
    if let Some(run_set) = &args.after {
        return crate::next_runs::run(args, run_set, progress);
    }
    let task = args.task.as_ref().context("name a task file")?;
    let task = Task::load(task)?;
    let prepared = task.prepare(args.data.as_deref())?;
    let plan = task.plan(&prepared.train)?;
    write_plan(&args.out, &plan)?;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for run in &plan {
        let kind = match &run.design.edit {
            Some(edit) => format!("suite: {}", edit.kind),
            None if run.id.starts_with("train") => format!("training, {}", run.design.design),
            None => format!("held out, {}", run.design.design),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    print(
        &Answer {
            file: args.out.display().to_string(),
            runs: plan.len(),
            steps: task.training.steps,
            training_examples: prepared.train.len(),
            kinds,
        },
        args.format,
    )
}

fn print(answer: &Answer, format: Format) -> Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(answer)?),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(std::io::stdout());
            writer.write_record(["kind", "runs"])?;
            for (kind, count) in &answer.kinds {
                writer.write_record([kind, &count.to_string()])?;
            }
            writer.flush()?;
        }
        Format::Table => {
            println!(
                "{}: {} runs of {} steps over {} training examples",
                answer.file, answer.runs, answer.steps, answer.training_examples
            );
            for (kind, count) in &answer.kinds {
                println!("  {count:3}  {kind}");
            }
        }
    }
    Ok(())
}
