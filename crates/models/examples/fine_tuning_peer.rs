//! Our side of `benches/peers/fine_tuning`: fine-tunes a Hugging Face folder on given tokens, and
//! prints the seconds of each step and of evaluating the test losses, the losses, and the memory.
//!
//! `cargo run --release -p simfluence-models --features torch --example fine_tuning_peer -- job.json`

use serde::Deserialize;
use simfluence_core::{BoxError, Curriculum, Optimizer, Step};
use simfluence_models::{
    Device, Evaluation, EvaluationSet, Network, StepRecord, TokenizedExample, TrainingObserver,
    TrainingSettings, TrainingState, fine_tune, hugging_face,
};
use std::path::PathBuf;
use std::time::Instant;

/// What is to be done.
#[derive(Deserialize)]
struct Job {
    model: PathBuf,
    adapter: Option<PathBuf>,
    train: Vec<TokenizedExample>,
    test: Vec<TokenizedExample>,
    batches: Vec<Vec<u32>>,
    learning_rate: f64,
    threads: u32,
    /// Batch sizes of evaluations; steps go with the first.
    evaluation_batches: Vec<u32>,
    evaluations: usize,
}

/// Notes when each step was done.
struct Clock {
    last: Instant,
    steps: Vec<f64>,
}

impl TrainingObserver for Clock {
    fn initial(&mut self, _: &Evaluation) -> Result<(), BoxError> {
        self.last = Instant::now();
        Ok(())
    }

    fn step(&mut self, record: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
        // The last step is followed by an evaluation.
        if record.evaluation.is_none() {
            self.steps.push(self.last.elapsed().as_secs_f64());
        }
        self.last = Instant::now();
        Ok(())
    }
}

/// A field of this process's status in MiB (Linux).
fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == field).then(|| value.trim().trim_end_matches(" kB").parse::<f64>().ok())?
    });
    value.unwrap_or(f64::NAN) / 1024.0
}

fn main() -> Result<(), BoxError> {
    let path = std::env::args().nth(1).ok_or("name the job's file")?;
    let job: Job = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut base = hugging_face::load(&job.model, None)?;
    if let Some(adapter) = &job.adapter {
        base = hugging_face::load_adapter(&base, adapter)?;
    }
    let settings = TrainingSettings {
        optimizer: Optimizer::default(),
        learning_rate: job.learning_rate,
        eval_every: u32::MAX,
        eval_batch_size: *job.evaluation_batches.first().ok_or("no batch size")?,
        threads: job.threads,
        ..TrainingSettings::default()
    };
    let set = |size: u32| EvaluationSet::new(job.test.clone(), size);
    let test = set(settings.eval_batch_size);
    let steps = job.batches.iter().map(|b| Step::new(b.clone(), None));
    let curriculum = Curriculum::new(steps.collect(), job.train.len())?;
    let start = status("VmRSS");
    let mut clock = Clock {
        last: Instant::now(),
        steps: Vec::new(),
    };
    let trained = fine_tune(
        &base,
        &job.train,
        &test,
        &curriculum,
        &settings,
        0,
        Device::Cpu,
        &mut clock,
        None,
    )?;
    let peak = status("VmHWM");
    let model = Network::open(&trained, Device::Cpu)?;
    let mut seconds = Vec::new();
    let mut losses = Vec::new();
    for &size in &job.evaluation_batches {
        let test = set(size);
        let mut of_size = Vec::new();
        for _ in 0..job.evaluations {
            let begin = Instant::now();
            losses = test
                .evaluate(&model)
                .map_err(|(i, e)| format!("{i}: {e}"))?
                .losses;
            of_size.push(begin.elapsed().as_secs_f64());
        }
        seconds.push(of_size);
    }
    println!(
        "{}",
        serde_json::json!({
            "step_seconds": clock.steps,
            "evaluation_seconds": seconds,
            "losses": losses,
            "peak_mib": peak,
            "start_mib": start,
        })
    );
    Ok(())
}
