//! Means over seeds with their confidence intervals, as curves with bands.

use super::canvas::{
    Area, Entry, Mark, PALETTE, PANEL_TITLE, PlotError, TEXT, drawing, fitted, legend,
    legend_height, svg, tick, title,
};
use plotters::prelude::*;
use plotters::series::DashedLineSeries;
use std::ops::Range;

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (460, 360);
const TITLE_HEIGHT: u32 = 34;

/// What [`bands`] draws.
#[derive(Debug, Clone)]
pub struct BandsPlot<'a> {
    /// Title of the picture.
    pub title: &'a str,
    /// Names of the curves, the same in every panel.
    pub curves: &'a [String],
    /// Panels side by side.
    pub panels: Vec<BandPanel<'a>>,
}

/// One set of axes.
#[derive(Debug, Clone)]
pub struct BandPanel<'a> {
    /// Title.
    pub title: &'a str,
    /// What stands at the horizontal axis.
    pub x_axis: &'a str,
    /// What stands at the vertical axis.
    pub y_axis: &'a str,
    /// Points of each curve.
    pub curves: Vec<Vec<BandPoint>>,
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BandPoint {
    /// Where.
    pub x: f64,
    /// Mean.
    pub mean: f64,
    /// Half of the interval's width, at least 0.
    pub half_width: f64,
}

/// A line per curve on a band of its interval; the same colours in every panel.
///
/// # Errors
/// No point; a point that is not finite; another number of curves than names.
pub fn bands(plot: &BandsPlot<'_>) -> Result<String, PlotError> {
    check(plot)?;
    let entries: Vec<Entry> = (plot.curves.iter().enumerate())
        .map(|(k, label)| Entry {
            label: label.clone(),
            color: PALETTE[k % PALETTE.len()],
            // A second round through the colours is dashed.
            mark: if k < PALETTE.len() {
                Mark::Line
            } else {
                Mark::Dashes
            },
        })
        .collect();
    let width = PANEL.0 * plot.panels.len() as u32;
    let footer = legend_height(&entries, width);
    svg((width, TITLE_HEIGHT + PANEL.1 + footer), |root| {
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let (body, foot) = rest.split_vertically(PANEL.1);
        title(&head, plot.title)?;
        let areas = body.split_evenly((1, plot.panels.len()));
        for (area, panel) in areas.iter().zip(&plot.panels) {
            draw(panel, &entries, area)?;
        }
        legend(&foot, &entries)
    })
}

fn check(plot: &BandsPlot<'_>) -> Result<(), PlotError> {
    let nothing = |what: String| Err(PlotError::Nothing { what });
    for panel in &plot.panels {
        if panel.curves.len() != plot.curves.len() {
            return nothing(format!(
                "{} curves for {} names in panel {:?}",
                panel.curves.len(),
                plot.curves.len(),
                panel.title
            ));
        }
        for point in panel.curves.iter().flatten() {
            if ![point.x, point.mean, point.half_width]
                .iter()
                .all(|v| v.is_finite())
            {
                return nothing(format!("a point of panel {:?} is {point:?}", panel.title));
            }
        }
        if panel.curves.iter().all(Vec::is_empty) {
            return nothing(format!("panel {:?} has no points", panel.title));
        }
    }
    if plot.panels.is_empty() {
        return nothing("no panels".to_owned());
    }
    Ok(())
}

fn draw(panel: &BandPanel<'_>, entries: &[Entry], area: &Area<'_>) -> Result<(), PlotError> {
    let points = || panel.curves.iter().flatten();
    let xs = range(points().map(|p| p.x));
    let ends = points().flat_map(|p| [p.mean - p.half_width, p.mean + p.half_width, 0.0]);
    let ys = range(ends);
    let ys = ys.start - 0.04 * (ys.end - ys.start)..ys.end + 0.04 * (ys.end - ys.start);
    let width = area.dim_in_pixel().0 as i32;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(18)
        .caption(
            fitted(panel.title, PANEL_TITLE, width - 20),
            ("sans-serif", PANEL_TITLE),
        )
        .x_label_area_size(42)
        .y_label_area_size(62)
        .build_cartesian_2d(xs.clone(), ys.clone())
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .x_labels(6)
        .y_labels(6)
        .x_desc(panel.x_axis)
        .y_desc(panel.y_axis)
        .label_style(("sans-serif", TEXT))
        .axis_desc_style(("sans-serif", TEXT))
        .x_label_formatter(&|v| tick(*v, xs.end - xs.start))
        .y_label_formatter(&|v| tick(*v, ys.end - ys.start))
        .draw()
        .map_err(drawing)?;
    let zero = LineSeries::new([(xs.start, 0.0), (xs.end, 0.0)], BLACK.mix(0.4));
    chart.draw_series(zero).map_err(drawing)?;
    for (curve, entry) in panel.curves.iter().zip(entries) {
        let upper = curve.iter().map(|p| (p.x, p.mean + p.half_width));
        let lower = curve.iter().rev().map(|p| (p.x, p.mean - p.half_width));
        let band = Polygon::new(
            upper.chain(lower).collect::<Vec<_>>(),
            entry.color.mix(0.18),
        );
        chart.draw_series([band]).map_err(drawing)?;
    }
    for (curve, entry) in panel.curves.iter().zip(entries) {
        let means = curve.iter().map(|p| (p.x, p.mean));
        let style = entry.color.stroke_width(2);
        match entry.mark {
            Mark::Dashes => chart
                .draw_series(DashedLineSeries::new(means, 7, 4, style))
                .map_err(drawing)?,
            _ => chart
                .draw_series(LineSeries::new(means, style))
                .map_err(drawing)?,
        };
    }
    Ok(())
}

/// From the smallest to the largest value, never empty.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let ends = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    ends.0..ends.1.max(ends.0 + 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(mean: f64) -> BandsPlot<'static> {
        let point = |x: f64| BandPoint {
            x,
            mean: mean * x,
            half_width: 0.5,
        };
        let curves = Box::leak(Box::new(["first <&>".to_owned()]));
        BandsPlot {
            title: "influence",
            curves,
            panels: vec![BandPanel {
                title: "UnTrac",
                x_axis: "epochs",
                y_axis: "nats",
                curves: vec![vec![point(0.0), point(1.0), point(2.0)]],
            }],
        }
    }

    #[test]
    fn a_curve_has_a_band_and_a_name() {
        let svg = bands(&plot(1.0)).unwrap();
        assert!(svg.contains("<polygon") && svg.contains("<polyline"));
        for text in ["first &lt;&amp;&gt;", "epochs", "nats", "UnTrac"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_said() {
        let message = bands(&plot(f64::NAN)).unwrap_err().to_string();
        assert!(message.contains("NaN"), "{message}");
        let mut empty = plot(1.0);
        empty.panels[0].curves[0].clear();
        let message = bands(&empty).unwrap_err().to_string();
        assert!(message.contains("no points"), "{message}");
    }
}
