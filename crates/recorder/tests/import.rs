//! Logs from elsewhere.

mod common;

use polars::prelude::*;
use simfluence_core::{EditKind, Optimizer, RunStatus, Split};
use simfluence_recorder::{
    ColumnNames, RunSet, TableImport, check, import_gptdynamics, import_tables, read_features,
};
use std::path::{Path, PathBuf};

/// Writes a run in the layout of GPTDynamics: batches and losses `(id, [(step, loss)])`.
fn gptdynamics_run(folder: &Path, steps: &[(i64, &[u32])], losses: &[(u32, &[(i64, &str)])]) {
    std::fs::create_dir_all(folder).unwrap();
    let steps: String = steps
        .iter()
        .map(|(step, ids)| format!("{{\"step\": {step}, \"samples_id\": {ids:?}}}\n"))
        .collect();
    std::fs::write(folder.join("train_samples_id.json"), steps).unwrap();
    let losses: String = losses
        .iter()
        .map(|(id, points)| {
            let points: Vec<String> = points
                .iter()
                .map(|(step, loss)| format!("{{\"step\": {step}, \"loss\": {loss}}}"))
                .collect();
            format!(
                "{{\"id\": {id}, \"loss_trajectory\": [{}]}}\n",
                points.join(", ")
            )
        })
        .collect();
    std::fs::write(folder.join("all_loss_trajectory.out"), losses).unwrap();
}

fn has(warnings: &[String], parts: &[&str]) -> bool {
    warnings
        .iter()
        .any(|w| parts.iter().all(|part| w.contains(part)))
}

#[test]
fn gptdynamics_runs_are_imported_with_their_ids_as_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("in"), folder.path().join("out"));
    let steps: [(i64, &[u32]); 3] = [(1, &[7, 2]), (2, &[11, 7]), (3, &[2, 2])];
    let first: [(i64, &str); 3] = [(1, "2.5"), (2, "2.25"), (3, "2.125")];
    let second: [(i64, &str); 3] = [(1, "1.5"), (2, "NaN"), (3, "1.0")];
    gptdynamics_run(&dir.join("seed-1"), &steps, &[(4, &first), (9, &second)]);
    gptdynamics_run(&dir.join("seed-2"), &steps[..1], &[(9, &first[..1])]);
    let report = import_gptdynamics(&dir, &out).unwrap();
    assert_eq!(report.runs, vec!["seed-1", "seed-2"]);
    assert_eq!((report.train_examples, report.test_examples), (3, 2));
    assert!(
        has(&report.warnings, &["train examples are numbered anew"]),
        "{report:?}"
    );
    assert!(
        has(
            &report.warnings,
            &["run seed-1", "no losses before the first step"]
        ),
        "{report:?}"
    );

    let set = RunSet::open(&out).unwrap();
    assert_eq!(set.train_examples().keys(), vec!["2", "7", "11"]);
    assert_eq!(set.test_examples().keys(), vec!["4", "9"]);
    let run = set.read_run("seed-1").unwrap();
    assert_eq!(run.curriculum.steps()[0].batch, vec![1, 0]);
    assert_eq!(run.curriculum.steps()[2].batch, vec![0, 0]);
    assert_eq!(run.trajectory.steps(), &[1, 2, 3]);
    assert_eq!(run.trajectory.at_step(1), Some(&[2.5, 1.5][..]));
    assert!(run.trajectory.at_step(2).unwrap()[1].is_nan());
    assert_eq!(run.info.status, RunStatus::Diverged);
    let other = set.read_run("seed-2").unwrap();
    assert_eq!(
        (other.trajectory.get(0, 0), other.trajectory.get(0, 1)),
        (None, Some(2.5))
    );
    assert!(check(&out).unwrap().is_whole());
}

#[test]
fn steps_from_zero_move_with_their_losses_as_in_gptfluences_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("run"), folder.path().join("out"));
    gptdynamics_run(
        &dir,
        &[(0, &[0]), (1, &[1])],
        &[(0, &[(0, "3.0"), (1, "2.0")])],
    );
    let report = import_gptdynamics(&dir, &out).unwrap();
    assert!(
        has(
            &report.warnings,
            &["batches and losses are now at steps 1 to 2"]
        ),
        "{report:?}"
    );
    let run = RunSet::open(&out).unwrap().read_run("run").unwrap();
    assert_eq!(run.trajectory.steps(), &[1, 2]);
}

#[test]
fn losses_that_go_one_step_further_than_batches_from_zero_have_a_true_l0() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("run"), folder.path().join("out"));
    let losses: [(i64, &str); 3] = [(0, "3.0"), (1, "2.0"), (2, "1.0")];
    gptdynamics_run(&dir, &[(0, &[0]), (1, &[1])], &[(0, &losses)]);
    let report = import_gptdynamics(&dir, &out).unwrap();
    assert!(
        has(&report.warnings, &["batches count from 0"]),
        "{report:?}"
    );
    let run = RunSet::open(&out).unwrap().read_run("run").unwrap();
    assert_eq!(run.trajectory.initial(), Some(&[3.0][..]));
    assert_eq!(run.trajectory.steps(), &[0, 1, 2]);
}

#[test]
fn stale_points_are_left_out_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("run"), folder.path().join("out"));
    let steps: [(i64, &[u32]); 4] = [(1, &[0]), (2, &[1]), (3, &[0]), (4, &[1])];
    let a: [(i64, &str); 5] = [(0, "3.0"), (1, "2.0"), (2, "2.0"), (3, "2.0"), (4, "1.0")];
    let b: [(i64, &str); 5] = [(0, "5.0"), (1, "4.0"), (2, "4.0"), (3, "4.0"), (4, "4.0")];
    gptdynamics_run(&dir, &steps, &[(0, &a), (1, &b)]);
    let report = import_gptdynamics(&dir, &out).unwrap();
    assert!(
        has(&report.warnings, &["2 of its points only repeat", "step 2"]),
        "{report:?}"
    );
    let run = RunSet::open(&out).unwrap().read_run("run").unwrap();
    assert_eq!(run.trajectory.steps(), &[0, 1, 4]);
}

fn gptdynamics_error(steps: &str, losses: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("in/run");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("train_samples_id.json"), steps).unwrap();
    std::fs::write(dir.join("all_loss_trajectory.out"), losses).unwrap();
    let out = folder.path().join("out");
    let message = import_gptdynamics(&folder.path().join("in"), &out)
        .unwrap_err()
        .to_string();
    assert!(!out.exists(), "nothing is written");
    message
}

const LOSS_LINE: &str = "{\"id\": 0, \"loss_trajectory\": [{\"step\": 1, \"loss\": 1.0}]}\n";

#[test]
fn a_malformed_line_is_named() {
    let message = gptdynamics_error(
        "{\"step\": 1, \"samples_id\": [0]}\n{\"step\": 2}\n",
        LOSS_LINE,
    );
    assert!(
        message.contains("train_samples_id.json, run run"),
        "{message}"
    );
    assert!(
        message.contains("line 2") && message.contains("samples_id"),
        "{message}"
    );
}

#[test]
fn a_missing_step_is_named() {
    let steps = "{\"step\": 1, \"samples_id\": [0]}\n{\"step\": 3, \"samples_id\": [0]}\n";
    let message = gptdynamics_error(steps, LOSS_LINE);
    assert!(
        message.contains("step 2 is missing (the next one is step 3)"),
        "{message}"
    );
}

#[test]
fn two_batches_for_one_step_are_an_error() {
    let steps = "{\"step\": 1, \"samples_id\": [0]}\n{\"step\": 1, \"samples_id\": [1]}\n";
    let message = gptdynamics_error(steps, LOSS_LINE);
    assert!(message.contains("step 1 stands there twice"), "{message}");
}

#[test]
fn two_losses_for_one_step_are_an_error() {
    let losses = format!("{LOSS_LINE}{}", LOSS_LINE.replace("1.0", "2.0"));
    let message = gptdynamics_error("{\"step\": 1, \"samples_id\": [0]}\n", &losses);
    assert!(message.contains("step 1, test example \"0\""), "{message}");
    assert!(
        message.contains("two different losses, 1 and 2"),
        "{message}"
    );
}

#[test]
fn losses_after_the_last_step_are_an_error() {
    let losses = LOSS_LINE.replace("\"step\": 1", "\"step\": 9");
    let message = gptdynamics_error("{\"step\": 1, \"samples_id\": [0]}\n", &losses);
    assert!(
        message.contains("after step 9, but the run has only 1 steps"),
        "{message}"
    );
}

#[test]
fn an_empty_batch_in_a_log_is_named() {
    let steps = "{\"step\": 1, \"samples_id\": [0]}\n{\"step\": 2, \"samples_id\": []}\n";
    let message = gptdynamics_error(steps, LOSS_LINE);
    assert!(
        message.contains("the batch is empty") && message.contains("step 2"),
        "{message}"
    );
}

#[test]
fn a_folder_without_runs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = import_gptdynamics(folder.path(), &folder.path().join("out")).unwrap_err();
    assert!(
        message
            .to_string()
            .contains("no folder in it has a train_samples_id.json")
    );
}

/// Writes the CSV tables of a small import.
fn tables(folder: &Path) -> TableImport {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    TableImport {
        steps: write(
            "steps.csv",
            "run,step,batch,learning_rate,batch_loss\n\
             b,1,\"[5, 3]\",0.001,\"[1.5, NaN]\"\n\
             a,2,3 5,,\n\
             a,1,\"['x', 5]\",0.5,1.25 2\n",
        ),
        losses: write(
            "losses.csv",
            "run,step,test_id,loss\n\
             a,0,p,3.0\na,0,q,4\na,1,q,3.5\na,2,p,1e-3\na,2,q,\nb,0,p,1\nb,0,q,2\nb,1,p,inf\nb,1,q,1\n",
        ),
        train_examples: Some(write(
            "train.csv",
            "id,key,dataset,prompt\n5,y,sums,1+1=\n3,x,words,\n",
        )),
        test_examples: Some(write("test.csv", "key,dataset\np,sums\nq,sums\n")),
        runs: Some(write(
            "runs.csv",
            "run,optimiser,beta1,seed,split,base_run,edit,note\n\
             a,AdamW,0.8,7,train,,,fast\nb,adamw,,8,held-out,a,dropped,\nc,sgd,,,,,,\n",
        )),
        columns: ColumnNames::default(),
    }
}

#[test]
fn plain_csv_tables_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let report = import_tables(&tables(folder.path()), &out).unwrap();
    assert_eq!(report.runs, vec!["a", "b"]);
    assert!(has(&report.warnings, &["1 losses are empty"]), "{report:?}");
    assert!(
        has(&report.warnings, &["run c", "neither steps nor losses"]),
        "{report:?}"
    );

    let set = RunSet::open(&out).unwrap();
    assert_eq!(set.train_examples().keys(), vec!["x", "y"]);
    assert_eq!(set.train_examples().as_slice()[1].extra["prompt"], "1+1=");
    assert!(set.train_examples().as_slice()[0].extra.is_empty());
    let a = set.read_run("a").unwrap();
    let batches: Vec<&[u32]> = a.curriculum.steps().iter().map(|s| &s.batch[..]).collect();
    assert_eq!(batches, vec![&[0, 1][..], &[0, 1]]);
    assert_eq!(a.curriculum.steps()[0].learning_rate, Some(0.5));
    assert_eq!(a.curriculum.steps()[1].learning_rate, None);
    assert_eq!(a.batch_losses, vec![Some(vec![1.25, 2.0]), None]);
    assert_eq!(a.trajectory.initial(), Some(&[3.0, 4.0][..]));
    assert_eq!(a.trajectory.get(1, 0), None);
    assert_eq!(a.trajectory.get(1, 1), Some(3.5));
    assert_eq!(a.trajectory.get(2, 0), Some(1e-3));
    assert_eq!(
        (a.info.seed, a.info.design.split),
        (Some(7), Some(Split::Train))
    );
    assert_eq!(a.info.extra["note"], "fast");
    assert!(matches!(
        a.info.optimizer,
        Some(Optimizer::Adamw {
            beta1: 0.8,
            beta2: 0.999,
            ..
        })
    ));
    let b = set.read_run("b").unwrap();
    assert_eq!(b.info.status, RunStatus::Diverged);
    assert_eq!(b.info.design.edit.unwrap().kind, EditKind::Dropped);
    assert!(check(&out).unwrap().is_whole());
}

#[test]
fn parquet_tables_with_other_column_names_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, mut frame: DataFrame| -> PathBuf {
        let path = folder.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        ParquetWriter::new(file).finish(&mut frame).unwrap();
        path
    };
    let batches = [
        Series::new("".into(), [0i64, 1]),
        Series::new("".into(), [1i64, 1]),
    ];
    let steps = df!("r" => [0i64, 0], "step" => [1i64, 2], "ids" => batches).unwrap();
    let losses = df!(
        "r" => [0i64, 0, 0], "step" => [0i64, 1, 2], "test_id" => [0i64, 0, 0],
        "nll" => [Some(3.0f64), Some(f64::NAN), None], "extra" => [1i64, 2, 3]
    )
    .unwrap();
    let import = TableImport {
        steps: write("steps.parquet", steps),
        losses: write("losses.parquet", losses),
        columns: ColumnNames {
            run: "r".into(),
            batch: "ids".into(),
            loss: "nll".into(),
            ..ColumnNames::default()
        },
        ..TableImport::default()
    };
    let out = folder.path().join("out");
    let report = import_tables(&import, &out).unwrap();
    assert!(
        has(
            &report.warnings,
            &["losses.parquet", "\"extra\" is not imported"]
        ),
        "{report:?}"
    );
    let run = RunSet::open(&out).unwrap().read_run("0").unwrap();
    assert_eq!(run.curriculum.steps()[1].batch, vec![1, 1]);
    assert_eq!(run.trajectory.steps(), &[0, 1]);
    assert!(run.trajectory.at_step(1).unwrap()[0].is_nan());
}

fn tables_error(name: &str, from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let import = tables(folder.path());
    let path = folder.path().join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let out = folder.path().join("out");
    let message = import_tables(&import, &out).unwrap_err().to_string();
    assert!(!out.exists(), "nothing is written");
    assert!(message.contains(name), "{message}");
    message
}

#[test]
fn an_unknown_training_example_is_named() {
    let message = tables_error("steps.csv", "3 5", "3 77");
    assert!(
        message.contains("run a, step 2, training example \"77\""),
        "{message}"
    );
}

#[test]
fn an_unknown_test_example_is_named() {
    let message = tables_error("losses.csv", "a,1,q", "a,1,r");
    assert!(
        message.contains("run a, step 1, test example \"r\""),
        "{message}"
    );
}

#[test]
fn a_missing_column_of_a_table_is_named() {
    let message = tables_error("steps.csv", "batch,", "samples,");
    assert!(
        message.contains("the column \"batch\" is missing"),
        "{message}"
    );
}

#[test]
fn a_cell_that_is_no_number_is_named() {
    let message = tables_error("losses.csv", "3.5", "three");
    assert!(
        message.contains("loss is \"three\", not a number"),
        "{message}"
    );
    let message = tables_error("steps.csv", "b,1", "b,one");
    assert!(
        message.contains("step is \"one\", not a whole number"),
        "{message}"
    );
}

#[test]
fn a_batch_that_is_no_list_is_named() {
    let message = tables_error("steps.csv", "[5, 3]", "[5, 3");
    assert!(message.contains("batch is \"[5, 3\""), "{message}");
}

#[test]
fn a_step_that_stands_in_the_table_twice_is_named() {
    let message = tables_error("steps.csv", "a,2", "a,1");
    assert!(
        message.contains("run a, step 1: the step stands in the table twice"),
        "{message}"
    );
}

#[test]
fn a_constant_that_the_optimiser_does_not_have_is_named() {
    let message = tables_error("runs.csv", "beta1", "momentum");
    assert!(
        message.contains("run a") && message.contains("momentum"),
        "{message}"
    );
}

#[test]
fn an_unknown_ending_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut import = tables(folder.path());
    import.steps = folder.path().join("steps.xlsx");
    let message = import_tables(&import, &folder.path().join("out"))
        .unwrap_err()
        .to_string();
    assert!(message.contains(".parquet or .csv"), "{message}");
}

#[test]
fn importing_the_same_runs_twice_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    import_tables(&tables(folder.path()), &out).unwrap();
    let message = import_tables(&tables(folder.path()), &out)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("exists already: run \"a\" is recorded"),
        "{message}"
    );
}

#[test]
fn features_are_read_by_key_from_lists_and_from_columns() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["b", "absent", "a"].map(str::to_owned);
    let expected = vec![Some(vec![3.0, 4.5]), None, Some(vec![1.0, -2.0])];
    let csv = folder.path().join("features.csv");
    std::fs::write(&csv, "x,key,y\n1,a,-2\n3,b,4.5\n0,other,0\n").unwrap();
    assert_eq!(read_features(&csv, &keys).unwrap(), expected);
    let parquet = folder.path().join("features.parquet");
    let lists = [
        Series::new("".into(), [1.0_f64, -2.0]),
        Series::new("".into(), [3.0_f64, 4.5]),
    ];
    let columns = vec![
        Column::new("key".into(), ["a", "b"]),
        Column::new("features".into(), lists),
    ];
    let mut frame = DataFrame::new(2, columns).unwrap();
    let file = std::fs::File::create(&parquet).unwrap();
    ParquetWriter::new(file).finish(&mut frame).unwrap();
    assert_eq!(read_features(&parquet, &keys).unwrap(), expected);
    for (text, part) in [
        ("key,x\na,1\na,2\n", "twice"),
        ("key,x\na,\n", "missing"),
        ("key,x\na,NaN\n", "finite"),
        ("key,x\na,one\n", "not a number"),
        ("key\na\n", "at least one"),
        ("name,x\na,1\n", "key"),
        ("key,features\na,1 2\nb,1\n", "as many"),
    ] {
        std::fs::write(&csv, text).unwrap();
        let message = read_features(&csv, &keys).unwrap_err().to_string();
        assert!(message.contains(part), "{text}: {message}");
    }
}
