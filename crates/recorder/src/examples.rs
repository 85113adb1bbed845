//! The tables of training and test examples, and their fingerprints.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::schema::{Column, Table};
use crate::table_file::{self, Provenance, required, texts, unreadable};
use polars::prelude::*;
use sha2::{Digest, Sha256};
use simfluence_core::{Example, Examples};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// SHA-256 of all that is known about examples, in id order, as hexadecimal digits.
///
/// Every text goes in with its length before it, so that no two lists of examples look alike.
///
/// ```
/// use simfluence_core::{Example, Examples};
/// let examples = Examples::new(vec![Example::new("a", "sports")])?;
/// assert_eq!(simfluence_recorder::fingerprint(&examples).len(), 64);
/// # Ok::<(), simfluence_core::ExampleError>(())
/// ```
pub fn fingerprint(examples: &Examples) -> String {
    let mut hash = Sha256::new();
    let text = |hash: &mut Sha256, text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    hash.update((examples.len() as u64).to_le_bytes());
    for example in examples.as_slice() {
        text(&mut hash, &example.key);
        text(&mut hash, &example.dataset);
        hash.update((example.tags.len() as u64).to_le_bytes());
        for tag in &example.tags {
            text(&mut hash, tag);
        }
        hash.update((example.extra.len() as u64).to_le_bytes());
        for (name, value) in &example.extra {
            text(&mut hash, name);
            text(&mut hash, value);
        }
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The only file of a table of examples that this version writes.
pub(crate) fn first_file(folder: &Path, table: Table) -> PathBuf {
    folder.join(format!("{}-00000.parquet", table.name()))
}

/// What people call the examples of a table.
pub(crate) fn which(table: Table) -> &'static str {
    match table {
        Table::TrainExamples => "training",
        _ => "test",
    }
}

/// Writes the examples of `table` into the folder of a run set.
pub(crate) fn write(folder: &Path, table: Table, examples: &Examples) -> Result<()> {
    let path = first_file(folder, table);
    let place = Place::file(&path);
    if examples.is_empty() {
        let which = which(table);
        return Err(RecorderError::invalid(place, Problem::NoExamples { which }));
    }
    let all = examples.as_slice();
    let ids: Vec<u32> = (0..all.len() as u32).collect();
    let texts = |value: fn(&Example) -> &str| all.iter().map(value).collect::<Vec<_>>();
    let mut columns = vec![
        polars::prelude::Column::new(id_column(table).column_name(), ids),
        polars::prelude::Column::new(Column::Key.column_name(), texts(|e| &e.key)),
        polars::prelude::Column::new(Column::Dataset.column_name(), texts(|e| &e.dataset)),
        tags(all),
    ];
    let names: BTreeSet<&String> = all.iter().flat_map(|e| e.extra.keys()).collect();
    for name in names {
        if table.columns().iter().any(|c| c.name() == name) {
            let column = name.clone();
            return Err(RecorderError::invalid(
                place,
                Problem::ReservedColumn { column },
            ));
        }
        let values: Vec<Option<&str>> = all
            .iter()
            .map(|e| e.extra.get(name).map(String::as_str))
            .collect();
        columns.push(polars::prelude::Column::new(name.as_str().into(), values));
    }
    let mut frame = table_file::frame(columns, &place)?;
    table_file::write(&path, &mut frame, &Provenance::of(table))
}

/// Reads the examples of `table` from the folder of a run set.
pub(crate) fn read(folder: &Path, table: Table) -> Result<Examples> {
    let path = first_file(folder, table);
    let place = Place::file(&path);
    let frame = table_file::read(&path, &Provenance::of(table), &place)?;
    let ids = required::<UInt32Type>(&frame, id_column(table), &place)?;
    if let Some((expected, &got)) = (0u32..)
        .zip(&ids)
        .find(|(expected, got)| *expected != **got)
    {
        let place = place.at_example(format!("{} example in row {expected}", which(table)));
        return Err(RecorderError::invalid(
            place,
            Problem::ExampleId { expected, got },
        ));
    }
    let mut examples = read_fixed(&frame, &place)?;
    for column in frame.columns() {
        let name = column.name().as_str();
        if table.columns().iter().any(|c| c.name() == name) {
            continue;
        }
        let values = texts(&frame, name, &place)?;
        for (example, value) in examples.iter_mut().zip(values) {
            if let Some(value) = value {
                example.extra.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    Examples::new(examples).map_err(|e| RecorderError::invalid(place, e))
}

fn read_fixed(frame: &DataFrame, place: &Place) -> Result<Vec<Example>> {
    let keys = texts(frame, Column::Key.name(), place)?;
    let datasets = texts(frame, Column::Dataset.name(), place)?;
    let tags = frame
        .column(Column::Tags.name())
        .and_then(|c| c.list().cloned())
        .map_err(|e| unreadable(place, "Parquet", e))?;
    let mut examples = Vec::with_capacity(keys.len());
    for (row, (key, dataset)) in keys.into_iter().zip(datasets).enumerate() {
        let mut example = Example::new(key.unwrap_or_default(), dataset.unwrap_or_default());
        if let Some(list) = tags.get_as_series(row) {
            let list = list.str().map_err(|e| unreadable(place, "Parquet", e))?;
            example.tags = list.iter().flatten().map(str::to_owned).collect();
        }
        examples.push(example);
    }
    Ok(examples)
}

fn tags(examples: &[Example]) -> polars::prelude::Column {
    let total = examples.iter().map(|e| e.tags.len()).sum();
    let mut builder =
        ListStringChunkedBuilder::new(Column::Tags.column_name(), examples.len(), total);
    for example in examples {
        builder.append_values_iter(example.tags.iter().map(String::as_str));
    }
    builder.finish().into_column()
}

fn id_column(table: Table) -> Column {
    match table {
        Table::TrainExamples => Column::TrainId,
        _ => Column::TestId,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Examples {
        let mut first = Example::new("a", "sports");
        first.tags = vec!["x".into(), "y".into()];
        first.extra.insert("prompt".into(), "1 + 1 =".into());
        let mut second = Example::new("ü", "world");
        second.extra.insert("answer".into(), String::new());
        Examples::new(vec![first, second]).unwrap()
    }

    #[test]
    fn examples_come_back_with_tags_and_extra_columns() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), Table::TrainExamples, &examples()).unwrap();
        assert_eq!(
            read(folder.path(), Table::TrainExamples).unwrap(),
            examples()
        );
    }

    #[test]
    fn an_extra_column_with_a_name_of_the_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut example = Example::new("a", "sports");
        example.extra.insert("train_id".into(), "7".into());
        let examples = Examples::new(vec![example]).unwrap();
        let error = write(folder.path(), Table::TrainExamples, &examples).unwrap_err();
        assert!(error.to_string().contains("\"train_id\""), "{error}");
    }

    #[test]
    fn the_fingerprint_sees_every_part_of_an_example() {
        let base = fingerprint(&examples());
        let changed = |change: fn(&mut Example)| {
            let mut all = examples().as_slice().to_vec();
            change(&mut all[0]);
            fingerprint(&Examples::new(all).unwrap())
        };
        assert_ne!(base, changed(|e| e.key.push('b')));
        assert_ne!(base, changed(|e| e.dataset.push('b')));
        assert_ne!(base, changed(|e| e.tags = vec!["xy".into()]));
        assert_ne!(base, changed(|e| e.tags.swap(0, 1)));
        assert_ne!(base, changed(|e| e.extra.clear()));
        assert_eq!(base, changed(|_| ()));
    }
}
