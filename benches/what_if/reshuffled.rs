//! How much of what an edit does is decided by the datasets and their order alone?
//!
//! `reshuffled plan RUN_SET COUNT FILE` writes a plan: each ordinary run that was edited, and each of
//! its edits, COUNT times with the examples of every dataset permuted among the places that the
//! dataset has in the run; to be recorded from the same base model. `reshuffled ceilings RUN_SET
//! RESHUFFLED` compares: the R² of the final effect that a simulator can have which knows the
//! datasets of every batch but not the examples. With `V` the variance of the effect over the
//! recorded run and its reshuffled ones and `S` its mean square, both summed over edits and test
//! examples, that is `1 − V/S`. Prints it by kind of edit, as JSON.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simfluence::core::design::PlannedRun;
use simfluence::core::{Curriculum, EditKind, NoProgress, Run, RunDesign, Split, Step};
use simfluence::recorder::{RunSet, write_plan};
use std::collections::BTreeMap;
use std::path::Path;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How often a place is sought for an example that stands twice in a batch.
const TRIES: usize = 10_000;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["plan", run_set, count, file] => plan(Path::new(run_set), count.parse()?, Path::new(file)),
        ["ceilings", run_set, reshuffled] => ceilings(Path::new(run_set), Path::new(reshuffled)),
        _ => Err("usage: reshuffled plan RUN_SET COUNT FILE | ceilings RUN_SET RESHUFFLED".into()),
    }
}

fn read(folder: &Path) -> Result<(RunSet, Vec<Run>), Failure> {
    let set = RunSet::open(folder)?;
    let runs = set.read_runs(&set.run_ids()?, &NoProgress)?;
    Ok((set, runs))
}

/// The kind of an edit and the run that it edits.
fn edit(run: &Run) -> Option<(EditKind, &str)> {
    let edit = run.info.design.edit.as_ref()?;
    Some((edit.kind, &edit.base_run))
}

fn name(copy: usize, run: &str) -> String {
    format!("reshuffled-{copy}-{}", run.replace('.', "_"))
}

fn plan(folder: &Path, count: usize, file: &Path) -> Result<(), Failure> {
    let (set, runs) = read(folder)?;
    let (_, dataset_of) = set.train_examples().groups("dataset");
    let bases: Vec<&str> = runs.iter().filter_map(edit).map(|(_, base)| base).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut planned = Vec::new();
    // Other rates change little, and next to nothing that is no luck.
    let wanted = |run: &&Run| match edit(run) {
        Some((kind, _)) => kind != EditKind::LearningRate,
        None => bases.contains(&run.id.as_str()),
    };
    for run in runs.iter().filter(wanted) {
        for copy in 0..count {
            planned.push(PlannedRun {
                id: name(copy, &run.id),
                seed: run.info.seed.unwrap_or(0),
                design: RunDesign {
                    design: "given".to_owned(),
                    split: Some(Split::HeldOut),
                    edit: None,
                },
                curriculum: reshuffled(&run.curriculum, &dataset_of, &mut rng)?,
            });
        }
    }
    write_plan(file, &planned)?;
    Ok(())
}

/// The same with the examples of each dataset permuted, no example twice in a batch.
fn reshuffled(
    curriculum: &Curriculum,
    dataset_of: &[usize],
    rng: &mut ChaCha8Rng,
) -> Result<Curriculum, Failure> {
    let mut steps: Vec<Step> = curriculum.steps().to_vec();
    let mut places: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for (t, step) in steps.iter().enumerate() {
        for (k, &example) in step.batch.iter().enumerate() {
            let of_dataset = places.entry(dataset_of[example as usize]).or_default();
            of_dataset.push((t, k));
        }
    }
    for places in places.values() {
        let mut examples: Vec<u32> = places.iter().map(|&(t, k)| steps[t].batch[k]).collect();
        examples.shuffle(rng);
        for (&(t, k), example) in places.iter().zip(examples) {
            steps[t].batch[k] = example;
        }
        for &(t, k) in places {
            let twice = |steps: &[Step], t: usize, example: u32| {
                steps[t].batch.iter().filter(|&&e| e == example).count() > 1
            };
            for _ in 0..TRIES {
                let own = steps[t].batch[k];
                if !twice(&steps, t, own) {
                    break;
                }
                let (t2, k2) = places[rng.random_range(0..places.len())];
                let other = steps[t2].batch[k2];
                if !steps[t].batch.contains(&other) && !steps[t2].batch.contains(&own) {
                    (steps[t].batch[k], steps[t2].batch[k2]) = (other, own);
                }
            }
        }
    }
    Ok(Curriculum::new(steps, dataset_of.len())?)
}

fn ceilings(folder: &Path, reshuffled: &Path) -> Result<(), Failure> {
    let ((_, runs), (_, copies)) = (read(folder)?, read(reshuffled)?);
    let last = |runs: &[Run], id: &str| -> Option<Vec<f64>> {
        let run = runs.iter().find(|run| run.id == id)?;
        let row = run.trajectory.last()?;
        Some(row.iter().map(|&loss| f64::from(loss)).collect())
    };
    let mut of_kind: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for run in &runs {
        let Some((kind, base)) = edit(run) else {
            continue;
        };
        let between = |edited: Vec<f64>, base: Vec<f64>| -> Vec<f64> {
            edited.iter().zip(&base).map(|(a, b)| a - b).collect()
        };
        let recorded = last(&runs, &run.id).zip(last(&runs, base));
        let again = (0..).map_while(|copy| {
            last(&copies, &name(copy, &run.id)).zip(last(&copies, &name(copy, base)))
        });
        let effects: Vec<Vec<f64>> = (recorded.into_iter().chain(again))
            .map(|(edited, base)| between(edited, base))
            .collect();
        if effects.len() < 2 {
            continue;
        }
        let count = effects.len() as f64;
        let (variance, square) = of_kind.entry(kind.name()).or_default();
        for test in 0..effects[0].len() {
            let of_test = || effects.iter().map(|effect| effect[test]);
            let mean = of_test().sum::<f64>() / count;
            *variance += of_test().map(|e| (e - mean).powi(2)).sum::<f64>() / (count - 1.0);
            *square += of_test().map(|e| e * e).sum::<f64>() / count;
        }
    }
    let ceilings: BTreeMap<&str, f64> = (of_kind.into_iter())
        .map(|(kind, (variance, square))| (kind, 1.0 - variance / square))
        .collect();
    println!("{}", serde_json::to_string(&ceilings)?);
    Ok(())
}
