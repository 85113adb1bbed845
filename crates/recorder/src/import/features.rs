//! Features of examples from elsewhere, embeddings for instance.

use super::sheet::Sheet;
use super::wrong;
use crate::error::Result;
use std::collections::HashMap;
use std::path::Path;

/// Reads features of examples by key: a Parquet or CSV file with a column `key`, and either a
/// column `features` of lists or only columns of numbers besides. `[keys]`: `None` for a key that
/// the file does not have; keys of the file that are not among `keys` are left aside.
///
/// # Errors
/// An unreadable file, no such columns, a key that stands there twice, lists of different lengths,
/// a missing value, one that is no finite number.
pub fn read_features(path: &Path, keys: &[String]) -> Result<Vec<Option<Vec<f64>>>> {
    let sheet = Sheet::read(path)?;
    let of_file = sheet.required_texts("key")?;
    let rows: Vec<Vec<f64>> = if sheet.has("features") {
        from_lists(&sheet)?
    } else {
        from_columns(&sheet)?
    };
    let width = rows.first().map_or(0, Vec::len);
    let mut by_key = HashMap::new();
    for (row, (key, features)) in of_file.iter().zip(&rows).enumerate() {
        let refuse = |message: String| Err(wrong(&sheet.place, format!("row {row}: {message}")));
        if features.is_empty() || features.len() != width {
            return refuse(format!(
                "{key:?} has {} features; the first row has {width}, and every row must have as many, at least one",
                features.len()
            ));
        }
        if let Some(value) = features.iter().find(|v| !v.is_finite()) {
            return refuse(format!(
                "{key:?} has the feature {value}; it must be finite"
            ));
        }
        if by_key.insert(key.as_str(), features).is_some() {
            return refuse(format!("the key {key:?} stands in the file twice"));
        }
    }
    Ok(keys
        .iter()
        .map(|key| by_key.get(key.as_str()).map(|&features| features.clone()))
        .collect())
}

fn from_lists(sheet: &Sheet) -> Result<Vec<Vec<f64>>> {
    let parse = |row: usize, text: String| {
        text.parse().map_err(|_| {
            let message = format!("row {row}: features has {text:?}, not a number");
            wrong(&sheet.place, message)
        })
    };
    let lists = sheet.lists("features")?.into_iter().enumerate();
    lists
        .map(|(row, list)| {
            let list = list.unwrap_or_default().into_iter();
            list.map(|text| parse(row, text)).collect()
        })
        .collect()
}

fn from_columns(sheet: &Sheet) -> Result<Vec<Vec<f64>>> {
    let mut rows = vec![Vec::new(); sheet.height()];
    for column in sheet.columns() {
        if column == "key" {
            continue;
        }
        for (row, (features, value)) in rows.iter_mut().zip(sheet.floats(&column)?).enumerate() {
            let value = value.ok_or_else(|| {
                let message = format!("row {row}: {column} is missing");
                wrong(&sheet.place, message)
            })?;
            features.push(f64::from(value));
        }
    }
    Ok(rows)
}
