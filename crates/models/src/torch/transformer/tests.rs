//! The models made from settings, against PyTorch's own layers.

use super::*;
use crate::settings::{ModelSettings, TokenizedExample};
use crate::torch::Network;
use crate::torch::batch::EvaluationSet;
use crate::trainable::{LoraSettings, Trainable};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    tied_output: bool,
    losses: Vec<f64>,
    gradient: Vec<f64>,
}

fn weights(tied_output: bool) -> Weights {
    let model = ModelSettings {
        layers: 2,
        heads: 2,
        width: 4,
        context: 8,
        tied_output,
        dropout: 0.0,
    };
    let architecture = Architecture::new(model, 7).unwrap();
    let layout = Layout::new(&architecture);
    let mut flat = vec![0.0; layout.flat_len()];
    let mut position = 0;
    for spec in layout.specs() {
        for slot in &mut flat[spec.offset..spec.offset + spec.len()] {
            *slot = (0.4 * (0.9 * f64::from(position) + 0.1).sin()) as f32;
            position += 1;
        }
    }
    Weights::from_flat(&architecture, flat).unwrap()
}

fn example(tokens: &[u32], answer_start: usize) -> TokenizedExample {
    TokenizedExample {
        tokens: tokens.to_vec(),
        answer_start,
        ..TokenizedExample::default()
    }
}

fn examples() -> Vec<TokenizedExample> {
    vec![
        example(&[1, 5, 2, 0, 6], 3),
        example(&[3, 3, 4, 1, 2, 6, 0, 5, 1], 8),
        example(&[6, 0, 2], 1),
    ]
}

fn check_against(case: &Case, kind: Kind, tolerance: f64) {
    let model = Transformer::with_kind(&weights(case.tied_output), tch::Device::Cpu, kind);
    let examples = examples();
    let members: Vec<&TokenizedExample> = examples.iter().collect();
    let losses = model.outputs(&model.batch(&members), None).losses();
    for (k, expected) in case.losses.iter().enumerate() {
        let got = losses.double_value(&[k as i64]);
        assert!((got - expected).abs() < tolerance, "{got} {expected}");
    }
    let gradients = Tensor::run_backward(&[losses.sum(kind)], model.parameters(), false, false);
    let mut expected = case.gradient.iter();
    for (spec, gradient) in model.layout().specs().iter().zip(gradients) {
        for k in 0..spec.len() {
            let got = gradient.contiguous().view(-1).double_value(&[k as i64]);
            let want = expected.next().unwrap();
            assert!(
                (got - want).abs() < tolerance,
                "{} {k}: {got} {want}",
                spec.name
            );
        }
    }
    assert!(expected.next().is_none());
}

#[test]
fn an_adapter_reads_with_dropout_what_the_matrix_beside_it_reads_without() {
    let lora = LoraSettings {
        rank: 2,
        dropout: 0.5,
        ..LoraSettings::default()
    };
    let adapted = weights(false).with_trainable(Trainable::Lora(lora));
    let architecture = adapted.unwrap().architecture().clone();
    // `B` is not 0 as at the start of a run.
    let values = 0..Layout::new(&architecture).flat_len();
    let values = values.map(|k| (0.4 * (0.9 * k as f64 + 0.1).sin()) as f32);
    let weights = Weights::from_flat(&architecture, values.collect()).unwrap();
    let model = Transformer::with_kind(&weights, tch::Device::Cpu, Kind::Double);
    let matrices = model.places.stack.layers[1].matrices();
    let (linear, [a, b]) = matrices
        .into_iter()
        .find_map(|linear| match linear.adapter {
            Some(Adapter::LowRank(places)) => Some((linear, places)),
            _ => None,
        })
        .unwrap();
    let input = Tensor::arange(12, (Kind::Double, tch::Device::Cpu)).sin();
    let input = input.view([3, 4]);
    let rates = model.architecture().decoder().dropout;
    let mut dropout = Dropout::of_step(rates, 1, 2);
    let mask = drop_out(input.ones_like(), &mut dropout.clone().as_mut(), |rates| {
        rates.adapter
    });
    assert!(mask.min().double_value(&[]) == 0.0 && mask.max().double_value(&[]) == 2.0);
    let mut extras = Extras {
        dropout: dropout.as_mut(),
        ..Extras::default()
    };
    let got = model.linear(&input, linear, 1, &mut extras);
    let value = |index| model.held.value(index);
    let own = input.matmul(&value(linear.weight).tr());
    let own = linear
        .bias
        .map_or_else(|| own.shallow_clone(), |bias| &own + value(bias));
    let beside = |read: &Tensor| read.matmul(&value(a).tr()).matmul(&value(b).tr()) * (16.0 / 2.0);
    let apart = |got: Tensor, read: &Tensor| {
        let expected = &own + beside(read);
        (got - expected).abs().max().double_value(&[])
    };
    assert!(apart(got, &(&input * mask)) < 1e-14);
    let plain = model.linear(&input, linear, 1, &mut Extras::default());
    assert!(apart(plain, &input) < 1e-14);
}

/// Numbers by `ref_transformer.py` (PyTorch 2.13, `nn.TransformerEncoderLayer`).
#[test]
fn ref_losses_and_gradients_are_those_of_pytorch() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../ref_transformer.json")).unwrap();
    assert_eq!(cases.len(), 2);
    for case in &cases {
        check_against(case, Kind::Double, 1e-12);
        check_against(case, Kind::Float, 2e-5);
    }
}

#[test]
fn ref_evaluation_gives_the_losses_of_pytorch_in_the_order_of_the_examples() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../ref_transformer.json")).unwrap();
    for case in &cases {
        let model = Network::new(&weights(case.tied_output), tch::Device::Cpu);
        for batch_size in [1, 2, 64] {
            let set = EvaluationSet::new(examples(), batch_size);
            let got = set.evaluate(&model).unwrap();
            for (got, expected) in got.losses.iter().zip(&case.losses) {
                assert!((f64::from(*got) - expected).abs() < 1e-5);
            }
            // One answer token: 1 − p is 1 − e^(−loss).
            assert!((got.residuals[1] - (1.0 - (-got.losses[1]).exp())).abs() < 1e-6);
        }
    }
}

/// Rounded to 8 significant bits, ties to even.
fn rounded(value: f64) -> f64 {
    let unit = 2_f64.powi(value.abs().log2().floor() as i32 - 7);
    (value / unit).round_ties_even() * unit
}

#[test]
fn products_in_bfloat16_are_those_of_rounded_factors_rounded() {
    let mut model = Transformer::with_kind(&weights(true), tch::Device::Cpu, Kind::Float);
    model.set_precision(Precision::Bf16);
    let value = |i: usize| 0.3 + (i as f64 * 0.7).sin();
    let (input, weight): (Vec<f64>, Vec<f64>) =
        ((0..6).map(value).collect(), (6..12).map(value).collect());
    let tensor = |values: &[f64], rows: i64| {
        Tensor::from_slice(values)
            .to_kind(Kind::Float)
            .view([rows, -1])
    };
    let got = model.product(&tensor(&input, 2), &tensor(&weight, 2), None);
    assert_eq!(got.kind(), Kind::Float);
    for (row, left) in input.chunks(3).enumerate() {
        for (column, right) in weight.chunks(3).enumerate() {
            let factors = left.iter().zip(right);
            let exact: f64 = factors.map(|(x, w)| rounded(*x) * rounded(*w)).sum();
            let got = got.double_value(&[row as i64, column as i64]);
            // One unit of the last place, as 32-bit sums may fall on the other side of a tie.
            assert!((got - exact).abs() <= exact.abs() / 128.0, "{got} {exact}");
            assert_eq!(rounded(got), got);
        }
    }
}
