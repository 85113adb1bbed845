//! Blocks that follow each other.

use super::relative::PositionBias;
use super::rotary::Angles;
use super::{Extras, Transformer, drop_out};
use crate::decoder::{Activation, Gate, LayerPlaces, MlpPlaces, NormPlace, Positions, StackPlaces};
use crate::torch::batch::{Answers, Batch, Inputs};
use crate::torch::model::Model;
use tch::Tensor;

/// The blocks of an encoder or of a decoder, and what all of them need of a batch.
pub(super) struct Stack<'a> {
    places: &'a StackPlaces,
    /// Number of examples.
    pub(super) size: i64,
    pub(super) inputs: &'a Inputs,
    /// What the last block is to give; `None`: all positions.
    answers: Option<&'a Answers>,
    pub(super) angles: Option<Angles>,
    bias: Option<PositionBias>,
    pub(super) memory: Option<Memory<'a>>,
}

/// What a decoder sees of an encoder.
pub(super) struct Memory<'a> {
    /// What it gives, `[examples · positions × width]`.
    pub(super) rows: &'a Tensor,
    /// `[examples · heads × 1 × positions]`: 0, or −∞ at padding.
    pub(super) mask: &'a Tensor,
}

impl<'a> Stack<'a> {
    /// The encoder.
    pub(super) fn encoder(
        model: &Transformer,
        places: &'a StackPlaces,
        source: &'a Inputs,
        size: i64,
        extras: &mut Extras,
    ) -> Self {
        Self {
            places,
            size,
            inputs: source,
            answers: None,
            angles: model.angles(source),
            bias: model.position_bias(places, source, None, size, extras),
            memory: None,
        }
    }

    /// The blocks that predict, behind what an encoder gives if there is one.
    pub(super) fn decoder(
        model: &'a Transformer,
        batch: &'a Batch,
        memory: Option<&'a Tensor>,
        extras: &mut Extras,
    ) -> Self {
        let (places, inputs) = (&model.places.stack, &batch.inputs);
        let answers = (!batch.answers.everywhere).then_some(&batch.answers);
        Self {
            places,
            size: batch.size,
            inputs,
            answers,
            angles: model.angles(inputs),
            bias: model.position_bias(places, inputs, answers, batch.size, extras),
            memory: memory
                .zip(batch.source.as_ref())
                .map(|(rows, source)| Memory {
                    rows,
                    mask: source.mask(false),
                }),
        }
    }

    /// Number of blocks.
    pub(super) fn layers(&self) -> usize {
        self.places.layers.len()
    }

    pub(super) fn layer(&self, layer: usize) -> &LayerPlaces {
        &self.places.layers[layer]
    }

    /// The answers, in the last block of those that predict.
    pub(super) fn answers_at(&self, layer: usize) -> Option<&'a Answers> {
        let is_last = layer + 1 == self.layers();
        self.answers.filter(|_| is_last)
    }

    /// What is added to the scores of a block's attention.
    pub(super) fn mask(&self, layer: usize, is_windowed: bool) -> &Tensor {
        match (&self.bias, self.answers_at(layer)) {
            (Some(bias), answers) => bias.mask(answers.is_some()),
            (None, Some(answers)) => &answers.mask,
            (None, None) => self.inputs.mask(is_windowed),
        }
    }
}

impl Transformer {
    fn angles(&self, inputs: &Inputs) -> Option<Angles> {
        match &self.architecture.decoder().positions {
            Positions::Rotary(rotary) => {
                let (kind, device) = (self.kind(), self.device());
                Some(Angles::of_inputs(rotary, inputs, kind, device))
            }
            Positions::Learned { .. } | Positions::Relative(_) => None,
        }
    }

    /// All blocks and the norm behind them.
    pub(super) fn run(&self, stack: &Stack, mut hidden: Tensor, extras: &mut Extras) -> Tensor {
        for layer in 0..stack.layers() {
            hidden = self.block(stack, layer, hidden, extras);
        }
        self.behind_blocks(stack, hidden, extras)
    }

    /// The norm behind the last block.
    pub(super) fn behind_blocks(
        &self,
        stack: &Stack,
        mut hidden: Tensor,
        extras: &mut Extras,
    ) -> Tensor {
        if let Some(norm) = stack.places.final_norm {
            hidden = self.norm(&hidden, norm, stack.size, &mut extras.tape);
        }
        hidden
    }

    /// One block; with answers only those positions come out.
    pub(super) fn block(
        &self,
        stack: &Stack,
        layer: usize,
        hidden: Tensor,
        extras: &mut Extras,
    ) -> Tensor {
        let decoder = self.architecture.decoder();
        let (places, size) = (stack.layer(layer), stack.size);
        let attended = match decoder.norm_place {
            NormPlace::Before => {
                let input = self.norm(&hidden, places.attention_norm, size, &mut extras.tape);
                self.attention(stack, layer, &input, extras)
            }
            NormPlace::After => self.attention(stack, layer, &hidden, extras),
        };
        let attended = self.linear(&attended, places.attention_output, size, extras);
        let attended = drop_out(attended, &mut extras.dropout, |rates| rates.residual);
        let hidden = match stack.answers_at(layer) {
            Some(answers) => hidden.index_select(0, &answers.rows),
            None => hidden,
        };
        match decoder.norm_place {
            NormPlace::Before if decoder.is_parallel => {
                let transformed = self.normed_mlp(&hidden, places, size, extras);
                hidden + attended + transformed
            }
            NormPlace::Before => {
                let hidden = self.with_memory(stack, places, hidden + attended, extras);
                let transformed = self.normed_mlp(&hidden, places, size, extras);
                hidden + transformed
            }
            NormPlace::After => {
                let hidden = hidden + attended;
                let hidden = self.norm(&hidden, places.attention_norm, size, &mut extras.tape);
                let hidden = &hidden + self.mlp(&hidden, places.mlp, size, extras);
                self.norm(&hidden, places.mlp_norm, size, &mut extras.tape)
            }
        }
    }

    /// The residual stream with what the attention to an encoder adds to it.
    fn with_memory(
        &self,
        stack: &Stack,
        places: &LayerPlaces,
        hidden: Tensor,
        extras: &mut Extras,
    ) -> Tensor {
        let (Some(cross), Some(memory)) = (places.cross, &stack.memory) else {
            return hidden;
        };
        let size = stack.size;
        let input = self.norm(&hidden, cross.norm, size, &mut extras.tape);
        let attended = self.cross_attention(&cross.qkv, &input, memory, size, extras);
        let attended = self.linear(&attended, cross.output, size, extras);
        hidden + drop_out(attended, &mut extras.dropout, |rates| rates.residual)
    }

    /// The MLP of a block behind its norm.
    fn normed_mlp(
        &self,
        hidden: &Tensor,
        places: &LayerPlaces,
        size: i64,
        extras: &mut Extras,
    ) -> Tensor {
        let normed = self.norm(hidden, places.mlp_norm, size, &mut extras.tape);
        self.mlp(&normed, places.mlp, size, extras)
    }

    fn mlp(&self, input: &Tensor, places: MlpPlaces, size: i64, extras: &mut Extras) -> Tensor {
        let mlp = &self.architecture.decoder().mlp;
        let up = self.linear(input, places.up, size, extras);
        let inner = match (mlp.gate, places.gate) {
            (Gate::Separate, Some(gate)) => {
                let gate = self.linear(input, gate, size, extras);
                activate(mlp.activation, &gate) * up
            }
            (Gate::Fused, _) => {
                let parts = up.chunk(2, 1);
                activate(mlp.activation, &parts[0]) * &parts[1]
            }
            _ => activate(mlp.activation, &up),
        };
        let inner = drop_out(inner, &mut extras.dropout, |rates| rates.activation);
        let down = self.linear(&inner, places.down, size, extras);
        drop_out(down, &mut extras.dropout, |rates| rates.residual)
    }
}

fn activate(activation: Activation, values: &Tensor) -> Tensor {
    match activation {
        Activation::Relu => values.relu(),
        Activation::Gelu => values.gelu("none"),
        Activation::GeluTanh => values.gelu("tanh"),
        Activation::Silu => values.silu(),
    }
}
