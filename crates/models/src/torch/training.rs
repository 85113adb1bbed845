//! Fine-tuning along a curriculum, and pre-training on text or images.

use super::batch::{Batch, Evaluation, EvaluationSet, Place, PreparedEvaluation, check_examples};
use super::model::Model;
use super::network::{Network, NetworkBatch};
use super::parameters::to_vec;
use super::updater::Updater;
use crate::decoder::Structure;
use crate::device::{Device, DeviceError};
use crate::settings::{SettingsError, TokenizedExample, TokensError, TrainingSettings};
use crate::weights::{Architecture, Weights, WeightsError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simfluence_core::{
    Artifact, ArtifactError, BoxError, Curriculum, Progress, Retrain, Step, Trajectory,
};
use std::cell::OnceCell;
use tch::Tensor;

/// Version of the file that a run resumes from.
const STATE_VERSION: u32 = 1;

/// Takes note of a run while it happens. An error from any method ends the run with
/// [`TrainingError::Observer`].
pub trait TrainingObserver {
    /// The test losses before the first step; not called when a run resumes.
    ///
    /// # Errors
    /// Whatever the observer fails with.
    fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError>;

    /// A step is done. `state` gives the model after it, for whoever wants to keep it.
    ///
    /// # Errors
    /// Whatever the observer fails with, or its wish to stop.
    fn step(&mut self, record: &StepRecord<'_>, state: &TrainingState<'_>) -> Result<(), BoxError>;

    /// A checkpoint is due ([`TrainingSettings::checkpoints_at`]); called after
    /// [`TrainingObserver::step`]. By default nothing is kept.
    ///
    /// # Errors
    /// Whatever the observer fails with.
    fn checkpoint(&mut self, _state: &TrainingState<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

/// What happened in one step.
#[derive(Debug)]
pub struct StepRecord<'a> {
    /// Step, counted from 1.
    pub step: u32,
    /// Its batch and weights.
    pub update: &'a Step,
    /// The learning rate it was made with.
    pub learning_rate: f32,
    /// Loss of each member of the batch in training mode, before the update.
    pub batch_losses: &'a [f32],
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// The test losses after the update, where they were measured.
    pub evaluation: Option<&'a Evaluation>,
}

/// A run between two steps.
pub struct TrainingState<'a> {
    run: &'a Run<'a>,
}

impl TrainingState<'_> {
    /// Finished steps.
    pub fn step(&self) -> u32 {
        self.run.step
    }

    /// The model itself.
    pub fn model(&self) -> &Network {
        &self.run.model
    }

    /// See [`Updater::preconditioner`].
    pub fn preconditioner(&self) -> Option<Tensor> {
        self.run.updater.preconditioner()
    }

    /// The model's parameters: the checkpoint that attribution needs.
    ///
    /// # Errors
    /// See [`Network::weights`].
    pub fn weights(&self) -> Result<Weights, WeightsError> {
        self.run.model.weights()
    }

    /// Everything that a run needs to go on from here bit for bit: the trained parameters, the
    /// optimiser's state, the step, the seed. Dropout draws from the seed and the step, the batches come from
    /// the curriculum.
    ///
    /// # Errors
    /// See [`Network::weights`].
    pub fn to_artifact(&self) -> Result<Artifact, WeightsError> {
        let mut artifact = Artifact::new("training_state", STATE_VERSION);
        artifact.set_json("architecture", self.run.model.architecture());
        artifact.set_json("step", &self.run.step);
        artifact.set_json("seed", &self.run.seed);
        self.weights()?
            .write_trained(&mut artifact, self.run.fingerprint());
        self.run.updater.write(&mut artifact);
        Ok(artifact)
    }
}

/// An observer for runs of which only the final weights matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl TrainingObserver for Silent {
    fn initial(&mut self, _evaluation: &Evaluation) -> Result<(), BoxError> {
        Ok(())
    }

    fn step(&mut self, _: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

/// One run in progress.
struct Run<'a> {
    base: &'a Weights,
    /// Of the base model, once somebody asked for it.
    fingerprint: OnceCell<String>,
    model: Network,
    updater: Updater,
    settings: &'a TrainingSettings,
    seed: u64,
    step: u32,
}

/// Losses of a batch and the norm of its gradient.
struct Update {
    batch_losses: Vec<f32>,
    gradient_norm: f32,
}

impl<'a> Run<'a> {
    fn new(
        base: &'a Weights,
        settings: &'a TrainingSettings,
        seed: u64,
        device: tch::Device,
    ) -> Self {
        super::process::prepare();
        // The number of threads is the process's for some of LibTorch's parts and this thread's
        // for others, so that every run sets it.
        tch::set_num_threads(settings.threads as i32);
        let model = Network::new(base, device).with_precision(settings.precision);
        let decayed = model.decayed(settings.weight_decay_groups);
        Self {
            base,
            fingerprint: OnceCell::new(),
            updater: Updater::with_decay(&model, settings.optimizer, decayed),
            model,
            settings,
            seed,
            step: 0,
        }
    }

    fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| self.base.fingerprint())
    }

    /// Goes to where `artifact` was written.
    fn resume(&mut self, artifact: &Artifact, steps: usize) -> Result<(), TrainingError> {
        artifact.expect("training_state", STATE_VERSION)?;
        let step: u32 = artifact.json("step")?;
        let optimizer: simfluence_core::Optimizer = artifact.json("optimizer")?;
        let seed: u64 = artifact.json("seed")?;
        let architecture: Architecture = artifact.json("architecture")?;
        let mismatch = |what, expected: String, got: String| TrainingError::Resume {
            what,
            expected,
            got,
        };
        if architecture != *self.model.architecture() {
            let expected = format!("{:?}", self.model.architecture());
            return Err(mismatch("model", expected, format!("{architecture:?}")));
        }
        if optimizer != self.settings.optimizer {
            let expected = format!("{:?}", self.settings.optimizer);
            return Err(mismatch("optimiser", expected, format!("{optimizer:?}")));
        }
        if seed != self.seed {
            return Err(mismatch("seed", self.seed.to_string(), seed.to_string()));
        }
        if step as usize > steps {
            let expected = format!("at most {steps}");
            return Err(mismatch(
                "number of finished steps",
                expected,
                step.to_string(),
            ));
        }
        let base = || Ok::<_, WeightsError>(self.base.clone());
        self.model.set(&Weights::from_checkpoint(artifact, base)?);
        self.updater.read(artifact)?;
        self.step = step;
        Ok(())
    }

    /// One update on members with the given shares of the loss; `batch` makes those of a
    /// micro-batch into tensors.
    fn update<T>(
        &mut self,
        members: &[T],
        shares: &[f32],
        batch: impl Fn(&Network, &[T]) -> NetworkBatch,
        rate: f64,
    ) -> Update {
        self.step += 1;
        let model = &self.model;
        let size = (members.len()).div_ceil(self.settings.accumulation as usize);
        let parts = members.chunks(size).zip(shares.chunks(size));
        let mut dropout = model.dropout_of_step(self.seed, self.step);
        let mut batch_losses = Vec::new();
        let parts = parts.map(|(members, shares)| {
            let shares = Tensor::from_slice(shares).to_device(model.device());
            (batch(model, members), shares.to_kind(model.kind()))
        });
        let clip = self.settings.gradient_clip;
        let gradient_norm = if self.settings.activation_checkpointing {
            for (batch, shares) in parts {
                let losses = model.accumulate(&batch, &shares, dropout.as_mut());
                batch_losses.extend(to_vec(&losses));
            }
            self.updater.update_accumulated(model, clip, rate)
        } else {
            let losses = parts.map(|(batch, shares)| {
                let losses = model.training_losses(&batch, dropout.as_mut());
                batch_losses.extend(to_vec(&losses));
                losses.dot(&shares)
            });
            self.updater.update_sum(model, losses, clip, rate)
        };
        Update {
            batch_losses,
            gradient_norm: gradient_norm as f32,
        }
    }
}

/// Fine-tunes `base` along `curriculum` and measures the test losses.
///
/// The loss of step `t` is `Σ_k w_k ℓ(c_t[k])`, with `ℓ` the mean negative log-likelihood per
/// answer token and `w_k` the step's weights, or those of [`TrainingSettings::batch_loss`] where it
/// has none; the observer sees the latter as the step's. Its learning rate is the step's own, or
/// that of `settings` where it has none.
///
/// - `train`: the training examples, by id; `test`: whose losses are followed.
/// - `settings`: `steps` and `batch_size` are not read here, the curriculum decides.
/// - `seed`: for dropout, the only randomness of a run.
/// - `resume`: what [`TrainingState::to_artifact`] gave; the run goes on from there and ends bit
///   for bit as if it had never stopped.
///
/// The same input gives the same bits on the same machine, also while other runs of the same
/// `threads` setting train in other threads of the process.
///
/// Returns the final weights.
///
/// # Errors
/// See [`TrainingError`]. Losses that become NaN or infinite are no error: they are observed.
#[allow(clippy::too_many_arguments)]
pub fn fine_tune(
    base: &Weights,
    train: &[TokenizedExample],
    test: &EvaluationSet,
    curriculum: &Curriculum,
    settings: &TrainingSettings,
    seed: u64,
    device: Device,
    observer: &mut dyn TrainingObserver,
    resume: Option<&Artifact>,
) -> Result<Weights, TrainingError> {
    settings.check()?;
    settings.check_for(base.architecture())?;
    check_input(base.architecture(), train, test, curriculum)?;
    let mut run = Run::new(base, settings, seed, device.open()?);
    let evaluation = Evaluations::new(test, settings, &run.model);
    match resume {
        Some(artifact) => run.resume(artifact, curriculum.len())?,
        None => {
            let initial = evaluation.all.evaluate(&run.model);
            observer.initial(&initial).map_err(|e| observed(0, e))?;
        }
    }
    for update in &curriculum.steps()[run.step as usize..] {
        one_step(
            &mut run,
            train,
            &evaluation,
            update,
            curriculum.len(),
            observer,
        )?;
    }
    Ok(run.model.weights()?)
}

/// The test examples as tensors, all of them and in parts.
struct Evaluations {
    all: PreparedEvaluation,
    parts: Vec<(Vec<u32>, PreparedEvaluation)>,
}

impl Evaluations {
    fn new(test: &EvaluationSet, settings: &TrainingSettings, model: &Network) -> Self {
        let part = |part: u32| {
            let ids: Vec<u32> = (0..test.len() as u32)
                .filter(|id| id % settings.eval_parts == part)
                .collect();
            let members = ids.iter().map(|&id| test.examples()[id as usize].clone());
            let set = EvaluationSet::new(members.collect(), settings.eval_batch_size);
            (ids, set.prepare(model))
        };
        let parts = if settings.eval_parts > 1 {
            settings.eval_parts
        } else {
            0
        };
        Self {
            all: test.prepare(model),
            parts: (0..parts).map(part).collect(),
        }
    }

    fn evaluate(&self, part: Option<u32>, model: &Network) -> Evaluation {
        match part {
            None => self.all.evaluate(model),
            Some(part) => {
                let (ids, prepared) = &self.parts[part as usize];
                Evaluation {
                    test_ids: Some(ids.clone()),
                    ..prepared.evaluate(model)
                }
            }
        }
    }
}

fn one_step(
    run: &mut Run<'_>,
    train: &[TokenizedExample],
    evaluation: &Evaluations,
    update: &Step,
    steps: usize,
    observer: &mut dyn TrainingObserver,
) -> Result<(), TrainingError> {
    let (step, steps) = (run.step + 1, steps as u32);
    let members: Vec<&TokenizedExample> =
        update.batch.iter().map(|&id| &train[id as usize]).collect();
    let settings = run.settings;
    let update = &*settings.batch_loss.weighted(update, &members);
    let shares: Vec<f32> = update.exposures().map(|(_, share)| share as f32).collect();
    let learning_rate =
        (update.learning_rate).unwrap_or_else(|| settings.learning_rate_at(step, steps));
    let batch = |model: &Network, part: &[&TokenizedExample]| model.batch(part);
    let done = run.update(&members, &shares, batch, f64::from(learning_rate));
    let evaluation = (settings.evaluates_at(step, steps))
        .then(|| evaluation.evaluate(settings.part_at(step, steps), &run.model));
    let record = StepRecord {
        step,
        update,
        learning_rate,
        batch_losses: &done.batch_losses,
        gradient_norm: done.gradient_norm,
        evaluation: evaluation.as_ref(),
    };
    let state = TrainingState { run };
    observer
        .step(&record, &state)
        .map_err(|e| observed(step, e))?;
    if settings.checkpoints_at(step, steps) {
        observer.checkpoint(&state).map_err(|e| observed(step, e))?;
    }
    Ok(())
}

fn observed(step: u32, source: BoxError) -> TrainingError {
    TrainingError::Observer { step, source }
}

fn check_input(
    architecture: &Architecture,
    train: &[TokenizedExample],
    test: &EvaluationSet,
    curriculum: &Curriculum,
) -> Result<(), TrainingError> {
    if test.is_empty() {
        return Err(TrainingError::NoTestExamples);
    }
    check_examples(train, architecture)
        .map_err(|(example, problem)| TrainingError::TrainExample { example, problem })?;
    test.check(architecture)
        .map_err(|(example, problem)| TrainingError::TestExample { example, problem })?;
    match curriculum.max_id() {
        Some(id) if id as usize >= train.len() => Err(TrainingError::UnknownExample {
            id,
            train_count: train.len(),
        }),
        _ => Ok(()),
    }
}

/// All that really training on another curriculum takes.
///
/// Losses of the trajectory are measured at step 0 and as [`TrainingSettings::eval_every`] says.
#[derive(Debug, Clone)]
pub struct FineTuning {
    /// The base model.
    pub base: Weights,
    /// Training examples by id.
    pub train: Vec<TokenizedExample>,
    /// Test examples.
    pub test: EvaluationSet,
    /// Optimiser, clipping, evaluation.
    pub settings: TrainingSettings,
    /// Where to compute.
    pub device: Device,
}

impl Retrain for FineTuning {
    fn retrain(
        &self,
        curriculum: &Curriculum,
        seed: u64,
        progress: &dyn Progress,
    ) -> Result<Trajectory, BoxError> {
        let mut collector = Collector {
            progress,
            steps: Vec::new(),
            losses: Vec::new(),
            measured: Vec::new(),
            tests: self.test.len(),
        };
        progress.begin("retraining steps", curriculum.len() as u64);
        fine_tune(
            &self.base,
            &self.train,
            &self.test,
            curriculum,
            &self.settings,
            seed,
            self.device,
            &mut collector,
            None,
        )?;
        progress.end();
        Ok(Trajectory::with_missing(
            collector.steps,
            self.test.len(),
            collector.losses,
            collector.measured,
        )?)
    }
}

struct Collector<'a> {
    progress: &'a dyn Progress,
    steps: Vec<u32>,
    losses: Vec<f32>,
    measured: Vec<bool>,
    tests: usize,
}

impl Collector<'_> {
    fn take(&mut self, step: u32, evaluation: &Evaluation) {
        self.steps.push(step);
        let start = self.losses.len();
        match &evaluation.test_ids {
            None => {
                self.losses.extend(&evaluation.losses);
                self.measured.resize(start + self.tests, true);
            }
            Some(ids) => {
                self.losses.resize(start + self.tests, 0.0);
                self.measured.resize(start + self.tests, false);
                for (&id, &loss) in ids.iter().zip(&evaluation.losses) {
                    self.losses[start + id as usize] = loss;
                    self.measured[start + id as usize] = true;
                }
            }
        }
    }
}

impl TrainingObserver for Collector<'_> {
    fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError> {
        self.take(0, evaluation);
        Ok(())
    }

    fn step(&mut self, record: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
        if let Some(evaluation) = record.evaluation {
            self.take(record.step, evaluation);
        }
        self.progress.advance(1);
        Ok(())
    }
}

/// Trains `start` to predict every next token of random windows of `corpus`.
///
/// Each step draws `settings.batch_size` windows of `window` input tokens (default and at most
/// the model's context; at most the corpus's length − 1), with a generator of its own from
/// `seed`. `on_step` gets each step (counted from 1) and its mean loss per token in nats; its
/// error ends the training.
///
/// # Errors
/// A corpus of fewer than two tokens or with unknown tokens; a network on images, or a model that is
/// no decoder alone; bad settings; what `on_step` fails with.
pub fn pretrain(
    start: &Weights,
    corpus: &[u32],
    window: Option<u32>,
    settings: &TrainingSettings,
    seed: u64,
    device: Device,
    on_step: &mut dyn FnMut(u32, f32) -> Result<(), BoxError>,
) -> Result<Weights, TrainingError> {
    settings.check()?;
    let architecture = start.architecture();
    if architecture.images().is_some() {
        return Err(TrainingError::TextForImages);
    }
    if architecture.decoder().structure != Structure::Causal {
        return Err(TrainingError::NotCausal);
    }
    check_corpus(corpus, architecture)?;
    let length = (window
        .unwrap_or(u32::MAX)
        .clamp(1, architecture.decoder().context) as usize)
        .min(corpus.len() - 1);
    let draw = |rng: &mut ChaCha8Rng| {
        let first = rng.random_range(0..corpus.len() - length);
        &corpus[first..=first + length]
    };
    let batch = |model: &Network, part: &[&[u32]]| match model {
        Network::Transformer(model) => {
            NetworkBatch::Texts(Box::new(Batch::of_windows(part, Place::of(model))))
        }
        Network::Images(_) => unreachable!("it was checked that the model reads texts"),
    };
    let run = Run::new(start, settings, seed, device.open()?);
    pretraining_steps(run, draw, batch, on_step)
}

/// Trains `start` to predict the classes of random images of `corpus`.
///
/// Each step draws `settings.batch_size` images with replacement, with a generator of its own from
/// `seed`. `on_step` gets each step (counted from 1) and its mean loss in nats; its error ends the
/// training.
///
/// # Errors
/// No image, or one that the model cannot read; bad settings; what `on_step` fails with.
pub fn pretrain_on_images(
    start: &Weights,
    corpus: &[TokenizedExample],
    settings: &TrainingSettings,
    seed: u64,
    device: Device,
    on_step: &mut dyn FnMut(u32, f32) -> Result<(), BoxError>,
) -> Result<Weights, TrainingError> {
    settings.check()?;
    if corpus.is_empty() {
        return Err(TrainingError::NoImages);
    }
    check_examples(corpus, start.architecture())
        .map_err(|(example, problem)| TrainingError::CorpusImage { example, problem })?;
    let draw = |rng: &mut ChaCha8Rng| &corpus[rng.random_range(0..corpus.len())];
    let batch = |model: &Network, part: &[&TokenizedExample]| model.batch(part);
    let run = Run::new(start, settings, seed, device.open()?);
    pretraining_steps(run, draw, batch, on_step)
}

/// The steps of a pre-training, on what `draw` draws and `batch` makes into tensors.
fn pretraining_steps<T>(
    mut run: Run<'_>,
    draw: impl Fn(&mut ChaCha8Rng) -> T,
    batch: impl Fn(&Network, &[T]) -> NetworkBatch,
    on_step: &mut dyn FnMut(u32, f32) -> Result<(), BoxError>,
) -> Result<Weights, TrainingError> {
    let settings = run.settings;
    // Stream 0; those from 1 on belong to the dropout of the steps.
    let mut rng = ChaCha8Rng::seed_from_u64(run.seed);
    let shares = vec![1.0 / settings.batch_size as f32; settings.batch_size as usize];
    for step in 1..=settings.steps {
        let members: Vec<T> = shares.iter().map(|_| draw(&mut rng)).collect();
        let rate = settings.learning_rate_at(step, settings.steps);
        let losses = (run.update(&members, &shares, &batch, f64::from(rate))).batch_losses;
        let mean = losses.iter().sum::<f32>() / losses.len() as f32;
        on_step(step, mean).map_err(|e| observed(step, e))?;
    }
    Ok(run.model.weights()?)
}

fn check_corpus(corpus: &[u32], architecture: &Architecture) -> Result<(), TrainingError> {
    if corpus.len() < 2 {
        return Err(TrainingError::Corpus { got: corpus.len() });
    }
    let vocabulary = architecture.decoder().vocabulary;
    match corpus.iter().position(|&token| token >= vocabulary) {
        Some(position) => Err(TrainingError::CorpusToken {
            position,
            problem: TokensError::UnknownToken {
                token: corpus[position],
                vocabulary,
            },
        }),
        None => Ok(()),
    }
}

/// Why a model cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// Bad settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model that does not predict a text token by token.
    #[error(
        "only decoders can be pre-trained on text; this model has an encoder or is a classifier"
    )]
    NotCausal,
    /// A checkpoint that cannot be read.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] ArtifactError),
    /// A checkpoint of another run.
    #[error("the checkpoint belongs to another run: its {what} is {got}, expected {expected}")]
    Resume {
        /// What differs.
        what: &'static str,
        /// The run's.
        expected: String,
        /// The checkpoint's.
        got: String,
    },
    /// A training example that the model cannot read.
    #[error("training example {example}: {problem}")]
    TrainExample {
        /// Id of the training example.
        example: usize,
        /// What is wrong.
        problem: TokensError,
    },
    /// A test example that the model cannot read.
    #[error("test example {example}: {problem}")]
    TestExample {
        /// Id of the test example.
        example: usize,
        /// What is wrong.
        problem: TokensError,
    },
    /// Nothing to follow.
    #[error("there is no test example whose loss could be followed")]
    NoTestExamples,
    /// A curriculum over other training examples.
    #[error(
        "the curriculum trains on example {id}, but there are {train_count} training examples (0..{train_count})"
    )]
    UnknownExample {
        /// The largest id of the curriculum.
        id: u32,
        /// Number of training examples.
        train_count: usize,
    },
    /// A text too short to learn from.
    #[error("the pre-training text has {got} tokens; it needs at least 2")]
    Corpus {
        /// Its tokens.
        got: usize,
    },
    /// A text for a network on images.
    #[error("a network on images cannot be pre-trained on a text")]
    TextForImages,
    /// Nothing to learn from.
    #[error("there is no image to pre-train on")]
    NoImages,
    /// An image to pre-train on that the model cannot read.
    #[error("image {example} of those to pre-train on: {problem}")]
    CorpusImage {
        /// Its place.
        example: usize,
        /// What is wrong.
        problem: TokensError,
    },
    /// A text with tokens that the model does not have.
    #[error("token {position} of the pre-training text: {problem}")]
    CorpusToken {
        /// Its position.
        position: usize,
        /// What is wrong.
        problem: TokensError,
    },
    /// The observer failed, or wants to stop.
    #[error("after step {step}: {source}")]
    Observer {
        /// Finished steps.
        step: u32,
        /// What it says.
        source: BoxError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_loss::BatchLoss;
    use crate::precision::Precision;
    use crate::settings::ModelSettings;
    use crate::torch::test_support::{examples_of, image_network};
    use simfluence_core::{NoProgress, Optimizer};

    fn base(dropout: f64) -> Weights {
        let model = ModelSettings {
            layers: 2,
            heads: 2,
            width: 16,
            context: 24,
            tied_output: true,
            dropout,
        };
        Weights::random(&Architecture::new(model, 12).unwrap(), 5)
    }

    fn examples(count: u32) -> Vec<TokenizedExample> {
        let example = |i: u32| {
            let length = 6 + i % 9;
            let answer_start = length as usize - 1 - (i % 2) as usize;
            let tokens = (0..length).map(|p| (i * 5 + p * p) % 12).collect();
            TokenizedExample {
                tokens,
                answer_start,
                ..TokenizedExample::default()
            }
        };
        (0..count).map(example).collect()
    }

    fn test_set() -> EvaluationSet {
        EvaluationSet::new(examples(7), 3)
    }

    fn curriculum(steps: u32) -> Curriculum {
        let steps = (0..steps).map(|t| Step::new(vec![t % 20, (t * 3) % 20, 4], None));
        Curriculum::new(steps.collect(), 20).unwrap()
    }

    fn settings(optimizer: Optimizer) -> TrainingSettings {
        TrainingSettings {
            optimizer,
            learning_rate: 3e-3,
            gradient_clip: Some(1.0),
            checkpoint_every: Some(4),
            ..TrainingSettings::default()
        }
    }

    /// Everything a run shows, as bits, and its checkpoints; may stop after a step.
    #[derive(Default)]
    struct Recording {
        bits: Vec<u32>,
        checkpoints: Vec<(u32, Artifact)>,
        stop_after: Option<u32>,
    }

    impl Recording {
        fn take(&mut self, values: &[f32]) {
            self.bits.extend(values.iter().map(|v| v.to_bits()));
        }
    }

    impl TrainingObserver for Recording {
        fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError> {
            self.take(&evaluation.losses);
            Ok(())
        }

        fn step(&mut self, record: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
            self.take(record.batch_losses);
            self.take(&[record.gradient_norm, record.learning_rate]);
            if let Some(evaluation) = record.evaluation {
                self.take(&evaluation.losses);
                self.take(&evaluation.residuals);
            }
            match self.stop_after == Some(record.step) {
                true => Err("stop".into()),
                false => Ok(()),
            }
        }

        fn checkpoint(&mut self, state: &TrainingState<'_>) -> Result<(), BoxError> {
            self.checkpoints.push((state.step(), state.to_artifact()?));
            Ok(())
        }
    }

    fn train(
        base: &Weights,
        settings: &TrainingSettings,
        recording: &mut Recording,
        resume: Option<&Artifact>,
    ) -> Result<Weights, TrainingError> {
        let (train, test, curriculum) = (examples(20), test_set(), curriculum(10));
        fine_tune(
            base,
            &train,
            &test,
            &curriculum,
            settings,
            3,
            Device::Cpu,
            recording,
            resume,
        )
    }

    fn losses_of(recording: &Recording) -> Vec<f32> {
        recording
            .bits
            .iter()
            .map(|&bits| f32::from_bits(bits))
            .collect()
    }

    #[test]
    fn checkpointing_changes_nothing_but_rounding_and_bfloat16_a_little() {
        type Change = fn(&mut TrainingSettings);
        let ways: [(Change, f32, f32); 3] = [
            (|s| s.activation_checkpointing = true, 0.0, 1e-5),
            (|s| s.precision = Precision::Bf16, 1e-5, 0.05),
            (|s| s.accumulation = 3, 1e-9, 1.0),
        ];
        let plain = settings(Optimizer::default());
        let base = base(0.1);
        let mut expected = Recording::default();
        train(&base, &plain, &mut expected, None).unwrap();
        for (change, least, most) in ways {
            let mut settings = plain.clone();
            change(&mut settings);
            let mut recording = Recording::default();
            train(&base, &settings, &mut recording, None).unwrap();
            let pairs = losses_of(&expected).into_iter().zip(losses_of(&recording));
            let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!((least..=most).contains(&apart), "{settings:?}: {apart}");
        }
        // Both together, with micro-batches, resume bit for bit.
        let mut settings = plain;
        settings.activation_checkpointing = true;
        settings.precision = Precision::Bf16;
        settings.accumulation = 2;
        let mut whole = Recording::default();
        let end = train(&base, &settings, &mut whole, None).unwrap();
        let (_, state) = &whole.checkpoints[0];
        let again = train(&base, &settings, &mut Recording::default(), Some(state)).unwrap();
        assert_eq!(again, end);
    }

    #[test]
    fn what_a_model_cannot_be_trained_with_is_refused() {
        let t5 = crate::torch::test_support::checkpoint("t5_gated");
        let checkpointed = TrainingSettings {
            activation_checkpointing: true,
            ..TrainingSettings::default()
        };
        let message = checkpointed.check_for(t5.architecture()).unwrap_err();
        assert!(
            message.to_string().contains("activation_checkpointing"),
            "{message}"
        );
        let half = TrainingSettings {
            precision: Precision::Bf16,
            ..TrainingSettings::default()
        };
        assert_eq!(half.check_for(t5.architecture()), Ok(()));
        assert_eq!(checkpointed.check_for(base(0.0).architecture()), Ok(()));
        for settings in [half, checkpointed] {
            let images = image_network(&[2], &[4]);
            assert!(settings.check_for(images.architecture()).is_err());
        }
    }

    fn every_optimizer() -> Vec<Optimizer> {
        let named = |text: &str| serde_json::from_str(text).unwrap();
        vec![
            named(r#"{"name": "sgd"}"#),
            named(r#"{"name": "sgd", "momentum": 0.9, "nesterov": true}"#),
            named(r#"{"name": "rmsprop", "momentum": 0.5}"#),
            named(r#"{"name": "adam", "weight_decay": 0.01}"#),
            named(r#"{"name": "adamw"}"#),
            named(r#"{"name": "adafactor", "weight_decay": 0.01}"#),
        ]
    }

    #[test]
    fn a_resumed_run_continues_bit_for_bit_with_every_optimizer() {
        for optimizer in every_optimizer() {
            let (base, settings) = (base(0.1), settings(optimizer));
            let mut whole = Recording::default();
            let expected = train(&base, &settings, &mut whole, None).unwrap();

            let mut stopped = Recording {
                stop_after: Some(6),
                ..Recording::default()
            };
            let error = train(&base, &settings, &mut stopped, None).unwrap_err();
            assert!(matches!(error, TrainingError::Observer { step: 6, .. }));
            let (step, checkpoint) = &stopped.checkpoints[0];
            assert_eq!(*step, 4);
            let file = checkpoint.to_bytes().unwrap();
            let checkpoint = Artifact::from_bytes(&file).unwrap();

            let mut rest = Recording::default();
            let resumed = train(&base, &settings, &mut rest, Some(&checkpoint)).unwrap();
            assert_eq!(
                resumed.fingerprint(),
                expected.fingerprint(),
                "{optimizer:?}"
            );
            assert!(whole.bits.ends_with(&rest.bits), "{optimizer:?}");
            assert_eq!(rest.checkpoints.last(), whole.checkpoints.last());
        }
    }

    #[test]
    fn runs_in_parallel_threads_give_the_bits_of_a_run_alone() {
        let (base, settings) = (base(0.2), settings(Optimizer::default()));
        let run = || {
            let mut recording = Recording::default();
            let weights = train(&base, &settings, &mut recording, None).unwrap();
            (recording.bits, weights.fingerprint())
        };
        let alone = run();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), alone);
            }
        });
    }

    #[test]
    fn evaluating_in_parts_measures_the_same_losses_in_turn() {
        let tuning = |eval_parts| FineTuning {
            base: base(0.0),
            train: examples(4),
            test: EvaluationSet::new(examples(7), 3),
            settings: TrainingSettings {
                eval_every: 2,
                eval_parts,
                ..settings(Optimizer::default())
            },
            device: Device::Cpu,
        };
        let curriculum = Curriculum::new(vec![Step::new(vec![1, 2], Some(1e-2)); 9], 4).unwrap();
        let run = |parts| {
            let trained = tuning(parts).retrain(&curriculum, 0, &NoProgress);
            trained.unwrap()
        };
        let (all, parts) = (run(1), run(3));
        assert_eq!(parts.steps(), [0, 2, 4, 6, 8, 9]);
        for (row, expected) in [7, 2, 2, 3, 2, 7].into_iter().enumerate() {
            let measured = (0..7).filter(|&test| parts.get(row, test).is_some());
            assert_eq!(measured.clone().count(), expected, "row {row}");
            for test in measured {
                let difference = parts.get(row, test).unwrap() - all.get(row, test).unwrap();
                assert!(difference.abs() < 1e-5, "row {row}, test example {test}");
            }
        }
    }

    #[test]
    fn training_on_one_example_lowers_its_loss() {
        let base = base(0.0);
        let test = EvaluationSet::new(examples(2), 64);
        let steps = vec![Step::new(vec![1], Some(1e-2)); 30];
        let tuning = FineTuning {
            base,
            train: examples(2),
            test,
            settings: TrainingSettings {
                eval_every: 10,
                ..settings(Optimizer::default())
            },
            device: Device::Cpu,
        };
        let curriculum = Curriculum::new(steps, 2).unwrap();
        let trajectory = tuning.retrain(&curriculum, 0, &NoProgress).unwrap();
        assert_eq!(trajectory.steps(), [0, 10, 20, 30]);
        assert!(trajectory.last().unwrap()[1] < 0.1 * trajectory.initial().unwrap()[1]);
    }

    #[test]
    fn the_batch_loss_before_the_update_is_the_test_loss_of_the_same_example() {
        struct Compare(Vec<f32>);
        impl TrainingObserver for Compare {
            fn initial(&mut self, evaluation: &Evaluation) -> Result<(), BoxError> {
                self.0.clone_from(&evaluation.losses);
                Ok(())
            }
            fn step(&mut self, r: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
                for (&id, loss) in r.update.batch.iter().zip(r.batch_losses) {
                    assert!((loss - self.0[id as usize]).abs() < 1e-5);
                }
                self.0.clone_from(&r.evaluation.unwrap().losses);
                Ok(())
            }
        }
        let test = EvaluationSet::new(examples(20), 64);
        let (train, curriculum) = (examples(20), curriculum(5));
        let (mut compare, settings) = (Compare(Vec::new()), settings(Optimizer::default()));
        fine_tune(
            &base(0.0),
            &train,
            &test,
            &curriculum,
            &settings,
            0,
            Device::Cpu,
            &mut compare,
            None,
        )
        .unwrap();
    }

    #[test]
    fn a_weight_of_one_is_a_batch_of_one() {
        let final_weights = |step: Step| {
            let curriculum = Curriculum::new(vec![step], 20).unwrap();
            let settings = settings(Optimizer::default());
            let (train, test) = (examples(20), test_set());
            fine_tune(
                &base(0.0),
                &train,
                &test,
                &curriculum,
                &settings,
                0,
                Device::Cpu,
                &mut Silent,
                None,
            )
            .unwrap()
        };
        let mut weighted = Step::new(vec![3, 7], Some(1e-3));
        weighted.weights = Some(vec![0.0, 1.0]);
        let (a, b) = (
            final_weights(weighted),
            final_weights(Step::new(vec![7], Some(1e-3))),
        );
        // The first step of AdamW divides the gradient by itself: compare where it is not tiny.
        let distance: f32 = a
            .flat()
            .iter()
            .zip(b.flat())
            .map(|(a, b)| (a - b).abs())
            .sum();
        let moved: f32 = a
            .flat()
            .iter()
            .zip(base(0.0).flat())
            .map(|(a, b)| (a - b).abs())
            .sum();
        assert!(distance < 0.02 * moved, "{distance} {moved}");
    }

    #[test]
    fn micro_batches_make_the_step_of_the_whole_batch() {
        let steps = (0..6).map(|t| Step::new(vec![t, t + 3, 2 * t, 9, 14], None));
        let curriculum = Curriculum::new(steps.collect(), 20).unwrap();
        let run = |accumulation, batch_loss| {
            // Not AdamW, which makes whole steps of the rounding where a gradient is 0.
            let sgd = serde_json::from_str(r#"{"name": "sgd", "momentum": 0.9}"#).unwrap();
            let settings = TrainingSettings {
                accumulation,
                batch_loss,
                learning_rate: 3e-2,
                ..settings(sgd)
            };
            let mut recording = Recording::default();
            let (train, test) = (examples(20), test_set());
            let end = fine_tune(
                &base(0.0),
                &train,
                &test,
                &curriculum,
                &settings,
                0,
                Device::Cpu,
                &mut recording,
                None,
            );
            let values = recording.bits.into_iter().map(f32::from_bits);
            (end.unwrap(), values.collect::<Vec<f32>>())
        };
        let apart = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            (a.iter().zip(b)).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()))
        };
        for batch_loss in [BatchLoss::ExampleMean, BatchLoss::TokenMean] {
            let (whole, observed) = run(1, batch_loss);
            // Parts of 3 + 2, of 2 + 2 + 1 (twice), of one each.
            for accumulation in [2, 3, 4, 5, 99] {
                let (end, values) = run(accumulation, batch_loss);
                assert!(apart(&values, &observed) < 2e-5, "{accumulation}");
                assert!(apart(end.flat(), whole.flat()) < 2e-5, "{accumulation}");
            }
        }
        let (example_mean, _) = run(1, BatchLoss::ExampleMean);
        let (token_mean, _) = run(1, BatchLoss::TokenMean);
        assert!(apart(example_mean.flat(), token_mean.flat()) > 1e-3);
    }

    #[test]
    fn the_share_of_an_example_is_that_of_its_answer_tokens_unless_the_step_has_weights() {
        struct Weights(Vec<Option<Vec<f32>>>);
        impl TrainingObserver for Weights {
            fn initial(&mut self, _: &Evaluation) -> Result<(), BoxError> {
                Ok(())
            }
            fn step(&mut self, r: &StepRecord<'_>, _: &TrainingState<'_>) -> Result<(), BoxError> {
                self.0.push(r.update.weights.clone());
                Ok(())
            }
        }
        // Examples of one and of two answer tokens.
        let plain = Step::new(vec![0, 1, 3, 5], None);
        let weighted = Step {
            weights: Some(vec![0.5, 0.25, 0.125, 0.125]),
            ..plain.clone()
        };
        let curriculum = Curriculum::new(vec![plain, weighted], 20).unwrap();
        let settings = TrainingSettings {
            batch_loss: BatchLoss::TokenMean,
            ..settings(Optimizer::default())
        };
        let mut weights = Weights(Vec::new());
        fine_tune(
            &base(0.0),
            &examples(20),
            &test_set(),
            &curriculum,
            &settings,
            0,
            Device::Cpu,
            &mut weights,
            None,
        )
        .unwrap();
        let share = |tokens: f32| tokens / 7.0;
        let expected = [1.0, 2.0, 2.0, 2.0].map(share).to_vec();
        assert_eq!(weights.0[0], Some(expected));
        assert_eq!(weights.0[1], curriculum.steps()[1].weights);
    }

    #[test]
    fn a_diverging_run_is_observed_and_not_an_error() {
        let sgd = serde_json::from_str(r#"{"name": "sgd"}"#).unwrap();
        let settings = TrainingSettings {
            learning_rate: 1e30,
            gradient_clip: None,
            checkpoint_every: None,
            ..settings(sgd)
        };
        let mut recording = Recording::default();
        train(&base(0.0), &settings, &mut recording, None).unwrap();
        assert!(
            recording
                .bits
                .iter()
                .any(|&bits| !f32::from_bits(bits).is_finite())
        );
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused() {
        let (base, settings) = (base(0.0), settings(Optimizer::default()));
        let mut recording = Recording::default();
        train(&base, &settings, &mut recording, None).unwrap();
        let mut artifact = recording.checkpoints[0].1.clone();
        artifact.set_json("seed", &99_u64);
        let error = train(&base, &settings, &mut recording, Some(&artifact)).unwrap_err();
        assert!(
            error.to_string().contains("seed is 99, expected 3"),
            "{error}"
        );
    }

    #[test]
    fn bad_input_is_named() {
        let mut short = examples(20);
        short.truncate(10);
        let mut observer = Silent;
        let (base, settings) = (base(0.0), settings(Optimizer::default()));
        let error = fine_tune(
            &base,
            &short,
            &test_set(),
            &curriculum(5),
            &settings,
            0,
            Device::Cpu,
            &mut observer,
            None,
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("there are 10 training examples"),
            "{error}"
        );
        let none = EvaluationSet::new(Vec::new(), 4);
        let error = fine_tune(
            &base,
            &examples(20),
            &none,
            &curriculum(5),
            &settings,
            0,
            Device::Cpu,
            &mut observer,
            None,
        )
        .unwrap_err();
        assert!(matches!(error, TrainingError::NoTestExamples));
    }

    #[test]
    fn only_decoders_are_pre_trained() {
        for folder in ["t5", "bert"] {
            let base = crate::torch::test_support::checkpoint(folder);
            let settings = settings(Optimizer::default());
            let mut note = |_: u32, _: f32| Ok(());
            let result = pretrain(
                &base,
                &[1, 2, 3],
                None,
                &settings,
                0,
                Device::Cpu,
                &mut note,
            );
            assert!(matches!(result, Err(TrainingError::NotCausal)), "{folder}");
        }
    }

    #[test]
    fn pre_training_on_images_learns_their_classes_and_repeats_itself() {
        let start = image_network(&[2, 3], &[5]);
        let images = examples_of(&start, 4, 1);
        let settings = TrainingSettings {
            steps: 60,
            batch_size: 4,
            learning_rate: 1e-2,
            ..TrainingSettings::default()
        };
        let learn = |images: &[TokenizedExample]| {
            let mut losses = Vec::new();
            let end = pretrain_on_images(
                &start,
                images,
                &settings,
                3,
                crate::Device::Cpu,
                &mut |_, loss| {
                    losses.push(loss);
                    Ok(())
                },
            )?;
            Ok::<_, TrainingError>((end, losses))
        };
        let (end, losses) = learn(&images).unwrap();
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        assert!(
            mean(&losses[50..]) < 0.8 * mean(&losses[..10]),
            "{losses:?}"
        );
        assert_eq!(learn(&images).unwrap(), (end, losses));
        assert!(matches!(learn(&[]), Err(TrainingError::NoImages)));
        let mut wrong = images;
        wrong[2].tokens[30] = 4;
        let message = learn(&wrong).unwrap_err().to_string();
        assert!(
            message.contains("image 2 of those to pre-train on: its class is 4"),
            "{message}"
        );
    }

    #[test]
    fn pre_training_learns_a_repeating_text_and_repeats_itself() {
        let corpus: Vec<u32> = (0..400).map(|k| [1, 5, 2, 7, 3][k % 5]).collect();
        let settings = TrainingSettings {
            steps: 60,
            ..settings(Optimizer::default())
        };
        let run = || {
            let mut losses = Vec::new();
            let mut note = |_: u32, loss: f32| {
                losses.push(loss);
                Ok(())
            };
            let weights = pretrain(
                &base(0.0),
                &corpus,
                Some(10),
                &settings,
                9,
                Device::Cpu,
                &mut note,
            )
            .unwrap();
            (losses, weights.fingerprint())
        };
        let (losses, fingerprint) = run();
        assert!(losses[59] < 0.3 * losses[0], "{losses:?}");
        assert_eq!(run(), (losses, fingerprint));
    }
}
