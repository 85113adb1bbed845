//! Where in the network influence arises.

use super::error::ReportError;
use crate::table::{add_row, new_table, set_header, show};
use serde::Serialize;

/// The part of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerShare {
    /// Name of the layer.
    pub layer: String,
    /// `Σ |s_l(i,j)|` over all pairs, divided by the same over all layers; the shares sum to 1.
    pub absolute: f64,
    /// `Σ s_l(i,j) / Σ_l Σ s_l(i,j)` over each test example's most influential training
    /// examples; sums to 1 with signs: a layer that works against the rest is negative. `None` if
    /// the sum below is not positive.
    pub of_top: Option<f64>,
}

/// The parts of all layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerShares {
    /// How many of the most influential training examples of each test example
    /// [`LayerShare::of_top`] looks at.
    pub top: usize,
    /// Layers in the order given.
    pub layers: Vec<LayerShare>,
}

impl LayerShares {
    /// For people.
    pub fn text(&self) -> String {
        let mut table = new_table();
        let top = format!("of the top {}", self.top);
        set_header(&mut table, ["layer", "of all |scores|", top.as_str()]);
        for layer in &self.layers {
            let cells = [show(Some(layer.absolute), None), show(layer.of_top, None)];
            add_row(&mut table, &layer.layer, cells);
        }
        format!("Share of the influence per layer\n{table}\n")
    }
}

/// How scores are spread over layers.
///
/// - `layers`: names, `l` of them.
/// - `values`: scores per layer, row-major `[l × train × test]`; their sum over layers is the
///   score.
/// - `top`: how many training examples with the largest summed score count for
///   [`LayerShare::of_top`], per test example; at least 1, capped at `train`.
///
/// ```
/// use simfluence_evaluation::reports::layer_shares;
/// let layers = ["embedding".to_owned(), "output".to_owned()];
/// // Two training examples, one test example.
/// let shares = layer_shares(&layers, &[3.0, -1.0, 1.0, -3.0], 2, 1, 1)?;
/// assert_eq!(shares.layers[0].absolute, 0.5);
/// assert_eq!(shares.layers[0].of_top, Some(0.75));
/// # Ok::<(), simfluence_evaluation::reports::ReportError>(())
/// ```
///
/// # Errors
/// Another number of values, a value that is not finite, `top` of 0, all scores 0.
///
/// # Reference
/// Grosse et al. 2023 (arXiv 2308.03296), section 5.3 on layerwise attribution.
pub fn layer_shares(
    layers: &[String],
    values: &[f32],
    train: usize,
    test: usize,
    top: usize,
) -> Result<LayerShares, ReportError> {
    let size = train * test;
    if values.len() != layers.len() * size || size == 0 {
        return Err(ReportError::Shape {
            what: "scores per layer",
            expected: layers.len() * size,
            got: values.len(),
        });
    }
    if top == 0 {
        return Err(ReportError::Setting {
            setting: "top",
            got: 0.0,
            wanted: "at least 1",
        });
    }
    if let Some(position) = values.iter().position(|v| !v.is_finite()) {
        let (layer, pair) = (position / size, position % size);
        return Err(ReportError::NotFinite {
            what: "the score",
            place: format!(
                "of training example {} for test example {} in layer {:?}",
                pair / test,
                pair % test,
                layers[layer]
            ),
            got: f64::from(values[position]),
        });
    }
    let absolute: Vec<f64> = values
        .chunks(size)
        .map(|layer| layer.iter().map(|v| f64::from(v.abs())).sum())
        .collect();
    let total: f64 = absolute.iter().sum();
    if total == 0.0 {
        return Err(ReportError::TooFew {
            what: "scores other than 0",
            got: 0,
            needed: 1,
        });
    }
    let top = top.min(train);
    let of_top = sums_of_top(values, layers.len(), train, test, top);
    let total_of_top: f64 = of_top.iter().sum();
    let layers = layers.iter().zip(absolute.iter().zip(&of_top));
    Ok(LayerShares {
        top,
        layers: layers
            .map(|(layer, (absolute, of_top))| LayerShare {
                layer: layer.clone(),
                absolute: absolute / total,
                of_top: (total_of_top > 0.0).then(|| of_top / total_of_top),
            })
            .collect(),
    })
}

/// Sum of every layer's scores over each test example's `top` training examples by summed score.
fn sums_of_top(values: &[f32], layers: usize, train: usize, test: usize, top: usize) -> Vec<f64> {
    let at = |l: usize, i: usize, j: usize| f64::from(values[(l * train + i) * test + j]);
    let mut sums = vec![0.0; layers];
    for j in 0..test {
        let total: Vec<f64> = (0..train)
            .map(|i| (0..layers).map(|l| at(l, i, j)).sum())
            .collect();
        let mut order: Vec<usize> = (0..train).collect();
        order.sort_by(|&a, &b| total[b].total_cmp(&total[a]));
        for &i in &order[..top] {
            for (l, sum) in sums.iter_mut().enumerate() {
                *sum += at(l, i, j);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_is_found_for_each_test_example_by_the_sum_over_layers() {
        let layers = ["a".to_owned(), "b".to_owned()];
        // [2 layers × 2 train × 2 test]; sums: (1, 7), (5, −1): top of test 0 is 1, of test 1 is 0.
        let values = [4.0, 3.0, 1.0, 1.0, -3.0, 4.0, 4.0, -2.0];
        let shares = layer_shares(&layers, &values, 2, 2, 1).unwrap();
        // a: 1 + 3, b: 4 + 4.
        let of_top: Vec<f64> = shares.layers.iter().filter_map(|l| l.of_top).collect();
        assert_eq!(of_top, [4.0 / 12.0, 8.0 / 12.0]);
        let absolute: Vec<f64> = shares.layers.iter().map(|l| l.absolute).collect();
        assert_eq!(absolute, [9.0 / 22.0, 13.0 / 22.0]);
        assert!(shares.text().contains("0.667"));
    }

    #[test]
    fn a_nan_is_reported_with_its_layer() {
        let layers = ["a".to_owned(), "b".to_owned()];
        let message = layer_shares(&layers, &[1.0, 1.0, f32::NAN, 1.0], 1, 2, 1)
            .unwrap_err()
            .to_string();
        assert!(message.contains("layer \"b\""), "{message}");
    }
}
