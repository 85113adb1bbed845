//! Influence and agreement while unlearning goes on: the paper's figures 2 and 3.

use super::curves::InfluenceCurves;
use super::spread::Spread;
use anyhow::Result;
use simfluence_evaluation::plots::{BandPanel, BandPoint, BandsPlot, bands};

/// A method's curves of every run.
pub struct Unlearned {
    /// Name of the method.
    pub method: &'static str,
    /// Of every run.
    pub runs: Vec<InfluenceCurves>,
}

/// Rise of the mean loss, mean over runs with its 95 % interval, a curve per training dataset.
pub fn influences(title: &str, datasets: &[String], methods: &[Unlearned]) -> Result<String> {
    let panels = methods.iter().map(|unlearned| {
        let curve = |d: usize| points(&unlearned.runs, |run, k| Some(run.rises[d][k]));
        BandPanel {
            title: unlearned.method,
            x_axis: "epochs of unlearning",
            y_axis: "rise of the mean loss (nats)",
            curves: (0..datasets.len()).map(curve).collect(),
        }
    });
    Ok(bands(&BandsPlot {
        title,
        curves: datasets,
        panels: panels.collect(),
    })?)
}

/// Pearson correlation with the truth, mean over runs with its 95 % interval.
///
/// - `weights`: total exposure of every training dataset.
pub fn agreement(
    title: &str,
    weights: &[f64],
    truth: &[f64],
    methods: &[Unlearned],
) -> Result<String> {
    let panels = methods.iter().map(|unlearned| {
        let of_runs: Vec<Vec<Option<f64>>> = (unlearned.runs.iter())
            .map(|run| run.agreement(weights, truth))
            .collect();
        let numbered: Vec<(usize, &InfluenceCurves)> = unlearned.runs.iter().enumerate().collect();
        BandPanel {
            title: unlearned.method,
            x_axis: "epochs of unlearning",
            y_axis: "Pearson with the truth",
            curves: vec![points_of(&numbered, |(run, _), k| of_runs[*run][k])],
        }
    });
    Ok(bands(&BandsPlot {
        title,
        curves: &["mean over runs, 95 % interval".to_owned()],
        panels: panels.collect(),
    })?)
}

fn points(
    runs: &[InfluenceCurves],
    value: impl Fn(&InfluenceCurves, usize) -> Option<f64>,
) -> Vec<BandPoint> {
    let numbered: Vec<(usize, &InfluenceCurves)> = runs.iter().enumerate().collect();
    points_of(&numbered, |(_, run), k| value(run, k))
}

/// Points where every run has a value.
fn points_of(
    runs: &[(usize, &InfluenceCurves)],
    value: impl Fn(&(usize, &InfluenceCurves), usize) -> Option<f64>,
) -> Vec<BandPoint> {
    let epochs = &runs[0].1.epochs;
    (0..epochs.len())
        .filter_map(|k| {
            let values: Option<Vec<f64>> = runs.iter().map(|run| value(run, k)).collect();
            let spread = Spread::of(&values?);
            Some(BandPoint {
                x: epochs[k],
                mean: spread.mean,
                half_width: spread.half_interval(),
            })
        })
        .collect()
}
