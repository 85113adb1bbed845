//! `simfluence merge`: one run set of several.

use crate::cli::MergeArgs;
use anyhow::Result;
use simfluence_recorder::merge;

/// Runs the subcommand.
pub fn run(args: &MergeArgs) -> Result<()> {
    let runs = merge(&args.run_sets, &args.out)?;
    println!(
        "{}: {} runs of {} run sets",
        args.out.display(),
        runs.len(),
        args.run_sets.len()
    );
    Ok(())
}
