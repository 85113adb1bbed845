//! The pairwise matrix: what training on each example does to each of the same examples.

use super::error::ReportError;
use crate::metrics::{pearson, spearman};
use crate::table::{add_row, new_table, set_header, show};
use serde::Serialize;
use simfluence_core::Scores;

/// Scores between the same examples: `values[i·n + j]` is what training on `i` does to `j`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairwiseMatrix {
    /// Keys of the examples, on both axes.
    pub keys: Vec<String>,
    /// Scores, row-major `[n × n]`.
    pub values: Vec<f32>,
}

impl PairwiseMatrix {
    /// Takes the square part of scores: the training examples that are test examples too, by key,
    /// in the order of the training examples.
    ///
    /// # Errors
    /// Fewer than two keys in common.
    pub fn of(scores: &Scores) -> Result<Self, ReportError> {
        let test_ids: std::collections::HashMap<&str, usize> = scores
            .test_keys
            .iter()
            .enumerate()
            .map(|(j, key)| (key.as_str(), j))
            .collect();
        let both: Vec<(usize, usize)> = scores
            .train_keys
            .iter()
            .enumerate()
            .filter_map(|(i, key)| Some((i, *test_ids.get(key.as_str())?)))
            .collect();
        if both.len() < 2 {
            return Err(ReportError::TooFew {
                what: "examples are both training and test examples",
                got: both.len(),
                needed: 2,
            });
        }
        let columns = scores.test_keys.len();
        let row = |i: usize| both.iter().map(move |&(_, j)| (i, j));
        Ok(Self {
            keys: both
                .iter()
                .map(|&(i, _)| scores.train_keys[i].clone())
                .collect(),
            values: both
                .iter()
                .flat_map(|&(i, _)| row(i))
                .map(|(i, j)| scores.values[i * columns + j])
                .collect(),
        })
    }

    /// How symmetric it is, see [`symmetry()`].
    ///
    /// # Errors
    /// As [`symmetry()`].
    pub fn symmetry(&self) -> Result<Symmetry, ReportError> {
        symmetry(&self.values, self.keys.len())
    }
}

/// How symmetric a pairwise matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Symmetry {
    /// Number of examples `n`.
    pub examples: usize,
    /// Pearson correlation of `E_ij` and `E_ji` over all `i ≠ j`; 1 where symmetric, −1 where
    /// antisymmetric around the mean. Not defined for a constant.
    pub pearson: Option<f64>,
    /// Spearman rank correlation of the same.
    pub spearman: Option<f64>,
    /// `‖E − Eᵀ‖ / ‖E + Eᵀ‖` (Frobenius) without the diagonal: 0 where symmetric, 1 where
    /// `E_ij` says nothing about `E_ji` and the mean is 0. Not defined where `E + Eᵀ` is 0.
    pub asymmetry: Option<f64>,
    /// The same with the diagonal; smaller, for what an example does to itself is large and
    /// always symmetric.
    pub asymmetry_with_diagonal: Option<f64>,
    /// Mean of the diagonal: what an example does to itself.
    pub mean_self: f64,
    /// Mean outside of the diagonal.
    pub mean_other: f64,
}

impl Symmetry {
    /// For people.
    pub fn text(&self) -> String {
        let mut table = new_table();
        set_header(&mut table, ["pairwise matrix", "value"]);
        for (name, value) in [
            ("Pearson of E and Eᵀ (i ≠ j)", self.pearson),
            ("Spearman of E and Eᵀ (i ≠ j)", self.spearman),
            ("‖E − Eᵀ‖ / ‖E + Eᵀ‖ (i ≠ j)", self.asymmetry),
            ("‖E − Eᵀ‖ / ‖E + Eᵀ‖ (all)", self.asymmetry_with_diagonal),
            ("mean influence on itself", Some(self.mean_self)),
            ("mean influence on others", Some(self.mean_other)),
        ] {
            add_row(&mut table, name, [show(value, None)]);
        }
        format!("Symmetry over {} examples\n{table}\n", self.examples)
    }
}

/// How symmetric `values`, row-major `[n × n]`, are.
///
/// To first order in the learning rate influences are symmetric: `E_ij = η ∇L_i · ∇L_j`.
///
/// ```
/// use simfluence_evaluation::reports::symmetry;
/// let symmetric = symmetry(&[9.0, 1.0, 2.0, 1.0, 9.0, 3.0, 2.0, 3.0, 9.0], 3)?;
/// assert_eq!((symmetric.pearson, symmetric.asymmetry), (Some(1.0), Some(0.0)));
/// # Ok::<(), simfluence_evaluation::reports::ReportError>(())
/// ```
///
/// # Errors
/// Fewer than two examples, another number of values than `n²`, a value that is not finite.
///
/// # Reference
/// Matelsky, Ungar & Kording 2024 (arXiv 2406.00509): pairwise empirical influences.
pub fn symmetry(values: &[f32], examples: usize) -> Result<Symmetry, ReportError> {
    let n = examples;
    if n < 2 {
        return Err(ReportError::TooFew {
            what: "examples in a pairwise matrix",
            got: n,
            needed: 2,
        });
    }
    if values.len() != n * n {
        return Err(ReportError::Shape {
            what: "a pairwise matrix",
            expected: n * n,
            got: values.len(),
        });
    }
    if let Some(position) = values.iter().position(|v| !v.is_finite()) {
        return Err(ReportError::NotFinite {
            what: "the pairwise influence",
            place: format!("of example {} on {}", position / n, position % n),
            got: f64::from(values[position]),
        });
    }
    let at = |i: usize, j: usize| f64::from(values[i * n + j]);
    let off_diagonal = || (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
    let off_diagonal = || off_diagonal().filter(|(i, j)| i != j);
    let forward: Vec<f64> = off_diagonal().map(|(i, j)| at(i, j)).collect();
    let backward: Vec<f64> = off_diagonal().map(|(i, j)| at(j, i)).collect();
    let squares = |sign: f64| -> f64 {
        let pairs = forward.iter().zip(&backward);
        pairs.map(|(a, b)| (a + sign * b).powi(2)).sum()
    };
    let diagonal: f64 = (0..n).map(|i| (2.0 * at(i, i)).powi(2)).sum();
    let (differences, sums) = (squares(-1.0), squares(1.0));
    let ratio = |below: f64| (below > 0.0).then(|| (differences / below).sqrt());
    Ok(Symmetry {
        examples: n,
        pearson: pearson(&forward, &backward),
        spearman: spearman(&forward, &backward),
        asymmetry: ratio(sums),
        asymmetry_with_diagonal: ratio(sums + diagonal),
        mean_self: (0..n).map(|i| at(i, i)).sum::<f64>() / n as f64,
        mean_other: forward.iter().sum::<f64>() / forward.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::ref_reports::*;

    #[test]
    fn ref_symmetry_of_numpy_and_scipy() {
        let got = symmetry(&REF_PAIRWISE, 6).unwrap();
        assert!((got.pearson.unwrap() - REF_PAIRWISE_PEARSON).abs() < 1e-12);
        assert!((got.spearman.unwrap() - REF_PAIRWISE_SPEARMAN).abs() < 1e-12);
        assert!((got.asymmetry.unwrap() - REF_ASYMMETRY).abs() < 1e-12);
        let with = got.asymmetry_with_diagonal.unwrap();
        assert!((with - REF_ASYMMETRY_WITH_DIAGONAL).abs() < 1e-12);
    }

    #[test]
    fn an_antisymmetric_matrix_has_correlation_minus_one_and_no_ratio() {
        let values = [5.0, 1.0, -2.0, -1.0, 5.0, 3.0, 2.0, -3.0, 5.0];
        let got = symmetry(&values, 3).unwrap();
        assert_eq!(got.pearson, Some(-1.0));
        assert_eq!(got.asymmetry, None);
        // ‖E − Eᵀ‖² = 2·(4 + 16 + 36), ‖E + Eᵀ‖² = 3·100.
        let with = got.asymmetry_with_diagonal.unwrap();
        assert!((with - (112.0f64 / 300.0).sqrt()).abs() < 1e-15);
        assert_eq!((got.mean_self, got.mean_other), (5.0, 0.0));
    }

    #[test]
    fn the_square_part_is_found_by_key_and_keeps_its_orientation() {
        let scores = Scores {
            method: "m".into(),
            train_keys: ["a", "b", "c"].map(String::from).into(),
            test_keys: ["c", "q", "a"].map(String::from).into(),
            reference_learning_rate: 1.0,
            has_natural_unit: true,
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            layers: Vec::new(),
            provenance: Default::default(),
        };
        let square = PairwiseMatrix::of(&scores).unwrap();
        assert_eq!(square.keys, ["a", "c"]);
        // a→a, a→c, c→a, c→c.
        assert_eq!(square.values, [3.0, 1.0, 9.0, 7.0]);
    }

    #[test]
    fn a_nan_is_reported_with_its_place() {
        let message = symmetry(&[1.0, f32::NAN, 0.0, 1.0], 2)
            .unwrap_err()
            .to_string();
        assert!(message.contains("of example 0 on 1"), "{message}");
    }
}
