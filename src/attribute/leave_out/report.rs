//! Leave-out truth as a table.

use super::{LeftOut, Options};
use crate::runs::OpenRuns;
use crate::truth::{judge, judge_subsets};
use comfy_table::{CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use simfluence_core::Run;
use simfluence_evaluation::{BootstrapSettings, Level, lds_text, truth_text};
use simfluence_simulators::leave_out::Truth;

/// Units shown; where there are more, those with the largest effects.
const SHOWN: usize = 20;

/// Prints what retraining showed.
pub fn print(open: &OpenRuns, reference: &Run, options: &Options, left_out: &LeftOut) {
    let truth = &left_out.truth;
    let subsets = match &left_out.subsets {
        Some(subsets) => format!(", on each of {} random subsets", subsets.subsets.len()),
        None => String::new(),
    };
    println!(
        "Run {} ({} steps), really trained again {} times ({} now, {} kept from before): on everything, without each of {} units ({}){subsets}; {} seeds.",
        reference.id,
        reference.curriculum.len(),
        left_out.trained + left_out.kept,
        left_out.trained,
        left_out.kept,
        truth.units.len(),
        options.unit,
        truth.seeds.len(),
    );
    if !left_out.untrained.is_empty() {
        println!("{}", never_trained(reference, &left_out.untrained));
    }
    println!(
        "Effect: loss without the unit − loss with it, after the last step, nats per target token;"
    );
    println!(
        "larger = training on the unit lowers the loss more. The places that a unit leaves are filled"
    );
    println!("from the other examples of the run; every seed trains in another order.\n");
    println!("{}", effects(open, truth));
    let levels = Level::all(open.set.test_examples());
    let report = judge(
        &options.unit,
        truth,
        &[],
        reference,
        &levels,
        open.train_count(),
    );
    if truth.seeds.len() > 1 {
        print!("{}", truth_text(&report));
    } else {
        println!(
            "\nOne seed only: nothing is known about how much of this is chance; give --seeds."
        );
    }
    if let Some(subsets) = &left_out.subsets {
        let scores: Vec<_> = left_out.scores.iter().cloned().collect();
        let bootstrap = BootstrapSettings::default();
        print!("{}", lds_text(&judge_subsets(subsets, &scores, &bootstrap)));
    }
    println!();
}

fn never_trained(reference: &Run, names: &[String]) -> String {
    let mut shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 {
        shown.push_str(", …");
    }
    format!(
        "{} more units were never trained by run {}, so that there is nothing to leave out: {shown}",
        names.len(),
        reference.id
    )
}

/// Mean effect on each test dataset, `mean ± standard deviation over seeds`.
fn effects(open: &OpenRuns, truth: &Truth) -> Table {
    let test = open.set.test_examples();
    let (datasets, dataset_of) = test.groups("dataset");
    let mut columns: Vec<(String, Vec<usize>)> = datasets
        .into_iter()
        .enumerate()
        .map(|(d, name)| {
            (
                name,
                (0..test.len()).filter(|&j| dataset_of[j] == d).collect(),
            )
        })
        .collect();
    if columns.len() > 1 {
        columns.push(("all".to_owned(), (0..test.len()).collect()));
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    let headings = columns.iter().map(|(name, _)| format!("effect on {name}"));
    let first = ["left out", "examples", "exposure (steps)"].map(str::to_owned);
    table.set_header(first.into_iter().chain(headings));
    let seeds: Vec<Vec<Vec<f64>>> = (0..truth.seeds.len()).map(|s| truth.of_seed(s)).collect();
    for unit in largest(truth) {
        let mut row = vec![
            truth.units[unit].name.clone(),
            truth.units[unit].members.len().to_string(),
            format!("{:.1}", truth.exposures[unit]),
        ];
        row.extend(columns.iter().map(|(_, members)| {
            let of_seed = |seed: &Vec<Vec<f64>>| {
                members.iter().map(|&j| seed[unit][j]).sum::<f64>() / members.len() as f64
            };
            mean_and_deviation(&seeds.iter().map(of_seed).collect::<Vec<_>>())
        }));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if truth.units.len() > SHOWN {
        let rest = truth.units.len() - SHOWN;
        table.add_row(vec![format!("… and {rest} more, with smaller effects")]);
    }
    table
}

/// The units in order; where there are many, those with the largest mean effect, largest first.
fn largest(truth: &Truth) -> Vec<usize> {
    let mut order: Vec<usize> = (0..truth.units.len()).collect();
    if order.len() > SHOWN {
        let mean = truth.mean();
        let size = |&unit: &usize| mean[unit].iter().sum::<f64>().abs();
        order.sort_by(|a, b| size(b).total_cmp(&size(a)));
        order.truncate(SHOWN);
    }
    order
}

fn mean_and_deviation(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return format!("{mean:+.4}");
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    format!("{mean:+.4} ± {:.4}", (squares / (count - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use simfluence_simulators::leave_out::Unit;

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        assert_eq!(mean_and_deviation(&[1.0, 2.0, 3.0]), "+2.0000 ± 1.0000");
        assert_eq!(mean_and_deviation(&[-0.5]), "-0.5000");
    }

    #[test]
    fn of_many_units_the_largest_effects_are_shown() {
        let count = 30;
        let truth = Truth {
            units: (0..count)
                .map(|u| Unit {
                    name: u.to_string(),
                    members: vec![u],
                })
                .collect(),
            exposures: vec![1.0; count as usize],
            seeds: vec![0],
            test_count: 1,
            effects: (0..count).map(|u| -f64::from(u % 7)).collect(),
        };
        let shown = largest(&truth);
        assert_eq!(shown.len(), SHOWN);
        assert_eq!(&shown[..4], &[6, 13, 20, 27]);
    }
}
