//! Run sets on disk.

use crate::curves::Curves;
use crate::recorder::{RunRecorder, options};
use crate::tables::{
    ArrowTable, float_lists, floats, number_lists, numbers, small_number_lists, text_lists, texts,
};
use crate::work::{interruptible, released, require_threads};
use crate::{errors, tables};
use pyo3::prelude::*;
use simfluence::core::{Example, Examples, RunInfo};
use simfluence::recorder::RunSet;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// An example: key, dataset, tags, further columns.
type GivenExample = (String, String, Vec<String>, BTreeMap<String, String>);

/// A run set; see `simfluence.RunSet`.
#[pyclass(frozen)]
pub struct RunSetFolder {
    set: RunSet,
}

fn examples(given: Vec<GivenExample>) -> PyResult<Examples> {
    let list = given
        .into_iter()
        .map(|(key, dataset, tags, extra)| Example {
            key,
            dataset,
            tags,
            extra,
        });
    Examples::new(list.collect()).map_err(errors::error)
}

fn example_table(id: &str, examples: &Examples) -> PyResult<ArrowTable> {
    let all = examples.as_slice();
    let extra: BTreeSet<&str> =
        (all.iter().flat_map(|e| e.extra.keys()).map(String::as_str)).collect();
    let mut columns = vec![
        (id, numbers((0..all.len() as u32).collect())),
        ("key", texts(all.iter().map(|e| Some(e.key.as_str())))),
        (
            "dataset",
            texts(all.iter().map(|e| Some(e.dataset.as_str()))),
        ),
        ("tags", text_lists(all.iter().map(|e| e.tags.as_slice()))),
    ];
    for name in extra {
        columns.push((name, texts(all.iter().map(|e| e.column(name)))));
    }
    ArrowTable::new(columns)
}

#[pymethods]
impl RunSetFolder {
    /// Opens a run set.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let set = released(py, || RunSet::open(&path))?.map_err(errors::run_set)?;
        Ok(Self { set })
    }

    /// Opens the run set of exactly these examples, or makes it.
    #[staticmethod]
    fn create_or_open(
        path: PathBuf,
        train: Vec<GivenExample>,
        test: Vec<GivenExample>,
    ) -> PyResult<Self> {
        require_threads()?;
        let set = RunSet::create_or_open(&path, &examples(train)?, &examples(test)?);
        Ok(Self {
            set: set.map_err(errors::run_set)?,
        })
    }

    /// The folder.
    #[getter]
    fn path(&self) -> PathBuf {
        self.set.path().to_owned()
    }

    /// Ids of all runs, sorted.
    fn run_ids(&self) -> PyResult<Vec<String>> {
        self.set.run_ids().map_err(errors::run_set)
    }

    /// Whether there is a run of this id.
    fn has_run(&self, run: &str) -> bool {
        self.set.has_run(run)
    }

    /// Settings and status of a run, as JSON.
    fn info(&self, run: &str) -> PyResult<String> {
        let info = self.set.read_info(run).map_err(errors::run_set)?;
        serde_json::to_string(&info).map_err(errors::error)
    }

    /// Replaces settings of a run that has ended.
    fn write_info(&self, run: &str, info: &str) -> PyResult<()> {
        let info: RunInfo = serde_json::from_str(info).map_err(errors::error)?;
        self.set.write_info(run, &info).map_err(errors::run_set)
    }

    /// Numbers of training and test examples.
    #[getter]
    fn counts(&self) -> (usize, usize) {
        (
            self.set.train_examples().len(),
            self.set.test_examples().len(),
        )
    }

    /// Keys of the training and of the test examples.
    #[getter]
    fn keys(&self) -> (Vec<String>, Vec<String>) {
        (
            self.set.train_examples().keys(),
            self.set.test_examples().keys(),
        )
    }

    /// Datasets of the training and of the test examples, one per example.
    #[getter]
    fn datasets(&self) -> (Vec<String>, Vec<String>) {
        let of = |examples: &Examples| {
            let all = examples.as_slice().iter();
            all.map(|e| e.dataset.clone()).collect()
        };
        (of(self.set.train_examples()), of(self.set.test_examples()))
    }

    /// The training examples.
    fn train_examples(&self) -> PyResult<ArrowTable> {
        example_table("train_id", self.set.train_examples())
    }

    /// The test examples.
    fn test_examples(&self) -> PyResult<ArrowTable> {
        example_table("test_id", self.set.test_examples())
    }

    /// Names of the metrics of a run.
    fn metrics(&self, py: Python<'_>, run: &str) -> PyResult<Vec<String>> {
        released(py, || self.set.metrics(run))?.map_err(errors::run_set)
    }

    /// One metric of a run.
    fn curves(&self, py: Python<'_>, run: &str, metric: &str) -> PyResult<Curves> {
        let read = released(py, || self.set.read_metric(run, metric))?;
        Curves::new(py, &read.map_err(errors::run_set)?)
    }

    /// What a run was trained on, one row per step.
    fn steps(&self, py: Python<'_>, run: &str) -> PyResult<ArrowTable> {
        let read = released(py, || self.set.read_step_records(run))?;
        let rows = read.map_err(errors::run_set)?;
        let number = |r: &simfluence::recorder::StepRecord| r.number.unwrap_or_default();
        ArrowTable::new(vec![
            ("step", numbers(rows.iter().map(number).collect())),
            (
                "learning_rate",
                floats(rows.iter().map(|r| r.step.learning_rate)),
            ),
            (
                "batch",
                number_lists(rows.iter().map(|r| r.step.batch.as_slice())),
            ),
            (
                "batch_weight",
                float_lists(rows.iter().map(|r| r.step.weights.as_deref())),
            ),
            (
                "batch_micro",
                small_number_lists(rows.iter().map(|r| r.micro.as_deref())),
            ),
            (
                "batch_loss",
                float_lists(rows.iter().map(|r| r.batch_loss.as_deref())),
            ),
            ("grad_norm", floats(rows.iter().map(|r| r.grad_norm))),
        ])
    }

    /// What a run was trained on, as lists: batches, learning rates, weights, batch losses.
    #[allow(clippy::type_complexity)]
    fn curriculum(
        &self,
        py: Python<'_>,
        run: &str,
    ) -> PyResult<(
        Vec<Vec<u32>>,
        Vec<Option<f32>>,
        Vec<Option<Vec<f32>>>,
        Vec<Option<Vec<f32>>>,
    )> {
        let read = released(py, || self.set.read_step_records(run))?;
        let rows = read.map_err(errors::run_set)?;
        let (mut batches, mut rates) = (Vec::new(), Vec::new());
        let (mut weights, mut batch_losses) = (Vec::new(), Vec::new());
        for row in rows {
            batches.push(row.step.batch);
            rates.push(row.step.learning_rate);
            weights.push(row.step.weights);
            batch_losses.push(row.batch_loss);
        }
        Ok((batches, rates, weights, batch_losses))
    }

    /// One metric of a run as a long table.
    fn losses(&self, py: Python<'_>, run: &str, metric: &str) -> PyResult<ArrowTable> {
        let read = released(py, || self.set.read_metric(run, metric))?;
        let trajectory = read.map_err(errors::run_set)?;
        let test = self.set.test_examples().as_slice();
        let (mut steps, mut ids, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (index, &step) in trajectory.steps().iter().enumerate() {
            for id in 0..trajectory.test_count() {
                if let Some(value) = trajectory.get(index, id) {
                    steps.push(step);
                    ids.push(id as u32);
                    values.push(Some(value));
                }
            }
        }
        let example = |id: &u32| &test[*id as usize];
        tables::ArrowTable::new(vec![
            ("step", numbers(steps)),
            (
                "key",
                texts(ids.iter().map(|id| Some(example(id).key.as_str()))),
            ),
            (
                "dataset",
                texts(ids.iter().map(|id| Some(example(id).dataset.as_str()))),
            ),
            ("test_id", numbers(ids)),
            (metric, floats(values)),
        ])
    }

    /// Begins a run.
    #[pyo3(signature = (run, info, segment_rows = None, segment_seconds = None))]
    fn recorder(
        &self,
        run: &str,
        info: &str,
        segment_rows: Option<usize>,
        segment_seconds: Option<f64>,
    ) -> PyResult<RunRecorder> {
        RunRecorder::create(
            &self.set,
            run,
            info,
            options(segment_rows, segment_seconds)?,
        )
    }

    /// Goes on with a run.
    #[pyo3(signature = (run, at_step, segment_rows = None, segment_seconds = None))]
    fn resume(
        &self,
        run: &str,
        at_step: u32,
        segment_rows: Option<usize>,
        segment_seconds: Option<f64>,
    ) -> PyResult<RunRecorder> {
        RunRecorder::resume(
            &self.set,
            run,
            at_step,
            options(segment_rows, segment_seconds)?,
        )
    }
}

/// Everything that is in a run set and what is wrong with it, as JSON.
#[pyfunction]
pub fn check(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    let report = released(py, || simfluence::recorder::check(&path))?;
    serde_json::to_string(&report.map_err(errors::run_set)?).map_err(errors::error)
}

/// Makes one run set of several; gives the ids of its runs.
#[pyfunction]
pub fn merge(
    py: Python<'_>,
    sources: Vec<PathBuf>,
    target: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<String>> {
    interruptible(py, progress, |progress| {
        simfluence::recorder::merge(&sources, &target, progress)
    })?
    .map_err(errors::run_set)
}
