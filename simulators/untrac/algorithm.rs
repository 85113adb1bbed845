//! From loss curves to scores.

use super::{Untrac, UntracInv};
use crate::attribution::{AttributionError, Axes};
use crate::curves::LossCurves;
use simfluence_core::Scores;

impl Untrac {
    /// `E(i,j) = (η_ref / η_u) [L_j(θ_S) − L_j(θ_0)] / S` for every `i` of a unit.
    ///
    /// - `after`: `S`, a step at which the curves were measured; walks that are shorter count
    ///   whole. `None`: the whole walk of each unit. Chosen, if at all, on training runs only.
    ///
    /// # Errors
    /// A step at which nothing was measured, units that do not fit the axes, a score that is too
    /// large for 32-bit floats.
    pub fn scores_from_curves(
        &self,
        curves: &LossCurves,
        axes: &Axes,
        after: Option<u32>,
    ) -> Result<Scores, AttributionError> {
        let mut scores = curves.scores(self.params.reference_learning_rate, axes, after)?;
        note_settings(&mut scores, &self.params);
        Ok(scores)
    }
}

impl UntracInv {
    /// `E(i,j) = (η_ref / η_u) [L_i(θ_S) − L_i(θ_0)] / S` for every `j` of a unit; as
    /// [`Untrac::scores_from_curves`].
    ///
    /// # Errors
    /// As [`Untrac::scores_from_curves`].
    pub fn scores_from_curves(
        &self,
        curves: &LossCurves,
        axes: &Axes,
        after: Option<u32>,
    ) -> Result<Scores, AttributionError> {
        let mut scores = curves.scores(self.params.reference_learning_rate, axes, after)?;
        note_settings(&mut scores, &self.params);
        Ok(scores)
    }
}

fn note_settings(scores: &mut Scores, params: &super::UnlearningParams) {
    let settings = serde_json::to_value(params).expect("settings are plain values");
    scores.provenance.insert("settings".into(), settings);
}
