//! Run sets on disk: a recorder for training loops, a reader that checks everything, importers.
//!
//! A run set is a folder. `docs/format.md` describes it line by line.
//!
//! - [`RunSet`] makes, opens and reads one, [`Recorder`] adds a run while it is trained;
//! - [`check()`] lists everything that is wrong with one and what is in it;
//! - [`import_gptdynamics`] and [`import_tables`] make one of logs from elsewhere;
//! - [`merge()`] makes one of several;
//! - [`write_plan`], [`write_curriculum`], [`write_trajectory`] and [`write_artifact`] write the
//!   other files that the program gives and takes.
//!
//! Everything is Parquet and JSON, written to a temporary file, synced and renamed: a file is there
//! whole or not at all. A number that is missing is null or absent; a NaN is an observation.

mod check;
mod checkpoint;
mod error;
mod examples;
mod export;
mod files;
mod flat_lists;
mod import;
mod lock;
mod merge;
mod plan;
mod reader;
mod record;
mod recorder;
mod resume;
mod rows;
mod run_file;
mod run_set;
pub mod schema;
mod segment;
mod table_file;

pub use check::{CheckProblem, CheckReport, Extent, RunSummary, check};
pub use error::{Place, Problem, RecorderError, Result};
pub use examples::fingerprint;
pub use export::{write_banded, write_trajectory};
pub use files::{read_artifact, write_artifact, write_atomically};
pub use import::{
    ColumnNames, ImportReport, TableImport, import_gptdynamics, import_tables, read_features,
};
pub use merge::merge;
pub use plan::{read_curriculum, read_plan, write_curriculum, write_plan};
pub use record::{LOSS, Losses, StepRecord};
pub use recorder::{Recorder, RecorderOptions};
pub use run_set::RunSet;
