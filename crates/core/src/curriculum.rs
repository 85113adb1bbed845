//! What a run trained on: the sequence of batches with their learning rates.

use serde::{Deserialize, Serialize};

/// One optimiser update: the batch `c_t` it was computed on and its learning rate `η_t`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Step {
    /// Ids of the training examples in the batch, in order; an example may stand in it twice.
    pub batch: Vec<u32>,
    /// Share of the step's loss that each member of `batch` has (same length, sums to 1).
    /// `None`: every member has `1 / |c_t|`.
    pub weights: Option<Vec<f32>>,
    /// Learning rate of the step; `None` where it was not recorded.
    pub learning_rate: Option<f32>,
}

impl Step {
    /// A step on `batch` with equal shares.
    pub fn new(batch: Vec<u32>, learning_rate: Option<f32>) -> Self {
        Self {
            batch,
            weights: None,
            learning_rate,
        }
    }

    /// The exposures `x_t(i)`, one pair per member of the batch: an example that stands in the
    /// batch twice comes twice, and its exposure is the sum.
    pub fn exposures(&self) -> impl Iterator<Item = (u32, f64)> + '_ {
        let share = 1.0 / self.batch.len() as f64;
        self.batch.iter().enumerate().map(move |(k, &example)| {
            let weight = match &self.weights {
                Some(weights) => f64::from(weights[k]),
                None => share,
            };
            (example, weight)
        })
    }
}

/// The sequence of steps of a run; `steps[t - 1]` is step `t`.
///
/// ```
/// use simfluence_core::{Curriculum, Step};
/// let curriculum = Curriculum::new(vec![Step::new(vec![0, 2], Some(1e-3))], 3)?;
/// assert_eq!(curriculum.len(), 1);
/// assert_eq!(curriculum.total_exposure(3), vec![0.5, 0.0, 0.5]);
/// # Ok::<(), simfluence_core::CurriculumError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Curriculum {
    steps: Vec<Step>,
}

/// How far the weights of a batch may be from summing to 1 (they are stored as `f32`).
const WEIGHT_SUM_TOLERANCE: f64 = 1e-3;

impl Curriculum {
    /// Checks the steps against `train_count` training examples.
    ///
    /// # Errors
    /// An empty batch, an id out of range, weights of another length or that do not sum to 1,
    /// a learning rate that is not finite or negative; each names the step (counted from 1).
    pub fn new(steps: Vec<Step>, train_count: usize) -> Result<Self, CurriculumError> {
        for (index, step) in steps.iter().enumerate() {
            check_step(step, index as u32 + 1, train_count)?;
        }
        Ok(Self { steps })
    }

    /// The steps in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Number of steps `T`.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Largest training id in any batch, if there is one.
    pub fn max_id(&self) -> Option<u32> {
        self.steps
            .iter()
            .flat_map(|s| s.batch.iter().copied())
            .max()
    }

    /// `x̄_i = Σ_t x_t(i)`: the total exposure of each of `train_count` examples.
    pub fn total_exposure(&self, train_count: usize) -> Vec<f64> {
        let mut total = vec![0.0; train_count];
        for step in &self.steps {
            for (example, exposure) in step.exposures() {
                total[example as usize] += exposure;
            }
        }
        total
    }

    /// Mean learning rate over the steps, where every step has one.
    pub fn mean_learning_rate(&self) -> Option<f64> {
        if self.steps.is_empty() {
            return None;
        }
        let sum: Option<f64> = self
            .steps
            .iter()
            .map(|s| s.learning_rate.map(f64::from))
            .sum();
        sum.map(|s| s / self.steps.len() as f64)
    }

    /// Takes the steps out.
    pub fn into_steps(self) -> Vec<Step> {
        self.steps
    }
}

/// Checks one step; `step_number` counts from 1.
pub(crate) fn check_step(
    step: &Step,
    step_number: u32,
    train_count: usize,
) -> Result<(), CurriculumError> {
    if step.batch.is_empty() {
        return Err(CurriculumError::EmptyBatch { step: step_number });
    }
    if let Some(&id) = step.batch.iter().find(|&&id| id as usize >= train_count) {
        return Err(CurriculumError::UnknownExample {
            step: step_number,
            id,
            train_count,
        });
    }
    if let Some(weights) = &step.weights {
        if weights.len() != step.batch.len() {
            return Err(CurriculumError::WeightCount {
                step: step_number,
                expected: step.batch.len(),
                got: weights.len(),
            });
        }
        let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let valid = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
        if !valid || (sum - 1.0).abs() > WEIGHT_SUM_TOLERANCE {
            return Err(CurriculumError::WeightSum {
                step: step_number,
                sum,
            });
        }
    }
    match step.learning_rate {
        Some(rate) if !rate.is_finite() || rate < 0.0 => Err(CurriculumError::LearningRate {
            step: step_number,
            got: rate,
        }),
        _ => Ok(()),
    }
}

/// What is wrong with a curriculum, and at which step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CurriculumError {
    /// A batch without examples.
    #[error("step {step}: the batch is empty; a step needs at least one training example")]
    EmptyBatch {
        /// Step, counted from 1.
        step: u32,
    },
    /// A training id that the run set does not have.
    #[error(
        "step {step}: training id {id} is out of range; there are {train_count} training examples (0..{train_count})"
    )]
    UnknownExample {
        /// Step, counted from 1.
        step: u32,
        /// The id.
        id: u32,
        /// Number of training examples.
        train_count: usize,
    },
    /// Weights of another length than the batch.
    #[error("step {step}: {got} batch weights for a batch of {expected} examples")]
    WeightCount {
        /// Step, counted from 1.
        step: u32,
        /// Length of the batch.
        expected: usize,
        /// Length of the weights.
        got: usize,
    },
    /// Weights that are negative, not finite or do not sum to 1.
    #[error(
        "step {step}: batch weights must be finite, not negative and sum to 1, their sum is {sum}"
    )]
    WeightSum {
        /// Step, counted from 1.
        step: u32,
        /// Sum of the weights.
        sum: f64,
    },
    /// A learning rate that is negative or not finite.
    #[error("step {step}: the learning rate is {got}; it must be finite and not negative")]
    LearningRate {
        /// Step, counted from 1.
        step: u32,
        /// The learning rate.
        got: f32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposures_sum_to_one_and_count_repeats() {
        let step = Step::new(vec![1, 1, 0, 3], None);
        let sum: f64 = step.exposures().map(|(_, x)| x).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        let curriculum = Curriculum::new(vec![step], 4).unwrap();
        assert_eq!(curriculum.total_exposure(4), vec![0.25, 0.5, 0.0, 0.25]);
    }

    #[test]
    fn an_empty_batch_is_refused_with_its_step() {
        let steps = vec![Step::new(vec![0], None), Step::new(vec![], None)];
        assert_eq!(
            Curriculum::new(steps, 1),
            Err(CurriculumError::EmptyBatch { step: 2 })
        );
    }

    #[test]
    fn an_id_out_of_range_is_refused() {
        let error = Curriculum::new(vec![Step::new(vec![5], None)], 5).unwrap_err();
        assert_eq!(
            error,
            CurriculumError::UnknownExample {
                step: 1,
                id: 5,
                train_count: 5
            }
        );
    }

    #[test]
    fn weights_that_do_not_sum_to_one_are_refused() {
        let step = Step {
            batch: vec![0, 1],
            weights: Some(vec![0.9, 0.9]),
            learning_rate: None,
        };
        assert!(matches!(
            Curriculum::new(vec![step], 2),
            Err(CurriculumError::WeightSum { step: 1, .. })
        ));
    }

    #[test]
    fn a_learning_rate_that_is_not_finite_is_refused() {
        let step = Step::new(vec![0], Some(f32::NAN));
        assert!(matches!(
            Curriculum::new(vec![step], 1),
            Err(CurriculumError::LearningRate { step: 1, .. })
        ));
    }

    #[test]
    fn the_mean_learning_rate_needs_every_step() {
        let with = Step::new(vec![0], Some(2.0));
        let without = Step::new(vec![0], None);
        let all = Curriculum::new(vec![with.clone(), Step::new(vec![0], Some(4.0))], 1).unwrap();
        assert_eq!(all.mean_learning_rate(), Some(3.0));
        let some = Curriculum::new(vec![with, without], 1).unwrap();
        assert_eq!(some.mean_learning_rate(), None);
    }
}
