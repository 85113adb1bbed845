//! Bootstrap intervals over runs.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

/// How intervals are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BootstrapSettings {
    /// Number of resamples, default 2 000.
    pub resamples: usize,
    /// Coverage that is aimed at, in (0, 1), default 0.95.
    pub level: f64,
    /// Seed, default 0. The same seed resamples the same units for every method.
    pub seed: u64,
}

impl Default for BootstrapSettings {
    fn default() -> Self {
        Self {
            resamples: 2000,
            level: 0.95,
            seed: 0,
        }
    }
}

/// What one unit adds to a statistic that is a ratio of sums, `Σ numerator / Σ denominator`:
/// a mean over runs (sum of the values, number of runs) or a pooled R² (`Σ (ê−e)²`, `Σ e²`).
///
/// A unit is what is resampled: a run, or a base run with all its edits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ratio {
    /// Added to the sum above.
    pub numerator: f64,
    /// Added to the sum below; not negative.
    pub denominator: f64,
}

impl std::ops::AddAssign for Ratio {
    fn add_assign(&mut self, other: Self) {
        self.numerator += other.numerator;
        self.denominator += other.denominator;
    }
}

/// `Σ numerator / Σ denominator`; `None` if the sum below is 0.
pub fn ratio_of_sums(units: &[Ratio]) -> Option<f64> {
    value(sum(units.iter()))
}

fn sum<'a>(units: impl Iterator<Item = &'a Ratio>) -> Ratio {
    let mut total = Ratio::default();
    for unit in units {
        total += *unit;
    }
    total
}

fn value(total: Ratio) -> Option<f64> {
    (total.denominator > 0.0).then(|| total.numerator / total.denominator)
}

/// The ends of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// Percentile interval of [`ratio_of_sums`] over resamples of the units with replacement.
///
/// With few units percentile intervals are too narrow: below about ten, expect a few per cent
/// less than the level.
///
/// `None` with fewer than two units, or where a resample leaves the statistic undefined in more
/// than half of the cases; resamples in which it is undefined are left out.
///
/// ```
/// use simfluence_evaluation::{BootstrapSettings, Ratio, bootstrap_interval};
/// let errors = [0.8, 1.0, 1.2, 0.9].map(|numerator| Ratio { numerator, denominator: 1.0 });
/// let interval = bootstrap_interval(&errors, &BootstrapSettings::default()).unwrap();
/// assert!(interval.contains(0.975) && interval.low > 0.8 && interval.high < 1.2);
/// ```
///
/// # Reference
/// Efron & Tibshirani 1993, chapter 13 (percentile intervals).
pub fn bootstrap_interval(units: &[Ratio], settings: &BootstrapSettings) -> Option<Interval> {
    interval(units.len(), settings, |draw| {
        value(sum(draw.iter().map(|&k| &units[k])))
    })
}

/// Percentile interval of the difference of two methods' [`ratio_of_sums`], `a − b`: both are
/// taken over the same resampled units, so that what the units have in common cancels.
///
/// `None` as [`bootstrap_interval`], or if the two have different numbers of units.
pub fn paired_interval(a: &[Ratio], b: &[Ratio], settings: &BootstrapSettings) -> Option<Interval> {
    if a.len() != b.len() {
        return None;
    }
    interval(a.len(), settings, |draw| {
        let of = |units: &[Ratio]| value(sum(draw.iter().map(|&k| &units[k])));
        Some(of(a)? - of(b)?)
    })
}

/// Percentile interval of any statistic of resampled units; as [`bootstrap_interval`].
pub(crate) fn interval(
    unit_count: usize,
    settings: &BootstrapSettings,
    statistic: impl Fn(&[usize]) -> Option<f64> + Sync,
) -> Option<Interval> {
    if unit_count < 2 || settings.resamples == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let draws: Vec<usize> = (0..settings.resamples * unit_count)
        .map(|_| rng.random_range(0..unit_count))
        .collect();
    let mut values: Vec<f64> = draws
        .par_chunks(unit_count)
        .filter_map(&statistic)
        .collect();
    if values.len() * 2 < settings.resamples {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - settings.level) / 2.0;
    Some(Interval {
        low: quantile(&values, tail),
        high: quantile(&values, 1.0 - tail),
    })
}

/// Linear interpolation between order statistics (NumPy's default).
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let (low, high) = (sorted[below], sorted[above]);
    if low == high {
        return low;
    }
    low + (position - below as f64) * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ref_metrics::{REF_INTERVAL, REF_SAMPLE};
    use proptest::prelude::*;

    fn means(values: &[f64]) -> Vec<Ratio> {
        let unit = |&numerator: &f64| Ratio {
            numerator,
            denominator: 1.0,
        };
        values.iter().map(unit).collect()
    }

    #[test]
    fn ref_interval_of_scipy() {
        let settings = BootstrapSettings {
            resamples: 100_000,
            ..Default::default()
        };
        let got = bootstrap_interval(&means(&REF_SAMPLE), &settings).unwrap();
        assert!((got.low - REF_INTERVAL[0]).abs() < 0.01, "{got:?}");
        assert!((got.high - REF_INTERVAL[1]).abs() < 0.01, "{got:?}");
    }

    /// Twelve numbers whose sum is nearly normal.
    fn nearly_normal(rng: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
    }

    fn coverage(units: usize, per_unit: usize, shared: f64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let trials = 1000;
        let settings = BootstrapSettings {
            resamples: 400,
            ..Default::default()
        };
        let covered = (0..trials).filter(|_| {
            let sample: Vec<Ratio> = (0..units)
                .map(|_| {
                    let common = shared * nearly_normal(&mut rng);
                    let values = (0..per_unit).map(|_| common + nearly_normal(&mut rng));
                    Ratio {
                        numerator: values.sum(),
                        denominator: per_unit as f64,
                    }
                })
                .collect();
            bootstrap_interval(&sample, &settings)
                .unwrap()
                .contains(0.0)
        });
        covered.count() as f64 / f64::from(trials)
    }

    #[test]
    fn intervals_cover_the_true_mean_as_often_as_they_say() {
        // 1 000 trials: a standard error of 0.7 per cent.
        let alone = coverage(40, 1, 0.0);
        assert!((0.915..0.965).contains(&alone), "{alone}");
        // Edits of one base run that share most of their error are one unit.
        let clustered = coverage(40, 6, 3.0);
        assert!((0.915..0.965).contains(&clustered), "{clustered}");
    }

    #[test]
    fn treating_edits_as_runs_of_their_own_would_promise_too_much() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut edits = Vec::new();
        let mut units = Vec::new();
        for _ in 0..20 {
            let common = 3.0 * nearly_normal(&mut rng);
            let own: Vec<f64> = (0..6).map(|_| common + nearly_normal(&mut rng)).collect();
            units.push(Ratio {
                numerator: own.iter().sum(),
                denominator: 6.0,
            });
            edits.extend(means(&own));
        }
        let settings = BootstrapSettings::default();
        let width = |units: &[Ratio]| {
            let interval = bootstrap_interval(units, &settings).unwrap();
            interval.high - interval.low
        };
        assert!(width(&units) > 1.8 * width(&edits));
    }

    #[test]
    fn pairing_takes_out_what_runs_have_in_common() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let hard: Vec<f64> = (0..20).map(|_| 50.0 * rng.random::<f64>()).collect();
        let a: Vec<f64> = hard
            .iter()
            .map(|h| h + 0.5 + 0.1 * rng.random::<f64>())
            .collect();
        let settings = BootstrapSettings::default();
        let paired = paired_interval(&means(&a), &means(&hard), &settings).unwrap();
        assert!(paired.low > 0.5 && paired.high < 0.6, "{paired:?}");
        let alone = bootstrap_interval(&means(&a), &settings).unwrap();
        assert!(alone.high - alone.low > 5.0);
    }

    #[test]
    fn one_unit_has_no_interval() {
        assert_eq!(
            bootstrap_interval(&means(&[1.0]), &BootstrapSettings::default()),
            None
        );
        assert_eq!(ratio_of_sums(&[]), None);
    }

    proptest! {
        #[test]
        fn an_interval_moves_with_its_data_and_turns_with_the_pair(
            values in prop::collection::vec(-5.0f64..5.0, 2..12), shift in -3.0f64..3.0,
        ) {
            let settings = BootstrapSettings { resamples: 200, ..Default::default() };
            let moved: Vec<f64> = values.iter().map(|v| v + shift).collect();
            let (a, b) = (means(&values), means(&moved));
            let here = bootstrap_interval(&a, &settings).unwrap();
            let there = bootstrap_interval(&b, &settings).unwrap();
            prop_assert!((there.low - here.low - shift).abs() < 1e-9);
            prop_assert!((there.high - here.high - shift).abs() < 1e-9);
            let one = paired_interval(&a, &b, &settings).unwrap();
            let other = paired_interval(&b, &a, &settings).unwrap();
            prop_assert!((one.low + other.high).abs() < 1e-9);
            prop_assert!((one.low + shift).abs() < 1e-9);
        }
    }
}
