//! Opening a run set and splitting its runs, as several subcommands do.

use crate::cli::SplitArgs;
use anyhow::{Context, Error, Result, anyhow, bail};
use simfluence_core::{Progress, Run, Simulator};
use simfluence_evaluation::{RunSelection, SplitRuns, SplitSettings, split_runs};
use simfluence_recorder::{RunSet, read_artifact};
use std::path::Path;

/// A run set with its runs read.
pub struct OpenRuns {
    /// The run set.
    pub set: RunSet,
    /// Its runs, by id: all, or those that were asked for.
    pub runs: Vec<Run>,
}

impl OpenRuns {
    /// Reads the whole run set.
    pub fn read(folder: &Path, progress: &dyn Progress) -> Result<Self> {
        let (set, ids) = open(folder)?;
        let runs = set.read_runs(&ids, progress)?;
        Ok(Self { set, runs })
    }

    /// Reads the runs with these ids only; the first one of the run set if there are none.
    pub fn read_only(folder: &Path, wanted: &[&str], progress: &dyn Progress) -> Result<Self> {
        let (set, ids) = open(folder)?;
        if let Some(unknown) = wanted.iter().find(|id| !set.has_run(id)) {
            return Err(no_such_run(unknown, ids.iter().map(String::as_str)));
        }
        let mut ids = ids;
        match wanted {
            [] => ids.truncate(1),
            _ => ids.retain(|id| wanted.contains(&id.as_str())),
        }
        let runs = set.read_runs(&ids, progress)?;
        Ok(Self { set, runs })
    }

    /// The run with this id.
    pub fn run(&self, id: &str) -> Result<&Run> {
        let found = self.runs.iter().find(|r| r.id == id);
        found.ok_or_else(|| no_such_run(id, self.runs.iter().map(|r| r.id.as_str())))
    }

    /// Splits the runs; tells on standard error which are left out and why.
    pub fn split(&self, args: &SplitArgs) -> Result<SplitRuns<'_>> {
        let split = split_runs(&self.runs, &split_settings(args)?)?;
        for left_out in &split.left_out {
            eprintln!("left out: {}: {}", left_out.run, left_out.reason);
        }
        Ok(split)
    }

    /// Number of training examples.
    pub fn train_count(&self) -> usize {
        self.set.train_examples().len()
    }

    /// The simulator in a file, over the examples of this run set.
    pub fn load_simulator(&self, path: &Path) -> Result<Box<dyn Simulator>> {
        let artifact = read_artifact(path)?;
        let keys = |name: &str| -> Result<Vec<String>> {
            artifact
                .json(name)
                .with_context(|| format!("{}", path.display()))
        };
        self.check_keys(path, &keys("train_keys")?, &keys("test_keys")?)?;
        simfluence_simulators::load(&artifact).with_context(|| format!("{}", path.display()))
    }

    /// Fails unless a file is over exactly the examples of this run set.
    pub fn check_keys(&self, path: &Path, train: &[String], test: &[String]) -> Result<()> {
        for (axis, got, examples) in [
            ("training", train, self.set.train_examples()),
            ("test", test, self.set.test_examples()),
        ] {
            if got != examples.keys() {
                bail!(
                    "{}: its {} {axis} examples are not the {} of this run set; use the run set that it was made from",
                    path.display(),
                    got.len(),
                    examples.len()
                );
            }
        }
        Ok(())
    }
}

/// A run set and the ids of its runs, of which there is one at least.
fn open(folder: &Path) -> Result<(RunSet, Vec<String>)> {
    let set = RunSet::open(folder)?;
    let ids = set.run_ids()?;
    if ids.is_empty() {
        bail!("{}: the run set has no runs yet", folder.display());
    }
    Ok((set, ids))
}

fn no_such_run<'a>(id: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.collect();
    anyhow!("there is no run {id:?}; the runs are: {}", known.join(", "))
}

/// What the arguments say about the split.
pub fn split_settings(args: &SplitArgs) -> Result<SplitSettings> {
    let selection = |texts: &[String]| -> Result<Option<RunSelection>> {
        if texts.is_empty() {
            return Ok(None);
        }
        Ok(Some(RunSelection::parse(&texts.join(","))?))
    };
    Ok(SplitSettings {
        train: selection(&args.train_runs)?,
        test: selection(&args.test_runs)?,
        seed: args.seed,
        ..SplitSettings::default()
    })
}
