//! Reads runs and checks everything about them on the way.
//!
//! One pass serves both: reading a run fails with the first problem, [`crate::check()`] lists all.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::record::{LOSS, StepRecord, all_finite, check_evaluation, check_step};
use crate::rows::{LossSegment, read_steps};
use crate::run_file::{self, Recorded};
use crate::run_set::RunSet;
use crate::schema::Table;
use crate::{lock, segment, table_file};
use rayon::prelude::*;
use simfluence_core::{Curriculum, Progress, Run, RunInfo, RunStatus, Trajectory};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A segment of losses with its file.
pub(crate) struct LossFile {
    pub path: PathBuf,
    pub rows: LossSegment,
    /// Rows that count; later ones belong to steps that are not in place.
    pub kept: usize,
    /// First row with a loss that is NaN or infinite.
    diverged_at: Option<usize>,
}

impl LossFile {
    fn new(path: PathBuf, rows: LossSegment) -> Self {
        let count = rows.steps.len();
        let diverged_at =
            (0..count).find(|&row| rows.metrics[row] == LOSS && !all_finite(rows.values(row)));
        Self {
            path,
            rows,
            kept: count,
            diverged_at,
        }
    }
}

/// A segment of steps with its file.
pub(crate) struct StepFile {
    pub path: PathBuf,
    pub rows: Vec<StepRecord>,
}

/// Everything that is on disk about a run, checked.
pub(crate) struct Parts {
    pub id: String,
    pub folder: PathBuf,
    /// With the status as it is reported.
    pub info: RunInfo,
    pub steps: Vec<StepFile>,
    pub losses: Vec<LossFile>,
    pub diverged: bool,
}

impl RunSet {
    /// Reads a run and checks everything about it.
    ///
    /// A run that was killed reads as what its closed segments hold, with status `aborted` (or
    /// `diverged`, if a loss in it is NaN or infinite). Losses that were never measured are
    /// missing in the trajectory.
    ///
    /// # Errors
    /// No such run; anything that [`crate::check()`] would list, the first of it.
    pub fn read_run(&self, run: &str) -> Result<Run> {
        let parts = self.read_parts(run)?;
        let trajectory = parts.trajectory(LOSS, self.test_examples().len())?;
        let curriculum = parts.curriculum(self.train_examples().len())?;
        Ok(Run {
            id: parts.id,
            info: parts.info,
            curriculum,
            trajectory,
            batch_losses: parts
                .steps
                .into_iter()
                .flat_map(|file| file.rows)
                .map(|record| record.batch_loss)
                .collect(),
        })
    }

    /// Reads several runs in parallel, in the order of `runs`; tells `progress` of each.
    ///
    /// # Errors
    /// As [`RunSet::read_run`], for the first run in order that cannot be read.
    pub fn read_runs<S: AsRef<str> + Sync>(
        &self,
        runs: &[S],
        progress: &dyn Progress,
    ) -> Result<Vec<Run>> {
        progress.begin("reading runs", runs.len() as u64);
        let read: Vec<Result<Run>> = runs
            .par_iter()
            .map(|run| {
                let read = self.read_run(run.as_ref());
                progress.advance(1);
                read
            })
            .collect();
        progress.end();
        read.into_iter().collect()
    }

    /// Reads all that was recorded per step, micro-batches and gradient norms included; without
    /// the losses of test examples.
    ///
    /// # Errors
    /// As [`RunSet::read_run`].
    pub fn read_step_records(&self, run: &str) -> Result<Vec<StepRecord>> {
        let parts = self.read_parts(run)?;
        Ok(parts.steps.into_iter().flat_map(|file| file.rows).collect())
    }

    /// Names of the metrics of a run, sorted; `loss` is one of them if any loss was recorded.
    ///
    /// # Errors
    /// As [`RunSet::read_run`].
    pub fn metrics(&self, run: &str) -> Result<Vec<String>> {
        Ok(self.read_parts(run)?.metrics().into_keys().collect())
    }

    /// Reads one metric of the test examples as a trajectory.
    ///
    /// # Errors
    /// As [`RunSet::read_run`].
    pub fn read_metric(&self, run: &str, metric: &str) -> Result<Trajectory> {
        let parts = self.read_parts(run)?;
        parts.trajectory(metric, self.test_examples().len())
    }

    pub(crate) fn read_parts(&self, run: &str) -> Result<Parts> {
        let mut problems = Vec::new();
        let parts = self.read_parts_listing(run, &mut problems)?;
        match problems.into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(parts),
        }
    }

    /// Reads what can be read of a run and lists every problem; fails only if there is no run.
    pub(crate) fn read_parts_listing(
        &self,
        run: &str,
        problems: &mut Vec<RecorderError>,
    ) -> Result<Parts> {
        self.require_run(run)?;
        let folder = self.run_folder(run);
        // Asked before anything is read: what a writer adds meanwhile does not matter, but a
        // writer that ends meanwhile must not turn a run that is being recorded into a killed one.
        let live = lock::is_live(&folder);
        let file = self.read_run_file(run)?;
        let steps = self.step_files(&folder, run, problems)?;
        let losses = self.loss_files(&folder, run, problems)?;
        let mut parts = Parts {
            id: run.to_owned(),
            folder,
            info: file.info,
            steps,
            losses,
            diverged: false,
        };
        parts.check_step_order(problems);
        parts.check_evaluation_order(file.recorded.is_none(), problems);
        parts.diverged = parts.has_diverged();
        parts.check_counts(file.recorded, problems);
        parts.settle_status(live, problems);
        if let Some(model) = &parts.info.base_model
            && !self.base_models()?.contains(model)
        {
            let problem = Problem::UnknownBaseModel {
                fingerprint: model.clone(),
            };
            problems.push(RecorderError::invalid(parts.run_file_place(), problem));
        }
        Ok(parts)
    }

    fn step_files(
        &self,
        folder: &Path,
        run: &str,
        problems: &mut Vec<RecorderError>,
    ) -> Result<Vec<StepFile>> {
        let train_count = self.train_examples().len();
        let provenance = self.provenance(Table::Steps, run);
        let segments = segment::list(folder, run, Table::Steps, problems)?;
        let read = segments.into_par_iter().map(|(_, path)| {
            let place = Place::run(&path, run);
            let frame = table_file::read(&path, &provenance, &place).map_err(|e| vec![e])?;
            let rows = read_steps(&frame, &place).map_err(|e| vec![e])?;
            let mut found = Vec::new();
            for record in &rows {
                let number = record.number.unwrap_or_default();
                let problems = check_step(record, number, train_count);
                found.extend(
                    problems
                        .into_iter()
                        .map(|p| RecorderError::invalid(place.at_step(number), p)),
                );
            }
            Ok((StepFile { path, rows }, found))
        });
        Ok(collect(read.collect(), problems))
    }

    fn loss_files(
        &self,
        folder: &Path,
        run: &str,
        problems: &mut Vec<RecorderError>,
    ) -> Result<Vec<LossFile>> {
        let test_count = self.test_examples().len();
        let provenance = self.provenance(Table::Losses, run);
        let segments = segment::list(folder, run, Table::Losses, problems)?;
        let read = segments.into_par_iter().map(|(_, path)| {
            let place = Place::run(&path, run);
            let rows = LossSegment::read(&path, &provenance, &place).map_err(|e| vec![e])?;
            let found = check_losses(&rows, test_count, &place);
            Ok((LossFile::new(path, rows), found))
        });
        Ok(collect(read.collect(), problems))
    }
}

type Read<T> = std::result::Result<(T, Vec<RecorderError>), Vec<RecorderError>>;

fn collect<T>(read: Vec<Read<T>>, problems: &mut Vec<RecorderError>) -> Vec<T> {
    let mut files = Vec::with_capacity(read.len());
    for result in read {
        match result {
            Ok((file, found)) => {
                files.push(file);
                problems.extend(found);
            }
            Err(found) => problems.extend(found),
        }
    }
    files
}

fn check_losses(rows: &LossSegment, test_count: usize, place: &Place) -> Vec<RecorderError> {
    let mut found = Vec::new();
    for (row, &step) in rows.steps.iter().enumerate() {
        let metric = &rows.metrics[row];
        if let Some(problem) =
            check_evaluation(metric, rows.test_ids(row), rows.values(row), test_count)
        {
            let place = match problem {
                Problem::UnknownTest { id, .. } | Problem::DuplicateTest { id } => {
                    place.at_step(step).at_example(format!("test example {id}"))
                }
                _ => place.at_step(step),
            };
            found.push(RecorderError::invalid(place, problem));
        }
    }
    found
}

impl Parts {
    /// Number of steps in place.
    pub fn step_count(&self) -> u32 {
        self.steps.iter().map(|f| f.rows.len() as u32).sum()
    }

    /// Evaluations per metric.
    pub fn metrics(&self) -> BTreeMap<String, usize> {
        let mut metrics = BTreeMap::new();
        for file in &self.losses {
            for metric in &file.rows.metrics[..file.kept] {
                match metrics.get_mut(metric) {
                    Some(count) => *count += 1,
                    None => drop(metrics.insert(metric.clone(), 1)),
                }
            }
        }
        metrics
    }

    /// Whether a loss before the first step is recorded.
    pub fn has_initial(&self) -> bool {
        self.losses.iter().any(|file| {
            let rows = &file.rows;
            (0..file.kept).any(|row| rows.steps[row] == 0 && rows.metrics[row] == LOSS)
        })
    }

    fn run_file_place(&self) -> Place {
        Place::run(&run_file::path(&self.folder), &self.id)
    }

    fn check_step_order(&self, problems: &mut Vec<RecorderError>) {
        let mut expected = 1;
        for file in &self.steps {
            for record in &file.rows {
                let got = record.number.unwrap_or_default();
                if got != expected {
                    let place = Place::run(&file.path, &self.id);
                    let problem = Problem::StepOrder { expected, got };
                    problems.push(RecorderError::invalid(place, problem));
                }
                expected = got.saturating_add(1);
            }
        }
    }

    /// Checks that steps increase per metric. In a run that was not ended, evaluations after the
    /// last step in place are left out: their segment was closed, that of their steps was not.
    fn check_evaluation_order(&mut self, open: bool, problems: &mut Vec<RecorderError>) {
        let steps = self.step_count();
        let mut last: BTreeMap<String, u32> = BTreeMap::new();
        for file in &mut self.losses {
            let place = Place::run(&file.path, &self.id);
            for (row, &step) in file.rows.steps.iter().enumerate() {
                let metric = &file.rows.metrics[row];
                let before = last.get(metric).copied();
                if let Some(before) = before.filter(|&before| before >= step) {
                    let problem = Problem::EvaluationOrder {
                        metric: metric.clone(),
                        before,
                        after: step,
                    };
                    problems.push(RecorderError::invalid(place.clone(), problem));
                }
                match last.get_mut(metric) {
                    Some(last) => *last = step,
                    None => drop(last.insert(metric.clone(), step)),
                }
                if step > steps && !open {
                    let problem = Problem::EvaluationBeyondEnd { step, steps };
                    problems.push(RecorderError::invalid(place.clone(), problem));
                }
            }
            let beyond = file.rows.steps.iter().position(|&step| step > steps);
            file.kept = beyond.unwrap_or(file.rows.steps.len());
        }
    }

    fn has_diverged(&self) -> bool {
        let steps = self.steps.iter().flat_map(|file| &file.rows);
        let mut losses = self.losses.iter();
        losses.any(|file| file.diverged_at.is_some_and(|row| row < file.kept))
            || steps
                .filter_map(|record| record.batch_loss.as_ref())
                .any(|losses| !all_finite(losses))
    }

    fn check_counts(&self, recorded: Option<Recorded>, problems: &mut Vec<RecorderError>) {
        let place = self.run_file_place();
        let Some(recorded) = recorded else {
            if self.info.status != RunStatus::Recording {
                let problem = Problem::NoCounts {
                    status: self.info.status,
                };
                problems.push(RecorderError::invalid(place, problem));
            }
            return;
        };
        let evaluations: usize = self.losses.iter().map(|f| f.rows.steps.len()).sum();
        let counts = [
            (
                "segments of steps",
                u64::from(recorded.step_segments),
                self.steps.len() as u64,
            ),
            (
                "segments of losses",
                u64::from(recorded.loss_segments),
                self.losses.len() as u64,
            ),
            (
                "steps",
                u64::from(recorded.steps),
                u64::from(self.step_count()),
            ),
            ("evaluations", recorded.evaluations, evaluations as u64),
        ];
        for (what, expected, got) in counts {
            if expected != got {
                let problem = Problem::Count {
                    what,
                    expected,
                    got,
                };
                problems.push(RecorderError::invalid(place.clone(), problem));
            }
        }
    }

    /// Replaces `recording` by what it means, and compares any other status with the data.
    fn settle_status(&mut self, live: bool, problems: &mut Vec<RecorderError>) {
        let recorded = self.info.status;
        let data = match (recorded, self.diverged) {
            (RunStatus::Recording, _) if live => RunStatus::Recording,
            (_, true) => RunStatus::Diverged,
            (RunStatus::Recording, false) => RunStatus::Aborted,
            (RunStatus::Diverged, false) => RunStatus::Complete,
            (other, false) => other,
        };
        if recorded != RunStatus::Recording && recorded != data {
            let problem = Problem::Status { recorded, data };
            problems.push(RecorderError::invalid(self.run_file_place(), problem));
        }
        self.info.status = data;
    }

    fn curriculum(&self, train_count: usize) -> Result<Curriculum> {
        let steps = self.steps.iter().flat_map(|file| &file.rows);
        Curriculum::new(
            steps.map(|record| record.step.clone()).collect(),
            train_count,
        )
        .map_err(|e| RecorderError::invalid(Place::run(&self.folder, &self.id), e))
    }

    fn trajectory(&self, metric: &str, test_count: usize) -> Result<Trajectory> {
        let rows = || {
            self.losses.iter().flat_map(|file| {
                let rows = &file.rows;
                (0..file.kept)
                    .filter(|&row| rows.metrics[row] == metric)
                    .map(move |row| (rows.steps[row], rows.test_ids(row), rows.values(row)))
            })
        };
        let count = rows().count();
        let complete = rows().all(|(_, test_ids, _)| test_ids.is_none());
        let mut steps = Vec::with_capacity(count);
        let mut values = Vec::with_capacity(count * test_count);
        let mut measured = Vec::new();
        for (step, test_ids, row) in rows() {
            steps.push(step);
            match test_ids {
                None => values.extend_from_slice(row),
                Some(ids) => {
                    let start = values.len();
                    values.resize(start + test_count, 0.0);
                    measured.resize(start + test_count, false);
                    for (&id, &value) in ids.iter().zip(row) {
                        values[start + id as usize] = value;
                        measured[start + id as usize] = true;
                    }
                    continue;
                }
            }
            if !complete {
                measured.resize(values.len(), true);
            }
        }
        let trajectory = if complete {
            Trajectory::new(steps, test_count, values)
        } else {
            Trajectory::with_missing(steps, test_count, values, measured)
        };
        trajectory.map_err(|e| RecorderError::invalid(Place::run(&self.folder, &self.id), e))
    }
}
