//! How well anything could do that does not know which base run is edited.

use serde::Serialize;
use std::collections::BTreeMap;

/// The largest R² of the final effect that predictions can be expected to have which are the same
/// for every base run: what is left is how much the real effect of one edit differs between them,
/// in the order of its examples and in luck.
///
/// With the effects `e_bj` of one edit on base runs `b` (2 or more) and test examples `j`, and `ē_j`
/// their mean,
///
/// ```text
/// 1 − Σ_edits B/(B − 1) Σ_b Σ_j (e_bj − ē_j)² / Σ_edits Σ_b Σ_j e_bj²
/// ```
///
/// in which the variance within an edit is unbiased. (Noise ceilings are usual where models are
/// compared with noisy measurements: Nili et al. 2014, *A Toolbox for Representational Similarity
/// Analysis*.)
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NoiseCeiling {
    /// The R².
    pub r2: f64,
    /// Number of edits that were made of several base runs; all others say nothing about it.
    pub edits: usize,
    /// Number of edited runs of these.
    pub runs: usize,
}

/// From the real final effects of edited runs, each `[test]` with the name of its edit; `None` if
/// no edit was made of several base runs, or none of them had an effect.
pub(crate) fn noise_ceiling<'a>(
    effects: impl IntoIterator<Item = (&'a str, Vec<f64>)>,
) -> Option<NoiseCeiling> {
    let mut of_edit: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
    for (edit, effects) in effects {
        of_edit.entry(edit).or_default().push(effects);
    }
    // Base runs that were not measured at the same test examples cannot be compared.
    of_edit.retain(|_, runs| runs.len() > 1 && runs.iter().all(|r| r.len() == runs[0].len()));
    let (mut noise, mut total) = (0.0, 0.0);
    for runs in of_edit.values() {
        let count = runs.len() as f64;
        for test in 0..runs[0].len() {
            let mean = runs.iter().map(|run| run[test]).sum::<f64>() / count;
            let within: f64 = runs.iter().map(|run| (run[test] - mean).powi(2)).sum();
            noise += within * count / (count - 1.0);
            total += runs.iter().map(|run| run[test].powi(2)).sum::<f64>();
        }
    }
    (total > 0.0).then(|| NoiseCeiling {
        r2: 1.0 - noise / total,
        edits: of_edit.len(),
        runs: of_edit.values().map(Vec::len).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn it_is_one_where_every_base_run_shows_the_same_and_unknown_where_there_is_one() {
        let same = [("a", vec![1.0, -2.0]), ("a", vec![1.0, -2.0])];
        let ceiling = noise_ceiling(same.clone()).unwrap();
        assert_eq!((ceiling.r2, ceiling.edits, ceiling.runs), (1.0, 1, 2));
        let others = [("b", vec![5.0, 0.0]), ("c", vec![0.0])];
        let ceiling = noise_ceiling(same.into_iter().chain(others)).unwrap();
        assert_eq!((ceiling.r2, ceiling.edits, ceiling.runs), (1.0, 1, 2));
        assert_eq!(noise_ceiling([("a", vec![1.0]), ("b", vec![1.0])]), None);
        assert_eq!(noise_ceiling([("a", vec![0.0]), ("a", vec![0.0])]), None);
        assert_eq!(
            noise_ceiling([("a", vec![1.0]), ("a", vec![1.0, 2.0])]),
            None
        );
    }

    #[test]
    fn ref_two_base_runs_by_hand() {
        // Means 1.5 and 0; deviations ±0.5 and ±1, doubled: 2 (0.5 + 2) = 5; total 1 + 4 + 1 + 1.
        let ceiling = noise_ceiling([("a", vec![1.0, -1.0]), ("a", vec![2.0, 1.0])]).unwrap();
        assert!(
            (ceiling.r2 - (1.0 - 5.0 / 7.0)).abs() < 1e-12,
            "{ceiling:?}"
        );
    }

    #[test]
    fn it_is_what_the_expected_effect_reaches() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut uniform = move || rng.random::<f64>() - 0.5;
        let (mut effects, mut errors, mut total) = (Vec::new(), 0.0, 0.0);
        let names: Vec<String> = (0..200).map(|edit| edit.to_string()).collect();
        for name in &names {
            let expected: Vec<f64> = (0..20).map(|_| 2.0 * uniform()).collect();
            for _ in 0..2 {
                let real: Vec<f64> = expected.iter().map(|e| e + uniform()).collect();
                errors += (real.iter().zip(&expected).map(|(r, e)| (r - e).powi(2))).sum::<f64>();
                total += real.iter().map(|r| r * r).sum::<f64>();
                effects.push((name.as_str(), real));
            }
        }
        let reached = 1.0 - errors / total;
        let ceiling = noise_ceiling(effects).unwrap().r2;
        assert!((ceiling - reached).abs() < 0.01, "{ceiling} {reached}");
    }
}
