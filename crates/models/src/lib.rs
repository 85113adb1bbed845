//! Tasks, models and fine-tuning.
//!
//! Tasks, tokenisers and designs need no LibTorch: `simfluence plan` works without it. The
//! feature `torch` adds the transformer, the optimisers, training and gradients.

pub mod numbers;
pub mod settings;
pub mod task;
pub mod text;
pub mod tokenizer;

pub use settings::{ModelSettings, SettingsError, TokenizedExample, TrainingSettings};
pub use task::{DataSettings, PreparedTask, PretrainingSettings, Task, TaskError};
pub use text::{TaskData, TextError, TextExample};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerKind};
