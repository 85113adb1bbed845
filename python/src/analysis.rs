//! The program and its subcommands.

use crate::curves::Curves;
use crate::errors;
use crate::work::interruptible;
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use simfluence::core::{Artifact, Curriculum, Scores, Step, Trajectory};
use simfluence::program::GivenScores;
use std::ffi::OsString;
use std::path::PathBuf;

/// Runs the command line and gives its exit status.
#[pyfunction]
pub fn program(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| simfluence::program::run(arguments))
}

/// Fits a simulator: the bytes of its file, and how the fit went as JSON.
#[pyfunction]
pub fn fit(
    py: Python<'_>,
    arguments: Vec<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Vec<u8>, String)> {
    let fitted = interruptible(py, progress, |progress| {
        simfluence::program::fit(&arguments, progress)
    })?;
    let fitted = fitted.map_err(errors::program)?;
    Ok((bytes(&fitted.artifact)?, fitted.report))
}

fn bytes(artifact: &Artifact) -> PyResult<Vec<u8>> {
    artifact.to_bytes().map_err(errors::error)
}

fn curves(py: Python<'_>, trajectory: Option<&Trajectory>) -> PyResult<Option<Curves>> {
    trajectory.map(|t| Curves::new(py, t)).transpose()
}

/// Simulates: name of the simulator, losses, ends of the bands, distance from what was recorded.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn simulate(
    py: Python<'_>,
    arguments: Vec<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(String, Curves, Option<Curves>, Option<Curves>, Option<f64>)> {
    let simulated = interruptible(py, progress, |progress| {
        simfluence::program::simulate(&arguments, progress)
    })?;
    let simulated = simulated.map_err(errors::program)?;
    let banded = simulated.banded.as_ref();
    Ok((
        simulated.simulator.clone(),
        Curves::new(py, &simulated.trajectory)?,
        curves(py, banded.map(|b| &b.low))?,
        curves(py, banded.map(|b| &b.high))?,
        banded.map(|b| b.distance),
    ))
}

/// Answers a what-if: the answer as JSON; the real, the predicted, the simulated unedited and the
/// simulated edited losses; ends of the band around the predicted ones.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn what_if(
    py: Python<'_>,
    arguments: Vec<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(
    String,
    Curves,
    Curves,
    Curves,
    Curves,
    Option<(Curves, Curves)>,
)> {
    let answer = interruptible(py, progress, |progress| {
        simfluence::program::what_if(&arguments, progress)
    })?;
    let answer = answer.map_err(errors::program)?;
    let band = match &answer.band {
        Some((low, high)) => Some((Curves::new(py, low)?, Curves::new(py, high)?)),
        None => None,
    };
    Ok((
        answer.answer,
        Curves::new(py, &answer.real)?,
        Curves::new(py, &answer.predicted)?,
        Curves::new(py, &answer.simulated_now)?,
        Curves::new(py, &answer.simulated_then)?,
        band,
    ))
}

/// Compares methods: as text, JSON and CSV.
#[pyfunction]
pub fn compare(
    py: Python<'_>,
    arguments: Vec<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(String, String, String)> {
    let compared = interruptible(py, progress, |progress| {
        simfluence::program::compare(&arguments, progress)
    })?;
    let compared = compared.map_err(errors::program)?;
    Ok((compared.table, compared.json, compared.csv))
}

/// Makes simulators of scores `[train × test]`, given row by row: the bytes of the files of their
/// simulator and of their calibrated simulator.
#[pyfunction]
pub fn additive(
    py: Python<'_>,
    method: String,
    scores: PyReadonlyArray1<'_, f32>,
    reference_learning_rate: Option<f64>,
    has_natural_unit: bool,
    arguments: Vec<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Vec<u8>, Vec<u8>)> {
    let given = GivenScores {
        method,
        values: scores.as_slice()?.to_vec(),
        reference_learning_rate,
        has_natural_unit,
    };
    let made = interruptible(py, progress, |progress| {
        simfluence::program::additive(given, &arguments, progress)
    })?;
    let made = made.map_err(errors::program)?;
    Ok((bytes(&made.simulator)?, bytes(&made.calibrated)?))
}

/// The scores in the bytes of a scores file or of an additive simulator, as a scores file of the
/// method `name`.
#[pyfunction]
pub fn scores(data: &[u8], name: String) -> PyResult<Vec<u8>> {
    let artifact = Artifact::from_bytes(data).map_err(errors::error)?;
    let read = Scores::read(&artifact).map_err(errors::error)?;
    bytes(
        &Scores {
            method: name,
            ..read
        }
        .to_artifact(),
    )
}

/// The text entries of a scores or simulator file.
#[pyfunction]
pub fn describe(bytes: &[u8]) -> PyResult<std::collections::BTreeMap<String, String>> {
    let artifact = Artifact::from_bytes(bytes).map_err(errors::error)?;
    Ok(artifact.metadata.into_iter().collect())
}

/// Writes a curriculum file.
#[pyfunction]
pub fn write_curriculum(
    path: PathBuf,
    batches: Vec<Vec<u32>>,
    learning_rates: Vec<Option<f32>>,
    weights: Option<Vec<Option<Vec<f32>>>>,
    train_count: usize,
) -> PyResult<()> {
    let weights = weights.unwrap_or_else(|| vec![None; batches.len()]);
    if learning_rates.len() != batches.len() || weights.len() != batches.len() {
        let text = format!(
            "{} batches, {} learning rates and {} weights; give one of each per step",
            batches.len(),
            learning_rates.len(),
            weights.len()
        );
        return Err(errors::UsageError::new_err(text));
    }
    let steps = batches.into_iter().zip(learning_rates).zip(weights);
    let steps = steps.map(|((batch, learning_rate), weights)| Step {
        batch,
        weights,
        learning_rate,
    });
    let curriculum = Curriculum::new(steps.collect(), train_count).map_err(errors::error)?;
    simfluence::recorder::write_curriculum(&path, &curriculum).map_err(errors::run_set)
}
