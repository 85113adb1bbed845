//! Influence among the examples of one list: how symmetric it is, and which way it points.

use simfluence_core::Scores;

/// A square matrix of scores whose two axes are the same examples.
///
/// ```
/// # use simfluence_core::Scores;
/// # let keys = vec!["a→b".to_owned(), "b→a".to_owned()];
/// # let scores = Scores {
/// #     method: "empirical".into(), train_keys: keys.clone(), test_keys: keys,
/// #     reference_learning_rate: 1e-3, has_natural_unit: true,
/// #     values: vec![2.0, 0.5, 0.25, 2.0], layers: Vec::new(), provenance: Default::default(),
/// # };
/// use simfluence_simulators::empirical::Pairwise;
/// let pairwise = Pairwise::new(&scores)?;
/// // Training on the first lowers the second more than the other way round.
/// assert_eq!(pairwise.direction(0, 1), 0.25);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Pairwise<'a> {
    scores: &'a Scores,
    size: usize,
}

impl<'a> Pairwise<'a> {
    /// Takes scores whose axes are the same.
    ///
    /// # Errors
    /// The first position at which the keys differ.
    pub fn new(scores: &'a Scores) -> Result<Self, PairwiseError> {
        let (train, test) = (&scores.train_keys, &scores.test_keys);
        let size = train.len().max(test.len());
        match (0..size).find(|&k| train.get(k) != test.get(k)) {
            Some(position) => Err(PairwiseError {
                position,
                train: train.get(position).cloned(),
                test: test.get(position).cloned(),
            }),
            None => Ok(Self { scores, size }),
        }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        f64::from(self.scores.values[i * self.size + j])
    }

    /// `E(i,j) − E(j,i)`: above 0 where training on `i` lowers `j` more than the other way round.
    pub fn direction(&self, i: usize, j: usize) -> f64 {
        self.at(i, j) - self.at(j, i)
    }

    /// Share of the antisymmetric part in the squared scores of different examples,
    /// `Σ (E(i,j) − E(j,i))² / (4 Σ E(i,j)²)` over `i ≠ j`: 0 where influence is symmetric, 1
    /// where each effect is undone by the other direction. `None` where all are 0 or there are
    /// fewer than two examples.
    pub fn antisymmetric_share(&self) -> Option<f64> {
        let (mut antisymmetric, mut all) = (0.0, 0.0);
        for i in 0..self.size {
            for j in (0..self.size).filter(|&j| j != i) {
                antisymmetric += self.direction(i, j).powi(2) / 4.0;
                all += self.at(i, j).powi(2);
            }
        }
        (all > 0.0).then(|| antisymmetric / all)
    }
}

/// Scores whose axes differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the axes differ at position {position}: training example {train:?}, test example {test:?}; give the same examples, in the same order, as both"
)]
pub struct PairwiseError {
    /// The first position.
    pub position: usize,
    /// Key of the training example there, if there is one.
    pub train: Option<String>,
    /// Key of the test example there, if there is one.
    pub test: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn scores(values: &[f32], train: &[&str], test: &[&str]) -> Scores {
        let keys = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Scores {
            method: "empirical".into(),
            train_keys: keys(train),
            test_keys: keys(test),
            reference_learning_rate: 1.0,
            has_natural_unit: true,
            values: values.to_vec(),
            layers: Vec::new(),
            provenance: BTreeMap::new(),
        }
    }

    #[test]
    fn symmetric_scores_have_no_antisymmetric_part_and_opposite_ones_nothing_else() {
        let share = |values: &[f32]| {
            let scores = scores(values, &["a", "b"], &["a", "b"]);
            Pairwise::new(&scores).unwrap().antisymmetric_share()
        };
        assert_eq!(share(&[9.0, 2.0, 2.0, -4.0]), Some(0.0));
        assert_eq!(share(&[9.0, 2.0, -2.0, -4.0]), Some(1.0));
        assert_eq!(share(&[9.0, 2.0, 0.0, -4.0]), Some(0.5));
        assert_eq!(share(&[9.0, 0.0, 0.0, -4.0]), None);
    }

    #[test]
    fn axes_that_differ_are_named() {
        let other = scores(&[0.0; 4], &["a", "b"], &["a", "c"]);
        let error = Pairwise::new(&other).unwrap_err();
        assert_eq!(error.position, 1);
        let more = scores(&[0.0; 2], &["a"], &["a", "c"]);
        let error = Pairwise::new(&more).unwrap_err();
        assert_eq!((error.position, error.train), (1, None));
    }
}
