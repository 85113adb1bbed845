//! Logs from elsewhere become run sets. Nothing is dropped without a word: what is left out or
//! doubtful is in [`ImportReport::warnings`].

mod gptdynamics;
mod raw;
mod sheet;
mod tables;

pub use gptdynamics::import_gptdynamics;
pub use tables::{ColumnNames, TableImport, import_tables};

use crate::error::{Place, Problem, RecorderError};
use serde::Serialize;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Ids of the imported runs, sorted.
    pub runs: Vec<String>,
    /// Training examples `n`.
    pub train_examples: usize,
    /// Test examples `m`.
    pub test_examples: usize,
    /// What was left out or is doubtful, with its place.
    pub warnings: Vec<String>,
}

fn wrong(place: &Place, message: impl Into<String>) -> RecorderError {
    let message = message.into();
    RecorderError::invalid(place.clone(), Problem::Import { message })
}
