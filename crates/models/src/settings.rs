//! Settings of a model and of its fine-tuning, as they stand in a task file.

use crate::batch_loss::BatchLoss;
use crate::decoder::{
    Activation, Attention, Decoder, DropoutRates, Gate, Mlp, Names, Norm, NormKind, NormPlace,
    Positions, Projection, Structure,
};
use crate::images::{ImageKind, ImageSettings, ImageSize};
use crate::precision::Precision;
use crate::reading::Reading;
use crate::weight_decay::WeightDecayGroups;
use crate::weights::Architecture;
use serde::{Deserialize, Serialize};
use simfluence_core::{Optimizer, Schedule};
use std::path::PathBuf;

/// Shape of a decoder-only transformer.
///
/// Every field has a default, so that a task file names only what differs.
///
/// ```
/// use simfluence_models::ModelSettings;
/// let settings = ModelSettings { width: 96, ..ModelSettings::default() };
/// assert_eq!((settings.layers, settings.heads), (3, 4));
/// assert!(settings.check().is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// Number of blocks, default 3, at least 1.
    pub layers: u32,
    /// Attention heads per block, default 4; divides `width`.
    pub heads: u32,
    /// Width of the residual stream, default 128.
    pub width: u32,
    /// Longest input in tokens, default 128.
    pub context: u32,
    /// Whether the output matrix is the token embedding, default true.
    pub tied_output: bool,
    /// Dropout probability of the embeddings and of what each block adds to the residual stream,
    /// default 0, in `[0, 1)`. Active in fine-tuning and pre-training only.
    pub dropout: f64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            layers: 3,
            heads: 4,
            width: 128,
            context: 128,
            tied_output: true,
            dropout: 0.0,
        }
    }
}

impl ModelSettings {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// A size of 0, heads that do not divide the width, a dropout outside `[0, 1)`.
    pub fn check(&self) -> Result<(), SettingsError> {
        let sizes = [
            ("layers", self.layers),
            ("heads", self.heads),
            ("width", self.width),
            ("context", self.context),
        ];
        for (setting, got) in sizes {
            at_least_one(setting, got)?;
        }
        if !self.width.is_multiple_of(self.heads) {
            return Err(SettingsError::Heads {
                width: self.width,
                heads: self.heads,
            });
        }
        check_dropout(self.dropout)
    }
}

/// Fails unless a probability of dropout is at least 0 and below 1.
pub(crate) fn check_dropout(probability: f64) -> Result<(), SettingsError> {
    below_one("dropout", probability)
}

impl ModelSettings {
    /// The transformer of these settings for a vocabulary of this size.
    pub(crate) fn decoder(&self, vocabulary: u32) -> Decoder {
        Decoder {
            structure: Structure::Causal,
            labels: Vec::new(),
            vocabulary,
            context: self.context,
            layers: self.layers,
            width: self.width,
            embedding_width: self.width,
            positions: Positions::Learned { offset: 0 },
            token_types: 0,
            has_embedding_norm: false,
            norm: Norm {
                kind: NormKind::LayerNorm,
                // PyTorch's default.
                eps: 1e-5,
            },
            norm_place: NormPlace::Before,
            has_final_norm: true,
            is_parallel: false,
            attention: Attention {
                heads: self.heads,
                key_value_heads: self.heads,
                head_width: self.width / self.heads,
                projection: Projection::Fused,
                has_bias: true,
                has_output_bias: true,
                is_scaled: true,
                window: None,
            },
            mlp: Mlp {
                width: 4 * self.width,
                activation: Activation::Gelu,
                gate: Gate::Absent,
                has_bias: true,
            },
            tied_output: self.tied_output,
            is_output_scaled: false,
            dropout: DropoutRates {
                embedding: self.dropout,
                residual: self.dropout,
                ..DropoutRates::default()
            },
            adapters: None,
            names: Names::OWN,
        }
    }
}

/// The `[model]` of a task: shapes of a model that is pre-trained here, or a folder with one; or a
/// network on images.
///
/// ```
/// use simfluence_models::ModelChoice;
/// let choice: ModelChoice = toml::from_str("path = \"tiny-llama\"\ndropout = 0.0")?;
/// assert!(matches!(choice, ModelChoice::Folder(_)));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ModelTable", into = "ModelTable")]
pub enum ModelChoice {
    /// A model that is pre-trained here.
    Settings(ModelSettings),
    /// A model in Hugging Face format.
    Folder(FolderSettings),
    /// A network on images, pre-trained here, too.
    Images(ImageSettings),
}

/// A model in Hugging Face format.
#[derive(Debug, Clone, PartialEq)]
pub struct FolderSettings {
    /// Folder with `config.json`, `model.safetensors` (or its index) and `tokenizer.json`;
    /// relative to the task file, or else to the working directory.
    pub path: PathBuf,
    /// Folder of a LoRA adapter in PEFT's format, which is then what is trained; relative as `path`
    /// is. Default: none.
    pub adapter: Option<PathBuf>,
    /// Probability of dropout everywhere, in `[0, 1)`; default: what `config.json` says.
    pub dropout: Option<f64>,
}

impl Default for ModelChoice {
    fn default() -> Self {
        Self::Settings(ModelSettings::default())
    }
}

impl ModelChoice {
    /// Checks the settings.
    ///
    /// # Errors
    /// See [`ModelSettings::check`] and [`ImageSettings::check`].
    pub fn check(&self) -> Result<(), SettingsError> {
        match self {
            Self::Settings(settings) => settings.check(),
            Self::Folder(folder) => check_dropout(folder.dropout.unwrap_or(0.0)),
            Self::Images(settings) => settings.check(),
        }
    }
}

/// `[model]` as it stands in the file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ModelTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tied_output: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<ImageKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standard_deviation: Option<f64>,
}

impl ModelTable {
    /// Settings of models on texts that are given.
    fn of_texts(&self) -> impl Iterator<Item = &'static str> {
        let settings = [
            ("model.path", self.path.is_some()),
            ("model.adapter", self.adapter.is_some()),
            ("model.layers", self.layers.is_some()),
            ("model.heads", self.heads.is_some()),
            ("model.width", self.width.is_some()),
            ("model.context", self.context.is_some()),
            ("model.tied_output", self.tied_output.is_some()),
            ("model.dropout", self.dropout.is_some()),
        ];
        given(settings)
    }

    /// Settings of convolutions that are given.
    fn of_convolutions(&self) -> impl Iterator<Item = &'static str> {
        given([
            ("model.channels", self.channels.is_some()),
            ("model.kernel", self.kernel.is_some()),
        ])
    }

    /// Settings of all networks on images that are given.
    fn of_images(&self) -> impl Iterator<Item = &'static str> {
        given([
            ("model.hidden", self.hidden.is_some()),
            ("model.mean", self.mean.is_some()),
            (
                "model.standard_deviation",
                self.standard_deviation.is_some(),
            ),
        ])
    }

    /// The network on images of this kind.
    fn images(self, kind: ImageKind) -> Result<ImageSettings, SettingsError> {
        let without_meaning = match kind {
            ImageKind::Cnn => self.of_texts().next(),
            ImageKind::Mlp => self.of_texts().chain(self.of_convolutions()).next(),
        };
        if let Some(setting) = without_meaning {
            return Err(SettingsError::BesideKind { setting, kind });
        }
        if kind == ImageKind::Cnn && self.channels.as_ref().is_some_and(Vec::is_empty) {
            return Err(SettingsError::NoConvolution);
        }
        let default = ImageSettings::new(kind);
        Ok(ImageSettings {
            channels: self.channels.unwrap_or(default.channels),
            kernel: self.kernel.unwrap_or(default.kernel),
            hidden: self.hidden.unwrap_or(default.hidden),
            mean: self.mean.unwrap_or(default.mean),
            standard_deviation: (self.standard_deviation).unwrap_or(default.standard_deviation),
        })
    }
}

/// Names of the settings that are given.
fn given<const N: usize>(
    settings: [(&'static str, bool); N],
) -> impl Iterator<Item = &'static str> {
    (settings.into_iter()).filter_map(|(setting, is_given)| is_given.then_some(setting))
}

impl TryFrom<ModelTable> for ModelChoice {
    type Error = SettingsError;

    fn try_from(table: ModelTable) -> Result<Self, SettingsError> {
        if let Some(kind) = table.kind {
            return Ok(Self::Images(table.images(kind)?));
        }
        if let Some(setting) = (table.of_convolutions().chain(table.of_images())).next() {
            return Err(SettingsError::WithoutKind { setting });
        }
        let Some(path) = table.path else {
            if table.adapter.is_some() {
                return Err(SettingsError::AdapterAlone);
            }
            let default = ModelSettings::default();
            return Ok(Self::Settings(ModelSettings {
                layers: table.layers.unwrap_or(default.layers),
                heads: table.heads.unwrap_or(default.heads),
                width: table.width.unwrap_or(default.width),
                context: table.context.unwrap_or(default.context),
                tied_output: table.tied_output.unwrap_or(default.tied_output),
                dropout: table.dropout.unwrap_or(default.dropout),
            }));
        };
        let given = [
            ("model.layers", table.layers.is_some()),
            ("model.heads", table.heads.is_some()),
            ("model.width", table.width.is_some()),
            ("model.context", table.context.is_some()),
            ("model.tied_output", table.tied_output.is_some()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((setting, _)) => Err(SettingsError::BesideFolder { setting }),
            None => Ok(Self::Folder(FolderSettings {
                path,
                adapter: table.adapter,
                dropout: table.dropout,
            })),
        }
    }
}

impl From<ModelChoice> for ModelTable {
    fn from(choice: ModelChoice) -> Self {
        match choice {
            ModelChoice::Settings(settings) => Self {
                path: None,
                adapter: None,
                layers: Some(settings.layers),
                heads: Some(settings.heads),
                width: Some(settings.width),
                context: Some(settings.context),
                tied_output: Some(settings.tied_output),
                dropout: Some(settings.dropout),
                ..Self::default()
            },
            ModelChoice::Images(settings) => {
                let kind = settings.kind();
                let of_cnn = kind == ImageKind::Cnn;
                Self {
                    kind: Some(kind),
                    kernel: of_cnn.then_some(settings.kernel),
                    channels: of_cnn.then_some(settings.channels),
                    hidden: Some(settings.hidden),
                    mean: Some(settings.mean),
                    standard_deviation: Some(settings.standard_deviation),
                    ..Self::default()
                }
            }
            ModelChoice::Folder(folder) => Self {
                path: Some(folder.path),
                adapter: folder.adapter,
                dropout: folder.dropout,
                ..Self::default()
            },
        }
    }
}

/// How a model is fine-tuned or pre-trained.
///
/// ```
/// use simfluence_models::TrainingSettings;
/// let settings = TrainingSettings { steps: 96, ..TrainingSettings::default() };
/// assert!(settings.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSettings {
    /// The optimiser with its constants, default AdamW with PyTorch's.
    pub optimizer: Optimizer,
    /// Which parameters its weight decay applies to, default all.
    pub weight_decay_groups: WeightDecayGroups,
    /// Peak learning rate, default 1e-3, above 0. A curriculum's own learning rates come first.
    pub learning_rate: f64,
    /// Course of the learning rate, default constant without warm-up.
    pub schedule: Schedule,
    /// Training examples per step, default 8.
    pub batch_size: u32,
    /// Each member's share in the loss of a step, default `1/|c_t|`.
    pub batch_loss: BatchLoss,
    /// Micro-batches of a step, default 1, at most `batch_size`: parts of `⌈|c_t| / accumulation⌉`
    /// members that go through the model one after the other, so that activations of one part only
    /// are kept; their gradients are summed before the step's one update.
    pub accumulation: u32,
    /// Number of steps `T`, default 96.
    pub steps: u32,
    /// Largest global norm of the gradient; longer ones are scaled down to it. Default: none.
    pub gradient_clip: Option<f64>,
    /// Floats of the matrix products of training and evaluation, default 32-bit ones.
    pub precision: Precision,
    /// Whether only what enters each block is kept on the way forward, and the rest computed again on
    /// the way back: less memory for a third more time. Default: no. Changes no result beyond
    /// rounding.
    pub activation_checkpointing: bool,
    /// The test losses are measured after every step that this divides, and after the last one;
    /// default 1.
    pub eval_every: u32,
    /// Each evaluation but the first and the last measures only one of so many parts of the test
    /// examples in turn (`j mod eval_parts`); default 1: all of them.
    pub eval_parts: u32,
    /// Test examples evaluated at once, default 64. Memory and speed only; but sums are ordered
    /// by it, so that the last bits of a loss may depend on it.
    pub eval_batch_size: u32,
    /// LibTorch threads of one run, default 1.
    pub threads: u32,
    /// A checkpoint is offered after every step that this divides, and after the last one.
    /// Default: none at all.
    pub checkpoint_every: Option<u32>,
}

impl Default for TrainingSettings {
    fn default() -> Self {
        Self {
            optimizer: Optimizer::default(),
            weight_decay_groups: WeightDecayGroups::default(),
            learning_rate: 1e-3,
            schedule: Schedule::default(),
            batch_size: 8,
            batch_loss: BatchLoss::default(),
            accumulation: 1,
            steps: 96,
            gradient_clip: None,
            precision: Precision::default(),
            activation_checkpointing: false,
            eval_every: 1,
            eval_parts: 1,
            eval_batch_size: 64,
            threads: 1,
            checkpoint_every: None,
        }
    }
}

impl TrainingSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// A count of 0, a learning rate or clipping norm that is not positive and finite.
    pub fn check(&self) -> Result<(), SettingsError> {
        let counts = [
            ("batch_size", self.batch_size),
            ("accumulation", self.accumulation),
            ("steps", self.steps),
            ("eval_every", self.eval_every),
            ("eval_parts", self.eval_parts),
            ("eval_batch_size", self.eval_batch_size),
            ("threads", self.threads),
            ("checkpoint_every", self.checkpoint_every.unwrap_or(1)),
        ];
        for (setting, got) in counts {
            at_least_one(setting, got)?;
        }
        positive("learning_rate", self.learning_rate)?;
        positive("gradient_clip", self.gradient_clip.unwrap_or(1.0))?;
        check_optimizer(&self.optimizer)
    }

    /// Checks that a model can be trained so.
    ///
    /// # Errors
    /// Another precision than 32 bits for a network on images; activation checkpointing for one,
    /// or for an encoder with a decoder.
    pub fn check_for(&self, architecture: &Architecture) -> Result<(), SettingsError> {
        let model = match (architecture.images(), architecture.reading()) {
            (Some(_), _) => "a network on images",
            (None, Reading::PromptAndAnswer { .. }) => "an encoder with a decoder",
            _ => return Ok(()),
        };
        let refuse = |setting| Err(SettingsError::NotForModel { setting, model });
        if self.activation_checkpointing {
            return refuse("training.activation_checkpointing");
        }
        if self.precision != Precision::F32 && architecture.images().is_some() {
            return refuse("training.precision");
        }
        Ok(())
    }

    /// `η_t` of step `step` (counted from 1) of `steps`, where the curriculum gives none.
    pub fn learning_rate_at(&self, step: u32, steps: u32) -> f32 {
        (self.learning_rate * self.schedule.factor(step, steps)) as f32
    }

    /// Whether the test losses are measured after step `step` of `steps`.
    pub fn evaluates_at(&self, step: u32, steps: u32) -> bool {
        step == steps || step.is_multiple_of(self.eval_every)
    }

    /// Which part of the test examples is measured after step `step` of `steps`; `None`: all.
    pub fn part_at(&self, step: u32, steps: u32) -> Option<u32> {
        let partly = self.eval_parts > 1 && step != steps;
        partly.then(|| (step / self.eval_every) % self.eval_parts)
    }

    /// Whether a checkpoint is due after step `step` of `steps`.
    pub fn checkpoints_at(&self, step: u32, steps: u32) -> bool {
        self.checkpoint_every
            .is_some_and(|every| step == steps || step.is_multiple_of(every))
    }
}

/// Checks the constants of an optimiser: the ranges in which the updates are what their papers
/// describe; for momentum, dampening and `α` narrower than PyTorch, which lets averages grow
/// without bound.
///
/// # Errors
/// A constant out of its range.
pub fn check_optimizer(optimizer: &Optimizer) -> Result<(), SettingsError> {
    match *optimizer {
        Optimizer::Sgd {
            momentum,
            dampening,
            weight_decay,
            ..
        } => {
            below_one("optimizer.momentum", momentum)?;
            below_one("optimizer.dampening", dampening)?;
            not_negative("optimizer.weight_decay", weight_decay)
        }
        Optimizer::Rmsprop {
            alpha,
            eps,
            momentum,
            weight_decay,
        } => {
            below_one("optimizer.alpha", alpha)?;
            not_negative("optimizer.eps", eps)?;
            below_one("optimizer.momentum", momentum)?;
            not_negative("optimizer.weight_decay", weight_decay)
        }
        Optimizer::Adam {
            beta1,
            beta2,
            eps,
            weight_decay,
        }
        | Optimizer::Adamw {
            beta1,
            beta2,
            eps,
            weight_decay,
        } => {
            below_one("optimizer.beta1", beta1)?;
            below_one("optimizer.beta2", beta2)?;
            not_negative("optimizer.eps", eps)?;
            not_negative("optimizer.weight_decay", weight_decay)
        }
        Optimizer::Adafactor {
            beta2_decay,
            eps1,
            eps2,
            d,
            weight_decay,
        } => {
            if !(beta2_decay.is_finite() && beta2_decay <= 0.0) {
                return Err(SettingsError::Range {
                    setting: "optimizer.beta2_decay",
                    expected: "at most 0",
                    got: beta2_decay,
                });
            }
            not_negative("optimizer.eps1", eps1)?;
            not_negative("optimizer.eps2", eps2)?;
            positive("optimizer.d", d)?;
            not_negative("optimizer.weight_decay", weight_decay)
        }
    }
}

/// Fails unless a number is at least 0 and below 1.
pub(crate) fn below_one(setting: &'static str, got: f64) -> Result<(), SettingsError> {
    if (0.0..1.0).contains(&got) {
        return Ok(());
    }
    Err(SettingsError::Range {
        setting,
        expected: "at least 0 and below 1",
        got,
    })
}

fn not_negative(setting: &'static str, got: f64) -> Result<(), SettingsError> {
    if got.is_finite() && got >= 0.0 {
        return Ok(());
    }
    Err(SettingsError::Range {
        setting,
        expected: "at least 0 and finite",
        got,
    })
}

pub(crate) fn at_least_one(setting: &'static str, got: u32) -> Result<(), SettingsError> {
    if got == 0 {
        return Err(SettingsError::Zero { setting });
    }
    Ok(())
}

fn positive(setting: &'static str, got: f64) -> Result<(), SettingsError> {
    if got.is_finite() && got > 0.0 {
        return Ok(());
    }
    Err(SettingsError::Range {
        setting,
        expected: "positive and finite",
        got,
    })
}

/// What is wrong with model or training settings.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// A size or count of 0.
    #[error("{setting} is 0; it must be at least 1")]
    Zero {
        /// Name of the setting.
        setting: &'static str,
    },
    /// A setting that a model folder decides.
    #[error("{setting} cannot be given beside model.path: the folder decides it")]
    BesideFolder {
        /// Name of the setting.
        setting: &'static str,
    },
    /// A setting that the kind of network does not have.
    #[error("{setting} has no meaning for a network on images with model.kind = {:?}", match kind {
        ImageKind::Cnn => "cnn",
        ImageKind::Mlp => "mlp",
    })]
    BesideKind {
        /// Name of the setting.
        setting: &'static str,
        /// The kind.
        kind: ImageKind,
    },
    /// A setting of networks on images for another model.
    #[error("{setting} is for networks on images; give model.kind = \"cnn\" or \"mlp\" with it")]
    WithoutKind {
        /// Name of the setting.
        setting: &'static str,
    },
    /// A setting of training that the model cannot be trained with.
    #[error("{setting} is not supported for {model}; leave it out")]
    NotForModel {
        /// Name of the setting.
        setting: &'static str,
        /// What the model is.
        model: &'static str,
    },
    /// A convolutional network without convolutions.
    #[error("model.channels is empty; a network without convolutions is model.kind = \"mlp\"")]
    NoConvolution,
    /// Images that are too small for the network.
    #[error(
        "images of {size} pixels are too small for {convolutions} convolutions, each of which halves rows and columns; give fewer model.channels"
    )]
    SmallImages {
        /// Size of the images.
        size: ImageSize,
        /// Number of convolutions.
        convolutions: usize,
    },
    /// An adapter for no model folder.
    #[error("model.adapter needs model.path, the folder of the model that it adapts")]
    AdapterAlone,
    /// Parameters to train that the model does not have.
    #[error("{problem}")]
    Trainable {
        /// What is wrong.
        problem: String,
    },
    /// Heads that do not divide the width.
    #[error("width {width} is not divisible by {heads} heads")]
    Heads {
        /// Width of the model.
        width: u32,
        /// Number of heads.
        heads: u32,
    },
    /// A number out of range.
    #[error("{setting} is {got}; it must be {expected}")]
    Range {
        /// Name of the setting.
        setting: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        got: f64,
    },
}

/// A text as tokens, and which of them carry loss; or an image as its pixels, and behind them its
/// class.
///
/// Its loss is the mean negative log-likelihood (nats) of `tokens[answer_start..]` without those at
/// `unscored`, each token predicted from all that precede it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct TokenizedExample {
    /// Prompt and answer; for a classifier a text and, as the last, its class.
    pub tokens: Vec<u32>,
    /// Position of the first token of the answer; at least 1, below the number of tokens.
    pub answer_start: usize,
    /// Positions from there on of tokens without loss, ascending: in a conversation what others say
    /// after the first answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unscored: Vec<usize>,
}

impl TokenizedExample {
    /// An example of which some tokens carry loss. The first token never does, since nothing
    /// precedes it. `None` if no other does.
    pub fn scored(tokens: Vec<u32>, is_scored: impl Iterator<Item = bool>) -> Option<Self> {
        let is_scored: Vec<bool> = is_scored.take(tokens.len()).collect();
        let answer_start = 1 + is_scored.iter().skip(1).position(|&scored| scored)?;
        let behind = answer_start..tokens.len();
        Some(Self {
            unscored: behind.filter(|&at| !is_scored[at]).collect(),
            tokens,
            answer_start,
        })
    }

    /// Positions of the tokens that carry loss, ascending.
    pub fn targets(&self) -> impl Iterator<Item = usize> {
        let mut unscored = self.unscored.iter().copied().peekable();
        (self.answer_start..self.tokens.len()).filter(move |&at| {
            let is_unscored = unscored.peek() == Some(&at);
            if is_unscored {
                unscored.next();
            }
            !is_unscored
        })
    }

    /// How many tokens carry loss.
    pub fn target_count(&self) -> usize {
        self.tokens.len() - self.answer_start - self.unscored.len()
    }

    /// Checks that the example can be trained on by a model of this vocabulary and context.
    ///
    /// # Errors
    /// No prompt, no answer, positions without loss that are out of order, a token outside the
    /// vocabulary, more tokens than the context holds.
    pub fn check(&self, vocabulary: u32, context: u32) -> Result<(), TokensError> {
        self.check_answer()?;
        // The last token is predicted but never read.
        check_length(self.tokens.len(), context as usize + 1)?;
        check_vocabulary(&self.tokens, vocabulary)
    }

    /// The same for an encoder that reads the prompt and a decoder that says the answer, up to
    /// `context` tokens each.
    pub(crate) fn check_parts(&self, vocabulary: u32, context: u32) -> Result<(), TokensError> {
        self.check_answer()?;
        let longest = self.answer_start.max(self.tokens.len() - self.answer_start);
        check_length(longest, context as usize)?;
        check_vocabulary(&self.tokens, vocabulary)
    }

    /// The same for a classifier: the tokens of a text, up to `context`, and its class.
    pub(crate) fn check_class(
        &self,
        vocabulary: u32,
        context: u32,
        classes: u32,
    ) -> Result<(), TokensError> {
        self.check_answer()?;
        let length = self.answer_start;
        if length + 1 != self.tokens.len() {
            return Err(TokensError::NotOneClass {
                got: self.tokens.len() - length,
            });
        }
        check_length(length, context as usize)?;
        let class = self.tokens[length];
        if class >= classes {
            return Err(TokensError::Class { class, classes });
        }
        check_vocabulary(&self.tokens[..length], vocabulary)
    }

    fn check_answer(&self) -> Result<(), TokensError> {
        if self.answer_start == 0 || self.answer_start >= self.tokens.len() {
            return Err(TokensError::Answer {
                tokens: self.tokens.len(),
                answer_start: self.answer_start,
            });
        }
        let mut first = self.answer_start;
        for &position in &self.unscored {
            if position < first || position >= self.tokens.len() {
                return Err(TokensError::Unscored {
                    position,
                    tokens: self.tokens.len(),
                });
            }
            first = position + 1;
        }
        match self.target_count() {
            0 => Err(TokensError::NoTarget),
            _ => Ok(()),
        }
    }
}

fn check_vocabulary(tokens: &[u32], vocabulary: u32) -> Result<(), TokensError> {
    match tokens.iter().find(|&&token| token >= vocabulary) {
        Some(&token) => Err(TokensError::UnknownToken { token, vocabulary }),
        None => Ok(()),
    }
}

fn check_length(got: usize, expected: usize) -> Result<(), TokensError> {
    match got > expected {
        true => Err(TokensError::TooLong { expected, got }),
        false => Ok(()),
    }
}

/// Why a model cannot read an example.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// Prompt or answer is empty.
    #[error(
        "the answer starts at token {answer_start} of {tokens}; prompt and answer need at least one token each"
    )]
    Answer {
        /// Number of tokens.
        tokens: usize,
        /// Where the answer starts.
        answer_start: usize,
    },
    /// Positions without loss that are not ascending within the answer.
    #[error(
        "token {position} of {tokens} is said to carry no loss; such positions must be ascending and within the answer"
    )]
    Unscored {
        /// The position.
        position: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// Nothing to learn.
    #[error("no token of the answer carries loss")]
    NoTarget,
    /// More tokens than the model reads.
    #[error(
        "{got} tokens, but the model's context holds {expected}; raise `context` in the task file or shorten the example"
    )]
    TooLong {
        /// Most tokens, answer included.
        expected: usize,
        /// Tokens of the example.
        got: usize,
    },
    /// A classifier predicts one class and nothing else.
    #[error("{got} values behind the text, but a classifier predicts one class")]
    NotOneClass {
        /// Values behind the text.
        got: usize,
    },
    /// No image of the size that the model reads.
    #[error(
        "the model reads images of {expected} pixels with their class behind them; it has {got} values before the last"
    )]
    Image {
        /// What the model reads.
        expected: ImageSize,
        /// Values of the example, without the last.
        got: usize,
    },
    /// A pixel that is no byte.
    #[error("pixel {position} is {got}; it must be 0 to 255")]
    Pixel {
        /// Its place.
        position: usize,
        /// The value.
        got: u32,
    },
    /// A class the model does not have.
    #[error("its class is {class}, and the model has the {classes} classes from 0 on")]
    Class {
        /// The class.
        class: u32,
        /// Classes of the model.
        classes: u32,
    },
    /// A token the model does not have.
    #[error("token {token} is not in the model's vocabulary of {vocabulary} tokens")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_from_a_task_file_with_defaults() {
        let model: ModelSettings = toml::from_str("width = 96").unwrap();
        assert_eq!(
            model,
            ModelSettings {
                width: 96,
                ..ModelSettings::default()
            }
        );
        let training: TrainingSettings =
            toml::from_str("steps = 7\n[optimizer]\nname = \"sgd\"\nmomentum = 0.9").unwrap();
        assert_eq!(training.steps, 7);
        assert_eq!(training.optimizer.name(), "sgd");
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        assert!(toml::from_str::<ModelSettings>("widht = 96").is_err());
        assert!(toml::from_str::<TrainingSettings>("step = 7").is_err());
    }

    #[test]
    fn networks_on_images_are_read_and_misplaced_settings_named() {
        let read = |text: &str| toml::from_str::<ModelChoice>(text);
        let cnn = read("kind = \"cnn\"\nchannels = [4]\nhidden = [9, 8]\nmean = 0.5").unwrap();
        let expected = ImageSettings {
            channels: vec![4],
            hidden: vec![9, 8],
            mean: 0.5,
            ..ImageSettings::new(ImageKind::Cnn)
        };
        assert_eq!(cnn, ModelChoice::Images(expected));
        for text in ["kind = \"mlp\"", "kind = \"cnn\"", "width = 8"] {
            let choice = read(text).unwrap();
            let written = toml::to_string(&choice).unwrap();
            assert_eq!(read(&written).unwrap(), choice, "{written}");
        }
        for (text, expected) in [
            ("kind = \"cnn\"\nwidth = 8", "model.width has no meaning"),
            ("kind = \"mlp\"\nkernel = 3", "model.kernel has no meaning"),
            ("hidden = [8]", "model.hidden is for networks on images"),
            ("kind = \"cnn\"\nchannels = []", "model.channels is empty"),
            ("kind = \"rnn\"", "`cnn` or `mlp`"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn constants_of_optimisers_out_of_range_are_named() {
        for (optimizer, setting) in [
            (r#"name = "sgd", momentum = 2.0"#, "momentum"),
            (r#"name = "rmsprop", alpha = 1.0"#, "alpha"),
            (r#"name = "adam", beta2 = -3.0"#, "beta2"),
            (r#"name = "adamw", weight_decay = -1.0"#, "weight_decay"),
            (r#"name = "adamw", eps = -1.0"#, "eps"),
            (r#"name = "adafactor", d = 0.0"#, "optimizer.d"),
            (r#"name = "adafactor", beta2_decay = 0.5"#, "beta2_decay"),
        ] {
            let text = format!("optimizer = {{ {optimizer} }}");
            let settings: TrainingSettings = toml::from_str(&text).unwrap();
            let message = settings.check().unwrap_err().to_string();
            assert!(message.contains(setting), "{message}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let heads = ModelSettings {
            heads: 5,
            ..ModelSettings::default()
        };
        assert!(heads.check().unwrap_err().to_string().contains("5 heads"));
        let dropout = ModelSettings {
            dropout: 1.0,
            ..ModelSettings::default()
        };
        assert!(
            dropout
                .check()
                .unwrap_err()
                .to_string()
                .contains("dropout is 1")
        );
        let rate = TrainingSettings {
            learning_rate: f64::NAN,
            ..TrainingSettings::default()
        };
        assert!(
            rate.check()
                .unwrap_err()
                .to_string()
                .contains("learning_rate is NaN")
        );
        let every = TrainingSettings {
            checkpoint_every: Some(0),
            ..TrainingSettings::default()
        };
        assert!(
            every
                .check()
                .unwrap_err()
                .to_string()
                .contains("checkpoint_every is 0")
        );
    }

    #[test]
    fn the_last_step_is_always_evaluated_and_checkpointed() {
        let settings = TrainingSettings {
            eval_every: 4,
            checkpoint_every: Some(5),
            ..TrainingSettings::default()
        };
        let evaluated: Vec<u32> = (1..=11).filter(|&t| settings.evaluates_at(t, 11)).collect();
        let saved: Vec<u32> = (1..=11)
            .filter(|&t| settings.checkpoints_at(t, 11))
            .collect();
        assert_eq!((evaluated, saved), (vec![4, 8, 11], vec![5, 10, 11]));
        assert!(!TrainingSettings::default().checkpoints_at(11, 11));
    }

    #[test]
    fn examples_that_a_model_cannot_read_are_refused() {
        let example = |tokens: &[u32], answer_start| TokenizedExample {
            tokens: tokens.to_vec(),
            answer_start,
            ..TokenizedExample::default()
        };
        assert_eq!(example(&[1, 2, 3], 2).check(4, 2), Ok(()));
        assert!(matches!(
            example(&[1, 2], 0).check(4, 9),
            Err(TokensError::Answer { .. })
        ));
        assert!(matches!(
            example(&[1, 2], 2).check(4, 9),
            Err(TokensError::Answer { .. })
        ));
        assert_eq!(
            example(&[1, 2, 3], 1).check(4, 1),
            Err(TokensError::TooLong {
                expected: 2,
                got: 3
            })
        );
        assert_eq!(
            example(&[1, 4], 1).check(4, 9),
            Err(TokensError::UnknownToken {
                token: 4,
                vocabulary: 4
            })
        );
    }

    #[test]
    fn parts_and_classes_that_a_model_cannot_read_are_refused() {
        let example = |tokens: &[u32], answer_start| TokenizedExample {
            tokens: tokens.to_vec(),
            answer_start,
            ..TokenizedExample::default()
        };
        // Prompt and answer have a context each.
        assert_eq!(example(&[1, 2, 3, 0], 2).check_parts(4, 2), Ok(()));
        let too_long = Err(TokensError::TooLong {
            expected: 2,
            got: 3,
        });
        assert_eq!(example(&[1, 2, 3, 0], 3).check_parts(4, 2), too_long);
        assert_eq!(example(&[1, 2, 3, 0], 1).check_parts(4, 2), too_long);
        // A class is no token.
        let class = |tokens: &[u32], start| example(tokens, start).check_class(4, 2, 6);
        assert_eq!(class(&[1, 2, 5], 2), Ok(()));
        assert_eq!(
            class(&[1, 2, 6], 2),
            Err(TokensError::Class {
                class: 6,
                classes: 6
            })
        );
        assert_eq!(
            class(&[1, 2, 5], 1),
            Err(TokensError::NotOneClass { got: 2 })
        );
        assert_eq!(class(&[1, 2, 3, 5], 3), too_long);
        assert!(matches!(
            class(&[1, 5, 5], 2),
            Err(TokensError::UnknownToken { token: 5, .. })
        ));
    }
}
