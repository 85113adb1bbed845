//! What `record`, `attribute` and `whatif --verify` share: the base model of a run set, and
//! fine-tuning from it.

use crate::kept_models::{TOKENIZER_FILES, base_model, base_model_path};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use simfluence_core::{Artifact, Curriculum, Examples, Progress, Retrain, Run, Trajectory};
use simfluence_models::{
    Architecture, Device, EvaluationSet, FineTuning, FolderSettings, ModelChoice, PreparedTask,
    TextExample, TokenizedExample, Tokenizer, TrainingSettings, Weights, hugging_face, pretrain,
    pretrain_on_images,
};
use simfluence_recorder::{RunSet, read_artifact, write_artifact};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Key of the training settings in `run.json`.
pub const TRAINING: &str = "training";

/// The model that the runs of a run set start from, and how it reads text.
pub struct BaseModel {
    /// Its parameters.
    pub weights: Weights,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
}

impl BaseModel {
    /// Reads the base model of a run set.
    pub fn load(set: &RunSet) -> Result<Self> {
        let (weights, artifact) = base_model(set)?;
        let tokenizer = artifact.json("tokenizer");
        let tokenizer = tokenizer.with_context(|| format!("{}", base_model_path(set).display()))?;
        Ok(Self { weights, tokenizer })
    }

    /// The base model of a run set; if there is none yet, that of the task's model folder, or
    /// pre-trained now. The run set keeps it whole.
    pub fn load_or_make(
        set: &RunSet,
        prepared: &PreparedTask,
        device: Device,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if let ModelChoice::Folder(settings) = &prepared.task.model {
            let folder = prepared.task.model_folder().expect("a folder has a path");
            return Self::load_or_take(set, prepared, &folder, settings);
        }
        let architecture = prepared.architecture()?;
        let architecture = architecture.context("the model is no folder")?;
        Self::load_or_pretrain(set, prepared, &architecture, device, progress)
    }

    fn load_or_pretrain(
        set: &RunSet,
        prepared: &PreparedTask,
        architecture: &Architecture,
        device: Device,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let task = &prepared.task;
        let adapted = architecture
            .clone()
            .with_trainable(task.trainable.clone())?;
        let provenance = serde_json::to_string(&(task.pretraining(), &task.data))?;
        let path = base_model_path(set);
        if path.exists() {
            let model = Self::load(set)?;
            let made_by = read_artifact(&path)?.text("pretraining").map(str::to_owned);
            if *model.weights.architecture() != adapted
                || model.tokenizer != prepared.tokenizer
                || made_by.ok().as_ref() != Some(&provenance)
            {
                bail!(
                    "{}: the base model there was made by other [model], [trainable], [pretraining] or [data] settings; use another folder for this task",
                    path.display()
                );
            }
            return Ok(model);
        }
        let weights = pretrain_base(prepared, architecture, device, progress)?;
        let weights = weights.with_trainable(task.trainable.clone())?;
        let artifact = artifact(&weights, prepared, ("pretraining", provenance));
        Self::keep(weights, artifact, set, prepared)
    }

    fn load_or_take(
        set: &RunSet,
        prepared: &PreparedTask,
        folder: &Path,
        settings: &FolderSettings,
    ) -> Result<Self> {
        let weights = prepared.task.load_model(settings)?;
        let path = base_model_path(set);
        if path.exists() {
            let model = Self::load(set)?;
            if model.weights.architecture() != weights.architecture()
                || model.tokenizer != prepared.tokenizer
                || model.weights.fingerprint() != weights.fingerprint()
            {
                bail!(
                    "{}: the base model there is not the one in {} with model.dropout, model.adapter and [trainable] as the task has them; use another folder for this task",
                    path.display(),
                    folder.display()
                );
            }
            return Ok(model);
        }
        let from = folder.display().to_string();
        let mut artifact = artifact(&weights, prepared, ("model_folder", from));
        artifact.set_json(TOKENIZER_FILES, &hugging_face::tokenizer_files(folder)?);
        Self::keep(weights, artifact, set, prepared)
    }

    /// Writes the base model into the run set.
    fn keep(
        weights: Weights,
        artifact: Artifact,
        set: &RunSet,
        prepared: &PreparedTask,
    ) -> Result<Self> {
        write_artifact(&base_model_path(set), &artifact)?;
        Ok(Self {
            weights,
            tokenizer: prepared.tokenizer.clone(),
        })
    }

    /// The examples of a run set as tokens.
    pub fn tokens(&self, examples: &Examples) -> Result<Vec<TokenizedExample>> {
        let reading = self.weights.architecture().reading();
        examples
            .as_slice()
            .iter()
            .map(|example| {
                let example = TextExample::from_example(example)?;
                Ok(self.tokenizer.example(&example, &reading)?)
            })
            .collect()
    }
}

/// A base model as a file, with its tokeniser and where it came from.
fn artifact(weights: &Weights, prepared: &PreparedTask, provenance: (&str, String)) -> Artifact {
    let mut artifact = weights.to_artifact();
    artifact.set_json("tokenizer", &prepared.tokenizer);
    let (name, value) = provenance;
    artifact.metadata.insert(name.into(), value);
    (artifact.metadata).insert("task".into(), prepared.task.name.clone());
    artifact
}

fn pretrain_base(
    prepared: &PreparedTask,
    architecture: &Architecture,
    device: Device,
    progress: &dyn Progress,
) -> Result<Weights> {
    let pretraining = prepared.task.pretraining();
    let start = Weights::random(architecture, pretraining.seed);
    if pretraining.steps == 0 {
        return Ok(start);
    }
    let settings = TrainingSettings {
        optimizer: pretraining.optimizer,
        learning_rate: pretraining.learning_rate,
        schedule: pretraining.schedule,
        batch_size: pretraining.batch_size,
        steps: pretraining.steps,
        gradient_clip: Some(1.0),
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        ..TrainingSettings::default()
    };
    progress.begin("pre-training steps", u64::from(pretraining.steps));
    let mut recent = 0.0;
    let start_time = Instant::now();
    let mut on_step = |_, loss| {
        recent = if recent == 0.0 {
            loss
        } else {
            0.95 * recent + 0.05 * loss
        };
        progress.advance(1);
        Ok(())
    };
    let (seed, on_step) = (pretraining.seed, &mut on_step);
    let (weights, unit) = if architecture.images().is_some() {
        let images = &prepared.corpus_examples;
        let weights = pretrain_on_images(&start, images, &settings, seed, device, on_step)?;
        (weights, "image")
    } else {
        let tokens = &prepared.corpus_tokens;
        let weights = pretrain(&start, tokens, None, &settings, seed, device, on_step)?;
        (weights, "token")
    };
    progress.end();
    eprintln!(
        "pre-trained in {:.1} min: loss {recent:.3} nats per {unit} at the end",
        start_time.elapsed().as_secs_f64() / 60.0
    );
    Ok(weights)
}

/// Fine-tunes really on `curriculum`, as `run` was: its base model, its settings, its seed.
pub fn retrain(
    set: &RunSet,
    run: &Run,
    curriculum: &Curriculum,
    device: &str,
    progress: &dyn Progress,
) -> Result<Trajectory> {
    let fine_tuning = fine_tuning(set, run, device)?;
    let seed = run
        .info
        .seed
        .with_context(|| format!("run {} has no recorded seed", run.id))?;
    let trajectory = fine_tuning.retrain(curriculum, seed, progress);
    trajectory.map_err(|source| anyhow::anyhow!(source))
}

/// Fine-tuning as `run` was: from its base model, with its settings.
pub fn fine_tuning(set: &RunSet, run: &Run, device: &str) -> Result<FineTuning> {
    let model = BaseModel::load(set)?;
    let fingerprint = model.weights.fingerprint();
    if run.info.base_model.as_ref() != Some(&fingerprint) {
        bail!(
            "run {} started from another base model than {}",
            run.id,
            base_model_path(set).display()
        );
    }
    let settings = settings_of(run)?;
    let test = EvaluationSet::new(model.tokens(set.test_examples())?, settings.eval_batch_size);
    Ok(FineTuning {
        train: model.tokens(set.train_examples())?,
        base: model.weights,
        test,
        settings,
        device: device.parse()?,
    })
}

/// The training settings that a run was recorded with.
pub fn settings_of(run: &Run) -> Result<TrainingSettings> {
    let stored = run.info.extra.get(TRAINING).with_context(|| {
        format!(
            "run {} has no recorded training settings; it was not recorded by `simfluence record`",
            run.id
        )
    })?;
    serde_json::from_value(stored.clone())
        .with_context(|| format!("run {}: the recorded training settings", run.id))
}

/// The checkpoints of a run that ends with one: the learning rate of their step, and the file.
pub fn checkpoints(open: &OpenRuns, run: &Run) -> Result<Vec<(f64, PathBuf)>> {
    let files = open.set.checkpoints(&run.id)?;
    let steps = run.curriculum.steps();
    if files.last().map(|(step, _)| *step as usize) != Some(steps.len()) {
        bail!(
            "run {} has no checkpoint after its last step ({}); record it again with training.checkpoint_every",
            run.id,
            steps.len()
        );
    }
    files
        .into_iter()
        .filter(|(step, _)| *step > 0)
        .map(|(step, path)| {
            let rate = steps[step as usize - 1].learning_rate;
            let rate = rate.with_context(|| format!("run {}, step {step}: no rate", run.id))?;
            Ok((f64::from(rate), path))
        })
        .collect()
}

/// Steps of the checkpoints that [`checkpoints`] gives.
pub fn checkpoint_steps(open: &OpenRuns, run: &Run) -> Result<Vec<u32>> {
    let files = open.set.checkpoints(&run.id)?;
    Ok(files
        .into_iter()
        .map(|(step, _)| step)
        .filter(|&s| s > 0)
        .collect())
}
