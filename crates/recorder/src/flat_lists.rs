//! A column of `list<f32>` as one flat buffer.
//!
//! Losses are nearly all the bytes of a run set. polars assembles nested columns value by value;
//! the column reader of the `parquet` crate decodes levels and values in bulk, several times
//! faster, and lists without nulls are then nothing but ranges of the flat values.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::schema::Column;
use crate::table_file::guarded;
use bytes::Bytes;
use parquet::column::reader::ColumnReader;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use std::ops::Range;

/// A column of `list<f32>` without nulls.
pub(crate) struct FlatLists {
    rows: Vec<Range<usize>>,
    values: Vec<f32>,
}

/// Rows for which memory is taken before they are read: a damaged count shall not take it all.
const MOST_RESERVED: usize = 1 << 16;

/// What stops the reading of a column.
enum Stop {
    Damaged(String),
    Problem(Problem),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl FlatLists {
    /// Reads a column of a Parquet file.
    pub fn read(bytes: Bytes, column: Column, place: &Place) -> Result<Self> {
        let mut lists = Self {
            rows: Vec::new(),
            values: Vec::new(),
        };
        let outcome = guarded(place, || match lists.read_file(bytes, column) {
            Ok(()) => Ok(None),
            Err(Stop::Problem(problem)) => Ok(Some(problem)),
            Err(Stop::Damaged(message)) => Err(message),
        })?;
        match outcome {
            None => Ok(lists),
            Some(problem) => Err(RecorderError::invalid(place.clone(), problem)),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The list in a row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[self.rows[row].clone()]
    }

    fn read_file(&mut self, bytes: Bytes, column: Column) -> std::result::Result<(), Stop> {
        let file = SerializedFileReader::new(bytes)?;
        for group in 0..file.num_row_groups() {
            self.read_group(&*file.get_row_group(group)?, column)?;
        }
        Ok(())
    }

    fn read_group(
        &mut self,
        group: &dyn RowGroupReader,
        column: Column,
    ) -> std::result::Result<(), Stop> {
        let leaves = group.metadata().columns();
        let root = |leaf: &parquet::file::metadata::ColumnChunkMetaData| {
            leaf.column_path().parts().first().map(String::as_str) == Some(column.name())
        };
        let Some(leaf) = leaves.iter().position(root) else {
            return Err(Stop::Problem(Problem::MissingColumn {
                column: column.name().to_owned(),
            }));
        };
        let descriptor = leaves[leaf].column_descr();
        let deepest = descriptor.max_def_level();
        let reader = group.get_column_reader(leaf)?;
        let ColumnReader::FloatColumnReader(mut reader) = reader else {
            return Err(wrong_type(
                column,
                &format!("{:?}", descriptor.physical_type()),
            ));
        };
        if descriptor.max_rep_level() != 1 {
            return Err(wrong_type(column, "not a list"));
        }
        let rows = usize::try_from(group.metadata().num_rows())?;
        self.rows.reserve(rows.min(MOST_RESERVED));
        let (mut levels, mut starts) = (Vec::new(), Vec::new());
        let read =
            reader.read_records(rows, Some(&mut levels), Some(&mut starts), &mut self.values)?;
        if levels.len() != starts.len() {
            return Err(Stop::Damaged("its levels do not fit".to_owned()));
        }
        if read.0 != rows {
            return Err(Stop::Damaged(format!("{} rows instead of {rows}", read.0)));
        }
        self.add_rows(column, &levels, &starts, deepest)?;
        let end = self.rows.last().map_or(0, |row| row.end);
        if end != self.values.len() {
            return Err(Stop::Damaged("its values and levels do not fit".to_owned()));
        }
        Ok(())
    }

    /// Turns levels into ranges: a row starts where the repetition level is 0, and only an entry of
    /// the deepest definition level has a value.
    fn add_rows(
        &mut self,
        column: Column,
        levels: &[i16],
        starts: &[i16],
        deepest: i16,
    ) -> std::result::Result<(), Stop> {
        let mut end = self.rows.last().map_or(0, |row| row.end);
        let mut position = 0;
        while position < levels.len() {
            let next = next_start(starts, position + 1);
            let row = &levels[position..next];
            let count = row.len();
            if row
                .iter()
                .fold(true, |all, &level| all & (level == deepest))
            {
                self.rows.push(end..end + count);
                end += count;
            } else if count == 1 && Some(row[0]) == empty_level(deepest) {
                self.rows.push(end..end);
            } else {
                return Err(Stop::Problem(Problem::NullValue {
                    column: column.name().to_owned(),
                    row: self.rows.len(),
                }));
            }
            position = next;
        }
        Ok(())
    }
}

/// Position of the next row at or after `from`.
fn next_start(starts: &[i16], from: usize) -> usize {
    const BLOCK: usize = 64;
    let mut position = from;
    // Whole blocks without a start are skipped with vector instructions.
    while let Some(block) = starts.get(position..position + BLOCK)
        && block.iter().fold(true, |all, &start| all & (start != 0))
    {
        position += BLOCK;
    }
    let rest = starts[position..].iter().position(|&start| start == 0);
    rest.map_or(starts.len(), |offset| position + offset)
}

/// The definition level of an empty list where entries and lists may be null: 0 is a null list, 1
/// an empty one, 2 a null entry, 3 a value.
fn empty_level(deepest: i16) -> Option<i16> {
    deepest.checked_sub(2)
}

fn wrong_type(column: Column, got: &str) -> Stop {
    Stop::Problem(Problem::ColumnType {
        column: column.name().to_owned(),
        expected: column.dtype().to_string(),
        got: got.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_row_is_found_in_and_after_whole_blocks() {
        for length in [1, 63, 64, 65, 128, 200] {
            let mut starts = vec![1i16; 300];
            starts[0] = 0;
            starts[length] = 0;
            assert_eq!(next_start(&starts, 1), length);
            assert_eq!(next_start(&starts, length + 1), 300);
        }
    }
}
