//! The exposures `x_t(i)` of all steps, sparse and shared by all test examples.

use crate::FitError;
use simfluence_core::Curriculum;
use std::cmp::Ordering;

/// A sparse matrix in compressed rows: one row per step, one column per training example.
///
/// An example that stands in a batch twice has one entry, its exposures added up; the entries of
/// a row are ordered by example.
///
/// ```
/// use simfluence_core::{Curriculum, Step};
/// use simfluence_fitter::Exposures;
/// let curriculum = Curriculum::new(vec![Step::new(vec![2, 0, 2, 2], None)], 3)?;
/// let exposures = Exposures::from_curriculum(&curriculum, 3)?;
/// assert_eq!(exposures.row(0).collect::<Vec<_>>(), vec![(0, 0.25), (2, 0.75)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Exposures {
    train_count: usize,
    starts: Vec<usize>,
    ids: Vec<u32>,
    values: Vec<f64>,
}

impl Exposures {
    /// No steps yet, over `train_count` training examples.
    pub fn new(train_count: usize) -> Self {
        Self {
            train_count,
            starts: vec![0],
            ids: Vec::new(),
            values: Vec::new(),
        }
    }

    /// The exposures of a curriculum, one row per step.
    ///
    /// # Errors
    /// A training id out of range, with its step.
    pub fn from_curriculum(curriculum: &Curriculum, train_count: usize) -> Result<Self, FitError> {
        let mut exposures = Self::new(train_count);
        for step in curriculum.steps() {
            exposures.push(step.exposures())?;
        }
        Ok(exposures)
    }

    /// Adds a step; entries of the same example are added up.
    ///
    /// # Errors
    /// A training id out of range or an exposure that is not finite, with the step counted from 1.
    pub fn push(&mut self, step: impl IntoIterator<Item = (u32, f64)>) -> Result<(), FitError> {
        let mut entries: Vec<(u32, f64)> = step.into_iter().collect();
        for &(id, exposure) in &entries {
            if id as usize >= self.train_count || !exposure.is_finite() {
                return Err(FitError::Exposure {
                    step: self.len() + 1,
                    id,
                    train_count: self.train_count,
                    exposure,
                });
            }
        }
        entries.sort_by_key(|&(id, _)| id);
        for (id, exposure) in entries {
            let start = self.starts[self.len()];
            match self.ids[start..].last() {
                Some(&last) if last == id => {
                    *self.values.last_mut().expect("an entry per id") += exposure;
                }
                _ => {
                    self.ids.push(id);
                    self.values.push(exposure);
                }
            }
        }
        self.starts.push(self.ids.len());
        Ok(())
    }

    /// Number of training examples `n`.
    pub fn train_count(&self) -> usize {
        self.train_count
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries `(example, exposure)` of a step (row 0 is the first step).
    pub fn row(&self, row: usize) -> impl Iterator<Item = (u32, f64)> + '_ {
        let (ids, values) = self.entries(row);
        ids.iter().copied().zip(values.iter().copied())
    }

    /// The entries of a row as two slices.
    #[inline(always)]
    pub(crate) fn entries(&self, row: usize) -> (&[u32], &[f64]) {
        let range = self.starts[row]..self.starts[row + 1];
        (&self.ids[range.clone()], &self.values[range])
    }

    /// The entries of all rows in turn, with their values taken from `values` instead.
    #[inline(always)]
    pub(crate) fn rows_with<'a, T>(
        &'a self,
        values: &'a [T],
    ) -> impl Iterator<Item = (&'a [u32], &'a [T])> {
        let bounds = self.starts.windows(2);
        bounds.map(|ends| (&self.ids[ends[0]..ends[1]], &values[ends[0]..ends[1]]))
    }

    /// The values of all entries, row by row.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// Sum of a row: 1 up to the rounding of recorded weights.
    pub(crate) fn row_sum(&self, row: usize) -> f64 {
        self.entries(row).1.iter().sum()
    }

    /// Appends all rows of `other`.
    pub(crate) fn extend(&mut self, other: &Self) {
        let offset = self.ids.len();
        self.starts
            .extend(other.starts[1..].iter().map(|start| start + offset));
        self.ids.extend_from_slice(&other.ids);
        self.values.extend_from_slice(&other.values);
    }

    /// The rows `rows`, in that order.
    pub(crate) fn select(&self, rows: impl Iterator<Item = usize>) -> Self {
        let mut selected = Self::new(self.train_count);
        for row in rows {
            let (ids, values) = self.entries(row);
            selected.ids.extend_from_slice(ids);
            selected.values.extend_from_slice(values);
            selected.starts.push(selected.ids.len());
        }
        selected
    }

    /// Number of rows at the begin that are the same in both.
    pub(crate) fn shared_prefix(&self, other: &Self) -> usize {
        let most = self.len().min(other.len());
        let same = |row: &usize| self.entries(*row) == other.entries(*row);
        (0..most).take_while(same).count()
    }

    /// An order of the rows `row` of two curricula; one that has ended comes first.
    pub(crate) fn compare_row(&self, other: &Self, row: usize) -> Ordering {
        if row >= self.len().min(other.len()) {
            return self.len().cmp(&other.len());
        }
        let (ids, values) = self.entries(row);
        let (other_ids, other_values) = other.entries(row);
        let by_value = || {
            let pairs = values.iter().zip(other_values);
            pairs.map(|(x, y)| x.total_cmp(y)).find(|o| o.is_ne())
        };
        ids.cmp(other_ids)
            .then_with(|| by_value().unwrap_or(Ordering::Equal))
    }

    /// In how many rows each training example stands.
    pub(crate) fn steps_seen(&self) -> Vec<u32> {
        let mut seen = vec![0; self.train_count];
        for (&id, &value) in self.ids.iter().zip(&self.values) {
            seen[id as usize] += u32::from(value != 0.0);
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_out_of_range_is_named_with_its_step() {
        let mut exposures = Exposures::new(2);
        exposures.push([(0, 1.0)]).unwrap();
        let message = exposures.push([(2, 1.0)]).unwrap_err().to_string();
        assert!(
            message.contains("step 2") && message.contains("id 2"),
            "{message}"
        );
    }

    #[test]
    fn selected_rows_keep_their_entries() {
        let mut exposures = Exposures::new(3);
        exposures.push([(0, 0.5), (1, 0.5)]).unwrap();
        exposures.push([(2, 1.0)]).unwrap();
        exposures.push([(1, 1.0)]).unwrap();
        let selected = exposures.select([2, 0].into_iter());
        assert_eq!(selected.row(0).collect::<Vec<_>>(), vec![(1, 1.0)]);
        assert_eq!(
            selected.row(1).collect::<Vec<_>>(),
            vec![(0, 0.5), (1, 0.5)]
        );
        assert_eq!(exposures.steps_seen(), vec![1, 2, 1]);
    }
}
