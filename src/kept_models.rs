//! The models that a run set keeps: the base model and the checkpoints of its runs.

use anyhow::{Context, Result, bail};
use simfluence_core::Artifact;
use simfluence_models::Weights;
use simfluence_recorder::{RunSet, read_artifact};
use std::path::{Path, PathBuf};

/// Key of the files that stood beside a base model's `tokenizer.json`, text by name.
pub const TOKENIZER_FILES: &str = "tokenizer_files";

/// Where the base model of a run set is.
pub fn base_model_path(set: &RunSet) -> PathBuf {
    set.path().join("base_model.safetensors")
}

/// The base model of a run set, with whatever else its file says.
pub fn base_model(set: &RunSet) -> Result<(Weights, Artifact)> {
    let path = base_model_path(set);
    if !path.exists() {
        bail!(
            "{} has no base model ({}); its runs were not recorded by `simfluence record`, so they cannot be trained again here",
            set.path().display(),
            path.display()
        );
    }
    let artifact = read_artifact(&path)?;
    let weights = Weights::from_artifact(&artifact);
    let weights = weights.with_context(|| format!("{}", path.display()))?;
    Ok((weights, artifact))
}

/// The model in a checkpoint of a run, with or without an optimiser's state; parameters that are
/// not trained come from the base model.
pub fn weights_in(set: &RunSet, path: &Path) -> Result<Weights> {
    let artifact = read_artifact(path)?;
    let base = || base_model(set).map(|(weights, _)| weights);
    Weights::from_checkpoint(&artifact, base).with_context(|| format!("{}", path.display()))
}
