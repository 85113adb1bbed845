//! Networks on images against PyTorch's own layers: `data/images/make.py` made the numbers.
#![cfg(feature = "torch")]

use serde::Deserialize;
use simfluence_core::Optimizer;
use simfluence_models::images::{Image, ImageSize};
use simfluence_models::{
    Architecture, EvaluationSet, ImageArchitecture, ImageKind, ImageSettings, Model, Network,
    TokenizedExample, Updater, Weights, per_example_gradients,
};
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Reference {
    case: Case,
    images: Vec<Vec<u8>>,
    labels: Vec<u32>,
    parameters: Vec<f64>,
    logits: Vec<f64>,
    losses: Vec<f64>,
    gradient: Vec<f64>,
    stepped: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    rows: u32,
    columns: u32,
    channels: Vec<u32>,
    kernel: u32,
    hidden: Vec<u32>,
    classes: u32,
    mean: f64,
    std: f64,
}

fn references() -> Vec<Reference> {
    serde_json::from_str(include_str!("data/images/networks.json")).unwrap()
}

impl Reference {
    fn size(&self) -> ImageSize {
        ImageSize {
            rows: self.case.rows,
            columns: self.case.columns,
        }
    }

    fn weights(&self) -> Weights {
        let settings = ImageSettings {
            channels: self.case.channels.clone(),
            kernel: self.case.kernel,
            hidden: self.case.hidden.clone(),
            mean: self.case.mean,
            standard_deviation: self.case.std,
        };
        let images = ImageArchitecture::new(settings, self.size(), self.case.classes).unwrap();
        let architecture = Architecture::of_images(images);
        let random = Weights::random(&architecture, 0);
        let mut flat = vec![0.0; random.flat().len()];
        let mut values = self.parameters.iter();
        for spec in random.layout().specs() {
            for slot in &mut flat[spec.offset..spec.offset + spec.len()] {
                *slot = *values.next().unwrap() as f32;
            }
        }
        assert!(values.next().is_none());
        Weights::from_flat(&architecture, flat).unwrap()
    }

    fn examples(&self) -> Vec<TokenizedExample> {
        let image = |(pixels, &class): (&Vec<u8>, &u32)| Image {
            size: self.size(),
            pixels: pixels.clone(),
            class,
        };
        let images = self.images.iter().zip(&self.labels).map(image);
        images.map(|image| image.tokens()).collect()
    }
}

/// The largest difference of a tensor, or of a buffer without its gaps, from what is expected.
fn distance(got: &Tensor, expected: &[f64]) -> f64 {
    let got = got.detach().to_kind(Kind::Double).contiguous().view(-1);
    assert_eq!(got.numel(), expected.len());
    (got - Tensor::from_slice(expected))
        .abs()
        .max()
        .double_value(&[])
}

fn without_gaps(model: &Network, flat: &Tensor) -> Tensor {
    let specs = model.layout().specs().iter();
    let parts: Vec<Tensor> = specs
        .map(|spec| flat.narrow(0, spec.offset as i64, spec.len() as i64))
        .collect();
    Tensor::cat(&parts, 0)
}

#[test]
fn ref_logits_losses_and_gradients_are_those_of_pytorch() {
    assert_eq!(references().len(), 3);
    for reference in references() {
        for (kind, tolerance) in [(Kind::Double, 1e-13), (Kind::Float, 1e-5)] {
            let model = Network::with_kind(&reference.weights(), Device::Cpu, kind);
            let examples = reference.examples();
            let batch = model.batch(&examples.iter().collect::<Vec<_>>());
            let outputs = model.outputs(&batch, None);
            assert!(distance(&outputs.predictions, &reference.logits) < tolerance);
            let losses = outputs.losses();
            assert!(distance(&losses, &reference.losses) < tolerance);
            let mean = losses.mean(kind);
            let backward = Tensor::run_backward(&[mean], model.parameters(), false, false);
            let backward: Vec<Tensor> = backward.iter().map(|g| g.reshape([-1])).collect();
            assert!(distance(&Tensor::cat(&backward, 0), &reference.gradient) < tolerance);
            let rows = per_example_gradients(&model, &examples).unwrap();
            let mean = without_gaps(&model, &rows.mean_dim(0, false, kind));
            assert!(distance(&mean, &reference.gradient) < tolerance);
        }
    }
}

#[test]
fn ref_one_step_of_adamw_is_that_of_pytorch() {
    for reference in references() {
        for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-6)] {
            let model = Network::with_kind(&reference.weights(), Device::Cpu, kind);
            let examples = reference.examples();
            let batch = model.batch(&examples.iter().collect::<Vec<_>>());
            let optimizer = Optimizer::Adamw {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.1,
            };
            let loss = model.outputs(&batch, None).losses().mean(kind);
            Updater::new(&model, optimizer).update(&model, &loss, None, 1e-2);
            let stepped = without_gaps(&model, model.flat());
            let got = distance(&stepped, &reference.stepped);
            assert!(got < tolerance, "{kind:?}: {got}");
        }
    }
}

#[test]
fn ref_evaluation_gives_the_losses_of_pytorch_in_the_order_of_the_examples() {
    for reference in references() {
        let model = Network::new(&reference.weights(), Device::Cpu);
        for batch_size in [1, 2, 64] {
            let set = EvaluationSet::new(reference.examples(), batch_size);
            let got = set.evaluate(&model).unwrap();
            for (k, expected) in reference.losses.iter().enumerate() {
                assert!((f64::from(got.losses[k]) - expected).abs() < 1e-5);
                let residual = 1.0 - (-expected).exp();
                assert!((f64::from(got.residuals[k]) - residual).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn weights_come_back_bit_identical_with_what_is_trained() {
    for reference in references() {
        let weights = reference.weights();
        assert_eq!(
            weights.architecture().images().unwrap().settings().kind(),
            match reference.case.channels.is_empty() {
                true => ImageKind::Mlp,
                false => ImageKind::Cnn,
            }
        );
        let trainable = toml::from_str("method = \"last-layers\"\nlayers = 1").unwrap();
        let part = weights.with_trainable(trainable).unwrap();
        for weights in [weights, part] {
            let bytes = weights.to_artifact().to_bytes().unwrap();
            let artifact = simfluence_core::Artifact::from_bytes(&bytes).unwrap();
            assert_eq!(Weights::from_artifact(&artifact).unwrap(), weights);
            let model = Network::new(&weights, Device::Cpu);
            assert_eq!(model.weights().unwrap(), weights);
        }
    }
}
