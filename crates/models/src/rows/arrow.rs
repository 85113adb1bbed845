//! Arrow streams: the data files of Hugging Face `datasets` folders.

use super::{Row, float, float32, unreadable};
use crate::text::TextError;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowDictionaryKeyType, Date32Type, Date64Type, Decimal128Type, Float16Type, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, TimeUnit};
use serde_json::{Map, Value};
use std::io::Cursor;
use std::path::Path;

/// What a whole stream ends with.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// What a file in Arrow's other format begins with.
const FILE_FORMAT: &[u8] = b"ARROW1";

pub(super) fn read(path: &Path) -> Result<Vec<Row>, TextError> {
    let wrong = |problem: String| unreadable(path, problem);
    let bytes = std::fs::read(path).map_err(|source| unreadable(path, source))?;
    if bytes.starts_with(FILE_FORMAT) {
        return Err(wrong(
            "this is an Arrow file, not the Arrow stream that `datasets` writes".to_owned(),
        ));
    }
    // The reader takes a stream that breaks off between two of its parts for a whole one.
    if !bytes.ends_with(&END_OF_STREAM) {
        return Err(wrong(
            "no Arrow stream, or one that was cut off (its end mark is missing)".to_owned(),
        ));
    }
    let reader = StreamReader::try_new(Cursor::new(bytes), None)
        .map_err(|source| wrong(source.to_string()))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|source| wrong(source.to_string()))?;
        append(&mut rows, &batch).map_err(wrong)?;
    }
    Ok(rows)
}

fn append(rows: &mut Vec<Row>, batch: &RecordBatch) -> Result<(), String> {
    let schema = batch.schema();
    for index in 0..batch.num_rows() {
        let mut row = Row::new();
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            let value = value(column, index)
                .map_err(|problem| format!("column {:?}: {problem}", field.name()))?;
            row.insert(field.name().clone(), value);
        }
        rows.push(row);
    }
    Ok(())
}

/// A value as JSON would have it; dates, times and decimals as text.
fn value(array: &ArrayRef, index: usize) -> Result<Value, String> {
    if array.is_null(index) {
        return Ok(Value::Null);
    }
    macro_rules! number {
        ($($kind:ty),*) => {
            $(if let Some(array) = array.as_primitive_opt::<$kind>() {
                return Ok(array.value(index).into());
            })*
        };
    }
    number!(
        Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type
    );
    match array.data_type() {
        DataType::Null => Ok(Value::Null),
        DataType::Boolean => Ok(array.as_boolean().value(index).into()),
        DataType::Float16 => Ok(float32(
            array.as_primitive::<Float16Type>().value(index).to_f32(),
        )),
        DataType::Float32 => Ok(float32(array.as_primitive::<Float32Type>().value(index))),
        DataType::Float64 => Ok(float(array.as_primitive::<Float64Type>().value(index))),
        DataType::Utf8 => Ok(array.as_string::<i32>().value(index).into()),
        DataType::LargeUtf8 => Ok(array.as_string::<i64>().value(index).into()),
        DataType::Utf8View => Ok(array.as_string_view().value(index).into()),
        DataType::List(_) => list(&array.as_list::<i32>().value(index)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(index)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(index)),
        DataType::Struct(_) => object(array.as_struct(), index),
        DataType::Dictionary(key, _) => dictionary(array, key, index),
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => moment(array, index),
        DataType::Decimal128(..) => {
            let decimals = array.as_primitive::<Decimal128Type>();
            Ok(decimals.value_as_string(index).into())
        }
        other => Err(format!(
            "values of type {other} cannot be read; turn them into text, or leave the column out"
        )),
    }
}

fn list(elements: &ArrayRef) -> Result<Value, String> {
    (0..elements.len()).map(|k| value(elements, k)).collect()
}

fn object(array: &StructArray, index: usize) -> Result<Value, String> {
    let fields = array.column_names().into_iter().zip(array.columns());
    let members: Result<Map<String, Value>, String> = fields
        .map(|(name, column)| Ok((name.to_owned(), value(column, index)?)))
        .collect();
    Ok(Value::Object(members?))
}

/// A value that stands once in a list of values.
fn dictionary(array: &ArrayRef, key: &DataType, index: usize) -> Result<Value, String> {
    fn of<K: ArrowDictionaryKeyType>(array: &ArrayRef, index: usize) -> Result<Value, String> {
        let dictionary = array.as_dictionary::<K>();
        let key = (dictionary.key(index)).expect("the value is not null");
        value(dictionary.values(), key)
    }
    match key {
        DataType::Int8 => of::<Int8Type>(array, index),
        DataType::Int16 => of::<Int16Type>(array, index),
        DataType::Int32 => of::<Int32Type>(array, index),
        DataType::Int64 => of::<Int64Type>(array, index),
        DataType::UInt8 => of::<UInt8Type>(array, index),
        DataType::UInt16 => of::<UInt16Type>(array, index),
        DataType::UInt32 => of::<UInt32Type>(array, index),
        DataType::UInt64 => of::<UInt64Type>(array, index),
        other => Err(format!("dictionary keys of type {other} cannot be read")),
    }
}

/// A date, or a date and time; times with a zone in UTC.
fn moment(array: &ArrayRef, index: usize) -> Result<Value, String> {
    macro_rules! datetime {
        ($kind:ty) => {
            (array.as_primitive::<$kind>().value_as_datetime(index)).map(|time| time.to_string())
        };
    }
    macro_rules! date {
        ($kind:ty) => {
            (array.as_primitive::<$kind>().value_as_date(index)).map(|date| date.to_string())
        };
    }
    let text = match array.data_type() {
        DataType::Date32 => date!(Date32Type),
        DataType::Date64 => date!(Date64Type),
        DataType::Timestamp(TimeUnit::Second, _) => datetime!(TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => datetime!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => datetime!(TimestampMicrosecondType),
        _ => datetime!(TimestampNanosecondType),
    };
    text.map(Value::String)
        .ok_or_else(|| "a date beyond the years that can be written".to_owned())
}
