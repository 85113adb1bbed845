//! What an edit does: mean loss per test dataset.

use super::canvas::{
    Curve, Entry, Mark, PALETTE, Panel, PlotError, Points, legend, legend_height, loss_range, svg,
    title,
};
use plotters::prelude::*;
use simfluence_core::Trajectory;

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (390, 300);
const TITLE_HEIGHT: u32 = 34;
const MOST_COLUMNS: usize = 3;
/// The prediction is the answer: it is cut only where it leaves the real losses this many times
/// their range.
const BEYOND: f64 = 5.0;

/// What [`what_if`] draws.
#[derive(Debug, Clone)]
pub struct WhatIfPlot<'a> {
    /// What was asked ("run-027 without sports").
    pub title: &'a str,
    /// The original run's real losses.
    pub original: &'a Trajectory,
    /// The predicted losses of the edit.
    pub simulated: &'a Trajectory,
    /// Ends of the band around the predicted losses, where there is one.
    pub band: Option<(&'a Trajectory, &'a Trajectory)>,
    /// The edit's real losses, where it was retrained.
    pub retrained: Option<&'a Trajectory>,
    /// Names of the test datasets.
    pub datasets: &'a [String],
    /// Position in `datasets` of each test example's.
    pub dataset_of: &'a [usize],
}

/// One panel per test dataset with the mean loss over its test examples: the original run, the
/// simulated edit and, where it was really trained, the retrained edit. All panels share their
/// range of losses.
///
/// # Errors
/// No dataset with a measured loss, or other numbers of test examples.
pub fn what_if(plot: &WhatIfPlot<'_>) -> Result<String, PlotError> {
    check(plot)?;
    let entries = entries(plot.retrained.is_some(), plot.band.is_some());
    let trajectories = [Some(plot.original), Some(plot.simulated), plot.retrained];
    let panels: Vec<(&str, usize, Vec<Points>)> = plot
        .datasets
        .iter()
        .enumerate()
        .map(|(dataset, name)| {
            let shown = trajectories.into_iter().flatten();
            let curves = shown
                .map(|t| mean_curve(t, plot.dataset_of, dataset))
                .collect();
            (name.as_str(), dataset, curves)
        })
        .filter(|(_, _, curves): &(_, _, Vec<Points>)| curves.iter().any(|curve| !curve.is_empty()))
        .collect();
    if panels.is_empty() {
        return Err(PlotError::Nothing {
            what: "no test example belongs to a dataset".to_owned(),
        });
    }
    let losses_of = |wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
        let curves = panels
            .iter()
            .flat_map(|(_, _, curves)| curves.iter().enumerate());
        let wanted = curves.filter(|(k, _)| wanted(*k));
        wanted
            .flat_map(|(_, curve)| curve.iter().map(|p| p.1))
            .collect()
    };
    let (real, simulated) = (losses_of(&|k| k != 1), losses_of(&|k| k == 1));
    let losses = loss_range(real.into_iter(), simulated.into_iter(), BEYOND);
    let columns = panels.len().min(MOST_COLUMNS);
    let rows = panels.len().div_ceil(columns);
    let width = (columns as u32 * PANEL.0).max(640);
    let body_height = rows as u32 * PANEL.1;
    let footer = legend_height(&entries, width);
    svg((width, TITLE_HEIGHT + body_height + footer), |root| {
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let (body, foot) = rest.split_vertically(body_height);
        title(&head, &format!("What if: {}", plot.title))?;
        for (area, (name, dataset, curves)) in
            body.split_evenly((rows, columns)).iter().zip(&panels)
        {
            let mut curves: Vec<Curve<'_>> = curves
                .iter()
                .zip(&entries)
                .map(|(points, entry)| Curve {
                    points: points.clone(),
                    entry,
                })
                .collect();
            // The prediction is drawn last, on top.
            curves.swap(0, 1);
            curves.reverse();
            let panel = Panel {
                title: (*name).to_owned(),
                band: band(plot, *dataset),
                curves,
                losses: losses.clone(),
            };
            panel.draw(area)?;
        }
        legend(&foot, &entries)
    })
}

fn check(plot: &WhatIfPlot<'_>) -> Result<(), PlotError> {
    let expected = plot.original.test_count();
    let parts = [
        ("simulated losses", Some(plot.simulated.test_count())),
        (
            "retrained losses",
            plot.retrained.map(Trajectory::test_count),
        ),
        ("datasets of test examples", Some(plot.dataset_of.len())),
    ];
    for (what, got) in parts {
        if let Some(got) = got.filter(|&got| got != expected) {
            return Err(PlotError::TestCount {
                what,
                expected,
                got,
            });
        }
    }
    Ok(())
}

fn entries(retrained: bool, banded: bool) -> Vec<Entry> {
    let entry = |label: &str, color, mark| Entry {
        label: label.to_owned(),
        color,
        mark,
    };
    let mut entries = vec![
        entry("original run, real", BLACK, Mark::Line),
        entry(
            if banded {
                "edit, predicted (mean band of its test examples)"
            } else {
                "edit, predicted"
            },
            PALETTE[0],
            Mark::Line,
        ),
    ];
    if retrained {
        entries.push(entry("edit, really retrained", PALETTE[1], Mark::Dashes));
    }
    entries
}

/// Per evaluated step the means of both ends of the band over the dataset's test examples.
fn band(plot: &WhatIfPlot<'_>, dataset: usize) -> Vec<(u32, f64, f64)> {
    let Some((low, high)) = plot.band else {
        return Vec::new();
    };
    let low = mean_curve(low, plot.dataset_of, dataset);
    let high = mean_curve(high, plot.dataset_of, dataset);
    let ends = low.into_iter().zip(high);
    ends.map(|((step, low), (_, high))| (step, low, high))
        .collect()
}

/// Per evaluated step the mean over the dataset's test examples that were measured.
fn mean_curve(trajectory: &Trajectory, dataset_of: &[usize], dataset: usize) -> Points {
    let members = || (0..dataset_of.len()).filter(|&test| dataset_of[test] == dataset);
    let steps = trajectory.steps().iter().enumerate();
    let mean = |(row, &step): (usize, &u32)| {
        let measured = members().filter_map(|test| trajectory.get(row, test));
        let (sum, count) = measured.fold((0.0, 0usize), |(sum, count), loss| {
            (sum + f64::from(loss), count + 1)
        });
        (count > 0).then(|| (step, sum / count as f64))
    };
    steps.filter_map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_over_the_measured_test_examples_of_the_dataset() {
        let trajectory = Trajectory::with_missing(
            vec![0, 1],
            3,
            vec![1.0, 3.0, 9.0, 2.0, f32::NAN, 9.0],
            vec![true, true, true, true, false, true],
        )
        .unwrap();
        assert_eq!(
            mean_curve(&trajectory, &[0, 0, 1], 0),
            vec![(0, 2.0), (1, 2.0)]
        );
        assert_eq!(mean_curve(&trajectory, &[0, 0, 1], 2), vec![]);
    }

    #[test]
    fn a_retrained_edit_gets_its_own_line_only_where_it_exists() {
        let run = Trajectory::new(vec![0, 1], 1, vec![3.0, 2.0]).unwrap();
        let datasets = ["sports".to_owned()];
        let mut plot = WhatIfPlot {
            title: "run-1 without sports",
            original: &run,
            simulated: &run,
            band: None,
            retrained: None,
            datasets: &datasets,
            dataset_of: &[0],
        };
        assert!(!what_if(&plot).unwrap().contains("retrained"));
        assert!(!what_if(&plot).unwrap().contains("polygon"));
        plot.band = Some((&run, &run));
        assert!(what_if(&plot).unwrap().contains("polygon"));
        plot.retrained = Some(&run);
        let svg = what_if(&plot).unwrap();
        assert!(svg.contains("edit, really retrained") && svg.contains("sports"));
    }
}
