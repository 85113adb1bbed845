//! Trajectories as long tables for other programs.

use crate::error::{Place, RecorderError, Result};
use crate::files;
use crate::schema::{Column, Table};
use crate::table_file::{self, Provenance, unreadable};
use polars::prelude::*;
use serde_json::{Value, json};
use simfluence_core::{Banded, Examples, Trajectory};
use std::path::Path;

/// Writes a trajectory as a long table, one row per measured loss: `step`, `test_id`, `key`,
/// `dataset`, `loss` (nats per target token).
///
/// The ending of `path` decides: `.parquet`, `.csv` or `.json` (a list of objects, in which a NaN
/// or infinite loss is the text `NaN`, `inf` or `-inf`). A loss that was never measured has no row.
///
/// # Errors
/// Another ending; another number of test examples than in the trajectory; the file cannot be
/// written.
///
/// ```
/// use simfluence_core::{Example, Examples, Trajectory};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("losses.csv");
/// let test = Examples::new(vec![Example::new("a", "sums")])?;
/// let trajectory = Trajectory::new(vec![0], 1, vec![2.5])?;
/// simfluence_recorder::write_trajectory(&path, &trajectory, &test)?;
/// assert_eq!(std::fs::read_to_string(&path)?, "step,test_id,key,dataset,loss\n0,0,a,sums,2.5\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_trajectory(path: &Path, trajectory: &Trajectory, test: &Examples) -> Result<()> {
    write(path, trajectory, &[], test)
}

/// As [`write_trajectory`], with the ends of the bands in the columns `low` and `high`.
///
/// # Errors
/// As [`write_trajectory`].
pub fn write_banded(path: &Path, banded: &Banded, test: &Examples) -> Result<()> {
    let ends = [(Column::Low, &banded.low), (Column::High, &banded.high)];
    write(path, &banded.simulated, &ends, test)
}

fn write(
    path: &Path,
    trajectory: &Trajectory,
    ends: &[(Column, &Trajectory)],
    test: &Examples,
) -> Result<()> {
    let place = Place::file(path);
    if test.len() != trajectory.test_count() {
        let problem = crate::Problem::TestCount {
            metric: crate::LOSS.to_owned(),
            expected: test.len(),
            got: trajectory.test_count(),
        };
        return Err(RecorderError::invalid(place, problem));
    }
    let rows = Rows::of(trajectory, ends);
    match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") => {
            let mut frame = rows.frame(test, &place)?;
            let table = if ends.is_empty() {
                Table::Trajectory
            } else {
                Table::BandedTrajectory
            };
            table_file::write(path, &mut frame, &Provenance::of(table))
        }
        Some("csv") => {
            let mut bytes = Vec::new();
            CsvWriter::new(&mut bytes)
                .finish(&mut rows.frame(test, &place)?)
                .map_err(|e| unreadable(&place, "table", e))?;
            files::write_atomically(path, &bytes)
        }
        Some("json") => {
            let text = serde_json::to_string(&rows.json(test)).expect("rows are valid JSON");
            files::write_atomically(path, text.as_bytes())
        }
        _ => Err(RecorderError::Extension {
            path: path.to_owned(),
            expected: ".parquet, .csv or .json",
        }),
    }
}

/// The measured losses.
struct Rows {
    steps: Vec<u32>,
    tests: Vec<u32>,
    losses: Vec<f32>,
    ends: Vec<(Column, Vec<f32>)>,
}

impl Rows {
    /// The measured losses; `ends` have the steps of the trajectory and every test example.
    fn of(trajectory: &Trajectory, ends: &[(Column, &Trajectory)]) -> Self {
        let mut rows = Self {
            steps: Vec::new(),
            tests: Vec::new(),
            losses: Vec::new(),
            ends: ends
                .iter()
                .map(|&(column, _)| (column, Vec::new()))
                .collect(),
        };
        for (index, &step) in trajectory.steps().iter().enumerate() {
            for test in 0..trajectory.test_count() {
                if let Some(loss) = trajectory.get(index, test) {
                    rows.steps.push(step);
                    rows.tests.push(test as u32);
                    rows.losses.push(loss);
                    for ((_, end), (_, values)) in ends.iter().zip(&mut rows.ends) {
                        values.push(end.row(index)[test]);
                    }
                }
            }
        }
        rows
    }

    fn frame(&self, test: &Examples, place: &Place) -> Result<DataFrame> {
        let all = test.as_slice();
        let tests = || self.tests.iter().map(|&t| &all[t as usize]);
        let keys: Vec<&str> = tests().map(|e| e.key.as_str()).collect();
        let datasets: Vec<&str> = tests().map(|e| e.dataset.as_str()).collect();
        let mut columns = vec![
            polars::prelude::Column::new(Column::Step.column_name(), &self.steps),
            polars::prelude::Column::new(Column::TestId.column_name(), &self.tests),
            polars::prelude::Column::new(Column::Key.column_name(), keys),
            polars::prelude::Column::new(Column::Dataset.column_name(), datasets),
            polars::prelude::Column::new(Column::Loss.column_name(), &self.losses),
        ];
        let ends = self.ends.iter();
        columns.extend(
            ends.map(|(column, values)| polars::prelude::Column::new(column.column_name(), values)),
        );
        table_file::frame(columns, place)
    }

    fn json(&self, test: &Examples) -> Value {
        let number = |value: f32| {
            if value.is_finite() {
                json!(value)
            } else {
                json!(value.to_string())
            }
        };
        (0..self.steps.len())
            .map(|row| {
                let id = self.tests[row];
                let example = &test.as_slice()[id as usize];
                let mut object = json!({
                    Column::Step.name(): self.steps[row],
                    Column::TestId.name(): id,
                    Column::Key.name(): example.key,
                    Column::Dataset.name(): example.dataset,
                    Column::Loss.name(): number(self.losses[row]),
                });
                for (column, values) in &self.ends {
                    object[column.name()] = number(values[row]);
                }
                object
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Example;

    fn parts() -> (Trajectory, Examples) {
        let values = vec![0.1, 2.5, 9.0, f32::NAN];
        let measured = vec![true, true, false, true];
        let trajectory = Trajectory::with_missing(vec![0, 3], 2, values, measured).unwrap();
        let test = Examples::new(vec![Example::new("a, b", "x"), Example::new("c", "y")]).unwrap();
        (trajectory, test)
    }

    #[test]
    fn csv_has_one_row_per_measured_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        let (trajectory, test) = parts();
        write_trajectory(&path, &trajectory, &test).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "step,test_id,key,dataset,loss\n0,0,\"a, b\",x,0.1\n0,1,c,y,2.5\n3,1,c,y,NaN\n"
        );
    }

    #[test]
    fn json_writes_a_nan_as_text_and_a_missing_loss_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.json");
        let (trajectory, test) = parts();
        write_trajectory(&path, &trajectory, &test).unwrap();
        let rows: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 3);
        assert_eq!(rows[2]["loss"], "NaN");
        assert_eq!(rows[1]["loss"], 2.5);
    }

    #[test]
    fn parquet_has_the_columns_of_the_schema() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let (trajectory, test) = parts();
        write_trajectory(&path, &trajectory, &test).unwrap();
        let provenance = Provenance::of(Table::Trajectory);
        let frame = table_file::read(&path, &provenance, &Place::file(&path)).unwrap();
        assert_eq!(frame.height(), 3);
    }

    #[test]
    fn bands_stand_beside_the_loss() {
        let folder = tempfile::tempdir().unwrap();
        let of = |values| Trajectory::new(vec![0, 1], 1, values).unwrap();
        let banded = Banded {
            simulated: of(vec![2.0, 1.0]),
            low: of(vec![2.0, 0.5]),
            high: of(vec![2.0, 1.5]),
            level: 0.9,
            distance: 1.0,
        };
        let test = Examples::new(vec![Example::new("a", "x")]).unwrap();
        let path = folder.path().join("t.csv");
        write_banded(&path, &banded, &test).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "step,test_id,key,dataset,loss,low,high\n0,0,a,x,2.0,2.0,2.0\n1,0,a,x,1.0,0.5,1.5\n"
        );
        write_banded(&folder.path().join("t.parquet"), &banded, &test).unwrap();
    }

    #[test]
    fn another_ending_is_refused() {
        let (trajectory, test) = parts();
        let error = write_trajectory(Path::new("t.xlsx"), &trajectory, &test).unwrap_err();
        assert!(
            error.to_string().contains(".parquet, .csv or .json"),
            "{error}"
        );
    }
}
