//! One recorded fine-tuning with everything that is known about it.

use crate::{Curriculum, Optimizer, Schedule, Trajectory};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Being written, or its writer was killed before it could say otherwise.
    Recording,
    /// Finished.
    Complete,
    /// Ended before its last step.
    Aborted,
    /// A loss became NaN or infinite; fits leave the run out by name.
    Diverged,
}

impl std::fmt::Display for RunStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Recording => "recording",
            Self::Complete => "complete",
            Self::Aborted => "aborted",
            Self::Diverged => "diverged",
        })
    }
}

/// Which side of the split a run was designed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Simulators may learn from it.
    Train,
    /// Only for judging.
    HeldOut,
}

/// Kinds of edits that a counterfactual suite makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EditKind {
    /// A dataset left out, the step count kept.
    Dropped,
    /// A dataset seen more often, the step count kept.
    Repeated,
    /// Only some datasets, the step count kept.
    KeptOnly,
    /// The same batches' examples dataset by dataset.
    Blocked,
    /// Another learning rate.
    LearningRate,
    /// Any other edit of a user's.
    Other,
}

impl EditKind {
    /// The name as it stands in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Repeated => "repeated",
            Self::KeptOnly => "kept-only",
            Self::Blocked => "blocked",
            Self::LearningRate => "learning-rate",
            Self::Other => "other",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Dropped,
            Self::Repeated,
            Self::KeptOnly,
            Self::Blocked,
            Self::LearningRate,
            Self::Other,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for EditKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a run came out of another by an edit of its curriculum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Id of the run that was edited.
    pub base_run: String,
    /// Kind of the edit.
    pub kind: EditKind,
    /// What was done, for people ("dropped Sports").
    pub label: String,
}

/// What a run is for: how its curriculum was drawn.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunDesign {
    /// `ordinary`, `diversified`, `suite` or `given`.
    #[serde(default)]
    pub design: String,
    /// Side of the split it was designed for, if any.
    #[serde(default)]
    pub split: Option<Split>,
    /// For a run of the counterfactual suite: the edit.
    #[serde(default)]
    pub edit: Option<Edit>,
}

/// Everything about a run that is not its steps or losses; the content of `run.json`.
///
/// Only `status` is required, so that logs from elsewhere can be imported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Where the run stands.
    pub status: RunStatus,
    /// Seed of everything random in the run.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Fingerprint of the parameters that training started from.
    #[serde(default)]
    pub base_model: Option<String>,
    /// The optimiser with its constants.
    #[serde(default)]
    pub optimizer: Option<Optimizer>,
    /// The learning-rate schedule (the rates themselves are in the steps).
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// Nominal batch size.
    #[serde(default)]
    pub batch_size: Option<u32>,
    /// Number of steps that were planned.
    #[serde(default)]
    pub planned_steps: Option<u32>,
    /// Number of trainable parameters.
    #[serde(default)]
    pub trainable_parameters: Option<u64>,
    /// What the loss is.
    #[serde(default)]
    pub loss: Option<String>,
    /// Threads used by training (bit-exact replay needs the same number).
    #[serde(default)]
    pub threads: Option<u32>,
    /// Device, such as `cpu` or `cuda:0`.
    #[serde(default)]
    pub device: Option<String>,
    /// How the curriculum was drawn.
    #[serde(default)]
    pub design: RunDesign,
    /// Versions of the software that made the run.
    #[serde(default)]
    pub software: BTreeMap<String, String>,
    /// Anything else, kept as it is.
    #[serde(default)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl RunInfo {
    /// Nothing known but the status.
    pub fn new(status: RunStatus) -> Self {
        Self {
            status,
            seed: None,
            base_model: None,
            optimizer: None,
            schedule: None,
            batch_size: None,
            planned_steps: None,
            trainable_parameters: None,
            loss: None,
            threads: None,
            device: None,
            design: RunDesign::default(),
            software: BTreeMap::new(),
            extra: BTreeMap::new(),
        }
    }
}

/// One recorded fine-tuning: its curriculum, its trajectory, its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Name of the run, unique in its run set.
    pub id: String,
    /// Settings and provenance.
    pub info: RunInfo,
    /// What was trained.
    pub curriculum: Curriculum,
    /// What was measured.
    pub trajectory: Trajectory,
    /// Per step, the loss of each member of the batch in training mode before the update, where
    /// it was recorded.
    pub batch_losses: Vec<Option<Vec<f32>>>,
}

impl Run {
    /// Whether the run may be learned from or judged by: complete, or stopped early without
    /// diverging, with at least the losses before the first step and one later evaluation.
    pub fn is_usable(&self) -> bool {
        self.info.status != RunStatus::Diverged
            && !self.trajectory.diverged()
            && self.trajectory.initial().is_some()
            && self.trajectory.steps().len() > 1
    }
}
