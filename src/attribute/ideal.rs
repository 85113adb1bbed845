//! The rows of TracIn-Ideal in a comparison: judged runs, replayed once and kept.

use super::replay::ideal;
use crate::cli::CompareArgs;
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use simfluence_core::{Progress, Run};
use simfluence_recorder::{read_artifact, write_artifact};
use simfluence_simulators::tracin::{Replay, Replays, TracinIdeal};
use std::path::PathBuf;

/// The two variants: along the gradients, and along the steps really made.
const NAMES: [&str; 2] = ["tracin-ideal", "tracin-ideal-preconditioned"];

/// The simulators of both variants over some runs, and whether all replays had been kept.
pub fn simulators(
    args: &CompareArgs,
    open: &OpenRuns,
    runs: &[&Run],
    progress: &dyn Progress,
) -> Result<(Vec<TracinIdeal>, bool)> {
    let mut kept = [read(open, NAMES[0])?, read(open, NAMES[1])?];
    let mut missing: Vec<&Run> = Vec::new();
    for run in runs {
        let is_kept = kept.iter().all(|k| find(k, run).is_some());
        if !is_kept && !missing.iter().any(|m| m.id == run.id) {
            missing.push(run);
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let steps: usize = missing.iter().map(|run| run.curriculum.len()).sum();
    progress.begin("replayed steps", steps as u64);
    for run in &missing {
        let replays = ideal(open, run, args.device.parse()?, threads, progress)?;
        for (kept, replay) in kept.iter_mut().zip(replays) {
            kept.replays.retain(|known| known.run != run.id);
            kept.replays.push(replay);
            // Written after each run, so that an interrupted command goes on.
            write_artifact(&path(open, &kept.method), &kept.to_artifact())?;
        }
    }
    progress.end();
    let test_count = open.set.test_examples().len();
    let mut simulators = Vec::new();
    for kept in &kept {
        let known = |run: &&Run| {
            let replay = find(kept, run).context("it was replayed")?;
            anyhow::Ok((run.curriculum.clone(), replay.decreases.clone()))
        };
        let known = runs.iter().map(known).collect::<Result<Vec<_>>>()?;
        let name = &kept.method;
        simulators.push(TracinIdeal::new(
            name,
            open.train_count(),
            test_count,
            known,
        )?);
    }
    Ok((simulators, missing.is_empty()))
}

fn path(open: &OpenRuns, name: &str) -> PathBuf {
    let folder = open.set.path().join("scores");
    folder.join(format!("{name}.safetensors"))
}

fn read(open: &OpenRuns, name: &str) -> Result<Replays> {
    let path = path(open, name);
    let test_keys = open.set.test_examples().keys();
    if !path.exists() {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        return Ok(Replays {
            method: name.to_owned(),
            test_keys,
            replays: Vec::new(),
        });
    }
    let replays = Replays::from_artifact(&read_artifact(&path)?)
        .with_context(|| format!("{}", path.display()))?;
    if replays.test_keys != test_keys {
        bail!(
            "{}: it is about other test examples; remove it to replay the runs again",
            path.display()
        );
    }
    Ok(replays)
}

/// The replay of a run, if it has as many steps.
fn find<'a>(kept: &'a Replays, run: &Run) -> Option<&'a Replay> {
    let expected = run.curriculum.len() * kept.test_keys.len();
    let of = |replay: &&Replay| replay.run == run.id && replay.decreases.len() == expected;
    kept.replays.iter().find(of)
}
