//! The models that a run set keeps: the base model and the checkpoints of its runs.

use anyhow::{Context, Result};
use simfluence_models::Weights;
use simfluence_recorder::{RunSet, read_artifact};
use std::path::{Path, PathBuf};

/// Where the base model of a run set is.
pub fn base_model_path(set: &RunSet) -> PathBuf {
    set.path().join("base_model.safetensors")
}

/// The parameters in a checkpoint, with or without an optimiser's state.
pub fn weights_in(path: &Path) -> Result<Weights> {
    let artifact = read_artifact(path)?;
    let weights = match artifact.metadata.get("kind").map(String::as_str) {
        Some("training_state") => Weights::from_training_state(&artifact),
        _ => Weights::from_artifact(&artifact),
    };
    weights.with_context(|| format!("{}", path.display()))
}
