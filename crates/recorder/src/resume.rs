//! Going on with a run from an earlier step.

use crate::error::{RecorderError, Result};
use crate::files::{self, TEMPORARY};
use crate::reader::{LossFile, Parts, StepFile};
use crate::record::{LOSS, all_finite};
use crate::recorder::{Recorder, RecorderOptions};
use crate::rows::{LossRows, step_columns};
use crate::run_file::Recorded;
use crate::run_set::RunSet;
use crate::schema::Table;
use crate::table_file;
use crate::{checkpoint, lock};
use simfluence_core::RunStatus;
use std::fs;
use std::path::{Path, PathBuf};

impl Recorder {
    /// Goes on with a run after its first `at_step` steps, with the usual options.
    ///
    /// What was recorded after that step, checkpoints included, is moved to `attempt-NN/` in the
    /// folder of the run: kept, but not read.
    ///
    /// # Errors
    /// No such run; it is being recorded; what is recorded is damaged or ends before `at_step`;
    /// the folder cannot be written. Nothing is lost then, and resuming can be tried again.
    pub fn resume(set: &RunSet, run: &str, at_step: u32) -> Result<Self> {
        Self::resume_with(set, run, at_step, RecorderOptions::default())
    }

    /// As [`Recorder::resume`], with options.
    ///
    /// # Errors
    /// As [`Recorder::resume`].
    pub fn resume_with(
        set: &RunSet,
        run: &str,
        at_step: u32,
        options: RecorderOptions,
    ) -> Result<Self> {
        set.require_run(run)?;
        let folder = set.run_folder(run);
        let lock = lock::lock_run(&folder, run)?;
        let parts = set.read_parts(run)?;
        if at_step > parts.step_count() {
            return Err(RecorderError::ResumeBeyond {
                run: run.to_owned(),
                at_step,
                recorded: parts.step_count(),
            });
        }
        let mut recorder = Self::new(set, run, parts.info.clone(), options, lock);
        // First: from here on the run is open, and evaluations after its last step do not count.
        recorder.write_run_file(RunStatus::Recording, None)?;
        remove_temporary(&folder)?;
        let mut attempt = Attempt {
            set,
            run,
            folder,
            moved_to: None,
        };
        let recorded = attempt.cut(&parts, at_step)?;
        let has_initial =
            kept_losses(&parts, at_step).any(|(step, metric, _)| step == 0 && metric == LOSS);
        let diverged = kept_losses(&parts, at_step)
            .any(|(_, metric, values)| metric == LOSS && !all_finite(values))
            || kept_steps_diverged(&parts, at_step);
        recorder.go_on_from(recorded, has_initial, diverged);
        Ok(recorder)
    }
}

fn kept_losses(parts: &Parts, at_step: u32) -> impl Iterator<Item = (u32, &str, &[f32])> {
    parts.losses.iter().flat_map(move |file| {
        let rows = &file.rows;
        (0..file.kept)
            .map(move |row| {
                (
                    rows.steps[row],
                    rows.metrics[row].as_str(),
                    rows.values(row),
                )
            })
            .filter(move |(step, _, _)| *step <= at_step)
    })
}

fn kept_steps_diverged(parts: &Parts, at_step: u32) -> bool {
    let rows = parts.steps.iter().flat_map(|file| &file.rows);
    rows.take(at_step as usize).any(|record| record.diverged())
}

/// What a killed writer left behind.
fn remove_temporary(folder: &Path) -> Result<()> {
    for name in files::names(folder)? {
        if name.ends_with(TEMPORARY) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(|e| RecorderError::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Takes away what was recorded after a step. Killed at any point it leaves a readable run: steps
/// go before losses and the last segments first, and a segment that is cut is replaced at once.
struct Attempt<'a> {
    set: &'a RunSet,
    run: &'a str,
    folder: PathBuf,
    moved_to: Option<PathBuf>,
}

impl Attempt<'_> {
    fn cut(&mut self, parts: &Parts, at_step: u32) -> Result<Recorded> {
        let mut recorded = Recorded::default();
        for file in parts.steps.iter().rev() {
            let kept = self.cut_steps(file, at_step)?;
            recorded.steps += kept as u32;
            recorded.step_segments += u32::from(kept > 0);
        }
        for file in parts.losses.iter().rev() {
            let kept = self.cut_losses(file, at_step)?;
            recorded.evaluations += kept as u64;
            recorded.loss_segments += u32::from(kept > 0);
        }
        for (step, path) in checkpoint::list(&self.folder)? {
            if step > at_step {
                let name = path.file_name().unwrap_or_default();
                let target = checkpoint::folder(&self.attempt()?).join(name);
                files::create_folder(&checkpoint::folder(&self.attempt()?))?;
                move_file(&path, &target)?;
            }
        }
        if let Some(folder) = &self.moved_to {
            files::sync_folder(&folder.join("any"))?;
        }
        files::sync_folder(&self.folder.join("any"))?;
        Ok(recorded)
    }

    /// Cuts a segment of steps, gives the number of rows that stay.
    fn cut_steps(&mut self, file: &StepFile, at_step: u32) -> Result<usize> {
        let stays = |r: &&crate::StepRecord| r.number.is_some_and(|number| number <= at_step);
        let kept = file.rows.iter().take_while(stays).count();
        if kept == file.rows.len() {
            return Ok(kept);
        }
        let first = file.rows[0].number.unwrap_or(1);
        let place = crate::Place::run(&file.path, self.run);
        let mut frame = table_file::frame(step_columns(&file.rows[..kept], first), &place)?;
        self.replace(&file.path, kept, &mut frame, Table::Steps)?;
        Ok(kept)
    }

    /// Cuts a segment of losses, gives the number of rows that stay.
    fn cut_losses(&mut self, file: &LossFile, at_step: u32) -> Result<usize> {
        let mut kept = LossRows::default();
        for (row, &step) in file.rows.steps.iter().enumerate() {
            if step <= at_step {
                let (ids, values) = (file.rows.test_ids(row), file.rows.values(row));
                kept.push_parts(step, &file.rows.metrics[row], ids, values);
            }
        }
        if kept.len() == file.rows.steps.len() {
            return Ok(kept.len());
        }
        let mut frame = kept.frame(&crate::Place::run(&file.path, self.run))?;
        self.replace(&file.path, kept.len(), &mut frame, Table::Losses)?;
        Ok(kept.len())
    }

    /// Keeps the whole segment in the attempt and leaves `frame` in its place, or nothing.
    fn replace(
        &mut self,
        path: &Path,
        rows: usize,
        frame: &mut polars::prelude::DataFrame,
        table: Table,
    ) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let target = self.attempt()?.join(name);
        if rows == 0 {
            return move_file(path, &target);
        }
        let whole = files::read(path)?;
        files::write_atomically(&target, &whole)?;
        table_file::write(path, frame, &self.set.provenance(table, self.run))
    }

    /// The folder of this attempt, made when it is first needed.
    fn attempt(&mut self) -> Result<PathBuf> {
        if let Some(folder) = &self.moved_to {
            return Ok(folder.clone());
        }
        let taken = files::names(&self.folder)?;
        let name = (1..)
            .map(|number| format!("attempt-{number:02}"))
            .find(|name| !taken.contains(name))
            .unwrap_or_default();
        let folder = self.folder.join(name);
        files::create_folder(&folder)?;
        self.moved_to = Some(folder.clone());
        Ok(folder)
    }
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| RecorderError::io("move", from, e))
}
