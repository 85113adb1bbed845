//! Milliseconds per fine-tuning step, test losses included, of the models of the demo tasks, and
//! seconds for the inner products of all their gradients.
//!
//! `cargo run --release -p simfluence-models --features torch --example step_time -- [parallel runs]`

use simfluence_core::{Curriculum, NoProgress, Step};
use simfluence_models::{
    Architecture, Device, EvaluationSet, GradientSettings, Metric, ModelSettings, Network, Silent,
    TokenizedExample, TrainingSettings, Wanted, Weights, fine_tune, inner_products,
};
use std::time::Instant;

struct Shape {
    name: &'static str,
    model: ModelSettings,
    train: Vec<TokenizedExample>,
    test: Vec<TokenizedExample>,
    batch: u32,
}

/// Examples of `length ± spread` tokens that begin alike for `shared` tokens.
fn examples(
    count: u32,
    length: u32,
    spread: u32,
    shared: u32,
    answer: u32,
) -> Vec<TokenizedExample> {
    let tokens = |i: u32| {
        let length = length + (i * 7) % (2 * spread + 1) - spread;
        let token = |p: u32| {
            if p < shared {
                p % 60
            } else {
                ((i + 1).wrapping_mul(2_654_435_761 ^ (p * 40_503)) >> 7) % 60
            }
        };
        (0..length).map(token).collect::<Vec<u32>>()
    };
    let example = |tokens: Vec<u32>| TokenizedExample {
        answer_start: tokens.len() - answer as usize,
        tokens,
        ..TokenizedExample::default()
    };
    (0..count).map(|i| example(tokens(i))).collect()
}

fn shapes() -> Vec<Shape> {
    let model = |layers, width| ModelSettings {
        layers,
        width,
        ..ModelSettings::default()
    };
    let number_train = examples(1024, 90, 6, 0, 4);
    let number_test = examples(64, 55, 4, 36, 2);
    let numbers = |name, width| Shape {
        name,
        model: model(3, width),
        train: number_train.clone(),
        test: number_test.clone(),
        batch: 8,
    };
    vec![
        numbers("numbers, 3 layers, width 128, batch 8", 128),
        numbers("numbers, 3 layers, width 96, batch 8", 96),
        Shape {
            name: "AG News, 4 layers, width 128, batch 4",
            model: model(4, 128),
            train: examples(200, 70, 20, 0, 8),
            test: examples(100, 70, 20, 0, 8),
            batch: 4,
        },
    ]
}

/// Processor time of this thread in milliseconds (Linux): unlike the clock on the wall it does not
/// count what other programs take.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.unwrap_or(f64::NAN) / 1e6
}

/// Milliseconds per step on the wall and of the processor.
fn milliseconds_per_step(shape: &Shape, eval_every: u32) -> (f64, f64) {
    let architecture = Architecture::new(shape.model, 60).expect("a valid model");
    let base = Weights::random(&architecture, 1);
    let count = shape.train.len() as u32;
    let batch = |t: u32| {
        (0..shape.batch)
            .map(|k| (t * 37 + k * 11) % count)
            .collect()
    };
    let steps = (0..48).map(|t| Step::new(batch(t), None)).collect();
    let curriculum = Curriculum::new(steps, shape.train.len()).expect("a valid curriculum");
    let settings = TrainingSettings {
        eval_every,
        ..TrainingSettings::default()
    };
    let test = EvaluationSet::new(shape.test.clone(), settings.eval_batch_size);
    let (start, processor) = (Instant::now(), processor_time());
    fine_tune(
        &base,
        &shape.train,
        &test,
        &curriculum,
        &settings,
        1,
        Device::Cpu,
        &mut Silent,
        None,
    )
    .expect("training works");
    let steps = curriculum.len() as f64;
    (
        start.elapsed().as_secs_f64() * 1e3 / steps,
        (processor_time() - processor) / steps,
    )
}

fn seconds_for_products(shape: &Shape) -> f64 {
    let architecture = Architecture::new(shape.model, 60).expect("a valid model");
    let weights = Weights::random(&architecture, 1);
    let (settings, start) = (GradientSettings::default(), Instant::now());
    let model = Network::open(&weights, Device::Cpu).expect("the processor");
    inner_products(
        &model,
        &shape.train,
        &shape.test,
        &Metric::Identity,
        Wanted::default(),
        &settings,
        &NoProgress,
    )
    .expect("gradients work");
    start.elapsed().as_secs_f64()
}

fn main() {
    let parallel: usize = std::env::args()
        .nth(1)
        .map_or(1, |a| a.parse().expect("a number"));
    for shape in shapes() {
        for eval_every in [1, 1000] {
            let times: Vec<(f64, f64)> = std::thread::scope(|scope| {
                let run = || milliseconds_per_step(&shape, eval_every);
                let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(run)).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().expect("no panic"))
                    .collect()
            });
            let what = if eval_every == 1 {
                "with evaluation"
            } else {
                "training alone"
            };
            println!(
                "{}: {what}: {times:.1?} ms/step (wall, processor)",
                shape.name
            );
        }
        println!(
            "{}: {} × {} inner products of gradients: {:.1} s",
            shape.name,
            shape.train.len(),
            shape.test.len(),
            seconds_for_products(&shape)
        );
    }
}
