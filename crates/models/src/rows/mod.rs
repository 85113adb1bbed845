//! The rows of a table, whatever file they stand in.
//!
//! | name | format |
//! | --- | --- |
//! | `….csv`, `….tsv` | CSV, with a header line or named columns |
//! | `….jsonl`, `….json` | JSON Lines, or a list of objects |
//! | `….parquet` | Parquet |
//! | a folder | Hugging Face `datasets`, as `save_to_disk` writes it |
//! | `….arrow` | one Arrow stream of such a folder |

mod arrow;
mod datasets;
mod parquet;
mod text_files;

use crate::text::{TableSettings, TextError};
use serde_json::{Map, Value};
use std::path::Path;

/// One row of a table, its values by column.
pub(crate) type Row = Map<String, Value>;

/// Reads all rows of a file or folder.
pub(crate) fn read(settings: &TableSettings, path: &Path) -> Result<Vec<Row>, TextError> {
    let is_split_known = settings.split.is_some();
    if path.is_dir() {
        return datasets::read(path, settings.split.as_deref());
    }
    if is_split_known {
        return Err(TextError::SplitOfFile {
            path: path.to_owned(),
        });
    }
    let columns = settings.columns.as_deref();
    match path.extension().and_then(|e| e.to_str()).unwrap_or("") {
        "csv" => text_files::read_csv(columns, path, b','),
        "tsv" => text_files::read_csv(columns, path, b'\t'),
        "jsonl" | "json" => text_files::read_json(path),
        "parquet" => parquet::read(path),
        "arrow" => arrow::read(path),
        _ => Err(TextError::UnknownFormat {
            path: path.to_owned(),
        }),
    }
}

/// A floating-point number as a value; JSON has no infinities and no NaN, which become text.
fn float(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None => Value::String(value.to_string()),
    }
}

/// A 32-bit number with the digits that it has in 32 bits: 0.1, not 0.10000000149011612.
fn float32(value: f32) -> Value {
    float(value.to_string().parse().unwrap_or(f64::from(value)))
}

/// What the system or a library says about a file that cannot be read.
fn unreadable(path: &Path, problem: impl std::fmt::Display) -> TextError {
    TextError::Unreadable {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests;
