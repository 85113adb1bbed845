//! Parquet files with provenance: written by polars, the footer checked with the `parquet` crate.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::files;
use crate::flat_lists::FlatLists;
use crate::schema::{Column, FORMAT_VERSION, Table};
use bytes::Bytes;
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use polars::prelude::*;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

const VERSION_ENTRY: &str = "simfluence.format_version";
const TABLE_ENTRY: &str = "simfluence.table";
const RUN_ENTRY: &str = "simfluence.run";
const TRAIN_ENTRY: &str = "simfluence.train_examples";
const TEST_ENTRY: &str = "simfluence.test_examples";
const ROWS_ENTRY: &str = "simfluence.rows";
const UNITS_ENTRY: &str = "simfluence.units";
const SOFTWARE_ENTRY: &str = "simfluence.software";

/// Name and version of this crate, as it stands in footers.
pub(crate) const SOFTWARE: &str = concat!("simfluence-recorder ", env!("CARGO_PKG_VERSION"));

/// Where a file belongs; stands in its footer and is checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provenance {
    /// The table.
    pub table: Table,
    /// Id of the run, for tables of runs.
    pub run: Option<String>,
    /// Fingerprints of the training and test examples, for tables of runs.
    pub examples: Option<(String, String)>,
}

impl Provenance {
    /// A file that belongs to no run.
    pub fn of(table: Table) -> Self {
        Self {
            table,
            run: None,
            examples: None,
        }
    }

    /// The entries that must be as they are.
    fn entries(&self) -> Vec<(&'static str, String)> {
        let mut entries = vec![
            (VERSION_ENTRY, FORMAT_VERSION.to_string()),
            (TABLE_ENTRY, self.table.name().to_owned()),
        ];
        if let Some(run) = &self.run {
            entries.push((RUN_ENTRY, run.clone()));
        }
        if let Some((train, test)) = &self.examples {
            entries.push((TRAIN_ENTRY, train.clone()));
            entries.push((TEST_ENTRY, test.clone()));
        }
        entries
    }
}

/// The bytes of a Parquet file of `frame`.
pub(crate) fn encode(
    frame: &mut DataFrame,
    provenance: &Provenance,
    place: &Place,
) -> Result<Vec<u8>> {
    let units: std::collections::BTreeMap<&str, &str> = provenance
        .table
        .columns()
        .iter()
        .filter(|c| !c.unit().is_empty())
        .map(|c| (c.name(), c.unit()))
        .collect();
    let units = serde_json::to_string(&units).expect("a map of texts serialises to JSON");
    let mut entries: Vec<(String, String)> = provenance
        .entries()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    entries.push((ROWS_ENTRY.to_owned(), frame.height().to_string()));
    entries.push((UNITS_ENTRY.to_owned(), units));
    entries.push((SOFTWARE_ENTRY.to_owned(), SOFTWARE.to_owned()));
    let mut bytes = Vec::with_capacity(frame.estimated_size() + 4096);
    let level =
        polars::polars_utils::compression::ZstdLevel::try_new(1).expect("1 is a level of zstd");
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Zstd(Some(level)))
        // Minima and maxima of losses help no reader of ours and cost a pass over the values.
        .with_statistics(StatisticsOptions::empty())
        .with_key_value_metadata(Some(KeyValueMetadata::from_static(entries)))
        .set_parallel(false)
        .finish(frame)
        .map_err(|e| unreadable(place, "table", e))?;
    Ok(bytes)
}

/// Writes `frame` atomically as a Parquet file.
pub(crate) fn write(path: &Path, frame: &mut DataFrame, provenance: &Provenance) -> Result<()> {
    let bytes = encode(frame, provenance, &Place::file(path))?;
    files::write_atomically(path, &bytes)
}

/// Reads a Parquet file of ours: checks its footer, then its columns.
pub(crate) fn read(path: &Path, provenance: &Provenance, place: &Place) -> Result<DataFrame> {
    let bytes = read_checked(path, provenance, place)?;
    let frame = decode(bytes, place)?;
    for column in provenance.table.columns() {
        check_column(&frame, *column, place)?;
    }
    Ok(frame)
}

/// Reads some columns with polars and the flat values of one column of `list<f32>` apart.
pub(crate) fn read_with_flat(
    path: &Path,
    provenance: &Provenance,
    flat: Column,
    place: &Place,
) -> Result<(DataFrame, FlatLists)> {
    let bytes = read_checked(path, provenance, place)?;
    let lists = FlatLists::read(bytes.clone(), flat, place)?;
    let mut columns = provenance.table.columns().to_vec();
    columns.retain(|&c| c != flat);
    let names = columns.iter().map(|c| c.name().to_owned()).collect();
    let frame = decode_columns(bytes, Some(names), place)?;
    for column in columns {
        check_column(&frame, column, place)?;
    }
    Ok((frame, lists))
}

fn read_checked(path: &Path, provenance: &Provenance, place: &Place) -> Result<Bytes> {
    let bytes = Bytes::from(files::read(path)?);
    check_footer(&bytes, provenance, place)?;
    Ok(bytes)
}

/// Decodes any Parquet file on the calling thread.
pub(crate) fn decode(bytes: Bytes, place: &Place) -> Result<DataFrame> {
    decode_columns(bytes, None, place)
}

fn decode_columns(bytes: Bytes, columns: Option<Vec<String>>, place: &Place) -> Result<DataFrame> {
    guarded(place, move || {
        ParquetReader::new(Cursor::new(bytes))
            .with_columns(columns)
            .read_parallel(ParallelStrategy::None)
            .finish()
            .map_err(|e| e.to_string())
    })
}

/// Runs a decoder. A file with damaged pages can make it panic; for us it is a bad file like others.
pub(crate) fn guarded<T>(
    place: &Place,
    decode: impl FnOnce() -> std::result::Result<T, String>,
) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)) {
        Ok(result) => result.map_err(|e| unreadable(place, "Parquet", e)),
        Err(_) => Err(unreadable(place, "Parquet", "its pages are damaged")),
    }
}

fn check_footer(bytes: &Bytes, provenance: &Provenance, place: &Place) -> Result<()> {
    let metadata = guarded(place, || footer(bytes))?;
    let file = metadata.file_metadata();
    let entry = |name: &str| -> String {
        let entries = file.key_value_metadata().into_iter().flatten();
        let found = entries.into_iter().find(|e| e.key == name);
        found.and_then(|e| e.value.clone()).unwrap_or_default()
    };
    let mut expected = provenance.entries();
    expected.push((ROWS_ENTRY, file.num_rows().to_string()));
    for (name, expected) in expected {
        let got = entry(name);
        if got == expected {
            continue;
        }
        let problem = if name == VERSION_ENTRY && !got.is_empty() {
            Problem::FormatVersion {
                expected: FORMAT_VERSION,
                got,
            }
        } else {
            Problem::Footer {
                entry: name,
                expected,
                got,
            }
        };
        return Err(RecorderError::invalid(place.clone(), problem));
    }
    Ok(())
}

fn footer(bytes: &[u8]) -> std::result::Result<ParquetMetaData, String> {
    let Some((rest, tail)) = bytes.split_last_chunk::<8>() else {
        return Err(format!("it has only {} bytes; it was cut off", bytes.len()));
    };
    let tail = FooterTail::try_new(tail)
        .map_err(|_| "it does not end like a Parquet file; it was cut off".to_owned())?;
    let start = rest
        .len()
        .checked_sub(tail.metadata_length())
        .ok_or("its footer is longer than the file; it was cut off")?;
    ParquetMetaDataReader::decode_metadata(&rest[start..]).map_err(|e| e.to_string())
}

fn check_column(frame: &DataFrame, column: Column, place: &Place) -> Result<()> {
    let Ok(found) = frame.column(column.name()) else {
        let problem = Problem::MissingColumn {
            column: column.name().to_owned(),
        };
        return Err(RecorderError::invalid(place.clone(), problem));
    };
    if *found.dtype() != column.dtype() {
        let problem = Problem::ColumnType {
            column: column.name().to_owned(),
            expected: column.dtype().to_string(),
            got: found.dtype().to_string(),
        };
        return Err(RecorderError::invalid(place.clone(), problem));
    }
    if !column.nullable() && found.null_count() > 0 {
        let row = (0..found.len()).find(|&row| matches!(found.get(row), Ok(AnyValue::Null)));
        let problem = Problem::NullValue {
            column: column.name().to_owned(),
            row: row.unwrap_or(0),
        };
        return Err(RecorderError::invalid(place.clone(), problem));
    }
    Ok(())
}

pub(crate) fn unreadable(
    place: &Place,
    what: &'static str,
    message: impl std::fmt::Display,
) -> RecorderError {
    let problem = Problem::Unreadable {
        what,
        message: message.to_string(),
    };
    RecorderError::invalid(place.clone(), problem)
}

/// A column of lists of numbers: one flat buffer and the range of each row in it.
pub(crate) struct Lists<T: PolarsNumericType> {
    rows: Vec<Option<Range<usize>>>,
    values: ChunkedArray<T>,
}

impl<T: PolarsNumericType> Lists<T> {
    /// The column of a frame whose columns are checked.
    pub fn new(frame: &DataFrame, column: Column, place: &Place) -> Result<Self> {
        let series = numbers(frame, column, place)?;
        let list = series.list().map_err(|e| unreadable(place, "Parquet", e))?;
        let list = list.rechunk();
        let mut rows = Vec::with_capacity(list.len());
        for array in list.downcast_iter() {
            let offsets = array.offsets().as_slice();
            rows.extend((0..offsets.len() - 1).map(|row| {
                let valid = array.validity().is_none_or(|bits| bits.get_bit(row));
                valid.then(|| offsets[row] as usize..offsets[row + 1] as usize)
            }));
        }
        let inner = list.get_inner();
        let values = inner
            .unpack::<T>()
            .map_err(|e| unreadable(place, "Parquet", e))?
            .rechunk()
            .into_owned();
        if values.null_count() > 0 {
            let null = (0..values.len()).find(|&k| values.get(k).is_none());
            let row = rows.iter().position(|r| {
                r.as_ref()
                    .is_some_and(|r| null.is_some_and(|k| r.contains(&k)))
            });
            let problem = Problem::NullValue {
                column: column.name().to_owned(),
                row: row.unwrap_or(0),
            };
            return Err(RecorderError::invalid(place.clone(), problem));
        }
        Ok(Self { rows, values })
    }

    /// The list in a row, `None` where it is null.
    pub fn row(&self, row: usize) -> Option<&[T::Native]> {
        let range = self.rows[row].clone()?;
        if range.is_empty() {
            return Some(&[]);
        }
        let flat = self.values.cont_slice();
        Some(&flat.expect("one chunk without nulls, as made in new")[range])
    }
}

fn numbers<'a>(frame: &'a DataFrame, column: Column, place: &Place) -> Result<&'a Series> {
    let found = frame
        .column(column.name())
        .map_err(|e| unreadable(place, "Parquet", e))?;
    Ok(found.as_materialized_series())
}

/// A column of numbers, `None` where it is null.
pub(crate) fn optional<T: PolarsNumericType>(
    frame: &DataFrame,
    column: Column,
    place: &Place,
) -> Result<Vec<Option<T::Native>>> {
    let series = numbers(frame, column, place)?;
    let values = series
        .unpack::<T>()
        .map_err(|e| unreadable(place, "Parquet", e))?;
    Ok(values.iter().collect())
}

/// A column of numbers without nulls.
pub(crate) fn required<T: PolarsNumericType>(
    frame: &DataFrame,
    column: Column,
    place: &Place,
) -> Result<Vec<T::Native>> {
    let series = numbers(frame, column, place)?;
    let values = series
        .unpack::<T>()
        .map_err(|e| unreadable(place, "Parquet", e))?;
    Ok(values.iter().flatten().collect())
}

/// A column of texts.
pub(crate) fn texts<'a>(
    frame: &'a DataFrame,
    name: &str,
    place: &Place,
) -> Result<Vec<Option<&'a str>>> {
    let found = frame
        .column(name)
        .map_err(|e| unreadable(place, "Parquet", e))?;
    let values = found.str().map_err(|e| unreadable(place, "Parquet", e))?;
    Ok(values.iter().collect())
}

/// A column of lists for writing.
pub(crate) fn list_column<'a, T: PolarsNumericType>(
    column: Column,
    rows: impl Iterator<Item = Option<&'a [T::Native]>> + Clone,
) -> polars::prelude::Column {
    let count = rows.clone().count();
    let total = rows.clone().flatten().map(<[T::Native]>::len).sum();
    let mut builder = ListPrimitiveChunkedBuilder::<T>::new(
        column.column_name(),
        count,
        total,
        T::get_static_dtype(),
    );
    for row in rows {
        builder.append_opt_slice(row);
    }
    builder.finish().into_column()
}

/// Columns of equal length as a frame.
pub(crate) fn frame(columns: Vec<polars::prelude::Column>, place: &Place) -> Result<DataFrame> {
    DataFrame::new_infer_height(columns).map_err(|e| unreadable(place, "table", e))
}
