//! Rotary positions: queries and keys turned by angles that grow with the position.

use crate::decoder::Rotary;
use crate::torch::batch::{Answers, Inputs};
use tch::{Device, Kind, Tensor};

/// Cosines and sines, times the amplitude, of the angles of some positions, `[… positions ×
/// pairs]`. They are computed in 64 bits whatever the model computes in.
pub(super) struct Angles {
    cosines: Tensor,
    sines: Tensor,
}

impl Angles {
    /// Those of all positions, `[positions × pairs]`.
    pub(super) fn of_inputs(rotary: &Rotary, inputs: &Inputs, kind: Kind, device: Device) -> Self {
        let (first, last) = (inputs.first_position, inputs.first_position + inputs.length);
        let positions = Tensor::arange_start(first, last, (Kind::Double, Device::Cpu));
        let angles = positions.outer(&Tensor::from_slice(&rotary.frequencies));
        let place = |values: Tensor| (values * rotary.amplitude).to_device(device).to_kind(kind);
        Self {
            cosines: place(angles.cos()),
            sines: place(angles.sin()),
        }
    }

    /// Those of the answers of each example, once per head, `[examples · heads × answers ×
    /// pairs]`.
    pub(super) fn of_answers(&self, answers: &Answers, size: i64, heads: i64) -> Self {
        let positions = answers.rows.remainder(self.cosines.size()[0]);
        let choose = |values: &Tensor| {
            let pairs = values.size()[1];
            (values.index_select(0, &positions))
                .view([size, 1, -1, pairs])
                .expand([-1, heads, -1, -1], false)
                .reshape([size * heads, -1, pairs])
        };
        Self {
            cosines: choose(&self.cosines),
            sines: choose(&self.sines),
        }
    }

    /// Queries or keys, `[examples · heads × positions × head width]`, turned.
    pub(super) fn turn(&self, vectors: &Tensor) -> Tensor {
        let pairs = *self.cosines.size().last().expect("angles have pairs");
        let head_width = *vectors.size().last().expect("vectors have a width");
        let first = vectors.narrow(-1, 0, pairs);
        let second = vectors.narrow(-1, pairs, pairs);
        let rest = vectors.narrow(-1, 2 * pairs, head_width - 2 * pairs);
        let turned = [
            &first * &self.cosines - &second * &self.sines,
            &second * &self.cosines + &first * &self.sines,
            rest,
        ];
        Tensor::cat(&turned, -1)
    }
}
