//! How far a simulated trajectory is from the real one.

use simfluence_core::Trajectory;

/// Ranks from 1, ties by their average rank; `None` if a value is NaN.
pub fn average_ranks(values: &[f64]) -> Option<Vec<f64>> {
    if values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let below = order.partition_point(|&k| values[k] < values[tied[0]]);
        let rank = below as f64 + (tied.len() as f64 + 1.0) / 2.0;
        for &k in tied {
            ranks[k] = rank;
        }
    }
    Some(ranks)
}

/// Pearson correlation of two sequences of the same length.
///
/// `None` where it is undefined: fewer than two values, other lengths, a value that is not
/// finite, or a sequence that is constant.
///
/// ```
/// use simfluence_evaluation::pearson;
/// assert_eq!(pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]), Some(1.0));
/// assert_eq!(pearson(&[1.0, 1.0, 1.0], &[2.0, 4.0, 6.0]), None);
/// ```
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let constant = |v: &[f64]| v.iter().all(|&value| value == v[0]);
    let all = || x.iter().chain(y);
    if x.len() != y.len() || x.len() < 2 || all().any(|v| !v.is_finite()) {
        return None;
    }
    if constant(x) || constant(y) {
        return None;
    }
    let count = x.len() as f64;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (&a, &b) in x.iter().zip(y) {
        xy += (a - mean_x) * (b - mean_y);
        xx += (a - mean_x).powi(2);
        yy += (b - mean_y).powi(2);
    }
    let correlation = xy / (xx * yy).sqrt();
    correlation
        .is_finite()
        .then(|| correlation.clamp(-1.0, 1.0))
}

/// Spearman rank correlation: [`pearson`] of the [`average_ranks`], undefined where that is.
///
/// ```
/// use simfluence_evaluation::spearman;
/// assert_eq!(spearman(&[1.0, 2.0, 9.0], &[-5.0, 0.1, 0.2]), Some(1.0));
/// ```
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&average_ranks(x)?, &average_ranks(y)?)
}

/// The share of the real losses at steps ≥ 1 that lie between `low` and `high`, and the mean width
/// of that band in nats; `None` where nothing was measured after step 0 or the band lacks a step.
pub fn coverage(real: &Trajectory, low: &Trajectory, high: &Trajectory) -> Option<(f64, f64)> {
    let (mut held, mut width, mut count) = (0.0, 0.0, 0.0);
    for (index, &step) in real.steps().iter().enumerate().filter(|&(_, &s)| s > 0) {
        let (low, high) = (low.at_step(step)?, high.at_step(step)?);
        for (test, (low, high)) in low.iter().zip(high).enumerate() {
            if let Some(loss) = real.get(index, test) {
                held += f64::from(u8::from((*low..=*high).contains(&loss)));
                width += f64::from(high - low);
                count += 1.0;
            }
        }
    }
    (count > 0.0).then(|| (held / count, width / count))
}

/// All-steps errors of one run.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct AllStepsErrors {
    /// Mean squared error, nats².
    pub mse: f64,
    /// Mean absolute error, nats.
    pub mae: f64,
}

/// Errors over the steps ≥ 1 at which the real run was measured: the mean over a test example's
/// measured steps, then over test examples.
///
/// `None` if the real run measured nothing after step 0, or if `simulated` has other test
/// examples or lacks a step that was measured.
pub fn all_steps_errors(real: &Trajectory, simulated: &Trajectory) -> Option<AllStepsErrors> {
    let tests = real.test_count();
    if simulated.test_count() != tests {
        return None;
    }
    let mut sums = vec![(0.0, 0.0, 0usize); tests];
    for (row, &step) in real.steps().iter().enumerate() {
        if step == 0 {
            continue;
        }
        let predicted = simulated.at_step(step)?;
        for (test, (squared, absolute, count)) in sums.iter_mut().enumerate() {
            if let Some(loss) = real.get(row, test) {
                let error = f64::from(predicted[test]) - f64::from(loss);
                *squared += error * error;
                *absolute += error.abs();
                *count += 1;
            }
        }
    }
    sums.retain(|&(_, _, count)| count > 0);
    let mean = |sum: f64| sum / sums.len() as f64;
    (!sums.is_empty()).then(|| AllStepsErrors {
        mse: mean(sums.iter().map(|&(s, _, n)| s / n as f64).sum()),
        mae: mean(sums.iter().map(|&(_, a, n)| a / n as f64).sum()),
    })
}

/// Mean squared error of every test example over the measured steps ≥ 1, nats²; `None` for a
/// test example that was never measured there.
pub fn errors_per_test(real: &Trajectory, simulated: &Trajectory) -> Vec<Option<f64>> {
    (0..real.test_count())
        .map(|test| {
            let (mut sum, mut count) = (0.0, 0usize);
            for (step, loss) in real.curve(test).filter(|&(step, _)| step > 0) {
                let predicted = simulated.at_step(step)?.get(test)?;
                sum += (f64::from(*predicted) - f64::from(loss)).powi(2);
                count += 1;
            }
            (count > 0).then(|| sum / count as f64)
        })
        .collect()
}

/// Rank correlations of one run at its last evaluated step, across test examples.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct FinalCorrelations {
    /// Spearman of `L_T`; `None` where undefined (a constant side, fewer than two examples).
    pub losses: Option<f64>,
    /// Spearman of the change `L_T − L_0`; `None` where undefined.
    pub changes: Option<f64>,
}

/// Spearman of real against simulated final losses and changes, across the test examples that
/// were measured at the last evaluated step.
pub fn final_correlations(real: &Trajectory, simulated: &Trajectory) -> FinalCorrelations {
    let (mut losses, mut changes) = ((vec![], vec![]), (vec![], vec![]));
    let initial = real.initial();
    for (test, loss, predicted) in final_pairs(real, simulated) {
        losses.0.push(loss);
        losses.1.push(predicted);
        if let Some(initial) = initial {
            changes.0.push(loss - f64::from(initial[test]));
            changes.1.push(predicted - f64::from(initial[test]));
        }
    }
    FinalCorrelations {
        losses: spearman(&losses.0, &losses.1),
        changes: spearman(&changes.0, &changes.1),
    }
}

/// `(test example, real loss, simulated loss)` at the last evaluated step, where measured.
pub fn final_pairs(real: &Trajectory, simulated: &Trajectory) -> Vec<(usize, f64, f64)> {
    let Some(&step) = real.steps().last() else {
        return Vec::new();
    };
    let Some(predicted) = simulated.at_step(step) else {
        return Vec::new();
    };
    let row = real.steps().len() - 1;
    let tests = 0..real.test_count().min(predicted.len());
    tests
        .filter_map(|j| Some((j, f64::from(real.get(row, j)?), f64::from(predicted[j]))))
        .collect()
}

/// Simulated losses are 32-bit floats: where two differ by less than this share, a simulator that
/// sums the same numbers in another order does not predict an effect, and has no rank or sign.
const ROUNDING: f64 = 16.0 * f32::EPSILON as f64;

/// The real and the predicted final effect of one edit, per test example measured at the end of
/// both real runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effects {
    /// `e = L_T(edited) − L_T(original)`, both really trained, nats.
    pub real: Vec<f64>,
    /// `ê = L_sim(edited) − L_sim(original)`, nats; 0 where that is rounding.
    pub predicted: Vec<f64>,
}

impl Effects {
    /// From the original's and the edited run's real and simulated trajectories, each at the
    /// last evaluated step of the real one.
    pub fn of(original: (&Trajectory, &Trajectory), edited: (&Trajectory, &Trajectory)) -> Self {
        let before = final_pairs(original.0, original.1);
        let mut before = before.into_iter().peekable();
        let mut effects = Self::default();
        for (test, real, predicted) in final_pairs(edited.0, edited.1) {
            while before.next_if(|&(other, ..)| other < test).is_some() {}
            if let Some((_, real_before, predicted_before)) =
                before.next_if(|&(other, ..)| other == test)
            {
                effects.real.push(real - real_before);
                let effect = predicted - predicted_before;
                let rounding = ROUNDING * predicted.abs().max(predicted_before.abs());
                let effect = if effect.abs() <= rounding {
                    0.0
                } else {
                    effect
                };
                effects.predicted.push(effect);
            }
        }
        effects
    }

    /// `Σ (ê − e)²` and `Σ e²`, whose pooled ratio makes [`Effects::r2`].
    pub fn squares(&self) -> (f64, f64) {
        let pairs = self.real.iter().zip(&self.predicted);
        pairs.fold((0.0, 0.0), |(error, total), (e, predicted)| {
            (error + (predicted - e).powi(2), total + e * e)
        })
    }

    /// R² against no effect, `1 − Σ (ê − e)² / Σ e²`; `None` if no real effect is different
    /// from 0.
    pub fn r2(&self) -> Option<f64> {
        let (error, total) = self.squares();
        (total > 0.0).then(|| 1.0 - error / total)
    }

    /// Spearman of real against predicted effects across test examples.
    pub fn spearman(&self) -> Option<f64> {
        spearman(&self.real, &self.predicted)
    }

    /// Share of the test examples with a real effect other than 0 whose predicted effect has the
    /// same sign; `None` if there is none, or if every predicted effect is exactly 0.
    pub fn sign_agreement(&self) -> Option<f64> {
        if self.predicted.iter().all(|&p| p == 0.0) {
            return None;
        }
        let pairs = self.real.iter().zip(&self.predicted);
        let real: Vec<_> = pairs.filter(|&(&e, _)| e != 0.0).collect();
        let agree = real.iter().filter(|&&(&e, &p)| e * p > 0.0).count();
        (!real.is_empty()).then(|| agree as f64 / real.len() as f64)
    }
}

/// The prediction of `no-effect` for an edited run: its original's real trajectory, at the steps
/// at which the edited run was evaluated. Where the original was not measured, its last measured
/// loss is held; it is cut or held to the edited run's length.
///
/// `None` unless the original was measured completely before the first step.
pub fn no_effect(original: &Trajectory, edited: &Trajectory) -> Option<Trajectory> {
    let mut held = original.initial()?.to_vec();
    let mut rows = original.steps().iter().enumerate().peekable();
    let mut values = Vec::with_capacity(edited.steps().len() * held.len());
    for &step in edited.steps() {
        while let Some((row, _)) = rows.next_if(|&(_, &s)| s <= step) {
            for (test, loss) in held.iter_mut().enumerate() {
                *loss = original.get(row, test).unwrap_or(*loss);
            }
        }
        values.extend_from_slice(&held);
    }
    Trajectory::new(edited.steps().to_vec(), held.len(), values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ref_metrics::*;
    use proptest::prelude::*;

    fn trajectory(steps: Vec<u32>, tests: usize, values: &[f32]) -> Trajectory {
        Trajectory::new(steps, tests, values.to_vec()).unwrap()
    }

    #[test]
    fn ref_ranks_and_correlations_of_scipy() {
        assert_eq!(average_ranks(&REF_X).unwrap(), REF_RANKS_X);
        assert!((spearman(&REF_X, &REF_Y).unwrap() - REF_SPEARMAN).abs() < 1e-14);
        assert!((pearson(&REF_X, &REF_Y).unwrap() - REF_PEARSON).abs() < 1e-14);
    }

    #[test]
    fn ref_errors_of_a_trajectory_with_gaps() {
        let measured: Vec<bool> = REF_REAL.iter().map(|v| !v.is_nan()).collect();
        let real = Trajectory::with_missing(REF_STEPS.to_vec(), 5, REF_REAL.to_vec(), measured);
        let (real, simulated) = (
            real.unwrap(),
            trajectory((0..=6).collect(), 5, &REF_SIMULATED),
        );
        let errors = all_steps_errors(&real, &simulated).unwrap();
        assert!((errors.mse - REF_MSE).abs() < 1e-12, "{errors:?}");
        assert!((errors.mae - REF_MAE).abs() < 1e-12, "{errors:?}");
        let correlations = final_correlations(&real, &simulated);
        assert!((correlations.losses.unwrap() - REF_FINAL).abs() < 1e-14);
        assert!((correlations.changes.unwrap() - REF_CHANGE).abs() < 1e-14);
        let per_test = errors_per_test(&real, &simulated);
        let mean = per_test.iter().map(|e| e.unwrap()).sum::<f64>() / 5.0;
        assert!((mean - REF_MSE).abs() < 1e-12);
    }

    #[test]
    fn ref_effects_of_sklearn() {
        let effects = Effects {
            real: REF_EFFECT.to_vec(),
            predicted: REF_PREDICTED.to_vec(),
        };
        assert!((effects.r2().unwrap() - REF_R2).abs() < 1e-12);
        assert!((effects.spearman().unwrap() - REF_EFFECT_SPEARMAN).abs() < 1e-14);
        assert!((effects.sign_agreement().unwrap() - REF_SIGN).abs() < 1e-14);
    }

    #[test]
    fn effects_pair_the_test_examples_measured_at_both_ends() {
        let gaps = |values: &[f32], last: [bool; 3]| {
            let measured = [true; 3].into_iter().chain(last).collect();
            Trajectory::with_missing(vec![0, 1], 3, values.to_vec(), measured).unwrap()
        };
        let original = gaps(&[5.0, 5.0, 5.0, 1.0, 2.0, 3.0], [true, false, true]);
        let edited = gaps(&[5.0, 5.0, 5.0, 1.5, 2.5, 2.0], [true, true, true]);
        let simulated = trajectory(vec![0, 1], 3, &[5.0, 5.0, 5.0, 4.0, 4.0, 4.0]);
        let shifted = trajectory(vec![0, 1], 3, &[5.0, 5.0, 5.0, 4.25, 4.0, 4.0]);
        let effects = Effects::of((&original, &simulated), (&edited, &shifted));
        assert_eq!(effects.real, vec![0.5, -1.0]);
        assert_eq!(effects.predicted, vec![0.25, 0.0]);
        assert_eq!(effects.sign_agreement(), Some(0.5));
    }

    #[test]
    fn rounding_of_simulated_losses_is_no_effect() {
        let real = trajectory(vec![0, 1], 3, &[5.0, 5.0, 5.0, 1.0, 2.0, 3.0]);
        let edited = trajectory(vec![0, 1], 3, &[5.0, 5.0, 5.0, 1.5, 2.5, 2.0]);
        let simulated = trajectory(vec![0, 1], 3, &[5.0, 5.0, 5.0, 4.0, 4.0, 4.0]);
        let shifted = |by: [f32; 3]| {
            let last = by.map(|units| 4.0 + units * 4.0 * f32::EPSILON);
            trajectory(vec![0, 1], 3, &[&[5.0; 3], &last[..]].concat())
        };
        let effects = |by| Effects::of((&real, &simulated), (&edited, &shifted(by)));
        assert_eq!(effects([1.0, -1.0, 2.0]).predicted, [0.0; 3]);
        assert_eq!(effects([1.0, -1.0, 2.0]).spearman(), None);
        assert_eq!(effects([1.0, -1.0, 2.0]).sign_agreement(), None);
        assert!(effects([1.0, 0.0, -20.0]).predicted[2] < 0.0);
    }

    #[test]
    fn predicting_no_effect_scores_zero_and_has_no_rank_or_sign() {
        let effects = Effects {
            real: vec![1.0, -2.0],
            predicted: vec![0.0, 0.0],
        };
        assert_eq!(effects.r2(), Some(0.0));
        assert_eq!(effects.spearman(), None);
        assert_eq!(effects.sign_agreement(), None);
    }

    #[test]
    fn no_effect_is_cut_or_held_to_the_edited_length() {
        let original = trajectory(vec![0, 2, 4], 1, &[4.0, 3.0, 2.0]);
        let shorter = trajectory(vec![0, 2], 1, &[4.0, 9.0]);
        assert_eq!(
            no_effect(&original, &shorter).unwrap().values(),
            &[4.0, 3.0]
        );
        let longer = trajectory(vec![0, 3, 6], 1, &[4.0, 9.0, 9.0]);
        assert_eq!(
            no_effect(&original, &longer).unwrap().values(),
            &[4.0, 3.0, 2.0]
        );
    }

    #[test]
    fn a_simulated_nan_is_an_error_value_not_a_gap() {
        let real = trajectory(vec![0, 1], 2, &[3.0, 3.0, 2.0, 1.0]);
        let broken = trajectory(vec![0, 1], 2, &[3.0, 3.0, f32::NAN, 1.0]);
        assert!(all_steps_errors(&real, &broken).unwrap().mse.is_nan());
        assert_eq!(final_correlations(&real, &broken).losses, None);
    }

    #[test]
    fn a_simulation_that_is_too_short_has_no_error() {
        let real = trajectory(vec![0, 1, 2], 1, &[3.0, 2.0, 1.0]);
        let short = trajectory(vec![0, 1], 1, &[3.0, 2.0]);
        assert_eq!(all_steps_errors(&real, &short), None);
    }

    proptest! {
        #[test]
        fn spearman_does_not_see_monotone_maps(
            pairs in prop::collection::vec((-9i32..9, -9i32..9), 2..40),
        ) {
            let x: Vec<f64> = pairs.iter().map(|p| f64::from(p.0)).collect();
            let y: Vec<f64> = pairs.iter().map(|p| f64::from(p.1)).collect();
            let mapped: Vec<f64> = x.iter().map(|v| (v / 3.0).exp() - 7.0).collect();
            let turned: Vec<f64> = x.iter().map(|v| -v.powi(3)).collect();
            let rho = spearman(&x, &y);
            prop_assert_eq!(spearman(&mapped, &y), rho);
            prop_assert_eq!(spearman(&y, &x).is_some(), rho.is_some());
            if let Some(rho) = rho {
                prop_assert!((spearman(&turned, &y).unwrap() + rho).abs() < 1e-12);
                prop_assert!((-1.0..=1.0).contains(&rho));
            }
        }

        #[test]
        fn ranks_sum_to_what_distinct_ranks_sum_to(values in prop::collection::vec(-4i32..4, 1..30)) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let count = values.len() as f64;
            let sum: f64 = average_ranks(&values).unwrap().iter().sum();
            prop_assert!((sum - count * (count + 1.0) / 2.0).abs() < 1e-9);
        }
    }
}
