//! Models in the folder format of Hugging Face: `config.json`, `model.safetensors` (or shards with
//! an index) and `tokenizer.json`.

mod adapter;
mod checkpoint;
mod config;
mod families;
mod fields;
mod rotary;
mod save;
mod shard;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use adapter::{load_adapter, save_adapter};
pub use checkpoint::{CheckpointError, architecture, load};
pub use config::{Config, ConfigError};
pub use save::{save, tokenizer_files};
pub use tokenizer::TOKENIZER;
pub use tokenizer::TokenizerFileError;
pub(crate) use tokenizer::{Piece, TokenizerFile};
