//! Checkpoints of a run: `checkpoints/step-000040.safetensors`.

use crate::error::Result;
use crate::files;
use std::path::{Path, PathBuf};

/// The folder of checkpoints in the folder of a run.
pub(crate) fn folder(run_folder: &Path) -> PathBuf {
    run_folder.join("checkpoints")
}

/// The file of the checkpoint after `step`.
pub(crate) fn path(run_folder: &Path, step: u32) -> PathBuf {
    folder(run_folder).join(format!("step-{step:06}.safetensors"))
}

/// All checkpoints: step and file, in order of steps.
pub(crate) fn list(run_folder: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let folder = folder(run_folder);
    let mut found: Vec<(u32, PathBuf)> = files::names(&folder)?
        .iter()
        .filter_map(|name| {
            let digits = name.strip_prefix("step-")?.strip_suffix(".safetensors")?;
            Some((digits.parse().ok()?, folder.join(name)))
        })
        .collect();
    found.sort();
    Ok(found)
}
