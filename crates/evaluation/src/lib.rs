//! Judging simulators: who learns from which runs, how far predictions are from real runs, and
//! tables and pictures of it.
//!
//! | step | where |
//! | --- | --- |
//! | which runs train and which judge | [`split_runs`], [`RunSelection`] |
//! | how far a trajectory is off | [`all_steps_errors`], [`final_correlations`], [`Effects`] |
//! | how sure that is | [`bootstrap_interval`], [`paired_interval`] |
//! | all methods on all held-out runs and edits | [`compare()`] |
//! | agreement with leave-out truth, linear datamodeling score | [`agreement`], [`lds`] |
//! | tables | [`table`] |
//! | what scores look like, and what they say about probes | [`reports`] |
//! | pictures | [`plots`] |

mod bootstrap;
mod ceiling;
mod compare;
mod metrics;
pub mod plots;
#[cfg(test)]
mod ref_metrics;
#[cfg(test)]
mod ref_truth;
pub mod reports;
mod selection;
mod split;
pub mod table;
mod truth;
mod truth_table;

pub use bootstrap::{
    BootstrapSettings, Interval, Ratio, bootstrap_interval, paired_interval, ratio_of_sums,
};
pub use ceiling::NoiseCeiling;
pub use compare::{
    BAND_LEVEL, Block, CompareError, CompareSettings, Comparison, Estimate, HELD_OUT, Method,
    MethodCosts, NO_EFFECT, PairedDifference, Row, RunScore, SUITE, Union, compare, simulate_run,
};
pub use metrics::{
    AllStepsErrors, Effects, FinalCorrelations, all_steps_errors, average_ranks, coverage,
    errors_per_test, final_correlations, final_pairs, no_effect, pearson, spearman,
};
pub use selection::{RunSelection, SelectionError};
pub use split::{Conflict, LeftOut, SplitError, SplitRuns, SplitSettings, SuitePair, split_runs};
pub use truth::{
    Agreement, LdsReport, LeaveOutReport, Level, LevelReport, MethodAgreement, MethodLds,
    TruthInput, TruthReport, agreement, attainable, lds, lds_per_column, seed_to_seed,
};
pub use truth_table::{lds_text, leave_out_text, truth_text};
