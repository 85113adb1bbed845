//! Fine-tuning of some of a model's parameters: the others stay as they are, bit for bit.
#![cfg(feature = "torch")]

use simfluence_core::{BoxError, Curriculum, Step};
use simfluence_models::{
    Device, Evaluation, EvaluationSet, Ia3Settings, LoraSettings, StepRecord, TokenizedExample,
    Trainable, TrainingObserver, TrainingSettings, TrainingState, Weights, fine_tune, hugging_face,
};
use std::path::PathBuf;

fn data(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{folder}"))
}

fn examples(count: u32, first: u32) -> Vec<TokenizedExample> {
    let example = |k: u32| TokenizedExample {
        tokens: (0..6 + k % 4).map(|p| (k * 5 + p * p) % 19).collect(),
        answer_start: 4,
        ..TokenizedExample::default()
    };
    (first..first + count).map(example).collect()
}

fn curriculum() -> Curriculum {
    let step = |t: u32| Step {
        batch: vec![t % 8, (3 * t + 1) % 8],
        ..Step::default()
    };
    Curriculum::new((0..10).map(step).collect(), 8).unwrap()
}

/// Keeps what a run can go on from after its fifth step, and the losses.
#[derive(Default)]
struct Halfway {
    state: Option<simfluence_core::Artifact>,
    losses: Vec<Vec<f32>>,
}

impl TrainingObserver for Halfway {
    fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError> {
        self.losses.push(evaluation.losses.clone());
        Ok(())
    }

    fn step(&mut self, record: &StepRecord<'_>, state: &TrainingState<'_>) -> Result<(), BoxError> {
        if record.step == 5 {
            self.state = Some(state.to_artifact()?);
        }
        let evaluation = record.evaluation.expect("measured after every step");
        self.losses.push(evaluation.losses.clone());
        Ok(())
    }
}

fn train(base: &Weights, observer: &mut Halfway, resume: bool) -> Weights {
    let state = observer.state.take().filter(|_| resume);
    let settings = TrainingSettings {
        learning_rate: 1e-2,
        ..TrainingSettings::default()
    };
    let test = EvaluationSet::new(examples(8, 0), 64);
    let (train, curriculum) = (examples(8, 0), curriculum());
    fine_tune(
        base,
        &train,
        &test,
        &curriculum,
        &settings,
        3,
        Device::Cpu,
        observer,
        state.as_ref(),
    )
    .unwrap()
}

#[test]
fn only_what_is_trained_moves_and_a_run_goes_on_bit_for_bit() {
    for (folder, trainable, trained) in [
        ("gpt2", Trainable::Bitfit, &[".bias"][..]),
        (
            "qwen2",
            Trainable::LastLayers { layers: 1 },
            &["model.layers.1.", "model.norm."],
        ),
        (
            "llama",
            Trainable::Lora(LoraSettings::default()),
            &[".lora_A.", ".lora_B."],
        ),
        (
            "mistral",
            Trainable::Ia3(Ia3Settings::default()),
            &["k_proj.ia3_l", "v_proj.ia3_l", "down_proj.ia3_l"],
        ),
        ("phi3", Trainable::Full, &[""]),
    ] {
        let base = hugging_face::load(&data(folder), Some(0.0)).unwrap();
        let base = base.with_trainable(trainable).unwrap();
        let mut observer = Halfway::default();
        let end = train(&base, &mut observer, false);
        let mean = |losses: &Vec<f32>| losses.iter().sum::<f32>() / losses.len() as f32;
        let (first, last) = (&observer.losses[0], &observer.losses[10]);
        assert!(mean(last) < mean(first), "{folder}: {first:?} {last:?}");
        for spec in base.layout().specs() {
            let is_trained = trained.iter().any(|part| spec.name.contains(part));
            let has_moved = base.parameter(&spec.name) != end.parameter(&spec.name);
            assert_eq!(has_moved, is_trained, "{folder}: {}", spec.name);
        }
        assert_eq!(train(&base, &mut observer, true), end, "{folder}");
    }
}

#[test]
fn an_adapter_is_read_and_written_back_bit_for_bit() {
    for (base, adapter) in [
        ("gpt2", "gpt2_lora"),
        ("llama", "llama_lora"),
        ("phi3", "phi3_lora"),
        ("gpt2", "gpt2_ia3"),
        ("opt", "opt_ia3"),
    ] {
        let base = hugging_face::load(&data(base), None).unwrap();
        let adapted = hugging_face::load_adapter(&base, &data(adapter)).unwrap();
        let out = tempfile::tempdir().unwrap();
        hugging_face::save_adapter(&adapted, out.path()).unwrap();
        let again = hugging_face::load_adapter(&base, out.path()).unwrap();
        assert_eq!(again, adapted);
        // The model itself is saved without the adapter.
        hugging_face::save(&adapted, &out.path().join("base")).unwrap();
        let base_again = hugging_face::load(&out.path().join("base"), None).unwrap();
        assert_eq!(base_again, base);
        assert!(hugging_face::save_adapter(&base, out.path()).is_err());
    }
}

#[test]
fn adapters_that_are_not_understood_are_refused_by_field_or_tensor() {
    let base = hugging_face::load(&data("llama"), None).unwrap();
    let text = std::fs::read_to_string(data("llama_lora/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let outcome = |base: &Weights, field: &str, value: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        config[field] = value;
        std::fs::write(
            folder.path().join("adapter_config.json"),
            config.to_string(),
        )
        .unwrap();
        let values = "adapter_model.safetensors";
        std::fs::copy(data("llama_lora").join(values), folder.path().join(values)).unwrap();
        hugging_face::load_adapter(base, folder.path())
    };
    let message = |base: &Weights, field: &str, value: serde_json::Value| {
        outcome(base, field, value).unwrap_err().to_string()
    };
    for (field, value) in [
        ("peft_type", serde_json::json!("LOHA")),
        ("feedforward_modules", serde_json::json!(["down_proj"])),
        ("use_dora", serde_json::json!(true)),
        ("use_rslora", serde_json::json!(true)),
        ("bias", serde_json::json!("all")),
        ("lora_dropout", serde_json::json!(1.0)),
        ("rank_pattern", serde_json::json!({"q_proj": 3})),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("target_modules", serde_json::json!("all-linear")),
        ("something_new", serde_json::json!(1)),
        // These change the base model, too.
        ("init_lora_weights", serde_json::json!("pissa")),
        ("init_lora_weights", serde_json::json!("olora")),
    ] {
        let message = message(&base, field, value);
        assert!(message.contains(field), "{field}: {message}");
    }
    for start in ["gaussian", "eva"] {
        outcome(&base, "init_lora_weights", serde_json::json!(start)).unwrap();
    }
    let adapted = outcome(&base, "lora_dropout", serde_json::json!(0.1)).unwrap();
    assert_eq!(adapted.architecture().decoder().dropout.adapter, 0.1);
    let out = tempfile::tempdir().unwrap();
    hugging_face::save_adapter(&adapted, out.path()).unwrap();
    let written = std::fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
    assert!(written.contains("\"lora_dropout\": 0.1"), "{written}");
    let base_of_factors = hugging_face::load(&data("gpt2"), None).unwrap();
    let factors = |field: &str, value: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        let values = "adapter_model.safetensors";
        std::fs::copy(data("gpt2_ia3").join(values), folder.path().join(values)).unwrap();
        let text = std::fs::read_to_string(data("gpt2_ia3/adapter_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[field] = value;
        let path = folder.path().join("adapter_config.json");
        std::fs::write(path, config.to_string()).unwrap();
        let error = hugging_face::load_adapter(&base_of_factors, folder.path()).unwrap_err();
        error.to_string()
    };
    for (field, value) in [
        ("feedforward_modules", serde_json::json!("mlp.c_proj")),
        ("feedforward_modules", serde_json::Value::Null),
        ("exclude_modules", serde_json::json!(["c_attn"])),
        ("lora_dropout", serde_json::json!(0.0)),
    ] {
        let message = factors(field, value);
        assert!(message.contains(field), "{field}: {message}");
    }
    // Factors of the output where the file has those of the input.
    let outputs = factors("feedforward_modules", serde_json::json!([]));
    assert!(
        outputs.contains("c_proj.ia3_l") && outputs.contains("[1, 12]"),
        "{outputs}"
    );
    let rank = message(&base, "r", serde_json::json!(3));
    assert!(
        rank.contains("lora_A.weight") && rank.contains("[3, "),
        "{rank}"
    );
    let more = message(
        &base,
        "target_modules",
        serde_json::json!(["q_proj", "k_proj"]),
    );
    assert!(
        more.contains("has no tensor") && more.contains("k_proj"),
        "{more}"
    );
    let fewer = message(&base, "target_modules", serde_json::json!(["q_proj"]));
    assert!(fewer.contains("belongs to no part"), "{fewer}");
    let other = hugging_face::load(&data("gpt2"), None).unwrap();
    let targets = message(&other, "r", serde_json::json!(2));
    assert!(targets.contains("is no matrix of this model"), "{targets}");
}
