//! A small run set whose losses are a known function of step and test example.
#![allow(dead_code, reason = "each test file uses its part")]

use simfluence_core::{Example, Examples, RunInfo, RunStatus, Step};
use simfluence_recorder::{Losses, Recorder, RecorderOptions, RunSet, StepRecord};
use std::path::Path;

pub const TRAIN: usize = 10;
pub const TESTS: usize = 3;

pub fn examples(prefix: &str, count: usize) -> Examples {
    let all = (0..count).map(|i| Example::new(format!("{prefix}{i}"), "numbers"));
    Examples::new(all.collect()).unwrap()
}

pub fn new_set(folder: &Path) -> RunSet {
    RunSet::create_or_open(folder, &examples("train", TRAIN), &examples("test", TESTS)).unwrap()
}

/// The loss of a test example after a step.
pub fn loss(step: u32, test: usize) -> f32 {
    3.0 / (1.0 + step as f32 * 0.37) + test as f32
}

pub fn losses(step: u32) -> Vec<f32> {
    (0..TESTS).map(|test| loss(step, test)).collect()
}

/// What is recorded at a step.
pub fn record(step: u32) -> StepRecord {
    let batch = vec![step % TRAIN as u32, (step * 7) % TRAIN as u32];
    StepRecord {
        number: Some(step),
        batch_loss: Some(vec![step as f32, 0.5]),
        losses: Some(Losses::All(losses(step))),
        ..StepRecord::new(Step::new(batch, Some(1e-3)))
    }
}

/// Segments of four rows.
pub fn small_segments() -> RecorderOptions {
    RecorderOptions {
        segment_rows: 4,
        ..RecorderOptions::default()
    }
}

pub fn recorder(set: &RunSet, id: &str) -> Recorder {
    let info = RunInfo::new(RunStatus::Recording);
    Recorder::create(set, id, info, small_segments()).unwrap()
}

/// Records and finishes a run of some steps.
pub fn record_run(set: &RunSet, id: &str, steps: u32) {
    let mut recorder = recorder(set, id);
    recorder.log_initial(&losses(0)).unwrap();
    for step in 1..=steps {
        recorder.log_step(&record(step)).unwrap();
    }
    recorder.finish().unwrap();
}

/// Fails unless a run holds exactly its first steps, bit for bit.
pub fn assert_recorded(set: &RunSet, id: &str, steps: u32) {
    let run = set.read_run(id).unwrap();
    assert_eq!(run.curriculum.len(), steps as usize);
    for (index, step) in run.curriculum.steps().iter().enumerate() {
        assert_eq!(*step, record(index as u32 + 1).step);
        let batch_loss = record(index as u32 + 1).batch_loss;
        assert_eq!(run.batch_losses[index], batch_loss);
    }
    let expected: Vec<u32> = (0..=steps).collect();
    assert_eq!(run.trajectory.steps(), expected);
    for step in expected {
        assert_eq!(run.trajectory.at_step(step), Some(&losses(step)[..]));
    }
}
