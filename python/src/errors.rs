//! Errors as Python exceptions; their messages are kept.

use pyo3::PyErr;
use simfluence::program::ProgramError;
use simfluence::recorder::RecorderError;

pyo3::import_exception!(simfluence._errors, Error);
pyo3::import_exception!(simfluence._errors, UsageError);
pyo3::import_exception!(simfluence._errors, RunSetError);

/// Any error of the libraries.
pub fn error(error: impl std::fmt::Display) -> PyErr {
    Error::new_err(error.to_string())
}

/// An error of the program: wrong arguments are told from failed work.
pub fn program(error: ProgramError) -> PyErr {
    match error {
        ProgramError::Usage(text) => UsageError::new_err(text),
        ProgramError::Failed(text) => Error::new_err(text),
    }
}

/// An error of a run set on disk.
pub fn run_set(error: RecorderError) -> PyErr {
    RunSetError::new_err(error.to_string())
}
