//! Task files: what is trained, on what, and how its runs are drawn.

use crate::chat::{ChatError, ChatTemplate};
use crate::example::{Form, TextExample};
use crate::hugging_face::{self, CheckpointError};
use crate::images::{Image, ImageArchitecture, ImageSource, ImageSourceError};
use crate::numbers;
use crate::probes::SettingRange;
use crate::probes::causal_chains::{self, CausalChainsSettings};
use crate::probes::set_membership::{self, SetMembershipSettings};
use crate::probes::word_order::{self, WordOrderSettings};
use crate::reading::Reading;
use crate::settings::{
    FolderSettings, ModelChoice, SettingsError, TokenizedExample, TrainingSettings,
};
use crate::text::{TableSettings, TaskData, TextError, load_table};
use crate::tokenizer::{Tokenizer, TokenizerError, TokenizerKind};
use crate::trainable::Trainable;
use crate::weights::{Architecture, Weights};
use serde::{Deserialize, Serialize};
use simfluence_core::design::{DesignError, DesignSettings, PlannedRun, RunShape, draw_plan};
use simfluence_core::{ExampleError, Examples, Optimizer, Schedule};
use std::path::{Path, PathBuf};

/// A task file (TOML).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name of the task.
    pub name: String,
    /// What a token is, default `character`; a model folder has its own.
    #[serde(default)]
    pub tokenizer: Option<TokenizerKind>,
    /// The examples.
    pub data: DataSettings,
    /// The model.
    #[serde(default)]
    pub model: ModelChoice,
    /// How the base model comes about; of a model folder, nothing.
    #[serde(default)]
    pub pretraining: Option<PretrainingSettings>,
    /// Which of its parameters are fine-tuned, default all.
    #[serde(default)]
    pub trainable: Trainable,
    /// How a run fine-tunes it.
    pub training: TrainingSettings,
    /// How the runs' curricula are drawn.
    #[serde(default)]
    pub design: DesignSettings,
    /// Folder of the task file, which `model.path` is relative to.
    #[serde(skip)]
    folder: Option<PathBuf>,
}

/// Where a task's examples come from (`[data]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum DataSettings {
    /// The number tasks, generated.
    Numbers(NumbersSettings),
    /// Causal chains of made-up names, generated.
    CausalChains(CausalChainsSettings),
    /// Memberships of made-up sets, generated.
    SetMembership(SetMembershipSettings),
    /// Key phrases in order and flipped, generated.
    WordOrder(WordOrderSettings),
    /// A file of the user's, or a Hugging Face `datasets` folder.
    Table(Box<TableSettings>),
    /// Images and labels in IDX files.
    Images(Box<ImageSource>),
    /// Several sources together.
    Mixture(MixtureSettings),
}

/// Several sources whose examples, and texts to pre-train on, are put one after the other
/// (`[[data.parts]]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSettings {
    /// The sources. Keys must be unique across them; a file given besides the task is read by
    /// every table among them, and a folder given so is where the sources of images look.
    pub parts: Vec<DataSettings>,
}

impl DataSettings {
    /// Checks that the settings of every table and of every source of images go together.
    fn check_files(&self) -> Result<(), TaskError> {
        match self {
            Self::Table(table) => Ok(table.check()?),
            Self::Images(images) => Ok(images.check()?),
            Self::Mixture(mixture) => mixture.parts.iter().try_for_each(Self::check_files),
            _ => Ok(()),
        }
    }

    /// The sources that are no mixture.
    fn sources(&self) -> Vec<&Self> {
        match self {
            Self::Mixture(mixture) => mixture.parts.iter().flat_map(Self::sources).collect(),
            source => vec![source],
        }
    }

    /// The sources of images.
    fn images(&self) -> Vec<&ImageSource> {
        let sources = self.sources().into_iter();
        sources
            .filter_map(|source| match source {
                Self::Images(settings) => Some(&**settings),
                _ => None,
            })
            .collect()
    }

    /// The settings that have a range, with what was given.
    fn ranges(&self) -> Vec<SettingRange> {
        match self {
            Self::Numbers(numbers) => [
                ("data.train_per_dataset", numbers.train_per_dataset),
                ("data.test", numbers.test),
            ]
            .map(|(setting, got)| (setting, got, 1..=numbers::LARGEST_SIZE))
            .into(),
            Self::CausalChains(settings) => settings.ranges(),
            Self::SetMembership(settings) => settings.ranges(),
            Self::WordOrder(settings) => settings.ranges(),
            Self::Table(_) | Self::Images(_) => Vec::new(),
            Self::Mixture(mixture) => mixture.parts.iter().flat_map(Self::ranges).collect(),
        }
    }
}

/// Sizes of the number tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NumbersSettings {
    /// Examples of each of the four training tasks, 1 to 256, default 256.
    pub train_per_dataset: usize,
    /// Test examples, 1 to 256, default 64.
    pub test: usize,
    /// Whether the test task is to be answered in words instead of digits, default no.
    pub test_in_words: bool,
    /// Lines of generic text to pre-train on, default 20 000.
    pub corpus_lines: usize,
    /// Seed of the draw, default 0.
    pub seed: u64,
}

impl Default for NumbersSettings {
    fn default() -> Self {
        Self {
            train_per_dataset: numbers::LARGEST_SIZE,
            test: 64,
            test_in_words: false,
            corpus_lines: 20_000,
            seed: 0,
        }
    }
}

/// How the base model is pre-trained: next-token prediction on random windows of the corpus; of
/// images the prediction of the classes of random ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainingSettings {
    /// Steps, default 1 000; 0 fine-tunes from random parameters.
    pub steps: u32,
    /// Windows, or images, per batch, default 16.
    pub batch_size: u32,
    /// Peak learning rate, default 1e-3.
    pub learning_rate: f64,
    /// Schedule of the learning rate, default constant.
    pub schedule: Schedule,
    /// Optimiser, default AdamW.
    pub optimizer: Optimizer,
    /// Seed of initialisation and of what is drawn, default 0.
    pub seed: u64,
}

impl Default for PretrainingSettings {
    fn default() -> Self {
        Self {
            steps: 1_000,
            batch_size: 16,
            learning_rate: 1e-3,
            schedule: Schedule::default(),
            optimizer: Optimizer::default(),
            seed: 0,
        }
    }
}

/// A task with its examples read, checked and tokenised.
#[derive(Debug, Clone)]
pub struct PreparedTask {
    /// The task file.
    pub task: Task,
    /// Training examples of the run set.
    pub train: Examples,
    /// Test examples of the run set.
    pub test: Examples,
    /// Training examples as tokens.
    pub train_tokens: Vec<TokenizedExample>,
    /// Test examples as tokens.
    pub test_tokens: Vec<TokenizedExample>,
    /// Pre-training text as tokens; none for a model folder.
    pub corpus_tokens: Vec<u32>,
    /// Images to pre-train on.
    pub corpus_examples: Vec<TokenizedExample>,
    /// The tokeniser.
    pub tokenizer: Tokenizer,
    /// How the model takes examples in.
    pub reading: Reading,
    /// How many examples were truncated, as `data.truncation` asks.
    pub truncated: Truncated,
}

impl PreparedTask {
    /// The architecture of a model that is pre-trained here; `None` for a model folder.
    ///
    /// # Errors
    /// Impossible settings; images that are too small.
    pub fn architecture(&self) -> Result<Option<Architecture>, SettingsError> {
        match &self.task.model {
            ModelChoice::Settings(settings) => {
                let vocabulary = self.tokenizer.vocabulary_size() as u32;
                Ok(Some(Architecture::new(*settings, vocabulary)?))
            }
            ModelChoice::Images(settings) => {
                let sources = self.task.data.images();
                let classes = sources.first().map_or(0, |source| source.classes);
                let size = self.tokenizer.image_size().unwrap_or_default();
                let images = ImageArchitecture::new(settings.clone(), size, classes)?;
                Ok(Some(Architecture::of_images(images)))
            }
            ModelChoice::Folder(_) => Ok(None),
        }
    }
}

/// Numbers of examples that lost tokens because they were longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truncated {
    /// Of the training examples.
    pub train: usize,
    /// Of the test examples.
    pub test: usize,
}

impl Task {
    /// Reads a task file.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has unknown or missing settings: the message names
    /// file, line and setting.
    pub fn load(path: &Path) -> Result<Self, TaskError> {
        let text = std::fs::read_to_string(path).map_err(|source| TaskError::Unreadable {
            path: path.to_owned(),
            problem: source.to_string(),
        })?;
        let task = Self::parse(&text).map_err(|error| match error {
            TaskError::Malformed { problem, .. } => TaskError::Malformed {
                path: path.to_owned(),
                problem,
            },
            other => other,
        })?;
        Ok(Self {
            folder: path.parent().map(Path::to_owned),
            ..task
        })
    }

    /// Parses the text of a task file.
    ///
    /// # Errors
    /// As [`Task::load`].
    pub fn parse(text: &str) -> Result<Self, TaskError> {
        let task: Self = toml::from_str(text).map_err(|source| TaskError::Malformed {
            path: PathBuf::from("task"),
            problem: source.to_string(),
        })?;
        task.check()?;
        Ok(task)
    }

    fn check(&self) -> Result<(), TaskError> {
        self.model.check()?;
        self.training.check()?;
        let (accumulation, batch_size) = (self.training.accumulation, self.training.batch_size);
        if accumulation > batch_size {
            return Err(TaskError::Setting {
                setting: "training.accumulation",
                got: accumulation.to_string(),
                wanted: format!("at most training.batch_size, {batch_size}"),
            });
        }
        for (setting, got, range) in self.data.ranges() {
            if !range.contains(&got) {
                return Err(TaskError::Setting {
                    setting,
                    got: got.to_string(),
                    wanted: format!("{} to {}", range.start(), range.end()),
                });
            }
        }
        self.data.check_files()?;
        self.check_images()?;
        if let ModelChoice::Folder(settings) = &self.model {
            let beside = |setting| Err(SettingsError::BesideFolder { setting }.into());
            if self.tokenizer.is_some() {
                return beside("tokenizer");
            }
            if self.pretraining.is_some() {
                return beside("pretraining");
            }
            if settings.adapter.is_some() && self.trainable != Trainable::Full {
                return Err(SettingsError::Trainable {
                    problem: "[trainable] cannot be given beside model.adapter: the adapter is what is trained".into(),
                }
                .into());
            }
        }
        let pretraining = self.pretraining();
        let rate = pretraining.learning_rate;
        if pretraining.steps > 0 && !(rate.is_finite() && rate > 0.0) {
            return Err(TaskError::Setting {
                setting: "pretraining.learning_rate",
                got: rate.to_string(),
                wanted: "positive and finite".into(),
            });
        }
        Ok(())
    }

    /// Checks that images are read by a network on images and nothing else is, and that there are
    /// some to pre-train on.
    fn check_images(&self) -> Result<(), TaskError> {
        let images = self.data.images();
        let is_network = matches!(self.model, ModelChoice::Images(_));
        let wrong = |problem| Err(TaskError::Images { problem });
        if images.len() != self.data.sources().len() && (is_network || !images.is_empty()) {
            return wrong(match is_network {
                true => "[model] is a network on images, and [data] has other sources than images",
                false => "[data] mixes images with other sources; a model reads one or the other",
            });
        }
        if images.is_empty() {
            return Ok(());
        }
        if !is_network {
            return wrong(
                "data.source is \"images\"; they need [model] with kind = \"cnn\" or \"mlp\"",
            );
        }
        if self.tokenizer.is_some() {
            return wrong("images have no tokenizer; leave it out");
        }
        if images.iter().any(|part| part.classes != images[0].classes) {
            return wrong("data.classes must be the same in all [[data.parts]]");
        }
        if self.pretraining().steps > 0 && !images.iter().any(|part| part.corpus) {
            return wrong(
                "there is no image to pre-train on; give a source of images corpus = true, or pretraining.steps = 0",
            );
        }
        Ok(())
    }

    /// How the base model is pre-trained.
    pub fn pretraining(&self) -> PretrainingSettings {
        self.pretraining.clone().unwrap_or_default()
    }

    /// The model folder: `model.path` as seen from the task file, if there is something, or else
    /// from the working directory. `None` for a model that is pre-trained here.
    pub fn model_folder(&self) -> Option<PathBuf> {
        match &self.model {
            ModelChoice::Settings(_) | ModelChoice::Images(_) => None,
            ModelChoice::Folder(settings) => Some(self.found(&settings.path)),
        }
    }

    /// The model of the folder with these settings: with its adapter, or with `[trainable]`.
    ///
    /// # Errors
    /// See [`hugging_face::load`] and [`hugging_face::load_adapter`]; parameters to train that the
    /// model does not have.
    pub fn load_model(&self, settings: &FolderSettings) -> Result<Weights, TaskError> {
        let weights = hugging_face::load(&self.found(&settings.path), settings.dropout)?;
        match &settings.adapter {
            Some(adapter) => Ok(hugging_face::load_adapter(&weights, &self.found(adapter))?),
            None => Ok(weights.with_trainable(self.trainable.clone())?),
        }
    }

    /// A path as seen from the task file, if there is something, or else from the working
    /// directory.
    fn found(&self, path: &Path) -> PathBuf {
        let beside = self.folder.as_ref().map(|folder| folder.join(path));
        beside.filter(|p| p.exists()).unwrap_or(path.to_owned())
    }

    /// What renders the conversations of a table, if it has some.
    fn chat_template(&self, table: &TableSettings) -> Result<Option<ChatTemplate>, TaskError> {
        if !table.is_chat() {
            return Ok(None);
        }
        let folder = self.model_folder();
        let template = match (&table.chat_template, &folder) {
            (Some(file), _) => ChatTemplate::from_file(&self.found(file), folder.as_deref())?,
            (None, Some(folder)) => ChatTemplate::load(folder)?,
            (None, None) => {
                return Err(TaskError::NoChatTemplate {
                    task: self.name.clone(),
                });
            }
        };
        Ok(Some(template))
    }

    /// The model's tokeniser, and how the model takes examples in.
    fn tokenizer(&self, data: &TaskData) -> Result<(Tokenizer, Reading), TaskError> {
        match (&self.model, self.model_folder()) {
            (ModelChoice::Folder(settings), Some(folder)) => {
                let architecture = hugging_face::architecture(&folder, settings.dropout)?;
                let tokenizer = Tokenizer::load(&folder)?;
                let decoder = architecture.decoder();
                if tokenizer.vocabulary_size() > decoder.vocabulary as usize {
                    return Err(TaskError::Vocabulary {
                        folder,
                        tokens: tokenizer.vocabulary_size(),
                        embedding: decoder.vocabulary,
                    });
                }
                Ok((tokenizer, architecture.reading()))
            }
            (ModelChoice::Settings(settings), _) => {
                let texts = (data.train.iter().chain(&data.test))
                    .flat_map(|e| [e.prompt.as_str(), e.answer.as_str()])
                    .chain([data.corpus.as_str()]);
                let kind = self.tokenizer.unwrap_or_default();
                let context = settings.context as usize;
                Ok((Tokenizer::new(kind, texts), Reading::Text { context }))
            }
            (ModelChoice::Images(_), _) => {
                let examples = data.train.iter().chain(&data.test);
                let images = examples.filter_map(|example| match &example.form {
                    Form::Image(image) => Some(image),
                    _ => None,
                });
                let first = images.chain(&data.corpus_images).next();
                let first = first.ok_or(TaskError::Images {
                    problem: "[data] has no image",
                })?;
                let size = first.size;
                Ok((Tokenizer::of_images(size), Reading::Image(size)))
            }
            (ModelChoice::Folder(_), None) => unreachable!("a folder has a path"),
        }
    }

    /// The examples and what to pre-train on; `data` overrides `data.path` of the task file, and is
    /// the folder in which sources of images look.
    ///
    /// # Errors
    /// No path for a table or images, or what [`load_table`] and [`ImageSource::load`] refuse.
    pub fn data(&self, data: Option<&Path>) -> Result<TaskData, TaskError> {
        self.data_of(&self.data, data)
    }

    fn data_of(&self, settings: &DataSettings, data: Option<&Path>) -> Result<TaskData, TaskError> {
        match settings {
            DataSettings::Numbers(settings) => Ok(TaskData {
                train: numbers::train_examples(settings.train_per_dataset, settings.seed),
                test: numbers::test_examples(settings.test, settings.test_in_words),
                corpus: numbers::generic_text(settings.corpus_lines, settings.seed),
                ..TaskData::default()
            }),
            DataSettings::CausalChains(settings) => Ok(causal_chains::data(settings)),
            DataSettings::SetMembership(settings) => Ok(set_membership::data(settings)),
            DataSettings::WordOrder(settings) => Ok(word_order::data(settings)),
            DataSettings::Table(settings) => {
                let path =
                    data.or(settings.path.as_deref())
                        .ok_or_else(|| TaskError::NoDataPath {
                            task: self.name.clone(),
                        })?;
                let chat = self.chat_template(settings)?;
                Ok(load_table(settings, path, chat.as_ref())?)
            }
            DataSettings::Images(settings) => {
                let folder = match (data, &settings.path) {
                    (Some(data), Some(path)) => data.join(path),
                    (Some(data), None) => data.to_owned(),
                    (None, Some(path)) => self.found(path),
                    (None, None) => {
                        return Err(TaskError::NoDataPath {
                            task: self.name.clone(),
                        });
                    }
                };
                Ok(settings.load(&folder)?)
            }
            DataSettings::Mixture(mixture) => {
                let mut all = TaskData::default();
                for part in &mixture.parts {
                    let part = self.data_of(part, data)?;
                    all.train.extend(part.train);
                    all.test.extend(part.test);
                    all.corpus.push_str(&part.corpus);
                    all.corpus_images.extend(part.corpus_images);
                }
                Ok(all)
            }
        }
    }

    /// Reads the examples and tokenises everything.
    ///
    /// # Errors
    /// As [`Task::data`]; duplicate keys; a text that cannot be tokenised or does not fit the
    /// model's context.
    pub fn prepare(&self, data: Option<&Path>) -> Result<PreparedTask, TaskError> {
        let data = self.data(data)?;
        let (tokenizer, reading) = self.tokenizer(&data)?;
        let (train_tokens, train_cut) = tokenized(&tokenizer, &data.train, &reading)?;
        let (test_tokens, test_cut) = tokenized(&tokenizer, &data.test, &reading)?;
        Ok(PreparedTask {
            task: self.clone(),
            train: Examples::new(data.train.iter().map(TextExample::to_example).collect())?,
            test: Examples::new(data.test.iter().map(TextExample::to_example).collect())?,
            train_tokens,
            test_tokens,
            reading,
            truncated: Truncated {
                train: train_cut,
                test: test_cut,
            },
            corpus_tokens: match self.model {
                ModelChoice::Settings(_) => tokenizer.encode(&data.corpus)?,
                ModelChoice::Folder(_) | ModelChoice::Images(_) => Vec::new(),
            },
            corpus_examples: data.corpus_images.iter().map(Image::tokens).collect(),
            tokenizer,
        })
    }

    /// Draws the runs of the task's design over these training examples.
    ///
    /// # Errors
    /// See [`draw_plan`].
    pub fn plan(&self, train: &Examples) -> Result<Vec<PlannedRun>, TaskError> {
        let (datasets, dataset_of) = train.groups("dataset");
        let shape = RunShape {
            steps: self.training.steps,
            batch_size: self.training.batch_size,
            learning_rate: self.training.learning_rate,
            schedule: self.training.schedule,
        };
        Ok(draw_plan(&self.design, &shape, &datasets, &dataset_of)?)
    }
}

/// Examples as tokens, and how many of them lost some.
fn tokenized(
    tokenizer: &Tokenizer,
    examples: &[TextExample],
    reading: &Reading,
) -> Result<(Vec<TokenizedExample>, usize), TokenizerError> {
    let mut truncated = 0;
    let mut all = Vec::with_capacity(examples.len());
    for example in examples {
        let (tokens, is_truncated) = tokenizer.tokenized(example, reading)?;
        truncated += usize::from(is_truncated);
        all.push(tokens);
    }
    Ok((all, truncated))
}

/// Why a task cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The file cannot be read.
    #[error("cannot read the task file {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// Not TOML, or with unknown or missing settings.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line.
        problem: String,
    },
    /// A setting out of its range.
    #[error("{setting} is {got}; it must be {wanted}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What was given.
        got: String,
        /// What is allowed.
        wanted: String,
    },
    /// A task without its file or folder.
    #[error(
        "task {task:?} reads its examples from a file or folder: give it with --data, or as data.path in the task file"
    )]
    NoDataPath {
        /// Name of the task.
        task: String,
    },
    /// Images with what does not go with them.
    #[error("{problem}")]
    Images {
        /// What is wrong.
        problem: &'static str,
    },
    /// Images that cannot be read.
    #[error(transparent)]
    ImageSource(#[from] ImageSourceError),
    /// Conversations for a model that has no chat template.
    #[error(
        "task {task:?} has conversations (data.messages), but a model that is pre-trained here has no chat template: give one with data.chat_template = \"FILE\""
    )]
    NoChatTemplate {
        /// Name of the task.
        task: String,
    },
    /// A chat template that cannot be read.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A setting of the model or of training out of its range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The examples' file.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A text that cannot be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A model folder that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tokeniser that has tokens which the model does not.
    #[error(
        "{}: tokenizer.json has token ids below {tokens}, but the model's embedding only has {embedding} rows (vocab_size); take the tokeniser that belongs to the model",
        folder.display()
    )]
    Vocabulary {
        /// The model folder.
        folder: PathBuf,
        /// The largest id and 1.
        tokens: usize,
        /// Rows of the embedding.
        embedding: u32,
    },
    /// Keys that are not unique.
    #[error(transparent)]
    Examples(#[from] ExampleError),
    /// A design that cannot be drawn.
    #[error(transparent)]
    Design(#[from] DesignError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch_loss::BatchLoss;
    use crate::weight_decay::WeightDecayGroups;

    const NUMBERS: &str = r#"
        name = "numbers"
        [data]
        source = "numbers"
        train_per_dataset = 16
        test = 8
        corpus_lines = 50
        [model]
        context = 144
        [training]
        learning_rate = 1e-3
        steps = 12
        batch_size = 4
        [design]
        runs = 3
        held_out = 2
    "#;

    #[test]
    fn a_small_task_prepares_and_plans() {
        let task = Task::parse(NUMBERS).unwrap();
        let prepared = task.prepare(None).unwrap();
        assert_eq!((prepared.train.len(), prepared.test.len()), (64, 8));
        let answer = &prepared.test_tokens[1];
        assert_eq!(
            prepared
                .tokenizer
                .decode(&answer.tokens[answer.answer_start..]),
            "33\n"
        );
        let plan = task.plan(&prepared.train).unwrap();
        assert!(plan.iter().all(|run| run.curriculum.len() == 12));
    }

    #[test]
    fn an_unknown_setting_is_named_with_its_line() {
        let message = Task::parse(&NUMBERS.replace("steps = 12", "stepps = 12"))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("stepps") && message.contains("line"),
            "{message}"
        );
    }

    #[test]
    fn settings_of_a_step_are_read_and_their_mistakes_named() {
        let with = |setting: &str| {
            let line = format!("steps = 12\n{setting}");
            Task::parse(&NUMBERS.replace("steps = 12", &line))
        };
        let task = with(
            "accumulation = 4\nbatch_loss = \"token-mean\"\nweight_decay_groups = \"hugging-face\"",
        );
        let training = task.unwrap().training;
        assert_eq!(training.accumulation, 4);
        assert_eq!(training.batch_loss, BatchLoss::TokenMean);
        assert_eq!(training.weight_decay_groups, WeightDecayGroups::HuggingFace);
        for (setting, expected) in [
            (
                "accumulation = 5",
                "training.accumulation is 5; it must be at most training.batch_size, 4",
            ),
            ("accumulation = 0", "accumulation is 0"),
            ("batch_loss = \"mean\"", "`example-mean` or `token-mean`"),
            ("weight_decay_groups = \"none\"", "`all` or `hugging-face`"),
        ] {
            let message = with(setting).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_table_task_without_a_file_says_how_to_give_one() {
        let text = r#"
            name = "t"
            [data]
            source = "table"
            prompt = "{a}"
            answer = "{b}"
            dataset = "{b}"
            train_per_dataset = 1
            test_per_dataset = 1
            [training]
            learning_rate = 1e-3
            steps = 12
            batch_size = 4
        "#;
        let message = Task::parse(text)
            .unwrap()
            .data(None)
            .unwrap_err()
            .to_string();
        assert!(message.contains("--data"), "{message}");
    }

    #[test]
    fn a_mixture_has_the_examples_of_its_parts_one_after_the_other() {
        let text = r#"
            name = "m"
            [data]
            source = "mixture"
            [[data.parts]]
            source = "numbers"
            train_per_dataset = 2
            test = 3
            corpus_lines = 10
            [[data.parts]]
            source = "word-order"
            pairs = 2
            corpus_lines = 10
            [training]
            steps = 2
        "#;
        let task = Task::parse(text).unwrap();
        let parts = ["numbers", "word-order"].map(|source| {
            let DataSettings::Mixture(mixture) = &task.data else {
                panic!("{source}: not a mixture");
            };
            let part = mixture.parts.iter().find(|part| match part {
                DataSettings::Numbers(_) => source == "numbers",
                _ => source == "word-order",
            });
            task.data_of(part.unwrap(), None).unwrap()
        });
        let all = task.data(None).unwrap();
        assert_eq!(all.train, [&parts[0].train[..], &parts[1].train].concat());
        assert_eq!(all.test, [&parts[0].test[..], &parts[1].test].concat());
        assert_eq!(
            all.corpus,
            format!("{}{}", parts[0].corpus, parts[1].corpus)
        );
        let wrong = text.replace("train_per_dataset = 2", "train_per_dataset = 300");
        let message = Task::parse(&wrong).unwrap_err().to_string();
        assert!(message.contains("data.train_per_dataset"), "{message}");
    }

    #[test]
    fn a_size_out_of_range_is_named() {
        let text = NUMBERS.replace("train_per_dataset = 16", "train_per_dataset = 300");
        let message = Task::parse(&text).unwrap_err().to_string();
        assert!(message.contains("data.train_per_dataset"), "{message}");
    }

    #[test]
    fn sizes_of_probes_out_of_range_are_named() {
        for (data, setting) in [
            ("source = \"causal-chains\"\nchains = 1", "data.chains is 1"),
            ("source = \"causal-chains\"\nlength = 9", "data.length is 9"),
            (
                "source = \"set-membership\"\nsets = 1001",
                "data.sets is 1001",
            ),
            (
                "source = \"set-membership\"\nsets = 2\nprompt_facts = 3",
                "data.prompt_facts is 3; it must be 1 to 2",
            ),
            ("source = \"word-order\"\npairs = 0", "data.pairs is 0"),
        ] {
            let text = format!("name = \"p\"\n[data]\n{data}\n[training]\nsteps = 2");
            let message = Task::parse(&text).unwrap_err().to_string();
            assert!(message.contains(setting), "{message}");
        }
    }

    #[test]
    fn a_probe_reaches_the_run_set_with_its_columns() {
        let text = "name = \"p\"\n[data]\nsource = \"causal-chains\"\n[training]\nsteps = 2";
        let prepared = Task::parse(text).unwrap().prepare(None).unwrap();
        let (kinds, _) = prepared.test.groups("kind");
        assert_eq!(kinds.len(), 7, "{kinds:?}");
        let question = prepared.test.get(prepared.test.len() as u32 - 1).unwrap();
        let facts = question.column("facts").unwrap();
        assert!(
            facts
                .split(' ')
                .all(|key| prepared.train.id_of(key).is_some())
        );
    }

    #[test]
    fn an_example_longer_than_the_context_is_named() {
        let task = Task::parse(&NUMBERS.replace("context = 144", "context = 20")).unwrap();
        let message = task.prepare(None).unwrap_err().to_string();
        assert!(message.contains("model.context"), "{message}");
    }

    const FOLDER: &str = r#"
        name = "t"
        [data]
        source = "table"
        prompt = "{question} Answer:"
        answer = " {reply}"
        dataset = "{kind}"
        train_per_dataset = 1
        test_per_dataset = 1
        [model]
        path = "model"
        [training]
        steps = 2
    "#;

    /// A task file with a copy of the tiny checkpoint beside it, and its table.
    fn folder_task(text: &str) -> (tempfile::TempDir, Task, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text");
        for name in ["config.json", "tokenizer.json"] {
            std::fs::copy(data.join(name), model.join(name)).unwrap();
        }
        let table = folder.path().join("table.csv");
        let rows = "question,reply,kind\nwhat follows two?,three,a\nwhat follows six?,seven,a\n";
        std::fs::write(&table, rows).unwrap();
        let path = folder.path().join("task.toml");
        std::fs::write(&path, text).unwrap();
        let task = Task::load(&path).unwrap();
        (folder, task, table)
    }

    #[test]
    fn a_model_folder_beside_the_task_file_reads_the_examples_with_its_own_tokenizer() {
        let (_folder, task, table) = folder_task(FOLDER);
        let prepared = task.prepare(Some(&table)).unwrap();
        let example = &prepared.train_tokens[0];
        let answer = (prepared.tokenizer).decode(&example.tokens[example.answer_start..]);
        assert!([" three", " seven"].contains(&&answer[..]), "{answer:?}");
        assert!(prepared.corpus_tokens.is_empty());
        let stored = serde_json::to_string(&prepared.tokenizer).unwrap();
        let back: Tokenizer = serde_json::from_str(&stored).unwrap();
        assert_eq!(back, prepared.tokenizer);
    }

    #[test]
    fn what_a_model_folder_decides_cannot_be_given_beside_it() {
        for (from, to, setting) in [
            ("[model]", "[model]\nwidth = 8", "model.width"),
            (
                "[training]",
                "[pretraining]\nsteps = 0\n[training]",
                "pretraining",
            ),
            ("[data]", "tokenizer = \"byte\"\n[data]", "tokenizer"),
            ("[model]", "[model]\ndropout = 1.0", "dropout is 1"),
            ("[model]", "[model]\nlayer = 1", "unknown field `layer`"),
            ("path =", "adapter =", "model.adapter needs model.path"),
            (
                "[training]",
                "adapter = \"a\"\n[trainable]\nmethod = \"bitfit\"\n[training]",
                "[trainable] cannot be given beside model.adapter",
            ),
        ] {
            let message = Task::parse(&FOLDER.replace(from, to))
                .unwrap_err()
                .to_string();
            assert!(message.contains(setting), "{message}");
        }
    }

    #[test]
    fn a_tokenizer_beyond_the_embedding_and_an_example_beyond_the_context_are_refused() {
        for (from, to, parts) in [
            (
                "\"vocab_size\": 290",
                "\"vocab_size\": 289",
                ["below 290", "289 rows"],
            ),
            (
                "\"max_position_embeddings\": 64",
                "\"max_position_embeddings\": 5",
                ["tokens", "allows 6"],
            ),
        ] {
            let (folder, task, table) = folder_task(FOLDER);
            let config = folder.path().join("model/config.json");
            let text = std::fs::read_to_string(&config).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(&config, text.replace(from, to)).unwrap();
            let message = task.prepare(Some(&table)).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
