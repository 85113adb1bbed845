//! `simfluence reproduce`: do a published experiment again.

#[cfg(feature = "torch")]
mod curves;
#[cfg(feature = "torch")]
mod experiment;
#[cfg(feature = "torch")]
mod paper;
#[cfg(feature = "torch")]
mod pictures;
#[cfg(feature = "torch")]
mod report;
#[cfg(feature = "torch")]
mod rows;
#[cfg(feature = "torch")]
mod spread;
#[cfg(feature = "torch")]
mod text;
#[cfg(feature = "torch")]
mod untrac;
#[cfg(feature = "torch")]
mod values;

use crate::cli::ReproduceArgs;
use anyhow::Result;
use simfluence_core::Progress;

/// Runs the subcommand.
#[cfg(not(feature = "torch"))]
pub fn run(_: &ReproduceArgs, _: &dyn Progress) -> Result<()> {
    anyhow::bail!(crate::needs_torch("reproduce"))
}

/// Runs the subcommand.
#[cfg(feature = "torch")]
pub fn run(args: &ReproduceArgs, progress: &dyn Progress) -> Result<()> {
    match args.experiment {
        crate::cli::Experiment::UntracFinetuning => untrac::run(args, progress),
    }
}
