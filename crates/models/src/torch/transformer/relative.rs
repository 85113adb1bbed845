//! Relative positions: numbers added to the attention's scores by how far key and query stand apart.

use super::{Extras, Transformer};
use crate::decoder::{Positions, StackPlaces};
use crate::torch::batch::{Answers, Inputs};
use crate::torch::gradients::Use;
use crate::torch::model::Model;
use tch::Tensor;

/// What all blocks of a stack add to the scores of their attention, the mask included.
pub(super) struct PositionBias {
    /// `[examples · heads × positions × positions]`.
    everywhere: Tensor,
    /// `[examples · heads × answers × positions]`, for the last block of those that predict.
    answers: Option<Tensor>,
}

impl PositionBias {
    /// At all positions, or at those of the answers.
    pub(super) fn mask(&self, is_of_answers: bool) -> &Tensor {
        match &self.answers {
            Some(answers) if is_of_answers => answers,
            _ => &self.everywhere,
        }
    }
}

impl Transformer {
    /// The bias of a stack, if its positions are relative ones. With a tape every example has a copy
    /// of its own, so that its gradient is its own.
    pub(super) fn position_bias(
        &self,
        places: &StackPlaces,
        inputs: &Inputs,
        answers: Option<&Answers>,
        size: i64,
        extras: &mut Extras,
    ) -> Option<PositionBias> {
        let decoder = self.architecture.decoder();
        let (Positions::Relative(positions), Some(table)) =
            (&decoder.positions, places.relative_bias)
        else {
            return None;
        };
        let is_causal = std::ptr::eq(places, &self.places.stack);
        let (length, heads) = (inputs.length, i64::from(decoder.attention.heads));
        let pairs = (0..length).flat_map(|query| (0..length).map(move |key| key - query));
        let buckets: Vec<i64> = pairs.map(|d| positions.bucket(d, is_causal)).collect();
        let buckets = Tensor::from_slice(&buckets).to_device(self.device());
        let values = self.held.value(table).index_select(0, &buckets);
        let mut values = values.unsqueeze(0).expand([size, -1, -1], false);
        if let (Some(tape), Some(weight)) = (&mut extras.tape, self.held.position(table)) {
            values = values.contiguous();
            tape.note(Use::Buckets { weight, buckets }, &values);
        }
        let everywhere = values
            .view([size, length, length, heads])
            .permute([0, 3, 1, 2])
            .reshape([size * heads, length, length])
            + inputs.mask(false);
        let of_answers = |answers: &Answers| {
            let rows = answers.rows.remainder(length).view([size, 1, -1, 1]);
            let rows = rows.expand([-1, heads, -1, length], false);
            let by_head = everywhere.view([size, heads, length, length]);
            let chosen = by_head.gather(2, &rows, false);
            chosen.view([size * heads, -1, length])
        };
        Some(PositionBias {
            answers: answers.map(of_answers),
            everywhere,
        })
    }
}
