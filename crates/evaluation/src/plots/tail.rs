//! The tail of a distribution of scores.

use super::canvas::{
    Entry, Mark, PALETTE, PlotError, TEXT, drawing, legend, legend_height, svg, title,
};
use crate::reports::Tail;
use plotters::prelude::*;
use plotters::series::DashedLineSeries;
use simfluence_core::{Examples, Scores};
use std::ops::Range;

/// Width and height of the axes in pixels.
const BODY: (u32, u32) = (720, 520);
const TITLE_HEIGHT: u32 = 34;
/// Points per curve, at most; more are thinned out evenly on the logarithmic axis.
const MOST_POINTS: usize = 400;
/// Decades below the largest score that are shown.
const DECADES: f64 = 6.0;

/// One distribution of scores.
#[derive(Debug, Clone, PartialEq)]
pub struct TailCurve {
    /// Its name in the legend.
    pub label: String,
    /// The scores, in any order; only positive ones can be drawn.
    pub scores: Vec<f64>,
    /// The power law fitted to it, drawn dashed.
    pub tail: Option<Tail>,
}

/// One curve per group of test examples (by a column, `dataset` for instance): the scores of all
/// training examples for all of the group, with the power law fitted to the share `tail_share` of
/// the positive ones.
///
/// # Errors
/// Other test examples than those of the scores.
pub fn tail_curves(
    scores: &Scores,
    test: &Examples,
    column: &str,
    tail_share: f64,
) -> Result<Vec<TailCurve>, PlotError> {
    let m = scores.test_keys.len();
    if test.keys() != scores.test_keys {
        return Err(PlotError::TestCount {
            what: "scores of other test examples",
            expected: test.len(),
            got: m,
        });
    }
    let (names, group_of) = test.groups(column);
    let curve = |(group, label): (usize, String)| {
        let own = scores.values.iter().enumerate();
        let own = own.filter(|(k, _)| group_of[k % m] == group);
        let scores: Vec<f64> = own.map(|(_, &score)| f64::from(score)).collect();
        TailCurve {
            label,
            tail: Tail::of(&scores, tail_share),
            scores,
        }
    };
    Ok(names.into_iter().enumerate().map(curve).collect())
}

/// What [`tail_plot`] draws.
#[derive(Debug, Clone)]
pub struct TailPlot<'a> {
    /// Title of the picture.
    pub title: &'a str,
    /// The distributions; from the seventh on they share grey.
    pub curves: &'a [TailCurve],
}

/// The complementary distribution on logarithmic axes: the share of all scores that are at least
/// `s`, over `s > 0`. A power law is a straight line, `−α` its slope.
///
/// # Errors
/// No positive score.
///
/// # Reference
/// Grosse et al. 2023 (arXiv 2308.03296), section 5.2.
pub fn tail_plot(plot: &TailPlot<'_>) -> Result<String, PlotError> {
    let curves: Vec<Vec<(f64, f64)>> = plot.curves.iter().map(|c| points(&c.scores)).collect();
    let Some((x, y)) = axes(&curves) else {
        return Err(PlotError::Nothing {
            what: "there is no positive score".into(),
        });
    };
    let entries = entries(plot.curves);
    let footer = legend_height(&entries, BODY.0);
    svg((BODY.0, TITLE_HEIGHT + BODY.1 + footer), |root| {
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let (body, foot) = rest.split_vertically(BODY.1);
        title(&head, plot.title)?;
        let mut chart = ChartBuilder::on(&body)
            .margin(8)
            .margin_right(22)
            .x_label_area_size(46)
            .y_label_area_size(72)
            .build_cartesian_2d((x.start..x.end).log_scale(), (y.start..y.end).log_scale())
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.1))
            .x_labels(8)
            .y_labels(6)
            .x_desc("score s")
            .y_desc("share of scores ≥ s")
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .x_label_formatter(&|v| power(*v))
            .y_label_formatter(&|v| power(*v))
            .draw()
            .map_err(drawing)?;
        for (k, (curve, points)) in plot.curves.iter().zip(curves).enumerate() {
            let color = PALETTE[k.min(PALETTE.len() - 1)];
            let visible = points.into_iter().filter(|p| p.0 >= x.start);
            let line = LineSeries::new(visible, color.stroke_width(2));
            chart.draw_series(line).map_err(drawing)?;
            if let Some(ends) = curve.tail.and_then(|t| fitted_line(&t, curve, &x, &y)) {
                let style = BLACK.mix(0.7).stroke_width(1);
                let line = DashedLineSeries::new(ends, 6, 4, style);
                chart.draw_series(line).map_err(drawing)?;
            }
        }
        legend(&foot, &entries)
    })
}

/// The complementary distribution, from the smallest positive score to the largest.
fn points(scores: &[f64]) -> Vec<(f64, f64)> {
    let mut positive: Vec<f64> = scores
        .iter()
        .copied()
        .filter(|s| s.is_finite() && *s > 0.0)
        .collect();
    positive.sort_by(|a, b| b.total_cmp(a));
    let count = scores.len() as f64;
    let all = positive.len();
    // Ranks that are even on the logarithmic axis: all of the few largest, few of the many small.
    let mut ranks: Vec<usize> = (0..MOST_POINTS)
        .map(|k| {
            let share = k as f64 / (MOST_POINTS - 1) as f64;
            (all as f64).powf(share).round() as usize
        })
        .filter(|rank| (1..=all).contains(rank))
        .collect();
    ranks.dedup();
    let points = ranks.iter().rev();
    points
        .map(|&rank| (positive[rank - 1], rank as f64 / count))
        .collect()
}

type Axes = (Range<f64>, Range<f64>);

fn axes(curves: &[Vec<(f64, f64)>]) -> Option<Axes> {
    let all = || curves.iter().flatten();
    let largest = all().map(|p| p.0).fold(0.0, f64::max);
    let smallest = all().map(|p| p.0).fold(f64::INFINITY, f64::min);
    if largest == 0.0 {
        return None;
    }
    let low = smallest.max(largest * 10f64.powf(-DECADES));
    let rarest = all().map(|p| p.1).fold(1.0, f64::min);
    Some((low / 1.2..largest * 1.5, rarest / 1.5..1.2))
}

/// Both ends of the fitted power law, through the share at its threshold.
fn fitted_line(
    tail: &Tail,
    curve: &TailCurve,
    x: &Range<f64>,
    y: &Range<f64>,
) -> Option<Vec<(f64, f64)>> {
    let share = tail.count as f64 / curve.scores.len() as f64;
    let at = |s: f64| share * (s / tail.threshold).powf(-tail.exponent);
    let inverse = |p: f64| tail.threshold * (p / share).powf(-1.0 / tail.exponent);
    let from = tail.threshold.max(x.start);
    let to = x.end.min(inverse(y.start));
    (from < to).then(|| vec![(from, at(from)), (to, at(to))])
}

fn entries(curves: &[TailCurve]) -> Vec<Entry> {
    let own = if curves.len() > PALETTE.len() {
        PALETTE.len() - 1
    } else {
        curves.len()
    };
    let label = |curve: &TailCurve| match curve.tail {
        Some(tail) => format!("{} (α = {:.2})", curve.label, tail.exponent),
        None => curve.label.clone(),
    };
    let mut labels: Vec<String> = curves[..own].iter().map(label).collect();
    if own < curves.len() {
        labels.push(format!("{} others", curves.len() - own));
    }
    let entry = |(label, color)| Entry {
        label,
        color,
        mark: Mark::Line,
    };
    labels.into_iter().zip(PALETTE).map(entry).collect()
}

/// A label of a logarithmic axis.
fn power(value: f64) -> String {
    if (1e-3..1e4).contains(&value) {
        format!("{}", (value * 1e6).round() / 1e6)
    } else {
        format!("{value:.0e}").replace('-', "−")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_core::Example;

    #[test]
    fn the_curve_gives_the_share_of_scores_that_are_at_least_as_large() {
        let curve = points(&[4.0, -1.0, 1.0, 2.0, 0.0]);
        assert_eq!(curve, [(1.0, 0.6), (2.0, 0.4), (4.0, 0.2)]);
    }

    #[test]
    fn many_scores_are_thinned_but_the_largest_are_all_there() {
        let scores: Vec<f64> = (1..=100_000).map(f64::from).collect();
        let curve = points(&scores);
        assert!(curve.len() <= MOST_POINTS);
        let largest: Vec<f64> = curve.iter().rev().take(3).map(|p| p.0).collect();
        assert_eq!(largest, [1e5, 99_999.0, 99_998.0]);
        assert_eq!(curve[0], (1.0, 1.0));
    }

    #[test]
    fn the_fitted_line_starts_at_the_threshold_with_its_share() {
        let curve = TailCurve {
            label: "c".into(),
            scores: vec![1.0; 100],
            tail: None,
        };
        let tail = Tail {
            count: 10,
            threshold: 2.0,
            exponent: 1.0,
            standard_error: 0.1,
        };
        let ends = fitted_line(&tail, &curve, &(0.1..20.0), &(1e-3..1.2)).unwrap();
        assert_eq!(ends[0], (2.0, 0.1));
        assert!((ends[1].0 - 20.0).abs() < 1e-12 && (ends[1].1 - 0.01).abs() < 1e-12);
    }

    #[test]
    fn a_group_has_the_scores_of_its_test_examples() {
        let test = ["a", "b", "a"].iter().enumerate();
        let test = test.map(|(k, dataset)| Example::new(format!("j{k}"), *dataset));
        let test = Examples::new(test.collect()).unwrap();
        let scores = Scores {
            method: "m".into(),
            train_keys: vec!["i0".into(), "i1".into()],
            test_keys: test.keys(),
            reference_learning_rate: 1.0,
            has_natural_unit: true,
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            layers: Vec::new(),
            provenance: Default::default(),
        };
        let curves = tail_curves(&scores, &test, "dataset", 0.1).unwrap();
        assert_eq!(curves[0].scores, [1.0, 3.0, 4.0, 6.0]);
        assert_eq!(
            (&*curves[1].label, &curves[1].scores[..]),
            ("b", &[2.0, 5.0][..])
        );
        let other = Examples::new(vec![Example::new("j0", "a")]).unwrap();
        assert!(tail_curves(&scores, &other, "dataset", 0.1).is_err());
    }

    #[test]
    fn without_a_positive_score_there_is_nothing_to_draw() {
        let curves = [TailCurve {
            label: "c".into(),
            scores: vec![-1.0, 0.0],
            tail: None,
        }];
        let plot = TailPlot {
            title: "t",
            curves: &curves,
        };
        assert!(matches!(tail_plot(&plot), Err(PlotError::Nothing { .. })));
    }
}
