//! `simfluence import`: logs from elsewhere → run set.

use crate::cli::{ImportArgs, ImportSource, ImportTablesArgs};
use anyhow::{Context, Result, bail};
use simfluence_recorder::{
    ColumnNames, ImportReport, TableImport, import_gptdynamics, import_tables,
};
use std::path::Path;

/// Runs the subcommand.
pub fn run(args: &ImportArgs) -> Result<()> {
    let (report, out) = match &args.source {
        ImportSource::Gptdynamics { folder, out } => (import_gptdynamics(folder, out)?, out),
        ImportSource::Tables(tables) => (
            import_tables(&table_import(tables)?, &tables.out)?,
            &tables.out,
        ),
    };
    print(&report, out);
    Ok(())
}

fn table_import(args: &ImportTablesArgs) -> Result<TableImport> {
    let mut columns = ColumnNames::default();
    for text in &args.columns {
        let (ours, theirs) = text
            .split_once('=')
            .with_context(|| format!("--column {text}: write OURS=THEIRS"))?;
        let column = match ours {
            "run" => &mut columns.run,
            "step" => &mut columns.step,
            "batch" => &mut columns.batch,
            "learning_rate" => &mut columns.learning_rate,
            "batch_loss" => &mut columns.batch_loss,
            "test_id" => &mut columns.test_id,
            "loss" => &mut columns.loss,
            "id" => &mut columns.id,
            "key" => &mut columns.key,
            "dataset" => &mut columns.dataset,
            "optimizer" => &mut columns.optimizer,
            _ => bail!(
                "--column {text}: there is no column {ours:?}; run `simfluence import tables --help` for those there are"
            ),
        };
        *column = theirs.to_owned();
    }
    Ok(TableImport {
        steps: args.steps.clone(),
        losses: args.losses.clone(),
        train_examples: args.train_examples.clone(),
        test_examples: args.test_examples.clone(),
        runs: args.runs.clone(),
        columns,
    })
}

fn print(report: &ImportReport, out: &Path) {
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    println!(
        "{}: {} runs over {} training and {} test examples",
        out.display(),
        report.runs.len(),
        report.train_examples,
        report.test_examples
    );
}
