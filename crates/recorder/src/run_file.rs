//! `run.json`: settings and status of a run, and how much of it is recorded.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::files;
use crate::schema::FORMAT_VERSION;
use crate::table_file::unreadable;
use serde::{Deserialize, Serialize};
use simfluence_core::RunInfo;
use std::path::{Path, PathBuf};

/// Name of the file in the folder of a run.
pub(crate) const RUN_FILE: &str = "run.json";

/// How much is recorded; stands in `run.json` once a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// Rows of `steps`.
    pub steps: u32,
    /// Rows of `losses`.
    pub evaluations: u64,
    /// Segments of `steps`.
    pub step_segments: u32,
    /// Segments of `losses`.
    pub loss_segments: u32,
}

/// The content of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    format_version: u32,
    run: String,
    #[serde(flatten)]
    pub info: RunInfo,
    #[serde(default)]
    pub recorded: Option<Recorded>,
}

impl RunFile {
    pub fn new(run: &str, info: RunInfo, recorded: Option<Recorded>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            run: run.to_owned(),
            info,
            recorded,
        }
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| unreadable(&Place::run(&path(folder), &self.run), "JSON", e))?;
        text.push('\n');
        files::write_atomically(&path(folder), text.as_bytes())
    }

    pub fn read(folder: &Path, run: &str) -> Result<Self> {
        let path = path(folder);
        let place = Place::run(&path, run);
        let file: Self = read_json(&path, &place)?;
        if file.run != run {
            return Err(RecorderError::invalid(
                place,
                Problem::OtherRun { got: file.run },
            ));
        }
        Ok(file)
    }
}

pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(RUN_FILE)
}

/// Reads a JSON file of ours; the version is looked at before anything else.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, place: &Place) -> Result<T> {
    let bytes = files::read(path)?;
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| unreadable(place, "JSON", e))?;
    let version = &value["format_version"];
    if *version != FORMAT_VERSION {
        let problem = Problem::FormatVersion {
            expected: FORMAT_VERSION,
            got: version.to_string(),
        };
        return Err(RecorderError::invalid(place.clone(), problem));
    }
    // From the text and not from the value, so that an error has its line.
    serde_json::from_slice(&bytes).map_err(|e| unreadable(place, "JSON", e))
}
