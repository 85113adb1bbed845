//! Logs as other people's trainers write them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A small generator, so that the logs need no crate.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % end
    }
}

/// Training examples, test examples, steps and runs of the logs.
pub const TRAIN: usize = 12;
pub const TEST: usize = 3;
pub const STEPS: usize = 20;
pub const RUNS: usize = 8;

/// Writes logs in the layout of GPTDynamics: batches of two; every even training example lowers
/// the losses, every odd one raises them a little.
pub fn write_gptdynamics(folder: &Path) -> PathBuf {
    let root = folder.join("gptdynamics");
    for run in 0..RUNS {
        let mut random = Random::new(run as u64 + 1);
        let mut batches = String::new();
        let mut losses = vec![[3.0, 2.5, 2.0]];
        for step in 0..STEPS {
            let batch = [random.below(TRAIN), random.below(TRAIN)];
            writeln!(batches, "{{\"step\": {step}, \"samples_id\": {batch:?}}}").unwrap();
            let factor: f64 = batch
                .iter()
                .map(|id| if id % 2 == 0 { 0.45 } else { 0.51 })
                .sum();
            losses.push(losses.last().unwrap().map(|loss: f64| loss * factor));
        }
        let of_run = root.join(format!("run{run}"));
        std::fs::create_dir_all(&of_run).unwrap();
        std::fs::write(of_run.join("train_samples_id.json"), batches).unwrap();
        let mut trajectories = String::new();
        for test in 0..TEST {
            let points: Vec<String> = losses
                .iter()
                .enumerate()
                .map(|(step, row)| format!("{{\"step\": {step}, \"loss\": {}}}", row[test]))
                .collect();
            let points = points.join(", ");
            writeln!(
                trajectories,
                "{{\"id\": {test}, \"loss_trajectory\": [{points}]}}"
            )
            .unwrap();
        }
        std::fs::write(of_run.join("all_loss_trajectory.out"), trajectories).unwrap();
    }
    root
}
