//! How scores are distributed over training examples: heavy tails and sparsity.

use super::error::ReportError;
use crate::table::{add_row, new_table, set_header, show};
use serde::Serialize;
use simfluence_core::Scores;

/// Positive scores that a tail is fitted to, at least.
const FEWEST_IN_TAIL: usize = 10;

/// What counts as the tail, and as nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DistributionSettings {
    /// Share of the positive scores that the tail is fitted to, in (0, 1), default 0.1; at least
    /// 10 scores.
    pub tail_share: f64,
    /// A score is near zero if its size is below this share of the test example's largest, in
    /// [0, 1), default 0.01.
    pub near_zero: f64,
}

impl Default for DistributionSettings {
    fn default() -> Self {
        Self {
            tail_share: 0.1,
            near_zero: 0.01,
        }
    }
}

impl DistributionSettings {
    fn check(&self) -> Result<(), ReportError> {
        if !(self.tail_share > 0.0 && self.tail_share < 1.0) {
            return Err(ReportError::Setting {
                setting: "tail_share",
                got: self.tail_share,
                wanted: "above 0 and below 1",
            });
        }
        if !(0.0..1.0).contains(&self.near_zero) {
            return Err(ReportError::Setting {
                setting: "near_zero",
                got: self.near_zero,
                wanted: "at least 0 and below 1",
            });
        }
        Ok(())
    }
}

/// A power law fitted to the largest scores, `P(S > s) ∝ s^(−α)` for `s` above the threshold.
///
/// The smaller `α`, the heavier the tail: below 2 the variance of such a law is infinite, below 1
/// its mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tail {
    /// Scores above the threshold, `k`.
    pub count: usize,
    /// The largest score that is not in the tail.
    pub threshold: f64,
    /// `α` by Hill's estimator, `1/α = (1/k) Σ ln(s_(i) / threshold)`: the maximum likelihood.
    pub exponent: f64,
    /// Its asymptotic standard error, `α/√k`.
    pub standard_error: f64,
}

impl Tail {
    /// Fits the largest of the positive scores: `tail_share` of them (in (0, 1)), at least 10.
    ///
    /// `None` if that is more than half of them, which is no tail, or if they are all equal.
    pub fn of(scores: &[f64], tail_share: f64) -> Option<Self> {
        Self::of_sorted(&positive(scores), tail_share)
    }

    fn of_sorted(positive: &[f64], tail_share: f64) -> Option<Self> {
        let count = (tail_share * positive.len() as f64).round() as usize;
        let count = count.max(FEWEST_IN_TAIL);
        if positive.len() < 2 * count {
            return None;
        }
        let threshold = positive[count];
        let logs: f64 = positive[..count].iter().map(|s| (s / threshold).ln()).sum();
        if logs <= 0.0 {
            return None;
        }
        let exponent = count as f64 / logs;
        Some(Self {
            count,
            threshold,
            exponent,
            standard_error: exponent / (count as f64).sqrt(),
        })
    }
}

/// The positive ones, from the largest down.
fn positive(scores: &[f64]) -> Vec<f64> {
    let mut positive: Vec<f64> = scores.iter().copied().filter(|&s| s > 0.0).collect();
    positive.sort_by(|a, b| b.total_cmp(a));
    positive
}

/// The scores of all training examples for one test example.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QueryDistribution {
    /// Key of the test example.
    pub test_key: String,
    /// Mean score.
    pub mean: f64,
    /// Excess kurtosis, `m₄/m₂² − 3` with central moments over `n`; 0 for a normal distribution,
    /// above it heavier tails. `None` for a constant.
    pub kurtosis: Option<f64>,
    /// The fitted tail of the positive scores; `None` with fewer than 20 of them.
    pub tail: Option<Tail>,
    /// Number of positive scores.
    pub positive: usize,
    /// Sum of the positive scores.
    pub total_positive: f64,
    /// Fewest training examples that make up 50 % of it; `None` without a positive score.
    pub for_half: Option<usize>,
    /// Fewest training examples that make up 90 % of it.
    pub for_most: Option<usize>,
    /// Share of it that the top 1 % of the training examples have (rounded up to whole examples).
    pub top_percent: Option<f64>,
    /// Share of it that the top 10 % have.
    pub top_tenth: Option<f64>,
    /// Share of the training examples whose score is near zero.
    pub near_zero: f64,
}

/// Median and quartiles over test examples where a number is defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Test examples with the number.
    pub count: usize,
    /// First quartile.
    pub low: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub high: f64,
}

impl Spread {
    fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| crate::bootstrap::quantile(&values, share);
        (!values.is_empty()).then(|| Self {
            count: values.len(),
            low: at(0.25),
            median: at(0.5),
            high: at(0.75),
        })
    }
}

/// The numbers of [`QueryDistribution`] over all test examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DistributionSummary {
    /// Excess kurtosis.
    pub kurtosis: Option<Spread>,
    /// Tail exponent `α`.
    pub exponent: Option<Spread>,
    /// Training examples that make up 50 % of the positive influence, as a share of `n`.
    pub for_half: Option<Spread>,
    /// Those that make up 90 %.
    pub for_most: Option<Spread>,
    /// Share of the positive influence that the top 1 % have.
    pub top_percent: Option<Spread>,
    /// Share that the top 10 % have.
    pub top_tenth: Option<Spread>,
    /// Share near zero.
    pub near_zero: Option<Spread>,
    /// Share of the training examples with a positive score.
    pub positive: Option<Spread>,
}

/// How scores are distributed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreDistribution {
    /// Name of the method.
    pub method: String,
    /// Number of training examples `n`.
    pub train: usize,
    /// What counts as tail and as near zero.
    pub settings: DistributionSettings,
    /// Median and quartiles over test examples.
    pub summary: DistributionSummary,
    /// Every test example.
    pub queries: Vec<QueryDistribution>,
}

impl ScoreDistribution {
    /// For people: the summary.
    pub fn text(&self) -> String {
        let mut table = new_table();
        set_header(
            &mut table,
            ["", "median", "quartile 1", "quartile 3", "test examples"],
        );
        let near_zero = format!("share below {} of the largest", self.settings.near_zero);
        let summary = &self.summary;
        for (name, spread) in [
            ("tail exponent α", summary.exponent),
            ("excess kurtosis", summary.kurtosis),
            ("share that makes up 50 % of the positive", summary.for_half),
            ("share that makes up 90 % of the positive", summary.for_most),
            ("what the top 1 % have of the positive", summary.top_percent),
            ("what the top 10 % have of the positive", summary.top_tenth),
            ("share with a positive score", summary.positive),
            (near_zero.as_str(), summary.near_zero),
        ] {
            let number = |pick: fn(Spread) -> f64| show(spread.map(pick), None);
            let cells = [
                number(|s| s.median),
                number(|s| s.low),
                number(|s| s.high),
                spread.map_or(0, |s| s.count).to_string(),
            ];
            add_row(&mut table, name, cells);
        }
        format!(
            "{}: distribution of the scores of {} training examples\n{table}\nα: P(score > s) ∝ s^(−α) in the top {} % of the positive scores (at least {FEWEST_IN_TAIL}), by Hill's estimator.\n",
            self.method,
            self.train,
            100.0 * self.settings.tail_share,
        )
    }
}

/// Tail, kurtosis and sparsity of every test example's scores.
///
/// # Errors
/// A setting out of its range; fewer than two training examples or no test example; a wrong number
/// of scores; a score that is not finite, with its place.
///
/// # Reference
/// Grosse et al. 2023 (arXiv 2308.03296), section 5.2 (power-law tails; what the top per cent of
/// the sequences cover of the positive influence). Hill 1975, *A simple general approach to
/// inference about the tail of a distribution*; Clauset, Shalizi & Newman 2009, whose exponent of
/// the density is `1 + α`.
pub fn score_distribution(
    scores: &Scores,
    settings: &DistributionSettings,
) -> Result<ScoreDistribution, ReportError> {
    settings.check()?;
    let (n, m) = (scores.train_keys.len(), scores.test_keys.len());
    for (what, got, needed) in [("training examples", n, 2), ("test examples", m, 1)] {
        if got < needed {
            return Err(ReportError::TooFew { what, got, needed });
        }
    }
    if scores.values.len() != n * m {
        return Err(ReportError::Shape {
            what: "scores",
            expected: n * m,
            got: scores.values.len(),
        });
    }
    if let Some(position) = scores.values.iter().position(|v| !v.is_finite()) {
        return Err(ReportError::NotFinite {
            what: "the score",
            place: format!(
                "of {:?} for {:?}",
                scores.train_keys[position / m],
                scores.test_keys[position % m]
            ),
            got: f64::from(scores.values[position]),
        });
    }
    let queries: Vec<QueryDistribution> = (0..m)
        .map(|j| {
            let column = scores.values[j..].iter().step_by(m);
            let column: Vec<f64> = column.map(|&v| f64::from(v)).collect();
            query(&scores.test_keys[j], &column, settings)
        })
        .collect();
    Ok(ScoreDistribution {
        method: scores.method.clone(),
        train: n,
        settings: *settings,
        summary: summary(&queries, n),
        queries,
    })
}

fn query(key: &str, scores: &[f64], settings: &DistributionSettings) -> QueryDistribution {
    let n = scores.len();
    let positive = positive(scores);
    let total: f64 = positive.iter().sum();
    let largest = scores.iter().fold(0.0, |m: f64, s| m.max(s.abs()));
    let small = scores
        .iter()
        .filter(|s| s.abs() < settings.near_zero * largest || **s == 0.0)
        .count();
    QueryDistribution {
        test_key: key.to_owned(),
        mean: scores.iter().sum::<f64>() / n as f64,
        kurtosis: kurtosis(scores),
        tail: Tail::of_sorted(&positive, settings.tail_share),
        positive: positive.len(),
        total_positive: total,
        for_half: count_for(&positive, 0.5 * total),
        for_most: count_for(&positive, 0.9 * total),
        top_percent: covered(&positive, n.div_ceil(100), total),
        top_tenth: covered(&positive, n.div_ceil(10), total),
        near_zero: small as f64 / n as f64,
    }
}

/// Excess kurtosis with moments over `n`.
fn kurtosis(values: &[f64]) -> Option<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let moment = |power: i32| values.iter().map(|v| (v - mean).powi(power)).sum::<f64>() / count;
    let variance = moment(2);
    let constant = values.iter().all(|&v| v == values[0]);
    (!constant && variance > 0.0).then(|| moment(4) / (variance * variance) - 3.0)
}

/// Fewest of the scores, sorted from the largest down, that sum to `wanted`.
fn count_for(sorted: &[f64], wanted: f64) -> Option<usize> {
    let mut sum = 0.0;
    let enough = sorted.iter().position(|score| {
        sum += score;
        // The sum in another order may differ in its last bits.
        sum >= wanted * (1.0 - 1e-12)
    });
    enough.map(|position| position + 1)
}

/// Share of the total that the first `count` have.
fn covered(sorted: &[f64], count: usize, total: f64) -> Option<f64> {
    (total > 0.0).then(|| sorted.iter().take(count).sum::<f64>() / total)
}

fn summary(queries: &[QueryDistribution], train: usize) -> DistributionSummary {
    let share = |count: usize| count as f64 / train as f64;
    let over = |pick: &dyn Fn(&QueryDistribution) -> Option<f64>| {
        Spread::over(queries.iter().filter_map(pick))
    };
    DistributionSummary {
        kurtosis: over(&|q| q.kurtosis),
        exponent: over(&|q| q.tail.map(|t| t.exponent)),
        for_half: over(&|q| q.for_half.map(share)),
        for_most: over(&|q| q.for_most.map(share)),
        top_percent: over(&|q| q.top_percent),
        top_tenth: over(&|q| q.top_tenth),
        near_zero: over(&|q| Some(q.near_zero)),
        positive: over(&|q| Some(share(q.positive))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::ref_reports::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn scores(columns: &[Vec<f32>]) -> Scores {
        let (n, m) = (columns[0].len(), columns.len());
        Scores {
            method: "m".into(),
            train_keys: (0..n).map(|i| format!("i{i}")).collect(),
            test_keys: (0..m).map(|j| format!("j{j}")).collect(),
            reference_learning_rate: 1.0,
            has_natural_unit: true,
            values: (0..n)
                .flat_map(|i| columns.iter().map(move |c| c[i]))
                .collect(),
            layers: Vec::new(),
            provenance: Default::default(),
        }
    }

    fn only(column: Vec<f32>) -> QueryDistribution {
        let report = score_distribution(&scores(&[column]), &DistributionSettings::default());
        report.unwrap().queries.remove(0)
    }

    #[test]
    fn ref_kurtosis_and_tail_of_scipy() {
        let got = only(REF_SCORES.to_vec());
        assert!((got.kurtosis.unwrap() - REF_KURTOSIS).abs() < 1e-9);
        let tail = got.tail.unwrap();
        assert_eq!(tail.count, REF_TAIL_COUNT);
        // scipy.stats.pareto.fit of the tail, with the threshold as its scale.
        assert!((tail.exponent / REF_TAIL_EXPONENT - 1.0).abs() < 1e-6);
    }

    #[test]
    fn sparsity_counts_the_fewest_examples() {
        // Positive: 5 + 3 + 1 + 1 = 10; one score is near zero, one is negative.
        let got = only(vec![1.0, -4.0, 5.0, 0.0, 3.0, 1.0]);
        assert_eq!((got.positive, got.total_positive), (4, 10.0));
        assert_eq!((got.for_half, got.for_most), (Some(1), Some(3)));
        assert_eq!(got.top_percent, Some(0.5));
        assert_eq!(got.near_zero, 1.0 / 6.0);
        assert_eq!(got.mean, 1.0);
        assert_eq!(got.tail, None);
    }

    #[test]
    fn without_positive_scores_nothing_is_made_up() {
        let got = only(vec![-1.0, -2.0, -2.0]);
        assert_eq!((got.for_half, got.top_tenth, got.tail), (None, None, None));
        assert_eq!(only(vec![0.0, 0.0]).kurtosis, None);
        assert_eq!(only(vec![0.0, 0.0]).near_zero, 1.0);
    }

    #[test]
    fn hills_estimator_finds_the_exponent_of_a_pareto_law() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for exponent in [0.8, 1.5, 3.0] {
            let column: Vec<f32> = (0..20_000)
                .map(|_| (1.0 - rng.random::<f64>()).powf(-1.0 / exponent) as f32)
                .collect();
            let tail = only(column).tail.unwrap();
            assert_eq!(tail.count, 2000);
            let error = (tail.exponent - exponent).abs();
            assert!(error < 3.0 * tail.standard_error, "{exponent}: {tail:?}");
        }
    }

    #[test]
    fn a_few_scores_have_no_tail() {
        let scores: Vec<f64> = (1..=19).map(f64::from).collect();
        assert_eq!(Tail::of(&scores, 0.1), None);
        let more: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(Tail::of(&more, 0.1).unwrap().threshold, 10.0);
        assert_eq!(Tail::of(&[2.0; 40], 0.1), None);
    }

    #[test]
    fn the_summary_takes_the_median_over_test_examples() {
        let columns = [
            vec![1.0, 0.0, 0.0, 0.0],
            vec![1.0, 1.0, 1.0, 1.0],
            vec![1.0, 1.0, 0.0, 0.0],
        ];
        let report =
            score_distribution(&scores(&columns), &DistributionSettings::default()).unwrap();
        // Half of the positive: 1, 2 and 1 of 4 examples.
        assert_eq!(report.summary.for_half.unwrap().median, 0.25);
        assert_eq!(report.summary.positive.unwrap().median, 0.5);
        assert!(report.text().contains("50 %"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let settings = DistributionSettings {
            tail_share: 1.0,
            ..Default::default()
        };
        let message = |error: ReportError| error.to_string();
        let out = score_distribution(&scores(&[vec![1.0, 2.0]]), &settings).unwrap_err();
        assert!(message(out).contains("tail_share"));
        let nan = scores(&[vec![1.0, 2.0], vec![1.0, f32::NAN]]);
        let nan = score_distribution(&nan, &DistributionSettings::default()).unwrap_err();
        let text = message(nan);
        assert!(text.contains("\"i1\"") && text.contains("\"j1\""), "{text}");
    }
}
