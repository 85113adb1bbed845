//! What the loss of a step is made of.

use crate::settings::TokenizedExample;
use serde::{Deserialize, Serialize};
use simfluence_core::Step;
use std::borrow::Cow;

/// The share that each member of a batch has in the loss of a step, where the curriculum does not
/// say (`training.batch_loss` of a task file). Member `k` has `n_k` tokens with loss, and `ℓ_k` is
/// its mean loss over them.
///
/// ```
/// use simfluence_models::BatchLoss;
/// #[derive(serde::Deserialize)]
/// struct Table { batch_loss: BatchLoss }
/// let table: Table = toml::from_str("batch_loss = \"token-mean\"")?;
/// assert_eq!(table.batch_loss, BatchLoss::TokenMean);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchLoss {
    /// `Σ_k ℓ_k / |c|`: every example weighs the same.
    #[default]
    ExampleMean,
    /// `Σ_k n_k ℓ_k / Σ_k n_k`: every token with loss of the step weighs the same, as in
    /// transformers' `Trainer` (`num_items_in_batch`).
    TokenMean,
}

impl BatchLoss {
    /// A step with its weights written out where they are not equal; weights that it has stay.
    #[cfg_attr(not(feature = "torch"), allow(dead_code))]
    pub(crate) fn weighted<'a>(
        self,
        step: &'a Step,
        members: &[&TokenizedExample],
    ) -> Cow<'a, Step> {
        if self == Self::ExampleMean || step.weights.is_some() {
            return Cow::Borrowed(step);
        }
        let all: usize = members.iter().map(|example| example.target_count()).sum();
        let share =
            |example: &&TokenizedExample| (example.target_count() as f64 / all as f64) as f32;
        Cow::Owned(Step {
            weights: Some(members.iter().map(share).collect()),
            ..step.clone()
        })
    }
}
