//! What a task can be fed with: previews, and a recording from a `datasets` folder.

mod common;

use common::{fail, succeed};
use serde_json::Value;
use std::path::Path;

const TASK: &str = r#"
name = "conversations"
[data]
source = "table"
path = "DATASET"
split = "train"
messages = "messages"
key = "{key}"
dataset = "{label}"
train_per_dataset = 1
test_per_dataset = 1
[model]
path = "model"
[training]
learning_rate = 1e-2
steps = 6
batch_size = 2
[design]
runs = 3
held_out = 1
held_out_ordinary = 1
segments = [2, 3]
"#;

/// A task file for the conversations of the test data, and a tiny model with a chat template.
fn task(change: impl Fn(&str) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/models/tests/data");
    let dataset = data.join("tables/splits").display().to_string();
    let text = change(TASK).replace("DATASET", &dataset);
    std::fs::write(path.join("task.toml"), text).unwrap();
    std::fs::create_dir(path.join("model")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(data.join("text").join(name), path.join("model").join(name)).unwrap();
    }
    let template = path.join("model/chat_template.jinja");
    std::fs::copy(data.join("chat/chatml.jinja"), template).unwrap();
    folder
}

/// The texts of the tokens with loss, per example.
fn with_loss(answer: &Value) -> Vec<String> {
    let text = |example: &Value| {
        let tokens = example["tokens"].as_array().unwrap();
        let weights = example["weights"].as_array().unwrap();
        let total: f64 = weights.iter().map(|w| w.as_f64().unwrap()).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        assert_eq!(example["ids"].as_array().unwrap().len(), tokens.len());
        let scored = tokens
            .iter()
            .zip(weights)
            .filter(|(_, weight)| **weight != 0.0);
        scored.map(|(token, _)| token.as_str().unwrap()).collect()
    };
    (answer["examples"].as_array().unwrap().iter())
        .map(text)
        .collect()
}

fn preview(folder: &Path, more: &[&str]) -> Value {
    let args = [&["preview", "task.toml", "--format", "json"], more].concat();
    serde_json::from_str(&succeed(folder, &args)).unwrap()
}

#[test]
fn a_preview_shows_which_tokens_of_conversations_carry_loss() {
    // Nothing is trained and no weights are read.
    let folder = task(str::to_owned);
    std::fs::remove_file(folder.path().join("model/model.safetensors")).unwrap();
    let config = folder.path().join("model/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let longer = text.replace(
        "\"max_position_embeddings\": 64",
        "\"max_position_embeddings\": 640",
    );
    assert_ne!(text, longer);
    std::fs::write(&config, longer).unwrap();
    let answer = preview(folder.path(), &["--examples", "10"]);
    let texts = with_loss(&answer);
    assert_eq!(texts.len(), 2);
    assert_eq!(
        (&answer["shown"], &answer["most_tokens"]),
        (&"train".into(), &641.into())
    );
    for text in &texts {
        assert!(text.ends_with("<|im_end|>\n"), "{text:?}");
        assert!(
            !text.contains("what") && !text.contains("assistant"),
            "{text:?}"
        );
    }
    assert_eq!(answer["train"]["examples"], 2);
    assert_eq!(answer["train"]["truncated"], 0);
    assert_eq!(
        preview(folder.path(), &["--test"])["examples"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let shown = succeed(folder.path(), &["preview", "task.toml", "--examples", "1"]);
    assert!(shown.contains("train: 2 examples of"), "{shown}");
    assert!(
        shown.contains("\\n]") && shown.contains("u|s|er|"),
        "{shown}"
    );
    let csv = succeed(folder.path(), &["preview", "task.toml", "--format", "csv"]);
    assert!(
        csv.starts_with("example,key,position,id,token,weight\n"),
        "{csv}"
    );
}

#[test]
fn a_preview_shows_plain_texts_and_loss_on_all_tokens() {
    let plain = |task: &str| task.replace("messages = \"messages\"", "text = \"{text}\"");
    let folder = task(plain);
    for example in preview(folder.path(), &[])["examples"].as_array().unwrap() {
        let weights = example["weights"].as_array().unwrap();
        let unscored = weights.iter().filter(|weight| **weight == 0.0).count();
        assert_eq!((unscored, &weights[0]), (1, &0.0.into()));
    }
    let folder = task(|task| {
        plain(task).replace("text = ", "prompt = \"{key}:\"\nloss = \"all\"\nanswer = ")
    });
    let texts = with_loss(&preview(folder.path(), &[]));
    assert!(
        texts.iter().all(|text| text.contains(":what follows")),
        "{texts:?}"
    );
}

#[test]
fn what_does_not_fit_or_cannot_be_rendered_is_refused_with_its_name() {
    let folder = task(str::to_owned);
    let message = fail(folder.path(), &["preview", "task.toml"]);
    assert!(
        message.contains("\"k") && message.contains("data.truncation"),
        "{message}"
    );
    for (from, to, part) in [
        (
            "messages = \"messages\"",
            "messages = \"chat\"",
            "the columns are: ",
        ),
        (
            "messages = \"messages\"",
            "messages = \"text\"",
            "list of messages",
        ),
        (
            "path = \"DATASET\"\nsplit = \"train\"",
            "path = \"empty.jsonl\"",
            "there are no rows",
        ),
        ("messages = \"messages\"", "text = \"{note}\"", "row 1"),
        ("split = \"train\"", "", "train, test"),
        (
            "messages = \"messages\"",
            "prompt = \"{text}\"",
            "[data] needs prompt and answer",
        ),
    ] {
        let folder = task(|task| task.replace(from, to));
        std::fs::write(folder.path().join("empty.jsonl"), "").unwrap();
        let message = fail(folder.path(), &["preview", "task.toml"]);
        assert!(message.contains(part), "{message}");
    }
    let folder = task(str::to_owned);
    let template = "{{ raise_exception('never') }}";
    std::fs::write(folder.path().join("model/chat_template.jinja"), template).unwrap();
    let message = fail(folder.path(), &["preview", "task.toml"]);
    assert!(
        message.contains("raises: never") && message.contains("row "),
        "{message}"
    );
}

#[cfg(feature = "torch")]
#[test]
fn truncated_conversations_of_a_datasets_folder_are_recorded_and_trained_again() {
    let folder = task(|task| {
        let whole = task.replace("split = \"train\"\n", "truncation = \"left\"\n");
        let kept = whole.replace("steps = 6", "steps = 6\ncheckpoint_every = 6");
        kept.replace("train_per_dataset = 1", "train_per_dataset = 2")
    });
    let path = folder.path();
    let text = std::fs::read_to_string(path.join("task.toml")).unwrap();
    std::fs::write(
        path.join("task.toml"),
        text.replace("tables/splits", "tables/dataset"),
    )
    .unwrap();
    let answer = preview(path, &["--test"]);
    assert_eq!(
        (&answer["train"]["truncated"], &answer["train"]["examples"]),
        (&4.into(), &4.into())
    );
    assert_eq!(answer["test"]["longest"], 65);
    assert!(
        with_loss(&answer)
            .iter()
            .all(|text| text.ends_with("<|im_end|>\n"))
    );
    succeed(path, &["record", "task.toml", "--out", "runs"]);
    // The run set holds what it needs to train again: the folder is not read any more.
    let template = std::fs::read_to_string(path.join("model/chat_template.jinja")).unwrap();
    std::fs::remove_dir_all(path.join("model")).unwrap();
    let save = ["save-model", "runs", "--run", "train-000", "--out", "saved"];
    succeed(path, &save);
    let saved = std::fs::read_to_string(path.join("saved/chat_template.jinja"));
    assert_eq!(saved.unwrap(), template);
    let set = simfluence::recorder::RunSet::open(&path.join("runs")).unwrap();
    let example = &set.train_examples().as_slice()[0];
    assert_eq!(example.column("truncation"), Some("left"));
    assert!(
        example
            .column("messages")
            .unwrap()
            .contains("\"role\":\"assistant\"")
    );
    // An edit that changes nothing, really retrained: the recorded run, bit for bit.
    let same = [
        "whatif",
        "runs",
        "--run",
        "ordinary-000",
        "--verify",
        "--learning-rate",
        "1",
        "--format",
        "json",
    ];
    let answer: Value = serde_json::from_str(&succeed(path, &same)).unwrap();
    let rows = answer["test_examples"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["true_change"] == 0.0), "{rows:?}");
}
