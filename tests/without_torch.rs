//! The way of somebody who brings logs of their own: import, check, fit, simulate, what-if,
//! compare. None of it needs LibTorch.

mod common;
#[path = "without_torch/logs.rs"]
mod logs;

use common::{fail, succeed};
use logs::{RUNS, STEPS, TEST, TRAIN, write_gptdynamics};
use serde_json::Value;
use std::path::Path;

fn imported() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_gptdynamics(folder.path());
    succeed(
        folder.path(),
        &["import", "gptdynamics", "gptdynamics", "--out", "runs"],
    );
    folder
}

fn json(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder, args)).unwrap()
}

fn run_ids(folder: &Path) -> Vec<String> {
    let report = json(folder, &["check", "runs", "--format", "json"]);
    let runs = report["runs"].as_array().unwrap().iter();
    runs.map(|run| run["id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn logs_become_a_whole_run_set() {
    let folder = imported();
    let report = json(folder.path(), &["check", "runs", "--format", "json"]);
    assert_eq!(report["runs"].as_array().unwrap().len(), RUNS);
    assert_eq!(report["train_examples"], TRAIN);
    assert_eq!(report["test_examples"], TEST);
    assert_eq!(report["problems"].as_array().unwrap().len(), 0);
}

#[test]
fn a_fitted_simulator_follows_a_held_out_run() {
    let folder = imported();
    let path = folder.path();
    let ids = run_ids(path);
    let held_out = ids.last().unwrap();
    let args = [
        "fit",
        "runs",
        "--out",
        "s.safetensors",
        "--test-runs",
        held_out,
    ];
    succeed(path, &args);
    let args = [
        "simulate",
        "s.safetensors",
        "--run-set",
        "runs",
        "--run",
        held_out,
    ];
    let printed = succeed(path, &args);
    assert_eq!(printed.lines().count(), 1 + (STEPS + 1) * TEST);
    succeed(path, &[&args[..], &["--out", "curve.csv"]].concat());
    let written = std::fs::read_to_string(path.join("curve.csv")).unwrap();
    assert_eq!(written.lines().count(), printed.lines().count());

    let args = [
        "compare",
        "runs",
        "--test-runs",
        held_out,
        "--format",
        "json",
    ];
    let comparison = json(path, &[&args[..], &["--plots", "pictures"]].concat());
    let rows = comparison["blocks"][0]["rows"].as_array().unwrap();
    let mse = |method: &str| {
        let row = rows.iter().find(|r| r["method"] == method).unwrap();
        row["mse"]["value"].as_f64().unwrap()
    };
    // The logs follow L_t = α_t L_{t-1} exactly, and 140 steps tell 24 parameters.
    assert!(mse("simfluence-linear") < 0.01 * mse("mean-run"));
    assert!(mse("mean-run") < mse("no-learning"));
    let pictures = std::fs::read_dir(path.join("pictures")).unwrap().count();
    assert!(pictures >= 3, "{pictures} pictures");
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let folder = imported();
    for file in ["a.safetensors", "b.safetensors"] {
        succeed(
            folder.path(),
            &["fit", "runs", "--out", file, "--lambda", "0.1"],
        );
    }
    let read = |file: &str| std::fs::read(folder.path().join(file)).unwrap();
    assert_eq!(read("a.safetensors"), read("b.safetensors"));
}

#[test]
fn a_whatif_answers_in_the_right_direction() {
    let folder = imported();
    let path = folder.path();
    let first = json(path, &["check", "runs", "--format", "json"])["runs"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let even: Vec<String> = (0..TRAIN).step_by(2).map(|i| format!("id:{i}")).collect();
    let mut args = vec!["whatif", "runs", "--run", &first, "--format", "json"];
    for id in &even {
        args.extend(["--drop", id]);
    }
    let answer = json(path, &args);
    // Even examples lower the losses more, so without them the losses end higher.
    assert!(
        answer["groups"][0]["change"].as_f64().unwrap() > 0.0,
        "{answer}"
    );
    assert!(path.join("whatif.svg").exists());
}

#[test]
fn accuracy_is_shown_against_runs_evaluations_and_ingredients() {
    let folder = imported();
    let path = folder.path();
    let ids = run_ids(path);
    let held_out = ids.last().unwrap();
    let common = [
        "compare",
        "runs",
        "--test-runs",
        held_out,
        "--format",
        "json",
    ];
    let with = |more: &[&str]| json(path, &[&common[..], more].concat());

    let curve = with(&["--learning-curve", "3,5"]);
    let points = curve.as_array().unwrap();
    for method in ["mean-run", "optimizer-dynamics", "simfluence-linear"] {
        for runs in [3, 5] {
            let is_it = |p: &&Value| p["method"] == method && p["training_runs"] == runs;
            assert!(points.iter().any(|p| is_it(&p)), "{method}, {runs} runs");
        }
    }

    let methods = ["--methods", "optimizer-dynamics"];
    let mse = |comparison: &Value, method: &str| {
        let rows = comparison["blocks"][0]["rows"].as_array().unwrap().clone();
        let row = rows.into_iter().find(|row| row["method"] == method);
        row.map(|row| row["mse"]["value"].as_f64().unwrap())
    };
    let whole = with(&[&methods[..], &["--ablate"]].concat());
    let all = mse(&whole, "optimizer-dynamics").unwrap();
    assert!(mse(&whole, "without state").is_some());
    let coverage = &whole["blocks"][0]["rows"][2]["coverage"]["value"];
    assert!((0.0..=1.0).contains(&coverage.as_f64().unwrap()));
    let thin = with(&[&methods[..], &["--thin-steps", "4"]].concat());
    assert_ne!(mse(&thin, "optimizer-dynamics").unwrap(), all);
    let learned = [&common[..], &methods, &["--datasets", "learned"]].concat();
    let message = fail(path, &learned);
    assert!(message.contains("batch_loss"), "{message}");
    let args = [&common[..], &["--learning-curve", "500"]].concat();
    let message = fail(path, &args);
    assert!(message.contains("training runs"), "{message}");
    for wrong in [
        ["--methods", "graddot", "--ablate"],
        ["--methods", "graddot", "--learning-curve=3"],
    ] {
        let message = fail(path, &[&common[..], &wrong].concat());
        assert!(message.contains("--methods"), "{message}");
    }
    let fitting = ["fit", "runs", "--out", "linear.safetensors"];
    succeed(path, &fitting);
    let using = ["whatif", "runs", "--run", "train-000", "--drop", "id:0"];
    let using = [&using[..], &["--simulator", "linear.safetensors"]].concat();
    let comparing = [&common[..], &["--methods", "simfluence-linear"]].concat();
    for args in [&fitting[..], &using, &comparing] {
        let message = fail(path, &[args, &["--datasets", "learned"]].concat());
        assert!(message.contains("--datasets, --features"), "{message}");
    }
}

#[test]
fn next_runs_are_planned_without_a_task_file() {
    let folder = imported();
    let args = ["plan", "--after", "runs", "--runs", "2", "--pool", "8"];
    let out = ["--out", "next.parquet", "--format", "json"];
    let answer = json(folder.path(), &[&args[..], &["--seed", "3"], &out].concat());
    assert_eq!(answer["training_runs"], RUNS);
    assert_eq!(answer["runs"][0]["run"], "train-000");
    let plan = simfluence::recorder::read_plan(&folder.path().join("next.parquet"), TRAIN);
    for run in plan.unwrap() {
        assert_eq!(run.curriculum.len(), STEPS);
        let steps = run.curriculum.steps();
        assert!(
            steps
                .iter()
                .all(|s| s.batch.len() == 2 && s.learning_rate.is_none())
        );
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let folder = imported();
    let path = folder.path();
    let message = fail(path, &["check", "nowhere"]);
    assert!(message.contains("nowhere"), "{message}");
    let message = fail(path, &["whatif", "runs", "--run", "x", "--drop", "id:1"]);
    assert!(message.contains("the runs are"), "{message}");
    let report = json(path, &["check", "runs", "--format", "json"]);
    let run = report["runs"][0]["id"].as_str().unwrap();
    let args = ["whatif", "runs", "--run", run, "--drop", "id:1"];
    let message = fail(path, &[&args[..], &["--group-by", "colour"]].concat());
    assert!(message.contains("colour"), "{message}");
    std::fs::write(path.join("empty.safetensors"), b"").unwrap();
    let args = [
        "simulate",
        "empty.safetensors",
        "--run-set",
        "runs",
        "--run",
        run,
    ];
    let message = fail(path, &args);
    assert!(message.contains("empty.safetensors"), "{message}");
    let message = fail(
        path,
        &["fit", "runs", "--out", "s.safetensors", "--lambda", "many"],
    );
    assert!(message.contains("--lambda"), "{message}");
}

#[test]
fn learning_is_judged_by_what_was_measured_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("steps.csv"), "run,step,batch\na,1,0 1\na,2,1 0\n").unwrap();
    // Test example 0 does not learn; example 1 is measured before the first step only.
    let losses = "run,step,test_id,loss\na,0,0,3.0\na,0,1,3.0\na,1,0,3.0\na,2,0,3.0\n";
    std::fs::write(path.join("losses.csv"), losses).unwrap();
    let args = ["--steps", "steps.csv", "--losses", "losses.csv"];
    succeed(
        path,
        &[&["import", "tables", "--out", "runs"], &args[..]].concat(),
    );
    let message = fail(path, &["check", "runs", "--learned", "0.5"]);
    assert!(message.contains("without learning"), "{message}");
    let args = ["check", "runs", "--learned", "0.0", "--format", "json"];
    assert!(json(path, &args)["runs"].is_array());
}

#[test]
fn learning_can_be_judged_by_some_test_datasets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("steps.csv"), "run,step,batch\na,1,0\n").unwrap();
    // The fact is learned, the question gets worse.
    let losses = "run,step,test_id,loss\na,0,0,3.0\na,0,1,3.0\na,1,0,1.0\na,1,1,5.0\n";
    std::fs::write(path.join("losses.csv"), losses).unwrap();
    let examples = "id,key,dataset\n0,f,fact\n1,q,right\n";
    std::fs::write(path.join("test.csv"), examples).unwrap();
    let args = ["import", "tables", "--out", "runs", "--steps", "steps.csv"];
    let tables = ["--losses", "losses.csv", "--test-examples", "test.csv"];
    succeed(path, &[&args[..], &tables[..]].concat());
    let check = ["check", "runs", "--learned", "0.5"];
    fail(path, &check);
    succeed(path, &[&check[..], &["--learned-on", "fact"]].concat());
    let message = fail(path, &[&check[..], &["--learned-on", "wrong"]].concat());
    assert!(message.contains("fact, right"), "{message}");
}

#[test]
fn a_simulator_made_from_a_judging_run_is_refused() {
    let folder = imported();
    let path = folder.path();
    let report = json(path, &["check", "runs", "--format", "json"]);
    let first = report["runs"][0]["id"].as_str().unwrap();
    for method in ["simfluence-linear", "mean-run"] {
        let fitted_without_first = ["fit", "runs", "--out", "s.safetensors", "--method", method];
        succeed(
            path,
            &[&fitted_without_first[..], &["--test-runs", first]].concat(),
        );
        let compare = ["compare", "runs", "--simulator", "s.safetensors"];
        succeed(path, &[&compare[..], &["--test-runs", first]].concat());
        let other = report["runs"][1]["id"].as_str().unwrap();
        let message = fail(path, &[&compare[..], &["--test-runs", other]].concat());
        assert!(
            message.contains(other) && message.contains("judges"),
            "{message}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    let folder = imported();
    let path = folder.path();
    succeed(path, &["fit", "runs", "--out", "s.safetensors"]);
    let report = json(path, &["check", "runs", "--format", "json"]);
    let run = report["runs"][0]["id"].as_str().unwrap();
    // Closed before the program starts, so that it cannot have written everything already.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_simfluence"))
        .args([
            "simulate",
            "s.safetensors",
            "--run-set",
            "runs",
            "--run",
            run,
        ])
        .current_dir(path)
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let output = common::simfluence(folder.path(), &["whatif"]);
    assert_eq!(output.status.code(), Some(2));
}

#[cfg(not(feature = "torch"))]
#[test]
fn commands_that_train_say_how_to_get_libtorch() {
    let folder = tempfile::tempdir().unwrap();
    let message = fail(folder.path(), &["record", "task.toml", "--out", "runs"]);
    assert!(message.contains("--features torch"), "{message}");
    let reproduce = ["reproduce", "untrac-finetuning", "--out", "untrac"];
    let message = fail(folder.path(), &reproduce);
    assert!(message.contains("--features torch"), "{message}");
}
