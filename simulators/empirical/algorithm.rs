//! From loss changes to scores.

use super::Empirical;
use crate::attribution::{AttributionError, Axes};
use crate::curves::LossCurves;
use simfluence_core::Scores;

impl Empirical {
    /// `E(i,j) = (η_ref / η_e) [L_j(θ) − L_j(θ after k steps on i)] / k`.
    ///
    /// # Errors
    /// Examples that do not fit the axes, a score that is too large for 32-bit floats.
    pub fn scores_from_curves(
        &self,
        curves: &LossCurves,
        axes: &Axes,
    ) -> Result<Scores, AttributionError> {
        let mut scores = curves.scores(self.params.reference_learning_rate, axes, None)?;
        let settings = serde_json::to_value(self.params).expect("settings are plain values");
        scores.provenance.insert("settings".into(), settings);
        Ok(scores)
    }
}
