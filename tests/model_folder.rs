//! The main job on a model in Hugging Face format: record, attribute, ask, verify, leave out.
#![cfg(feature = "torch")]

mod common;

use common::{fail, succeed};
use serde_json::Value;
use std::path::Path;

const TASK: &str = r#"
name = "folder"
[data]
source = "table"
path = "table.csv"
prompt = "Question: what follows {number}? Answer:"
answer = " {next}."
dataset = "{kind}"
train_per_dataset = 5
test_per_dataset = 2
[model]
path = "model"
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

const NUMBERS: [&str; 15] = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen",
];

/// A task file, its table, and a tiny Llama with a byte-level tokenizer.
fn task() -> tempfile::TempDir {
    task_of("text", TASK)
}

/// The same with another tiny model and a task file for it.
fn task_of(model: &str, task: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("task.toml"), task).unwrap();
    let mut table = String::from("number,next,kind\n");
    for (k, pair) in NUMBERS.windows(2).enumerate() {
        let kind = if k % 2 == 0 { "odd" } else { "even" };
        table.push_str(&format!("{},{},{kind}\n", pair[0], pair[1]));
    }
    std::fs::write(path.join("table.csv"), table).unwrap();
    std::fs::create_dir(path.join("model")).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/models/tests/data");
    let data = data.join(model);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(data.join(name), path.join("model").join(name)).unwrap();
    }
    folder
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let args = [args, &["--format", "json"]].concat();
    serde_json::from_str(&succeed(folder, &args)).unwrap()
}

/// The losses of a run, bit for bit.
fn losses(folder: &Path, run_set: &str, run: &str) -> Vec<u32> {
    let set = simfluence::recorder::RunSet::open(&folder.join(run_set)).unwrap();
    let run = set.read_run(run).unwrap();
    assert_eq!(run.trajectory.steps().len(), 7);
    (run.trajectory.values().iter())
        .map(|loss| loss.to_bits())
        .collect()
}

#[test]
fn a_model_folder_is_recorded_attributed_edited_and_verified() {
    check_main_job("text", TASK, "model.layers.1.mlp.gate_proj");
}

/// Prompt and answer as the texts of an encoder and a decoder.
fn t5_task() -> String {
    TASK.replace(" Answer:\"", "\"")
        .replace("\" {next}.\"", "\"{kind}\"")
}

#[test]
fn an_encoder_with_a_decoder_is_recorded_attributed_edited_and_verified() {
    check_main_job(
        "t5_text",
        &t5_task(),
        "decoder.block.1.layer.1.EncDecAttention.v",
    );
}

/// Record, attribute by every method, edit, verify, save, train again, leave out.
fn check_main_job(model: &str, task: &str, layer: &str) {
    let folder = task_of(model, task);
    let path = folder.path();
    let record = [
        "record",
        "task.toml",
        "--out",
        "runs",
        "--runs",
        "train-*,ordinary-000",
    ];
    succeed(path, &[&record[..], &["--jobs", "2"]].concat());
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "again",
            "--runs",
            "train-001",
        ],
    );
    assert_eq!(
        losses(path, "runs", "train-001"),
        losses(path, "again", "train-001")
    );
    let all = losses(path, "runs", "train-001");
    let sum = |row: &[u32]| row.iter().map(|&bits| f32::from_bits(bits)).sum::<f32>();
    let (start, end) = (sum(&all[..4]), sum(&all[all.len() - 4..]));
    assert!(end < start, "{start} {end}");

    // The run set keeps the model: nothing below reads the folder.
    std::fs::remove_dir_all(path.join("model")).unwrap();
    for method in [
        "graddot",
        "gradcos",
        "tracin-cp",
        "tracin-cp-preconditioned",
        "hif-cg",
        "hif-ekfac",
        "untrac",
        "untrac-inv",
        "empirical",
    ] {
        succeed(path, &["attribute", "runs", "--method", method]);
        let file = path.join(format!("runs/scores/{method}.safetensors"));
        let artifact = simfluence::recorder::read_artifact(&file).unwrap();
        let scores = simfluence::core::Scores::from_artifact(&artifact).unwrap();
        assert_eq!((scores.train_keys.len(), scores.test_keys.len()), (10, 4));
        assert!(scores.values.iter().any(|v| *v != 0.0), "{method}");
        assert!(scores.values.iter().all(|v| v.is_finite()), "{method}");
    }
    succeed(
        path,
        &["attribute", "runs", "--method", "graddot", "--layers"],
    );
    let report = ["report", "runs", "runs/scores/graddot.safetensors"];
    let layers = json(path, &report)["layers"].to_string();
    assert!(layers.contains(layer), "{layers}");

    // An edit that changes nothing, really retrained: the recorded run, bit for bit.
    let whatif = ["whatif", "runs", "--run", "ordinary-000", "--verify"];
    let answer = json(path, &[&whatif[..], &["--learning-rate", "1"]].concat());
    for row in answer["test_examples"].as_array().unwrap() {
        assert_eq!(row["true_change"], 0.0, "{row}");
    }
    let answer = json(path, &[&whatif[..], &["--drop", "dataset:odd"]].concat());
    let changes = answer["test_examples"].as_array().unwrap();
    assert!(
        changes.iter().any(|row| row["true_change"] != 0.0),
        "{changes:?}"
    );

    // A checkpoint becomes a folder that can be fine-tuned again.
    let save = [
        "save-model",
        "runs",
        "--run",
        "ordinary-000",
        "--out",
        "saved",
    ];
    assert!(succeed(path, &save).contains("after step 6"));
    assert!(fail(path, &save).contains("not empty"));
    let other = [
        "save-model",
        "runs",
        "--run",
        "train-000",
        "--step",
        "4",
        "--out",
        "x",
    ];
    assert!(fail(path, &other).contains("there are some after: 3, 6"));
    std::fs::write(
        path.join("again.toml"),
        task.replace("\"model\"", "\"saved\""),
    )
    .unwrap();
    let again = [
        "record",
        "again.toml",
        "--out",
        "more",
        "--runs",
        "train-000",
    ];
    succeed(path, &again);
    let end = losses(path, "runs", "ordinary-000");
    assert_eq!(losses(path, "more", "train-000")[..4], end[end.len() - 4..]);

    let truth = succeed(
        path,
        &["attribute", "runs", "--method", "leave-out", "--seeds", "2"],
    );
    assert!(truth.contains("ceiling"), "{truth}");
}

#[test]
fn attribution_follows_the_parameters_that_are_trained() {
    let folder = task();
    let path = folder.path();
    for (name, trainable, layer) in [
        (
            "lora",
            "method = \"lora\"\nrank = 2\ntargets = [\"q_proj\", \"down_proj\"]",
            "model.layers.1.mlp.down_proj.lora_A",
        ),
        (
            "last",
            "method = \"last-layers\"\nlayers = 1",
            "model.layers.1.mlp.down_proj",
        ),
    ] {
        let text = TASK.replace(
            "[training]",
            &format!("[trainable]\n{trainable}\n[training]"),
        );
        std::fs::write(path.join("task.toml"), text).unwrap();
        let record = [
            "record",
            "task.toml",
            "--out",
            name,
            "--runs",
            "train-*,ordinary-000",
        ];
        succeed(path, &record);
        let whole = 5_000;
        let info = std::fs::read(path.join(name).join("runs/train-000/run.json")).unwrap();
        let info: Value = serde_json::from_slice(&info).unwrap();
        let trained = info["trainable_parameters"].as_u64().unwrap();
        assert!(0 < trained && trained < whole, "{name}: {trained}");
        let size = |file: &str| std::fs::metadata(path.join(name).join(file)).unwrap().len();
        let checkpoint = size("runs/train-000/checkpoints/step-000006.safetensors");
        assert!(
            checkpoint < size("base_model.safetensors"),
            "{name}: {checkpoint}"
        );
        let save = [
            "save-model",
            name,
            "--run",
            "train-000",
            "--out",
            &format!("{name}-saved"),
        ];
        succeed(path, &save);
        let file = match name {
            "lora" => "adapter_model.safetensors",
            _ => "tokenizer.json",
        };
        assert!(path.join(format!("{name}-saved")).join(file).exists());
        for method in ["graddot", "tracin-cp", "hif-ekfac", "untrac"] {
            succeed(path, &["attribute", name, "--method", method]);
        }
        succeed(
            path,
            &["attribute", name, "--method", "graddot", "--layers"],
        );
        let scores = format!("{name}/scores/graddot.safetensors");
        let report = json(path, &["report", name, &scores])["layers"].to_string();
        assert!(report.contains(layer), "{report}");
        assert!(!report.contains("model.embed_tokens"), "{report}");
        let whatif = ["whatif", name, "--run", "ordinary-000", "--verify"];
        let answer = json(path, &[&whatif[..], &["--learning-rate", "1"]].concat());
        for row in answer["test_examples"].as_array().unwrap() {
            assert_eq!(row["true_change"], 0.0, "{row}");
        }
    }
    // An adapter that was written is trained further.
    let further = TASK.replace("\"model\"", "\"model\"\nadapter = \"lora-saved\"");
    std::fs::write(path.join("task.toml"), further).unwrap();
    succeed(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "further",
            "--runs",
            "train-001",
        ],
    );
    let end = losses(path, "lora", "train-000");
    assert_eq!(
        losses(path, "further", "train-001")[..4],
        end[end.len() - 4..]
    );

    // No biases in a Llama.
    let text = TASK.replace("[training]", "[trainable]\nmethod = \"bitfit\"\n[training]");
    std::fs::write(path.join("task.toml"), text).unwrap();
    let message = fail(path, &["record", "task.toml", "--out", "bitfit"]);
    assert!(message.contains("bitfit trains biases"), "{message}");
    let message = fail(
        path,
        &[
            "record",
            "task.toml",
            "--out",
            "lora",
            "--runs",
            "train-000",
        ],
    );
    assert!(message.contains("bitfit trains biases"), "{message}");
}

#[test]
fn what_an_encoder_with_a_decoder_cannot_learn_from_is_refused() {
    let folder = task_of("t5_text", &t5_task());
    let path = folder.path();
    let preview = json(path, &["preview", "task.toml", "--examples", "1"]);
    let shown = &preview["examples"][0];
    let (ids, weights) = (
        shown["ids"].as_array().unwrap(),
        shown["weights"].as_array().unwrap(),
    );
    // Both texts end with the end token; the answer alone carries loss.
    let start = weights.iter().position(|w| w.as_f64() > Some(0.0)).unwrap();
    assert_eq!(
        (&ids[start - 1], &ids[ids.len() - 1]),
        (&1.into(), &1.into())
    );
    assert!(weights[start..].iter().all(|w| w.as_f64() > Some(0.0)));
    for (from, to) in [
        ("answer = \"{kind}\"", "answer = \"{kind}\"\nloss = \"all\""),
        (
            "prompt = \"Question: what follows {number}?\"\nanswer = \"{kind}\"",
            "text = \"{number}\"",
        ),
    ] {
        let task = t5_task();
        assert!(task.contains(from), "{task}");
        std::fs::write(path.join("task.toml"), task.replace(from, to)).unwrap();
        let message = fail(path, &["record", "task.toml", "--out", "runs"]);
        assert!(
            message.contains("give data.prompt and data.answer"),
            "{message}"
        );
    }
    let bitfit = "[trainable]\nmethod = \"bitfit\"\n[training]";
    std::fs::write(
        path.join("task.toml"),
        t5_task().replace("[training]", bitfit),
    )
    .unwrap();
    let message = fail(path, &["record", "task.toml", "--out", "runs"]);
    assert!(message.contains("bitfit trains biases"), "{message}");
}

#[test]
fn another_model_or_dropout_is_not_mixed_into_a_run_set() {
    let folder = task();
    let path = folder.path();
    let record = [
        "record",
        "task.toml",
        "--out",
        "runs",
        "--runs",
        "train-000",
    ];
    succeed(path, &record);
    let dropout = TASK.replace("path = \"model\"", "path = \"model\"\ndropout = 0.25");
    std::fs::write(path.join("task.toml"), dropout).unwrap();
    let message = fail(path, &record);
    assert!(message.contains("base_model.safetensors"), "{message}");

    let other = [
        "record",
        "task.toml",
        "--out",
        "others",
        "--runs",
        "train-000",
    ];
    succeed(path, &other);
    assert_ne!(
        losses(path, "runs", "train-000"),
        losses(path, "others", "train-000")
    );
}

#[test]
fn a_model_folder_that_is_wrong_is_refused_before_anything_is_trained() {
    let folder = task();
    let path = folder.path();
    let record = ["record", "task.toml", "--out", "runs"];
    let weights = path.join("model/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    let message = fail(path, &record);
    assert!(message.contains("not copied whole"), "{message}");
    std::fs::write(&weights, &whole).unwrap();
    let config = path.join("model/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"default\"", "\"dynamic\"")).unwrap();
    let message = fail(path, &record);
    assert!(message.contains("rope_parameters.rope_type"), "{message}");
    assert!(message.contains("llama3, yarn"), "{message}");
    std::fs::remove_dir_all(path.join("model")).unwrap();
    let message = fail(path, &record);
    assert!(message.contains("config.json"), "{message}");
}
