//! `config.json`: what a checkpoint's architecture is.

use super::families;
use super::fields::Fields;
use crate::decoder::Decoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The `config.json` of a model, as it was read.
///
/// ```
/// use simfluence_models::hugging_face::Config;
/// let config = Config::parse(r#"{
///     "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768,
///     "n_layer": 12, "n_head": 12, "activation_function": "gelu_new"
/// }"#)?;
/// assert_eq!(config.decoder()?.parameter_count(), 124_439_808);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Config {
    fields: Map<String, Value>,
}

impl Config {
    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// No JSON object.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        serde_json::from_str(text).map_err(|source| ConfigError::Json {
            problem: source.to_string(),
        })
    }

    /// The decoder that it describes.
    ///
    /// Every field is either understood, or known to change nothing that a model computes (such as
    /// token ids for generation), or refused.
    ///
    /// # Errors
    /// A `model_type` that is not supported; a field that is missing, unknown, or has a value that
    /// is not supported.
    pub fn decoder(&self) -> Result<Decoder, ConfigError> {
        self.read().map(|(decoder, _)| decoder)
    }

    /// Every field as it was read.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The fields that decide what the model computes, as JSON.
    pub(crate) fn essence(&self) -> String {
        let (_, taken) = self.read().expect("the config of an architecture was read");
        Value::Object(taken).to_string()
    }

    fn read(&self) -> Result<(Decoder, Map<String, Value>), ConfigError> {
        let fields = Fields::new(&self.fields, "");
        let decoder = families::decoder(&fields)?;
        Ok((decoder, fields.taken()))
    }
}

/// What is wrong with a `config.json` or `adapter_config.json`; whoever has read it knows which.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No JSON object.
    #[error("it is no JSON object: {problem}")]
    Json {
        /// What the parser says.
        problem: String,
    },
    /// A field that is needed.
    #[error("there is no field {field}")]
    Missing {
        /// Its name.
        field: String,
    },
    /// A value that is not supported.
    #[error("{field} is {got}; supported is: {supported}")]
    Unsupported {
        /// Name of the field.
        field: String,
        /// Its value.
        got: String,
        /// What would be understood.
        supported: String,
    },
    /// A field that is not known.
    #[error(
        "the field {field} ({got}) is not known here, so that the model might compute something else than meant; remove the field if it has no effect on the forward pass"
    )]
    Unknown {
        /// Its name.
        field: String,
        /// Its value.
        got: String,
    },
    /// Sizes that do not fit together.
    #[error("{problem}")]
    Sizes {
        /// Which, and why.
        problem: String,
    },
}
