//! Recorded runs trained again step by step, for what checkpoints do not hold: the optimiser's
//! preconditioner, and the change of every test loss along the way.

use crate::kept_models::weights_in;
use crate::runs::OpenRuns;
use crate::train::{checkpoints, fine_tuning};
use anyhow::{Context, Result, bail};
use simfluence_core::{BoxError, Progress, Run};
use simfluence_models::{
    Device, Evaluation, GradientSettings, Metric, Model, Network, StepRecord, TokenizedExample,
    TrainingObserver, TrainingState, Weights, fine_tune,
};
use simfluence_simulators::tracin::{Replay, step_decreases};

/// The largest difference between a replayed and a recorded parameter, relative to the largest
/// parameter, that rounding explains.
const ROUNDING: f32 = 1e-2;

/// Preconditioners of the reference run at its checkpoints.
#[derive(Default)]
pub struct Preconditioners {
    found: Vec<(u32, Metric)>,
}

impl Preconditioners {
    /// That after a step.
    pub fn take(&mut self, step: u32) -> Option<Metric> {
        let place = self.found.iter().position(|(own, _)| *own == step)?;
        Some(self.found.swap_remove(place).1)
    }
}

/// Replays a run for the preconditioner of its optimiser at each checkpoint.
pub fn preconditioners(
    open: &OpenRuns,
    run: &Run,
    device: Device,
    progress: &dyn Progress,
) -> Result<Preconditioners> {
    let mut wanted = crate::train::checkpoint_steps(open, run)?;
    wanted.sort_unstable();
    let mut observer = Collect {
        wanted,
        found: Vec::new(),
        progress,
    };
    progress.begin("replayed steps", run.curriculum.len() as u64);
    let ended = replay(open, run, device, &mut observer)?;
    progress.end();
    check_end(open, run, &ended)?;
    if observer.found.is_empty() {
        bail!(
            "run {}: its optimiser has no diagonal preconditioner; only Adam, AdamW and RMSProp have one",
            run.id
        );
    }
    Ok(Preconditioners {
        found: observer.found,
    })
}

struct Collect<'a> {
    wanted: Vec<u32>,
    found: Vec<(u32, Metric)>,
    progress: &'a dyn Progress,
}

impl TrainingObserver for Collect<'_> {
    fn initial(&mut self, _: &Evaluation) -> Result<(), BoxError> {
        Ok(())
    }

    fn step(&mut self, record: &StepRecord<'_>, state: &TrainingState<'_>) -> Result<(), BoxError> {
        self.progress.advance(1);
        if self.wanted.binary_search(&record.step).is_ok() {
            let found = state.preconditioner();
            self.found
                .extend(found.map(|diagonal| (record.step, Metric::Diagonal(diagonal))));
        }
        Ok(())
    }
}

/// The first-order decreases of every test loss by each step of a run: along its gradients, and
/// along the steps really made.
pub fn ideal(
    open: &OpenRuns,
    run: &Run,
    device: Device,
    threads: u32,
    progress: &dyn Progress,
) -> Result<[Replay; 2]> {
    let fine_tuning = fine_tuning(&open.set, run, &device.to_string())?;
    let settings = GradientSettings {
        threads,
        ..GradientSettings::default()
    };
    let mut observer = Decreases {
        before: Network::open(&fine_tuning.base, device)?,
        train: &fine_tuning.train,
        test: fine_tuning.test.examples(),
        settings,
        plain: Vec::new(),
        preconditioned: Vec::new(),
        progress,
    };
    replay(open, run, device, &mut observer)?;
    let replay = |decreases| Replay {
        run: run.id.clone(),
        decreases,
    };
    Ok([replay(observer.plain), replay(observer.preconditioned)])
}

struct Decreases<'a> {
    /// The model before the step.
    before: Network,
    train: &'a [TokenizedExample],
    test: &'a [TokenizedExample],
    settings: GradientSettings,
    plain: Vec<f32>,
    preconditioned: Vec<f32>,
    progress: &'a dyn Progress,
}

impl TrainingObserver for Decreases<'_> {
    fn initial(&mut self, _: &Evaluation) -> Result<(), BoxError> {
        Ok(())
    }

    fn step(&mut self, record: &StepRecord<'_>, state: &TrainingState<'_>) -> Result<(), BoxError> {
        let update = record.update;
        let batch: Vec<&TokenizedExample> = (update.batch.iter())
            .map(|&id| &self.train[id as usize])
            .collect();
        let shares: Vec<f32> = update.exposures().map(|(_, share)| share as f32).collect();
        let after = state.model().flat();
        let decreases = step_decreases(
            &self.before,
            after,
            &batch,
            &shares,
            f64::from(record.learning_rate),
            self.test,
            &self.settings,
        )?;
        self.plain.extend(decreases.plain);
        self.preconditioned.extend(decreases.preconditioned);
        self.before.flat().shallow_clone().copy_(after);
        self.progress.advance(1);
        Ok(())
    }
}

fn replay(
    open: &OpenRuns,
    run: &Run,
    device: Device,
    observer: &mut dyn TrainingObserver,
) -> Result<Weights> {
    let mut fine_tuning = fine_tuning(&open.set, run, &device.to_string())?;
    // Measuring does not change what is learned.
    fine_tuning.settings.eval_every = u32::MAX;
    fine_tuning.settings.checkpoint_every = None;
    let seed = run.info.seed;
    let seed = seed.with_context(|| format!("run {} has no recorded seed", run.id))?;
    Ok(fine_tune(
        &fine_tuning.base,
        &fine_tuning.train,
        &fine_tuning.test,
        &run.curriculum,
        &fine_tuning.settings,
        seed,
        device,
        observer,
        None,
    )?)
}

/// Fails if a replay did not end where the run did.
fn check_end(open: &OpenRuns, run: &Run, ended: &Weights) -> Result<()> {
    let files = checkpoints(open, run)?;
    let (_, last) = files.last().context("the run has checkpoints")?;
    let recorded = weights_in(&open.set, last)?;
    let pairs = || recorded.flat().iter().zip(ended.flat());
    let largest = pairs().fold(0.0_f32, |a, (v, _)| a.max(v.abs()));
    let apart = pairs().fold(0.0_f32, |a, (v, w)| a.max((v - w).abs()));
    if apart.is_nan() || apart > ROUNDING * largest {
        bail!(
            "run {}: training it again ends {apart:.2e} away from its last checkpoint (largest parameter {largest:.2e}); was it recorded with another device, number of threads or LibTorch?",
            run.id
        );
    }
    if apart > 0.0 {
        eprintln!(
            "note: run {} trained again ends {apart:.1e} away from its last checkpoint; rounding differs from the machine it was recorded on",
            run.id
        );
    }
    Ok(())
}
