//! One run set of several, recorded in different places.

use crate::error::{RecorderError, Result};
use crate::files;
use crate::reader::Parts;
use crate::record::{LOSS, Losses, StepRecord};
use crate::recorder::{Recorder, RecorderOptions};
use crate::run_set::RunSet;
use simfluence_core::{Example, Examples, Progress, RunStatus};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Makes a new run set in `target` of all runs of several run sets, and tells `progress` of each;
/// gives the ids of the runs.
///
/// Examples are the same if their keys are: each key gets one id, in the order in which the sources
/// have them, and the batches and evaluations of the runs are written with these ids. Where a
/// source lacks test examples that another has, its runs have no losses of those. Runs keep their
/// ids, settings, status and checkpoints; a run that was killed is `aborted`, as it is read.
///
/// # Errors
/// No source; a source that cannot be read; two examples of one key that differ; two runs of one
/// id; a run that is still being recorded; a run set in `target` already. What was written to
/// `target` until then stays there.
///
/// ```
/// use simfluence_core::{Example, Examples, NoProgress, RunInfo, RunStatus, Step};
/// use simfluence_recorder::{Recorder, RecorderOptions, RunSet, StepRecord, merge};
///
/// let folder = tempfile::tempdir()?;
/// let test = Examples::new(vec![Example::new("x", "sums")])?;
/// let mut sources = Vec::new();
/// for name in ["a", "b"] {
///     // Each place has its own training example.
///     let train = Examples::new(vec![Example::new(name, "sums")])?;
///     let path = folder.path().join(name);
///     let set = RunSet::create(&path, &train, &test)?;
///     let info = RunInfo::new(RunStatus::Recording);
///     let mut recorder = Recorder::create(&set, name, info, RecorderOptions::default())?;
///     recorder.log_initial(&[3.0])?;
///     recorder.log_step(&StepRecord::new(Step::new(vec![0], None)))?;
///     recorder.finish()?;
///     sources.push(path);
/// }
/// let target = folder.path().join("all");
/// assert_eq!(merge(&sources, &target, &NoProgress)?, ["a", "b"]);
/// let run = RunSet::open(&target)?.read_run("b")?;
/// assert_eq!(run.curriculum.steps()[0].batch, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn merge(sources: &[PathBuf], target: &Path, progress: &dyn Progress) -> Result<Vec<String>> {
    let sets: Vec<RunSet> = sources
        .iter()
        .map(|path| RunSet::open(path))
        .collect::<Result<_>>()?;
    if sets.is_empty() {
        return Err(RecorderError::NothingToMerge);
    }
    let train = Union::of(&sets, "training", RunSet::train_examples)?;
    let test = Union::of(&sets, "test", RunSet::test_examples)?;
    let count = require_different_runs(&sets)?;
    let merged = RunSet::create(target, &train.examples, &test.examples)?;
    progress.begin("merging runs", count as u64);
    for (index, set) in sets.iter().enumerate() {
        let places = Places {
            train: &train.places[index],
            test: &test.places[index],
            all_tests: is_identity(&test.places[index], test.examples.len()),
        };
        for run in set.run_ids()? {
            copy(set, &run, &merged, &places)?;
            progress.advance(1);
        }
    }
    progress.end();
    merged.run_ids()
}

/// The examples of all sources.
struct Union {
    examples: Examples,
    /// Per source, the new id of each of its examples.
    places: Vec<Vec<u32>>,
}

impl Union {
    fn of(
        sets: &[RunSet],
        which: &'static str,
        examples_of: impl Fn(&RunSet) -> &Examples,
    ) -> Result<Self> {
        let mut all: Vec<Example> = Vec::new();
        // New id, and the source that the example was first seen in.
        let mut known: HashMap<&str, (u32, usize)> = HashMap::new();
        let mut places = Vec::with_capacity(sets.len());
        for (index, set) in sets.iter().enumerate() {
            let mut own = Vec::with_capacity(examples_of(set).len());
            for example in examples_of(set).as_slice() {
                let &mut (id, first) = known.entry(&example.key).or_insert_with(|| {
                    all.push(example.clone());
                    (all.len() as u32 - 1, index)
                });
                if all[id as usize] != *example {
                    return Err(RecorderError::ConflictingExample {
                        which,
                        key: example.key.clone(),
                        first: sets[first].path().to_owned(),
                        second: set.path().to_owned(),
                    });
                }
                own.push(id);
            }
            places.push(own);
        }
        let examples = Examples::new(all).expect("every key stands once");
        Ok(Self { examples, places })
    }
}

fn is_identity(places: &[u32], count: usize) -> bool {
    places.len() == count && places.iter().zip(0..).all(|(&id, place)| id == place)
}

/// Gives their number.
fn require_different_runs(sets: &[RunSet]) -> Result<usize> {
    let mut seen: BTreeMap<String, &Path> = BTreeMap::new();
    for set in sets {
        for run in set.run_ids()? {
            if set.read_info(&run)?.status == RunStatus::Recording {
                let path = set.run_folder(&run);
                return Err(RecorderError::Locked { path, run });
            }
            if let Some(first) = seen.insert(run.clone(), set.path()) {
                return Err(RecorderError::RunTwice {
                    run,
                    first: first.to_owned(),
                    second: set.path().to_owned(),
                });
            }
        }
    }
    Ok(seen.len())
}

/// Where the examples of a source stand in the merged run set.
struct Places<'a> {
    train: &'a [u32],
    test: &'a [u32],
    /// Whether the source has all test examples, in the same order.
    all_tests: bool,
}

impl Places<'_> {
    fn losses(&self, test_ids: Option<&[u32]>, values: &[f32]) -> Losses {
        let new = |id: &u32| self.test[*id as usize];
        match test_ids {
            None if self.all_tests => Losses::All(values.to_vec()),
            None => Losses::Subset {
                test_ids: self.test.to_vec(),
                values: values.to_vec(),
            },
            Some(ids) => Losses::Subset {
                test_ids: ids.iter().map(new).collect(),
                values: values.to_vec(),
            },
        }
    }
}

fn copy(set: &RunSet, run: &str, merged: &RunSet, places: &Places) -> Result<()> {
    let parts = set.read_parts(run)?;
    let status = parts.info.status;
    let mut recorder =
        Recorder::create(merged, run, parts.info.clone(), RecorderOptions::default())?;
    let mut measured = evaluations(&parts, places);
    for (metric, losses) in measured.remove(&0).unwrap_or_default() {
        recorder.log_initial_metric(&metric, &losses)?;
    }
    for mut record in parts.steps.into_iter().flat_map(|file| file.rows) {
        for id in &mut record.step.batch {
            *id = places.train[*id as usize];
        }
        let step = record.number.unwrap_or_default();
        add(&mut record, measured.remove(&step).unwrap_or_default());
        recorder.log_step(&record)?;
    }
    for (step, path) in set.checkpoints(run)? {
        recorder.save_checkpoint_bytes(step, &files::read(&path)?)?;
    }
    match status {
        RunStatus::Aborted => recorder.abort()?,
        _ => recorder.finish()?,
    };
    Ok(())
}

/// What was measured after each step, in the order of its rows.
fn evaluations(parts: &Parts, places: &Places) -> BTreeMap<u32, Vec<(String, Losses)>> {
    let mut measured: BTreeMap<u32, Vec<(String, Losses)>> = BTreeMap::new();
    for file in &parts.losses {
        let rows = &file.rows;
        for row in 0..file.kept {
            let losses = places.losses(rows.test_ids(row), rows.values(row));
            let after = measured.entry(rows.steps[row]).or_default();
            after.push((rows.metrics[row].clone(), losses));
        }
    }
    measured
}

fn add(record: &mut StepRecord, measured: Vec<(String, Losses)>) {
    for (metric, losses) in measured {
        match metric == LOSS {
            true => record.losses = Some(losses),
            false => record.metrics.push((metric, losses)),
        }
    }
}
