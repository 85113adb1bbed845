//! What is recorded per step, and what is checked before anything is kept.

use crate::error::Problem;
use crate::schema::Column;
use simfluence_core::{Curriculum, CurriculumError, Step};

/// Name of the metric that is the loss.
pub const LOSS: &str = "loss";

/// One evaluation: the losses (or another metric) of all test examples or of some of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Losses {
    /// All test examples, in order.
    All(Vec<f32>),
    /// Some test examples.
    Subset {
        /// Their ids, without repetition.
        test_ids: Vec<u32>,
        /// Their values, as long as the ids.
        values: Vec<f32>,
    },
}

impl Losses {
    /// The values, in nats per target token for the loss.
    pub fn values(&self) -> &[f32] {
        match self {
            Self::All(values) | Self::Subset { values, .. } => values,
        }
    }

    /// Ids of the test examples, `None` for all.
    pub fn test_ids(&self) -> Option<&[u32]> {
        match self {
            Self::All(_) => None,
            Self::Subset { test_ids, .. } => Some(test_ids),
        }
    }
}

/// Everything recorded about one step.
///
/// ```
/// use simfluence_core::Step;
/// use simfluence_recorder::{Losses, StepRecord};
/// let record = StepRecord {
///     losses: Some(Losses::All(vec![2.5, 1.5])),
///     ..StepRecord::new(Step::new(vec![0, 3], Some(1e-3)))
/// };
/// assert_eq!(record.step.batch.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepRecord {
    /// The step's number as the trainer counts (from 1). If given, it must be the next one.
    pub number: Option<u32>,
    /// What was trained: batch, weights, learning rate.
    pub step: Step,
    /// Micro-batch of each member of the batch, for gradient accumulation.
    pub micro: Option<Vec<u16>>,
    /// Loss of each member of the batch in training mode, before the update; nats per target
    /// token.
    pub batch_loss: Option<Vec<f32>>,
    /// Norm of the gradient.
    pub grad_norm: Option<f32>,
    /// Losses of the test examples after the step, if they were evaluated.
    pub losses: Option<Losses>,
    /// Further metrics of the test examples after the step, by name.
    pub metrics: Vec<(String, Losses)>,
}

impl StepRecord {
    /// A step of which nothing else is known.
    pub fn new(step: Step) -> Self {
        Self {
            step,
            ..Self::default()
        }
    }

    /// The evaluations: the loss first, then the metrics in order.
    pub fn evaluations(&self) -> impl Iterator<Item = (&str, &Losses)> + '_ {
        let losses = self.losses.iter().map(|l| (LOSS, l));
        losses.chain(self.metrics.iter().map(|(name, l)| (name.as_str(), l)))
    }

    /// Whether a recorded loss is NaN or infinite.
    pub(crate) fn diverged(&self) -> bool {
        self.losses
            .as_ref()
            .is_some_and(|l| !all_finite(l.values()))
            || self.batch_loss.as_deref().is_some_and(|l| !all_finite(l))
    }
}

/// Whether no value is NaN or infinite.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    // Without a way out in the middle the compiler makes vector instructions of it.
    values
        .iter()
        .fold(true, |all, value| all & value.is_finite())
}

/// What is wrong with a step that stands at `number`, if anything.
pub(crate) fn check_step(record: &StepRecord, number: u32, train_count: usize) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(got) = record.number.filter(|&got| got != number) {
        problems.push(Problem::StepOrder {
            expected: number,
            got,
        });
    }
    if let Err(error) = Curriculum::new(vec![record.step.clone()], train_count) {
        problems.push(Problem::Step(renumbered(error, number)));
    }
    let expected = record.step.batch.len();
    let lengths = [
        (Column::BatchMicro, record.micro.as_ref().map(Vec::len)),
        (Column::BatchLoss, record.batch_loss.as_ref().map(Vec::len)),
    ];
    for (column, length) in lengths {
        if let Some(got) = length.filter(|&got| got != expected) {
            problems.push(Problem::ListLength {
                column,
                expected,
                got,
            });
        }
    }
    problems
}

/// What is wrong with an evaluation, if anything.
pub(crate) fn check_evaluation(
    metric: &str,
    test_ids: Option<&[u32]>,
    values: &[f32],
    test_count: usize,
) -> Option<Problem> {
    let expected = test_ids.map_or(test_count, <[u32]>::len);
    if values.len() != expected {
        return Some(Problem::TestCount {
            metric: metric.to_owned(),
            expected,
            got: values.len(),
        });
    }
    let mut seen = vec![false; if test_ids.is_some() { test_count } else { 0 }];
    for &id in test_ids.unwrap_or_default() {
        match seen.get_mut(id as usize) {
            None => return Some(Problem::UnknownTest { id, test_count }),
            Some(true) => return Some(Problem::DuplicateTest { id }),
            Some(first) => *first = true,
        }
    }
    None
}

/// The core counts the steps of a curriculum; here one step is checked at a time.
fn renumbered(error: CurriculumError, number: u32) -> CurriculumError {
    use CurriculumError::*;
    match error {
        EmptyBatch { .. } => EmptyBatch { step: number },
        UnknownExample {
            id, train_count, ..
        } => UnknownExample {
            step: number,
            id,
            train_count,
        },
        WeightCount { expected, got, .. } => WeightCount {
            step: number,
            expected,
            got,
        },
        WeightSum { sum, .. } => WeightSum { step: number, sum },
        LearningRate { got, .. } => LearningRate { step: number, got },
    }
}
