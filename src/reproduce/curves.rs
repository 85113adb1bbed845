//! Influence, and agreement with the truth, while unlearning goes on: the paper's figures 2 and 3.

use super::values::Groups;
use anyhow::{Context, Result};
use simfluence_evaluation::pearson;
use simfluence_simulators::curves::{Curve, Direction, LossCurves, UnitAxis};

/// Most points of UnTrac's curves.
const POINTS: usize = 8;

/// After how many steps the losses are measured while units of these sizes are unlearned example
/// by example: often enough for a curve, at the same shares of every unit's epoch.
pub fn curve_every(sizes: &[usize]) -> u32 {
    let common = sizes.iter().fold(0, |a, &b| greatest_common_divisor(a, b));
    let points = (1..=POINTS).rev().find(|p| common % p == 0).unwrap_or(1);
    (common / points).max(1) as u32
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// Influence of every training dataset on a test dataset after parts of the unlearning.
#[derive(Debug, Clone, PartialEq)]
pub struct InfluenceCurves {
    /// Epochs of unlearning.
    pub epochs: Vec<f64>,
    /// Rise of the mean loss, nats, `[training dataset][epoch]`: of the test dataset while the
    /// training dataset is unlearned (UnTrac), or the other way round (UnTrac-Inv).
    pub rises: Vec<Vec<f64>>,
}

impl InfluenceCurves {
    /// From the losses of one run; `epochs`: passes over each unit.
    pub fn of(curves: &LossCurves, groups: &Groups, test: usize, exposure: &[f64]) -> Result<Self> {
        match curves.unit_axis {
            UnitAxis::Train => Self::of_untrac(curves, groups, test),
            UnitAxis::Test => Self::of_untrac_inv(curves, groups, test, exposure),
        }
    }

    fn of_untrac(curves: &LossCurves, groups: &Groups, test: usize) -> Result<Self> {
        let members = groups.test_members(test);
        let whole: Vec<u32> = curves.curves.iter().map(last).collect();
        let shortest = *whole.iter().min().context("there is no curve")?;
        let first = &curves.curves[whole.iter().position(|&s| s == shortest).unwrap_or(0)];
        // Shares of an epoch that were measured in every unit.
        let at = |curve: &Curve, step: u32, whole: u32| {
            let scaled = u64::from(step) * u64::from(whole);
            let is_whole = scaled.is_multiple_of(u64::from(shortest));
            let wanted = (scaled / u64::from(shortest)) as u32;
            is_whole
                .then(|| curve.steps.binary_search(&wanted).ok())
                .flatten()
        };
        let shared: Vec<u32> = (first.steps.iter().copied())
            .filter(|&step| {
                let mut all = curves.curves.iter().zip(&whole);
                all.all(|(curve, &whole)| at(curve, step, whole).is_some())
            })
            .collect();
        let width = curves.measured_keys.len();
        let mut rises = vec![Vec::new(); groups.datasets.len()];
        for (unit, (curve, &whole)) in curves.curves.iter().zip(&whole).enumerate() {
            let name = &curves.units.as_slice()[unit].name;
            let dataset = groups.datasets.iter().position(|d| d == name);
            let dataset =
                dataset.with_context(|| format!("unlearned {name:?}: no such dataset"))?;
            for &step in &shared {
                let row = at(curve, step, whole).expect("it was measured in every unit");
                rises[dataset].push(rise(curve, row, width, &members));
            }
        }
        let epochs = shared.iter().map(|&s| f64::from(s) / f64::from(shortest));
        Ok(Self {
            epochs: epochs.collect(),
            rises,
        })
    }

    fn of_untrac_inv(
        curves: &LossCurves,
        groups: &Groups,
        test: usize,
        exposure: &[f64],
    ) -> Result<Self> {
        let name = &groups.tests[test];
        let unit = (curves.units.as_slice().iter()).position(|unit| unit.name == *name);
        let unit = unit.with_context(|| format!("{name:?} was not unlearned"))?;
        let curve = &curves.curves[unit];
        let of_dataset = |dataset: usize| -> Vec<f64> {
            let members: Vec<usize> = (0..groups.dataset_of.len())
                .filter(|&i| groups.dataset_of[i] == dataset && exposure[i] > 0.0)
                .collect();
            (0..curve.steps.len())
                .map(|row| rise(curve, row, curves.measured_keys.len(), &members))
                .collect()
        };
        Ok(Self {
            epochs: curve.steps.iter().map(|&step| f64::from(step)).collect(),
            rises: (0..groups.datasets.len()).map(of_dataset).collect(),
        })
    }

    /// Pearson correlation with the truth after each part, of the datasets' whole influence: a
    /// rise times the dataset's `weight`, because training data are summed over and not averaged.
    pub fn agreement(&self, weights: &[f64], truth: &[f64]) -> Vec<Option<f64>> {
        (0..self.epochs.len())
            .map(|k| {
                let rises = self.rises.iter().zip(weights);
                let values: Vec<f64> = rises.map(|(of, weight)| of[k] * weight).collect();
                pearson(&values, truth)
            })
            .collect()
    }
}

fn last(curve: &Curve) -> u32 {
    curve.steps.last().copied().unwrap_or(0)
}

fn rise(curve: &Curve, row: usize, width: usize, members: &[usize]) -> f64 {
    let (start, end) = (
        &curve.losses[..width],
        &curve.losses[row * width..][..width],
    );
    let changes = members
        .iter()
        .map(|&k| Direction::Ascent.decrease_by_training(start[k], end[k]));
    changes.sum::<f64>() / members.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_simulators::units::{Unit, Units};

    #[test]
    fn losses_are_measured_at_the_same_shares_of_all_epochs() {
        assert_eq!(curve_every(&[256, 256]), 32);
        assert_eq!(curve_every(&[100, 100]), 20);
        assert_eq!(curve_every(&[240, 160, 40]), 5);
        assert_eq!(curve_every(&[7, 5]), 1);
    }

    #[test]
    fn curves_of_units_of_different_size_meet_at_shares_of_their_epochs() {
        let unit = |name: &str, members: Vec<u32>| Unit {
            name: name.into(),
            members,
        };
        let curve = |steps: Vec<u32>, losses: Vec<f64>| Curve { steps, losses };
        let curves = LossCurves {
            method: "untrac".into(),
            direction: Direction::Ascent,
            unit_axis: UnitAxis::Train,
            learning_rate: 1.0,
            units: Units::new(vec![unit("b", vec![0, 1]), unit("a", vec![2, 3, 4, 5])]).unwrap(),
            measured_keys: vec!["t".into()],
            curves: vec![
                curve(vec![0, 1, 2], vec![1.0, 1.5, 2.0]),
                curve(vec![0, 1, 2, 3, 4], vec![1.0, 9.0, 3.0, 9.0, 0.0]),
            ],
            gradient_evaluations: 0,
            loss_evaluations: 0,
        };
        let groups = Groups {
            datasets: vec!["a".into(), "b".into()],
            dataset_of: vec![1, 1, 0, 0, 0, 0],
            tests: vec!["t".into()],
            test_of: vec![0],
        };
        let found = InfluenceCurves::of(&curves, &groups, 0, &[1.0; 6]).unwrap();
        assert_eq!(found.epochs, [0.0, 0.5, 1.0]);
        assert_eq!(found.rises, [vec![0.0, 2.0, -1.0], vec![0.0, 0.5, 1.0]]);
        assert_eq!(found.agreement(&[1.0, 1.0], &[5.0, 6.0])[0], None);
    }
}
