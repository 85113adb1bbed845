//! CSV, JSON Lines and JSON.

use super::{Row, unreadable};
use crate::text::TextError;
use serde_json::Value;
use std::path::Path;

pub(super) fn read_csv(
    columns: Option<&[String]>,
    path: &Path,
    delimiter: u8,
) -> Result<Vec<Row>, TextError> {
    let malformed = |source: csv::Error| TextError::Malformed {
        path: path.to_owned(),
        line: source.position().map_or(0, csv::Position::line),
        problem: source.to_string(),
    };
    let file = std::fs::File::open(path).map_err(|source| unreadable(path, source))?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(columns.is_none())
        .from_reader(file);
    let names: Vec<String> = match columns {
        Some(columns) => columns.to_vec(),
        None => {
            let header = reader.headers().map_err(malformed)?;
            header.iter().map(str::to_owned).collect()
        }
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(malformed)?;
        if record.len() != names.len() {
            return Err(TextError::Malformed {
                path: path.to_owned(),
                line: record.position().map_or(0, csv::Position::line),
                problem: format!("{} columns, expected {}", record.len(), names.len()),
            });
        }
        let values = record.iter().map(Value::from);
        rows.push(names.iter().cloned().zip(values).collect());
    }
    Ok(rows)
}

/// An object per line, or a list of objects.
pub(super) fn read_json(path: &Path) -> Result<Vec<Row>, TextError> {
    let text = std::fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let malformed = |line, source: serde_json::Error| TextError::Malformed {
        path: path.to_owned(),
        line,
        problem: source.to_string(),
    };
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|source| malformed(source.line() as u64, source));
    }
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|source| malformed(number, source))
        })
        .collect()
}
