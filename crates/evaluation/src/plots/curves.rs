//! Real against simulated loss curves.

use super::canvas::{
    Curve, Entry, Mark, PALETTE, Panel, PlotError, legend, legend_height, loss_range, svg, title,
};
use crate::metrics::errors_per_test;
use plotters::prelude::*;
use simfluence_core::Trajectory;

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (400, 330);
const TITLE_HEIGHT: u32 = 34;
/// Simulated curves are cut where they leave the real losses by half of their range.
const BEYOND: f64 = 0.5;

/// What [`curves`] draws.
#[derive(Debug, Clone)]
pub struct CurvesPlot<'a> {
    /// Id of the run.
    pub run: &'a str,
    /// What really happened.
    pub real: &'a Trajectory,
    /// Methods by name; the first one ranks the test examples.
    pub simulated: &'a [(&'a str, &'a Trajectory)],
    /// Names of the test examples, in id order.
    pub test_keys: &'a [String],
}

/// Three panels, with the test examples that the first method predicts best, in the middle and
/// worst (by mean squared error over the steps): the real curve and each method's, cut where it
/// goes far beyond the real losses.
///
/// # Errors
/// No method, no test example measured after step 0, or other numbers of test examples.
pub fn curves(plot: &CurvesPlot<'_>) -> Result<String, PlotError> {
    check(plot)?;
    let first = plot.simulated[0];
    let mut ranked: Vec<(usize, f64)> = errors_per_test(plot.real, first.1)
        .into_iter()
        .enumerate()
        .filter_map(|(test, error)| Some((test, error?)))
        .collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    if ranked.is_empty() {
        return Err(PlotError::Nothing {
            what: format!("run {:?} has no measured loss after step 0", plot.run),
        });
    }
    let chosen = [
        ("best", ranked[0]),
        ("median", ranked[(ranked.len() - 1) / 2]),
        ("worst", ranked[ranked.len() - 1]),
    ];
    let entries = entries(plot);
    let width = 3 * PANEL.0;
    let footer = legend_height(&entries, width);
    svg((width, TITLE_HEIGHT + PANEL.1 + footer), |root| {
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let (body, foot) = rest.split_vertically(PANEL.1);
        let ranking = format!("test examples ranked by {}", first.0);
        title(
            &head,
            &format!("Run {}: real and simulated losses ({ranking})", plot.run),
        )?;
        for (area, (place, (test, error))) in body.split_evenly((1, 3)).iter().zip(chosen) {
            let error = crate::table::number(error, error);
            let title = format!("{place} (MSE {error}): {}", plot.test_keys[test]);
            panel(plot, &entries, test, title).draw(area)?;
        }
        legend(&foot, &entries)
    })
}

fn check(plot: &CurvesPlot<'_>) -> Result<(), PlotError> {
    let expected = plot.real.test_count();
    if plot.simulated.is_empty() {
        return Err(PlotError::Nothing {
            what: "no method was given".to_owned(),
        });
    }
    let simulated = plot
        .simulated
        .iter()
        .map(|(_, t)| ("simulated losses", t.test_count()));
    let parts = simulated.chain([("test keys", plot.test_keys.len())]);
    for (what, got) in parts {
        if got != expected {
            return Err(PlotError::TestCount {
                what,
                expected,
                got,
            });
        }
    }
    Ok(())
}

fn entries(plot: &CurvesPlot<'_>) -> Vec<Entry> {
    let real = Entry {
        label: "real".to_owned(),
        color: BLACK,
        mark: Mark::Line,
    };
    let methods = plot
        .simulated
        .iter()
        .enumerate()
        .map(|(k, (name, _))| Entry {
            label: (*name).to_owned(),
            color: PALETTE[k % PALETTE.len()],
            // A second round through the colours is dashed.
            mark: if k < PALETTE.len() {
                Mark::Line
            } else {
                Mark::Dashes
            },
        });
    std::iter::once(real).chain(methods).collect()
}

fn panel<'a>(plot: &CurvesPlot<'_>, entries: &'a [Entry], test: usize, title: String) -> Panel<'a> {
    let points = |trajectory: &Trajectory| -> Vec<(u32, f64)> {
        let last = plot.real.steps().last().copied().unwrap_or(0);
        let curve = trajectory.curve(test).filter(|&(step, _)| step <= last);
        curve.map(|(step, loss)| (step, f64::from(loss))).collect()
    };
    let real = points(plot.real);
    let simulated: Vec<_> = plot.simulated.iter().map(|(_, t)| points(t)).collect();
    let losses = loss_range(
        real.iter().map(|p| p.1),
        simulated.iter().flatten().map(|p| p.1),
        BEYOND,
    );
    // The real curve is drawn last, on top.
    let order = simulated.into_iter().zip(&entries[1..]);
    let curves = order
        .chain([(real, &entries[0])])
        .map(|(points, entry)| Curve { points, entry })
        .collect();
    Panel {
        band: Vec::new(),
        title,
        curves,
        losses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_median_and_worst_test_examples_are_shown_in_that_order() {
        let real = Trajectory::new(vec![0, 1], 3, vec![3.0; 6]).unwrap();
        let off = vec![3.0, 3.0, 3.0, 9.0, 3.5, 3.1];
        let simulated = Trajectory::new(vec![0, 1], 3, off).unwrap();
        let keys: Vec<String> = ["awful <&>", "middling", "good"].map(String::from).into();
        let svg = curves(&CurvesPlot {
            run: "run-1",
            real: &real,
            simulated: &[("linear", &simulated)],
            test_keys: &keys,
        })
        .unwrap();
        let place = |text: &str| svg.find(text).unwrap_or_else(|| panic!("no {text}"));
        assert!(place("(MSE 0.0100): good") < place("(MSE 0.250): middling"));
        assert!(place("median (") < place("worst (MSE 36.0): awful &lt;&amp;&gt;"));
        assert!(svg.contains("loss (nats per target token)") && svg.contains("linear"));
    }

    #[test]
    fn other_numbers_of_test_examples_are_refused() {
        let real = Trajectory::new(vec![0, 1], 2, vec![3.0; 4]).unwrap();
        let simulated = Trajectory::new(vec![0, 1], 1, vec![3.0; 2]).unwrap();
        let plot = CurvesPlot {
            run: "run-1",
            real: &real,
            simulated: &[("linear", &simulated)],
            test_keys: &["a".to_owned(), "b".to_owned()],
        };
        assert!(matches!(
            curves(&plot),
            Err(PlotError::TestCount {
                expected: 2,
                got: 1,
                ..
            })
        ));
    }
}
