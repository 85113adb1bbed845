//! All-steps MSE by method.

use super::canvas::{
    Area, PALETTE, PlotError, TEXT, drawing, fitted, svg, text_width, tick, title, write,
};
use crate::compare::{Block, Estimate};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::ops::Range;

const WIDTH: u32 = 900;
const ROW: u32 = 30;
const TITLE_HEIGHT: u32 = 34;
const AXIS_HEIGHT: u32 = 60;
/// Where largest and smallest value differ by more than this, the axis is logarithmic.
const LOG_SPAN: f64 = 30.0;

/// A horizontal bar per method of a block, the best on top, with the bootstrap interval as
/// whiskers; the axis is logarithmic where the values span more than a factor of 30.
///
/// # Errors
/// No method with a finite MSE.
pub fn mse_bars(block: &Block) -> Result<String, PlotError> {
    let mut bars: Vec<(&str, Estimate)> = block
        .rows
        .iter()
        .filter_map(|row| Some((row.method.as_str(), row.mse?)))
        .filter(|(_, mse)| mse.value.is_finite())
        .collect();
    bars.sort_by(|a, b| a.1.value.total_cmp(&b.1.value));
    if bars.is_empty() {
        return Err(PlotError::Nothing {
            what: format!("no method has a finite error in block {:?}", block.name),
        });
    }
    let left_out = block.rows.len() - bars.len();
    let height = TITLE_HEIGHT + ROW * bars.len() as u32 + AXIS_HEIGHT;
    svg((WIDTH, height), |root| {
        let (head, body) = root.split_vertically(TITLE_HEIGHT);
        let note = match left_out {
            0 => String::new(),
            count => format!(", {count} not finite left out"),
        };
        let runs = block.runs.len();
        title(
            &head,
            &format!("All-steps MSE: {} ({runs} runs{note})", block.name),
        )?;
        let (axis, logarithmic) = axis(&bars);
        if logarithmic {
            draw_chart(&body, &bars, (axis.start..axis.end).log_scale(), &axis)
        } else {
            draw_chart(&body, &bars, axis.clone(), &axis)
        }
    })
}

/// The axis, and whether it is logarithmic.
fn axis(bars: &[(&str, Estimate)]) -> (Range<f64>, bool) {
    let ends = bars.iter().flat_map(|(_, mse)| {
        let interval = mse.interval;
        [
            Some(mse.value),
            interval.map(|i| i.low),
            interval.map(|i| i.high),
        ]
    });
    let ends: Vec<f64> = ends.flatten().filter(|v| v.is_finite()).collect();
    let high = ends.iter().copied().fold(0.0, f64::max).max(1e-9);
    let values = bars.iter().map(|(_, mse)| mse.value).filter(|&v| v > 0.0);
    let (least, most) = values.fold((f64::INFINITY, 0.0), |(l, h), v| (v.min(l), v.max(h)));
    if most > LOG_SPAN * least {
        let positive = ends.iter().copied().filter(|&v| v > 0.0);
        let low = positive.fold(least, f64::min).max(least / 10.0);
        let start = 10f64.powf((low / 1.5).log10().floor());
        return (start..high * 3.0, true);
    }
    (0.0..high * 1.18, false)
}

fn draw_chart<X>(
    area: &Area<'_>,
    bars: &[(&str, Estimate)],
    coordinates: X,
    axis: &Range<f64>,
) -> Result<(), PlotError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let names = bars.iter().map(|(name, _)| text_width(name, TEXT)).max();
    let label_width = names.unwrap_or(0).clamp(60, WIDTH as i32 / 3) + 16;
    let count = bars.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(label_width)
        .build_cartesian_2d(coordinates, 0.0..count)
        .map_err(drawing)?;
    let span = axis.end - axis.start;
    let logarithmic = axis.start > 0.0;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .y_labels(0)
        .x_labels(8)
        .x_desc("all-steps MSE (nats²)")
        .label_style(("sans-serif", TEXT))
        .axis_desc_style(("sans-serif", TEXT))
        .x_label_formatter(&|v| {
            if logarithmic {
                decade(*v)
            } else {
                tick(*v, span)
            }
        })
        .draw()
        .map_err(drawing)?;
    for (row, (name, mse)) in bars.iter().enumerate() {
        let middle = count - row as f64 - 0.5;
        let value = mse.value.max(axis.start);
        let bar = Rectangle::new(
            [(axis.start, middle - 0.32), (value, middle + 0.32)],
            PALETTE[0].mix(0.75).filled(),
        );
        chart.draw_series([bar]).map_err(drawing)?;
        let mut end = value;
        if let Some(interval) = mse.interval {
            let (low, high) = (interval.low.max(axis.start), interval.high.min(axis.end));
            end = end.max(high);
            let whisker = |points: Vec<(f64, f64)>| PathElement::new(points, BLACK.stroke_width(1));
            chart
                .draw_series([
                    whisker(vec![(low, middle), (high, middle)]),
                    whisker(vec![(low, middle - 0.15), (low, middle + 0.15)]),
                    whisker(vec![(high, middle - 0.15), (high, middle + 0.15)]),
                ])
                .map_err(drawing)?;
        }
        let (left, y) = chart.backend_coord(&(axis.start, middle));
        let (right, _) = chart.backend_coord(&(end, middle));
        let top = area.get_base_pixel();
        let name = fitted(name, TEXT, label_width - 12);
        let at = (left - top.0 - 8, y - top.1);
        write(area, &name, TEXT, (HPos::Right, VPos::Center), at)?;
        let text = crate::table::number(mse.value, mse.value);
        let at = (right - top.0 + 6, y - top.1);
        write(area, &text, TEXT, (HPos::Left, VPos::Center), at)?;
    }
    Ok(())
}

/// A label of a logarithmic axis.
fn decade(value: f64) -> String {
    if (1e-3..1e5).contains(&value) {
        format!("{}", (value * 1e6).round() / 1e6)
    } else {
        format!("{value:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Interval;

    fn bar(value: f64, low: f64, high: f64) -> (&'static str, Estimate) {
        let interval = Some(Interval { low, high });
        ("method", Estimate { value, interval })
    }

    #[test]
    fn a_wide_span_makes_the_axis_logarithmic() {
        assert!(!axis(&[bar(1.0, 0.5, 2.0), bar(20.0, 10.0, 30.0)]).1);
        let (range, logarithmic) = axis(&[bar(0.5, 0.0, 0.9), bar(20.0, 10.0, 30.0)]);
        assert!(logarithmic && range.start > 0.0 && range.end > 30.0);
    }

    #[test]
    fn a_perfect_method_does_not_break_a_logarithmic_axis() {
        let (range, logarithmic) = axis(&[
            bar(0.0, 0.0, 0.0),
            bar(1.0, 0.5, 2.0),
            bar(100.0, 50.0, 150.0),
        ]);
        assert!(logarithmic && range.start > 0.0 && range.start.is_finite());
    }
}
