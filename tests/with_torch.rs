//! The main job with real training: record, replay, resume, attribute, compare, verify.
#![cfg(feature = "torch")]

mod common;

use common::{fail, simfluence, succeed};
use serde_json::Value;
use std::path::Path;

/// A task that trains in seconds.
const TASK: &str = r#"
name = "tiny"
[data]
source = "numbers"
train_per_dataset = 12
test = 6
corpus_lines = 200
[model]
layers = 1
heads = 2
width = 16
context = 144
[pretraining]
steps = 5
batch_size = 2
[training]
optimizer = { name = "adamw" }
learning_rate = 1e-3
steps = 12
batch_size = 3
checkpoint_every = 4
[design]
runs = 3
held_out = 2
held_out_ordinary = 1
segments = [2, 3]
[design.suite]
kinds = ["dropped", "blocked"]
blocked_orders = 1
"#;

fn task() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("task.toml"), TASK).unwrap();
    folder
}

fn json(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&succeed(folder, args)).unwrap()
}

/// The losses of a run, bit for bit, through the program's own reader.
fn losses(folder: &Path, run_set: &str, run: &str) -> Vec<u32> {
    let set = simfluence::recorder::RunSet::open(&folder.join(run_set)).unwrap();
    let run = set.read_run(run).unwrap();
    assert_eq!(run.trajectory.steps().len(), 13);
    run.trajectory
        .values()
        .iter()
        .map(|l| l.to_bits())
        .collect()
}

#[test]
fn runs_are_the_same_bits_whatever_the_jobs_and_compare_and_verify_work() {
    let folder = task();
    let path = folder.path();
    succeed(
        path,
        &["record", "task.toml", "--out", "one", "--jobs", "1"],
    );
    succeed(
        path,
        &["record", "task.toml", "--out", "two", "--jobs", "2"],
    );
    let report = json(path, &["check", "one", "--format", "json"]);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3 + 2 + 1 + 5);
    for run in runs {
        assert_eq!(run["status"], "complete");
        let id = run["id"].as_str().unwrap();
        assert_eq!(losses(path, "one", id), losses(path, "two", id), "{id}");
    }

    let comparison = json(
        path,
        &["compare", "one", "--format", "json", "--resamples", "100"],
    );
    let methods: Vec<&str> = comparison["blocks"][0]["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["method"].as_str().unwrap())
        .collect();
    for method in [
        "no-learning",
        "mean-run",
        "simfluence-linear",
        "graddot",
        "gradcos",
        "tracin-cp",
    ] {
        assert!(
            methods.contains(&method),
            "{method} is not among {methods:?}"
        );
    }
    let suite = comparison["blocks"].as_array().unwrap().iter();
    assert!(suite.clone().any(|b| b["name"] == "dropped"));
    assert!(
        suite
            .clone()
            .any(|b| b["name"] == "held-out diversified + dropped + blocked")
    );

    // Datasets learned from the losses of the recorded batches.
    let fit = [
        "fit",
        "one",
        "--method",
        "optimizer-dynamics",
        "--out",
        "d.safetensors",
    ];
    let report = [&fit[..], &["--datasets", "learned", "--format", "json"]].concat();
    assert_eq!(json(path, &report)["batch_losses"], true);

    // An edit that changes nothing, really retrained: the recorded run, bit for bit.
    let args = [
        "whatif",
        "one",
        "--run",
        "ordinary-000",
        "--learning-rate",
        "1",
        "--verify",
    ];
    let answer = json(path, &[&args[..], &["--format", "json"]].concat());
    for row in answer["test_examples"].as_array().unwrap() {
        assert_eq!(row["true_change"], 0.0, "{row}");
    }
    // The suite's own edit, retrained: the recorded edit, bit for bit.
    let args = [
        "whatif",
        "one",
        "--run",
        "train-000",
        "--drop",
        "length-words",
        "--verify",
    ];
    let answer = json(path, &[&args[..], &["--format", "json"]].concat());
    assert!(answer["test_examples"][0]["true_then"].is_number());
}

#[test]
fn an_interrupted_recording_goes_on_bit_for_bit() {
    let folder = task();
    let path = folder.path();
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "whole",
            "--runs",
            "train-000,train-001",
        ],
    );
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_simfluence"))
        .args([
            "record",
            "task.toml",
            "--out",
            "cut",
            "--runs",
            "train-000,train-001",
        ])
        .current_dir(path)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Killed as soon as the first checkpoint to go on from is there.
    let first = path.join("cut/runs/train-000/checkpoints/step-000004.safetensors");
    while !first.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(path, &["check", "cut"]);
    let output = simfluence(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "cut",
            "--runs",
            "train-000,train-001",
        ],
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for run in ["train-000", "train-001"] {
        assert_eq!(
            losses(path, "whole", run),
            losses(path, "cut", run),
            "{run}"
        );
    }
}

#[test]
fn a_run_set_is_not_mixed_with_another_design() {
    let folder = task();
    let path = folder.path();
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "runs",
            "--runs",
            "train-000,held-out-000",
        ],
    );
    for (ours, others) in [
        ("steps = 12", "steps = 13"),
        ("adamw", "adam"),
        ("width = 16", "width = 32"),
    ] {
        let other = TASK.replace(ours, others);
        std::fs::write(path.join("other.toml"), other).unwrap();
        let message = fail(path, &["record", "other.toml", "--out", "runs"]);
        assert!(message.contains("another folder"), "{message}");
        let kept = std::fs::read_to_string(path.join("runs/task.toml")).unwrap();
        assert_eq!(kept, TASK);
    }
    let message = fail(
        path,
        &[
            "attribute",
            "runs",
            "--method",
            "graddot",
            "--reference-run",
            "x",
        ],
    );
    assert!(message.contains("training runs"), "{message}");
}

fn scores_in(path: &Path) -> simfluence::core::Scores {
    let bytes = std::fs::read(path).unwrap();
    let artifact = simfluence::core::Artifact::from_bytes(&bytes).unwrap();
    simfluence::core::Scores::from_artifact(&artifact).unwrap()
}

#[test]
fn scores_by_token_of_low_rank_of_projections_and_of_candidates_are_written() {
    let folder = task();
    let path = folder.path();
    let runs = "train-*,held-out-000";
    succeed(
        path,
        &["record", "task.toml", "--out", "runs", "--runs", runs],
    );
    let attribute = |method: &str, out: &str, more: &[&str]| {
        let args = ["attribute", "runs", "--method", method, "--out", out];
        succeed(path, &[&args[..], more].concat())
    };
    let largest =
        |s: &simfluence::core::Scores| s.values.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    for method in ["graddot", "tracin-cp", "hif-ekfac"] {
        attribute(method, "whole", &[]);
        let whole = scores_in(&path.join("whole"));
        let close = |got: &simfluence::core::Scores| {
            assert_eq!(got.train_keys, whole.train_keys);
            let pairs = got.values.iter().zip(&whole.values);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max) < 1e-4 * largest(&whole)
        };
        attribute(method, "sums", &["--tokens", "tokens", "--test-tokens"]);
        assert!(close(&scores_in(&path.join("sums"))));
        let bytes = std::fs::read(path.join("tokens")).unwrap();
        let tokens = simfluence::core::Artifact::from_bytes(&bytes).unwrap();
        assert_eq!(
            tokens.text("axes").unwrap(),
            "train target token, test target token"
        );
        let tokens = simfluence::core::TokenScores::from_artifact(&tokens).unwrap();
        assert!(close(&tokens.totals().unwrap()));
        assert!(
            tokens
                .rows
                .iter()
                .all(|t| t.id.is_some() && t.text.is_some())
        );
        attribute(method, "low", &["--query-rank", "999"]);
        assert!(close(&scores_in(&path.join("low"))));
        attribute(method, "projected", &["--projection", "64", "--seed", "5"]);
        let projected = scores_in(&path.join("projected"));
        assert!(!close(&projected));
        assert_eq!(projected.provenance["seed"], 5);
        assert_eq!(projected.provenance["options"]["projection"], 64);
        let said = attribute(method, "some", &["--prefilter", "1"]);
        let some = scores_in(&path.join("some"));
        assert!(some.train_keys.len() < whole.train_keys.len());
        assert!(said.contains("have no score"), "{said}");
        let left_out = some.provenance["prefilter"]["left_out"].as_array().unwrap();
        assert_eq!(
            left_out.len() + some.train_keys.len(),
            whole.train_keys.len()
        );
        let width = whole.test_keys.len();
        for (key, row) in some.train_keys.iter().zip(some.values.chunks(width)) {
            let place = whole.train_keys.iter().position(|k| k == key).unwrap();
            for (a, b) in row.iter().zip(&whole.values[place * width..][..width]) {
                assert!((a - b).abs() < 1e-4 * largest(&whole), "{method}: {a} {b}");
            }
        }
    }
    let refused = |more: &[&str]| fail(path, &[&["attribute", "runs"][..], more].concat());
    let prefilter = ["--method", "graddot", "--prefilter", "2"];
    assert!(refused(&prefilter).contains("say with --out"));
    let simulator = [&prefilter[..], &["--out", "x", "--simulator", "y"]].concat();
    assert!(refused(&simulator).contains("needs a score of every training example"));
    assert!(
        refused(&["--method", "gradcos", "--query-rank", "2"])
            .contains("--query-rank is a setting of")
    );
}

#[test]
fn scores_say_their_axes_and_sign_and_become_a_simulator() {
    let folder = task();
    let path = folder.path();
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "runs",
            "--runs",
            "train-*,held-out-000",
        ],
    );
    let args = [
        "attribute",
        "runs",
        "--method",
        "tracin-cp",
        "--out",
        "scores.safetensors",
    ];
    succeed(
        path,
        &[&args[..], &["--simulator", "tracin.safetensors"]].concat(),
    );
    let bytes = std::fs::read(path.join("scores.safetensors")).unwrap();
    let artifact = simfluence::core::Artifact::from_bytes(&bytes).unwrap();
    assert_eq!(artifact.text("axes").unwrap(), "train, test");
    assert!(artifact.text("sign").unwrap().contains("lowers"));
    let args = [
        "simulate",
        "tracin.safetensors",
        "--run-set",
        "runs",
        "--run",
        "held-out-000",
    ];
    assert_eq!(succeed(path, &args).lines().count(), 1 + 13 * 6);
}

#[test]
fn a_task_file_with_a_mistake_names_it() {
    let folder = task();
    let path = folder.path();
    std::fs::write(
        path.join("task.toml"),
        TASK.replace("width = 16", "width = 15"),
    )
    .unwrap();
    let message = fail(path, &["record", "task.toml", "--out", "runs"]);
    assert!(message.contains("15"), "{message}");
}

#[test]
fn leave_out_truth_is_kept_and_judges_the_scores_of_the_others() {
    let folder = task();
    let path = folder.path();
    let training_runs = ["--runs", "train-*,held-out-*", "--jobs", "2"];
    succeed(
        path,
        &[
            &["record", "task.toml", "--out", "runs"],
            &training_runs[..],
        ]
        .concat(),
    );
    let attribute = |more: &[&str]| {
        let args = ["attribute", "runs", "--method", "leave-out"];
        succeed(path, &[&args[..], more].concat())
    };
    let scores = || std::fs::read(path.join("runs/scores/leave-out.safetensors")).unwrap();

    let first = attribute(&["--seeds", "2", "--jobs", "2"]);
    assert!(first.contains("10 now, 0 kept"), "{first}");
    assert!(first.contains("ceiling"), "{first}");
    let kept = scores();
    // Nothing is trained twice, and neither jobs nor what was kept changes a bit.
    let again = attribute(&["--seeds", "2", "--jobs", "1"]);
    assert!(again.contains("0 now, 10 kept"), "{again}");
    assert_eq!(scores(), kept);
    std::fs::remove_dir_all(path.join("runs/leave_out/trainings")).unwrap();
    attribute(&["--seeds", "2", "--jobs", "1"]);
    assert_eq!(scores(), kept);
    // A third seed and subsets need only what is new.
    let more = attribute(&["--seeds", "3", "--subsets", "4"]);
    assert!(more.contains("17 now, 10 kept"), "{more}");
    assert!(more.contains("4 random subsets, 3 seeds"), "{more}");

    let compare = ["compare", "runs", "--resamples", "100"];
    let as_json = [&compare[..], &["--format", "json"]].concat();
    let report = &json(path, &as_json)["leave_out"];
    let truth = &report["truth"][0];
    assert_eq!(
        (&truth["unit"], &truth["units"]),
        (&"dataset".into(), &4.into())
    );
    let named = |part: &Value| -> Vec<String> {
        let methods = part["methods"].as_array().unwrap().iter();
        methods
            .map(|m| m["method"].as_str().unwrap().to_owned())
            .collect()
    };
    let gradients = ["graddot", "gradcos", "tracin-cp"];
    assert_eq!(named(&truth["levels"][0]), gradients);
    assert_eq!(named(&report["lds"])[..3], gradients);
    assert_eq!(named(&report["lds"])[3], "leave-out");

    // Scores for examples that nothing is known about are not made up.
    let output = simfluence(
        path,
        &[
            "attribute",
            "runs",
            "--method",
            "leave-out",
            "--unit",
            "key",
        ],
    );
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("are in no unit"), "{error}");

    // Trained by other settings, what was kept says nothing.
    let file = path.join("runs/runs/train-000/run.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut info: Value = serde_json::from_str(&text).unwrap();
    info["extra"]["training"]["gradient_clip"] = 0.125.into();
    std::fs::write(&file, info.to_string()).unwrap();
    let output = simfluence(path, &compare);
    let (table, notes) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(!table.contains("Leave-out truth"), "{table}");
    assert!(notes.contains("not used"), "{notes}");
    let other = attribute(&["--seeds", "2"]);
    assert!(other.contains("10 now, 0 kept"), "{other}");
    assert_ne!(scores(), kept);
}

#[test]
fn settings_of_leave_out_are_refused_for_other_methods() {
    let folder = task();
    let path = folder.path();
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "runs",
            "--runs",
            "train-*,held-out-*",
        ],
    );
    let error = fail(
        path,
        &["attribute", "runs", "--method", "graddot", "--seeds", "2"],
    );
    assert!(
        error.contains("--seeds is a setting of leave-out, not of graddot"),
        "{error}"
    );
    let args = [
        "attribute",
        "runs",
        "--method",
        "leave-out",
        "--unit",
        "colour",
    ];
    let error = fail(path, &args);
    assert!(error.contains("--unit colour"), "{error}");
}

#[test]
fn every_attribution_method_scores_a_run_set_and_stands_in_the_comparison() {
    let folder = task();
    let path = folder.path();
    succeed(
        path,
        &["record", "task.toml", "--out", "runs", "--jobs", "2"],
    );
    let methods = [
        "graddot",
        "graddot-preconditioned",
        "gradcos",
        "gradcos-preconditioned",
        "tracin-cp",
        "tracin-cp-preconditioned",
        "hif-cg",
        "hif-lissa",
        "hif-arnoldi",
        "hif-ekfac",
        "hif-kfac",
        "hif-diagonal",
        "untrac",
        "untrac-inv",
        "empirical",
        "pbrf",
    ];
    // The model has not converged: its response is minimised with strong damping.
    let strong = ["attribute", "runs", "--method", "pbrf", "--damping", "1"];
    succeed(path, &strong);
    let named = format!("tracin-ideal,{}", methods.join(","));
    let compare = ["compare", "runs", "--methods", &named, "--format", "json"];
    let comparison = json(path, &[&compare[..], &["--resamples", "100"]].concat());
    let rows = comparison["blocks"][0]["rows"].as_array().unwrap();
    let of = |method: &str| rows.iter().find(|row| row["method"] == method);
    for method in methods {
        // A row says which settings are not the method's own.
        let title = match method {
            "pbrf" => "pbrf [damping 1.0]",
            _ => method,
        };
        assert!(of(title).is_some(), "{title} is missing: {rows:?}");
        let costs = comparison["costs"].as_array().unwrap();
        let cost = costs.iter().find(|cost| cost["method"] == title).unwrap();
        assert!(cost["fit_seconds"].is_number(), "{cost}");
        // They are kept, with what they cost, and used again.
        let file = path.join(format!("runs/scores/{method}.safetensors"));
        let artifact = simfluence::recorder::read_artifact(&file).unwrap();
        let scores = simfluence::core::Scores::from_artifact(&artifact).unwrap();
        assert_eq!((scores.train_keys.len(), scores.test_keys.len()), (48, 6));
        assert!(scores.values.iter().any(|v| *v != 0.0), "{method}");
        assert_eq!(scores.provenance["reference_run"], "train-000", "{method}");
        let count = &scores.provenance["gradient_evaluations"];
        assert!(count.as_u64().unwrap() > 0, "{method}");
        assert_eq!(&cost["gradient_evaluations"], count);
    }
    // The oracle that follows the steps really made is far closer than what knows one run only.
    let mse = |method: &str| of(method).unwrap()["mse"]["value"].as_f64().unwrap();
    assert!(
        mse("tracin-ideal-preconditioned") < 0.1 * mse("no-learning"),
        "{rows:?}"
    );

    fn attribute<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["attribute", "runs", "--method"], more].concat()
    }
    let error = fail(path, &attribute(&["hif-arnoldi", "--depth", "3"]));
    assert!(
        error.contains("--depth is a setting of hif-lissa, not of hif-arnoldi"),
        "{error}"
    );
    let error = fail(path, &attribute(&["hif-cg", "--damping=-1"]));
    assert!(error.contains("damping is -1"), "{error}");
    succeed(
        path,
        &attribute(&["hif-ekfac", "--layers", "--labels", "given"]),
    );
    let report = json(
        path,
        &[
            "report",
            "runs",
            "runs/scores/hif-ekfac.safetensors",
            "--format",
            "json",
        ],
    );
    assert_eq!(report["provenance"]["options"]["labels"], "given");
    assert!(report["layers"]["layers"].as_array().unwrap().len() > 5);
}

#[test]
fn next_runs_are_chosen_and_join_the_run_set() {
    let folder = task();
    let path = folder.path();
    let runs = "train-*,ordinary-000";
    succeed(
        path,
        &["record", "task.toml", "--out", "runs", "--runs", runs],
    );
    let plan = |out: &str, more: &[&str]| {
        let args = ["plan", "--after", "runs", "--runs", "2", "--pool", "12"];
        json(
            path,
            &[&args[..], &["--out", out, "--format", "json"], more].concat(),
        )
    };
    let answer = plan("next.parquet", &["task.toml"]);
    let chosen = answer["runs"].as_array().unwrap();
    // The kept plan is train-000 to train-002, held-out and the suite.
    assert_eq!(chosen[0]["run"], "train-003");
    assert_eq!(chosen[1]["run"], "train-004");
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&chosen[0]["before"]) == number(&answer["before"]));
    assert!(number(&chosen[0]["after"]) <= number(&chosen[0]["before"]));
    assert!(number(&chosen[1]["after"]) <= number(&chosen[1]["before"]));
    assert_eq!(answer["further"].as_array().unwrap().len(), 2);
    // The task file kept in the run set says the same, and so does the same seed.
    assert_eq!(plan("again.parquet", &[])["runs"], answer["runs"]);
    let bytes = |name: &str| std::fs::read(path.join(name)).unwrap();
    assert_eq!(bytes("next.parquet"), bytes("again.parquet"));

    let add = [
        "record",
        "task.toml",
        "--out",
        "runs",
        "--plan",
        "next.parquet",
    ];
    succeed(path, &add);
    let report = json(path, &["check", "runs", "--format", "json"]);
    let ids: Vec<&str> = (report["runs"].as_array().unwrap().iter())
        .map(|run| run["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"train-003") && ids.contains(&"train-004"));
    // The same again is nothing new, and the task's own design still goes on.
    succeed(path, &add);
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "runs",
            "--runs",
            "held-out-000",
        ],
    );
    // The next round has new ids and knows the runs of this one.
    let next = plan("third.parquet", &[]);
    assert_eq!(next["training_runs"], 5);
    assert_eq!(next["runs"][0]["run"], "train-005");

    // Another curriculum under an id that is taken.
    let mut other = simfluence::recorder::read_plan(&path.join("third.parquet"), 48).unwrap();
    other[0].id = "train-003".into();
    simfluence::recorder::write_plan(&path.join("other.parquet"), &other).unwrap();
    let message = fail(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "runs",
            "--plan",
            "other.parquet",
        ],
    );
    assert!(
        message.contains("train-003") && message.contains("other ids"),
        "{message}"
    );

    // Questions of one's own: edits, edits of a recorded run, a curriculum file.
    succeed(
        path,
        &[
            "whatif",
            "runs",
            "--run",
            "ordinary-000",
            "--drop",
            "length-words",
            "--curriculum-out",
            "mine.parquet",
        ],
    );
    let asked = plan(
        "asked.parquet",
        &[
            "--base",
            "ordinary-000",
            "--question",
            "--drop length-words --learning-rate 0.5",
            "--question",
            "mine.parquet",
        ],
    );
    assert_eq!(asked["questions"], 2);

    let refused = |more: &[&str]| {
        let args = ["plan", "--after", "runs", "--out", "x.parquet"];
        fail(path, &[&args[..], more].concat())
    };
    let message = refused(&["--runs", "4", "--pool", "3"]);
    assert!(message.contains("--pool 3 is smaller"), "{message}");
    let message = refused(&["--question", "--drop nothing"]);
    assert!(message.contains("nothing"), "{message}");
    let message = refused(&["--question", "missing.parquet"]);
    assert!(message.contains("write edits as `whatif`"), "{message}");
    let message = refused(&["--base", "no-such-run"]);
    assert!(message.contains("there is no run"), "{message}");
    let message = refused(&["--train-runs", "ordinary-000"]);
    assert!(message.contains("run"), "{message}");
    let other = TASK.replace("train_per_dataset = 12", "train_per_dataset = 10");
    std::fs::write(path.join("other.toml"), other).unwrap();
    let message = refused(&["other.toml"]);
    assert!(message.contains("other.toml: its examples"), "{message}");
    let other = TASK.replace("steps = 12", "steps = 13");
    std::fs::write(path.join("other.toml"), other).unwrap();
    let message = refused(&["other.toml"]);
    assert!(message.contains("[training]"), "{message}");

    // A run set without runs.
    std::fs::remove_dir_all(path.join("runs/runs")).unwrap();
    let message = refused(&[]);
    assert!(message.contains("no runs"), "{message}");
}
