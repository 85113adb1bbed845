//! What happened to the test losses: `L_0 … L_T` for all test examples.

use serde::{Deserialize, Serialize};

/// Losses of all test examples at the evaluated steps, in nats per target token.
///
/// Shape `[evaluations × test_count]`, row-major. A NaN or an infinity is a real observation (the
/// run diverged). A value that was never measured is *missing*: [`Trajectory::get`] gives `None`.
///
/// ```
/// use simfluence_core::Trajectory;
/// let trajectory = Trajectory::new(vec![0, 1], 2, vec![3.0, 2.0, 2.5, 1.5])?;
/// assert_eq!(trajectory.at_step(1), Some(&[2.5, 1.5][..]));
/// assert_eq!(trajectory.get(1, 0), Some(2.5));
/// # Ok::<(), simfluence_core::TrajectoryError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    steps: Vec<u32>,
    test_count: usize,
    values: Vec<f32>,
    measured: Option<Vec<bool>>,
}

impl Trajectory {
    /// A complete trajectory: every test example measured at each of `steps`.
    ///
    /// # Errors
    /// Steps that do not increase, or a number of values other than `steps × test_count`.
    pub fn new(
        steps: Vec<u32>,
        test_count: usize,
        values: Vec<f32>,
    ) -> Result<Self, TrajectoryError> {
        Self::build(steps, test_count, values, None)
    }

    /// A trajectory in which only the values with `measured` set were observed; the others are
    /// never read.
    ///
    /// # Errors
    /// As [`Trajectory::new`], and `measured` of another length than `values`.
    pub fn with_missing(
        steps: Vec<u32>,
        test_count: usize,
        values: Vec<f32>,
        measured: Vec<bool>,
    ) -> Result<Self, TrajectoryError> {
        let complete = measured.iter().all(|&m| m);
        if measured.len() != values.len() {
            return Err(TrajectoryError::ValueCount {
                expected: values.len(),
                got: measured.len(),
            });
        }
        let measured = if complete { None } else { Some(measured) };
        Self::build(steps, test_count, values, measured)
    }

    fn build(
        steps: Vec<u32>,
        test_count: usize,
        values: Vec<f32>,
        measured: Option<Vec<bool>>,
    ) -> Result<Self, TrajectoryError> {
        if let Some(pair) = steps.windows(2).find(|p| p[1] <= p[0]) {
            return Err(TrajectoryError::StepOrder {
                before: pair[0],
                after: pair[1],
            });
        }
        if values.len() != steps.len() * test_count {
            return Err(TrajectoryError::ValueCount {
                expected: steps.len() * test_count,
                got: values.len(),
            });
        }
        Ok(Self {
            steps,
            test_count,
            values,
            measured,
        })
    }

    /// The evaluated steps, increasing; 0 is before any step.
    pub fn steps(&self) -> &[u32] {
        &self.steps
    }

    /// Number of test examples `m`.
    pub fn test_count(&self) -> usize {
        self.test_count
    }

    /// Whether every test example was measured at every evaluated step.
    pub fn is_complete(&self) -> bool {
        self.measured.is_none()
    }

    /// All values, row-major `[evaluations × test_count]`; those never measured are arbitrary.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The losses of the `index`-th evaluation; those never measured are arbitrary.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.test_count..(index + 1) * self.test_count]
    }

    /// The losses after step `step`, if it was evaluated.
    pub fn at_step(&self, step: u32) -> Option<&[f32]> {
        self.index_of(step).map(|index| self.row(index))
    }

    /// Position of `step` among the evaluated steps.
    pub fn index_of(&self, step: u32) -> Option<usize> {
        self.steps.binary_search(&step).ok()
    }

    /// The loss of test example `test` at the `index`-th evaluation, `None` if never measured.
    pub fn get(&self, index: usize, test: usize) -> Option<f32> {
        let position = index * self.test_count + test;
        match &self.measured {
            Some(measured) if !measured[position] => None,
            _ => Some(self.values[position]),
        }
    }

    /// `L_0`, if all test examples were measured before the first step.
    pub fn initial(&self) -> Option<&[f32]> {
        let index = self.index_of(0)?;
        let complete = (0..self.test_count).all(|j| self.get(index, j).is_some());
        complete.then(|| self.row(index))
    }

    /// The losses at the last evaluated step.
    pub fn last(&self) -> Option<&[f32]> {
        (!self.steps.is_empty()).then(|| self.row(self.steps.len() - 1))
    }

    /// Keeps every `every`-th evaluation, and of each but the first and the last only the test
    /// examples `j` with `j mod parts = index mod parts`, as if the others had never been
    /// measured; both at least 1.
    #[must_use]
    pub fn thinned(&self, every: usize, parts: usize) -> Self {
        let last = self.steps.len().saturating_sub(1);
        let kept: Vec<usize> = (0..self.steps.len())
            .filter(|&index| index % every == 0 || index == last)
            .collect();
        let m = self.test_count;
        let mut values = Vec::with_capacity(kept.len() * m);
        let mut measured = Vec::with_capacity(kept.len() * m);
        for (place, &index) in kept.iter().enumerate() {
            let whole = index == 0 || index == last;
            values.extend_from_slice(self.row(index));
            measured.extend((0..m).map(|test| {
                (whole || test % parts == place % parts) && self.get(index, test).is_some()
            }));
        }
        let complete = measured.iter().all(|&m| m);
        Self {
            steps: kept.iter().map(|&index| self.steps[index]).collect(),
            test_count: m,
            values,
            measured: (!complete).then_some(measured),
        }
    }

    /// The curve of one test example: `(step, loss)` where it was measured.
    pub fn curve(&self, test: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.steps
            .iter()
            .enumerate()
            .filter_map(move |(k, &step)| self.get(k, test).map(|loss| (step, loss)))
    }

    /// Whether any measured loss is NaN or infinite.
    pub fn diverged(&self) -> bool {
        (0..self.values.len())
            .any(|p| !self.values[p].is_finite() && self.measured.as_ref().is_none_or(|m| m[p]))
    }
}

/// What is wrong with the parts of a trajectory.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrajectoryError {
    /// Evaluated steps must increase.
    #[error("evaluated steps must increase, but step {after} follows step {before}")]
    StepOrder {
        /// The earlier entry.
        before: u32,
        /// The entry after it.
        after: u32,
    },
    /// Another number of values than steps times test examples.
    #[error("expected {expected} loss values, got {got}")]
    ValueCount {
        /// Steps times test examples.
        expected: usize,
        /// What was given.
        got: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_ends_whole_and_rotates_in_between() {
        let values = (0..14).map(|v| v as f32).collect();
        let all = Trajectory::new((0..7).collect(), 2, values).unwrap();
        let thin = all.thinned(2, 2);
        assert_eq!(thin.steps(), [0, 2, 4, 6]);
        let rows: Vec<Vec<Option<f32>>> = (0..4)
            .map(|row| (0..2).map(|test| thin.get(row, test)).collect())
            .collect();
        assert_eq!(rows[0], [Some(0.0), Some(1.0)]);
        assert_eq!(rows[1], [None, Some(5.0)]);
        assert_eq!(rows[2], [Some(8.0), None]);
        assert_eq!(rows[3], [Some(12.0), Some(13.0)]);
        assert_eq!(all.thinned(1, 1), all);
    }

    #[test]
    fn missing_values_are_absent_from_the_curve() {
        let trajectory = Trajectory::with_missing(
            vec![0, 5],
            2,
            vec![1.0, 2.0, 3.0, 4.0],
            vec![true, true, false, true],
        )
        .unwrap();
        assert_eq!(trajectory.get(1, 0), None);
        assert_eq!(trajectory.curve(0).collect::<Vec<_>>(), vec![(0, 1.0)]);
        assert_eq!(
            trajectory.curve(1).collect::<Vec<_>>(),
            vec![(0, 2.0), (5, 4.0)]
        );
        assert!(!trajectory.is_complete());
    }

    #[test]
    fn a_missing_nan_is_no_divergence_but_a_measured_one_is() {
        let values = vec![1.0, f32::NAN];
        let missing =
            Trajectory::with_missing(vec![0], 2, values.clone(), vec![true, false]).unwrap();
        assert!(!missing.diverged());
        assert!(Trajectory::new(vec![0], 2, values).unwrap().diverged());
    }

    #[test]
    fn steps_that_go_backwards_are_refused() {
        assert_eq!(
            Trajectory::new(vec![0, 2, 2], 1, vec![0.0; 3]),
            Err(TrajectoryError::StepOrder {
                before: 2,
                after: 2
            })
        );
    }

    #[test]
    fn a_wrong_number_of_values_is_refused() {
        assert_eq!(
            Trajectory::new(vec![0, 1], 3, vec![0.0; 5]),
            Err(TrajectoryError::ValueCount {
                expected: 6,
                got: 5
            })
        );
    }
}
