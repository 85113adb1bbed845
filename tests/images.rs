//! The main job on networks that read images: record, attribute, ask, verify, leave out.
//!
//! The images in `images` are by `data/images/make.py tests/images --train 60 --test 20 --size 12`.
#![cfg(feature = "torch")]

mod common;

use common::{fail, succeed};
use serde_json::Value;
use std::path::Path;

const TASK: &str = r#"
name = "digits"
[data]
source = "mixture"
[[data.parts]]
source = "images"
path = "clothes"
name = "clothes"
corpus = true
[[data.parts]]
source = "images"
path = "digits"
name = "digit"
train_per_class = 1
test_per_class = 1
noise = { levels = [0, 0.5] }
[model]
kind = "cnn"
channels = [3, 4]
kernel = 3
hidden = [8]
[pretraining]
steps = 30
[training]
optimizer = { name = "adamw" }
learning_rate = 1e-2
steps = 6
batch_size = 3
checkpoint_every = 3
[design]
runs = 3
held_out = 1
held_out_ordinary = 1
segments = [2, 3]
"#;

fn images() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images");
    path.to_str().unwrap().to_owned()
}

fn folder(task: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("task.toml"), task).unwrap();
    folder
}

fn record(folder: &Path, out: &str, runs: &str) {
    let images = images();
    let data = ["record", "task.toml", "--data", &images];
    succeed(
        folder,
        &[&data[..], &["--out", out, "--runs", runs]].concat(),
    );
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let args = [args, &["--format", "json"]].concat();
    serde_json::from_str(&succeed(folder, &args)).unwrap()
}

/// The losses of a run, bit for bit.
fn losses(folder: &Path, run_set: &str, run: &str) -> Vec<u32> {
    let set = simfluence::recorder::RunSet::open(&folder.join(run_set)).unwrap();
    let run = set.read_run(run).unwrap();
    (run.trajectory.values().iter())
        .map(|loss| loss.to_bits())
        .collect()
}

fn attribute(folder: &Path, method: &str, options: &[&str]) {
    let args = ["attribute", "runs", "--method", method];
    succeed(folder, &[&args[..], options].concat());
    let file = folder.join(format!("runs/scores/{method}.safetensors"));
    let artifact = simfluence::recorder::read_artifact(&file).unwrap();
    let scores = simfluence::core::Scores::from_artifact(&artifact).unwrap();
    assert_eq!(scores.test_keys.len(), 10, "{method}");
    assert!(scores.values.iter().any(|v| *v != 0.0), "{method}");
    assert!(scores.values.iter().all(|v| v.is_finite()), "{method}");
}

#[test]
fn a_convolutional_network_is_recorded_attributed_edited_and_verified() {
    let folder = folder(TASK);
    let path = folder.path();
    record(path, "runs", "train-*,ordinary-000");
    record(path, "again", "train-001");
    let first = losses(path, "runs", "train-001");
    assert_eq!(first, losses(path, "again", "train-001"));
    assert_eq!(first.len(), 7 * 10);
    assert_ne!(first[60..], first[..10]);

    for (method, options) in [
        ("graddot", &["--layers"][..]),
        ("graddot-preconditioned", &[]),
        ("gradcos", &[]),
        ("gradcos-preconditioned", &[]),
        ("tracin-cp", &[]),
        ("tracin-cp-preconditioned", &[]),
        ("hif-cg", &[]),
        ("hif-lissa", &[]),
        ("hif-arnoldi", &[]),
        ("hif-ekfac", &[]),
        ("hif-kfac", &[]),
        ("hif-diagonal", &[]),
        ("untrac", &[]),
        ("untrac-inv", &[]),
        ("pbrf", &["--damping", "10"]),
        ("empirical", &["--from-base"]),
    ] {
        attribute(path, method, options);
    }
    let layers = json(path, &["report", "runs", "runs/scores/graddot.safetensors"]);
    let layers = layers["layers"].to_string();
    assert!(layers.contains("convolutions.1"), "{layers}");
    let noise = json(
        path,
        &["report", "runs", "runs/scores/empirical.safetensors"],
    );
    let levels = noise["influence_by_kind"][0]["kinds"].as_array().unwrap();
    let names: Vec<&str> = levels.iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert_eq!(names, ["noise-0", "noise-0.5"]);

    // An edit that changes nothing, really retrained: the recorded run, bit for bit.
    let whatif = ["whatif", "runs", "--run", "ordinary-000", "--verify"];
    let answer = json(path, &[&whatif[..], &["--learning-rate", "1"]].concat());
    for row in answer["test_examples"].as_array().unwrap() {
        assert_eq!(row["true_change"], 0.0, "{row}");
    }
    let answer = json(path, &[&whatif[..], &["--drop", "dataset:3"]].concat());
    let mut changes = answer["test_examples"].as_array().unwrap().iter();
    assert!(changes.any(|row| row["true_change"] != 0.0), "{answer}");
    let leave_out = ["--unit", "kind", "--subsets", "2", "--seeds", "1"];
    attribute(path, "leave-out", &leave_out);

    let fit = ["fit", "runs", "--method", "linearised", "--out"];
    let fitted = json(path, &[&fit[..], &["lin.safetensors"]].concat());
    assert_eq!(fitted["training_runs"].as_array().unwrap().len(), 3);
    assert!(path.join("runs/kernels/normalised.safetensors").exists());
    let dynamics = ["fit", "runs", "--method", "optimizer-dynamics", "--out"];
    let fitted = json(path, &[&dynamics[..], &["dynamics.safetensors"]].concat());
    let weight = fitted["linearised"]["weight"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&weight), "{fitted}");
    let compare = ["compare", "runs", "--methods", "linearised"];
    let runs = ["--simulator", "lin.safetensors"];
    let compared = json(path, &[&compare[..], &runs].concat());
    let rows = compared["blocks"][0]["rows"].as_array().unwrap();
    let mse = |name: &str| {
        let row = rows.iter().find(|row| row["method"] == name).unwrap();
        row["mse"]["value"].as_f64().unwrap()
    };
    assert_eq!(mse("linearised"), mse("lin"));
    assert!(mse("linearised") < 0.5 * mse("no-learning"), "{rows:?}");

    let save = ["save-model", "runs", "--run", "train-000", "--out", "saved"];
    let message = fail(path, &save);
    assert!(message.contains("only models that came from a Hugging Face folder"));
    let prefilter = [
        "attribute",
        "runs",
        "--method",
        "hif-ekfac",
        "--prefilter",
        "2",
        "--out",
        "x",
    ];
    assert!(fail(path, &prefilter).contains("images"));
}

#[test]
fn parts_of_a_dense_network_are_trained_from_scratch() {
    let mlp = TASK
        .replace(
            "kind = \"cnn\"\nchannels = [3, 4]\nkernel = 3",
            "kind = \"mlp\"",
        )
        .replace("[pretraining]\nsteps = 30", "[pretraining]\nsteps = 0");
    for (method, trained) in [
        ("\"full\"", 144 * 8 + 8 + 80 + 10),
        ("\"bitfit\"", 8 + 10),
        ("\"last-layers\"\nlayers = 1", 80 + 10),
    ] {
        let task = format!("{mlp}\n[trainable]\nmethod = {method}\n");
        let folder = folder(&task);
        record(folder.path(), "runs", "train-*,ordinary-000");
        let set = simfluence::recorder::RunSet::open(&folder.path().join("runs")).unwrap();
        let info = set.read_info("train-000").unwrap();
        assert_eq!(info.trainable_parameters, Some(trained));
        attribute(folder.path(), "hif-ekfac", &[]);
    }
}

#[test]
fn images_are_previewed() {
    let folder = folder(TASK);
    let images = images();
    let preview = ["preview", "task.toml", "--data", &images, "--examples", "2"];
    let text = succeed(folder.path(), &preview);
    assert!(text.contains("20 examples of 145 to 145 tokens"), "{text}");
    assert!(text.contains("@@") && text.contains("[0]"), "{text}");
    let answer = json(folder.path(), &preview);
    let example = &answer["examples"][1];
    assert!(example["key"].as_str().unwrap().ends_with("-noise-0.5"));
    assert_eq!(example["weights"][144], 1.0);
}

#[test]
fn bad_input_is_refused_before_training() {
    let images = images();
    for (from, to, expected) in [
        (
            "kind = \"cnn\"",
            "heads = 2",
            "model.channels is for networks on images",
        ),
        (
            "corpus = true",
            "train_per_class = 1",
            "there is no image to pre-train on",
        ),
        (
            "train_per_class = 1",
            "train_per_class = 99",
            "class 0 has 6 images",
        ),
        (
            "train_per_class = 1",
            "classes = 9\ntrain_per_class = 1",
            "data.classes must be the same",
        ),
        (
            "channels = [3, 4]",
            "channels = [3, 4, 5, 6]",
            "too small for 4 convolutions",
        ),
        (
            "[pretraining]",
            "[trainable]\nmethod = \"lora\"\n[pretraining]",
            "this model reads images",
        ),
        (
            "[model]",
            "[[data.parts]]\nsource = \"numbers\"\n[model]",
            "other sources than images",
        ),
        (
            "path = \"digits\"",
            "path = \"shoes\"",
            "shoes/train-images-idx3-ubyte",
        ),
    ] {
        assert!(TASK.contains(from), "{from}");
        let folder = folder(&TASK.replacen(from, to, 1));
        let record = ["record", "task.toml", "--data", &images, "--out", "runs"];
        let message = fail(folder.path(), &record);
        assert!(message.contains(expected), "{to}: {message}");
    }
    // A task of texts with sources of images.
    let text = TASK.replace(
        "kind = \"cnn\"\nchannels = [3, 4]\nkernel = 3\nhidden = [8]",
        "",
    );
    let folder = folder(&text);
    let preview = ["preview", "task.toml", "--data", &images];
    assert!(fail(folder.path(), &preview).contains("they need [model] with kind"));
}
