//! What the pictures share: colours, legends, panels of curves.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::series::DashedLineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Okabe & Ito 2008, in the order of contrast on white; black is for what is real.
pub(super) const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
];

pub(super) const LOSS_AXIS: &str = "loss (nats per target token)";
pub(super) const STEP_AXIS: &str = "step";

/// Font sizes in plotters' measure; the SVG's are smaller by 1.24.
pub(super) const TITLE: u32 = 20;
pub(super) const PANEL_TITLE: u32 = 17;
pub(super) const TEXT: u32 = 15;

const LEGEND_ROW: i32 = 22;
const LEGEND_MARK: i32 = 34;
const LEGEND_GAP: i32 = 22;

/// Draws into SVG text.
pub(super) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), PlotError>,
) -> Result<String, PlotError> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        draw(&root)?;
        root.present().map_err(drawing)?;
    }
    Ok(text)
}

pub(super) fn drawing(error: impl std::fmt::Display) -> PlotError {
    PlotError::Drawing {
        problem: error.to_string(),
    }
}

/// Upper estimate of the width of a text in pixels.
pub(super) fn text_width(text: &str, size: u32) -> i32 {
    (text.chars().count() as f64 * f64::from(size) / 1.24 * 0.62).ceil() as i32
}

/// The text cut to `width` pixels, with an ellipsis where something is missing.
pub(super) fn fitted(text: &str, size: u32, width: i32) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text_width(&line, size) <= width {
        return line;
    }
    let mut cut = line;
    while !cut.is_empty() && text_width(&cut, size) + text_width("…", size) > width {
        cut.pop();
    }
    format!("{}…", cut.trim_end())
}

/// Writes text with the given anchor at a pixel.
pub(super) fn write(
    area: &Area<'_>,
    text: &str,
    size: u32,
    anchor: (HPos, VPos),
    at: (i32, i32),
) -> Result<(), PlotError> {
    let style = TextStyle::from(("sans-serif", size).into_font())
        .color(&BLACK)
        .pos(Pos::new(anchor.0, anchor.1));
    area.draw_text(text, &style, at).map_err(drawing)
}

/// The picture's title, cut to its width.
pub(super) fn title(area: &Area<'_>, text: &str) -> Result<(), PlotError> {
    let width = area.dim_in_pixel().0 as i32;
    let text = fitted(text, TITLE, width - 20);
    write(
        area,
        &text,
        TITLE,
        (HPos::Center, VPos::Center),
        (width / 2, 18),
    )
}

/// How an entry of a legend looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mark {
    Line,
    Dashes,
    Dot,
}

/// One entry of a legend.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) label: String,
    pub(super) color: RGBColor,
    pub(super) mark: Mark,
}

/// Where each entry of a legend stands, line by line within `width`.
fn legend_places(entries: &[Entry], width: i32) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (0, 0);
    let mut places = Vec::with_capacity(entries.len());
    for entry in entries {
        let needed = LEGEND_MARK + text_width(&entry.label, TEXT);
        if x > 0 && x + needed > width {
            (x, y) = (0, y + LEGEND_ROW);
        }
        places.push((x, y));
        x += needed + LEGEND_GAP;
    }
    places
}

/// Height in pixels that [`legend`] needs.
pub(super) fn legend_height(entries: &[Entry], width: u32) -> u32 {
    let last = legend_places(entries, width as i32 - 2 * LEGEND_GAP)
        .last()
        .copied();
    last.map_or(0, |(_, y)| (y + LEGEND_ROW) as u32 + 8)
}

/// Draws the entries one after the other, in as many lines as they need.
pub(super) fn legend(area: &Area<'_>, entries: &[Entry]) -> Result<(), PlotError> {
    let width = area.dim_in_pixel().0 as i32 - 2 * LEGEND_GAP;
    for (entry, (x, y)) in entries.iter().zip(legend_places(entries, width)) {
        let (x, y) = (x + LEGEND_GAP, y + LEGEND_ROW / 2);
        draw_mark(area, entry, (x, y))?;
        let label = fitted(&entry.label, TEXT, width - LEGEND_MARK);
        let at = (x + LEGEND_MARK, y);
        write(area, &label, TEXT, (HPos::Left, VPos::Center), at)?;
    }
    Ok(())
}

fn draw_mark(area: &Area<'_>, entry: &Entry, (x, y): (i32, i32)) -> Result<(), PlotError> {
    let style = entry.color.stroke_width(2);
    let line = |from: i32, to: i32| PathElement::new(vec![(x + from, y), (x + to, y)], style);
    match entry.mark {
        Mark::Line => area.draw(&line(0, 26)).map_err(drawing),
        Mark::Dashes => [(0, 7), (10, 17), (20, 27)]
            .into_iter()
            .try_for_each(|(from, to)| area.draw(&line(from, to)).map_err(drawing)),
        Mark::Dot => area
            .draw(&Circle::new((x + 20, y), 5, entry.color.filled()))
            .map_err(drawing),
    }
}

/// Losses over steps.
pub(super) type Points = Vec<(u32, f64)>;

/// A curve of a panel, with the look of its legend entry.
pub(super) struct Curve<'a> {
    pub(super) points: Points,
    pub(super) entry: &'a Entry,
}

/// One set of axes with curves over steps.
pub(super) struct Panel<'a> {
    pub(super) title: String,
    pub(super) curves: Vec<Curve<'a>>,
    /// Step, lower and upper end of a band behind the curves; empty: none.
    pub(super) band: Vec<(u32, f64, f64)>,
    pub(super) losses: Range<f64>,
}

impl Panel<'_> {
    /// Draws the panel; what lies outside of its range of losses is cut.
    pub(super) fn draw(&self, area: &Area<'_>) -> Result<(), PlotError> {
        let steps = self
            .curves
            .iter()
            .flat_map(|c| c.points.iter().map(|p| p.0));
        let last = steps.max().unwrap_or(1).max(1);
        let width = area.dim_in_pixel().0 as i32;
        let title = fitted(&self.title, PANEL_TITLE, width - 20);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(18)
            .caption(title, ("sans-serif", PANEL_TITLE))
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d(0..last, self.losses.clone())
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.1))
            .x_labels(6)
            .y_labels(6)
            .x_desc(STEP_AXIS)
            .y_desc(LOSS_AXIS)
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .y_label_formatter(&|v| tick(*v, self.losses.end - self.losses.start))
            .draw()
            .map_err(drawing)?;
        if !self.band.is_empty() {
            let inside = |loss: f64| loss.clamp(self.losses.start, self.losses.end);
            let upper = self
                .band
                .iter()
                .map(|&(step, _, high)| (step, inside(high)));
            let lower = self.band.iter().rev();
            let lower = lower.map(|&(step, low, _)| (step, inside(low)));
            let outline: Points = upper.chain(lower).collect();
            chart
                .draw_series([Polygon::new(outline, PALETTE[0].mix(0.15))])
                .map_err(drawing)?;
        }
        for curve in &self.curves {
            let style = curve.entry.color.stroke_width(2);
            for piece in clip(&curve.points, &self.losses) {
                match curve.entry.mark {
                    Mark::Dashes => chart
                        .draw_series(DashedLineSeries::new(piece, 7, 4, style))
                        .map_err(drawing)?,
                    _ => chart
                        .draw_series(LineSeries::new(piece, style))
                        .map_err(drawing)?,
                };
            }
        }
        Ok(())
    }
}

/// A range that shows every real loss, and the simulated ones up to `beyond` times the range of
/// the real ones above or below it.
pub(super) fn loss_range(
    real: impl Iterator<Item = f64>,
    simulated: impl Iterator<Item = f64>,
    beyond: f64,
) -> Range<f64> {
    let finite = |low_high: (f64, f64), v: f64| {
        if v.is_finite() {
            (low_high.0.min(v), low_high.1.max(v))
        } else {
            low_high
        }
    };
    let (low, high) = real.fold((0.0, 0.0), finite);
    let (all_low, all_high) = simulated.fold((low, high), finite);
    let reach = (high - low).max(1e-6);
    let low = all_low.max(low - beyond * reach);
    let high = all_high.min(high + beyond * reach);
    let high = high.max(low + 1e-3);
    low..high + 0.05 * (high - low)
}

/// A tick label with as many places as the axis needs.
pub(super) fn tick(value: f64, span: f64) -> String {
    let places = (1 - span.abs().max(1e-9).log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.places$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

/// The parts of a curve inside a range of losses; cut at its border (to the nearest step), and
/// broken where a loss is not finite.
fn clip(points: &[(u32, f64)], losses: &Range<f64>) -> Vec<Points> {
    let inside = |v: f64| v >= losses.start && v <= losses.end;
    let mut pieces: Vec<Points> = vec![Vec::new()];
    for (k, &(step, loss)) in points.iter().enumerate() {
        let near = [k.checked_sub(1), Some(k), Some(k + 1)];
        let near = near.into_iter().flatten().filter_map(|k| points.get(k));
        let visible = near.clone().any(|p| inside(p.1)) && !loss.is_nan();
        if visible {
            let place = loss.clamp(losses.start, losses.end);
            pieces
                .last_mut()
                .expect("starts with one")
                .push((step, place));
        }
        if !visible || !inside(loss) {
            pieces.push(Vec::new());
            // A curve that comes back starts at the border.
            let returns = points.get(k + 1).is_some_and(|p| inside(p.1));
            if visible && returns {
                let place = loss.clamp(losses.start, losses.end);
                pieces.last_mut().expect("just pushed").push((step, place));
            }
        }
    }
    pieces.retain(|piece| piece.len() > 1);
    pieces
}

/// Why a picture cannot be drawn.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlotError {
    /// There is nothing to show.
    #[error("there is nothing to draw: {what}")]
    Nothing {
        /// What is missing.
        what: String,
    },
    /// Parts over different test examples.
    #[error("{what}: {got} for {expected} test examples")]
    TestCount {
        /// What does not fit.
        what: &'static str,
        /// Test examples of the real run.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// Another number of values than cells.
    #[error("{got} values for {rows} rows and {columns} columns")]
    Cells {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Values.
        got: usize,
    },
    /// The drawing library.
    #[error("drawing failed: {problem}")]
    Drawing {
        /// What it says.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_cut_at_the_border_and_comes_back() {
        let points = vec![
            (0, 1.0),
            (1, 2.0),
            (2, 9.0),
            (3, 9.0),
            (4, 9.0),
            (5, 1.0),
            (6, 1.0),
        ];
        let pieces = clip(&points, &(0.0..3.0));
        let expected = vec![
            vec![(0, 1.0), (1, 2.0), (2, 3.0)],
            vec![(4, 3.0), (5, 1.0), (6, 1.0)],
        ];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn a_nan_breaks_a_curve() {
        let points = vec![(0, 1.0), (1, 2.0), (2, f64::NAN), (3, 1.0), (4, 1.0)];
        let pieces = clip(&points, &(0.0..3.0));
        assert_eq!(
            pieces,
            vec![vec![(0, 1.0), (1, 2.0)], vec![(3, 1.0), (4, 1.0)]]
        );
    }

    #[test]
    fn long_texts_are_cut_to_their_place() {
        let cut = fitted("a very long key of a test example", TEXT, 100);
        assert!(cut.ends_with('…') && text_width(&cut, TEXT) <= 100, "{cut}");
        assert_eq!(fitted("short\nkey", TEXT, 100), "short key");
    }

    #[test]
    fn a_simulation_that_explodes_does_not_flatten_the_real_curve() {
        let range = loss_range(
            [1.0, 3.0].into_iter(),
            [1e9, -1e9, f64::NAN].into_iter(),
            0.5,
        );
        assert!(range.end < 10.0 && range.start > -2.0, "{range:?}");
    }
}
