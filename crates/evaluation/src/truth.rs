//! How well a method's account of the training data agrees with what retraining shows.
//!
//! Everything here is over *rows* and *columns*: a row is a unit that was left out, or a subset
//! that was trained on; a column is a test example, or a sum over several. Correlations run down a
//! column, over the rows, and are averaged over columns.

use crate::bootstrap::{BootstrapSettings, interval};
use crate::compare::Estimate;
use crate::metrics::{pearson, spearman};
use serde::Serialize;
use simfluence_core::Examples;

/// Fewest rows that a correlation is taken over: with two it is always ±1.
const FEWEST_ROWS: usize = 3;

/// Correlations over rows, mean over the columns where they are defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// Pearson correlation; `None` if no column has one.
    pub pearson: Option<f64>,
    /// Spearman rank correlation; `None` if no column has one.
    pub spearman: Option<f64>,
    /// Number of columns.
    pub columns: usize,
    /// Columns in which both sides vary, so that a correlation is defined.
    pub defined: usize,
}

/// Agreement of two tables of the same shape, column by column.
///
/// Undefined in a column where a side is constant, and everywhere with fewer than three rows.
///
/// ```
/// use simfluence_evaluation::agreement;
/// // Three units, two test examples.
/// let truth = [vec![1.0, 0.0], vec![2.0, 5.0], vec![3.0, 1.0]];
/// let method = [vec![10.0, 0.1], vec![20.0, 0.2], vec![30.0, 0.3]];
/// let agreement = agreement(&truth, &method);
/// assert_eq!(agreement.spearman, Some((1.0 + 0.5) / 2.0));
/// ```
pub fn agreement(truth: &[Vec<f64>], predicted: &[Vec<f64>]) -> Agreement {
    let columns = truth.first().map_or(0, Vec::len);
    let each = |correlation: fn(&[f64], &[f64]) -> Option<f64>| -> Vec<f64> {
        per_column(truth, predicted, correlation)
            .into_iter()
            .flatten()
            .collect()
    };
    let (r, rho) = (each(pearson), each(spearman));
    Agreement {
        pearson: mean(&r),
        spearman: mean(&rho),
        columns,
        defined: r.len(),
    }
}

/// Mean agreement of every pair of seeds.
///
/// What one real retraining says about another: the ceiling for whatever is judged by a single
/// one. `None` with fewer than two seeds.
pub fn seed_to_seed(seeds: &[Vec<Vec<f64>>]) -> Option<Agreement> {
    let pairs: Vec<Agreement> = (0..seeds.len())
        .flat_map(|b| (0..b).map(move |a| (a, b)))
        .map(|(a, b)| agreement(&seeds[a], &seeds[b]))
        .collect();
    let first = pairs.first()?;
    let over = |value: fn(&Agreement) -> Option<f64>| -> Option<f64> {
        mean(&pairs.iter().filter_map(value).collect::<Vec<_>>())
    };
    Some(Agreement {
        pearson: over(|pair| pair.pearson),
        spearman: over(|pair| pair.spearman),
        columns: first.columns,
        defined: pairs.iter().map(|pair| pair.defined).min().unwrap_or(0),
    })
}

/// The Pearson correlation that a perfect method can expect with the mean of `seeds` retrainings
/// whose seed-to-seed correlation is `r`: `√(K r / (1 + (K − 1) r))`.
///
/// The mean over seeds is less noisy than one seed, so a method may agree with it better than one
/// seed agrees with another. `None` unless `0 < r ≤ 1`: noise alone has no ceiling.
///
/// ```
/// use simfluence_evaluation::attainable;
/// assert_eq!(attainable(1.0, 4), Some(1.0));
/// assert!((attainable(0.5, 4).unwrap() - 0.8f64.sqrt()).abs() < 1e-12);
/// assert_eq!(attainable(-0.1, 4), None);
/// ```
///
/// # Reference
/// Spearman 1910 and Brown 1910 (reliability of a mean); the square root is the correlation of the
/// mean with what it would be without noise.
pub fn attainable(r: f64, seeds: usize) -> Option<f64> {
    let seeds = seeds as f64;
    (r > 0.0 && r <= 1.0).then(|| (seeds * r / (1.0 + (seeds - 1.0) * r)).sqrt())
}

/// Linear datamodeling score of every test example: Spearman, over random subsets of the training
/// data, of what really came out of training on each against what the method predicts. `None`
/// where a side is constant, and with fewer than three subsets.
///
/// - `real`, `predicted`: `[subset][test]`; here the decrease of the test losses.
///
/// # Reference
/// Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", section 2.
pub fn lds_per_column(real: &[Vec<f64>], predicted: &[Vec<f64>]) -> Vec<Option<f64>> {
    per_column(real, predicted, spearman)
}

/// Linear datamodeling score: the mean of [`lds_per_column`] over test examples, with a bootstrap
/// interval over subsets.
///
/// The subsets are what is resampled because they are few; the test examples share them. `None` if
/// it is defined for no test example.
pub fn lds(
    real: &[Vec<f64>],
    predicted: &[Vec<f64>],
    settings: &BootstrapSettings,
) -> Option<Estimate> {
    let score = |rows: &[usize]| {
        let pick = |table: &[Vec<f64>]| rows.iter().map(|&k| table[k].clone()).collect::<Vec<_>>();
        let defined = lds_per_column(&pick(real), &pick(predicted));
        mean(&defined.into_iter().flatten().collect::<Vec<_>>())
    };
    let all: Vec<usize> = (0..real.len()).collect();
    Some(Estimate {
        value: score(&all)?,
        interval: interval(real.len(), settings, score),
    })
}

/// Which columns are looked at together.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Name, as it stands in tables.
    pub name: String,
    /// The test examples that are summed, per column.
    pub columns: Vec<Vec<usize>>,
}

impl Level {
    /// Every test example alone, the sum over each test dataset if there are several, and the sum
    /// over all test examples.
    pub fn all(test: &Examples) -> Vec<Self> {
        let (datasets, dataset_of) = test.groups("dataset");
        let mut levels = vec![Self {
            name: "per test example".to_owned(),
            columns: (0..test.len()).map(|j| vec![j]).collect(),
        }];
        if datasets.len() > 1 {
            let members = |d| (0..test.len()).filter(|&j| dataset_of[j] == d).collect();
            levels.push(Self {
                name: "sum per test dataset".to_owned(),
                columns: (0..datasets.len()).map(members).collect(),
            });
        }
        levels.push(Self {
            name: "sum over all".to_owned(),
            columns: vec![(0..test.len()).collect()],
        });
        levels
    }

    /// The columns of this level from one column per test example.
    pub fn of(&self, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let sum = |row: &Vec<f64>, members: &Vec<usize>| members.iter().map(|&j| row[j]).sum();
        rows.iter()
            .map(|row| self.columns.iter().map(|c| sum(row, c)).collect())
            .collect()
    }
}

/// Real effects of leaving units out, and what methods say about them.
pub struct TruthInput<'a> {
    /// What a unit is (`dataset`, `example`, a column).
    pub unit: &'a str,
    /// The real effects, `[seed][unit][test]`.
    pub seeds: &'a [Vec<Vec<f64>>],
    /// Their mean over seeds, `[unit][test]`.
    pub mean: &'a [Vec<f64>],
    /// Name of each method and what it says, `[unit][test]`.
    pub methods: &'a [(String, Vec<Vec<f64>>)],
}

/// Everything that retraining says about the methods of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeaveOutReport {
    /// The run that was trained again.
    pub reference_run: String,
    /// One part per kind of unit that was left out.
    pub truth: Vec<TruthReport>,
    /// Linear datamodeling scores, where subsets were trained.
    pub lds: Option<LdsReport>,
}

/// How well methods agree with leave-out truth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TruthReport {
    /// What a unit is.
    pub unit: String,
    /// Number of units.
    pub units: usize,
    /// Number of seeds.
    pub seeds: usize,
    /// One part per [`Level`].
    pub levels: Vec<LevelReport>,
}

/// Agreement at one level.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LevelReport {
    /// Name of the level.
    pub level: String,
    /// Mean agreement of two seeds; `None` with one seed.
    pub seed_to_seed: Option<Agreement>,
    /// [`attainable`] Pearson with the mean over seeds.
    pub attainable: Option<f64>,
    /// Every method against the mean over seeds.
    pub methods: Vec<MethodAgreement>,
}

/// One method's agreement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodAgreement {
    /// Name of the method.
    pub method: String,
    /// Its agreement with the truth.
    pub agreement: Agreement,
}

impl TruthReport {
    /// Judges every method at every level.
    pub fn new(input: &TruthInput<'_>, levels: &[Level]) -> Self {
        let level = |level: &Level| {
            let seeds: Vec<_> = input.seeds.iter().map(|seed| level.of(seed)).collect();
            let truth = level.of(input.mean);
            let between = seed_to_seed(&seeds);
            let judged = |(method, says): &(String, Vec<Vec<f64>>)| MethodAgreement {
                method: method.clone(),
                agreement: agreement(&truth, &level.of(says)),
            };
            LevelReport {
                level: level.name.clone(),
                seed_to_seed: between,
                attainable: between
                    .and_then(|b| b.pearson)
                    .and_then(|r| attainable(r, seeds.len())),
                methods: input.methods.iter().map(judged).collect(),
            }
        };
        Self {
            unit: input.unit.to_owned(),
            units: input.mean.len(),
            seeds: input.seeds.len(),
            levels: levels.iter().map(level).collect(),
        }
    }
}

/// Linear datamodeling scores of methods.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LdsReport {
    /// Number of subsets.
    pub subsets: usize,
    /// Number of seeds.
    pub seeds: usize,
    /// Spearman over subsets of one seed's decreases against another's, mean over test examples
    /// and pairs of seeds; `None` with one seed.
    pub seed_to_seed: Option<f64>,
    /// The score of every method against the mean over seeds.
    pub methods: Vec<MethodLds>,
}

/// One method's linear datamodeling score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodLds {
    /// Name of the method.
    pub method: String,
    /// The score; `None` if it is defined for no test example.
    pub lds: Option<Estimate>,
}

impl LdsReport {
    /// Judges every method: its name and its predictions, `[subset][test]`, against the real
    /// decreases, `[seed][subset][test]`, and their mean over seeds.
    pub fn new(
        seeds: &[Vec<Vec<f64>>],
        mean: &[Vec<f64>],
        methods: &[(String, Vec<Vec<f64>>)],
        settings: &BootstrapSettings,
    ) -> Self {
        let judged = |(method, says): &(String, Vec<Vec<f64>>)| MethodLds {
            method: method.clone(),
            lds: lds(mean, says, settings),
        };
        Self {
            subsets: mean.len(),
            seeds: seeds.len(),
            seed_to_seed: seed_to_seed(seeds).and_then(|between| between.spearman),
            methods: methods.iter().map(judged).collect(),
        }
    }
}

fn per_column(
    truth: &[Vec<f64>],
    predicted: &[Vec<f64>],
    correlation: fn(&[f64], &[f64]) -> Option<f64>,
) -> Vec<Option<f64>> {
    let column = |rows: &[Vec<f64>], j: usize| rows.iter().map(|row| row[j]).collect::<Vec<_>>();
    (0..truth.first().map_or(0, Vec::len))
        .map(|j| {
            (truth.len() >= FEWEST_ROWS)
                .then(|| correlation(&column(truth, j), &column(predicted, j)))
                .flatten()
        })
        .collect()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ref_truth::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use simfluence_core::Example;

    fn rows(values: &[f64], columns: usize) -> Vec<Vec<f64>> {
        values.chunks(columns).map(<[f64]>::to_vec).collect()
    }

    #[test]
    fn ref_lds_of_scipy() {
        let (real, predicted) = (rows(&REF_REAL, 5), rows(&REF_PREDICTED, 5));
        let per_column = lds_per_column(&real, &predicted);
        for (got, expected) in per_column.iter().zip(&REF_LDS_PER_TEST) {
            assert!((got.unwrap() - expected).abs() < 1e-14);
        }
        let settings = BootstrapSettings {
            resamples: 20_000,
            ..BootstrapSettings::default()
        };
        let estimate = lds(&real, &predicted, &settings).unwrap();
        assert!((estimate.value - REF_LDS).abs() < 1e-14);
        let interval = estimate.interval.unwrap();
        assert!(
            (interval.low - REF_LDS_INTERVAL[0]).abs() < 0.01,
            "{interval:?}"
        );
        assert!(
            (interval.high - REF_LDS_INTERVAL[1]).abs() < 0.01,
            "{interval:?}"
        );
    }

    #[test]
    fn ref_agreement_and_seed_to_seed_of_scipy() {
        let (real, predicted) = (rows(&REF_REAL, 5), rows(&REF_PREDICTED, 5));
        let got = agreement(&real, &predicted);
        assert!((got.pearson.unwrap() - REF_AGREEMENT[0]).abs() < 1e-14);
        assert!((got.spearman.unwrap() - REF_AGREEMENT[1]).abs() < 1e-14);
        let third = rows(&REF_THIRD, 5);
        let between = seed_to_seed(&[real, predicted, third]).unwrap();
        assert!((between.pearson.unwrap() - REF_SEED_TO_SEED[0]).abs() < 1e-14);
        assert!((between.spearman.unwrap() - REF_SEED_TO_SEED[1]).abs() < 1e-14);
    }

    #[test]
    fn a_constant_column_and_two_rows_have_no_correlation() {
        let truth = [vec![1.0, 3.0], vec![2.0, 3.0], vec![4.0, 3.0]];
        let got = agreement(&truth, &truth);
        assert_eq!((got.pearson, got.columns, got.defined), (Some(1.0), 2, 1));
        let two = agreement(&truth[..2], &truth[..2]);
        assert_eq!((two.pearson, two.spearman, two.defined), (None, None, 0));
        assert_eq!(seed_to_seed(&[truth.to_vec()]), None);
    }

    #[test]
    fn a_perfect_method_attains_what_is_promised_against_the_mean_of_noisy_seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut normal = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let clean: Vec<f64> = (0..20_000).map(|_| normal()).collect();
        // Noise as strong as the signal: two seeds correlate by a half.
        let seeds: Vec<Vec<Vec<f64>>> = (0..4)
            .map(|_| clean.iter().map(|c| vec![c + normal()]).collect())
            .collect();
        let mean: Vec<Vec<f64>> = (0..clean.len())
            .map(|k| vec![seeds.iter().map(|s| s[k][0]).sum::<f64>() / 4.0])
            .collect();
        let clean: Vec<Vec<f64>> = clean.into_iter().map(|c| vec![c]).collect();
        let r = seed_to_seed(&seeds).unwrap().pearson.unwrap();
        let got = agreement(&mean, &clean).pearson.unwrap();
        assert!((r - 0.5).abs() < 0.02, "{r}");
        assert!((got - attainable(r, 4).unwrap()).abs() < 0.01, "{got}");
    }

    #[test]
    fn levels_sum_what_belongs_together() {
        let example = |key: &str, dataset: &str| Example::new(key, dataset);
        let list = vec![example("a", "x"), example("b", "y"), example("c", "x")];
        let levels = Level::all(&Examples::new(list).unwrap());
        let names: Vec<&str> = levels.iter().map(|l| l.name.as_str()).collect();
        let all = ["per test example", "sum per test dataset", "sum over all"];
        assert_eq!(names, all);
        let rows = [vec![1.0, 2.0, 4.0]];
        assert_eq!(levels[0].of(&rows), rows);
        assert_eq!(levels[1].of(&rows), [vec![5.0, 2.0]]);
        assert_eq!(levels[2].of(&rows), [vec![7.0]]);
        let one = Examples::new(vec![example("a", "x"), example("b", "x")]).unwrap();
        assert_eq!(Level::all(&one).len(), 2);
    }
}
