//! Real against simulated final losses.

use super::canvas::{
    Entry, Mark, PALETTE, PlotError, TEXT, drawing, legend, legend_height, svg, tick, title,
};
use crate::metrics::final_pairs;
use plotters::prelude::*;
use simfluence_core::Trajectory;

/// Width and height of the axes in pixels.
const BODY: (u32, u32) = (640, 560);
const TITLE_HEIGHT: u32 = 34;

/// The end of one test example in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct ScatterPoint {
    /// Real final loss, nats per target token.
    pub real: f64,
    /// Simulated final loss, nats per target token.
    pub simulated: f64,
    /// The test example's dataset.
    pub dataset: String,
}

/// What [`final_scatter`] draws.
#[derive(Debug, Clone)]
pub struct ScatterPlot<'a> {
    /// Name of the method.
    pub method: &'a str,
    /// The points, of as many runs as wanted.
    pub points: &'a [ScatterPoint],
}

/// The points of one run: every test example measured at its last evaluated step; `datasets`
/// names each test example's.
///
/// # Errors
/// Another number of datasets than test examples.
pub fn scatter_points(
    real: &Trajectory,
    simulated: &Trajectory,
    datasets: &[String],
) -> Result<Vec<ScatterPoint>, PlotError> {
    if datasets.len() != real.test_count() {
        return Err(PlotError::TestCount {
            what: "datasets",
            expected: real.test_count(),
            got: datasets.len(),
        });
    }
    let pairs = final_pairs(real, simulated).into_iter();
    Ok(pairs
        .map(|(test, real, simulated)| ScatterPoint {
            real,
            simulated,
            dataset: datasets[test].clone(),
        })
        .collect())
}

/// Simulated over real final losses with the diagonal, one colour per test dataset (from the
/// seventh on they share grey). Points far beyond the real losses stand at the edge.
///
/// # Errors
/// No point with two finite losses.
pub fn final_scatter(plot: &ScatterPlot<'_>) -> Result<String, PlotError> {
    let finite = |p: &&ScatterPoint| p.real.is_finite() && p.simulated.is_finite();
    let points: Vec<&ScatterPoint> = plot.points.iter().filter(finite).collect();
    if points.is_empty() {
        return Err(PlotError::Nothing {
            what: format!("{} has no finite final loss", plot.method),
        });
    }
    let (low, high) = axis(&points);
    let (datasets, entries) = legend_of(&points);
    let footer = legend_height(&entries, BODY.0);
    svg((BODY.0, TITLE_HEIGHT + BODY.1 + footer), |root| {
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let (body, foot) = rest.split_vertically(BODY.1);
        let beyond = points
            .iter()
            .filter(|p| !(low..=high).contains(&p.simulated))
            .count();
        let note = match beyond {
            0 => String::new(),
            count => format!(", {count} beyond the edge"),
        };
        let count = points.len();
        title(
            &head,
            &format!("{}: final losses ({count} points{note})", plot.method),
        )?;
        let mut chart = ChartBuilder::on(&body)
            .margin(8)
            .margin_right(18)
            .x_label_area_size(46)
            .y_label_area_size(66)
            .build_cartesian_2d(low..high, low..high)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.1))
            .x_labels(7)
            .y_labels(7)
            .x_desc("real final loss (nats per target token)")
            .y_desc("simulated final loss (nats per target token)")
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .x_label_formatter(&|v| tick(*v, high - low))
            .y_label_formatter(&|v| tick(*v, high - low))
            .draw()
            .map_err(drawing)?;
        let diagonal = LineSeries::new([(low, low), (high, high)], BLACK.stroke_width(1));
        chart.draw_series(diagonal).map_err(drawing)?;
        let dots = points.iter().map(|point| {
            let at = (point.real, point.simulated.clamp(low, high));
            let dataset = datasets.iter().position(|d| *d == point.dataset);
            let color = entries[dataset.unwrap_or(0).min(entries.len() - 1)].color;
            Circle::new(at, 4, color.mix(0.6).filled())
        });
        chart.draw_series(dots).map_err(drawing)?;
        legend(&foot, &entries)
    })
}

/// Both axes: all real losses, and the simulated ones up to one range beyond them.
fn axis(points: &[&ScatterPoint]) -> (f64, f64) {
    let low = points.iter().map(|p| p.real).fold(f64::INFINITY, f64::min);
    let high = points
        .iter()
        .map(|p| p.real)
        .fold(f64::NEG_INFINITY, f64::max);
    let reach = (high - low).max(0.1 * high.abs()).max(1e-3);
    let simulated_low = points.iter().map(|p| p.simulated).fold(low, f64::min);
    let simulated_high = points.iter().map(|p| p.simulated).fold(high, f64::max);
    let low = simulated_low.max(low - reach);
    let high = simulated_high.min(high + reach);
    let margin = 0.04 * (high - low).max(1e-3);
    (low - margin, high + margin)
}

/// The datasets in order of first appearance, and one entry each; the last may stand for several.
fn legend_of<'a>(points: &[&'a ScatterPoint]) -> (Vec<&'a str>, Vec<Entry>) {
    let mut datasets: Vec<&str> = Vec::new();
    for point in points {
        if !datasets.contains(&point.dataset.as_str()) {
            datasets.push(&point.dataset);
        }
    }
    let own = if datasets.len() > PALETTE.len() {
        PALETTE.len() - 1
    } else {
        datasets.len()
    };
    let mut labels: Vec<String> = datasets[..own].iter().map(|&d| d.to_owned()).collect();
    if own < datasets.len() {
        labels.push(format!("{} other datasets", datasets.len() - own));
    }
    let entries = labels.into_iter().zip(PALETTE).map(|(label, color)| Entry {
        label,
        color,
        mark: Mark::Dot,
    });
    (datasets, entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(real: f64, simulated: f64, dataset: usize) -> ScatterPoint {
        ScatterPoint {
            real,
            simulated,
            dataset: format!("d{dataset}"),
        }
    }

    #[test]
    fn many_datasets_share_the_last_entry() {
        let points: Vec<ScatterPoint> = (0..10).map(|k| point(1.0, 2.0, k)).collect();
        let (_, entries) = legend_of(&points.iter().collect::<Vec<_>>());
        assert_eq!(entries.len(), PALETTE.len());
        assert_eq!(entries.last().unwrap().label, "4 other datasets");
    }

    #[test]
    fn points_far_away_are_counted_in_the_title() {
        let points = [
            point(1.0, 1.1, 0),
            point(2.0, 1e6, 0),
            point(1.5, f64::NAN, 0),
        ];
        let plot = ScatterPlot {
            method: "graddot",
            points: &points,
        };
        let svg = final_scatter(&plot).unwrap();
        assert!(svg.contains("2 points, 1 beyond the edge"));
        let empty = ScatterPlot {
            points: &points[2..],
            ..plot
        };
        assert!(matches!(
            final_scatter(&empty),
            Err(PlotError::Nothing { .. })
        ));
    }
}
