//! The tables of a run set: one enum owns every column's name, type and unit.

use polars::prelude::{DataType, PlSmallStr};
use std::fmt;

/// Version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// What batches are made of.
    TrainExamples,
    /// Whose losses are followed.
    TestExamples,
    /// What was trained, one row per step.
    Steps,
    /// What was measured, one row per evaluation and metric.
    Losses,
    /// Runs that are to be trained, one row per step.
    Plan,
    /// A single curriculum, one row per step.
    Curriculum,
    /// A trajectory as a long table, one row per measured loss.
    Trajectory,
    /// A simulated trajectory with its bands.
    BandedTrajectory,
}

impl Table {
    /// The name as it stands in footers and at the beginning of file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::TrainExamples => "train_examples",
            Self::TestExamples => "test_examples",
            Self::Steps => "steps",
            Self::Losses => "losses",
            Self::Plan => "plan",
            Self::Curriculum => "curriculum",
            Self::Trajectory => "trajectory",
            Self::BandedTrajectory => "banded_trajectory",
        }
    }

    /// The columns in order. Tables of examples may have further ones.
    pub fn columns(self) -> &'static [Column] {
        use Column::*;
        match self {
            Self::TrainExamples => &[TrainId, Key, Dataset, Tags],
            Self::TestExamples => &[TestId, Key, Dataset, Tags],
            Self::Steps | Self::Curriculum => &[
                Step,
                LearningRate,
                Batch,
                BatchWeight,
                BatchMicro,
                BatchLoss,
                GradNorm,
            ],
            Self::Plan => &[
                Run,
                Seed,
                Design,
                Split,
                BaseRun,
                Edit,
                EditLabel,
                Step,
                LearningRate,
                Batch,
                BatchWeight,
                BatchMicro,
                BatchLoss,
                GradNorm,
            ],
            Self::Losses => &[Step, Metric, TestIds, Values],
            Self::Trajectory => &[Step, TestId, Key, Dataset, Loss],
            Self::BandedTrajectory => &[Step, TestId, Key, Dataset, Loss, Low, High],
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The columns of all tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Column {
    /// Id of a training example: its position.
    TrainId,
    /// Id of a test example: its position.
    TestId,
    /// Unique name of an example.
    Key,
    /// The group that an example belongs to.
    Dataset,
    /// Free labels of an example.
    Tags,
    /// Step; in `steps` from 1, in `losses` 0 is before any step.
    Step,
    /// Learning rate of the step.
    LearningRate,
    /// Training ids of the batch, in order.
    Batch,
    /// Share of the step's loss per member of the batch; null: equal shares.
    BatchWeight,
    /// Micro-batch per member of the batch (gradient accumulation).
    BatchMicro,
    /// Loss per member of the batch in training mode, before the update.
    BatchLoss,
    /// Norm of the gradient.
    GradNorm,
    /// What was measured; `loss` is the loss.
    Metric,
    /// Test ids that were measured; null: all, in order.
    TestIds,
    /// Measured values.
    Values,
    /// Id of a run.
    Run,
    /// Seed of a run's training.
    Seed,
    /// How the curriculum was drawn.
    Design,
    /// `train` or `held-out`.
    Split,
    /// Id of the run that was edited.
    BaseRun,
    /// Kind of the edit.
    Edit,
    /// What was edited, for people.
    EditLabel,
    /// A loss.
    Loss,
    /// Lower end of the band of a loss.
    Low,
    /// Upper end of the band of a loss.
    High,
}

impl Column {
    /// Every column.
    pub const ALL: [Self; 25] = [
        Self::TrainId,
        Self::TestId,
        Self::Key,
        Self::Dataset,
        Self::Tags,
        Self::Step,
        Self::LearningRate,
        Self::Batch,
        Self::BatchWeight,
        Self::BatchMicro,
        Self::BatchLoss,
        Self::GradNorm,
        Self::Metric,
        Self::TestIds,
        Self::Values,
        Self::Run,
        Self::Seed,
        Self::Design,
        Self::Split,
        Self::BaseRun,
        Self::Edit,
        Self::EditLabel,
        Self::Loss,
        Self::Low,
        Self::High,
    ];

    /// The name as it stands in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::TrainId => "train_id",
            Self::TestId => "test_id",
            Self::Key => "key",
            Self::Dataset => "dataset",
            Self::Tags => "tags",
            Self::Step => "step",
            Self::LearningRate => "learning_rate",
            Self::Batch => "batch",
            Self::BatchWeight => "batch_weight",
            Self::BatchMicro => "batch_micro",
            Self::BatchLoss => "batch_loss",
            Self::GradNorm => "grad_norm",
            Self::Metric => "metric",
            Self::TestIds => "test_ids",
            Self::Values => "values",
            Self::Run => "run",
            Self::Seed => "seed",
            Self::Design => "design",
            Self::Split => "split",
            Self::BaseRun => "base_run",
            Self::Edit => "edit",
            Self::EditLabel => "edit_label",
            Self::Loss => "loss",
            Self::Low => "low",
            Self::High => "high",
        }
    }

    /// The type.
    pub fn dtype(self) -> DataType {
        match self {
            Self::TrainId | Self::TestId | Self::Step => DataType::UInt32,
            Self::Seed => DataType::UInt64,
            Self::LearningRate | Self::GradNorm | Self::Loss | Self::Low | Self::High => {
                DataType::Float32
            }
            Self::Batch | Self::TestIds => list(DataType::UInt32),
            Self::BatchWeight | Self::BatchLoss | Self::Values => list(DataType::Float32),
            Self::BatchMicro => list(DataType::UInt16),
            Self::Tags => list(DataType::String),
            Self::Key
            | Self::Dataset
            | Self::Metric
            | Self::Run
            | Self::Design
            | Self::Split
            | Self::BaseRun
            | Self::Edit
            | Self::EditLabel => DataType::String,
        }
    }

    /// The unit; empty for names and ids.
    pub fn unit(self) -> &'static str {
        match self {
            Self::BatchLoss | Self::Loss | Self::Low | Self::High => "nats per target token",
            Self::Values => "nats per target token where the metric is loss",
            Self::BatchWeight => "share of the step's loss, sums to 1",
            Self::LearningRate => "optimiser's own",
            Self::GradNorm => "nats per target token per unit of the parameters",
            _ => "",
        }
    }

    /// Whether values may be null.
    pub fn nullable(self) -> bool {
        matches!(
            self,
            Self::LearningRate
                | Self::BatchWeight
                | Self::BatchMicro
                | Self::BatchLoss
                | Self::GradNorm
                | Self::TestIds
                | Self::Split
                | Self::BaseRun
                | Self::Edit
                | Self::EditLabel
        )
    }

    pub(crate) fn column_name(self) -> PlSmallStr {
        PlSmallStr::from_static(self.name())
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn list(inner: DataType) -> DataType {
    DataType::List(Box::new(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_document_names_every_column_with_its_type() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
        let document = std::fs::read_to_string(path).unwrap();
        for column in Column::ALL {
            let mark = if column.nullable() { "?" } else { "" };
            let row = format!(
                "| `{}` | {}{mark} |",
                column.name(),
                type_name(&column.dtype())
            );
            assert!(document.contains(&row), "docs/format.md lacks {row:?}");
        }
    }

    fn type_name(dtype: &DataType) -> String {
        match dtype {
            DataType::UInt16 => "u16".into(),
            DataType::UInt32 => "u32".into(),
            DataType::UInt64 => "u64".into(),
            DataType::Float32 => "f32".into(),
            DataType::String => "str".into(),
            DataType::List(inner) => format!("list<{}>", type_name(inner)),
            other => panic!("no column has type {other}"),
        }
    }
}
