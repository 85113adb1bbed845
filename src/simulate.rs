//! `simfluence simulate`: simulator + curriculum → trajectory.

use crate::cli::SimulateArgs;
use crate::runs::OpenRuns;
use anyhow::{Context, Result};
use simfluence_core::{Examples, Trajectory};
use simfluence_recorder::{read_curriculum, write_trajectory};
use std::io::Write;

/// Runs the subcommand.
pub fn run(args: &SimulateArgs) -> Result<()> {
    let open = match (&args.run, &args.initial_from) {
        (Some(id), None) => OpenRuns::read_one(&args.run_set, id)?,
        _ => OpenRuns::read(&args.run_set)?,
    };
    let simulator = open.load_simulator(&args.simulator)?;
    let curriculum = match (&args.curriculum, &args.run) {
        (Some(path), _) => read_curriculum(path, open.train_count())?,
        (None, Some(run)) => open.run(run)?.curriculum.clone(),
        (None, None) => unreachable!("the command line asks for one of them"),
    };
    let source = match args.initial_from.as_ref().or(args.run.as_ref()) {
        Some(id) => open.run(id)?,
        None => &open.runs[0],
    };
    let initial = source.trajectory.initial().with_context(|| {
        format!(
            "run {} has no losses before the first step to start from; name another with --initial-from",
            source.id
        )
    })?;
    let trajectory = simulator.simulate(&curriculum, initial)?;
    match &args.out {
        Some(path) => {
            write_trajectory(path, &trajectory, open.set.test_examples())?;
            eprintln!(
                "{}: {} steps of {} test examples, by {}",
                path.display(),
                curriculum.len(),
                trajectory.test_count(),
                simulator.name()
            );
        }
        None => print_csv(&trajectory, open.set.test_examples())?,
    }
    Ok(())
}

/// The same columns as the file.
fn print_csv(trajectory: &Trajectory, test: &Examples) -> Result<()> {
    let mut writer = csv::Writer::from_writer(std::io::stdout().lock());
    writer.write_record(["step", "test_id", "key", "dataset", "loss"])?;
    for (index, step) in trajectory.steps().iter().enumerate() {
        for (id, example) in test.as_slice().iter().enumerate() {
            if let Some(loss) = trajectory.get(index, id) {
                writer.write_record([
                    &step.to_string(),
                    &id.to_string(),
                    &example.key,
                    &example.dataset,
                    &loss.to_string(),
                ])?;
            }
        }
    }
    writer.flush()?;
    Ok(std::io::stdout().flush()?)
}
