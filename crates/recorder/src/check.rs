//! Is a run set whole, and what is in it?

use crate::error::{Place, RecorderError, Result};
use crate::files::{self, TEMPORARY};
use crate::plan::split_name;
use crate::reader::Parts;
use crate::record::LOSS;
use crate::run_set::RunSet;
use rayon::prelude::*;
use serde::Serialize;
use simfluence_core::{Examples, RunStatus};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckProblem {
    /// Where, as far as it is known.
    pub place: Place,
    /// The whole message, the place included.
    pub message: String,
}

impl From<&RecorderError> for CheckProblem {
    fn from(error: &RecorderError) -> Self {
        let place = match error {
            RecorderError::Invalid { place, .. } => Place::clone(place),
            RecorderError::Io { path, .. }
            | RecorderError::NotARunSet { path }
            | RecorderError::UnknownRun { path, .. } => Place::file(path),
            _ => Place::default(),
        };
        Self {
            place,
            message: error.to_string(),
        }
    }
}

/// Smallest and largest of something.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Extent<T> {
    /// Smallest.
    pub min: T,
    /// Largest.
    pub max: T,
}

impl<T: PartialOrd + Copy> Extent<T> {
    fn over(values: impl Iterator<Item = T>) -> Option<Self> {
        values.fold(None, |extent: Option<Self>, value| {
            let extent = extent.unwrap_or(Self {
                min: value,
                max: value,
            });
            Some(Self {
                min: if value < extent.min {
                    value
                } else {
                    extent.min
                },
                max: if value > extent.max {
                    value
                } else {
                    extent.max
                },
            })
        })
    }
}

/// What is in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Id of the run.
    pub id: String,
    /// Status; a killed run is aborted (or diverged).
    pub status: RunStatus,
    /// How its curriculum was drawn.
    pub design: String,
    /// `train`, `held-out` or none.
    pub split: Option<&'static str>,
    /// Kind of the edit, for a run of a counterfactual suite.
    pub edit: Option<&'static str>,
    /// Name of the optimiser.
    pub optimizer: Option<&'static str>,
    /// Steps in place.
    pub steps: u32,
    /// Steps that were planned.
    pub planned_steps: Option<u32>,
    /// Evaluations of the loss.
    pub evaluations: usize,
    /// Further metrics and how often each was evaluated.
    pub metrics: BTreeMap<String, usize>,
    /// Learning rates.
    pub learning_rate: Option<Extent<f32>>,
    /// Number of checkpoints.
    pub checkpoints: usize,
}

/// Everything [`check()`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// The run set.
    pub path: PathBuf,
    /// Training examples `n`.
    pub train_examples: usize,
    /// Test examples `m`.
    pub test_examples: usize,
    /// Training examples per dataset, in order of first appearance.
    pub train_datasets: Vec<(String, usize)>,
    /// Test examples per dataset, in order of first appearance.
    pub test_datasets: Vec<(String, usize)>,
    /// The runs in order of their ids.
    pub runs: Vec<RunSummary>,
    /// Runs per status.
    pub by_status: BTreeMap<String, usize>,
    /// Runs per design.
    pub by_design: BTreeMap<String, usize>,
    /// Runs per side of the split.
    pub by_split: BTreeMap<String, usize>,
    /// Runs per kind of edit.
    pub by_edit: BTreeMap<String, usize>,
    /// Runs per optimiser.
    pub by_optimizer: BTreeMap<String, usize>,
    /// Steps per run.
    pub steps: Option<Extent<u32>>,
    /// Learning rates over all runs.
    pub learning_rate: Option<Extent<f32>>,
    /// Everything that is wrong; empty if the run set is whole.
    pub problems: Vec<CheckProblem>,
    /// What is in order but should be known: runs that were aborted or diverged, runs without the
    /// losses before the first step.
    pub warnings: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Reads a whole run set, checkpoints included, and lists every problem with its place, and what is
/// in it.
///
/// # Errors
/// `folder` is no run set that can be opened at all (no or another `run_set.json`, no examples);
/// anything less is in the report.
///
/// ```
/// # use simfluence_core::{Example, Examples};
/// # let folder = tempfile::tempdir().unwrap();
/// # let examples = Examples::new(vec![Example::new("a", "x")]).unwrap();
/// # simfluence_recorder::RunSet::create(folder.path(), &examples, &examples).unwrap();
/// let report = simfluence_recorder::check(folder.path())?;
/// assert!(report.is_whole());
/// assert_eq!(report.train_examples, 1);
/// # Ok::<(), simfluence_recorder::RecorderError>(())
/// ```
pub fn check(folder: &Path) -> Result<CheckReport> {
    let mut problems = Vec::new();
    let set = RunSet::open_listing(folder, &mut problems)?;
    if let Err(error) = set.base_models() {
        problems.push(error);
    }
    foreign_folders(&set, &mut problems)?;
    let ids = set.run_ids()?;
    let checked: Vec<(Option<RunSummary>, Vec<String>, Vec<RecorderError>)> = ids
        .par_iter()
        .map(|id| {
            let mut problems = Vec::new();
            match set.read_parts_listing(id, &mut problems) {
                Ok(parts) => {
                    let summary = summarise(&set, &parts, &mut problems);
                    let warnings = warnings(&parts, &summary);
                    (Some(summary), warnings, problems)
                }
                Err(error) => {
                    problems.push(error);
                    (None, Vec::new(), problems)
                }
            }
        })
        .collect();
    let mut runs = Vec::new();
    let mut notes = Vec::new();
    for (summary, warnings, found) in checked {
        runs.extend(summary);
        notes.extend(warnings);
        problems.extend(found);
    }
    Ok(report(&set, runs, notes, &problems))
}

fn report(
    set: &RunSet,
    runs: Vec<RunSummary>,
    warnings: Vec<String>,
    problems: &[RecorderError],
) -> CheckReport {
    let count = |name: &dyn Fn(&RunSummary) -> Option<String>| {
        let mut counts = BTreeMap::new();
        for name in runs.iter().filter_map(name) {
            *counts.entry(name).or_insert(0) += 1;
        }
        counts
    };
    let rates = runs.iter().filter_map(|r| r.learning_rate);
    CheckReport {
        path: set.path().to_owned(),
        train_examples: set.train_examples().len(),
        test_examples: set.test_examples().len(),
        train_datasets: datasets(set.train_examples()),
        test_datasets: datasets(set.test_examples()),
        by_status: count(&|r| Some(r.status.to_string())),
        by_design: count(&|r| (!r.design.is_empty()).then(|| r.design.clone())),
        by_split: count(&|r| r.split.map(str::to_owned)),
        by_edit: count(&|r| r.edit.map(str::to_owned)),
        by_optimizer: count(&|r| r.optimizer.map(str::to_owned)),
        steps: Extent::over(runs.iter().map(|r| r.steps)),
        learning_rate: Extent::over(rates.flat_map(|r| [r.min, r.max])),
        problems: problems.iter().map(CheckProblem::from).collect(),
        warnings,
        runs,
    }
}

fn summarise(set: &RunSet, parts: &Parts, problems: &mut Vec<RecorderError>) -> RunSummary {
    let design = &parts.info.design;
    let rows = parts.steps.iter().flat_map(|file| &file.rows);
    let rates = rows.filter_map(|record| record.step.learning_rate);
    let mut metrics = parts.metrics();
    let checkpoints = set.checkpoints(&parts.id).unwrap_or_else(|error| {
        problems.push(error);
        Vec::new()
    });
    for (_, path) in &checkpoints {
        if let Err(error) = files::read_artifact(path) {
            problems.push(error);
        }
    }
    RunSummary {
        id: parts.id.clone(),
        status: parts.info.status,
        design: design.design.clone(),
        split: design.split.map(split_name),
        edit: design.edit.as_ref().map(|e| e.kind.name()),
        optimizer: parts.info.optimizer.as_ref().map(|o| o.name()),
        steps: parts.step_count(),
        planned_steps: parts.info.planned_steps,
        evaluations: metrics.remove(LOSS).unwrap_or(0),
        metrics,
        learning_rate: Extent::over(rates),
        checkpoints: checkpoints.len(),
    }
}

fn warnings(parts: &Parts, summary: &RunSummary) -> Vec<String> {
    let (id, steps) = (&parts.id, summary.steps);
    let mut warnings = Vec::new();
    match summary.status {
        RunStatus::Aborted => warnings.push(format!("run {id}: aborted after step {steps}")),
        RunStatus::Diverged => warnings.push(format!(
            "run {id}: diverged (a loss is NaN or infinite); fits leave it out"
        )),
        RunStatus::Recording => warnings.push(format!(
            "run {id}: is being recorded, {steps} steps are in place"
        )),
        RunStatus::Complete if !parts.has_initial() => warnings.push(format!(
            "run {id}: the losses before the first step are not recorded; it cannot be fitted or simulated"
        )),
        RunStatus::Complete => {}
    }
    warnings
}

/// Folders of `runs/` that are no runs. One in which a writer was killed before it wrote anything
/// is none either, but nothing is lost in it.
fn foreign_folders(set: &RunSet, problems: &mut Vec<RecorderError>) -> Result<()> {
    let folder = set.path().join("runs");
    for name in files::names(&folder)? {
        let path = folder.join(&name);
        if set.has_run(&name) || !path.is_dir() {
            continue;
        }
        let empty = files::names(&path)?
            .iter()
            .all(|n| n == ".lock" || n.ends_with(TEMPORARY));
        if !empty {
            let place = Place::run(&path, &name);
            let message = "the folder has no run.json; restore it or move the folder away";
            problems.push(RecorderError::invalid(
                place,
                crate::Problem::Other {
                    message: message.to_owned(),
                },
            ));
        }
    }
    Ok(())
}

fn datasets(examples: &Examples) -> Vec<(String, usize)> {
    let (names, of) = examples.groups("dataset");
    let mut counted: Vec<(String, usize)> = names.into_iter().map(|name| (name, 0)).collect();
    for group in of {
        counted[group].1 += 1;
    }
    counted
}
