//! Curricula and plans as files: Parquet with the columns of `steps`.

use crate::error::{Place, Problem, RecorderError, Result};
use crate::files;
use crate::record::{StepRecord, check_step};
use crate::rows::{read_steps, step_columns};
use crate::schema::{Column, Table};
use crate::table_file::{self, Provenance, required, texts, unreadable};
use polars::prelude::*;
use simfluence_core::design::PlannedRun;
use simfluence_core::{Curriculum, Edit, EditKind, RunDesign, Split};
use std::path::Path;

/// Writes a curriculum as a Parquet file, so that it can be simulated or trained elsewhere.
///
/// # Errors
/// The file cannot be written.
pub fn write_curriculum(path: &Path, curriculum: &Curriculum) -> Result<()> {
    let rows = records(curriculum);
    let mut frame = table_file::frame(step_columns(&rows, 1), &Place::file(path))?;
    table_file::write(path, &mut frame, &Provenance::of(Table::Curriculum))
}

/// Reads a curriculum over `train_count` training examples.
///
/// Files from elsewhere are fine: only the columns `step` and `batch` must be there, and other
/// widths of numbers are converted where no value changes.
///
/// # Errors
/// A missing column or one that cannot be converted; steps that are not 1, 2, 3, …; what
/// [`Curriculum::new`] refuses; each with file and step.
///
/// ```
/// use simfluence_core::{Curriculum, Step};
/// use simfluence_recorder::{read_curriculum, write_curriculum};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("curriculum.parquet");
/// let curriculum = Curriculum::new(vec![Step::new(vec![0, 2], Some(1e-3))], 3)?;
/// write_curriculum(&path, &curriculum)?;
/// assert_eq!(read_curriculum(&path, 3)?, curriculum);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_curriculum(path: &Path, train_count: usize) -> Result<Curriculum> {
    let place = Place::file(path);
    let frame = read_lenient(path, Table::Curriculum, &place)?;
    let rows = read_steps(&frame, &place)?;
    curriculum(rows, train_count, &place)
}

/// Writes planned runs as a Parquet file: one row per step, the runs one after another.
///
/// # Errors
/// Two runs of the same id, a run without steps; the file cannot be written.
///
/// ```
/// use simfluence_core::{Curriculum, RunDesign, Step, design::PlannedRun};
/// use simfluence_recorder::{read_plan, write_plan};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("plan.parquet");
/// let run = PlannedRun {
///     id: "run-0".into(),
///     seed: 1,
///     design: RunDesign::default(),
///     curriculum: Curriculum::new(vec![Step::new(vec![0, 2], Some(1e-3))], 3)?,
/// };
/// write_plan(&path, std::slice::from_ref(&run))?;
/// assert_eq!(read_plan(&path, 3)?, vec![run]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_plan(path: &Path, runs: &[PlannedRun]) -> Result<()> {
    let place = Place::file(path);
    check_planned(runs, &place)?;
    let mut rows = Vec::new();
    let mut numbers: Vec<u32> = Vec::new();
    let mut of: Vec<&PlannedRun> = Vec::new();
    for run in runs {
        rows.extend(records(&run.curriculum));
        numbers.extend(1..=run.curriculum.len() as u32);
        of.extend(std::iter::repeat_n(run, run.curriculum.len()));
    }
    let edit = |run: &PlannedRun| run.design.edit.clone();
    let text = |column: Column, value: &dyn Fn(&PlannedRun) -> Option<String>| {
        let values: Vec<Option<String>> = of.iter().map(|run| value(run)).collect();
        polars::prelude::Column::new(column.column_name(), values)
    };
    let seeds: Vec<u64> = of.iter().map(|run| run.seed).collect();
    let mut columns = vec![
        text(Column::Run, &|run| Some(run.id.clone())),
        polars::prelude::Column::new(Column::Seed.column_name(), seeds),
        text(Column::Design, &|run| Some(run.design.design.clone())),
        text(Column::Split, &|run| {
            run.design.split.map(|s| split_name(s).to_owned())
        }),
        text(Column::BaseRun, &|run| edit(run).map(|e| e.base_run)),
        text(Column::Edit, &|run| {
            edit(run).map(|e| e.kind.name().to_owned())
        }),
        text(Column::EditLabel, &|run| edit(run).map(|e| e.label)),
    ];
    columns.extend(step_columns(&rows, 1));
    let step = columns.iter_mut().find(|c| c.name() == Column::Step.name());
    if let Some(step) = step {
        *step = polars::prelude::Column::new(Column::Step.column_name(), numbers);
    }
    let mut frame = table_file::frame(columns, &place)?;
    table_file::write(path, &mut frame, &Provenance::of(Table::Plan))
}

/// Reads planned runs over `train_count` training examples, in the order of the file.
///
/// Files from elsewhere are fine, as for [`read_curriculum`]; `run` and `seed` must be there too.
///
/// # Errors
/// As [`read_curriculum`]; a run whose rows do not stand together or disagree; an unknown split or
/// kind of edit.
pub fn read_plan(path: &Path, train_count: usize) -> Result<Vec<PlannedRun>> {
    let place = Place::file(path);
    let frame = read_lenient(path, Table::Plan, &place)?;
    let heads = read_heads(&frame, &place)?;
    let mut runs: Vec<PlannedRun> = Vec::new();
    let mut rows: Vec<StepRecord> = Vec::new();
    for (index, record) in read_steps(&frame, &place)?.into_iter().enumerate() {
        rows.push(record);
        let last = heads
            .get(index + 1)
            .is_none_or(|next| next.0 != heads[index].0);
        let (id, seed, design) = &heads[index];
        let place = Place::run(path, id);
        if !last {
            if heads[index] != heads[index + 1] {
                let message = "its rows disagree about seed, design, split or edit";
                return Err(other(&place, message));
            }
            continue;
        }
        runs.push(PlannedRun {
            id: id.clone(),
            seed: *seed,
            design: design.clone(),
            curriculum: curriculum(std::mem::take(&mut rows), train_count, &place)?,
        });
    }
    check_planned(&runs, &place)?;
    Ok(runs)
}

/// Id, seed and design of the run of each row.
fn read_heads(frame: &DataFrame, place: &Place) -> Result<Vec<(String, u64, RunDesign)>> {
    let seeds = required::<UInt64Type>(frame, Column::Seed, place)?;
    let text = |column: Column| texts(frame, column.name(), place);
    let (ids, designs, splits) = (
        text(Column::Run)?,
        text(Column::Design)?,
        text(Column::Split)?,
    );
    let (bases, kinds, labels) = (
        text(Column::BaseRun)?,
        text(Column::Edit)?,
        text(Column::EditLabel)?,
    );
    (0..seeds.len())
        .map(|row| {
            let id = ids[row].unwrap_or_default();
            let place = Place {
                run: Some(id.to_owned()),
                ..place.clone()
            };
            let split = splits[row]
                .map(|name| {
                    split_from_name(name).ok_or_else(|| {
                        other(
                            &place,
                            format!("unknown split {name:?}; it is train or held-out"),
                        )
                    })
                })
                .transpose()?;
            let edit = match (bases[row], kinds[row]) {
                (Some(base_run), Some(kind)) => Some(Edit {
                    base_run: base_run.to_owned(),
                    kind: EditKind::from_name(kind)
                        .ok_or_else(|| other(&place, format!("unknown kind of edit {kind:?}")))?,
                    label: labels[row].unwrap_or_default().to_owned(),
                }),
                (None, None) => None,
                _ => {
                    return Err(other(
                        &place,
                        "base_run and edit must both be given, or neither",
                    ));
                }
            };
            let design = RunDesign {
                design: designs[row].unwrap_or_default().to_owned(),
                split,
                edit,
            };
            Ok((id.to_owned(), seeds[row], design))
        })
        .collect()
}

fn check_planned(runs: &[PlannedRun], place: &Place) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for run in runs {
        let place = Place::run(&place.file, &run.id);
        if run.curriculum.is_empty() {
            return Err(other(&place, "the run has no steps"));
        }
        if !seen.insert(&run.id) {
            return Err(other(
                &place,
                "the id stands twice; the rows of a run must stand together",
            ));
        }
    }
    Ok(())
}

fn curriculum(rows: Vec<StepRecord>, train_count: usize, place: &Place) -> Result<Curriculum> {
    for (record, expected) in rows.iter().zip(1..) {
        let problems = check_step(record, expected, train_count);
        if let Some(problem) = problems.into_iter().next() {
            return Err(RecorderError::invalid(place.at_step(expected), problem));
        }
    }
    let steps = rows.into_iter().map(|record| record.step).collect();
    Curriculum::new(steps, train_count).map_err(|e| RecorderError::invalid(place.clone(), e))
}

fn records(curriculum: &Curriculum) -> Vec<StepRecord> {
    let steps = curriculum.steps().iter();
    steps.map(|step| StepRecord::new(step.clone())).collect()
}

/// Reads a table that may come from elsewhere: no provenance, other widths, columns left out.
fn read_lenient(path: &Path, table: Table, place: &Place) -> Result<DataFrame> {
    let frame = table_file::decode(files::read(path)?.into(), place)?;
    let mut columns = Vec::new();
    for &column in table.columns() {
        let cast = match frame.column(column.name()) {
            Ok(found) => found.strict_cast(&column.dtype()).map_err(|e| {
                let problem = Problem::ColumnType {
                    column: column.name().to_owned(),
                    expected: column.dtype().to_string(),
                    got: format!("{} ({e})", found.dtype()),
                };
                RecorderError::invalid(place.clone(), problem)
            })?,
            Err(_) if column.nullable() || column == Column::Design => absent(column, &frame),
            Err(_) => {
                let column = column.name().to_owned();
                let problem = Problem::MissingColumn { column };
                return Err(RecorderError::invalid(place.clone(), problem));
            }
        };
        if !column.nullable() && cast.null_count() > 0 {
            let row = (0..cast.len()).find(|&row| matches!(cast.get(row), Ok(AnyValue::Null)));
            let problem = Problem::NullValue {
                column: column.name().to_owned(),
                row: row.unwrap_or(0),
            };
            return Err(RecorderError::invalid(place.clone(), problem));
        }
        columns.push(cast);
    }
    DataFrame::new(frame.height(), columns).map_err(|e| unreadable(place, "Parquet", e))
}

fn absent(column: Column, frame: &DataFrame) -> polars::prelude::Column {
    let (name, height) = (column.column_name(), frame.height());
    if column == Column::Design {
        // A plan of somebody's own: its curricula are given.
        return polars::prelude::Column::new(name, vec!["given"; height]);
    }
    polars::prelude::Column::full_null(name, height, &column.dtype())
}

fn other(place: &Place, message: impl Into<String>) -> RecorderError {
    let message = message.into();
    RecorderError::invalid(place.clone(), Problem::Other { message })
}

/// `train` or `held-out`, as it stands in files.
pub(crate) fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::HeldOut => "held-out",
    }
}

pub(crate) fn split_from_name(name: &str) -> Option<Split> {
    [Split::Train, Split::HeldOut]
        .into_iter()
        .find(|&split| split_name(split) == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Step;

    fn plan() -> Vec<PlannedRun> {
        let weighted = Step {
            weights: Some(vec![0.25, 0.75]),
            ..Step::new(vec![1, 1], None)
        };
        let steps = vec![Step::new(vec![0, 2], Some(0.1)), weighted];
        let run = |id: &str, design: RunDesign, steps: Vec<Step>| PlannedRun {
            id: id.into(),
            seed: u64::MAX,
            design,
            curriculum: Curriculum::new(steps, 3).unwrap(),
        };
        let edit = Edit {
            base_run: "a".into(),
            kind: EditKind::Dropped,
            label: "dropped Sports".into(),
        };
        let suite = RunDesign {
            design: "suite".into(),
            split: Some(Split::HeldOut),
            edit: Some(edit),
        };
        vec![
            run("a", RunDesign::default(), steps.clone()),
            run("b", suite, steps[..1].to_vec()),
        ]
    }

    #[test]
    fn a_plan_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.parquet");
        write_plan(&path, &plan()).unwrap();
        assert_eq!(read_plan(&path, 3).unwrap(), plan());
    }

    #[test]
    fn a_plan_over_more_examples_than_there_are_names_run_and_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.parquet");
        write_plan(&path, &plan()).unwrap();
        let message = read_plan(&path, 2).unwrap_err().to_string();
        assert!(
            message.contains("run a, step 1") && message.contains("id 2"),
            "{message}"
        );
    }

    #[test]
    fn a_planned_run_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.parquet");
        let mut twice = plan();
        twice[1].id = "a".into();
        let message = write_plan(&path, &twice).unwrap_err().to_string();
        assert!(message.contains("stands twice"), "{message}");
    }

    #[test]
    fn a_curriculum_of_another_programs_widths_is_converted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.parquet");
        let batch = Series::new("".into(), &[0i64, 2]);
        let mut frame =
            df!("step" => &[1i64], "batch" => &[batch], "learning_rate" => &[0.5f64]).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        ParquetWriter::new(file).finish(&mut frame).unwrap();
        let expected = Curriculum::new(vec![Step::new(vec![0, 2], Some(0.5))], 3).unwrap();
        assert_eq!(read_curriculum(&path, 3).unwrap(), expected);
    }

    #[test]
    fn a_negative_id_from_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.parquet");
        let batch = Series::new("".into(), &[0i64, -2]);
        let mut frame = df!("step" => &[1i64], "batch" => &[batch]).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        ParquetWriter::new(file).finish(&mut frame).unwrap();
        let message = read_curriculum(&path, 3).unwrap_err().to_string();
        assert!(
            message.contains("own.parquet") && message.contains("\"batch\""),
            "{message}"
        );
    }

    #[test]
    fn a_curriculum_without_batches_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.parquet");
        let mut frame = df!("step" => &[1u32]).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        ParquetWriter::new(file).finish(&mut frame).unwrap();
        let message = read_curriculum(&path, 3).unwrap_err().to_string();
        assert!(message.contains("\"batch\" is missing"), "{message}");
    }

    #[test]
    fn a_curriculum_that_skips_a_step_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.parquet");
        let batch = Series::new("".into(), &[0u32]);
        let mut frame = df!("step" => &[1u32, 3], "batch" => &[batch.clone(), batch]).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        ParquetWriter::new(file).finish(&mut frame).unwrap();
        let message = read_curriculum(&path, 3).unwrap_err().to_string();
        assert!(
            message.contains("step 3 where step 2 should follow"),
            "{message}"
        );
    }
}
