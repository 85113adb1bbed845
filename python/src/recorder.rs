//! Recording a run.

use crate::errors;
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use simfluence::core::{RunInfo, Step};
use simfluence::recorder::{Losses, Recorder, RecorderOptions, RunSet, StepRecord};
use std::path::PathBuf;
use std::time::Duration;

/// Losses or another metric: name, test ids (`None` for all), values.
type Metric<'py> = (
    String,
    Option<PyReadonlyArray1<'py, u32>>,
    PyReadonlyArray1<'py, f32>,
);

/// Records one run; see `simfluence.Recorder`.
#[pyclass]
pub struct RunRecorder {
    recorder: Option<Recorder>,
}

impl RunRecorder {
    /// Begins a run of a run set.
    pub fn create(set: &RunSet, run: &str, info: &str, options: RecorderOptions) -> PyResult<Self> {
        let info: RunInfo = serde_json::from_str(info).map_err(errors::error)?;
        let recorder = Recorder::create(set, run, info, options).map_err(errors::run_set)?;
        Ok(Self {
            recorder: Some(recorder),
        })
    }

    /// Goes on with a run after `at_step` steps.
    pub fn resume(
        set: &RunSet,
        run: &str,
        at_step: u32,
        options: RecorderOptions,
    ) -> PyResult<Self> {
        let recorder = Recorder::resume_with(set, run, at_step, options);
        Ok(Self {
            recorder: Some(recorder.map_err(errors::run_set)?),
        })
    }

    fn open(&self) -> PyResult<&Recorder> {
        self.recorder.as_ref().ok_or_else(ended)
    }

    fn open_mut(&mut self) -> PyResult<&mut Recorder> {
        self.recorder.as_mut().ok_or_else(ended)
    }
}

fn ended() -> PyErr {
    errors::RunSetError::new_err("the run has ended; nothing more can be recorded in it")
}

/// When segments close: the defaults, except where given.
pub fn options(
    segment_rows: Option<usize>,
    segment_seconds: Option<f64>,
) -> PyResult<RecorderOptions> {
    let mut options = RecorderOptions::default();
    if let Some(rows) = segment_rows {
        if rows == 0 {
            return Err(errors::UsageError::new_err(
                "segment_rows must be at least 1",
            ));
        }
        options.segment_rows = rows;
    }
    if let Some(seconds) = segment_seconds {
        options.segment_age = Duration::try_from_secs_f64(seconds)
            .map_err(|e| errors::UsageError::new_err(format!("segment_seconds: {e}")))?;
    }
    Ok(options)
}

fn losses(
    ids: Option<&PyReadonlyArray1<'_, u32>>,
    values: &PyReadonlyArray1<'_, f32>,
) -> PyResult<Losses> {
    let values = values.as_slice()?.to_vec();
    Ok(match ids {
        None => Losses::All(values),
        Some(ids) => Losses::Subset {
            test_ids: ids.as_slice()?.to_vec(),
            values,
        },
    })
}

fn owned<T: numpy::Element + Copy>(
    array: Option<&PyReadonlyArray1<'_, T>>,
) -> PyResult<Option<Vec<T>>> {
    match array {
        None => Ok(None),
        Some(array) => Ok(Some(array.as_slice()?.to_vec())),
    }
}

#[pymethods]
impl RunRecorder {
    /// Id of the run.
    #[getter]
    fn run(&self) -> PyResult<String> {
        Ok(self.open()?.run().to_owned())
    }

    /// Steps recorded so far.
    #[getter]
    fn steps(&self) -> PyResult<u32> {
        Ok(self.open()?.steps())
    }

    /// Whether the losses before the first step are recorded.
    #[getter]
    fn has_initial(&self) -> PyResult<bool> {
        Ok(self.open()?.has_initial())
    }

    /// Whether the run can still be recorded.
    #[getter]
    fn is_open(&self) -> bool {
        self.recorder.is_some()
    }

    /// Records losses or other metrics before the first step.
    fn log_initial(&mut self, metrics: Vec<Metric<'_>>) -> PyResult<()> {
        let recorder = self.open_mut()?;
        for (name, ids, values) in &metrics {
            let losses = losses(ids.as_ref(), values)?;
            recorder
                .log_initial_metric(name, &losses)
                .map_err(errors::run_set)?;
        }
        Ok(())
    }

    /// Records a step.
    #[pyo3(signature = (batch, learning_rate, weights, micro, batch_loss, grad_norm, metrics, number = None))]
    #[allow(clippy::too_many_arguments)]
    fn log_step(
        &mut self,
        batch: PyReadonlyArray1<'_, u32>,
        learning_rate: Option<f32>,
        weights: Option<PyReadonlyArray1<'_, f32>>,
        micro: Option<PyReadonlyArray1<'_, u16>>,
        batch_loss: Option<PyReadonlyArray1<'_, f32>>,
        grad_norm: Option<f32>,
        metrics: Vec<Metric<'_>>,
        number: Option<u32>,
    ) -> PyResult<()> {
        let step = Step {
            batch: batch.as_slice()?.to_vec(),
            weights: owned(weights.as_ref())?,
            learning_rate,
        };
        let mut record = StepRecord {
            number,
            micro: owned(micro.as_ref())?,
            batch_loss: owned(batch_loss.as_ref())?,
            grad_norm,
            ..StepRecord::new(step)
        };
        for (name, ids, values) in &metrics {
            let losses = losses(ids.as_ref(), values)?;
            match name == simfluence::recorder::LOSS {
                true => record.losses = Some(losses),
                false => record.metrics.push((name.clone(), losses)),
            }
        }
        self.open_mut()?.log_step(&record).map_err(errors::run_set)
    }

    /// Closes the open segment.
    fn flush(&mut self) -> PyResult<()> {
        self.open_mut()?.flush().map_err(errors::run_set)
    }

    /// Saves a checkpoint, given as the bytes of a safetensors file; gives its path.
    fn save_checkpoint(&mut self, step: u32, bytes: &[u8]) -> PyResult<PathBuf> {
        let saved = self.open_mut()?.save_checkpoint_bytes(step, bytes);
        saved.map_err(errors::run_set)
    }

    /// Ends the run; gives its status.
    fn finish(&mut self) -> PyResult<String> {
        let recorder = self.recorder.take().ok_or_else(ended)?;
        Ok(recorder.finish().map_err(errors::run_set)?.to_string())
    }

    /// Ends the run before its last step; gives its status.
    fn abort(&mut self) -> PyResult<String> {
        let recorder = self.recorder.take().ok_or_else(ended)?;
        Ok(recorder.abort().map_err(errors::run_set)?.to_string())
    }
}
