//! `simfluence plan`: draw the curricula of a run set as a file.

use crate::cli::PlanArgs;
use anyhow::Result;
use simfluence_models::Task;
use simfluence_recorder::write_plan;
use std::collections::BTreeMap;

/// Runs the subcommand.
pub fn run(args: &PlanArgs) -> Result<()> {
    let task = Task::load(&args.task)?;
    let prepared = task.prepare(args.data.as_deref())?;
    let plan = task.plan(&prepared.train)?;
    write_plan(&args.out, &plan)?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for run in &plan {
        let kind = match &run.design.edit {
            Some(edit) => format!("suite: {}", edit.kind),
            None if run.id.starts_with("train") => format!("training, {}", run.design.design),
            None => format!("held out, {}", run.design.design),
        };
        *counts.entry(kind).or_default() += 1;
    }
    println!(
        "{}: {} runs of {} steps over {} training examples",
        args.out.display(),
        plan.len(),
        task.training.steps,
        prepared.train.len()
    );
    for (kind, count) in counts {
        println!("  {count:3}  {kind}");
    }
    Ok(())
}
