//! What can be wrong with a run set, always with its place.

use crate::schema::{Column, Table};
use serde::Serialize;
use simfluence_core::{ArtifactError, CurriculumError, ExampleError, RunStatus, TrajectoryError};
use std::fmt;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, RecorderError>;

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Id of the run.
    pub run: Option<String>,
    /// Step, counted from 1; 0 is before any step.
    pub step: Option<u32>,
    /// The example, such as `test example 4`.
    pub example: Option<String>,
}

impl Place {
    /// A file as a whole.
    pub fn file(path: &Path) -> Self {
        Self {
            file: path.to_owned(),
            ..Self::default()
        }
    }

    /// A file of a run.
    pub fn run(path: &Path, run: &str) -> Self {
        Self {
            run: Some(run.to_owned()),
            ..Self::file(path)
        }
    }

    /// The same place, at a step.
    pub fn at_step(&self, step: u32) -> Self {
        Self {
            step: Some(step),
            ..self.clone()
        }
    }

    /// The same place, at an example.
    pub fn at_example(&self, example: impl Into<String>) -> Self {
        Self {
            example: Some(example.into()),
            ..self.clone()
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(run) = &self.run {
            write!(f, ", run {run}")?;
        }
        if let Some(step) = self.step {
            write!(f, ", step {step}")?;
        }
        if let Some(example) = &self.example {
            write!(f, ", {example}")?;
        }
        Ok(())
    }
}

/// Everything that can go wrong with run sets on disk.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What stands in a file, or was given for it, is wrong.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: Box<Place>,
        /// What.
        problem: Box<Problem>,
    },
    /// A folder that is no run set.
    #[error("{} is not a run set: it has no run_set.json; give the folder that holds it, or record or import one first", path.display())]
    NotARunSet {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is a run set already.
    #[error("{} is a run set already; choose another folder, or open it to add runs to it", path.display())]
    RunSetExists {
        /// The folder.
        path: PathBuf,
    },
    /// A run that the run set does not have.
    #[error("{} has no run {run:?}", path.display())]
    UnknownRun {
        /// The run set.
        path: PathBuf,
        /// Id that was asked for.
        run: String,
    },
    /// A run that the run set has already.
    #[error("{} exists already: run {run:?} is recorded; resume it, or choose another id", path.display())]
    RunExists {
        /// Folder of the run.
        path: PathBuf,
        /// Id of the run.
        run: String,
    },
    /// An id that cannot be the name of a folder.
    #[error("{run:?} cannot be the id of a run: {problem}")]
    RunId {
        /// The id.
        run: String,
        /// Why not.
        problem: &'static str,
    },
    /// Another process or recorder writes the run.
    #[error("run {run:?} is being recorded by another writer ({} is locked); wait until it has finished", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Id of the run.
        run: String,
    },
    /// Other examples than those of the run set.
    #[error("{}: its {which} examples are not the given ones (their fingerprint is {recorded}, that of the given ones {given}); record into another folder", path.display())]
    OtherExamples {
        /// The run set.
        path: PathBuf,
        /// `training` or `test`.
        which: &'static str,
        /// Fingerprint in the run set.
        recorded: String,
        /// Fingerprint of what was given.
        given: String,
    },
    /// Two examples of one key, in run sets that are to be merged.
    #[error("the {which} example {key:?} of {} is not that of {} (dataset, tags or further columns differ); give different examples different keys", second.display(), first.display())]
    ConflictingExample {
        /// `training` or `test`.
        which: &'static str,
        /// The key.
        key: String,
        /// Run set that has it first.
        first: PathBuf,
        /// Run set that has another.
        second: PathBuf,
    },
    /// Two runs of one id, in run sets that are to be merged.
    #[error("both {} and {} have a run {run:?}; merge them without one, or record under another id", first.display(), second.display())]
    RunTwice {
        /// The id.
        run: String,
        /// Run set that has it first.
        first: PathBuf,
        /// Run set that has it again.
        second: PathBuf,
    },
    /// No run set to merge.
    #[error("no run sets to merge; name at least one")]
    NothingToMerge,
    /// A recorder that failed before.
    #[error(
        "run {run:?} cannot be recorded further after an earlier error ({earlier}); resume it from its last checkpoint"
    )]
    Failed {
        /// Id of the run.
        run: String,
        /// The earlier error.
        earlier: String,
    },
    /// A copy of a recorder in a forked process.
    #[error(
        "run {run:?} is recorded by the process that this one was forked from; record in that process"
    )]
    Forked {
        /// Id of the run.
        run: String,
    },
    /// Resuming after the last recorded step.
    #[error(
        "run {run:?} cannot be resumed after step {at_step}: only {recorded} steps are recorded"
    )]
    ResumeBeyond {
        /// Id of the run.
        run: String,
        /// Step after which recording should go on.
        at_step: u32,
        /// Recorded steps.
        recorded: u32,
    },
    /// A file whose ending says nothing about its format.
    #[error("{}: cannot tell the format of the file from its name; end it in {expected}", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
        /// Endings that are known.
        expected: &'static str,
    },
}

impl RecorderError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn invalid(place: Place, problem: impl Into<Problem>) -> Self {
        Self::Invalid {
            place: Box::new(place),
            problem: Box::new(problem.into()),
        }
    }
}

fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => {
            "; free some space, then resume: what was recorded before is untouched"
        }
        std::io::ErrorKind::FileTooLarge => {
            "; raise the file size limit, then resume: what was recorded before is untouched"
        }
        _ => "",
    }
}

/// What is wrong at a [`Place`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// Not readable as what it should be.
    #[error("not readable as {what}: {message}")]
    Unreadable {
        /// `Parquet`, `JSON`, …
        what: &'static str,
        /// What the parser says.
        message: String,
    },
    /// Written by another version.
    #[error(
        "format version {got}, but this program reads version {expected}; read it with the program that wrote it"
    )]
    FormatVersion {
        /// Version this crate reads.
        expected: u32,
        /// Version found.
        got: String,
    },
    /// Provenance in the footer that says another thing than expected.
    #[error(
        "the footer entry {entry} is {got:?}, expected {expected:?}; the file does not belong here"
    )]
    Footer {
        /// The entry.
        entry: &'static str,
        /// What it should be.
        expected: String,
        /// What it is; empty if absent.
        got: String,
    },
    /// A column that should be there.
    #[error("the column {column:?} is missing")]
    MissingColumn {
        /// Its name.
        column: String,
    },
    /// A column of another type.
    #[error("the column {column:?} has type {got}, expected {expected}")]
    ColumnType {
        /// Its name.
        column: String,
        /// Type wanted.
        expected: String,
        /// Type found.
        got: String,
    },
    /// A null where a value is required.
    #[error("row {row} of the column {column:?} is null")]
    NullValue {
        /// Its name.
        column: String,
        /// Row in the file, counted from 0.
        row: usize,
    },
    /// A number of rows other than in the footer or `run_set.json`.
    #[error("{got} {what}, expected {expected}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// Number wanted.
        expected: u64,
        /// Number found.
        got: u64,
    },
    /// A segment that is not there while later ones are.
    #[error("the segment is missing; later ones are there")]
    MissingSegment {
        /// The table.
        table: Table,
    },
    /// Steps that do not follow one another.
    #[error("step {got} where step {expected} should follow")]
    StepOrder {
        /// The next step.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// Evaluations that do not follow one another.
    #[error(
        "an evaluation of {metric:?} at step {after} follows one at step {before}; steps must increase"
    )]
    EvaluationOrder {
        /// The metric.
        metric: String,
        /// The earlier step.
        before: u32,
        /// The step after it.
        after: u32,
    },
    /// An evaluation after the last step.
    #[error("an evaluation after step {step}, but the run has only {steps} steps")]
    EvaluationBeyondEnd {
        /// Step of the evaluation.
        step: u32,
        /// Steps of the run.
        steps: u32,
    },
    /// Another number of losses than test examples.
    #[error("{got} values of {metric:?} for {expected} test examples")]
    TestCount {
        /// The metric.
        metric: String,
        /// Test examples evaluated.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A test id that the run set does not have.
    #[error("test id {id} is out of range; there are {test_count} test examples (0..{test_count})")]
    UnknownTest {
        /// The id.
        id: u32,
        /// Number of test examples.
        test_count: usize,
    },
    /// A test example evaluated twice at once.
    #[error("test id {id} stands twice in one evaluation")]
    DuplicateTest {
        /// The id.
        id: u32,
    },
    /// A list that should be as long as the batch.
    #[error("{got} entries in {column} for a batch of {expected} examples")]
    ListLength {
        /// The column.
        column: Column,
        /// Length of the batch.
        expected: usize,
        /// Entries given.
        got: usize,
    },
    /// A step that cannot be.
    #[error(transparent)]
    Step(#[from] CurriculumError),
    /// Examples that cannot be.
    #[error(transparent)]
    Examples(#[from] ExampleError),
    /// An id that is not the position of its example.
    #[error("the id is {got}; ids must be 0, 1, 2, … in order, so {expected} belongs here")]
    ExampleId {
        /// Position.
        expected: u32,
        /// Id found.
        got: u32,
    },
    /// A trajectory that cannot be.
    #[error(transparent)]
    Trajectory(#[from] TrajectoryError),
    /// Losses before the first step that come too late or twice.
    #[error(
        "the losses before the first step must come once, before any step ({steps} steps are recorded)"
    )]
    InitialOrder {
        /// Recorded steps.
        steps: u32,
    },
    /// Examples that changed since the run set was made.
    #[error(
        "the fingerprint of the {which} examples is {got}, but run_set.json says {expected}; the examples were changed after the run set was made"
    )]
    Fingerprint {
        /// `training` or `test`.
        which: &'static str,
        /// In `run_set.json`.
        expected: String,
        /// Of the example table.
        got: String,
    },
    /// A base model that `run_set.json` does not list.
    #[error("the base model {fingerprint:?} is not among those of run_set.json")]
    UnknownBaseModel {
        /// Its fingerprint.
        fingerprint: String,
    },
    /// A status that the recorded data contradict.
    #[error("the status is {recorded}, but the recorded losses say {data}")]
    Status {
        /// In `run.json`.
        recorded: RunStatus,
        /// What the data say.
        data: RunStatus,
    },
    /// A finished run without its counts.
    #[error(
        "the status is {status}, but what was recorded is not counted; run.json was changed by hand or is incomplete"
    )]
    NoCounts {
        /// In `run.json`.
        status: RunStatus,
    },
    /// A file that says it is of another run.
    #[error("the file says it belongs to run {got:?}")]
    OtherRun {
        /// What it says.
        got: String,
    },
    /// No examples at all.
    #[error("there are no {which} examples; a run set needs at least one")]
    NoExamples {
        /// `training` or `test`.
        which: &'static str,
    },
    /// A column of the user's with a name that the format uses.
    #[error("the extra column {column:?} has the name of a column of the format; rename it")]
    ReservedColumn {
        /// Its name.
        column: String,
    },
    /// A simulator, scores or checkpoint file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Anything else.
    #[error("{message}")]
    Other {
        /// What is wrong and what to do.
        message: String,
    },
}
