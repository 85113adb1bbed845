//! Tables that any Arrow library takes over without copying (the Arrow PyCapsule interface).

use arrow_array::builder::{Float32Builder, ListBuilder, UInt16Builder, UInt32Builder};
use arrow_array::ffi::FFI_ArrowSchema;
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, NullArray, RecordBatch,
    RecordBatchIterator, RecordBatchOptions, StringArray, UInt32Array, UInt64Array,
};
use arrow_schema::{ArrowError, Schema};
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::sync::Arc;

/// A table in memory, in Arrow's layout.
#[pyclass(frozen)]
pub struct ArrowTable {
    batch: RecordBatch,
}

impl ArrowTable {
    /// A table of named columns of one length.
    pub fn new(columns: Vec<(&str, ArrayRef)>) -> PyResult<Self> {
        let batch = RecordBatch::try_from_iter_with_nullable(
            (columns.into_iter()).map(|(name, array)| (name, array, true)),
        );
        batch
            .map(|batch| Self { batch })
            .map_err(crate::errors::error)
    }
}

/// A column as Python has it: an array, or a list with `None` where there is nothing.
#[derive(FromPyObject)]
pub enum Given<'py> {
    Ids(PyReadonlyArray1<'py, u32>),
    Floats(PyReadonlyArray1<'py, f32>),
    Texts(Vec<Option<String>>),
    Flags(Vec<Option<bool>>),
    Integers(Vec<Option<i64>>),
    Large(Vec<Option<u64>>),
    Doubles(Vec<Option<f64>>),
}

impl Given<'_> {
    fn array(self) -> PyResult<ArrayRef> {
        Ok(match self {
            Self::Ids(values) => Arc::new(UInt32Array::from(values.as_slice()?.to_vec())),
            Self::Floats(values) => Arc::new(Float32Array::from(values.as_slice()?.to_vec())),
            // A list of nothing could have been of any type.
            Self::Texts(values) if values.iter().all(Option::is_none) => {
                Arc::new(NullArray::new(values.len()))
            }
            Self::Texts(values) => Arc::new(StringArray::from(values)),
            Self::Flags(values) => Arc::new(BooleanArray::from(values)),
            Self::Integers(values) => Arc::new(Int64Array::from(values)),
            Self::Large(values) => Arc::new(UInt64Array::from(values)),
            Self::Doubles(values) => Arc::new(Float64Array::from(values)),
        })
    }
}

#[pymethods]
impl ArrowTable {
    /// A table of named columns of one length.
    #[new]
    fn of(columns: Vec<(String, Given<'_>)>) -> PyResult<Self> {
        let columns: Vec<(String, ArrayRef)> = columns
            .into_iter()
            .map(|(name, given)| Ok((name, given.array()?)))
            .collect::<PyResult<_>>()?;
        if columns.is_empty() {
            let no_rows = RecordBatchOptions::new().with_row_count(Some(0));
            let batch =
                RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &no_rows);
            let batch = batch.map_err(crate::errors::error)?;
            return Ok(Self { batch });
        }
        let named = columns
            .iter()
            .map(|(name, array)| (name.as_str(), array.clone()));
        Self::new(named.collect())
    }

    /// The columns as a stream of Arrow record batches; `requested_schema` is not looked at, which
    /// the interface allows.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        let batches: [Result<_, ArrowError>; 1] = [Ok(self.batch.clone())];
        let reader = RecordBatchIterator::new(batches, self.batch.schema());
        let stream = FFI_ArrowArrayStream::new(Box::new(reader));
        PyCapsule::new_with_value(py, stream, c"arrow_array_stream")
    }

    /// The types of the columns.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(self.batch.schema().as_ref());
        PyCapsule::new_with_value(py, schema.map_err(crate::errors::error)?, c"arrow_schema")
    }

    /// Number of rows.
    #[getter]
    fn num_rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Names of the columns.
    #[getter]
    fn column_names(&self) -> Vec<String> {
        let schema = self.batch.schema();
        schema.fields().iter().map(|f| f.name().clone()).collect()
    }
}

/// A column of texts.
pub fn texts<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

/// A column of ids or steps.
pub fn numbers(values: Vec<u32>) -> ArrayRef {
    Arc::new(UInt32Array::from(values))
}

/// A column of 32-bit floats.
pub fn floats(values: impl IntoIterator<Item = Option<f32>>) -> ArrayRef {
    Arc::new(Float32Array::from_iter(values))
}

/// A column of lists of ids.
pub fn number_lists<'a>(values: impl IntoIterator<Item = &'a [u32]>) -> ArrayRef {
    let mut builder = ListBuilder::new(UInt32Builder::new());
    for list in values {
        builder.values().append_slice(list);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

/// A column of lists of floats, null where there is none.
pub fn float_lists<'a>(values: impl IntoIterator<Item = Option<&'a [f32]>>) -> ArrayRef {
    let mut builder = ListBuilder::new(Float32Builder::new());
    for list in values {
        builder.values().append_slice(list.unwrap_or_default());
        builder.append(list.is_some());
    }
    Arc::new(builder.finish())
}

/// A column of lists of small numbers, null where there is none.
pub fn small_number_lists<'a>(values: impl IntoIterator<Item = Option<&'a [u16]>>) -> ArrayRef {
    let mut builder = ListBuilder::new(UInt16Builder::new());
    for list in values {
        builder.values().append_slice(list.unwrap_or_default());
        builder.append(list.is_some());
    }
    Arc::new(builder.finish())
}

/// A column of lists of texts.
pub fn text_lists<'a>(values: impl IntoIterator<Item = &'a [String]>) -> ArrayRef {
    let mut builder = ListBuilder::new(arrow_array::builder::StringBuilder::new());
    for list in values {
        for text in list {
            builder.values().append_value(text);
        }
        builder.append(true);
    }
    Arc::new(builder.finish())
}
