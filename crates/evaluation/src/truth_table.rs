//! Agreement with leave-out truth as text.

use crate::table::{add_row, new_table, set_header, show};
use crate::truth::{Agreement, LdsReport, LeaveOutReport, TruthReport};
use std::fmt::Write;

/// Name of the row of what one real retraining says about another.
const CEILING: &str = "ceiling: one seed by another";

const MEAN_IS_LESS_NOISY: &str = "The mean over seeds has less chance in it than one seed, so that a method may pass the ceiling.\n";

/// All parts, for people.
pub fn leave_out_text(report: &LeaveOutReport) -> String {
    let mut out = format!(
        "Leave-out truth: run {}, really trained again without parts of its data\n",
        report.reference_run
    );
    for truth in &report.truth {
        out.push_str(&truth_text(truth));
    }
    if let Some(lds) = &report.lds {
        out.push_str(&lds_text(lds));
    }
    out
}

/// One row per method, and what could be reached at most.
pub fn truth_text(report: &TruthReport) -> String {
    let mut table = new_table();
    let headings = report
        .levels
        .iter()
        .flat_map(|level| [format!("{}: r", level.level), "ρ".to_owned()]);
    set_header(&mut table, std::iter::once(String::new()).chain(headings));
    let both = |agreement: Option<Agreement>| {
        [
            show(agreement.and_then(|a| a.pearson), None),
            show(agreement.and_then(|a| a.spearman), None),
        ]
    };
    for method in 0..report.levels.first().map_or(0, |l| l.methods.len()) {
        let of_level = |level: &crate::LevelReport| both(Some(level.methods[method].agreement));
        let name = &report.levels[0].methods[method].method;
        add_row(&mut table, name, report.levels.iter().flat_map(of_level));
    }
    let between = report.levels.iter().flat_map(|l| both(l.seed_to_seed));
    add_row(&mut table, CEILING, between);
    let attainable = report
        .levels
        .iter()
        .flat_map(|level| [show(level.attainable, None), String::new()]);
    add_row(&mut table, "expected of a perfect method", attainable);
    let mut out = format!(
        "\nEffect of leaving out each of {} units ({}), {}\n{table}\n",
        report.units,
        report.unit,
        counted(report.seeds, "seed"),
    );
    out.push_str("r: Pearson, ρ: Spearman, over the units, with the mean over seeds.");
    if report.levels.first().is_some_and(|l| !l.methods.is_empty()) {
        out.push_str(" A method's value of a unit: its scores times the exposures, summed.");
    }
    out.push('\n');
    out.push_str(MEAN_IS_LESS_NOISY);
    for level in &report.levels {
        let undefined = |a: &Agreement| a.defined < a.columns && a.defined > 0;
        for method in level.methods.iter().filter(|m| undefined(&m.agreement)) {
            let Agreement {
                defined, columns, ..
            } = method.agreement;
            let _ = writeln!(
                out,
                "{}, {}: over the {defined} of {columns} in which both sides vary.",
                method.method, level.level
            );
        }
    }
    if report.units < 10 {
        let _ = writeln!(
            out,
            "With {} units a correlation says little: chance alone often gives a large one.",
            report.units
        );
    }
    out
}

/// One row per method, and what could be reached at most.
pub fn lds_text(report: &LdsReport) -> String {
    let mut table = new_table();
    set_header(&mut table, ["", "LDS"]);
    for method in &report.methods {
        let value = method.lds.map(|estimate| estimate.value);
        let interval = method.lds.and_then(|estimate| estimate.interval);
        add_row(&mut table, &method.method, [show(value, interval)]);
    }
    let between = [show(report.seed_to_seed, None)];
    add_row(&mut table, CEILING, between);
    format!(
        "\nLinear datamodeling score over {} random subsets, {}\n{table}\n\
         Spearman over the subsets of the predicted with the real decrease of the loss (mean over \
         seeds), mean over test examples [bootstrap interval over subsets].\n{MEAN_IS_LESS_NOISY}",
        report.subsets,
        counted(report.seeds, "seed"),
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootstrapSettings, Level, TruthInput};
    use simfluence_core::{Example, Examples};

    fn rows(offset: f64) -> Vec<Vec<f64>> {
        vec![
            vec![1.0 + offset, 5.0],
            vec![2.0, 4.0],
            vec![3.0, 7.0 - offset],
        ]
    }

    #[test]
    fn a_truth_table_has_every_method_and_the_ceiling() {
        let list = vec![Example::new("a", "x"), Example::new("b", "x")];
        let levels = Level::all(&Examples::new(list).unwrap());
        let flat = vec![vec![1.0, 0.0], vec![2.0, 0.0], vec![2.5, 0.0]];
        let report = TruthReport::new(
            &TruthInput {
                unit: "dataset",
                seeds: &[rows(0.0), rows(0.5)],
                mean: &rows(0.25),
                methods: &[("graddot".into(), rows(0.0)), ("flat".into(), flat)],
            },
            &levels,
        );
        let text = truth_text(&report);
        for wanted in [
            "3 units (dataset), 2 seeds",
            "graddot",
            "ceiling",
            "sum over all: r",
        ] {
            assert!(text.contains(wanted), "{text}");
        }
        assert!(
            text.contains("flat, per test example: over the 1 of 2"),
            "{text}"
        );
        assert!(text.contains("chance alone"), "{text}");
    }

    #[test]
    fn a_single_seed_has_no_ceiling_and_says_so() {
        let report = LdsReport::new(
            &[rows(0.0)],
            &rows(0.0),
            &[("graddot".into(), rows(0.5))],
            &BootstrapSettings::default(),
        );
        let text = lds_text(&report);
        assert!(text.contains("3 random subsets, 1 seed\n"), "{text}");
        let ceiling = text.lines().find(|l| l.contains("ceiling")).unwrap();
        assert!(ceiling.contains("n/a"), "{text}");
    }
}
