//! Reports about scores: what they look like, and what they say about probes.
//!
//! | question | function |
//! | --- | --- |
//! | Is what `i` does to `j` what `j` does to `i`? | [`symmetry()`] of a [`PairwiseMatrix`] |
//! | Does training on the facts help the right arrow more than the wrong one? | [`own_influence`], then [`contrast()`] |
//! | What is left of an influence when the key phrases are flipped? | [`influence_by_kind`] |
//! | Heavy tails, sparsity | [`score_distribution`] |
//! | Where in the network? | [`layer_shares`] |
//!
//! Every report is a plain struct that serialises, with `text()` for people. Scores are oriented
//! as everywhere: larger = training on `i` lowers the loss of `j` more.

mod distribution;
mod error;
mod kinds;
mod layers;
mod pairwise;
mod probes;
#[cfg(test)]
mod ref_reports;
mod sign_test;

pub use distribution::{
    DistributionSettings, DistributionSummary, QueryDistribution, ScoreDistribution, Spread, Tail,
    score_distribution,
};
pub use error::ReportError;
pub use kinds::{InfluenceByKind, KindInfluence, influence_by_kind};
pub use layers::{LayerShare, LayerShares, layer_shares};
pub use pairwise::{PairwiseMatrix, Symmetry, symmetry};
pub use probes::{Contrast, contrast, contrasts_text, own_influence};
pub use sign_test::sign_test;

/// A report with everything in it, as JSON. What is not defined is `null`.
///
/// # Errors
/// None in practice: every report serialises.
pub fn json<T: serde::Serialize>(report: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(report)
}
