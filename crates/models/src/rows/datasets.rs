//! Folders as the Python library `datasets` writes them (`Dataset.save_to_disk`,
//! `DatasetDict.save_to_disk`).
//!
//! A dataset is `state.json`, which names its data files in order, `dataset_info.json`, and the
//! data files, each an Arrow stream. Several datasets together ("splits") are one folder each
//! beside `dataset_dict.json`, which names them.

use super::{Row, arrow, unreadable};
use crate::text::TextError;
use serde::Deserialize;
use std::path::Path;

const STATE: &str = "state.json";
const SPLITS: &str = "dataset_dict.json";

#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
    /// Rows that were picked but not written out; `save_to_disk` writes them out.
    #[serde(rename = "_indices_files", default)]
    indices_files: Option<Vec<DataFile>>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

#[derive(Deserialize)]
struct Splits {
    splits: Vec<String>,
}

pub(super) fn read(folder: &Path, split: Option<&str>) -> Result<Vec<Row>, TextError> {
    if folder.join(SPLITS).exists() {
        let Splits { splits } = read_json(&folder.join(SPLITS))?;
        return match split {
            Some(split) if splits.iter().any(|known| known == split) => {
                read_one(&folder.join(split))
            }
            _ => Err(TextError::Split {
                path: folder.to_owned(),
                got: split.map(str::to_owned),
                splits: splits.join(", "),
            }),
        };
    }
    if !folder.join(STATE).exists() {
        return Err(TextError::NoDataset {
            path: folder.to_owned(),
        });
    }
    if split.is_some() {
        return Err(TextError::SplitOfFile {
            path: folder.to_owned(),
        });
    }
    read_one(folder)
}

fn read_one(folder: &Path) -> Result<Vec<Row>, TextError> {
    let path = folder.join(STATE);
    let state: State = read_json(&path)?;
    if state.indices_files.is_some_and(|files| !files.is_empty()) {
        return Err(unreadable(
            &path,
            "it picks rows by an index file (_indices_files); save the dataset again with save_to_disk",
        ));
    }
    let mut rows = Vec::new();
    for DataFile { filename } in state.data_files {
        if Path::new(&filename).file_name() != Some(filename.as_ref()) {
            return Err(unreadable(
                &path,
                format!("the data file {filename:?} is not in the folder itself"),
            ));
        }
        rows.extend(arrow::read(&folder.join(filename))?);
    }
    Ok(rows)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, TextError> {
    let text = std::fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
    serde_json::from_str(&text).map_err(|source| unreadable(path, source))
}
