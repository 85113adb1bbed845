//! `simfluence reproduce untrac-finetuning` on a tiny task: what is kept, and that the tables hold
//! what their parts say.
#![cfg(feature = "torch")]

mod common;

use common::{fail, simfluence, succeed};
use serde_json::Value;
use simfluence::core::{Artifact, Scores};
use simfluence::evaluation::pearson;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The experiment's task in miniature: 48 training examples, 16 steps.
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
steps = 16
batch_size = 3
eval_every = 8
checkpoint_every = 8
"#;

const COMMAND: [&str; 10] = [
    "reproduce",
    "untrac-finetuning",
    "--out",
    "out",
    "--task",
    "task.toml",
    "--seeds",
    "2",
    "--methods",
    "graddot,hif-cg,untrac,untrac-inv",
];

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().expect("a list").iter();
    values.map(|v| v.as_f64().expect("a number")).collect()
}

fn close(got: f64, expected: f64) {
    let difference = (got - expected).abs();
    assert!(
        difference <= 1e-5 * expected.abs() + 1e-12,
        "{got} {expected}"
    );
}

/// When every file below a folder was written.
fn written(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(written(&path));
        } else {
            let time = std::fs::metadata(&path).unwrap().modified().unwrap();
            found.insert(path, time);
        }
    }
    found
}

#[test]
fn the_untrac_experiment_is_computed_once_and_its_tables_hold_what_their_parts_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("task.toml"), TASK).unwrap();
    let json = [&COMMAND[..], &["--format", "json"]].concat();
    let first = succeed(path, &json);
    let report: Value = serde_json::from_str(&first).unwrap();
    let setting = &report["settings"][0];
    assert_eq!(setting["sizes"], serde_json::json!([12, 12, 12, 12]));
    assert_eq!(setting["steps"], 16);
    let test = &setting["tests"][0];
    let truth = numbers(&test["truth"]["mean"]);
    let effects = test["truth"]["effects"].as_array().unwrap();
    for (d, &mean) in truth.iter().enumerate() {
        close(
            mean,
            (numbers(&effects[0])[d] + numbers(&effects[1])[d]) / 2.0,
        );
    }

    // Correlations and standardised values are those of the influences beside them.
    let methods = test["methods"].as_array().unwrap();
    assert_eq!(methods.len(), 4 + 16, "the sweep has 8 more rows for each");
    for method in methods {
        assert_eq!(method["failure"], Value::Null, "{method}");
        let runs: Vec<Vec<f64>> = (method["influences"].as_array().unwrap().iter())
            .map(numbers)
            .collect();
        let r: Vec<f64> = runs.iter().map(|v| pearson(v, &truth).unwrap()).collect();
        close(
            method["pearson"]["mean"].as_f64().unwrap(),
            (r[0] + r[1]) / 2.0,
        );
        close(
            method["pearson"]["deviation"].as_f64().unwrap(),
            (r[0] - r[1]).abs() / 2.0_f64.sqrt(),
        );
    }
    a_dataset_s_influence_is_the_sum_over_its_examples(path, methods);
    truth_is_that_of_attribute(path, &truth);

    // Nothing is computed twice.
    let before = written(&path.join("out/four"));
    let again = simfluence(path, &COMMAND);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&again.stdout),
        String::from_utf8_lossy(&again.stderr),
    );
    assert!(
        stderr.contains("0 of 4 runs are still to be recorded"),
        "{stderr}"
    );
    let after = written(&path.join("out/four"));
    let is_result = |file: &Path| {
        let kept = ["influences", "runs", "trainings", "base_model.safetensors"];
        kept.iter().any(|part| file.iter().any(|p| p == *part))
    };
    for (file, time) in before.iter().filter(|(file, _)| is_result(file)) {
        assert_eq!(after.get(file), Some(time), "{}", file.display());
    }
    for extension in ["txt", "json", "csv"] {
        let kept = std::fs::read_to_string(path.join(format!("out/results.{extension}"))).unwrap();
        match extension {
            "txt" => assert_eq!(kept, stdout),
            "json" => assert_eq!(kept, first),
            _ => assert_eq!(kept.lines().count(), 1 + (1 + 20 + 1 + 4) * 2 * 4),
        }
    }
    for picture in ["influence", "agreement"] {
        let svg = std::fs::read_to_string(path.join(format!("out/four-{picture}.svg"))).unwrap();
        assert!(svg.contains("UnTrac-Inv"), "{picture}");
    }

    // What is lost is made again, the same; a third seed needs only what is new.
    let lost = path.join("out/four/influences/four-001/untrac-sgd.json");
    let values = |file: &Path| -> Value {
        let kept: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        kept["values"].clone()
    };
    let kept = values(&lost);
    std::fs::remove_file(&lost).unwrap();
    succeed(path, &COMMAND);
    assert_eq!(values(&lost), kept);
    let more = COMMAND.map(|word| if word == "2" { "3" } else { word });
    let output = simfluence(path, &more);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("2 of 6 runs are still to be recorded"),
        "{stderr}"
    );
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("3 runs"), "{table}");
}

/// GradDot's influence of each dataset, from its scores in a file: every example is in one step of
/// three.
fn a_dataset_s_influence_is_the_sum_over_its_examples(path: &Path, methods: &[Value]) {
    let args = [
        "attribute",
        "out/four",
        "--method",
        "graddot",
        "--train-runs",
        "four-000",
        "--test-runs",
        "four-001",
        "--out",
        "graddot.safetensors",
    ];
    succeed(path, &args);
    let bytes = std::fs::read(path.join("graddot.safetensors")).unwrap();
    let scores = Scores::from_artifact(&Artifact::from_bytes(&bytes).unwrap()).unwrap();
    let graddot = methods.iter().find(|m| m["name"] == "graddot").unwrap();
    for (d, &influence) in numbers(&graddot["influences"][0]).iter().enumerate() {
        let rows = &scores.values[d * 12 * 6..(d + 1) * 12 * 6];
        let sum: f64 = rows.iter().map(|&v| f64::from(v)).sum();
        close(influence, sum / 3.0 / 6.0);
    }
}

/// The truth, from the scores that `attribute` writes: effect over exposure.
fn truth_is_that_of_attribute(path: &Path, truth: &[f64]) {
    let args = [
        "attribute",
        "out/four",
        "--method",
        "leave-out",
        "--seeds",
        "2",
        "--train-runs",
        "four-000",
        "--test-runs",
        "four-001",
        "--out",
        "truth.safetensors",
    ];
    let table = succeed(path, &args);
    assert!(table.contains("0 now, 10 kept"), "{table}");
    let bytes = std::fs::read(path.join("truth.safetensors")).unwrap();
    let scores = Scores::from_artifact(&Artifact::from_bytes(&bytes).unwrap()).unwrap();
    for (d, &effect) in truth.iter().enumerate() {
        let row = &scores.values[d * 12 * 6..][..6];
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / 6.0;
        close(mean * 12.0 / 3.0, effect);
    }
}

#[test]
fn what_cannot_be_reproduced_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let odd = TASK.replace("batch_size = 3", "batch_size = 5");
    std::fs::write(path.join("task.toml"), odd).unwrap();
    let message = fail(path, &COMMAND);
    assert!(message.contains("whole batches of 5"), "{message}");
    let truth = [
        "reproduce",
        "untrac-finetuning",
        "--out",
        "o",
        "--methods",
        "leave-out",
    ];
    let message = fail(path, &truth);
    assert!(message.contains("leave-out is the truth"), "{message}");
}
