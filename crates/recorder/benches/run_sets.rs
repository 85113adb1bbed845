//! What recording costs a training loop, and how fast run sets are read from a warm cache.
//!
//! - `record/2000_steps_1000_tests`: 2 000 steps with 1 000 test losses each, the synced segments
//!   and `finish` included; divide the time by 2 000 for the cost of a step.
//! - `read/24_runs_500_steps_1000_tests`: throughput counts the decoded losses (4 bytes each).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use simfluence_core::{Example, Examples, NoProgress, RunInfo, RunStatus, Step};
use simfluence_recorder::{Losses, Recorder, RecorderOptions, RunSet, StepRecord};
use std::hint::black_box;
use std::path::Path;

const TESTS: usize = 1000;
const TRAIN: u32 = 256;

fn examples(prefix: &str, count: usize) -> Examples {
    let all = (0..count).map(|i| Example::new(format!("{prefix}{i}"), "numbers"));
    Examples::new(all.collect()).expect("keys are unique")
}

/// Losses that fall like those of a real run: every test example its own rate, plus noise.
fn records(steps: usize, seed: u64) -> Vec<StepRecord> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rates: Vec<f32> = (0..TESTS).map(|_| rng.random_range(0.001..0.02)).collect();
    (0..steps)
        .map(|step| {
            let batch = (0..8).map(|_| rng.random_range(0..TRAIN)).collect();
            let losses = rates
                .iter()
                .map(|rate| 4.0 * (-rate * step as f32).exp() + rng.random_range(0.0..0.1))
                .collect();
            StepRecord {
                batch_loss: Some(vec![1.5; 8]),
                losses: Some(Losses::All(losses)),
                ..StepRecord::new(Step::new(batch, Some(1e-3)))
            }
        })
        .collect()
}

fn new_set(folder: &Path) -> RunSet {
    let train = examples("train", TRAIN as usize);
    RunSet::create(folder, &train, &examples("test", TESTS)).expect("the folder is empty")
}

fn record_run(set: &RunSet, id: &str, records: &[StepRecord]) {
    let info = RunInfo::new(RunStatus::Recording);
    let mut recorder = Recorder::create(set, id, info, RecorderOptions::default()).unwrap();
    recorder.log_initial(&[4.0; TESTS]).unwrap();
    for record in records {
        recorder.log_step(black_box(record)).unwrap();
    }
    recorder.finish().unwrap();
}

fn record(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let records = records(2000, 1);
    let mut count = 0;
    let mut group = c.benchmark_group("record");
    group.sample_size(10);
    group.throughput(Throughput::Elements(records.len() as u64));
    group.bench_function("2000_steps_1000_tests", |b| {
        b.iter(|| {
            count += 1;
            record_run(&set, &format!("run-{count}"), &records);
        });
    });
    group.finish();
}

fn read(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let ids: Vec<String> = (0..24).map(|run| format!("run-{run:02}")).collect();
    for (seed, id) in ids.iter().enumerate() {
        record_run(&set, id, &records(500, seed as u64));
    }
    let mut group = c.benchmark_group("read");
    group.sample_size(20);
    group.throughput(Throughput::Bytes((ids.len() * 501 * TESTS * 4) as u64));
    group.bench_function("24_runs_500_steps_1000_tests", |b| {
        b.iter(|| black_box(set.read_runs(&ids, &NoProgress).unwrap()));
    });
    group.finish();
}

criterion_group!(benches, record, read);
criterion_main!(benches);
