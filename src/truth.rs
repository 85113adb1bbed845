//! Leave-out truth as it is kept in a run set, and what `compare` says by it.
//!
//! ```text
//! leave_out/
//!   trainings/KEY.safetensors     one finished training each
//!   RUN/UNIT.safetensors          the effects of leaving out each dataset, example, …
//!   RUN/subsets.safetensors       what training on random subsets did
//! ```

use crate::attribute;
use crate::runs::OpenRuns;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use simfluence_core::{Artifact, Run, Scores};
use simfluence_evaluation::{
    BootstrapSettings, LdsReport, LeaveOutReport, Level, SplitRuns, TruthInput, TruthReport,
};
use simfluence_recorder::read_artifact;
use simfluence_simulators::leave_out::{Retraining, SubsetTruth, Truth};
use std::path::{Path, PathBuf};

/// Metadata entry with the [`Source`] of a file.
const SOURCE: &str = "source";

/// Name of the file of [`SubsetTruth`]; no column's file can have it, see [`file_name`].
const SUBSETS: &str = "subsets.safetensors";

/// Everything in the run set that decides what retraining a run gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The run whose curriculum is edited.
    pub reference_run: String,
    /// Hash of its curriculum.
    pub curriculum: String,
    /// Fingerprint of the base model.
    pub base_model: Option<String>,
    /// Fingerprints of the training and test examples.
    pub examples: (String, String),
    /// The training settings, without those that only decide what is written down.
    pub training: Value,
}

impl Source {
    /// Of a run.
    pub fn of(open: &OpenRuns, run: &Run) -> Self {
        let mut training = run.info.extra.get("training").cloned().unwrap_or_default();
        if let Some(settings) = training.as_object_mut() {
            settings.retain(|name, _| {
                !["eval_every", "eval_parts", "checkpoint_every"].contains(&name.as_str())
            });
        }
        let recorded = Retraining {
            what: "recorded".to_owned(),
            seed: 0,
            curriculum: run.curriculum.clone(),
        };
        let (train, test) = open.set.fingerprints();
        Self {
            reference_run: run.id.clone(),
            curriculum: recorded.key(""),
            base_model: run.info.base_model.clone(),
            examples: (train.to_owned(), test.to_owned()),
            training,
        }
    }

    /// What a finished training is kept under, besides its curriculum and seed.
    #[cfg(feature = "torch")]
    pub fn context(&self, device: &str, library: &str) -> String {
        serde_json::json!({
            "base_model": self.base_model,
            "examples": self.examples,
            "training": self.training,
            "device": device,
            "library": library,
        })
        .to_string()
    }
}

/// The folder of all of it.
pub fn folder(open: &OpenRuns) -> PathBuf {
    open.set.path().join("leave_out")
}

/// Where the truth of a unit is kept.
#[cfg(feature = "torch")]
pub fn truth_path(open: &OpenRuns, run: &Run, unit: &str) -> PathBuf {
    folder(open).join(&run.id).join(file_name(unit))
}

/// Where the truth of subsets is kept.
pub fn subsets_path(open: &OpenRuns, run: &Run) -> PathBuf {
    folder(open).join(&run.id).join(SUBSETS)
}

/// A column's name as a file's: `unit-` and then letters, digits, `-` and `_` as they are, other
/// bytes as `%XX`.
#[cfg(feature = "torch")]
fn file_name(unit: &str) -> String {
    let mut name = "unit-".to_owned();
    for byte in unit.bytes() {
        match byte {
            b'-' | b'_' => name.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    name + ".safetensors"
}

/// Says in a file what it was made from.
#[cfg(feature = "torch")]
pub fn sign(mut artifact: Artifact, unit: &str, source: &Source) -> Artifact {
    artifact.metadata.insert("unit".into(), unit.to_owned());
    artifact.set_json(SOURCE, source);
    artifact
}

/// The run that truth is about: the one that attribution methods take; without checkpoints
/// anywhere, the first training run. A run that is named needs no checkpoints.
pub fn reference_run<'a>(
    open: &'a OpenRuns,
    split: &SplitRuns<'a>,
    wanted: Option<&str>,
) -> Result<&'a Run> {
    let named = |run: &&&Run| wanted.is_none_or(|id| run.id == id);
    match (
        attribute::reference_run(open, split, wanted),
        split.train.iter().find(named),
    ) {
        (Ok(run), _) => Ok(run),
        (Err(_), Some(run)) => Ok(run),
        (Err(error), None) => Err(error),
    }
}

/// What retraining says about attribution scores, where the run set has it for the reference run.
pub fn report(
    open: &OpenRuns,
    reference: &Run,
    scores: &[Scores],
    bootstrap: &BootstrapSettings,
) -> Result<Option<LeaveOutReport>> {
    let source = Source::of(open, reference);
    let levels = Level::all(open.set.test_examples());
    let mut truths = Vec::new();
    for (unit, artifact) in kept(open, &source)? {
        let truth = Truth::from_artifact(&artifact)?;
        truths.push(judge(
            &unit,
            &truth,
            scores,
            reference,
            &levels,
            open.train_count(),
        ));
    }
    let path = subsets_path(open, reference);
    let lds = match signed(&path, &source)? {
        Some(artifact) => Some(judge_subsets(
            &SubsetTruth::from_artifact(&artifact)?,
            scores,
            bootstrap,
        )),
        None => None,
    };
    Ok(
        (!truths.is_empty() || lds.is_some()).then(|| LeaveOutReport {
            reference_run: reference.id.clone(),
            truth: truths,
            lds,
        }),
    )
}

/// Scores against the truth about units; not those of leave-out itself, which are the truth.
pub fn judge(
    unit: &str,
    truth: &Truth,
    scores: &[Scores],
    reference: &Run,
    levels: &[Level],
    train_count: usize,
) -> TruthReport {
    let exposure = reference.curriculum.total_exposure(train_count);
    let methods: Vec<_> = scores
        .iter()
        .filter(|scores| scores.method != "leave-out")
        .map(|scores| (scores.method.clone(), truth.predicted(scores, &exposure)))
        .collect();
    let seeds: Vec<_> = (0..truth.seeds.len()).map(|s| truth.of_seed(s)).collect();
    let input = TruthInput {
        unit,
        seeds: &seeds,
        mean: &truth.mean(),
        methods: &methods,
    };
    TruthReport::new(&input, levels)
}

/// Scores against what training on subsets did.
pub fn judge_subsets(
    truth: &SubsetTruth,
    scores: &[Scores],
    bootstrap: &BootstrapSettings,
) -> LdsReport {
    let methods: Vec<_> = scores
        .iter()
        .map(|scores| (scores.method.clone(), truth.predicted(scores)))
        .collect();
    let seeds: Vec<_> = (0..truth.seeds.len()).map(|s| truth.of_seed(s)).collect();
    LdsReport::new(&seeds, &truth.mean(), &methods, bootstrap)
}

/// The files of truth about a run, by unit.
fn kept(open: &OpenRuns, source: &Source) -> Result<Vec<(String, Artifact)>> {
    let folder = folder(open).join(&source.reference_run);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    paths.sort();
    let is_truth = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("unit-") && name.ends_with(".safetensors")
    };
    let mut files = Vec::new();
    for path in paths.into_iter().filter(is_truth) {
        if let Some(artifact) = signed(&path, source)? {
            let unit = artifact.text("unit");
            files.push((
                unit.with_context(|| format!("{}", path.display()))?
                    .to_owned(),
                artifact,
            ));
        }
    }
    Ok(files)
}

/// The file, if it is there and was made from this very source.
fn signed(path: &Path, source: &Source) -> Result<Option<Artifact>> {
    if !path.exists() {
        return Ok(None);
    }
    let artifact = read_artifact(path)?;
    let made_from: Source = artifact
        .json(SOURCE)
        .with_context(|| format!("{}", path.display()))?;
    if made_from == *source {
        return Ok(Some(artifact));
    }
    eprintln!(
        "not used: {}: it was made from another curriculum, base model, examples or training settings than run {} has now",
        path.display(),
        source.reference_run
    );
    Ok(None)
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use super::*;

    #[test]
    fn columns_have_files_of_their_own() {
        assert_eq!(file_name("dataset"), "unit-dataset.safetensors");
        assert_eq!(file_name("a/b c"), "unit-a%2Fb%20c.safetensors");
        assert_ne!(file_name("a b"), file_name("a_b"));
    }
}
