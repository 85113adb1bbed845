//! Checkpoints of every supported architecture against what transformers makes of them. The numbers
//! are those of `data/make.py`, in 64 bits from the same 32-bit parameters.
#![cfg(feature = "torch")]

use safetensors::{Dtype, SafeTensors};
use simfluence_core::Optimizer;
use simfluence_models::{
    EvaluationSet, Model, Network, TokenizedExample, Updater, Weights, hugging_face,
    per_example_gradients, weighted_gradient,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

const FOLDERS: [&str; 20] = [
    "gpt2",
    "opt",
    "opt_post_norm",
    "gpt_neox",
    "gpt_neox_sequential",
    "llama",
    "mistral",
    "qwen2",
    "phi3",
    "t5",
    "t5_gated",
    "gpt2_lora",
    "llama_lora",
    "phi3_lora",
    "gpt2_ia3",
    "llama_ia3",
    "opt_ia3",
    "gpt_neox_ia3",
    "t5_lora",
    "t5_gated_ia3",
];

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// A checkpoint, or the one before the `_lora` or `_ia3` with that adapter.
fn weights(folder: &str) -> Weights {
    let base = (folder.strip_suffix("_lora")).or(folder.strip_suffix("_ia3"));
    let weights = hugging_face::load(&data().join(base.unwrap_or(folder)), None).unwrap();
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

/// What transformers computed: arrays by name, in 64 bits, matrices in the order of the layout.
struct Reference(BTreeMap<String, Tensor>);

impl Reference {
    fn of(folder: &str) -> Self {
        let bytes = std::fs::read(data().join(folder).join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| {
            let view = file.tensor(name).unwrap();
            let kind = match view.dtype() {
                Dtype::F64 => Kind::Double,
                _ => Kind::Float,
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, kind).unwrap();
            let is_turned = ["c_attn.weight", "c_proj.weight", "c_fc.weight"]
                .iter()
                .any(|end| name.ends_with(end));
            let tensor = if is_turned { tensor.tr() } else { tensor };
            tensor.to_kind(Kind::Double)
        };
        let names = file.names().into_iter();
        Self(names.map(|name| (name.to_owned(), tensor(name))).collect())
    }

    /// Largest distance of a flat vector from the arrays `prefix/NAME` of all parameters.
    fn distance(&self, prefix: &str, model: &Network, flat: &Tensor) -> f64 {
        let mut worst: f64 = 0.0;
        for spec in model.layout().specs() {
            let expected = &self.0[&format!("{prefix}/{}", spec.name)];
            let got = flat.narrow(0, spec.offset as i64, spec.len() as i64);
            worst = worst.max(distance(&got.view_as(expected), expected));
        }
        let parameters = self.0.keys().filter(|name| name.starts_with(prefix));
        assert_eq!(parameters.count(), model.layout().specs().len());
        worst
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let difference = a.to_kind(Kind::Double) - b;
    difference.abs().max().double_value(&[])
}

/// Distances of logits, losses and gradients.
fn distances(folder: &str, kind: Kind) -> [f64; 4] {
    let reference = Reference::of(folder);
    let model = Network::with_kind(&weights(folder), Device::Cpu, kind);
    let examples = examples();
    let batch = model.batch(&examples.iter().collect::<Vec<_>>());
    let outputs = tch::no_grad(|| model.outputs(&batch, None));
    let positions = outputs.weights.size()[1];
    let mut logits = Vec::new();
    for (k, example) in examples.iter().enumerate() {
        let answers = example.target_count() as i64;
        logits.push(outputs.predictions.narrow(0, k as i64 * positions, answers));
    }
    let ones = Tensor::ones([examples.len() as i64], (kind, Device::Cpu));
    let whole = weighted_gradient(&model, &batch, &ones);
    let each = per_example_gradients(&model, &examples).unwrap();
    let summed = each.sum_dim_intlist(0, false, None);
    [
        distance(&Tensor::cat(&logits, 0), &reference.0["logits"]),
        distance(&outputs.losses(), &reference.0["losses"]),
        reference.distance("gradient", &model, &whole),
        reference.distance("gradient", &model, &summed),
    ]
}

#[test]
fn ref_logits_losses_and_gradients_are_those_of_transformers() {
    for folder in FOLDERS {
        for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 1e-5)] {
            let got = distances(folder, kind);
            println!("{folder} {kind:?}: {got:?}");
            assert!(
                got.iter().all(|d| *d < tolerance),
                "{folder} {kind:?}: {got:?}"
            );
        }
    }
}

/// The evaluation has a way of its own through the model: shared beginnings, parts, no gradients.
#[test]
fn ref_evaluation_gives_the_losses_of_transformers() {
    for folder in FOLDERS {
        let reference = Reference::of(folder);
        let model = Network::new(&weights(folder), Device::Cpu);
        let set = EvaluationSet::new(examples(), 2);
        let got = Tensor::from_slice(&set.evaluate(&model).unwrap().losses);
        assert!(distance(&got, &reference.0["losses"]) < 1e-5, "{folder}");
    }
}

#[test]
fn ref_one_step_of_adamw_is_that_of_pytorch() {
    let optimizer = Optimizer::Adamw {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-5,
        weight_decay: 0.01,
    };
    for folder in FOLDERS {
        let reference = Reference::of(folder);
        // The reference is kept in 32 bits, which round values below 4 by at most 2^-23.
        for (kind, tolerance) in [(Kind::Double, 1.25e-7), (Kind::Float, 1e-6)] {
            let model = Network::with_kind(&weights(folder), Device::Cpu, kind);
            let examples = examples();
            let batch = model.batch(&examples.iter().collect::<Vec<_>>());
            let loss = model.outputs(&batch, None).losses().mean(kind);
            Updater::new(&model, optimizer).update(&model, &loss, None, 1e-4);
            let got = reference.distance("step", &model, model.flat());
            println!("{folder} {kind:?}: {got:.1e}");
            assert!(got < tolerance, "{folder} {kind:?}: {got}");
        }
    }
}

#[test]
fn ref_gradients_of_each_example_are_those_of_one_backward_pass() {
    for folder in FOLDERS {
        let model = Network::with_kind(&weights(folder), Device::Cpu, Kind::Double);
        let examples = examples();
        let each = per_example_gradients(&model, &examples).unwrap();
        for (k, example) in examples.iter().enumerate() {
            let one = Tensor::ones([1], (Kind::Double, Device::Cpu));
            let alone = weighted_gradient(&model, &model.batch(&[example]), &one);
            assert!(
                distance(&each.get(k as i64), &alone) < 1e-12,
                "{folder} {k}"
            );
        }
    }
}
