//! Scores as a heat map, a pairwise matrix for instance.

use super::canvas::{Area, PlotError, TEXT, drawing, fitted, svg, text_width, tick, title, write};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

const TITLE_HEIGHT: u32 = 34;
const AXIS_HEIGHT: u32 = 28;
const BAR_WIDTH: u32 = 110;
/// Side of the matrix in pixels, at most.
const BODY: u32 = 640;
/// Largest side of a cell in pixels.
const LARGEST_CELL: u32 = 24;
/// More rows or columns than this are averaged in blocks.
const MOST_CELLS: usize = 256;
/// Share of the cells whose size the colours span; larger ones have the last colour.
const SPANNED: f64 = 0.99;

/// Okabe & Ito's vermilion and blue for what lowers and what raises the loss.
const POSITIVE: RGBColor = RGBColor(213, 94, 0);
const NEGATIVE: RGBColor = RGBColor(0, 114, 178);

/// What [`heat_map`] draws.
///
/// Labels are groups: neighbours with the same label share it, and lines separate the groups.
#[derive(Debug, Clone)]
pub struct HeatMapPlot<'a> {
    /// Title of the picture.
    pub title: &'a str,
    /// What the rows are, `trained on` for instance.
    pub row_axis: &'a str,
    /// What the columns are.
    pub column_axis: &'a str,
    /// One label per row.
    pub row_labels: &'a [String],
    /// One label per column.
    pub column_labels: &'a [String],
    /// Row-major `[rows × columns]`.
    pub values: &'a [f32],
}

/// A cell per pair, white at 0, vermilion above and blue below; the colours span 99 % of the
/// values' sizes, so that a few extreme ones do not make all others look like 0. More than 256
/// rows or columns are averaged in blocks, and the title says so.
///
/// # Errors
/// No value; another number of values than rows times columns; a value that is not finite.
pub fn heat_map(plot: &HeatMapPlot<'_>) -> Result<String, PlotError> {
    let (rows, columns) = (plot.row_labels.len(), plot.column_labels.len());
    if plot.values.len() != rows * columns {
        return Err(PlotError::Cells {
            rows,
            columns,
            got: plot.values.len(),
        });
    }
    let not_finite = plot.values.iter().find(|v| !v.is_finite());
    if plot.values.is_empty() || not_finite.is_some() {
        let what = not_finite.map_or("no values".into(), |v| format!("a value is {v}"));
        return Err(PlotError::Nothing { what });
    }
    let grid = Grid::of(plot);
    let limit = limit(&grid.values);
    let cell = (BODY / grid.rows.max(grid.columns) as u32).clamp(1, LARGEST_CELL);
    let (width, height) = (cell * grid.columns as u32, cell * grid.rows as u32);
    let label_width = label_width(&grid.row_groups);
    let column_height = label_width_of(&grid.column_groups).min(150);
    let left = AXIS_HEIGHT as i32 + label_width;
    let top = (TITLE_HEIGHT + AXIS_HEIGHT) as i32 + column_height;
    let size = (
        (left as u32 + width + BAR_WIDTH).max(420),
        (top as u32 + height + 16).max(260),
    );
    svg(size, |root| {
        let note = if grid.block > 1 {
            format!(" (blocks of {0} × {0} averaged)", grid.block)
        } else {
            String::new()
        };
        title(root, &format!("{}{note}", plot.title))?;
        grid.draw(root, (left, top), cell as i32, limit)?;
        grid.draw_labels(root, (left, top), cell as i32, label_width, column_height)?;
        let middle = (left + width as i32 / 2, (TITLE_HEIGHT + 10) as i32);
        let column_axis = fitted(plot.column_axis, TEXT, size.0 as i32 - left);
        write(
            root,
            &column_axis,
            TEXT,
            (HPos::Center, VPos::Center),
            middle,
        )?;
        let style = TextStyle::from(("sans-serif", TEXT).into_font())
            .transform(FontTransform::Rotate270)
            .color(&BLACK);
        let length = text_width(plot.row_axis, TEXT);
        let at = (6, top + (height as i32 + length) / 2);
        root.draw_text(plot.row_axis, &style, at).map_err(drawing)?;
        color_bar(root, (left + width as i32 + 20, top), limit, &grid.values)
    })
}

/// The values as they are drawn.
struct Grid {
    rows: usize,
    columns: usize,
    block: usize,
    values: Vec<f64>,
    row_groups: Vec<Group>,
    column_groups: Vec<Group>,
}

/// Neighbours with the same label.
#[derive(Debug, PartialEq)]
struct Group {
    label: String,
    from: usize,
    to: usize,
}

impl Grid {
    fn of(plot: &HeatMapPlot<'_>) -> Self {
        let (n, m) = (plot.row_labels.len(), plot.column_labels.len());
        let block = n.max(m).div_ceil(MOST_CELLS);
        let (rows, columns) = (n.div_ceil(block), m.div_ceil(block));
        let mut sums = vec![(0.0, 0.0); rows * columns];
        for (k, &value) in plot.values.iter().enumerate() {
            let sum: &mut (f64, f64) = &mut sums[(k / m / block) * columns + k % m / block];
            *sum = (sum.0 + f64::from(value), sum.1 + 1.0);
        }
        Self {
            rows,
            columns,
            block,
            values: sums.into_iter().map(|(sum, count)| sum / count).collect(),
            row_groups: groups(plot.row_labels, block),
            column_groups: groups(plot.column_labels, block),
        }
    }

    fn draw(
        &self,
        area: &Area<'_>,
        (left, top): (i32, i32),
        cell: i32,
        limit: f64,
    ) -> Result<(), PlotError> {
        for (k, &value) in self.values.iter().enumerate() {
            let (row, column) = ((k / self.columns) as i32, (k % self.columns) as i32);
            let (x, y) = (left + column * cell, top + row * cell);
            let color = color(value, limit);
            if color != WHITE {
                let rectangle = Rectangle::new([(x, y), (x + cell, y + cell)], color.filled());
                area.draw(&rectangle).map_err(drawing)?;
            }
        }
        let (right, bottom) = (
            left + self.columns as i32 * cell,
            top + self.rows as i32 * cell,
        );
        let border = Rectangle::new([(left, top), (right, bottom)], BLACK.mix(0.5));
        area.draw(&border).map_err(drawing)?;
        let line = |from, to| PathElement::new(vec![from, to], BLACK.mix(0.25));
        for group in self.separated(&self.row_groups, cell) {
            let y = top + group.from as i32 * cell;
            area.draw(&line((left, y), (right, y))).map_err(drawing)?;
        }
        for group in self.separated(&self.column_groups, cell) {
            let x = left + group.from as i32 * cell;
            area.draw(&line((x, top), (x, bottom))).map_err(drawing)?;
        }
        Ok(())
    }

    /// The groups before which a line stands: all but the first, if they are not too narrow.
    fn separated<'a>(&self, groups: &'a [Group], cell: i32) -> impl Iterator<Item = &'a Group> {
        let wide = groups
            .iter()
            .all(|g| (g.to - g.from) as i32 * cell >= 6 && g.to - g.from > 1);
        groups.iter().skip(1).filter(move |_| wide)
    }

    fn draw_labels(
        &self,
        area: &Area<'_>,
        (left, top): (i32, i32),
        cell: i32,
        label_width: i32,
        column_height: i32,
    ) -> Result<(), PlotError> {
        let middle = |group: &Group| (group.from + group.to) as i32 * cell / 2;
        for group in legible(&self.row_groups, cell) {
            let label = fitted(&group.label, TEXT, label_width - 8);
            let at = (left - 6, top + middle(group));
            write(area, &label, TEXT, (HPos::Right, VPos::Center), at)?;
        }
        for group in legible(&self.column_groups, cell) {
            let label = fitted(&group.label, TEXT, column_height - 4);
            let style = TextStyle::from(("sans-serif", TEXT).into_font())
                .transform(FontTransform::Rotate270)
                .color(&BLACK);
            // Rotated text starts at its lower left corner.
            let at = (left + middle(group) - 7, top - 6);
            area.draw_text(&label, &style, at).map_err(drawing)?;
        }
        Ok(())
    }
}

fn groups(labels: &[String], block: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (cell, members) in labels.chunks(block).enumerate() {
        match groups.last_mut() {
            Some(group) if group.label == members[0] => group.to = cell + 1,
            _ => groups.push(Group {
                label: members[0].clone(),
                from: cell,
                to: cell + 1,
            }),
        }
    }
    groups
}

/// The groups whose labels have room, in order.
fn legible(groups: &[Group], cell: i32) -> Vec<&Group> {
    let mut end = i32::MIN;
    let mut chosen = Vec::new();
    for group in groups {
        let middle = (group.from + group.to) as i32 * cell / 2;
        if middle - 8 >= end {
            chosen.push(group);
            end = middle + 8;
        }
    }
    chosen
}

fn label_width_of(groups: &[Group]) -> i32 {
    let widths = groups.iter().map(|g| text_width(&g.label, TEXT));
    widths.max().unwrap_or(0) + 12
}

fn label_width(groups: &[Group]) -> i32 {
    label_width_of(groups).clamp(30, 180)
}

/// The size that 99 % of the values do not exceed; positive.
fn limit(values: &[f64]) -> f64 {
    let mut sizes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let largest = sizes.last().copied().unwrap_or(0.0);
    let spanned = crate::bootstrap::quantile(&sizes, SPANNED);
    if spanned > 0.0 {
        spanned
    } else if largest > 0.0 {
        largest
    } else {
        1.0
    }
}

fn color(value: f64, limit: f64) -> RGBColor {
    let strength = (value.abs() / limit).min(1.0);
    let end = if value > 0.0 { POSITIVE } else { NEGATIVE };
    let mix = |to: u8| (255.0 + strength * (f64::from(to) - 255.0)).round() as u8;
    RGBColor(mix(end.0), mix(end.1), mix(end.2))
}

fn color_bar(
    area: &Area<'_>,
    (x, y): (i32, i32),
    limit: f64,
    values: &[f64],
) -> Result<(), PlotError> {
    const STEPS: i32 = 50;
    const STEP: i32 = 3;
    for step in 0..STEPS {
        let value = limit * (1.0 - 2.0 * (f64::from(step) + 0.5) / f64::from(STEPS));
        let (top, bottom) = (y + step * STEP, y + (step + 1) * STEP);
        let rectangle = Rectangle::new([(x, top), (x + 16, bottom)], color(value, limit).filled());
        area.draw(&rectangle).map_err(drawing)?;
    }
    let border = Rectangle::new([(x, y), (x + 16, y + STEPS * STEP)], BLACK.mix(0.5));
    area.draw(&border).map_err(drawing)?;
    let beyond = |sign: f64| values.iter().any(|v| sign * v > limit * (1.0 + 1e-9));
    for (share, sign, prefix) in [(0, 1.0, "≥ "), (25, 0.0, ""), (50, -1.0, "≤ ")] {
        let number = scale_label(sign * limit, limit);
        let beyond = sign != 0.0 && beyond(sign);
        let text = format!("{}{number}", if beyond { prefix } else { "" });
        let at = (x + 22, y + share * STEP);
        write(area, &text, TEXT, (HPos::Left, VPos::Center), at)?;
    }
    Ok(())
}

fn scale_label(value: f64, limit: f64) -> String {
    if value == 0.0 || (1e-3..1e5).contains(&limit) {
        tick(value, limit)
    } else {
        format!("{value:.1e}").replace('-', "−")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&t| t.to_owned()).collect()
    }

    fn plot<'a>(rows: &'a [String], columns: &'a [String], values: &'a [f32]) -> HeatMapPlot<'a> {
        HeatMapPlot {
            title: "title",
            row_axis: "trained on",
            column_axis: "measured",
            row_labels: rows,
            column_labels: columns,
            values,
        }
    }

    #[test]
    fn white_is_zero_and_the_ends_are_the_two_colours() {
        assert_eq!(color(0.0, 2.0), WHITE);
        assert_eq!(color(2.0, 2.0), POSITIVE);
        assert_eq!(color(-9.0, 2.0), NEGATIVE);
    }

    #[test]
    fn an_extreme_value_does_not_bleach_all_others() {
        let mut values = vec![1.0; 999];
        values.push(1e6);
        assert!(limit(&values) < 2.0);
        assert_eq!(limit(&[0.0; 4]), 1.0);
        let mut sparse = vec![0.0; 999];
        sparse.push(3.0);
        assert_eq!(limit(&sparse), 3.0);
    }

    #[test]
    fn neighbours_with_one_label_are_a_group() {
        let groups = groups(&labels(&["a", "a", "b", "a"]), 1);
        let ends: Vec<_> = groups.iter().map(|g| (&*g.label, g.from, g.to)).collect();
        assert_eq!(ends, [("a", 0, 2), ("b", 2, 3), ("a", 3, 4)]);
    }

    #[test]
    fn large_matrices_are_averaged_in_blocks() {
        let rows = vec!["r".to_owned(); 3];
        let columns = vec!["c".to_owned(); 300];
        let values: Vec<f32> = (0..900).map(|k| (k % 300) as f32).collect();
        let grid = Grid::of(&plot(&rows, &columns, &values));
        assert_eq!((grid.block, grid.rows, grid.columns), (2, 2, 150));
        assert_eq!(grid.values[1], 2.5);
        let svg = heat_map(&plot(&rows, &columns, &values)).unwrap();
        assert!(svg.contains("blocks of 2 × 2 averaged"));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let one = labels(&["a"]);
        assert!(matches!(
            heat_map(&plot(&one, &one, &[f32::NAN])),
            Err(PlotError::Nothing { .. })
        ));
        assert!(heat_map(&plot(&one, &one, &[1.0, 2.0])).is_err());
        assert!(heat_map(&plot(&[], &[], &[])).is_err());
    }
}
