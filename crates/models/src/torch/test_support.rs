//! Small models and examples for tests.

use super::mlp::{Activation, DenseExample, Mlp, Prediction, Target};
use crate::images::{Image, ImageArchitecture, ImageKind, ImageSettings, ImageSize};
use crate::settings::{ModelSettings, TokenizedExample};
use crate::trainable::{Ia3Settings, LoraSettings, Trainable};
use crate::weights::{Architecture, Weights};
use tch::Kind;

/// A small transformer's parameters.
pub(super) fn weights(tied_output: bool) -> Weights {
    let model = ModelSettings {
        layers: 2,
        heads: 2,
        width: 8,
        context: 12,
        tied_output,
        dropout: 0.0,
    };
    Weights::random(&Architecture::new(model, 9).unwrap(), 5)
}

/// The parameters of a tiny checkpoint in `tests/data`.
pub(super) fn checkpoint(folder: &str) -> Weights {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    crate::hugging_face::load(&data.join(folder), None).unwrap()
}

/// The same model with other values.
fn moved(weights: Weights) -> Weights {
    let flat = weights.flat().iter().enumerate();
    let flat = flat.map(|(k, value)| value + 0.1 * (k as f32).sin());
    Weights::from_flat(weights.architecture(), flat.collect()).unwrap()
}

/// Models of which not all parameters are trained.
fn partly_trained() -> Vec<Weights> {
    let only = |weights: Weights, trainable| weights.with_trainable(trainable).unwrap();
    let lora = |weights: Weights, targets: &[&str]| {
        let targets = targets.iter().map(|t| (*t).to_owned()).collect();
        let settings = LoraSettings {
            rank: 2,
            targets: Some(targets),
            ..LoraSettings::default()
        };
        // Not at the start, where half of the gradient is 0.
        moved(only(weights, Trainable::Lora(settings)))
    };
    let ia3 = |weights| moved(only(weights, Trainable::Ia3(Ia3Settings::default())));
    vec![
        only(weights(true), Trainable::Bitfit),
        only(checkpoint("opt_post_norm"), Trainable::Bitfit),
        only(weights(false), Trainable::LastLayers { layers: 1 }),
        only(checkpoint("gpt2"), Trainable::LastLayers { layers: 1 }),
        lora(weights(true), &["qkv", "up"]),
        lora(checkpoint("gpt_neox"), &["query_key_value", "dense"]),
        lora(checkpoint("qwen2"), &["q_proj", "v_proj", "gate_proj"]),
        ia3(weights(true)),
        ia3(checkpoint("opt_post_norm")),
        only(checkpoint("t5"), Trainable::LastLayers { layers: 1 }),
        lora(checkpoint("t5"), &["q", "v", "DenseReluDense.wo"]),
        ia3(checkpoint("t5_gated")),
    ]
}

/// Our own models, checkpoints, and some of each of which not all parameters are trained; networks
/// on images.
pub(super) fn all_weights() -> Vec<Weights> {
    let mut all = vec![weights(true), weights(false)];
    all.extend(CHECKPOINTS.map(checkpoint));
    all.extend(partly_trained());
    all.extend(image_networks());
    all
}

/// Size of the images of [`image_networks`]: halved twice, with a column that pooling leaves out.
const IMAGE: ImageSize = ImageSize {
    rows: 6,
    columns: 5,
};

/// A network on images.
pub(super) fn image_network(channels: &[u32], hidden: &[u32]) -> Weights {
    let settings = ImageSettings {
        channels: channels.to_vec(),
        hidden: hidden.to_vec(),
        kernel: 3,
        mean: 0.4,
        standard_deviation: 0.3,
    };
    assert_eq!(settings.kind() == ImageKind::Mlp, channels.is_empty());
    let architecture = ImageArchitecture::new(settings, IMAGE, 4).unwrap();
    let weights = Weights::random(&Architecture::of_images(architecture), 5);
    // Not at the start, where biases are 0.
    moved(weights)
}

/// Networks on images, some of which are trained in part.
fn image_networks() -> Vec<Weights> {
    let cnn = || image_network(&[2, 3], &[5]);
    let only = |trainable| cnn().with_trainable(trainable).unwrap();
    vec![
        cnn(),
        image_network(&[], &[5, 4]),
        only(Trainable::Bitfit),
        only(Trainable::LastLayers { layers: 3 }),
    ]
}

/// Examples that a model can read.
pub(super) fn examples_of(weights: &Weights, count: usize, seed: usize) -> Vec<TokenizedExample> {
    if weights.architecture().images().is_none() {
        return examples(count, seed);
    }
    let pixel = |i: usize, p: usize| ((i * 89 + seed * 31 + p * p * 57 + p * 13) % 256) as u8;
    let image = |i: usize| Image {
        size: IMAGE,
        pixels: (0..IMAGE.pixels()).map(|p| pixel(i, p)).collect(),
        class: ((i + seed) % 4) as u32,
    };
    (0..count).map(|i| image(i).tokens()).collect()
}

/// Checkpoints with, between them, every kind of norm, position, projection and MLP.
const CHECKPOINTS: [&str; 7] = [
    "gpt2",
    "opt_post_norm",
    "gpt_neox",
    "qwen2",
    "phi3",
    "t5",
    "t5_gated",
];

/// Examples that all models of texts can read.
pub(super) fn examples(count: usize, seed: usize) -> Vec<TokenizedExample> {
    let example = |i: usize| {
        let length = 4 + (i * 5 + seed) % 8;
        let tokens = (0..length).map(|p| ((i * 7 + p * p * 3 + seed) % 9) as u32);
        TokenizedExample {
            tokens: tokens.collect(),
            answer_start: length - 1 - (i + seed) % 3,
            // In some of those with three answer tokens the middle one carries no loss.
            unscored: if (i + seed) % 3 == 2 && i.is_multiple_of(2) {
                vec![length - 2]
            } else {
                Vec::new()
            },
        }
    };
    (0..count).map(example).collect()
}

/// A network of several layers on features, and examples for it.
pub(super) fn dense(prediction: Prediction) -> (Mlp, Vec<DenseExample>, Vec<DenseExample>) {
    let values: Vec<f64> = (0..4 * 7 + 7 + 7 * 3 + 3)
        .map(|k| (0.7 * f64::from(k) + 0.2).sin())
        .collect();
    let model = Mlp::new(
        &[4, 7, 3],
        Activation::Tanh,
        prediction,
        &values,
        Kind::Double,
        tch::Device::Cpu,
    );
    let example = |i: u32| DenseExample {
        features: (0..4).map(|k| f64::from(i * 3 + k * k).sin()).collect(),
        target: match prediction {
            Prediction::Classes => Target::Class(i % 3),
            Prediction::Values => {
                Target::Values((0..3).map(|k| f64::from(i + 2 * k).cos()).collect())
            }
        },
    };
    let examples = |range: std::ops::Range<u32>| range.map(example).collect();
    (model.unwrap(), examples(0..11), examples(11..16))
}
