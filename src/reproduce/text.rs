//! The report for people and for spreadsheets.

use super::paper::{PAPER_EIGHT, PAPER_METHODS, PAPER_SWEEP, PAPER_TRUTH};
use super::report::{MethodRow, Report, SettingReport, TestReport};
use super::rows::{LEARNING_RATES, OPTIMIZERS};
use super::spread::Spread;
use anyhow::Result;
use comfy_table::{CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use simfluence_evaluation::pearson;
use std::fmt::Write;

/// Everything, as tables beside the paper's numbers.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for setting in &report.settings {
        heading(&mut out, setting);
        let is_as_in_paper = setting.datasets.len() == PAPER_TRUTH.len();
        if is_as_in_paper {
            influences(&mut out, setting, &setting.tests[0]);
        } else {
            effects(&mut out, setting);
            correlations(&mut out, setting);
        }
        sweep(&mut out, setting);
        failures(&mut out, setting);
    }
    out
}

fn heading(out: &mut String, setting: &SettingReport) {
    let sizes: Vec<String> = (setting.datasets.iter().zip(&setting.sizes))
        .map(|(name, size)| format!("{name} {size}"))
        .collect();
    let _ = writeln!(
        out,
        "\nSetting {}: {}\n{} training examples ({}), mixed, one epoch of {} steps; {} runs, {} retrainings of everything and without each dataset.",
        setting.name,
        setting.about,
        setting.sizes.iter().sum::<usize>(),
        sizes.join(", "),
        setting.steps,
        setting.seeds,
        setting.seeds,
    );
    for test in &setting.tests {
        let _ = writeln!(
            out,
            "Test dataset {} ({} examples): mean loss {:.3} before training, {:.3} ± {:.3} after; truth, one seed by another: r = {}, expected of a perfect method: {}.",
            test.test,
            test.examples,
            test.initial_loss,
            test.final_loss.mean,
            test.final_loss.deviation,
            number(test.truth.ceiling),
            number(test.truth.attainable),
        );
    }
}

/// Table 3: influences standardised over datasets.
fn influences(out: &mut String, setting: &SettingReport, test: &TestReport) {
    let _ = writeln!(
        out,
        "\nInfluence of each training dataset on {}, standardised over the datasets; mean ± standard deviation over seeds.\n\"similar first\": in how many seeds both succeed-* are above both length-*. r: Pearson with the mean truth. In brackets the paper's table 3 (T5-3B).",
        test.test
    );
    let mut table = plain_table();
    let mut header = vec!["method".to_owned()];
    header.extend(setting.datasets.iter().cloned());
    header.extend(["r", "similar first", "s per run"].map(str::to_owned));
    table.set_header(header);
    let truth = test.truth.standardised.as_deref();
    let mut row = vec!["leave-one-out".to_owned()];
    row.extend(cells(truth, Some(&PAPER_TRUTH), setting.datasets.len()));
    row.push(String::new());
    row.push(of_seeds(test.truth.similar_first, test.truth.effects.len()));
    row.push(String::new());
    table.add_row(row);
    for method in test.methods.iter().filter(|m| m.swept.is_none()) {
        let paper = PAPER_METHODS.iter().find(|row| row.method == method.name);
        let paper = paper.map(|row| &row.influences);
        let mut row = vec![method.name.clone()];
        row.extend(cells(
            method.standardised.as_deref(),
            paper,
            setting.datasets.len(),
        ));
        let correlation = paper.and_then(|row| pearson(row, &PAPER_TRUTH));
        let correlation = correlation
            .map(|r| format!(" [{r:.2}]"))
            .unwrap_or_default();
        row.push(format!("{}{correlation}", spread(method.pearson)));
        row.push(of_seeds(method.similar_first, method.influences.len()));
        row.push(format!("{:.0}", method.seconds));
        table.add_row(row);
    }
    add(out, table);
}

fn cells(values: Option<&[Spread]>, paper: Option<&[f64; 4]>, count: usize) -> Vec<String> {
    (0..count)
        .map(|d| {
            let ours = spread(values.map(|values| values[d]));
            let paper = paper.map(|row| format!(" [{:+.2}]", row[d]));
            format!("{ours}{}", paper.unwrap_or_default())
        })
        .collect()
}

/// What leaving out each dataset does to each test dataset.
fn effects(out: &mut String, setting: &SettingReport) {
    let _ = writeln!(
        out,
        "\nLeave-one-out: loss without the dataset less loss with it, nats; mean ± standard deviation over seeds."
    );
    let mut table = plain_table();
    let header = ["left out", "examples"].map(str::to_owned).into_iter();
    table.set_header(header.chain(setting.tests.iter().map(|t| t.test.clone())));
    for (d, name) in setting.datasets.iter().enumerate() {
        let mut row = vec![name.clone(), setting.sizes[d].to_string()];
        row.extend(setting.tests.iter().map(|test| {
            let values: Vec<f64> = test.truth.effects.iter().map(|e| e[d]).collect();
            let spread = Spread::of(&values);
            format!("{:+.3} ± {:.3}", spread.mean, spread.deviation)
        }));
        table.add_row(row);
    }
    add(out, table);
}

/// Table 2: correlations with the truth over eight datasets.
fn correlations(out: &mut String, setting: &SettingReport) {
    let _ = writeln!(
        out,
        "\nPearson with the mean truth over {} datasets, per test dataset; mean ± standard deviation over runs. Last column: the paper's table 2 (OPT-125M, pre-training; ToxiGen, WinoBias, TruthfulQA).",
        setting.datasets.len()
    );
    let mut table = plain_table();
    let mut header = vec!["method".to_owned()];
    header.extend(setting.tests.iter().map(|t| t.test.clone()));
    header.extend(["s per run", "paper"].map(str::to_owned));
    table.set_header(header);
    let methods = setting.tests[0].methods.iter().enumerate();
    for (k, method) in methods.filter(|(_, m)| m.swept.is_none()) {
        let mut row = vec![method.name.clone()];
        row.extend(setting.tests.iter().map(|t| spread(t.methods[k].pearson)));
        row.push(format!("{:.0}", method.seconds));
        let paper = PAPER_EIGHT.iter().find(|row| row.method == method.name);
        row.push(paper.map_or_else(String::new, |paper| {
            let is_even = setting.sizes.iter().all(|&size| size == setting.sizes[0]);
            let values = if is_even { paper.even } else { paper.uneven };
            values.map(|r| format!("{r:+.2}")).join(", ")
        }));
        table.add_row(row);
    }
    add(out, table);
}

/// Table 4: optimisers and learning rates of unlearning.
fn sweep(out: &mut String, setting: &SettingReport) {
    let test = &setting.tests[0];
    if test.methods.iter().all(|m| m.swept.is_none()) {
        return;
    }
    let _ = writeln!(
        out,
        "\nUnlearning with other optimisers (5e-5) and learning rates (Adam): Pearson with the mean truth on {}. In brackets the paper's table 4 (OPT-125M, eight datasets, ToxiGen).",
        test.test
    );
    let mut table = plain_table();
    table.set_header(["", "untrac", "similar first", "untrac-inv", "similar first"]);
    let names = OPTIMIZERS.iter().map(|(name, _)| *name);
    for name in names.chain(LEARNING_RATES.iter().map(|(name, _)| *name)) {
        let mut row = vec![name.to_owned()];
        for method in ["untrac", "untrac-inv"] {
            let found = swept(test, method, name);
            let paper = PAPER_SWEEP.iter().find(|row| row.setting == name);
            let paper = paper.map(|row| match method {
                "untrac" => row.untrac,
                _ => row.untrac_inv,
            });
            let paper = paper.map(|(mean, deviation)| format!(" [{mean:+.2} ± {deviation:.2}]"));
            let ours = spread(found.and_then(|m| m.pearson));
            row.push(format!("{ours}{}", paper.unwrap_or_default()));
            row.push(found.map_or_else(String::new, |m| {
                of_seeds(m.similar_first, m.influences.len())
            }));
        }
        table.add_row(row);
    }
    add(out, table);
}

/// The row of a setting of unlearning; Adam at 5e-5 is the method's own.
fn swept<'a>(test: &'a TestReport, method: &str, name: &str) -> Option<&'a MethodRow> {
    let wanted = match name {
        "adam" | "5e-5" => method.to_owned(),
        _ => format!("{method} {name}"),
    };
    test.methods.iter().find(|m| m.name == wanted)
}

fn failures(out: &mut String, setting: &SettingReport) {
    for method in &setting.tests[0].methods {
        if let Some(failure) = &method.failure {
            let _ = writeln!(out, "Nothing of {}: {failure}", method.name);
        }
    }
}

/// One line per seed and dataset.
pub fn csv(report: &Report) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "setting",
        "test",
        "method",
        "seed",
        "dataset",
        "examples",
        "influence",
        "pearson_with_mean_truth",
    ])?;
    for setting in &report.settings {
        for test in &setting.tests {
            let truth = ("leave-one-out", &test.truth.effects);
            let methods = test
                .methods
                .iter()
                .map(|m| (m.name.as_str(), &m.influences));
            for (name, rows) in std::iter::once(truth).chain(methods) {
                for (seed, row) in rows.iter().enumerate() {
                    let r = pearson(row, &test.truth.mean).map(|r| r.to_string());
                    for (d, influence) in row.iter().enumerate() {
                        writer.write_record([
                            setting.name,
                            &test.test,
                            name,
                            &seed.to_string(),
                            &setting.datasets[d],
                            &setting.sizes[d].to_string(),
                            &influence.to_string(),
                            r.as_deref().unwrap_or_default(),
                        ])?;
                    }
                }
            }
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table
}

fn add(out: &mut String, mut table: Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(out, "{table}");
}

fn spread(value: Option<Spread>) -> String {
    value.map_or_else(
        || "n/a".to_owned(),
        |s| format!("{:+.2} ± {:.2}", s.mean, s.deviation),
    )
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "n/a".to_owned(), |v| format!("{v:.2}"))
}

fn of_seeds(count: Option<usize>, all: usize) -> String {
    count.map_or_else(String::new, |count| format!("{count} of {all}"))
}
