//! The transformer and its forward pass.

mod attention;
mod checkpointing;
mod dropout;
mod relative;
mod rotary;
mod stack;
#[cfg(test)]
mod tests;

pub(super) use dropout::Dropout;

use super::batch::{Batch, Inputs, Place};
use super::gradients::{Tape, Use};
use super::model::{ExampleError, Model, Outputs, Targets};
use super::parameters::Parameters;
use crate::decoder::{
    Adapter, Adapters, Affine, Linear, Norm, NormKind, Places, Positions, layout,
};
use crate::precision::Precision;
use crate::settings::TokenizedExample;
use crate::weight_decay::WeightDecayGroups;
use crate::weights::{Architecture, Layout, Weights, WeightsError};
use dropout::drop_out;
use stack::Stack;
use tch::{Kind, Tensor};

/// A transformer with its parameters on a device: what its [`Decoder`](crate::decoder::Decoder)
/// says. In the last block only the positions that predict an answer token are carried on.
///
/// [`Model::parameters`] are those that are trained
/// ([`Architecture::trainable`](crate::Architecture::trainable)): gradients, optimisers and
/// attribution see no others.
#[derive(Debug)]
pub struct Transformer {
    architecture: Architecture,
    places: Places,
    held: Parameters,
    precision: Precision,
}

/// Logits that evaluating holds at a time: 16 MiB in 32 bits.
const LOGITS_AT_ONCE: i64 = 1 << 22;

/// Keys and values of positions that several sequences share, one pair per layer, each
/// `[heads of keys × positions × head width]`.
pub(super) struct Prefix {
    layers: Vec<(Tensor, Tensor)>,
}

/// What a forward pass does besides computing.
#[derive(Default)]
pub(super) struct Extras<'a> {
    pub tape: Option<&'a mut Tape>,
    pub dropout: Option<&'a mut Dropout>,
    pub prefix: Option<&'a Prefix>,
    /// Keys and values are pushed here.
    pub keep: Option<&'a mut Vec<(Tensor, Tensor)>>,
}

impl Transformer {
    /// A model with the values of `weights`, computing in `kind`.
    ///
    /// [`Network`](crate::Network) opens whatever model some weights are of.
    pub fn with_kind(weights: &Weights, device: tch::Device, kind: Kind) -> Self {
        let architecture = weights.architecture().clone();
        let (whole, places) = layout(architecture.decoder());
        let chosen = architecture.chosen();
        let all = Tensor::from_slice(weights.flat())
            .to_device(device)
            .to_kind(kind);
        Self {
            architecture,
            places,
            held: Parameters::new(whole, &chosen, all),
            precision: Precision::F32,
        }
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Whether weight decay applies to each trained parameter.
    pub(super) fn decayed(&self, groups: WeightDecayGroups) -> Vec<bool> {
        let decayed = groups.decayed(self.held.whole(), &self.places);
        self.held.of_trained(decayed)
    }

    /// A copy of all parameters in ordinary memory, as 32-bit floats.
    ///
    /// # Errors
    /// None for a model made by this type.
    pub fn weights(&self) -> Result<Weights, WeightsError> {
        Weights::from_flat(&self.architecture, self.held.all())
    }

    /// Takes over the parameters of the same architecture.
    pub(super) fn set(&mut self, weights: &Weights) {
        self.held.set(weights.flat());
    }

    /// From here on matrix products are computed with this precision.
    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// What is predicted at the answer positions of a batch.
    pub(super) fn outputs_with(&self, batch: &Batch, mut extras: Extras) -> Outputs {
        let hidden = self.hidden(batch, &mut extras);
        self.outputs_of(&hidden, batch, &mut extras)
    }

    /// What the output matrix makes of what it reads.
    fn outputs_of(&self, hidden: &Tensor, batch: &Batch, extras: &mut Extras) -> Outputs {
        let output = self.places.output;
        Outputs {
            predictions: self.linear(hidden, output, batch.size, extras),
            targets: Targets::Classes(batch.answers.targets.shallow_clone()),
            weights: batch.answers.weights.shallow_clone(),
        }
    }

    /// The loss at each answer position, `[examples × positions]`, and the share of each in its
    /// example's loss, behind a shared beginning; without gradient. At a position of weight 0 the
    /// loss is arbitrary and finite. The output matrix is multiplied with some rows after the
    /// other, so that there are never more than [`LOGITS_AT_ONCE`] logits.
    pub(super) fn position_losses(
        &self,
        batch: &Batch,
        prefix: Option<&Prefix>,
    ) -> (Tensor, Tensor) {
        let mut extras = Extras {
            prefix,
            ..Extras::default()
        };
        let hidden = self.hidden(batch, &mut extras);
        let (answers, vocabulary) = (&batch.answers, self.architecture.decoder().vocabulary);
        let rows = (LOGITS_AT_ONCE / i64::from(vocabulary)).max(1);
        let losses: Vec<Tensor> = (hidden.split(rows, 0).iter())
            .zip(answers.targets.split(rows, 0))
            .map(|(hidden, targets)| {
                let logits = self.linear(
                    hidden,
                    self.places.output,
                    batch.size,
                    &mut Extras::default(),
                );
                let targets = targets.unsqueeze(1);
                -logits.log_softmax(-1, None).gather(1, &targets, false)
            })
            .collect();
        let losses = Tensor::cat(&losses, 0).view_as(&answers.weights);
        (losses, answers.weights.shallow_clone())
    }

    /// Keys and values of a sequence that others start with.
    pub(super) fn prefix(&self, batch: &Batch) -> Prefix {
        let mut layers = Vec::new();
        let mut extras = Extras {
            keep: Some(&mut layers),
            ..Extras::default()
        };
        let _ = self.hidden(batch, &mut extras);
        Prefix { layers }
    }

    /// What the output matrix reads at the positions that predict answer tokens, `[examples ·
    /// answer length × embedding width]`.
    fn hidden(&self, batch: &Batch, extras: &mut Extras) -> Tensor {
        let memory = self.places.encoder.as_ref().zip(batch.source.as_ref());
        let memory = memory.map(|(places, source)| {
            let hidden = self.embed(source, batch.size, extras);
            let stack = Stack::encoder(self, places, source, batch.size, extras);
            let hidden = self.run(&stack, hidden, extras);
            drop_out(hidden, &mut extras.dropout, |rates| rates.output)
        });
        let hidden = self.embed(&batch.inputs, batch.size, extras);
        let stack = Stack::decoder(self, batch, memory.as_ref(), extras);
        let hidden = self.run(&stack, hidden, extras);
        self.projected(hidden, batch.size, extras)
    }

    /// What the output matrix reads, of what the blocks give.
    fn projected(&self, hidden: Tensor, size: i64, extras: &mut Extras) -> Tensor {
        let decoder = self.architecture.decoder();
        let hidden = match self.places.pooler {
            Some(pooler) => self.linear(&hidden, pooler, size, extras).tanh(),
            None => hidden,
        };
        let hidden = drop_out(hidden, &mut extras.dropout, |rates| rates.output);
        let hidden = match decoder.is_output_scaled {
            true => hidden / f64::from(decoder.width).sqrt(),
            false => hidden,
        };
        match self.places.project_out {
            Some(project) => self.linear(&hidden, project, size, extras),
            None => hidden,
        }
    }

    /// The residual stream that enters the first block, `[examples · positions × width]`.
    fn embed(&self, inputs: &Inputs, size: i64, extras: &mut Extras) -> Tensor {
        let decoder = self.architecture.decoder();
        let length = inputs.length;
        let mut hidden = self
            .held
            .value(self.places.token_embedding)
            .index_select(0, &inputs.tokens);
        let trained = self.held.position(self.places.token_embedding);
        if let (Some(tape), Some(weight)) = (&mut extras.tape, trained) {
            let used = Use::Embedding {
                weight,
                tokens: inputs.tokens.view([size, length]),
            };
            tape.note(used, &hidden);
        }
        if let Some(types) = self.places.token_types {
            hidden = hidden.view([size, length, -1]) + self.held.value(types).get(0);
            if let (Some(tape), Some(weight)) = (&mut extras.tape, self.held.position(types)) {
                let buckets = inputs.tokens.narrow(0, 0, length).zeros_like();
                tape.note(Use::Buckets { weight, buckets }, &hidden);
            }
        }
        if let Some(project) = self.places.project_in {
            hidden = self.linear(&hidden, project, size, extras);
        }
        if let (Some(weight), Positions::Learned { offset }) =
            (self.places.position_embedding, &decoder.positions)
        {
            let first = i64::from(*offset) + inputs.first_position;
            let rows = self.held.value(weight).narrow(0, first, length);
            hidden = hidden.view([size, length, -1]) + rows;
            if let (Some(tape), Some(weight)) = (&mut extras.tape, self.held.position(weight)) {
                tape.note(Use::Positions { weight, first }, &hidden);
            }
        }
        let mut hidden = hidden.view([-1, i64::from(decoder.width)]);
        if let Some(norm) = self.places.embedding_norm {
            hidden = self.norm(&hidden, norm, size, &mut extras.tape);
        }
        drop_out(hidden, &mut extras.dropout, |rates| rates.embedding)
    }

    /// `input · Wᵀ + b` of tensors, in the precision of this model's matrix products.
    fn product(&self, input: &Tensor, weight: &Tensor, bias: Option<Tensor>) -> Tensor {
        match self.precision {
            Precision::F32 => input.linear(weight, bias),
            Precision::Bf16 => {
                (half(input).linear(&half(weight), bias.as_ref().map(half))).to_kind(input.kind())
            }
        }
    }

    /// Products of as many matrices, in the same precision.
    fn bmm(&self, left: &Tensor, right: &Tensor) -> Tensor {
        match self.precision {
            Precision::F32 => left.bmm(right),
            Precision::Bf16 => half(left).bmm(&half(right)).to_kind(left.kind()),
        }
    }

    /// `input · Wᵀ + b`.
    fn linear(&self, input: &Tensor, linear: Linear, size: i64, extras: &mut Extras) -> Tensor {
        self.linear_rows(input, linear, None, size, extras)
    }

    /// The same with so many rows of `W` and `b`, from a first on; `None`: all.
    fn linear_rows(
        &self,
        input: &Tensor,
        linear: Linear,
        rows: Option<(i64, i64)>,
        size: i64,
        extras: &mut Extras,
    ) -> Tensor {
        let tape = &mut extras.tape;
        let part = |index: usize| match rows {
            Some((first, count)) => self.held.value(index).narrow(0, first, count),
            None => self.held.value(index).shallow_clone(),
        };
        let scaled;
        let input = match linear.adapter {
            Some(Adapter::Input(factors)) => {
                scaled = self.scale(input, factors, self.held.value(factors), 0, size, tape);
                &scaled
            }
            _ => input,
        };
        let output = self.product(input, &part(linear.weight), linear.bias.map(part));
        let first_row = rows.map_or(0, |(first, _)| first);
        if let Some(tape) = tape {
            let bias = linear.bias.and_then(|bias| self.held.position(bias));
            match (self.held.position(linear.weight), bias) {
                (Some(weight), bias) => {
                    tape.note(Use::linear(weight, bias, first_row, input, size), &output);
                }
                (None, Some(bias)) => tape.note(Use::Bias { bias, first_row }, &output),
                (None, None) => {}
            }
        }
        match (linear.adapter, &self.architecture.decoder().adapters) {
            (Some(Adapter::LowRank(places)), Some(Adapters::Lora(lora))) => {
                let input = input.shallow_clone();
                let input = drop_out(input, &mut extras.dropout, |rates| rates.adapter);
                output + self.low_rank(places, &input, first_row, &part, size, tape) * lora.scale
            }
            (Some(Adapter::Output(factors)), _) => {
                self.scale(&output, factors, &part(factors), first_row, size, tape)
            }
            _ => output,
        }
    }

    /// `rows ∘ l`, with the part `values` of the factors `l` from `first` on.
    fn scale(
        &self,
        rows: &Tensor,
        factors: usize,
        values: &Tensor,
        first: i64,
        size: i64,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let output = rows * values.view(-1);
        if let (Some(tape), Some(factors)) = (tape, self.held.position(factors)) {
            tape.note(Use::scale(factors, first, rows, size), &output);
        }
        output
    }

    /// `B A x`, with the rows of `B` that `part` gives.
    fn low_rank(
        &self,
        [a, b]: [usize; 2],
        input: &Tensor,
        first_row: i64,
        part: &dyn Fn(usize) -> Tensor,
        size: i64,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let inner = self.product(input, self.held.value(a), None);
        let output = self.product(&inner, &part(b), None);
        if let (Some(tape), Some(a), Some(b)) = (tape, self.held.position(a), self.held.position(b))
        {
            tape.note(Use::linear(a, None, 0, input, size), &inner);
            tape.note(Use::linear(b, None, first_row, &inner, size), &output);
        }
        output
    }

    fn norm(
        &self,
        input: &Tensor,
        places: Affine,
        size: i64,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let norm = self.architecture.decoder().norm;
        let gain = self.held.value(places.weight);
        let bias = places.bias.map(|bias| self.held.value(bias));
        let output = match norm.kind {
            NormKind::LayerNorm => input.layer_norm(gain.size(), Some(gain), bias, norm.eps, false),
            NormKind::RmsNorm => normalised(input, norm) * gain,
        };
        let weight = self.held.position(places.weight);
        let bias = places.bias.and_then(|bias| self.held.position(bias));
        if let Some(tape) = tape
            && (weight.is_some() || bias.is_some())
        {
            let plain = tch::no_grad(|| normalised(input, norm));
            tape.note(Use::norm(weight, bias, &plain, size), &output);
        }
        output
    }
}

/// The nearest 16-bit floats.
fn half(values: &Tensor) -> Tensor {
    values.to_kind(Kind::BFloat16)
}

/// What a norm does before gain and bias.
fn normalised(input: &Tensor, norm: Norm) -> Tensor {
    match norm.kind {
        NormKind::LayerNorm => {
            let width = *input.size().last().expect("rows have a width");
            input.layer_norm([width], None::<&Tensor>, None, norm.eps, false)
        }
        NormKind::RmsNorm => {
            let square = input.square().mean_dim(-1, true, None);
            input * (square + norm.eps).rsqrt()
        }
    }
}

impl Model for Transformer {
    type Example = TokenizedExample;
    type Batch = Batch;

    fn layout(&self) -> &Layout {
        self.held.layout()
    }

    fn flat(&self) -> &Tensor {
        self.held.flat()
    }

    fn parameters(&self) -> &[Tensor] {
        self.held.trained()
    }

    fn check(&self, example: &TokenizedExample) -> Result<(), ExampleError> {
        Ok(self.architecture.check(example)?)
    }

    fn length(&self, example: &TokenizedExample) -> usize {
        example.tokens.len() - 1
    }

    fn targets(&self, example: &TokenizedExample) -> usize {
        example.target_count()
    }

    fn batch(&self, examples: &[&TokenizedExample]) -> Batch {
        Batch::new(examples, 0, Place::of(self))
    }

    fn outputs(&self, batch: &Batch, tape: Option<&mut Tape>) -> Outputs {
        let extras = Extras {
            tape,
            ..Extras::default()
        };
        self.outputs_with(batch, extras)
    }
}
