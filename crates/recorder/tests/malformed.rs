//! Every way in which a run set can be wrong, and what is said about it.

mod common;

use common::*;
use polars::prelude::*;
use simfluence_core::{Example, Examples, RunInfo, RunStatus, Step};
use simfluence_recorder::{Losses, Recorder, RecorderOptions, RunSet, StepRecord, check};
use std::path::{Path, PathBuf};

/// A run set with a run `a` of ten steps in segments of four rows.
fn set_with_a_run() -> (tempfile::TempDir, RunSet) {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    record_run(&set, "a", 10);
    (folder, set)
}

fn run_file(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join("runs/a").join(name)
}

/// Fails unless reading and checking both say all of `expected`.
fn assert_says(set: &RunSet, expected: &[&str]) {
    let error = set.read_run("a").unwrap_err().to_string();
    let problems = check(set.path()).unwrap().problems;
    let messages: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
    assert!(
        messages.contains(&error.as_str()),
        "check lacks {error:?}: {messages:#?}"
    );
    for text in expected {
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
}

/// Fails unless check lists a problem with all of `expected`.
fn assert_lists(folder: &Path, expected: &[&str]) {
    let problems = check(folder).unwrap().problems;
    let found = problems
        .iter()
        .any(|p| expected.iter().all(|text| p.message.contains(text)));
    assert!(found, "{expected:?} is not in {problems:#?}");
}

/// Rewrites a Parquet file with changed columns, its footer entries kept unless changed too.
fn rewrite(
    path: &Path,
    change: impl Fn(DataFrame) -> DataFrame,
    entry: impl Fn(&str, String) -> String,
) {
    let bytes = std::fs::read(path).unwrap();
    let mut reader = ParquetReader::new(std::io::Cursor::new(bytes));
    let metadata = reader.get_metadata().unwrap().clone();
    let entries = metadata.key_value_metadata().clone().unwrap();
    let mut frame = change(reader.finish().unwrap());
    let entries = entries
        .into_iter()
        .filter(|e| e.key.starts_with("simfluence."))
        .map(|e| {
            let value = match e.key.as_str() {
                "simfluence.rows" => frame.height().to_string(),
                _ => e.value.unwrap_or_default(),
            };
            let value = entry(&e.key, value);
            (e.key, value)
        })
        .collect();
    let file = std::fs::File::create(path).unwrap();
    ParquetWriter::new(file)
        .with_key_value_metadata(Some(KeyValueMetadata::from_static(entries)))
        .finish(&mut frame)
        .unwrap();
}

fn change_column(path: &Path, column: Series) {
    let change = |mut frame: DataFrame| {
        frame
            .replace(column.name(), column.clone().into_column())
            .unwrap();
        frame
    };
    rewrite(path, change, |_, value| value);
}

fn change_entry(path: &Path, key: &str, to: &str) {
    rewrite(
        path,
        |frame| frame,
        |k, value| if k == key { to.to_owned() } else { value },
    );
}

fn edit_json(path: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

// What is refused while recording: nothing is recorded, and the recorder can go on.

fn assert_refused(record: StepRecord, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    recorder.log_initial(&losses(0)).unwrap();
    let message = recorder.log_step(&record).unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
    assert!(message.contains("run a, step 1"), "{message}");
    recorder.log_step(&common::record(1)).unwrap();
    recorder.finish().unwrap();
    assert_recorded(&set, "a", 1);
}

#[test]
fn a_training_id_out_of_range_is_refused() {
    let record = StepRecord::new(Step::new(vec![0, 10], None));
    assert_refused(
        record,
        "training id 10 is out of range; there are 10 training examples",
    );
}

#[test]
fn an_empty_batch_is_refused() {
    assert_refused(
        StepRecord::new(Step::new(vec![], None)),
        "the batch is empty",
    );
}

#[test]
fn steps_that_go_backwards_are_refused() {
    let record = StepRecord {
        number: Some(0),
        ..record(1)
    };
    assert_refused(record, "step 0 where step 1 should follow");
}

#[test]
fn steps_that_jump_are_refused() {
    assert_refused(record(2), "step 2 where step 1 should follow");
}

#[test]
fn another_number_of_losses_is_refused() {
    let record = StepRecord {
        losses: Some(Losses::All(vec![1.0; 4])),
        ..record(1)
    };
    assert_refused(record, "4 values of \"loss\" for 3 test examples");
}

#[test]
fn a_test_id_out_of_range_is_refused() {
    let losses = Losses::Subset {
        test_ids: vec![0, 3],
        values: vec![1.0; 2],
    };
    let record = StepRecord {
        losses: Some(losses),
        ..record(1)
    };
    assert_refused(
        record,
        "test id 3 is out of range; there are 3 test examples",
    );
}

#[test]
fn a_test_id_twice_is_refused() {
    let losses = Losses::Subset {
        test_ids: vec![1, 1],
        values: vec![1.0; 2],
    };
    let record = StepRecord {
        losses: Some(losses),
        ..record(1)
    };
    assert_refused(record, "test id 1 stands twice");
}

#[test]
fn batch_losses_of_another_length_are_refused() {
    let record = StepRecord {
        batch_loss: Some(vec![1.0; 3]),
        ..record(1)
    };
    assert_refused(record, "3 entries in batch_loss for a batch of 2 examples");
}

#[test]
fn losses_before_the_first_step_come_once_and_first() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    recorder.log_initial(&losses(0)).unwrap();
    let twice = recorder.log_initial(&losses(0)).unwrap_err().to_string();
    assert!(twice.contains("must come once, before any step"), "{twice}");
    recorder.log_step(&record(1)).unwrap();
    let late = recorder.log_initial_metric("accuracy", &Losses::All(losses(0)));
    assert!(
        late.unwrap_err()
            .to_string()
            .contains("(1 steps are recorded)")
    );
}

#[test]
fn an_id_that_cannot_name_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    for id in ["", ".", "..", "a/b", "a\\b", "a\nb", &"a".repeat(201)] {
        let info = RunInfo::new(RunStatus::Recording);
        let error = Recorder::create(&set, id, info, RecorderOptions::default()).unwrap_err();
        assert!(
            error.to_string().contains("cannot be the id of a run"),
            "{error}"
        );
    }
    assert_eq!(
        std::fs::read_dir(folder.path().join("runs"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_run_set_without_examples_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let none = Examples::new(vec![]).unwrap();
    let error = RunSet::create(folder.path(), &none, &examples("t", 1)).unwrap_err();
    assert!(
        error.to_string().contains("there are no training examples"),
        "{error}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let occupied = folder.path().join("file");
    std::fs::write(&occupied, b"x").unwrap();
    let path = occupied.join("set");
    let error = RunSet::create(&path, &examples("a", 1), &examples("b", 1)).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("cannot create the folder") && message.contains("file/set"),
        "{message}"
    );
}

#[test]
fn a_run_folder_that_vanishes_stops_the_recorder_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    std::fs::remove_dir_all(folder.path().join("runs/a")).unwrap();
    recorder.log_step(&record(1)).unwrap();
    let message = recorder.flush().unwrap_err().to_string();
    assert!(
        message.contains("cannot write") && message.contains("runs/a/"),
        "{message}"
    );
    let message = recorder.log_step(&record(2)).unwrap_err().to_string();
    assert!(message.contains("cannot be recorded further"), "{message}");
}

// What is found while reading.

#[test]
fn a_folder_that_is_no_run_set_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = RunSet::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("is not a run set"), "{message}");
    assert!(check(folder.path()).is_err());
}

#[test]
fn a_run_set_of_another_version_is_refused() {
    let (folder, set) = set_with_a_run();
    edit_json(&folder.path().join("run_set.json"), |v| {
        v["format_version"] = 2.into()
    });
    let message = RunSet::open(set.path()).unwrap_err().to_string();
    assert!(
        message.contains("run_set.json: format version 2"),
        "{message}"
    );
}

#[test]
fn a_run_of_another_version_is_refused() {
    let (folder, set) = set_with_a_run();
    edit_json(&run_file(&folder, "run.json"), |v| {
        v["format_version"] = "x".into()
    });
    assert_says(&set, &["run.json", "format version \"x\""]);
}

#[test]
fn a_segment_of_another_version_is_refused() {
    let (folder, set) = set_with_a_run();
    change_entry(
        &run_file(&folder, "steps-00001.parquet"),
        "simfluence.format_version",
        "7",
    );
    assert_says(&set, &["steps-00001.parquet, run a", "format version 7"]);
}

#[test]
fn a_run_file_that_is_no_json_names_its_line() {
    let (folder, set) = set_with_a_run();
    std::fs::write(run_file(&folder, "run.json"), "{\n\"format_version\": 1,\n").unwrap();
    assert_says(&set, &["run.json, run a", "not readable as JSON", "line 3"]);
}

#[test]
fn a_run_file_of_another_run_is_refused() {
    let (folder, set) = set_with_a_run();
    edit_json(&run_file(&folder, "run.json"), |v| v["run"] = "b".into());
    assert_says(&set, &["run.json", "it belongs to run \"b\""]);
}

#[test]
fn a_status_that_the_losses_contradict_is_an_error() {
    let (folder, set) = set_with_a_run();
    edit_json(&run_file(&folder, "run.json"), |v| {
        v["status"] = "diverged".into()
    });
    assert_says(
        &set,
        &[
            "run.json",
            "the status is diverged, but the recorded losses say complete",
        ],
    );
}

#[test]
fn a_complete_run_with_a_nan_is_an_error() {
    let (folder, set) = set_with_a_run();
    let mut rows: Vec<Series> = (4..8).map(|s| Series::new("".into(), losses(s))).collect();
    rows[2] = Series::new("".into(), [1.0, f32::NAN, 1.0]);
    change_column(
        &run_file(&folder, "losses-00001.parquet"),
        Series::new("values".into(), rows),
    );
    assert_says(
        &set,
        &["the status is complete, but the recorded losses say diverged"],
    );
}

#[test]
fn a_finished_run_without_counts_is_an_error() {
    let (folder, set) = set_with_a_run();
    edit_json(&run_file(&folder, "run.json"), |v| {
        v["recorded"] = serde_json::Value::Null
    });
    assert_says(&set, &["what was recorded is not counted"]);
}

#[test]
fn an_unknown_base_model_is_an_error() {
    let (folder, set) = set_with_a_run();
    edit_json(&run_file(&folder, "run.json"), |v| {
        v["base_model"] = "m1".into()
    });
    assert_says(
        &set,
        &["the base model \"m1\" is not among those of run_set.json"],
    );
}

#[test]
fn a_truncated_segment_is_named() {
    let (folder, set) = set_with_a_run();
    for name in ["steps-00001.parquet", "losses-00000.parquet"] {
        let path = run_file(&folder, name);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_says(&set, &[name, "run a", "not readable as Parquet", "cut off"]);
        }
        std::fs::write(&path, whole).unwrap();
    }
    assert_recorded(&set, "a", 10);
}

#[test]
fn a_damaged_segment_never_panics() {
    let (folder, set) = set_with_a_run();
    for name in ["steps-00001.parquet", "losses-00001.parquet"] {
        let path = run_file(&folder, name);
        let whole = std::fs::read(&path).unwrap();
        for position in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = set.read_run("a") {
                let message = error.to_string();
                assert!(message.contains("runs/a"), "{message}");
            }
        }
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_missing_middle_segment_is_named() {
    let (folder, set) = set_with_a_run();
    std::fs::remove_file(run_file(&folder, "steps-00001.parquet")).unwrap();
    assert_says(
        &set,
        &["steps-00001.parquet, run a: the segment is missing"],
    );
    assert_lists(
        folder.path(),
        &["steps-00002.parquet", "step 8 where step 4 should follow"],
    );
    assert_lists(
        folder.path(),
        &["run.json", "2 segments of steps, expected 3"],
    );
}

#[test]
fn a_missing_segment_of_losses_is_named() {
    let (folder, set) = set_with_a_run();
    std::fs::remove_file(run_file(&folder, "losses-00001.parquet")).unwrap();
    assert_says(
        &set,
        &["losses-00001.parquet, run a: the segment is missing"],
    );
}

#[test]
fn a_missing_last_segment_is_found_by_the_counts() {
    let (folder, set) = set_with_a_run();
    std::fs::remove_file(run_file(&folder, "losses-00002.parquet")).unwrap();
    assert_says(&set, &["run.json", "2 segments of losses, expected 3"]);
}

#[test]
fn a_segment_of_another_run_is_refused() {
    let (folder, set) = set_with_a_run();
    record_run(&set, "b", 10);
    let other = folder.path().join("runs/b/losses-00001.parquet");
    std::fs::copy(other, run_file(&folder, "losses-00001.parquet")).unwrap();
    assert_says(
        &set,
        &[
            "losses-00001.parquet",
            "simfluence.run is \"b\", expected \"a\"",
        ],
    );
}

#[test]
fn a_segment_of_another_run_set_is_refused() {
    let (folder, set) = set_with_a_run();
    let elsewhere = tempfile::tempdir().unwrap();
    let (train, test) = (examples("other", TRAIN), examples("test", TESTS));
    let other = RunSet::create(elsewhere.path(), &train, &test).unwrap();
    record_run(&other, "a", 10);
    let file = elsewhere.path().join("runs/a/steps-00000.parquet");
    std::fs::copy(file, run_file(&folder, "steps-00000.parquet")).unwrap();
    assert_says(&set, &["steps-00000.parquet", "simfluence.train_examples"]);
}

#[test]
fn a_table_in_the_place_of_another_is_refused() {
    let (folder, set) = set_with_a_run();
    std::fs::copy(
        run_file(&folder, "losses-00001.parquet"),
        run_file(&folder, "steps-00001.parquet"),
    )
    .unwrap();
    assert_says(
        &set,
        &["simfluence.table is \"losses\", expected \"steps\""],
    );
}

#[test]
fn rows_taken_out_of_a_segment_are_found() {
    let (folder, set) = set_with_a_run();
    rewrite(
        &run_file(&folder, "losses-00001.parquet"),
        |frame| frame.slice(0, 3),
        |key, value| {
            if key == "simfluence.rows" {
                "4".to_owned()
            } else {
                value
            }
        },
    );
    assert_says(
        &set,
        &[
            "losses-00001.parquet",
            "simfluence.rows is \"4\", expected \"3\"",
        ],
    );
}

#[test]
fn steps_out_of_order_are_found() {
    let (folder, set) = set_with_a_run();
    let path = run_file(&folder, "steps-00001.parquet");
    change_column(&path, Series::new("step".into(), [4u32, 5, 5, 7]));
    assert_says(
        &set,
        &[
            "steps-00001.parquet, run a",
            "step 5 where step 6 should follow",
        ],
    );
}

#[test]
fn a_training_id_out_of_range_is_found_with_its_step() {
    let (folder, set) = set_with_a_run();
    let batch = |ids: [u32; 2]| Series::new("".into(), ids);
    let rows = [batch([4, 8]), batch([5, 99]), batch([6, 2]), batch([7, 9])];
    change_column(
        &run_file(&folder, "steps-00001.parquet"),
        Series::new("batch".into(), rows),
    );
    assert_says(
        &set,
        &[
            "steps-00001.parquet, run a, step 5",
            "training id 99 is out of range",
        ],
    );
}

#[test]
fn evaluations_out_of_order_are_found() {
    let (folder, set) = set_with_a_run();
    let path = run_file(&folder, "losses-00001.parquet");
    change_column(&path, Series::new("step".into(), [4u32, 6, 5, 7]));
    assert_says(
        &set,
        &["losses-00001.parquet", "at step 5 follows one at step 6"],
    );
}

#[test]
fn an_evaluation_after_the_last_step_is_found() {
    let (folder, set) = set_with_a_run();
    let path = run_file(&folder, "losses-00002.parquet");
    change_column(&path, Series::new("step".into(), [8u32, 9, 11]));
    assert_says(
        &set,
        &[
            "losses-00002.parquet",
            "after step 11, but the run has only 10 steps",
        ],
    );
}

#[test]
fn another_number_of_values_is_found_with_its_step() {
    let (folder, set) = set_with_a_run();
    let mut rows: Vec<Series> = (4..8).map(|s| Series::new("".into(), losses(s))).collect();
    rows[1] = Series::new("".into(), [1.0f32]);
    change_column(
        &run_file(&folder, "losses-00001.parquet"),
        Series::new("values".into(), rows),
    );
    assert_says(
        &set,
        &[
            "losses-00001.parquet, run a, step 5",
            "1 values of \"loss\" for 3 test examples",
        ],
    );
}

#[test]
fn a_test_id_out_of_range_is_found_with_its_step_and_example() {
    let (folder, set) = set_with_a_run();
    let ids = Series::new("".into(), [0u32, 1, 5]);
    let rows = Series::new(
        "test_ids".into(),
        [ids.clone(), ids.clone(), ids.clone(), ids],
    );
    change_column(&run_file(&folder, "losses-00001.parquet"), rows);
    assert_says(
        &set,
        &["run a, step 4, test example 5", "test id 5 is out of range"],
    );
    assert_eq!(check(folder.path()).unwrap().problems.len(), 4);
}

#[test]
fn a_missing_value_in_a_list_is_found() {
    let (folder, set) = set_with_a_run();
    let mut rows: Vec<Series> = (4..8).map(|s| Series::new("".into(), losses(s))).collect();
    rows[2] = Series::new("".into(), [Some(1.0f32), None, Some(2.0)]);
    change_column(
        &run_file(&folder, "losses-00001.parquet"),
        Series::new("values".into(), rows),
    );
    assert_says(
        &set,
        &[
            "losses-00001.parquet",
            "row 2 of the column \"values\" is null",
        ],
    );
}

#[test]
fn a_missing_column_is_found() {
    let (folder, set) = set_with_a_run();
    for (name, column) in [
        ("steps-00001.parquet", "batch"),
        ("losses-00001.parquet", "values"),
    ] {
        let path = run_file(&folder, name);
        let whole = std::fs::read(&path).unwrap();
        rewrite(&path, |frame| frame.drop(column).unwrap(), |_, value| value);
        let error = set.read_run("a").unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(column), "{error}");
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_column_of_another_type_is_found() {
    let (folder, set) = set_with_a_run();
    let rows: Vec<Series> = (4..8)
        .map(|_| Series::new("".into(), [1.0f64; 3]))
        .collect();
    change_column(
        &run_file(&folder, "losses-00001.parquet"),
        Series::new("values".into(), rows),
    );
    assert_says(
        &set,
        &[
            "losses-00001.parquet",
            "the column \"values\" has type DOUBLE",
        ],
    );
    let (folder, set) = set_with_a_run();
    let path = run_file(&folder, "steps-00001.parquet");
    change_column(&path, Series::new("step".into(), [4i64, 5, 6, 7]));
    assert_says(
        &set,
        &[
            "steps-00001.parquet",
            "the column \"step\" has type i64, expected u32",
        ],
    );
}

#[test]
fn examples_that_changed_are_found_by_their_fingerprint() {
    let (folder, _) = set_with_a_run();
    let path = folder.path().join("test_examples-00000.parquet");
    change_column(
        &path,
        Series::new("dataset".into(), ["numbers", "words", "numbers"]),
    );
    let message = RunSet::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("test_examples-00000.parquet"), "{message}");
    assert!(
        message.contains("the fingerprint of the test examples"),
        "{message}"
    );
    assert_lists(folder.path(), &["the fingerprint of the test examples"]);
}

#[test]
fn examples_that_are_missing_are_found_by_their_count() {
    let (folder, _) = set_with_a_run();
    let path = folder.path().join("train_examples-00000.parquet");
    rewrite(&path, |frame| frame.slice(0, 9), |_, value| value);
    assert_lists(
        folder.path(),
        &["train_examples-00000.parquet", "9 examples, expected 10"],
    );
}

#[test]
fn example_ids_out_of_order_are_found() {
    let (folder, _) = set_with_a_run();
    let path = folder.path().join("test_examples-00000.parquet");
    change_column(&path, Series::new("test_id".into(), [0u32, 2, 1]));
    let message = RunSet::open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("test example in row 1: the id is 2"),
        "{message}"
    );
}

#[test]
fn two_examples_with_one_key_are_found() {
    let (folder, _) = set_with_a_run();
    let path = folder.path().join("test_examples-00000.parquet");
    change_column(&path, Series::new("key".into(), ["x", "y", "x"]));
    let message = RunSet::open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("examples 0 and 2 have the same key \"x\""),
        "{message}"
    );
}

#[test]
fn missing_examples_are_named() {
    let (folder, _) = set_with_a_run();
    std::fs::remove_file(folder.path().join("test_examples-00000.parquet")).unwrap();
    let message = RunSet::open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("cannot read") && message.contains("test_examples-00000"),
        "{message}"
    );
}

#[test]
fn a_folder_without_a_run_file_is_found() {
    let (folder, set) = set_with_a_run();
    std::fs::remove_file(run_file(&folder, "run.json")).unwrap();
    assert_lists(folder.path(), &["runs/a", "the folder has no run.json"]);
    assert!(set.run_ids().unwrap().is_empty());
    let info = RunInfo::new(RunStatus::Recording);
    let again = Recorder::create(&set, "a", info, RecorderOptions::default());
    assert!(again.unwrap_err().to_string().contains("exists already"));
}

#[test]
fn every_problem_is_listed_and_the_whole_runs_are_still_counted() {
    let (folder, set) = set_with_a_run();
    record_run(&set, "b", 3);
    std::fs::remove_file(run_file(&folder, "steps-00001.parquet")).unwrap();
    std::fs::write(run_file(&folder, "losses-00000.parquet"), b"").unwrap();
    edit_json(&run_file(&folder, "run.json"), |v| {
        v["base_model"] = "m1".into()
    });
    let report = check(folder.path()).unwrap();
    for text in ["steps-00001", "losses-00000", "m1"] {
        assert!(
            report.problems.iter().any(|p| p.message.contains(text)),
            "{report:#?}"
        );
    }
    assert!(!report.is_whole());
    assert_eq!(report.runs.len(), 2);
    assert!(set.read_run("b").is_ok());
}

#[test]
fn a_key_with_any_character_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let odd = Examples::new(vec![
        Example::new("a\n\"b\", ü", ""),
        Example::new(" ", "x"),
    ])
    .unwrap();
    RunSet::create(folder.path(), &odd, &odd).unwrap();
    assert_eq!(*RunSet::open(folder.path()).unwrap().test_examples(), odd);
}

#[test]
fn a_truncated_checkpoint_is_listed_with_its_path() {
    let (folder, set) = set_with_a_run();
    let checkpoints = run_file(&folder, "checkpoints");
    std::fs::create_dir_all(&checkpoints).unwrap();
    let path = checkpoints.join("step-000010.safetensors");
    simfluence_recorder::write_artifact(&path, &simfluence_core::Artifact::new("weights", 1))
        .unwrap();
    assert!(check(set.path()).unwrap().is_whole());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_lists(set.path(), &["step-000010.safetensors", "safetensors"]);
}
