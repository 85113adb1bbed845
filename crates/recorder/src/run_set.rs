//! Run sets: a folder of runs over the same training and test examples.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::examples::{self, fingerprint};
use crate::run_file::{RUN_FILE, RunFile, read_json};
use crate::schema::{FORMAT_VERSION, Table};
use crate::table_file::{Provenance, SOFTWARE};
use crate::{files, lock};
use serde::{Deserialize, Serialize};
use simfluence_core::{Examples, RunInfo, RunStatus};
use std::path::{Path, PathBuf};

/// Name of the file that makes a folder a run set.
const SET_FILE: &str = "run_set.json";

/// Count and fingerprint of the examples of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ExamplesEntry {
    count: u64,
    fingerprint: String,
}

impl ExamplesEntry {
    fn of(examples: &Examples) -> Self {
        Self {
            count: examples.len() as u64,
            fingerprint: fingerprint(examples),
        }
    }
}

/// The content of `run_set.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SetFile {
    format_version: u32,
    software: String,
    train_examples: ExamplesEntry,
    test_examples: ExamplesEntry,
    base_models: Vec<String>,
}

impl SetFile {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(SET_FILE);
        if !path.is_file() {
            return Err(RecorderError::NotARunSet {
                path: folder.to_owned(),
            });
        }
        read_json(&path, &Place::file(&path))
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("texts and numbers are JSON");
        text.push('\n');
        files::write_atomically(&folder.join(SET_FILE), text.as_bytes())
    }
}

/// A folder of runs over the same training and test examples.
///
/// ```
/// use simfluence_core::{Example, Examples, RunInfo, RunStatus, Step};
/// use simfluence_recorder::{Losses, Recorder, RecorderOptions, RunSet, StepRecord};
///
/// let folder = tempfile::tempdir()?;
/// let train = Examples::new(vec![Example::new("a", "sums"), Example::new("b", "sums")])?;
/// let test = Examples::new(vec![Example::new("x", "sums")])?;
/// let set = RunSet::create(folder.path(), &train, &test)?;
///
/// let info = RunInfo::new(RunStatus::Recording);
/// let mut recorder = Recorder::create(&set, "run-0", info, RecorderOptions::default())?;
/// recorder.log_initial(&[3.0])?;
/// recorder.log_step(&StepRecord {
///     losses: Some(Losses::All(vec![2.5])),
///     ..StepRecord::new(Step::new(vec![0, 1], Some(1e-3)))
/// })?;
/// recorder.finish()?;
///
/// let run = RunSet::open(folder.path())?.read_run("run-0")?;
/// assert_eq!(run.trajectory.at_step(1), Some(&[2.5][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct RunSet {
    path: PathBuf,
    file: SetFile,
    train: Examples,
    test: Examples,
}

impl RunSet {
    /// Makes a run set in `folder`, which is created if it is not there.
    ///
    /// # Errors
    /// There is a run set already; no training or no test examples; an extra column with the name
    /// of a column of the format; the folder cannot be written.
    pub fn create(folder: &Path, train: &Examples, test: &Examples) -> Result<Self> {
        files::create_folder(folder)?;
        let _lock = lock::lock_set(folder)?;
        if folder.join(SET_FILE).exists() {
            return Err(RecorderError::RunSetExists {
                path: folder.to_owned(),
            });
        }
        Self::create_locked(folder, train, test)
    }

    /// Opens the run set in `folder` if it has exactly these examples; makes it if there is none.
    ///
    /// # Errors
    /// As [`RunSet::create`] and [`RunSet::open`]; a run set of other examples.
    pub fn create_or_open(folder: &Path, train: &Examples, test: &Examples) -> Result<Self> {
        files::create_folder(folder)?;
        let _lock = lock::lock_set(folder)?;
        if !folder.join(SET_FILE).exists() {
            return Self::create_locked(folder, train, test);
        }
        let set = Self::open(folder)?;
        let given = [
            ("training", &set.file.train_examples, train),
            ("test", &set.file.test_examples, test),
        ];
        for (which, recorded, examples) in given {
            let given = fingerprint(examples);
            if recorded.fingerprint != given {
                return Err(RecorderError::OtherExamples {
                    path: folder.to_owned(),
                    which,
                    recorded: recorded.fingerprint.clone(),
                    given,
                });
            }
        }
        Ok(set)
    }

    fn create_locked(folder: &Path, train: &Examples, test: &Examples) -> Result<Self> {
        examples::write(folder, Table::TrainExamples, train)?;
        examples::write(folder, Table::TestExamples, test)?;
        files::create_folder(&folder.join("runs"))?;
        let file = SetFile {
            format_version: FORMAT_VERSION,
            software: SOFTWARE.to_owned(),
            train_examples: ExamplesEntry::of(train),
            test_examples: ExamplesEntry::of(test),
            base_models: Vec::new(),
        };
        // Last: a folder is a run set once everything else is there.
        file.write(folder)?;
        Ok(Self {
            path: folder.to_owned(),
            file,
            train: train.clone(),
            test: test.clone(),
        })
    }

    /// Opens the run set in `folder` and checks its examples.
    ///
    /// # Errors
    /// No run set there; another format version; examples that are missing, malformed or other
    /// than those the run set was made with.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut problems = Vec::new();
        let set = Self::open_listing(folder, &mut problems)?;
        match problems.into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(set),
        }
    }

    /// Opens a run set even if its examples are not those it was made with; that is listed.
    pub(crate) fn open_listing(folder: &Path, problems: &mut Vec<RecorderError>) -> Result<Self> {
        let file = SetFile::read(folder)?;
        let train = examples::read(folder, Table::TrainExamples);
        let test = examples::read(folder, Table::TestExamples);
        let (train, test) = match (train, test) {
            (Ok(train), Ok(test)) => (train, test),
            (Err(first), Err(second)) => {
                problems.push(second);
                return Err(first);
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let tables = [
            (Table::TrainExamples, &file.train_examples, &train),
            (Table::TestExamples, &file.test_examples, &test),
        ];
        for (table, expected, examples) in tables {
            check_examples(folder, table, expected, examples, problems);
        }
        Ok(Self {
            path: folder.to_owned(),
            file,
            train,
            test,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The training examples in id order.
    pub fn train_examples(&self) -> &Examples {
        &self.train
    }

    /// The test examples in id order.
    pub fn test_examples(&self) -> &Examples {
        &self.test
    }

    /// Fingerprints of the training and of the test examples.
    pub fn fingerprints(&self) -> (&str, &str) {
        (
            &self.file.train_examples.fingerprint,
            &self.file.test_examples.fingerprint,
        )
    }

    /// Fingerprints of the base models that runs started from.
    ///
    /// # Errors
    /// `run_set.json` cannot be read.
    pub fn base_models(&self) -> Result<Vec<String>> {
        Ok(SetFile::read(&self.path)?.base_models)
    }

    pub(crate) fn add_base_model(&self, fingerprint: &str) -> Result<()> {
        let _lock = lock::lock_set(&self.path)?;
        let mut file = SetFile::read(&self.path)?;
        if !file.base_models.iter().any(|m| m == fingerprint) {
            file.base_models.push(fingerprint.to_owned());
            file.write(&self.path)?;
        }
        Ok(())
    }

    /// Ids of all runs, sorted.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn run_ids(&self) -> Result<Vec<String>> {
        let mut ids = files::names(&self.path.join("runs"))?;
        ids.retain(|id| self.run_folder(id).join(RUN_FILE).is_file());
        Ok(ids)
    }

    /// Whether there is a run with this id.
    pub fn has_run(&self, run: &str) -> bool {
        check_run_id(run).is_ok() && self.run_folder(run).join(RUN_FILE).is_file()
    }

    /// Settings and status of a run. A run that says it is being recorded while nobody records it
    /// was killed, and is reported as aborted.
    ///
    /// # Errors
    /// No such run; `run.json` cannot be read.
    pub fn read_info(&self, run: &str) -> Result<RunInfo> {
        let file = self.read_run_file(run)?;
        let mut info = file.info;
        if info.status == RunStatus::Recording && !lock::is_live(&self.run_folder(run)) {
            info.status = RunStatus::Aborted;
        }
        Ok(info)
    }

    /// Replaces settings and status of a run that nobody is recording.
    ///
    /// # Errors
    /// No such run; it is being recorded; `run.json` cannot be written.
    pub fn write_info(&self, run: &str, info: &RunInfo) -> Result<()> {
        let before = self.read_run_file(run)?;
        let folder = self.run_folder(run);
        let _lock = lock::lock_run(&folder, run)?;
        if let Some(model) = &info.base_model {
            self.add_base_model(model)?;
        }
        RunFile::new(run, info.clone(), before.recorded).write(&folder)
    }

    /// The checkpoints of a run: step and file, in order of steps.
    ///
    /// # Errors
    /// No such run; the folder cannot be listed.
    pub fn checkpoints(&self, run: &str) -> Result<Vec<(u32, PathBuf)>> {
        self.require_run(run)?;
        crate::checkpoint::list(&self.run_folder(run))
    }

    pub(crate) fn run_folder(&self, run: &str) -> PathBuf {
        self.path.join("runs").join(run)
    }

    pub(crate) fn require_run(&self, run: &str) -> Result<()> {
        if self.has_run(run) {
            return Ok(());
        }
        Err(RecorderError::UnknownRun {
            path: self.path.clone(),
            run: run.to_owned(),
        })
    }

    pub(crate) fn read_run_file(&self, run: &str) -> Result<RunFile> {
        self.require_run(run)?;
        RunFile::read(&self.run_folder(run), run)
    }

    /// What the footer of a segment of a run must say.
    pub(crate) fn provenance(&self, table: Table, run: &str) -> Provenance {
        let (train, test) = self.fingerprints();
        Provenance {
            table,
            run: Some(run.to_owned()),
            examples: Some((train.to_owned(), test.to_owned())),
        }
    }
}

fn check_examples(
    folder: &Path,
    table: Table,
    expected: &ExamplesEntry,
    examples: &Examples,
    problems: &mut Vec<RecorderError>,
) {
    let place = Place::file(&examples::first_file(folder, table));
    let got = ExamplesEntry::of(examples);
    if got.count != expected.count {
        let problem = Problem::Count {
            what: "examples",
            expected: expected.count,
            got: got.count,
        };
        problems.push(RecorderError::invalid(place.clone(), problem));
    }
    if got.fingerprint != expected.fingerprint {
        let problem = Problem::Fingerprint {
            which: examples::which(table),
            expected: expected.fingerprint.clone(),
            got: got.fingerprint,
        };
        problems.push(RecorderError::invalid(place, problem));
    }
}

/// Fails unless `run` can be the name of a folder on any system.
pub(crate) fn check_run_id(run: &str) -> Result<()> {
    let problem = if run.is_empty() {
        "it is empty"
    } else if run.len() > 200 {
        "it is longer than 200 bytes"
    } else if run.starts_with('.') {
        "it begins with a dot"
    } else if run
        .chars()
        .any(|c| c.is_control() || r#"/\:*?"<>|"#.contains(c))
    {
        r#"it has one of / \ : * ? " < > | or a control character"#
    } else {
        return Ok(());
    };
    Err(RecorderError::RunId {
        run: run.to_owned(),
        problem,
    })
}
