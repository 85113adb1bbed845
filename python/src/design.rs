//! Plans: the curricula of runs that are still to be trained.

use crate::errors;
use pyo3::prelude::*;
use simfluence::core::design::{DesignSettings, PlannedRun, RunShape, draw_plan};
use simfluence::core::{Examples, Schedule};
use simfluence::recorder::{read_plan, write_plan};
use std::path::PathBuf;

/// Planned runs; see `simfluence.Plan`.
#[pyclass(frozen)]
pub struct Plan {
    runs: Vec<PlannedRun>,
}

#[pymethods]
impl Plan {
    /// Draws the runs of a design; `settings` and `schedule` are JSON, `datasets` has the dataset
    /// of each training example.
    #[staticmethod]
    fn draw(
        settings: &str,
        schedule: &str,
        steps: u32,
        batch_size: u32,
        learning_rate: f64,
        datasets: Vec<String>,
    ) -> PyResult<Self> {
        let usage = |e: serde_json::Error| errors::UsageError::new_err(e.to_string());
        let settings: DesignSettings = serde_json::from_str(settings).map_err(usage)?;
        let schedule: Schedule = serde_json::from_str(schedule).map_err(usage)?;
        let shape = RunShape {
            steps,
            batch_size,
            learning_rate,
            schedule,
        };
        let named = datasets.into_iter().enumerate();
        let examples = named.map(|(i, d)| simfluence::core::Example::new(i.to_string(), d));
        let examples = Examples::new(examples.collect()).map_err(errors::error)?;
        let (names, dataset_of) = examples.groups("dataset");
        let runs = draw_plan(&settings, &shape, &names, &dataset_of);
        Ok(Self {
            runs: runs.map_err(|e| errors::UsageError::new_err(e.to_string()))?,
        })
    }

    /// Reads a plan file over `train_count` training examples.
    #[staticmethod]
    fn read(path: PathBuf, train_count: usize) -> PyResult<Self> {
        let runs = read_plan(&path, train_count).map_err(errors::run_set)?;
        Ok(Self { runs })
    }

    /// Writes the plan to a file.
    fn write(&self, path: PathBuf) -> PyResult<()> {
        write_plan(&path, &self.runs).map_err(errors::run_set)
    }

    /// Ids of the runs, in order.
    #[getter]
    fn ids(&self) -> Vec<String> {
        self.runs.iter().map(|run| run.id.clone()).collect()
    }

    /// A run: its seed, its design as JSON, its batches and its learning rates.
    #[allow(clippy::type_complexity)]
    fn run(&self, index: usize) -> PyResult<(u64, String, Vec<Vec<u32>>, Vec<Option<f32>>)> {
        let run = self.runs.get(index).ok_or_else(|| {
            errors::UsageError::new_err(format!("run {index} of a plan of {}", self.runs.len()))
        })?;
        let steps = run.curriculum.steps();
        let design = serde_json::to_string(&run.design).map_err(errors::error)?;
        Ok((
            run.seed,
            design,
            steps.iter().map(|step| step.batch.clone()).collect(),
            steps.iter().map(|step| step.learning_rate).collect(),
        ))
    }
}
