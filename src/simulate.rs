//! `simfluence simulate`: simulator + curriculum → trajectory.

use crate::cli::SimulateArgs;
use crate::program::Simulated;
use crate::runs::OpenRuns;
use anyhow::{Context, Result};
use simfluence_core::{Banded, Examples, Progress, Trajectory};
use simfluence_recorder::{read_curriculum, write_banded, write_trajectory};
use std::io::Write;

/// From this distance on there is a warning: runs of the design's own lie at about 1, most edits
/// between 1 and 2.
const FAR: f64 = 2.0;

/// Runs the subcommand.
pub fn run(args: &SimulateArgs, progress: &dyn Progress) -> Result<()> {
    let (test, simulated) = simulate(args, progress)?;
    let (trajectory, banded) = (&simulated.trajectory, simulated.banded.as_ref());
    let Some(path) = &args.out else {
        return print_csv(trajectory, banded, &test);
    };
    match banded {
        Some(banded) => write_banded(path, banded, &test)?,
        None => write_trajectory(path, trajectory, &test)?,
    }
    eprintln!(
        "{}: {} steps of {} test examples, by {}",
        path.display(),
        trajectory.steps().len() - 1,
        trajectory.test_count(),
        simulated.simulator
    );
    Ok(())
}

/// Simulates what the arguments ask for; gives the test examples, too. `--out` is not looked at.
pub fn simulate(args: &SimulateArgs, progress: &dyn Progress) -> Result<(Examples, Simulated)> {
    let wanted = [&args.run, &args.initial_from];
    let wanted: Vec<&str> = wanted.into_iter().flatten().map(String::as_str).collect();
    let open = OpenRuns::read_only(&args.run_set, &wanted, progress)?;
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
    let banded = simulator.simulate_banded(&curriculum, initial, args.level)?;
    if let Some(banded) = &banded {
        caution_distance(banded.distance);
    }
    let trajectory = match &banded {
        Some(banded) => banded.simulated.clone(),
        None => simulator.simulate(&curriculum, initial)?,
    };
    let simulated = Simulated {
        simulator: simulator.name().to_owned(),
        trajectory,
        banded,
    };
    Ok((open.set.test_examples().clone(), simulated))
}

/// Warns about a curriculum that lies outside of what was recorded.
pub fn caution_distance(distance: f64) {
    if distance > FAR {
        eprintln!(
            "warning: the curriculum lies {distance:.1} times as far from the recorded runs as they lie from each other: the recordings hardly support the answer, and its bands hold less than they promise; record runs that are more like it"
        );
    }
}

/// The same columns as the file.
fn print_csv(trajectory: &Trajectory, banded: Option<&Banded>, test: &Examples) -> Result<()> {
    let mut writer = csv::Writer::from_writer(std::io::stdout().lock());
    let mut heading = vec!["step", "test_id", "key", "dataset", "loss"];
    if banded.is_some() {
        heading.extend(["low", "high"]);
    }
    writer.write_record(heading)?;
    for (index, step) in trajectory.steps().iter().enumerate() {
        for (id, example) in test.as_slice().iter().enumerate() {
            if let Some(loss) = trajectory.get(index, id) {
                let mut record = vec![
                    step.to_string(),
                    id.to_string(),
                    example.key.clone(),
                    example.dataset.clone(),
                    loss.to_string(),
                ];
                if let Some(banded) = banded {
                    let ends = [&banded.low, &banded.high];
                    record.extend(ends.map(|end| end.row(index)[id].to_string()));
                }
                writer.write_record(record)?;
            }
        }
    }
    writer.flush()?;
    Ok(std::io::stdout().flush()?)
}
