//! `simfluence merge`: one run set of several.

use crate::cli::MergeArgs;
use anyhow::Result;
use simfluence_core::Progress;
use simfluence_recorder::merge;

/// Runs the subcommand.
pub fn run(args: &MergeArgs, progress: &dyn Progress) -> Result<()> {
    let runs = merge(&args.run_sets, &args.out, progress)?;
    println!(
        "{}: {} runs of {} run sets",
        args.out.display(),
        runs.len(),
        args.run_sets.len()
    );
    Ok(())
}
