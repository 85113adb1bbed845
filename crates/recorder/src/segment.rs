//! Segments: the numbered Parquet files of a run's `steps` and `losses`.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::files;
use crate::schema::Table;
use std::path::{Path, PathBuf};

/// Missing segments that are listed one by one; a name with a huge number shall not list millions.
const MOST_MISSING: usize = 1000;

/// The file of a segment.
pub(crate) fn path(folder: &Path, table: Table, index: u32) -> PathBuf {
    folder.join(format!("{}-{index:05}.parquet", table.name()))
}

/// The segments of a table in order: index and file. A gap in the numbering is listed.
pub(crate) fn list(
    folder: &Path,
    run: &str,
    table: Table,
    problems: &mut Vec<RecorderError>,
) -> Result<Vec<(u32, PathBuf)>> {
    let mut segments: Vec<(u32, PathBuf)> = files::names(folder)?
        .iter()
        .filter_map(|name| {
            let rest = name.strip_prefix(table.name())?.strip_prefix('-')?;
            let index = rest.strip_suffix(".parquet")?.parse().ok()?;
            let path = path(folder, table, index);
            path.ends_with(name).then_some((index, path))
        })
        .collect();
    segments.sort();
    let mut expected = 0;
    for (index, _) in &segments {
        for missing in (expected..*index).take(MOST_MISSING) {
            let place = Place::run(&path(folder, table, missing), run);
            problems.push(RecorderError::invalid(
                place,
                Problem::MissingSegment { table },
            ));
        }
        expected = index + 1;
    }
    Ok(segments)
}
