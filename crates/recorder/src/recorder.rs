//! Records one run as it happens.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::lock::Lock;
use crate::record::{LOSS, Losses, StepRecord, all_finite, check_evaluation, check_step};
use crate::rows::{LossRows, step_columns};
use crate::run_file::{self, Recorded, RunFile};
use crate::run_set::{RunSet, check_run_id};
use crate::schema::Table;
use crate::table_file::{self, Provenance};
use crate::{checkpoint, files, lock, segment};
use polars::prelude::DataFrame;
use simfluence_core::{Artifact, RunInfo, RunStatus};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// When a segment is closed: at the first of these limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecorderOptions {
    /// Rows of a table, default 256, at least 1.
    pub segment_rows: usize,
    /// Bytes in memory, default 8 MiB.
    pub segment_bytes: usize,
    /// Age of the oldest row, default 30 s; looked at whenever a step is recorded.
    pub segment_age: Duration,
}

impl Default for RecorderOptions {
    fn default() -> Self {
        Self {
            segment_rows: 256,
            segment_bytes: 8 << 20,
            segment_age: Duration::from_secs(30),
        }
    }
}

/// Records one run as it happens, in bounded memory.
///
/// Rows are kept in memory until a segment closes ([`RecorderOptions`]). Then the segment is
/// written to a temporary file, synced and renamed: first the losses, then the steps. A step counts
/// once its row of `steps` is in place, so everything measured up to that step is in place too. A
/// recorder that is killed at any moment loses at most the open segment.
///
/// A recorder that is dropped without [`Recorder::finish`] leaves the run `aborted`; its copy in a
/// process that was forked from that of the recorder writes nothing. After an error
/// of the file system it records nothing more; what was recorded before is untouched, and the run
/// can be resumed.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    run: String,
    info: RunInfo,
    options: RecorderOptions,
    train_count: usize,
    test_count: usize,
    steps_provenance: Provenance,
    losses_provenance: Provenance,
    open_steps: Vec<StepRecord>,
    open_losses: LossRows,
    open_bytes: usize,
    opened: Instant,
    /// What is in place, without the open segment.
    recorded: Recorded,
    has_initial: bool,
    diverged: bool,
    failed: Option<String>,
    ended: bool,
    /// The process that records; one forked from it must leave the run alone.
    process: u32,
    _lock: Lock,
}

impl Recorder {
    /// Begins a new run. The status in `info` is set to `recording`.
    ///
    /// # Errors
    /// An id that cannot name a folder; a run of this id is recorded or being recorded; the folder
    /// cannot be written.
    pub fn create(
        set: &RunSet,
        run: &str,
        info: RunInfo,
        options: RecorderOptions,
    ) -> Result<Self> {
        check_run_id(run)?;
        let folder = set.run_folder(run);
        files::create_folder(&folder)?;
        let lock = lock::lock_run(&folder, run)?;
        let occupied = files::names(&folder)?
            .iter()
            .any(|name| name == run_file::RUN_FILE || name.ends_with(".parquet"));
        if occupied {
            return Err(RecorderError::RunExists {
                path: folder,
                run: run.to_owned(),
            });
        }
        if let Some(model) = &info.base_model {
            set.add_base_model(model)?;
        }
        let recorder = Self::new(set, run, info, options, lock);
        recorder.write_run_file(RunStatus::Recording, None)?;
        Ok(recorder)
    }

    pub(crate) fn new(
        set: &RunSet,
        run: &str,
        info: RunInfo,
        options: RecorderOptions,
        lock: Lock,
    ) -> Self {
        Self {
            folder: set.run_folder(run),
            run: run.to_owned(),
            info,
            options,
            train_count: set.train_examples().len(),
            test_count: set.test_examples().len(),
            steps_provenance: set.provenance(Table::Steps, run),
            losses_provenance: set.provenance(Table::Losses, run),
            open_steps: Vec::new(),
            open_losses: LossRows::default(),
            open_bytes: 0,
            opened: Instant::now(),
            recorded: Recorded::default(),
            has_initial: false,
            diverged: false,
            failed: None,
            ended: false,
            process: std::process::id(),
            _lock: lock,
        }
    }

    /// Goes on after what is in place already.
    pub(crate) fn go_on_from(&mut self, recorded: Recorded, has_initial: bool, diverged: bool) {
        self.recorded = recorded;
        self.has_initial = has_initial;
        self.diverged = diverged;
    }

    /// Id of the run.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Steps recorded so far, those in the open segment included.
    pub fn steps(&self) -> u32 {
        self.recorded.steps + self.open_steps.len() as u32
    }

    /// Whether the losses before the first step are recorded.
    pub fn has_initial(&self) -> bool {
        self.has_initial
    }

    /// Whether a recorded loss was NaN or infinite.
    pub fn diverged(&self) -> bool {
        self.diverged
    }

    /// Records `L_0`: the losses of all `m` test examples before the first step.
    ///
    /// # Errors
    /// Another number of losses than test examples; not before the first step, or for the second
    /// time.
    pub fn log_initial(&mut self, losses: &[f32]) -> Result<()> {
        self.log_initial_parts(LOSS, None, losses)
    }

    /// Records losses (`metric` is [`LOSS`]) or another metric before the first step, of all test
    /// examples or of some.
    ///
    /// # Errors
    /// As [`Recorder::log_initial`]; a test id that is out of range or stands twice.
    pub fn log_initial_metric(&mut self, metric: &str, losses: &Losses) -> Result<()> {
        self.log_initial_parts(metric, losses.test_ids(), losses.values())
    }

    fn log_initial_parts(
        &mut self,
        metric: &str,
        test_ids: Option<&[u32]>,
        values: &[f32],
    ) -> Result<()> {
        self.require_working()?;
        let steps = self.steps();
        if steps > 0 || (metric == LOSS && self.has_initial) {
            return Err(self.refuse(0, Problem::InitialOrder { steps }));
        }
        self.check_losses(0, metric, test_ids, values)?;
        self.start_clock();
        self.open_losses.push_parts(0, metric, test_ids, values);
        self.open_bytes += std::mem::size_of_val(values);
        if metric == LOSS {
            self.has_initial = true;
            self.diverged |= !all_finite(values);
        }
        Ok(())
    }

    /// Records the next step.
    ///
    /// # Errors
    /// A step out of order, an empty batch, an id out of range, lists of other lengths than the
    /// batch, another number of losses than test examples: nothing is recorded then, and the
    /// recorder can go on. A segment that cannot be written: the recorder stops.
    pub fn log_step(&mut self, record: &StepRecord) -> Result<()> {
        self.require_working()?;
        let number = self.steps() + 1;
        let problems = check_step(record, number, self.train_count);
        if let Some(problem) = problems.into_iter().next() {
            return Err(self.refuse(number, problem));
        }
        for (metric, losses) in record.evaluations() {
            self.check_losses(number, metric, losses.test_ids(), losses.values())?;
        }
        self.start_clock();
        for (metric, losses) in record.evaluations() {
            self.open_losses.push(number, metric, losses);
            self.open_bytes += std::mem::size_of_val(losses.values());
        }
        self.diverged |= record.diverged();
        self.open_bytes += std::mem::size_of::<StepRecord>() + record.step.batch.len() * 16;
        self.open_steps.push(without_losses(record));
        if self.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    /// Closes the open segment now.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.require_working()?;
        self.write_segments().inspect_err(|error| {
            self.failed = Some(error.to_string());
        })
    }

    /// Saves a checkpoint after `step` steps, after closing the open segment, so that the run can
    /// be resumed from it.
    ///
    /// # Errors
    /// A step that is not recorded yet; a tensor that does not fill its shape; the file cannot be
    /// written.
    pub fn save_checkpoint(&mut self, step: u32, artifact: &Artifact) -> Result<PathBuf> {
        let path = checkpoint::path(&self.folder, step);
        let bytes = artifact
            .to_bytes()
            .map_err(|e| RecorderError::invalid(Place::run(&path, &self.run).at_step(step), e))?;
        self.save_checkpoint_bytes(step, &bytes)
    }

    /// Saves a checkpoint, given as the bytes of a safetensors file.
    ///
    /// # Errors
    /// As [`Recorder::save_checkpoint`].
    pub fn save_checkpoint_bytes(&mut self, step: u32, bytes: &[u8]) -> Result<PathBuf> {
        self.require_working()?;
        let path = checkpoint::path(&self.folder, step);
        if step > self.steps() {
            let place = Place::run(&path, &self.run);
            let problem = Problem::StepOrder {
                expected: self.steps(),
                got: step,
            };
            return Err(RecorderError::invalid(place, problem));
        }
        self.flush()?;
        files::create_folder(&checkpoint::folder(&self.folder))?;
        files::write_atomically(&path, bytes)?;
        Ok(path)
    }

    /// The checkpoints so far: step and file, in order of steps.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u32, PathBuf)>> {
        checkpoint::list(&self.folder)
    }

    /// Ends the run: `complete`, or `diverged` if a recorded loss is NaN or infinite.
    ///
    /// # Errors
    /// The last segment or `run.json` cannot be written.
    pub fn finish(mut self) -> Result<RunStatus> {
        self.end(RunStatus::Complete)
    }

    /// Ends the run before its last step: `aborted`, or `diverged` if a recorded loss is NaN or
    /// infinite.
    ///
    /// # Errors
    /// The last segment or `run.json` cannot be written.
    pub fn abort(mut self) -> Result<RunStatus> {
        self.end(RunStatus::Aborted)
    }

    fn end(&mut self, status: RunStatus) -> Result<RunStatus> {
        self.flush()?;
        let status = if self.diverged {
            RunStatus::Diverged
        } else {
            status
        };
        self.ended = true;
        self.write_run_file(status, Some(self.recorded))?;
        Ok(status)
    }

    pub(crate) fn write_run_file(
        &self,
        status: RunStatus,
        recorded: Option<Recorded>,
    ) -> Result<()> {
        let info = RunInfo {
            status,
            ..self.info.clone()
        };
        RunFile::new(&self.run, info, recorded).write(&self.folder)
    }

    fn require_working(&self) -> Result<()> {
        if std::process::id() != self.process {
            return Err(RecorderError::Forked {
                run: self.run.clone(),
            });
        }
        match &self.failed {
            None => Ok(()),
            Some(earlier) => Err(RecorderError::Failed {
                run: self.run.clone(),
                earlier: earlier.clone(),
            }),
        }
    }

    fn check_losses(
        &self,
        step: u32,
        metric: &str,
        test_ids: Option<&[u32]>,
        values: &[f32],
    ) -> Result<()> {
        match check_evaluation(metric, test_ids, values, self.test_count) {
            None => Ok(()),
            Some(problem) => Err(self.refuse(step, problem)),
        }
    }

    fn refuse(&self, step: u32, problem: Problem) -> RecorderError {
        RecorderError::invalid(Place::run(&self.folder, &self.run).at_step(step), problem)
    }

    fn start_clock(&mut self) {
        if self.open_steps.is_empty() && self.open_losses.is_empty() {
            self.opened = Instant::now();
        }
    }

    fn is_full(&self) -> bool {
        self.open_steps.len().max(self.open_losses.len()) >= self.options.segment_rows
            || self.open_bytes >= self.options.segment_bytes
            || self.opened.elapsed() >= self.options.segment_age
    }

    fn write_segments(&mut self) -> Result<()> {
        // Two files, encoded and synced side by side: half the wait for the training loop.
        let (losses, steps) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new();
            match thread.spawn_scoped(scope, || self.write_steps()) {
                Ok(steps) => (
                    self.write_losses(),
                    steps.join().unwrap_or_else(|_| self.crashed()),
                ),
                Err(_) => (self.write_losses(), self.write_steps()),
            }
        });
        let written: Vec<Written> = match (losses, steps) {
            (Ok(losses), Ok(steps)) => losses.into_iter().chain(steps).collect(),
            (Ok(Some(kept)), Err(error)) | (Err(error), Ok(Some(kept))) => {
                files::remove_temporary(&kept.temporary);
                return Err(error);
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        // The losses come first: a step counts once its row of `steps` is in place.
        for file in &written {
            files::rename(&file.temporary, &file.path)?;
        }
        if let Some(file) = written.first() {
            files::sync_folder(&file.path)?;
        }
        self.recorded.steps += self.open_steps.len() as u32;
        self.recorded.step_segments += u32::from(!self.open_steps.is_empty());
        self.recorded.evaluations += self.open_losses.len() as u64;
        self.recorded.loss_segments += u32::from(!self.open_losses.is_empty());
        self.open_steps.clear();
        self.open_losses.clear();
        self.open_bytes = 0;
        Ok(())
    }

    fn crashed<T>(&self) -> Result<T> {
        let place = Place::run(&self.folder, &self.run);
        Err(table_file::unreadable(
            &place,
            "table",
            "encoding it failed",
        ))
    }

    fn write_losses(&self) -> Result<Option<Written>> {
        if self.open_losses.is_empty() {
            return Ok(None);
        }
        let path = segment::path(&self.folder, Table::Losses, self.recorded.loss_segments);
        let place = Place::run(&path, &self.run);
        let mut frame = self.open_losses.frame(&place)?;
        Written::new(path, &mut frame, &self.losses_provenance, &place).map(Some)
    }

    fn write_steps(&self) -> Result<Option<Written>> {
        if self.open_steps.is_empty() {
            return Ok(None);
        }
        let path = segment::path(&self.folder, Table::Steps, self.recorded.step_segments);
        let place = Place::run(&path, &self.run);
        let columns = step_columns(&self.open_steps, self.recorded.steps + 1);
        let mut frame = table_file::frame(columns, &place)?;
        Written::new(path, &mut frame, &self.steps_provenance, &place).map(Some)
    }
}

/// A segment that is written and synced, but not yet in place.
struct Written {
    temporary: PathBuf,
    path: PathBuf,
}

impl Written {
    fn new(
        path: PathBuf,
        frame: &mut DataFrame,
        provenance: &Provenance,
        place: &Place,
    ) -> Result<Self> {
        let bytes = table_file::encode(frame, provenance, place)?;
        let temporary = files::write_temporary(&path, &bytes)?;
        Ok(Self { temporary, path })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let forked = std::process::id() != self.process;
        if !self.ended && self.failed.is_none() && !forked {
            // Best effort: a drop cannot report, and the run reads as aborted in any case.
            let _ = self.end(RunStatus::Aborted);
        }
    }
}

fn without_losses(record: &StepRecord) -> StepRecord {
    StepRecord {
        number: None,
        step: record.step.clone(),
        micro: record.micro.clone(),
        batch_loss: record.batch_loss.clone(),
        grad_norm: record.grad_norm,
        losses: None,
        metrics: Vec::new(),
    }
}
