//! The compiled part of the Python package `simfluence`: run sets, simulators and the program.
//!
//! What users see is written in Python (`python/simfluence`); this module hands over arrays,
//! Arrow tables and files, and releases the interpreter while it works.

mod analysis;
mod curves;
mod design;
mod errors;
mod progress;
mod recorder;
mod run_set;
mod tables;
mod work;

use pyo3::prelude::*;

/// The compiled part of simfluence.
#[pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::analysis::{
        additive, compare, describe, fit, program, scores, simulate, what_if, write_curriculum,
    };
    #[pymodule_export]
    use crate::curves::Curves;
    #[pymodule_export]
    use crate::design::Plan;
    #[pymodule_export]
    use crate::recorder::RunRecorder;
    #[pymodule_export]
    use crate::run_set::{RunSetFolder, check, merge};
    #[pymodule_export]
    use crate::tables::ArrowTable;
}
