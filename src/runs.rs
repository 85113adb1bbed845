//! Opening a run set and splitting its runs, as several subcommands do.

use crate::cli::SplitArgs;
use anyhow::{Context, Result, bail};
use simfluence_core::{Run, Simulator};
use simfluence_evaluation::{RunSelection, SplitRuns, SplitSettings, split_runs};
use simfluence_recorder::{RunSet, read_artifact};
use std::path::Path;

/// A run set with all its runs read.
pub struct OpenRuns {
    /// The run set.
    pub set: RunSet,
    /// Its runs, by id.
    pub runs: Vec<Run>,
}

impl OpenRuns {
    /// Reads the whole run set.
    pub fn read(folder: &Path) -> Result<Self> {
        let set = RunSet::open(folder)?;
        let ids = set.run_ids()?;
        if ids.is_empty() {
            bail!("{}: the run set has no runs yet", folder.display());
        }
        let runs = set.read_runs(&ids)?;
        Ok(Self { set, runs })
    }

    /// Reads one run of a run set, or all of them if there is no such run.
    pub fn read_one(folder: &Path, id: &str) -> Result<Self> {
        let set = RunSet::open(folder)?;
        if !set.has_run(id) {
            return Self::read(folder);
        }
        let runs = vec![set.read_run(id)?];
        Ok(Self { set, runs })
    }

    /// The run with this id.
    pub fn run(&self, id: &str) -> Result<&Run> {
        self.runs.iter().find(|r| r.id == id).with_context(|| {
            let known: Vec<&str> = self.runs.iter().map(|r| r.id.as_str()).collect();
            format!("there is no run {id:?}; the runs are: {}", known.join(", "))
        })
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
