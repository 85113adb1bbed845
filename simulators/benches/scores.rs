//! Inner products of gradients on a small transformer: with formed gradients (long sequences
//! against the width), without (short ones), with queries of low rank, with projections; and the
//! factors of EK-FAC.

use criterion::{Criterion, criterion_group, criterion_main};
use simfluence_core::NoProgress;
use simfluence_models::{
    Approximation, Architecture, Device, FactorKind, GradientSettings, Labels, Metric,
    ModelSettings, Network, TokenizedExample, Wanted, Weights, fit_factors, inner_products,
};
use std::hint::black_box;

const TRAIN: usize = 64;
const TEST: usize = 32;
const VOCABULARY: u32 = 64;

fn model(width: u32) -> Network {
    let settings = ModelSettings {
        layers: 2,
        heads: 4,
        width,
        context: 64,
        ..ModelSettings::default()
    };
    let architecture = Architecture::new(settings, VOCABULARY).expect("valid settings");
    Network::open(&Weights::random(&architecture, 0), Device::Cpu).expect("the processor")
}

/// Sequences of so many tokens, half of them the answer.
fn examples(count: usize, length: usize) -> Vec<TokenizedExample> {
    let example = |i: usize| TokenizedExample {
        tokens: (0..length)
            .map(|p| ((i * 31 + p * p * 7 + p) % VOCABULARY as usize) as u32)
            .collect(),
        answer_start: length / 2,
        ..TokenizedExample::default()
    };
    (0..count).map(example).collect()
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inner_products");
    group.sample_size(10);
    let low_rank = Approximation::LowRank { rank: 4, seed: 0 };
    let projection = Approximation::Projection {
        dimensions: 4096,
        seed: 0,
    };
    for (name, width, length, approximation) in [
        ("formed_width64_length48", 64, 48, Approximation::Exact),
        ("direct_width256_length6", 256, 6, Approximation::Exact),
        ("low_rank4_width64_length48", 64, 48, low_rank),
        ("projection4096_width64_length48", 64, 48, projection),
    ] {
        let model = model(width);
        let (train, test) = (examples(TRAIN, length), examples(TEST, length));
        let settings = GradientSettings {
            approximation,
            ..GradientSettings::default()
        };
        let wanted = Wanted::default();
        group.bench_function(format!("{name}_n{TRAIN}_m{TEST}"), |b| {
            b.iter(|| {
                let (train, metric) = (black_box(&train), &Metric::Identity);
                inner_products(&model, train, &test, metric, wanted, &settings, &NoProgress)
                    .expect("the model reads them")
            });
        });
    }
    group.finish();
}

fn factors(criterion: &mut Criterion) {
    let model = model(64);
    let train = examples(TRAIN, 48);
    let weights = vec![1.0 / TRAIN as f64; TRAIN];
    let settings = GradientSettings::default();
    let labels = Labels::Sampled { seed: 0, draws: 1 };
    let mut group = criterion.benchmark_group("factors");
    group.sample_size(10);
    group.bench_function(format!("ekfac_width64_length48_n{TRAIN}"), |b| {
        b.iter(|| {
            let (kind, train) = (FactorKind::Ekfac, black_box(&train));
            fit_factors(
                &model,
                train,
                &weights,
                kind,
                labels,
                &settings,
                &NoProgress,
            )
            .expect("a fit")
        });
    });
    group.finish();
}

criterion_group!(benches, products, factors);
criterion_main!(benches);
