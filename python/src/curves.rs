//! Losses over steps as arrays.

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use simfluence::core::Trajectory;

/// Losses after some steps, as NumPy arrays that own their memory.
#[pyclass(frozen, get_all)]
pub struct Curves {
    /// Steps, `uint32 [steps]`; 0 is before any step.
    steps: Py<PyArray1<u32>>,
    /// Losses, `float32 [steps × test]`.
    values: Py<PyArray2<f32>>,
    /// Which were measured, `bool [steps × test]`; `None` for all.
    measured: Option<Py<PyArray2<bool>>>,
}

impl Curves {
    /// The arrays of a trajectory.
    pub fn new(py: Python<'_>, trajectory: &Trajectory) -> PyResult<Self> {
        let shape = [trajectory.steps().len(), trajectory.test_count()];
        let measured = if trajectory.is_complete() {
            None
        } else {
            let rows = 0..shape[0];
            let all = rows.flat_map(|row| (0..shape[1]).map(move |test| (row, test)));
            let flags: Vec<bool> = all
                .map(|(row, test)| trajectory.get(row, test).is_some())
                .collect();
            Some(PyArray1::from_vec(py, flags).reshape(shape)?.unbind())
        };
        Ok(Self {
            steps: PyArray1::from_slice(py, trajectory.steps()).unbind(),
            values: PyArray1::from_slice(py, trajectory.values())
                .reshape(shape)?
                .unbind(),
            measured,
        })
    }
}
