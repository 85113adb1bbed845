//! Tasks, models and fine-tuning.
//!
//! Tasks, tokenisers and designs need no LibTorch: `simfluence plan` works without it. The
//! feature `torch` adds the transformer, the optimisers, training and gradients.

mod approximation;
mod batch_loss;
pub mod chat;
pub mod decoder;
pub mod device;
pub mod example;
pub mod hugging_face;
pub mod images;
#[cfg(feature = "torch")]
mod native;
pub mod numbers;
mod precision;
pub mod probes;
mod reading;
mod rows;
pub mod settings;
pub mod task;
pub mod text;
pub mod tokenizer;
#[cfg(feature = "torch")]
pub mod torch;
mod trainable;
mod weight_decay;
pub mod weights;

pub use approximation::Approximation;
pub use batch_loss::BatchLoss;
pub use device::{Device, DeviceError};
pub use example::{Form, Loss, TextExample, Truncation};
pub use images::{ImageArchitecture, ImageKind, ImageSettings};
pub use precision::Precision;
pub use reading::Reading;
pub use settings::{
    FolderSettings, ModelChoice, ModelSettings, SettingsError, TokenizedExample, TokensError,
    TrainingSettings, check_optimizer,
};
pub use task::{DataSettings, PreparedTask, PretrainingSettings, Task, TaskError};
pub use text::{TaskData, TextError};
pub use tokenizer::{Tokenizer, TokenizerError, TokenizerKind};
#[cfg(feature = "torch")]
pub use torch::*;
pub use trainable::{Ia3Settings, LoraSettings, Trainable};
pub use weight_decay::WeightDecayGroups;
pub use weights::{Architecture, ArchitectureError, Layout, ParameterSpec, Weights, WeightsError};
