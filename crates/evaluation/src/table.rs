//! A [`Comparison`] as text, JSON and CSV.

use crate::bootstrap::Interval;
use crate::compare::{BAND_LEVEL, Block, Comparison, Estimate, HELD_OUT, Row, SUITE};
use crate::truth_table::leave_out_text;
use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, presets};
use simfluence_core::EditKind;
use std::fmt::Write;

/// Picks a column's number out of a row.
type Pick = fn(&Row) -> Option<Estimate>;

/// A column of a block: heading, what is in it, and whether less is better.
struct Column {
    heading: &'static str,
    value: Pick,
    order: Order,
    with_interval: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    LessIsBetter,
    MoreIsBetter,
}

const MSE: Column = Column {
    heading: "MSE (nats²)",
    value: |row| row.mse,
    order: Order::LessIsBetter,
    with_interval: true,
};
const MAE: Column = Column {
    heading: "MAE (nats)",
    value: |row| row.mae,
    order: Order::LessIsBetter,
    with_interval: true,
};
const FINAL: Column = Column {
    heading: "final ρ",
    value: |row| row.final_spearman,
    order: Order::MoreIsBetter,
    with_interval: false,
};
const CHANGE: Column = Column {
    heading: "change ρ",
    value: |row| row.change_spearman,
    order: Order::MoreIsBetter,
    with_interval: false,
};
const EFFECT_R2: Column = Column {
    heading: "effect R²",
    value: |row| row.effect_r2,
    order: Order::MoreIsBetter,
    with_interval: true,
};
const EFFECT_RHO: Column = Column {
    heading: "effect ρ",
    value: |row| row.effect_spearman,
    order: Order::MoreIsBetter,
    with_interval: false,
};
const SIGN: Column = Column {
    heading: "sign",
    value: |row| row.sign_agreement,
    order: Order::MoreIsBetter,
    with_interval: false,
};

/// The comparison for people: a table per block, one for the kinds of edits, the costs, and the
/// paired differences of the methods in [`crate::CompareSettings::focus`].
pub fn text(comparison: &Comparison, focus: &[String]) -> String {
    let mut out = header(comparison);
    for block in &comparison.blocks {
        let columns: &[Column] = match block.name.as_str() {
            HELD_OUT => &[MSE, MAE, FINAL, CHANGE],
            SUITE => &[MSE, EFFECT_R2, EFFECT_RHO, SIGN, FINAL, CHANGE],
            name if EditKind::from_name(name).is_some() => continue,
            _ => &[MSE, MAE],
        };
        let _ = writeln!(out, "\n{}\n{}", title(block), block_table(block, columns));
    }
    if let Some(table) = kinds_table(comparison) {
        let _ = writeln!(out, "\nKinds of edits: MSE (effect R²)\n{table}");
    }
    if let Some(table) = coverage_table(comparison) {
        let level = 100.0 * BAND_LEVEL;
        let _ = writeln!(
            out,
            "\nBands of {level:.0} %: share of real losses in them (mean width, nats)\n{table}"
        );
    }
    let _ = writeln!(out, "\nCosts\n{}", costs_table(comparison));
    if !focus.is_empty() {
        let table = differences_table(comparison, focus);
        let _ = writeln!(
            out,
            "\nDifference of the MSE (nats²), below 0 is better\n{table}"
        );
    }
    if let Some(leave_out) = &comparison.leave_out {
        let _ = write!(out, "\n{}", leave_out_text(leave_out));
    }
    out
}

/// The comparison with everything in it, as JSON.
///
/// A number that is NaN or infinite, and one that is not defined, are both `null`.
///
/// # Errors
/// None in practice: every part serialises.
pub fn json(comparison: &Comparison) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(comparison)
}

/// One line per block and method; what is not defined is an empty field. The noise ceiling is that
/// of the block, in each of its lines.
///
/// # Errors
/// None in practice: it is written to memory.
pub fn csv(comparison: &Comparison) -> Result<String, csv::Error> {
    const COLUMNS: [(&str, Pick); 9] = [
        ("mse", |row| row.mse),
        ("mae", |row| row.mae),
        ("final_spearman", |row| row.final_spearman),
        ("change_spearman", |row| row.change_spearman),
        ("effect_r2", |row| row.effect_r2),
        ("effect_spearman", |row| row.effect_spearman),
        ("sign_agreement", |row| row.sign_agreement),
        ("coverage", |row| row.coverage),
        ("band_width", |row| row.band_width),
    ];
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut heading: Vec<String> = ["block", "runs", "units", "method"]
        .map(String::from)
        .into();
    for (name, _) in COLUMNS {
        heading.extend([
            name.to_owned(),
            format!("{name}_low"),
            format!("{name}_high"),
        ]);
    }
    heading.push("effect_r2_ceiling".to_owned());
    heading.extend(COSTS.map(String::from));
    writer.write_record(&heading)?;
    for block in &comparison.blocks {
        for row in &block.rows {
            let mut record = vec![
                block.name.clone(),
                block.runs.len().to_string(),
                block.unit_count.to_string(),
                row.method.clone(),
            ];
            for (_, value) in COLUMNS {
                record.extend(estimate_fields(value(row)));
            }
            let ceiling = block.effect_r2_ceiling.map(|ceiling| ceiling.r2);
            record.push(ceiling.map(|r2| r2.to_string()).unwrap_or_default());
            record.extend(cost_fields(comparison, &row.method));
            writer.write_record(&record)?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn estimate_fields(estimate: Option<Estimate>) -> [String; 3] {
    let interval = estimate.and_then(|e| e.interval);
    let text = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    [
        text(estimate.map(|e| e.value)),
        text(interval.map(|i| i.low)),
        text(interval.map(|i| i.high)),
    ]
}

/// Columns of costs in CSV.
const COSTS: [&str; 4] = [
    "fit_seconds",
    "simulate_seconds",
    "peak_bytes",
    "gradient_evaluations",
];

fn cost_fields(comparison: &Comparison, method: &str) -> [String; 4] {
    let cost = comparison.costs.iter().find(|cost| cost.method == method);
    let seconds = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    let count = |value: Option<u64>| value.map(|v| v.to_string()).unwrap_or_default();
    [
        seconds(cost.and_then(|c| c.fit_seconds)),
        seconds(cost.map(|c| c.simulate_seconds)),
        count(cost.and_then(|c| c.peak_bytes)),
        count(cost.and_then(|c| c.gradient_evaluations)),
    ]
}

fn header(comparison: &Comparison) -> String {
    let count = |name| comparison.block(name).map_or(0, |block| block.runs.len());
    let steps = match comparison.steps {
        (low, high) if low == high => low.to_string(),
        (low, high) => format!("{low}–{high}"),
    };
    let mut out = format!(
        "{} training runs, {} held-out runs, {} edits · m = {} test examples · T = {steps} steps\n\
         MSE and MAE: over all steps ≥ 1, loss in nats per target token. ρ: Spearman across test \
         examples, of the final losses, of their change since step 0, of the final effect of an \
         edit.\n\
         effect R²: share of the final effect explained, against predicting none. sign: share of \
         test examples whose effect has the right sign.\n\
         [low, high]: {} % bootstrap interval over runs ({} resamples; a run and its edits are \
         one unit). *: best in its column. n/a: not defined or not measured.\n",
        comparison.train_runs.len(),
        count(HELD_OUT),
        count(SUITE),
        comparison.test_count,
        100.0 * comparison.bootstrap.level,
        comparison.bootstrap.resamples,
    );
    for left_out in &comparison.left_out {
        let _ = writeln!(out, "Left out: {}: {}", left_out.run, left_out.reason);
    }
    out
}

fn title(block: &Block) -> String {
    let what = match block.name.as_str() {
        HELD_OUT => "Held-out runs".to_owned(),
        SUITE => "Counterfactual suite".to_owned(),
        name => name.to_owned(),
    };
    format!(
        "{what} ({}, {})",
        counted(block.runs.len(), "run"),
        counted(block.unit_count, "unit")
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn block_table(block: &Block, columns: &[Column]) -> Table {
    let mut table = new_table();
    let headings = columns.iter().map(|column| column.heading);
    set_header(&mut table, std::iter::once("method").chain(headings));
    let best: Vec<Vec<bool>> = columns
        .iter()
        .map(|column| {
            let values = block
                .rows
                .iter()
                .map(|row| (column.value)(row).map(|e| e.value));
            best_of(&values.collect::<Vec<_>>(), column.order)
        })
        .collect();
    for (r, row) in block.rows.iter().enumerate() {
        let cells = columns.iter().enumerate().map(|(c, column)| {
            let estimate = (column.value)(row);
            let interval = estimate
                .and_then(|e| e.interval)
                .filter(|_| column.with_interval);
            format!(
                "{}{}",
                show(estimate.map(|e| e.value), interval),
                mark(best[c][r])
            )
        });
        add_row(&mut table, &row.method, cells);
    }
    table
}

/// One row per method, one column per kind of edit.
fn kinds_table(comparison: &Comparison) -> Option<Table> {
    let is_kind = |block: &&Block| EditKind::from_name(&block.name).is_some();
    let kinds: Vec<&Block> = comparison.blocks.iter().filter(is_kind).collect();
    let first = kinds.first()?;
    let mut table = new_table();
    let headings = kinds
        .iter()
        .map(|block| format!("{} ({})", block.name, block.runs.len()));
    set_header(
        &mut table,
        std::iter::once("method".to_owned()).chain(headings),
    );
    let best: Vec<Vec<bool>> = kinds
        .iter()
        .map(|block| {
            let values = block.rows.iter().map(|row| row.mse.map(|e| e.value));
            best_of(&values.collect::<Vec<_>>(), Order::LessIsBetter)
        })
        .collect();
    for (r, Row { method, .. }) in first.rows.iter().enumerate() {
        let cells = kinds.iter().enumerate().map(|(k, block)| {
            let row = &block.rows[r];
            let r2 = row.effect_r2.map_or("n/a".to_owned(), |e| share(e.value));
            let mse = show(row.mse.map(|e| e.value), None);
            format!("{mse}{} ({r2})", mark(best[k][r]))
        });
        add_row(&mut table, method, cells);
    }
    if kinds.iter().any(|block| block.effect_r2_ceiling.is_some()) {
        let cells = kinds.iter().map(|block| match block.effect_r2_ceiling {
            Some(ceiling) => format!("({})", share(ceiling.r2)),
            None => "n/a".to_owned(),
        });
        add_row(&mut table, "noise ceiling", cells);
    }
    Some(table)
}

/// How much of the real losses the bands of each method hold, block by block; `None` where no
/// method has bands.
fn coverage_table(comparison: &Comparison) -> Option<Table> {
    let blocks: Vec<&Block> = (comparison.blocks.iter())
        .filter(|block| !block.name.contains(" + "))
        .collect();
    let methods: Vec<&str> = (blocks.iter())
        .flat_map(|block| &block.rows)
        .filter(|row| row.coverage.is_some())
        .map(|row| row.method.as_str())
        .fold(Vec::new(), |mut methods, method| {
            if !methods.contains(&method) {
                methods.push(method);
            }
            methods
        });
    if methods.is_empty() {
        return None;
    }
    let mut table = new_table();
    let headings = methods.iter().map(|method| (*method).to_owned());
    set_header(
        &mut table,
        std::iter::once("runs".to_owned()).chain(headings),
    );
    for block in blocks {
        let cells = methods.iter().map(|method| {
            let row = block.row(method);
            let part = |pick: Pick| row.and_then(pick);
            match (part(|row| row.coverage), part(|row| row.band_width)) {
                (Some(held), Some(width)) => {
                    let interval = held.interval.map_or(String::new(), |i| {
                        format!(" [{:.1}, {:.1}]", 100.0 * i.low, 100.0 * i.high)
                    });
                    format!(
                        "{:.1} %{interval} ({})",
                        100.0 * held.value,
                        show(Some(width.value), None)
                    )
                }
                _ => "n/a".to_owned(),
            }
        });
        let name = format!("{} ({})", block.name, block.runs.len());
        add_row(&mut table, &name, cells);
    }
    Some(table)
}

fn costs_table(comparison: &Comparison) -> Table {
    let mut table = new_table();
    set_header(
        &mut table,
        [
            "method",
            "fit (s)",
            "simulate (s)",
            "peak memory (MiB)",
            "gradients",
        ],
    );
    for cost in &comparison.costs {
        let mebibytes = cost
            .peak_bytes
            .map(|bytes| bytes as f64 / f64::from(1 << 20));
        let [fit, simulate, memory] =
            [cost.fit_seconds, Some(cost.simulate_seconds), mebibytes].map(|v| show(v, None));
        let gradients = match cost.gradient_evaluations {
            Some(count) => count.to_string(),
            None => show(None, None),
        };
        add_row(&mut table, &cost.method, [fit, simulate, memory, gradients]);
    }
    table
}

fn differences_table(comparison: &Comparison, focus: &[String]) -> Table {
    let mut table = new_table();
    set_header(&mut table, ["method − other", "block", "difference", ""]);
    for difference in &comparison.pairwise {
        if !focus.contains(&difference.method) {
            continue;
        }
        let verdict = match difference.interval {
            Some(interval) if interval.high < 0.0 => "better",
            Some(interval) if interval.low > 0.0 => "worse",
            Some(_) => "not sure",
            None => "one unit only",
        };
        let cells = [
            difference.block.clone(),
            show(Some(difference.difference), difference.interval),
            verdict.to_owned(),
        ];
        let pair = format!("{} − {}", difference.method, difference.against);
        add_row(&mut table, &pair, cells);
    }
    table
}

pub(crate) fn new_table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

pub(crate) fn set_header<T: ToString>(table: &mut Table, headings: impl IntoIterator<Item = T>) {
    let aligned = headings.into_iter().enumerate().map(|(k, heading)| {
        let alignment = if k == 0 {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        };
        Cell::new(heading.to_string()).set_alignment(alignment)
    });
    table.set_header(aligned.collect::<Vec<_>>());
}

pub(crate) fn add_row(table: &mut Table, name: &str, cells: impl IntoIterator<Item = String>) {
    let numbers = cells
        .into_iter()
        .map(|text| Cell::new(text).set_alignment(CellAlignment::Right));
    table.add_row(
        std::iter::once(Cell::new(name))
            .chain(numbers)
            .collect::<Vec<_>>(),
    );
}

/// Which entries are the best; all of them where they are equal as shown.
fn best_of(values: &[Option<f64>], order: Order) -> Vec<bool> {
    let finite = values.iter().flatten().copied().filter(|v| v.is_finite());
    let best = match order {
        Order::LessIsBetter => finite.fold(f64::INFINITY, f64::min),
        Order::MoreIsBetter => finite.fold(f64::NEG_INFINITY, f64::max),
    };
    values.iter().map(|v| *v == Some(best)).collect()
}

/// A space keeps the columns of digits aligned.
fn mark(best: bool) -> char {
    if best { '*' } else { ' ' }
}

/// `0.592 [0.511, 0.704]`: three significant digits of the value, the same places at the ends.
pub(crate) fn show(value: Option<f64>, interval: Option<Interval>) -> String {
    let Some(value) = value else {
        return "n/a".to_owned();
    };
    let scale = if value == 0.0 {
        interval.map_or(0.0, |i| i.high - i.low)
    } else {
        value
    };
    match interval {
        Some(Interval { low, high }) => format!(
            "{} [{}, {}]",
            number(value, scale),
            number(low, scale),
            number(high, scale)
        ),
        None => number(value, scale),
    }
}

/// Three significant digits at the size of `scale`; powers of ten where that is unreadable.
pub(crate) fn number(value: f64, scale: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let size = scale.abs();
    if value == 0.0 && size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e6).contains(&size) {
        return minus(format!("{value:.2e}"));
    }
    // The exponent after rounding: 0.009999 is shown as 0.0100.
    let rounded = format!("{size:.2e}");
    let exponent = rounded.split_once('e').and_then(|(_, e)| e.parse().ok());
    let places = (2 - exponent.unwrap_or(0)).clamp(0, 6) as usize;
    minus(format!("{value:.places$}"))
}

fn share(value: f64) -> String {
    if value.abs() < 99.5 {
        minus(format!("{value:.2}"))
    } else {
        number(value, value)
    }
}

/// The typographic minus; nothing negative about zero.
fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_and_intervals_follow_the_value() {
        let interval = Some(Interval {
            low: 0.5111,
            high: 12.0,
        });
        assert_eq!(show(Some(0.59249), interval), "0.592 [0.511, 12.000]");
        assert_eq!(show(Some(15.13), None), "15.1");
        assert_eq!(show(Some(3890.4), None), "3890");
        assert_eq!(show(Some(-0.0412), None), "−0.0412");
        assert_eq!(show(Some(2.5e9), None), "2.50e9");
        assert_eq!(show(Some(-2.5e9), None), "−2.50e9");
        assert_eq!(show(Some(0.0), None), "0");
        assert_eq!(show(Some(0.009_999_99), None), "0.0100");
        assert_eq!(show(None, None), "n/a");
        assert_eq!(show(Some(f64::NAN), None), "NaN");
    }

    #[test]
    fn the_best_is_marked_and_what_is_not_finite_is_never_best() {
        let values = [Some(2.0), Some(f64::NAN), None, Some(1.0), Some(1.0)];
        let less = best_of(&values, Order::LessIsBetter);
        assert_eq!(less, [false, false, false, true, true]);
        let more = best_of(&values, Order::MoreIsBetter);
        assert_eq!(more, [true, false, false, false, false]);
        assert_eq!(best_of(&[None], Order::LessIsBetter), [false]);
    }
}
