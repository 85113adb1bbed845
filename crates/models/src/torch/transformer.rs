//! The decoder-only transformer and its forward pass.

use super::batch::{Answers, Batch, Place};
use super::gradients::{Tape, Use};
use super::model::{ExampleError, Model, Outputs, Targets};
use crate::device::DeviceError;
use crate::settings::TokenizedExample;
use crate::weights::{Architecture, Layout, Weights, WeightsError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

/// `ε` of the layer norms, PyTorch's default.
const NORM_EPS: f64 = 1e-5;

/// Position of a layer's parameters in the layout, relative to the layer's first.
mod at {
    pub(super) const ATTENTION_NORM: usize = 0;
    pub(super) const QKV: usize = 2;
    pub(super) const ATTENTION_OUTPUT: usize = 4;
    pub(super) const MLP_NORM: usize = 6;
    pub(super) const UP: usize = 8;
    pub(super) const DOWN: usize = 10;
    pub(super) const PER_LAYER: usize = 12;
}
pub(super) const TOKEN_EMBEDDING: usize = 0;
pub(super) const POSITION_EMBEDDING: usize = 1;
const FIRST_LAYER: usize = 2;

/// A decoder-only transformer with its parameters on a device.
///
/// Pre-norm blocks `h ← h + Attention(Norm(h))`, `h ← h + MLP(Norm(h))` with causal multi-head
/// attention and a GELU MLP of four times the width, learned positions, a final norm, and an
/// output matrix that is the token embedding ([`crate::ModelSettings::tied_output`]) or its own.
/// In the last block only the positions that predict an answer token are carried on.
///
/// Attention is written out (`softmax(q kᵀ/√d + mask) v`), so that gradients of gradients exist.
///
/// # Reference
/// Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3.
#[derive(Debug)]
pub struct Transformer {
    architecture: Architecture,
    layout: Layout,
    flat: Tensor,
    parameters: Vec<Tensor>,
    /// `[context × context]`, 0 where a position may look and −∞ where it may not.
    causal: Tensor,
}

/// Keys and values of positions that several sequences share, one pair per layer, each
/// `[heads × positions × head width]`.
pub(super) struct Prefix {
    layers: Vec<(Tensor, Tensor)>,
}

/// A linear layer: its matrix, a bias right behind it or none, and which rows of both.
struct Linear {
    weight: usize,
    has_bias: bool,
    /// First row and number of rows; `None`: all.
    rows: Option<(i64, i64)>,
}

impl Linear {
    fn whole(weight: usize) -> Self {
        Self {
            weight,
            has_bias: true,
            rows: None,
        }
    }

    fn rows(&self, first: i64, count: i64) -> Self {
        Self {
            rows: Some((first, count)),
            ..*self
        }
    }
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
    /// A model with the values of `weights`.
    pub fn new(weights: &Weights, device: tch::Device) -> Self {
        Self::with_kind(weights, device, Kind::Float)
    }

    /// As [`Transformer::new`] on a device that is tried first; LibTorch is also told to keep the
    /// memory that it frees.
    ///
    /// # Errors
    /// A device that cannot be used.
    pub fn open(weights: &Weights, device: crate::Device) -> Result<Self, DeviceError> {
        crate::native::keep_memory();
        Ok(Self::new(weights, device.open()?))
    }

    /// As [`Transformer::open`], computing in 64 bits: for what 32 do not resolve.
    ///
    /// # Errors
    /// A device that cannot be used.
    pub fn open_double(weights: &Weights, device: crate::Device) -> Result<Self, DeviceError> {
        crate::native::keep_memory();
        Ok(Self::with_kind(weights, device.open()?, Kind::Double))
    }

    /// As [`Transformer::new`], computing in `kind` (64-bit floats for tests of gradients).
    pub fn with_kind(weights: &Weights, device: tch::Device, kind: Kind) -> Self {
        let architecture = *weights.architecture();
        let layout = weights.layout().clone();
        let flat = Tensor::from_slice(weights.flat())
            .to_device(device)
            .to_kind(kind);
        let parameters = views(&layout, &flat)
            .into_iter()
            .map(|view| view.detach().set_requires_grad(true))
            .collect();
        let context = i64::from(architecture.model.context);
        let causal = Tensor::full([context, context], f64::NEG_INFINITY, (kind, device)).triu(1);
        Self {
            architecture,
            layout,
            flat,
            parameters,
            causal,
        }
    }

    /// The architecture.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// A copy of the parameters in ordinary memory, as 32-bit floats.
    ///
    /// # Errors
    /// None for a model made by this type.
    pub fn weights(&self) -> Result<Weights, WeightsError> {
        Weights::from_flat(&self.architecture, to_vec(&self.flat))
    }

    /// What is predicted at the answer positions of a batch.
    pub(super) fn outputs_with(&self, batch: &Batch, mut extras: Extras) -> Outputs {
        let hidden = self.hidden(batch, &mut extras);
        let weight = if self.architecture.model.tied_output {
            TOKEN_EMBEDDING
        } else {
            self.parameters.len() - 1
        };
        let output = Linear {
            weight,
            has_bias: false,
            rows: None,
        };
        Outputs {
            predictions: self.linear(&hidden, &output, batch.size, &mut extras.tape),
            targets: Targets::Classes(batch.answers.targets.shallow_clone()),
            weights: batch.answers.weights.shallow_clone(),
        }
    }

    /// Each example's mean negative log-likelihood per answer token, `[examples]`.
    pub(super) fn losses(&self, batch: &Batch, extras: Extras) -> Tensor {
        self.outputs_with(batch, extras).losses()
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

    /// The residual stream after the final norm at the positions that predict answer tokens,
    /// `[examples · answer length × width]`.
    fn hidden(&self, batch: &Batch, extras: &mut Extras) -> Tensor {
        let model = &self.architecture.model;
        let mut hidden = self.embed(batch, extras);
        for layer in 0..model.layers as usize {
            let is_last = layer + 1 == model.layers as usize;
            let answers = (is_last && !batch.answers.everywhere).then_some(&batch.answers);
            hidden = self.block(layer, hidden, batch, answers, extras);
        }
        let final_norm = FIRST_LAYER + at::PER_LAYER * model.layers as usize;
        self.norm(&hidden, final_norm, batch.size, &mut extras.tape)
    }

    fn embed(&self, batch: &Batch, extras: &mut Extras) -> Tensor {
        let width = i64::from(self.architecture.model.width);
        let tokens = self.parameters[TOKEN_EMBEDDING].index_select(0, &batch.tokens);
        let positions =
            self.parameters[POSITION_EMBEDDING].narrow(0, batch.first_position, batch.length);
        let embedded = tokens.view([batch.size, batch.length, width]) + positions;
        if let Some(tape) = &mut extras.tape {
            let used = Use::Embedding {
                weight: TOKEN_EMBEDDING,
                positions: POSITION_EMBEDDING,
                tokens: batch.tokens.view([batch.size, batch.length]),
            };
            tape.note(used, &embedded);
        }
        drop_out(embedded.view([-1, width]), &mut extras.dropout)
    }

    /// One block; with `answers` only those positions come out.
    fn block(
        &self,
        layer: usize,
        hidden: Tensor,
        batch: &Batch,
        answers: Option<&Answers>,
        extras: &mut Extras,
    ) -> Tensor {
        let first = FIRST_LAYER + at::PER_LAYER * layer;
        let size = batch.size;
        let normed = self.norm(&hidden, first + at::ATTENTION_NORM, size, &mut extras.tape);
        let attended = self.attention(layer, &normed, batch, answers, extras);
        let output = Linear::whole(first + at::ATTENTION_OUTPUT);
        let attended = self.linear(&attended, &output, size, &mut extras.tape);
        let hidden = match answers {
            Some(answers) => hidden.index_select(0, &answers.rows),
            None => hidden,
        };
        let hidden = hidden + drop_out(attended, &mut extras.dropout);

        let normed = self.norm(&hidden, first + at::MLP_NORM, size, &mut extras.tape);
        let (up, down) = (
            Linear::whole(first + at::UP),
            Linear::whole(first + at::DOWN),
        );
        let active = self
            .linear(&normed, &up, size, &mut extras.tape)
            .gelu("none");
        let down = self.linear(&active, &down, size, &mut extras.tape);
        hidden + drop_out(down, &mut extras.dropout)
    }

    /// Causal multi-head attention of the rows `normed`, before the output matrix.
    fn attention(
        &self,
        layer: usize,
        normed: &Tensor,
        batch: &Batch,
        answers: Option<&Answers>,
        extras: &mut Extras,
    ) -> Tensor {
        let width = i64::from(self.architecture.model.width);
        let heads = i64::from(self.architecture.model.heads);
        let qkv = Linear::whole(FIRST_LAYER + at::PER_LAYER * layer + at::QKV);
        let size = batch.size;
        let tape = &mut extras.tape;
        let (queries, keys, values) = match answers {
            None => {
                let rows = self.linear(normed, &qkv, size, tape);
                let mut parts = split_heads(&rows, size, 3, heads).into_iter();
                take_three(&mut parts)
            }
            Some(answers) => {
                let asking = normed.index_select(0, &answers.rows);
                let queries = self.linear(&asking, &qkv.rows(0, width), size, tape);
                let rows = self.linear(normed, &qkv.rows(width, 2 * width), size, tape);
                let queries = split_heads(&queries, size, 1, heads).into_iter();
                take_three(&mut queries.chain(split_heads(&rows, size, 2, heads)))
            }
        };
        if let Some(keep) = &mut extras.keep {
            keep.push((keys.shallow_clone(), values.shallow_clone()));
        }
        let (keys, values) = match extras.prefix {
            Some(prefix) => {
                let (first_keys, first_values) = &prefix.layers[layer];
                (
                    behind(first_keys, &keys, size),
                    behind(first_values, &values, size),
                )
            }
            None => (keys, values),
        };
        let mask = match answers {
            Some(answers) => answers.mask.shallow_clone(),
            None => self
                .causal
                .narrow(0, batch.first_position, batch.length)
                .narrow(1, 0, batch.first_position + batch.length),
        };
        let scale = 1.0 / ((width / heads) as f64).sqrt();
        let attention = mask
            .baddbmm(&queries, &keys.transpose(1, 2), 1.0, scale)
            .softmax(-1, None);
        join_heads(&attention.bmm(&values), size, heads)
    }

    /// `input · Wᵀ + b` with the rows of `W` and `b` that `linear` names.
    fn linear(
        &self,
        input: &Tensor,
        linear: &Linear,
        size: i64,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let part = |index: usize| match linear.rows {
            Some((first, count)) => self.parameters[index].narrow(0, first, count),
            None => self.parameters[index].shallow_clone(),
        };
        let bias = linear.has_bias.then_some(linear.weight + 1);
        let output = input.linear(&part(linear.weight), bias.map(part));
        if let Some(tape) = tape {
            let first_row = linear.rows.map_or(0, |(first, _)| first);
            let used = Use::linear(linear.weight, bias, first_row, input, size);
            tape.note(used, &output);
        }
        output
    }

    fn norm(
        &self,
        input: &Tensor,
        weight: usize,
        size: i64,
        tape: &mut Option<&mut Tape>,
    ) -> Tensor {
        let width = i64::from(self.architecture.model.width);
        let (gain, bias) = (&self.parameters[weight], &self.parameters[weight + 1]);
        let output = input.layer_norm([width], Some(gain), Some(bias), NORM_EPS, false);
        if let Some(tape) = tape {
            let plain = input.layer_norm([width], None::<Tensor>, None, NORM_EPS, false);
            tape.note(Use::norm(weight, &plain, size), &output);
        }
        output
    }
}

impl Model for Transformer {
    type Example = TokenizedExample;
    type Batch = Batch;

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn flat(&self) -> &Tensor {
        &self.flat
    }

    fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    fn check(&self, example: &TokenizedExample) -> Result<(), ExampleError> {
        Ok(example.check(
            self.architecture.vocabulary,
            self.architecture.model.context,
        )?)
    }

    fn length(&self, example: &TokenizedExample) -> usize {
        example.tokens.len() - 1
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

/// Views of a flat buffer, one per parameter.
pub(super) fn views(layout: &Layout, flat: &Tensor) -> Vec<Tensor> {
    let view = |spec: &crate::weights::ParameterSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|&length| length as i64).collect();
        flat.narrow(0, spec.offset as i64, spec.len() as i64)
            .view(&shape[..])
    };
    layout.specs().iter().map(view).collect()
}

/// All values as 32-bit floats.
pub(super) fn to_vec(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor
        .detach()
        .to_device(tch::Device::Cpu)
        .to_kind(Kind::Float)
        .contiguous();
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
}

/// `[examples · positions × parts · width]` → `parts` × `[examples · heads × positions × d]`.
fn split_heads(rows: &Tensor, size: i64, parts: i64, heads: i64) -> Vec<Tensor> {
    let head_width = rows.size()[1] / (parts * heads);
    rows.view([size, -1, parts, heads, head_width])
        .permute([2, 0, 3, 1, 4])
        .contiguous()
        .view([parts, size * heads, -1, head_width])
        .unbind(0)
}

/// `[examples · heads × positions × d]` → `[examples · positions × width]`.
fn join_heads(heads_rows: &Tensor, size: i64, heads: i64) -> Tensor {
    let shape = heads_rows.size();
    let (positions, head_width) = (shape[1], shape[2]);
    heads_rows
        .view([size, heads, positions, head_width])
        .transpose(1, 2)
        .reshape([size * positions, heads * head_width])
}

fn take_three(parts: &mut dyn Iterator<Item = Tensor>) -> (Tensor, Tensor, Tensor) {
    let mut next = || parts.next().expect("queries, keys and values");
    (next(), next(), next())
}

/// Keys or values of the shared prefix in front of those of every sequence.
fn behind(prefix: &Tensor, own: &Tensor, size: i64) -> Tensor {
    let shape = prefix.size();
    let (heads, positions, head_width) = (shape[0], shape[1], shape[2]);
    let repeated = prefix
        .unsqueeze(0)
        .expand([size, heads, positions, head_width], false)
        .reshape([size * heads, positions, head_width]);
    Tensor::cat(&[&repeated, own], 1)
}

/// Dropout masks from a generator of their own, so that runs in parallel threads do not disturb
/// each other and a resumed run draws what it would have drawn.
pub(super) struct Dropout {
    probability: f64,
    rng: ChaCha8Rng,
}

impl Dropout {
    /// The masks of step `step` of the run with `seed`; `None` without dropout.
    pub(super) fn of_step(probability: f64, seed: u64, step: u32) -> Option<Self> {
        if probability == 0.0 {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::from(step));
        Some(Self { probability, rng })
    }

    fn mask(&mut self, like: &Tensor) -> Tensor {
        let keep = 1.0 - self.probability;
        let threshold = (self.probability * 4_294_967_296.0) as u32;
        let values: Vec<f32> = (0..like.numel())
            .map(|_| {
                if self.rng.next_u32() < threshold {
                    0.0
                } else {
                    (1.0 / keep) as f32
                }
            })
            .collect();
        Tensor::from_slice(&values)
            .to_device(like.device())
            .to_kind(like.kind())
            .view_as(like)
    }
}

fn drop_out(rows: Tensor, dropout: &mut Option<&mut Dropout>) -> Tensor {
    match dropout {
        Some(dropout) => {
            let mask = dropout.mask(&rows);
            rows * mask
        }
        None => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ModelSettings, TokenizedExample};
    use crate::torch::batch::{EvaluationSet, Place};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        tied_output: bool,
        losses: Vec<f64>,
        gradient: Vec<f64>,
    }

    fn weights(tied_output: bool) -> Weights {
        let model = ModelSettings {
            layers: 2,
            heads: 2,
            width: 4,
            context: 8,
            tied_output,
            dropout: 0.0,
        };
        let architecture = Architecture::new(model, 7).unwrap();
        let layout = Layout::new(&architecture);
        let mut flat = vec![0.0; layout.flat_len()];
        let mut position = 0;
        for spec in layout.specs() {
            for slot in &mut flat[spec.offset..spec.offset + spec.len()] {
                *slot = (0.4 * (0.9 * f64::from(position) + 0.1).sin()) as f32;
                position += 1;
            }
        }
        Weights::from_flat(&architecture, flat).unwrap()
    }

    fn example(tokens: &[u32], answer_start: usize) -> TokenizedExample {
        TokenizedExample {
            tokens: tokens.to_vec(),
            answer_start,
        }
    }

    fn examples() -> Vec<TokenizedExample> {
        vec![
            example(&[1, 5, 2, 0, 6], 3),
            example(&[3, 3, 4, 1, 2, 6, 0, 5, 1], 8),
            example(&[6, 0, 2], 1),
        ]
    }

    fn check_against(case: &Case, kind: Kind, tolerance: f64) {
        let model = Transformer::with_kind(&weights(case.tied_output), tch::Device::Cpu, kind);
        let examples = examples();
        let members: Vec<&TokenizedExample> = examples.iter().collect();
        let losses = model.losses(
            &Batch::new(&members, 0, Place::of(&model)),
            Extras::default(),
        );
        for (k, expected) in case.losses.iter().enumerate() {
            let got = losses.double_value(&[k as i64]);
            assert!((got - expected).abs() < tolerance, "{got} {expected}");
        }
        let gradients = Tensor::run_backward(&[losses.sum(kind)], model.parameters(), false, false);
        let mut expected = case.gradient.iter();
        for (spec, gradient) in model.layout().specs().iter().zip(gradients) {
            for k in 0..spec.len() {
                let got = gradient.contiguous().view(-1).double_value(&[k as i64]);
                let want = expected.next().unwrap();
                assert!(
                    (got - want).abs() < tolerance,
                    "{} {k}: {got} {want}",
                    spec.name
                );
            }
        }
        assert!(expected.next().is_none());
    }

    /// Numbers by `ref_transformer.py` (PyTorch 2.13, `nn.TransformerEncoderLayer`).
    #[test]
    fn ref_losses_and_gradients_are_those_of_pytorch() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("ref_transformer.json")).unwrap();
        assert_eq!(cases.len(), 2);
        for case in &cases {
            check_against(case, Kind::Double, 1e-12);
            check_against(case, Kind::Float, 2e-5);
        }
    }

    #[test]
    fn ref_evaluation_gives_the_losses_of_pytorch_in_the_order_of_the_examples() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("ref_transformer.json")).unwrap();
        for case in &cases {
            let model = Transformer::new(&weights(case.tied_output), tch::Device::Cpu);
            for batch_size in [1, 2, 64] {
                let set = EvaluationSet::new(examples(), batch_size);
                let got = set.evaluate(&model).unwrap();
                for (got, expected) in got.losses.iter().zip(&case.losses) {
                    assert!((f64::from(*got) - expected).abs() < 1e-5);
                }
                // One answer token: 1 − p is 1 − e^(−loss).
                assert!((got.residuals[1] - (1.0 - (-got.losses[1]).exp())).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn dropout_masks_repeat_per_step_and_keep_the_mean() {
        let rows = Tensor::ones([200, 50], (Kind::Float, tch::Device::Cpu));
        let masked = |seed, step| {
            let mut dropout = Dropout::of_step(0.25, seed, step);
            to_vec(&drop_out(rows.shallow_clone(), &mut dropout.as_mut()))
        };
        let mask = masked(1, 1);
        assert_eq!(mask, masked(1, 1));
        assert_ne!(mask, masked(1, 2));
        assert_ne!(mask, masked(2, 1));
        let mean = mask.iter().sum::<f32>() / mask.len() as f32;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        assert!(Dropout::of_step(0.0, 1, 1).is_none());
    }
}
