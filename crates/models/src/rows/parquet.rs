//! Parquet files, nested columns included.

use super::{Row, float, float32, unreadable};
use crate::text::TextError;
use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value};
use std::path::Path;

pub(super) fn read(path: &Path) -> Result<Vec<Row>, TextError> {
    let file = std::fs::File::open(path).map_err(|source| unreadable(path, source))?;
    let reader = SerializedFileReader::new(file).map_err(|source| unreadable(path, source))?;
    let groups = reader.metadata().row_groups().iter();
    let mut chunks = groups.flat_map(|group| group.columns());
    if let Some(chunk) = chunks.find(|chunk| !is_unpacked(chunk.compression())) {
        let problem = format!(
            "column {} is compressed with {}; write it with snappy, zstd, gzip or no compression",
            chunk.column_path(),
            chunk.compression()
        );
        return Err(unreadable(path, problem));
    }
    let rows = (reader.get_row_iter(None)).map_err(|source| unreadable(path, source))?;
    rows.map(|row| {
        let row = row.map_err(|source| unreadable(path, source))?;
        Ok(object(row.into_columns()))
    })
    .collect()
}

/// Whether this build unpacks it.
fn is_unpacked(compression: Compression) -> bool {
    use Compression::{GZIP, SNAPPY, UNCOMPRESSED, ZSTD};
    matches!(compression, UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_))
}

fn object(columns: Vec<(String, Field)>) -> Map<String, Value> {
    (columns.into_iter())
        .map(|(name, field)| (name, value(field)))
        .collect()
}

/// A value as JSON would have it; what JSON has no type for (dates, decimals, bytes) as text.
fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => float32(value.to_f32()),
        Field::Float(value) => float32(value),
        Field::Double(value) => float(value),
        Field::Str(value) => value.into(),
        Field::Group(row) => Value::Object(object(row.into_columns())),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            let text = |key: Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(entries.map(|(k, v)| (text(k), value(v))).collect())
        }
        other => Value::String(other.to_string()),
    }
}
