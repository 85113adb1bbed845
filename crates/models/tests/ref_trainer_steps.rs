//! Steps as transformers' `Trainer` makes them: weight decay in two groups, the mean over all answer
//! tokens of a step in micro-batches. The numbers are those of `data/make_steps.py`, in 64 bits from
//! the same 32-bit parameters.
#![cfg(feature = "torch")]

use safetensors::SafeTensors;
use simfluence_core::{Curriculum, Optimizer, Step};
use simfluence_models::{
    BatchLoss, Device, EvaluationSet, Silent, TokenizedExample, TrainingSettings,
    WeightDecayGroups, Weights, fine_tune, hugging_face,
};
use std::path::PathBuf;

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn weights(folder: &str) -> Weights {
    let base = folder.strip_suffix("_lora");
    let weights = hugging_face::load(&data().join(base.unwrap_or(folder)), Some(0.0)).unwrap();
    match base {
        Some(_) => hugging_face::load_adapter(&weights, &data().join(folder)).unwrap(),
        None => weights,
    }
}

fn examples() -> Vec<TokenizedExample> {
    let text = std::fs::read_to_string(data().join("examples.json")).unwrap();
    let examples: Vec<(Vec<u32>, usize)> = serde_json::from_str(&text).unwrap();
    let example = |(tokens, answer_start)| TokenizedExample {
        tokens,
        answer_start,
        ..TokenizedExample::default()
    };
    examples.into_iter().map(example).collect()
}

fn settings(batch_loss: BatchLoss, weight_decay_groups: WeightDecayGroups) -> TrainingSettings {
    TrainingSettings {
        optimizer: Optimizer::Adamw {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-5,
            weight_decay: 0.5,
        },
        weight_decay_groups,
        learning_rate: 1e-4,
        batch_loss,
        accumulation: 2,
        ..TrainingSettings::default()
    }
}

/// Largest distance of the trained parameters, after two steps, from those of the reference.
fn distance(folder: &str, case: &str, settings: &TrainingSettings) -> f64 {
    let base = weights(folder);
    let steps = vec![Step::new(vec![0, 1, 2, 3], None); 2];
    let end = fine_tune(
        &base,
        &examples(),
        &EvaluationSet::new(examples(), 4),
        &Curriculum::new(steps, 4).unwrap(),
        settings,
        0,
        Device::Cpu,
        &mut Silent,
        None,
    )
    .unwrap();
    let bytes = std::fs::read(data().join("steps.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let prefix = format!("{folder}/{case}/");
    let mut worst: f64 = 0.0;
    let mut count = 0;
    for name in file.names().into_iter().filter(|n| n.starts_with(&prefix)) {
        let view = file.tensor(name).unwrap();
        let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        let expected: Vec<f32> = view.data().chunks_exact(4).map(value).collect();
        let got = end.parameter(&name[prefix.len()..]).unwrap();
        assert_eq!(got.len(), expected.len());
        let is_turned = ["c_attn.weight", "c_proj.weight", "c_fc.weight"];
        let is_turned = is_turned.iter().any(|end| name.ends_with(end));
        let columns = if is_turned { view.shape()[0] } else { 1 };
        let rows = got.len() / columns;
        for (k, got) in got.iter().enumerate() {
            let expected = match is_turned {
                true => expected[(k % columns) * rows + k / columns],
                false => expected[k],
            };
            worst = worst.max(f64::from((got - expected).abs()));
        }
        count += 1;
    }
    let trained = match base.architecture().trainable_count() {
        all if all == base.architecture().parameter_count() => base.layout().specs().len(),
        _ => (base.layout().specs().iter())
            .filter(|spec| spec.name.contains("lora_"))
            .count(),
    };
    assert_eq!(count, trained, "{folder}");
    worst
}

#[test]
fn ref_two_steps_are_those_of_the_trainer_of_transformers() {
    use WeightDecayGroups::{All, HuggingFace};
    for folder in ["gpt2", "opt_post_norm", "llama", "llama_lora"] {
        for (case, batch_loss, other) in [
            ("example_mean", BatchLoss::ExampleMean, BatchLoss::TokenMean),
            ("token_mean", BatchLoss::TokenMean, BatchLoss::ExampleMean),
        ] {
            let got = distance(folder, case, &settings(batch_loss, HuggingFace));
            println!("{folder}, {case}: {got:.1e}");
            assert!(got < 1e-6, "{folder}, {case}: {got:.1e}");
            // That each setting matters.
            let other = distance(folder, case, &settings(other, HuggingFace));
            assert!(other > 1e-5, "{folder}, {case}: {other:.1e}");
            // Of LoRA's parameters none is a bias or of a norm.
            let all = distance(folder, case, &settings(batch_loss, All));
            let differs = folder != "llama_lora";
            assert_eq!(all > 1e-5, differs, "{folder}, {case}: {all:.1e}");
        }
    }
}
