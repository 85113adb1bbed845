//! Long tables of somebody's: Parquet or CSV, any reasonable types.

use super::{standard_json, wrong};
use crate::error::{Place, Problem, RecorderError, Result};
use crate::files;
use crate::table_file::{self, unreadable};
use polars::prelude::*;
use std::io::Cursor;
use std::path::Path;

/// A table, by column name.
pub(super) struct Sheet {
    pub place: Place,
    frame: DataFrame,
}

impl Sheet {
    /// Reads `.parquet` or `.csv`; all cells of a CSV file are texts at first.
    pub fn read(path: &Path) -> Result<Self> {
        let place = Place::file(path);
        let frame = match path.extension().and_then(|e| e.to_str()) {
            Some("parquet") => table_file::decode(files::read(path)?.into(), &place)?,
            Some("csv") => CsvReadOptions::default()
                .with_infer_schema_length(Some(0))
                .into_reader_with_file_handle(Cursor::new(files::read(path)?))
                .finish()
                .map_err(|e| unreadable(&place, "CSV", e))?,
            _ => {
                return Err(RecorderError::Extension {
                    path: path.to_owned(),
                    expected: ".parquet or .csv",
                });
            }
        };
        Ok(Self { place, frame })
    }

    pub fn height(&self) -> usize {
        self.frame.height()
    }

    pub fn has(&self, column: &str) -> bool {
        self.frame.column(column).is_ok()
    }

    /// Names of the columns in order.
    pub fn columns(&self) -> Vec<String> {
        let columns = self.frame.columns().iter();
        columns.map(|c| c.name().to_string()).collect()
    }

    /// Mentions the columns that are not among `known`.
    pub fn warn_about_others(&self, known: &[&str], warnings: &mut Vec<String>) {
        for column in self.columns() {
            if !known.contains(&column.as_str()) {
                let file = self.place.file.display();
                warnings.push(format!("{file}: the column {column:?} is not imported"));
            }
        }
    }

    /// A column as texts; numbers as they are written, without a fraction of zero.
    pub fn texts(&self, column: &str) -> Result<Vec<Option<String>>> {
        let series = self.column(column)?;
        let cast = series
            .cast(&DataType::String)
            .map_err(|e| self.wrong_type(column, "text", &series, &e))?;
        let texts = cast
            .str()
            .map_err(|e| self.wrong_type(column, "text", &series, &e))?;
        let tidy = |text: &str| {
            let text = text.trim();
            let whole = text.strip_suffix(".0").filter(|w| w.parse::<i64>().is_ok());
            whole.unwrap_or(text).to_owned()
        };
        Ok(texts
            .iter()
            .map(|t| t.map(tidy).filter(|t| !t.is_empty()))
            .collect())
    }

    /// A column of texts, all there.
    pub fn required_texts(&self, column: &str) -> Result<Vec<String>> {
        self.all_there(column, self.texts(column)?)
    }

    /// A column of whole numbers, all there.
    pub fn integers(&self, column: &str) -> Result<Vec<i64>> {
        let texts = self.required_texts(column)?;
        let mut numbers = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            let number = text.parse().map_err(|_| {
                let message = format!("row {row}: {column} is {text:?}, not a whole number");
                wrong(&self.place, message)
            })?;
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// A column of numbers; null or empty is missing, NaN is a number.
    pub fn floats(&self, column: &str) -> Result<Vec<Option<f32>>> {
        let series = self.column(column)?;
        if let Ok(texts) = series.str() {
            return texts
                .iter()
                .enumerate()
                .map(|(row, text)| match text.map(str::trim) {
                    None | Some("") => Ok(None),
                    Some(text) => text.parse().map(Some).map_err(|_| {
                        let message = format!("row {row}: {column} is {text:?}, not a number");
                        wrong(&self.place, message)
                    }),
                })
                .collect();
        }
        let cast = series
            .cast(&DataType::Float32)
            .map_err(|e| self.wrong_type(column, "numbers", &series, &e))?;
        let floats = cast
            .f32()
            .map_err(|e| self.wrong_type(column, "numbers", &series, &e))?;
        Ok(floats.iter().collect())
    }

    /// A column of lists: real ones, or texts such as `[1, 2, 3]`, `["a", "b"]` or `1 2 3`.
    pub fn lists(&self, column: &str) -> Result<Vec<Option<Vec<String>>>> {
        let series = self.column(column)?;
        let Ok(lists) = series.list() else {
            let texts = self.texts(column)?.into_iter().enumerate();
            return texts
                .map(|(row, text)| text.map(|t| self.parse_list(column, row, &t)).transpose())
                .collect();
        };
        let mut rows = Vec::with_capacity(lists.len());
        for row in 0..lists.len() {
            let Some(list) = lists.get_as_series(row) else {
                rows.push(None);
                continue;
            };
            let cast = list
                .cast(&DataType::String)
                .map_err(|e| self.wrong_type(column, "lists", &series, &e))?;
            let texts = cast
                .str()
                .map_err(|e| self.wrong_type(column, "lists", &series, &e))?;
            let texts: Option<Vec<String>> = texts.iter().map(|t| t.map(str::to_owned)).collect();
            let missing = || {
                wrong(
                    &self.place,
                    format!("row {row}: {column} has a missing entry"),
                )
            };
            rows.push(Some(texts.ok_or_else(missing)?));
        }
        Ok(rows)
    }

    fn parse_list(&self, column: &str, row: usize, text: &str) -> Result<Vec<String>> {
        if !text.starts_with('[') {
            return Ok(text.split_whitespace().map(str::to_owned).collect());
        }
        // Python writes lists of texts with single quotes.
        let quoted = if text.contains('"') {
            text.to_owned()
        } else {
            text.replace('\'', "\"")
        };
        let parsed = serde_json::from_str(&standard_json(&quoted));
        let values: Vec<serde_json::Value> = parsed.map_err(|_| {
            let message = format!(
                "row {row}: {column} is {text:?}; write [1, 2, 3], [\"a\", \"b\"] or 1 2 3"
            );
            wrong(&self.place, message)
        })?;
        Ok(values
            .into_iter()
            .map(|value| match value {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            })
            .collect())
    }

    fn column(&self, column: &str) -> Result<Series> {
        match self.frame.column(column) {
            Ok(found) => Ok(found.as_materialized_series().clone()),
            Err(_) => Err(RecorderError::invalid(
                self.place.clone(),
                Problem::MissingColumn {
                    column: column.to_owned(),
                },
            )),
        }
    }

    fn all_there<T>(&self, column: &str, values: Vec<Option<T>>) -> Result<Vec<T>> {
        let mut all = Vec::with_capacity(values.len());
        for (row, value) in values.into_iter().enumerate() {
            let column = column.to_owned();
            let problem = Problem::NullValue { column, row };
            all.push(value.ok_or_else(|| RecorderError::invalid(self.place.clone(), problem))?);
        }
        Ok(all)
    }

    fn wrong_type(
        &self,
        column: &str,
        expected: &str,
        series: &Series,
        error: &PolarsError,
    ) -> RecorderError {
        let problem = Problem::ColumnType {
            column: column.to_owned(),
            expected: expected.to_owned(),
            got: format!("{} ({error})", series.dtype()),
        };
        RecorderError::invalid(self.place.clone(), problem)
    }
}
