//! `simfluence record`: fine-tune and record the runs of a task.

use crate::cli::RecordArgs;
use anyhow::Result;
use simfluence_core::Progress;

/// Runs the subcommand.
#[cfg(not(feature = "torch"))]
pub fn run(_: &RecordArgs, _: &dyn Progress) -> Result<()> {
    anyhow::bail!(crate::needs_torch("record"))
}

/// Runs the subcommand.
#[cfg(feature = "torch")]
pub fn run(args: &RecordArgs, progress: &dyn Progress) -> Result<()> {
    recording::run(args, progress)
}

#[cfg(feature = "torch")]
mod recording {
    use super::{Progress, RecordArgs, Result};
    use crate::train::{BaseModel, TRAINING};
    use anyhow::{Context, bail};
    use simfluence_core::design::PlannedRun;
    use simfluence_core::{Artifact, BoxError, Curriculum, RunInfo, RunStatus};
    use simfluence_evaluation::RunSelection;
    use simfluence_models::{
        Device, Evaluation, EvaluationSet, PreparedTask, StepRecord as Trained, Task,
        TokenizedExample, TrainingObserver, TrainingSettings, TrainingState, Weights, fine_tune,
    };
    use simfluence_recorder::{
        Losses, Recorder, RecorderOptions, RunSet, StepRecord, read_artifact, read_plan,
        write_atomically, write_plan,
    };
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, Once};
    use std::time::Instant;

    /// Everything that all runs of a recording have in common.
    struct Recording<'a> {
        set: &'a RunSet,
        base: Weights,
        fingerprint: String,
        train: Vec<TokenizedExample>,
        test: EvaluationSet,
        settings: TrainingSettings,
        device: Device,
        progress: &'a dyn Progress,
        stop: Arc<AtomicBool>,
    }

    pub fn run(args: &RecordArgs, progress: &dyn Progress) -> Result<()> {
        let task = Task::load(&args.task)?;
        let prepared = task.prepare(args.data.as_deref())?;
        let device: Device = args.device.parse()?;
        let set = RunSet::create_or_open(&args.out, &prepared.train, &prepared.test)?;
        let (plan, kept_plan) = plan_of(args, &prepared, &set)?;
        let mut settings = task.training.clone();
        settings.checkpoint_every = args.resume_every.or(settings.checkpoint_every);
        check_against_recorded(&settings, &set)?;
        let base = BaseModel::load_or_make(&set, &prepared, device, progress)?;
        eprintln!(
            "model: {} parameters, {} trained; {} training and {} test examples; {} runs of {} steps",
            base.weights.architecture().parameter_count(),
            base.weights.architecture().trainable_count(),
            prepared.train.len(),
            prepared.test.len(),
            plan.len(),
            task.training.steps
        );
        // Only now: what does not fit the run set has been refused.
        keep_task(&args.task, &args.out)?;
        if let Some(kept) = kept_plan {
            write_plan(&kept_plan_path(&set), &kept)?;
        }
        let recording = Recording {
            set: &set,
            fingerprint: base.weights.fingerprint(),
            base: base.weights,
            test: EvaluationSet::new(prepared.test_tokens, settings.eval_batch_size),
            train: prepared.train_tokens,
            settings,
            device,
            progress,
            stop: stop_on_interrupt()?,
        };
        let recorded = recording.record_all(&plan, args.jobs as usize);
        *RECORDING.lock().expect("no panic with it") = None;
        recorded
    }

    /// The runs to record: of a plan file, or of the task's design; only those asked for. Besides,
    /// the plan that the run set is to keep, where that changes.
    fn plan_of(
        args: &RecordArgs,
        prepared: &PreparedTask,
        set: &RunSet,
    ) -> Result<(Vec<PlannedRun>, Option<Vec<PlannedRun>>)> {
        let plan = match &args.plan {
            Some(path) => read_plan(path, prepared.train.len())?,
            None => prepared.task.plan(&prepared.train)?,
        };
        let kept = plan_to_keep(&plan, args.plan.as_deref(), set, prepared.train.len())?;
        if args.runs.is_empty() {
            return Ok((plan, kept));
        }
        let ids: Vec<&str> = plan.iter().map(|r| r.id.as_str()).collect();
        let wanted = RunSelection::parse(&args.runs.join(","))?.select(&ids)?;
        let wanted = wanted.into_iter().map(|k| plan[k].clone()).collect();
        Ok((wanted, kept))
    }

    fn kept_plan_path(set: &RunSet) -> PathBuf {
        set.path().join("plan.parquet")
    }

    /// A run set is recorded by one plan, so that going on never mixes two designs; a plan file
    /// may add runs with ids of their own to it, such as those of `plan --after`. `None` where the
    /// kept plan stays as it is.
    fn plan_to_keep(
        plan: &[PlannedRun],
        from: Option<&Path>,
        set: &RunSet,
        train_count: usize,
    ) -> Result<Option<Vec<PlannedRun>>> {
        let path = kept_plan_path(set);
        if !path.exists() {
            return Ok(Some(plan.to_vec()));
        }
        let mut kept = read_plan(&path, train_count)?;
        let known: HashMap<&str, usize> = (kept.iter().enumerate())
            .map(|(k, run)| (run.id.as_str(), k))
            .collect();
        let mut added = Vec::new();
        for run in plan {
            match (known.get(run.id.as_str()), from) {
                (Some(&k), _) if kept[k] == *run => {}
                (None, Some(_)) => added.push(run.clone()),
                (Some(_), Some(from)) => bail!(
                    "{}: {} has a run {} already, with another seed, design or curriculum; give the runs of this plan other ids, or record into another folder",
                    from.display(),
                    path.display(),
                    run.id
                ),
                (_, None) => bail!(
                    "{} was drawn by other settings ([training] steps, batch_size, learning_rate, schedule or [design]); record into another folder, or give the kept plan with --plan {}",
                    path.display(),
                    path.display()
                ),
            }
        }
        if added.is_empty() {
            return Ok(None);
        }
        kept.extend(added);
        Ok(Some(kept))
    }

    /// The runs of a run set are trained by the same settings, so that they can be compared.
    fn check_against_recorded(settings: &TrainingSettings, set: &RunSet) -> Result<()> {
        // What does not change what is learned may change.
        let essential = |settings: &TrainingSettings| TrainingSettings {
            threads: 1,
            checkpoint_every: None,
            ..settings.clone()
        };
        for id in set.run_ids()? {
            let info = set.read_info(&id)?;
            let Some(stored) = info.extra.get(TRAINING) else {
                continue;
            };
            let stored: TrainingSettings = serde_json::from_value(stored.clone())
                .with_context(|| format!("run {id}: the recorded training settings"))?;
            if essential(&stored) != essential(settings) {
                bail!(
                    "run {id} of {} was trained by other [training] settings (its run.json has them); record into another folder, or go on with the task file kept there, task.toml",
                    set.path().display()
                );
            }
        }
        Ok(())
    }

    fn keep_task(task: &Path, folder: &Path) -> Result<()> {
        let text = std::fs::read(task).with_context(|| format!("{}", task.display()))?;
        Ok(write_atomically(&folder.join("task.toml"), &text)?)
    }

    /// Set while Ctrl-C ends a recording after the current step of its runs, not the program.
    static RECORDING: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

    /// Exit status of programs that Ctrl-C ends, as shells report it.
    const INTERRUPTED: i32 = 130;

    /// Ctrl-C ends the runs that are under way after their current step; after the recording it
    /// ends the program again.
    fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
        static LISTENING: Once = Once::new();
        let mut listening = Ok(());
        LISTENING.call_once(|| {
            listening =
                ctrlc::set_handler(|| match &*RECORDING.lock().expect("no panic with it") {
                    Some(stop) => stop.store(true, Ordering::SeqCst),
                    None => std::process::exit(INTERRUPTED),
                });
        });
        listening.context("cannot listen for Ctrl-C")?;
        let stop = Arc::new(AtomicBool::new(false));
        *RECORDING.lock().expect("no panic with it") = Some(Arc::clone(&stop));
        Ok(stop)
    }

    impl Recording<'_> {
        /// Records the runs that are not finished, `jobs` at a time, in the order of the plan.
        fn record_all(&self, plan: &[PlannedRun], jobs: usize) -> Result<()> {
            let open: Vec<&PlannedRun> = plan
                .iter()
                .filter(|run| !self.is_finished(&run.id))
                .collect();
            eprintln!(
                "{} of {} runs are still to be recorded",
                open.len(),
                plan.len()
            );
            let steps: usize = open.iter().map(|run| run.curriculum.len()).sum();
            self.progress.begin("training steps", steps as u64);
            let started = Instant::now();
            let next = AtomicUsize::new(0);
            let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
            std::thread::scope(|scope| {
                for _ in 0..jobs.min(open.len()) {
                    scope.spawn(|| {
                        while let Some(run) = open.get(next.fetch_add(1, Ordering::SeqCst)) {
                            if self.stop.load(Ordering::SeqCst) {
                                return;
                            }
                            if let Err(error) = self.record(run) {
                                self.stop.store(true, Ordering::SeqCst);
                                let error = error.context(format!("run {}", run.id));
                                failed
                                    .lock()
                                    .expect("no panic with it")
                                    .get_or_insert(error);
                                return;
                            }
                        }
                    });
                }
            });
            self.progress.end();
            match failed.into_inner().expect("no panic with it") {
                Some(error) => Err(error),
                None => {
                    let minutes = started.elapsed().as_secs_f64() / 60.0;
                    eprintln!("recorded {} runs in {minutes:.1} min", open.len());
                    Ok(())
                }
            }
        }

        /// Whether a curriculum has the learning rates of the settings; designs and edits may give
        /// it rates of its own.
        fn follows_schedule(&self, curriculum: &Curriculum) -> bool {
            let steps = curriculum.steps();
            (1..).zip(steps).all(|(step, update)| {
                let scheduled = self.settings.learning_rate_at(step, steps.len() as u32);
                update.learning_rate.is_none_or(|rate| rate == scheduled)
            })
        }

        fn is_finished(&self, run: &str) -> bool {
            let finished = [RunStatus::Complete, RunStatus::Diverged];
            self.set.has_run(run)
                && self
                    .set
                    .read_info(run)
                    .is_ok_and(|info| finished.contains(&info.status))
        }

        fn record(&self, planned: &PlannedRun) -> Result<()> {
            let (recorder, state) = self.open(planned)?;
            let done = state.as_ref().map_or(0, |(step, _)| *step);
            self.progress.advance(u64::from(done));
            let mut observer = Recorded {
                recorder,
                recording: self,
                unfinished: state.as_ref().map(|(step, _)| *step),
            };
            let result = fine_tune(
                &self.base,
                &self.train,
                &self.test,
                &planned.curriculum,
                &self.settings,
                planned.seed,
                self.device,
                &mut observer,
                state.as_ref().map(|(_, artifact)| artifact),
            );
            match result {
                Ok(_) => {
                    observer.settle_checkpoint()?;
                    observer.recorder.finish()?;
                    Ok(())
                }
                Err(error) => {
                    observer.recorder.abort()?;
                    Err(error.into())
                }
            }
        }

        /// A recorder for the run, and the state to go on from if the run was interrupted.
        fn open(&self, planned: &PlannedRun) -> Result<(Recorder, Option<(u32, Artifact)>)> {
            if !self.set.has_run(&planned.id) {
                let info = self.info(planned);
                let options = RecorderOptions::default();
                let recorder = Recorder::create(self.set, &planned.id, info, options)?;
                return Ok((recorder, None));
            }
            let state = self.last_state(&planned.id)?;
            let step = state.as_ref().map_or(0, |(step, _)| *step);
            eprintln!("run {} goes on after step {step}", planned.id);
            let recorder = Recorder::resume(self.set, &planned.id, step)?;
            Ok((recorder, state))
        }

        /// The latest checkpoint from which training can go on.
        fn last_state(&self, run: &str) -> Result<Option<(u32, Artifact)>> {
            for (step, path) in self.set.checkpoints(run)?.into_iter().rev() {
                let artifact = read_artifact(&path)?;
                if artifact.metadata.get("kind").map(String::as_str) == Some("training_state") {
                    return Ok(Some((step, artifact)));
                }
            }
            Ok(None)
        }

        fn info(&self, planned: &PlannedRun) -> RunInfo {
            let training = serde_json::to_value(&self.settings).expect("settings are JSON");
            RunInfo {
                seed: Some(planned.seed),
                base_model: Some(self.fingerprint.clone()),
                optimizer: Some(self.settings.optimizer),
                schedule: self
                    .follows_schedule(&planned.curriculum)
                    .then_some(self.settings.schedule),
                batch_size: Some(self.settings.batch_size),
                planned_steps: Some(planned.curriculum.len() as u32),
                trainable_parameters: Some(self.base.architecture().trainable_count() as u64),
                loss: Some("mean NLL per answer token, nats".to_owned()),
                threads: Some(self.settings.threads),
                device: Some(self.device.to_string()),
                design: planned.design.clone(),
                software: [
                    ("simfluence", env!("CARGO_PKG_VERSION")),
                    ("libtorch", simfluence_models::LIBTORCH_VERSION),
                ]
                .map(|(name, version)| (name.to_owned(), version.to_owned()))
                .into(),
                extra: [(TRAINING.to_owned(), training)].into(),
                ..RunInfo::new(RunStatus::Recording)
            }
        }
    }

    /// Writes a run down while it is trained.
    struct Recorded<'a> {
        recorder: Recorder,
        recording: &'a Recording<'a>,
        /// Step of the last checkpoint, if it holds the optimiser's state.
        unfinished: Option<u32>,
    }

    impl Recorded<'_> {
        /// The run is over: the last checkpoint needs no optimiser state any more.
        fn settle_checkpoint(&mut self) -> Result<()> {
            match self.unfinished.take() {
                Some(step) => self.thin(step),
                None => Ok(()),
            }
        }
    }

    impl TrainingObserver for Recorded<'_> {
        fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError> {
            if !self.recorder.has_initial() {
                self.recorder.log_initial(&evaluation.losses)?;
                let residuals = Losses::All(evaluation.residuals.clone());
                self.recorder.log_initial_metric(RESIDUAL, &residuals)?;
            }
            Ok(())
        }

        fn step(&mut self, trained: &Trained<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
            let mut step = trained.update.clone();
            step.learning_rate = Some(trained.learning_rate);
            let of = |e: &Evaluation, values: &[f32]| match &e.test_ids {
                None => Losses::All(values.to_vec()),
                Some(ids) => Losses::Subset {
                    test_ids: ids.clone(),
                    values: values.to_vec(),
                },
            };
            let losses = trained.evaluation.map(|e| of(e, &e.losses));
            let residuals = trained.evaluation.map(|e| of(e, &e.residuals));
            self.recorder.log_step(&StepRecord {
                batch_loss: Some(trained.batch_losses.to_vec()),
                grad_norm: Some(trained.gradient_norm),
                losses,
                metrics: residuals
                    .into_iter()
                    .map(|r| (RESIDUAL.to_owned(), r))
                    .collect(),
                ..StepRecord::new(step)
            })?;
            self.recording.progress.advance(1);
            if self.recording.stop.load(Ordering::SeqCst) {
                return Err("interrupted; the same command goes on from here".into());
            }
            Ok(())
        }

        fn checkpoint(&mut self, state: &TrainingState<'_>) -> Result<(), BoxError> {
            self.recorder
                .save_checkpoint(state.step(), &state.to_artifact()?)?;
            // Only the newest checkpoint needs the optimiser's state; for attribution the
            // parameters are enough, and a third of the size.
            if let Some(previous) = self.unfinished.replace(state.step()) {
                self.thin(previous)?;
            }
            Ok(())
        }
    }

    impl Recorded<'_> {
        /// Writes an earlier checkpoint again, without the optimiser's state.
        fn thin(&mut self, step: u32) -> Result<()> {
            let known = self.recorder.checkpoints()?;
            let Some((_, path)) = known.into_iter().find(|(s, _)| *s == step) else {
                return Ok(());
            };
            let artifact = read_artifact(&path)?;
            self.recorder
                .save_checkpoint(step, &Weights::without_optimizer(artifact)?)?;
            Ok(())
        }
    }

    /// Name of the metric: mean of `1 − p` over the answer's tokens.
    const RESIDUAL: &str = "residual";
}
