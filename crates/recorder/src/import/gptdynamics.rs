//! The layout of GPTDynamics, the run data of GPTfluence (Liu et al. 2024).

use super::raw::{RawRun, RawStep, record_all};
use super::{ImportReport, standard_json, wrong};
use crate::error::{Place, RecorderError, Result};
use crate::files;
use crate::table_file::unreadable;
use rayon::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use simfluence_core::{Example, Examples, RunInfo, RunStatus};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const STEPS_FILE: &str = "train_samples_id.json";
const LOSSES_FILE: &str = "all_loss_trajectory.out";

/// Imports a folder in the layout of GPTDynamics into the run set `out`.
///
/// Every folder in `dir` (or `dir` itself) with a `train_samples_id.json` is a run: JSON lines
/// `{"step": s, "samples_id": [..]}`, and in `all_loss_trajectory.out` JSON lines
/// `{"id": j, "loss_trajectory": [{"step": s, "loss": x}, ..]}`. As in GPTfluence's own reader the
/// loss at step `s` is the one *after* training on the samples of step `s`; its steps count from 1,
/// and it has no losses before the first step. Steps that count from 0 are moved by one, with a
/// warning: the losses too, unless they go one step further than the batches.
///
/// The examples get their ids as keys (`train_id` and `test_id` are the rank of the id), and the
/// datasets `train` and `test`. Evaluations that only repeat the one before, bit for bit for all of
/// at least two test examples, are left out with a warning. A NaN or infinite loss is an
/// observation; `null` is missing.
///
/// # Errors
/// No run in `dir`; a malformed line (file and line are named); a missing step; two different
/// batches or losses for the same step; a run of the same id in `out`; `out` has other examples or
/// cannot be written. Nothing is written unless all runs can be read.
///
/// # Reference
/// Liu, Chai, Wang, Sun, Wang & Wu (2024), "On Training Data Influence of GPT Models",
/// arXiv:2404.07840.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let run = folder.path().join("logs/seed-1");
/// std::fs::create_dir_all(&run)?;
/// std::fs::write(run.join("train_samples_id.json"), r#"{"step": 1, "samples_id": [0, 1]}"#)?;
/// let line = r#"{"id": 0, "loss_trajectory": [{"step": 1, "loss": 2.5}]}"#;
/// std::fs::write(run.join("all_loss_trajectory.out"), line)?;
/// let out = folder.path().join("runs");
/// let report = simfluence_recorder::import_gptdynamics(&folder.path().join("logs"), &out)?;
/// assert_eq!(report.runs, vec!["seed-1"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn import_gptdynamics(dir: &Path, out: &Path) -> Result<ImportReport> {
    let mut folders = Vec::new();
    find_runs(dir, "", &mut folders)?;
    if folders.is_empty() {
        let message = format!("no folder in it has a {STEPS_FILE}");
        return Err(wrong(&Place::file(dir), message));
    }
    let mut warnings = Vec::new();
    let read: Vec<Result<Log>> = folders.par_iter().map(|(id, f)| Log::read(id, f)).collect();
    let logs: Vec<Log> = read.into_iter().collect::<Result<_>>()?;
    let batches = logs.iter().flat_map(|log| log.steps.values().flatten());
    let (train, train_ids) = examples("train", batches, &mut warnings)?;
    let tests = logs
        .iter()
        .flat_map(|log| log.losses.iter().map(|(id, _)| id));
    let (test, test_ids) = examples("test", tests, &mut warnings)?;
    let runs = logs
        .into_iter()
        .map(|log| log.into_run(&train_ids, &test_ids, &mut warnings))
        .collect();
    record_all(out, &train, &test, runs, warnings)
}

/// The folders with runs and the ids they get: their path below `dir`.
fn find_runs(dir: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let names = files::names(dir)?;
    if names.iter().any(|n| n == STEPS_FILE) {
        let own = dir.file_name().unwrap_or_default().to_string_lossy();
        let id = if prefix.is_empty() { &own } else { prefix };
        found.push((id.to_owned(), dir.to_owned()));
    } else if names.iter().any(|n| n == LOSSES_FILE) {
        let message =
            format!("it has a {LOSSES_FILE} but no {STEPS_FILE}; what was trained is missing");
        return Err(wrong(&Place::file(dir), message));
    }
    for name in names {
        let path = dir.join(&name);
        if path.is_dir() {
            let id = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}-{name}")
            };
            find_runs(&path, &id, found)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct StepLine {
    step: i64,
    samples_id: Vec<Value>,
}

#[derive(Deserialize)]
struct LossLine {
    id: Value,
    loss_trajectory: Vec<LossPoint>,
}

#[derive(Deserialize)]
struct LossPoint {
    step: i64,
    loss: Value,
}

/// A run as it stands in its folder, ids as texts.
struct Log {
    id: String,
    folder: PathBuf,
    steps: BTreeMap<i64, Vec<String>>,
    losses: Vec<(String, Vec<(i64, f32)>)>,
    warnings: Vec<String>,
}

impl Log {
    fn read(id: &str, folder: &Path) -> Result<Self> {
        let mut log = Self {
            id: id.to_owned(),
            folder: folder.to_owned(),
            steps: BTreeMap::new(),
            losses: Vec::new(),
            warnings: Vec::new(),
        };
        log.read_steps()?;
        for name in files::names(folder)? {
            if name == LOSSES_FILE {
                log.read_losses()?;
            } else if name.starts_with("all_") && name.ends_with("_trajectory.out") {
                log.warnings
                    .push(format!("run {id}: {name} is not imported; only losses are"));
            }
        }
        Ok(log)
    }

    fn read_steps(&mut self) -> Result<()> {
        let place = Place::run(&self.folder.join(STEPS_FILE), &self.id);
        for line in json_lines::<StepLine>(&place)? {
            let batch: Vec<String> = line.samples_id.iter().map(token).collect();
            match self.steps.get(&line.step) {
                Some(before) if *before == batch => self.warnings.push(format!(
                    "run {}, step {}: its samples stand there twice; once is kept",
                    self.id, line.step
                )),
                Some(_) => {
                    let message = format!(
                        "step {} stands there twice, with different samples",
                        line.step
                    );
                    return Err(wrong(&place, message));
                }
                None => drop(self.steps.insert(line.step, batch)),
            }
        }
        Ok(())
    }

    fn read_losses(&mut self) -> Result<()> {
        let place = Place::run(&self.folder.join(LOSSES_FILE), &self.id);
        let mut missing = 0usize;
        for line in json_lines::<LossLine>(&place)? {
            let mut points = Vec::with_capacity(line.loss_trajectory.len());
            for point in &line.loss_trajectory {
                if point.loss.is_null() {
                    missing += 1;
                    continue;
                }
                let Some(loss) = number(&point.loss) else {
                    let place = place.at_example(format!("test example {:?}", token(&line.id)));
                    let message = format!(
                        "the loss at step {} is {}, not a number",
                        point.step, point.loss
                    );
                    return Err(wrong(&place, message));
                };
                points.push((point.step, loss));
            }
            self.losses.push((token(&line.id), points));
        }
        if missing > 0 {
            self.warnings.push(format!(
                "run {}: {missing} losses are null, that is missing",
                self.id
            ));
        }
        Ok(())
    }

    fn into_run(
        self,
        train_ids: &HashMap<String, u32>,
        test_ids: &HashMap<String, u32>,
        warnings: &mut Vec<String>,
    ) -> RawRun {
        warnings.extend(self.warnings);
        let raw = |batch: Vec<String>| RawStep {
            batch: batch.iter().map(|sample| train_ids[sample]).collect(),
            ..RawStep::default()
        };
        let mut losses: BTreeMap<i64, Vec<(u32, f32)>> = BTreeMap::new();
        for (test, points) in self.losses {
            for (step, loss) in points {
                losses
                    .entry(step)
                    .or_default()
                    .push((test_ids[&test], loss));
            }
        }
        RawRun {
            steps_place: Place::run(&self.folder.join(STEPS_FILE), &self.id),
            losses_place: Place::run(&self.folder.join(LOSSES_FILE), &self.id),
            id: self.id,
            info: RunInfo::new(RunStatus::Recording),
            steps: self
                .steps
                .into_iter()
                .map(|(s, batch)| (s, raw(batch)))
                .collect(),
            losses,
        }
    }
}

/// Examples for the ids that occur: in numerical order if all are numbers, the id as key.
fn examples<'a>(
    dataset: &str,
    ids: impl Iterator<Item = &'a String>,
    warnings: &mut Vec<String>,
) -> Result<(Examples, HashMap<String, u32>)> {
    let ids: Vec<String> = ids.cloned().collect();
    let keys = super::tables::ordered_keys(&ids);
    if let Some(warning) = super::tables::renumbering(dataset, &keys) {
        warnings.push(warning);
    }
    let all = keys.iter().map(|key| Example::new(key, dataset)).collect();
    let examples = Examples::new(all)
        .map_err(|e| RecorderError::invalid(Place::file(Path::new(STEPS_FILE)), e))?;
    let ids = keys.into_iter().zip(0..).collect();
    Ok((examples, ids))
}

fn json_lines<T: DeserializeOwned>(place: &Place) -> Result<Vec<T>> {
    let bytes = files::read(&place.file)?;
    let text = String::from_utf8(bytes).map_err(|e| unreadable(place, "UTF-8 text", e))?;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        lines
            .push(serde_json::from_str(&standard_json(line)).map_err(|e| {
                unreadable(place, "JSON lines", format!("line {}: {e}", index + 1))
            })?);
    }
    Ok(lines)
}

fn number(value: &Value) -> Option<f32> {
    match value {
        Value::Number(number) => number.as_f64().map(|x| x as f32),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn token(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
