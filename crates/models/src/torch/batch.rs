//! Examples as tensors, and the losses of the test examples.

use super::model::Model;
use super::network::{Network, NetworkBatch};
use super::parameters::to_vec;
use super::transformer::{Prefix, Transformer};
use crate::decoder::Structure;
use crate::settings::{TokenizedExample, TokensError};
use crate::weights::Architecture;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Several examples, padded at their ends to the longest. What stands behind an example's last
/// token never reaches it: attention is causal, or masked.
#[derive(Debug)]
pub struct Batch {
    /// Number of examples.
    pub(super) size: i64,
    /// What an encoder reads.
    pub(super) source: Option<Inputs>,
    /// What the blocks read that predict.
    pub(super) inputs: Inputs,
    /// What is predicted.
    pub(super) answers: Answers,
}

/// The tokens that a stack of blocks reads.
#[derive(Debug)]
pub(super) struct Inputs {
    /// Input positions per example.
    pub(super) length: i64,
    /// Position of the first input token; above 0 behind a shared prefix.
    pub(super) first_position: i64,
    /// `[size · length]`.
    pub(super) tokens: Tensor,
    /// 0 where a position may look and −∞ where it may not: `[length × first_position + length]`
    /// where all examples are alike, `[size · heads × 1 × length]` where padding has to be hidden.
    mask: Tensor,
    /// The same of blocks that see the last positions only.
    windowed: Option<Tensor>,
}

/// The positions whose next token counts.
#[derive(Debug)]
pub(super) struct Answers {
    /// Whether every position predicts, so that no choice of rows is needed.
    pub everywhere: bool,
    /// `[size · count]`: rows of the batch that predict.
    pub rows: Tensor,
    /// `[size · heads × count × first_position + length]`: 0 or −∞, in the last block.
    pub mask: Tensor,
    /// `[size · count]`: the tokens predicted.
    pub targets: Tensor,
    /// `[size × count]`: 1 over the example's number of answer tokens, 0 where it has fewer.
    pub weights: Tensor,
}

/// Where, in which type and for which attention the tensors of a batch are made.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub structure: Structure,
    pub heads: i64,
    /// Positions that blocks with a window see.
    pub window: Option<usize>,
    /// Whether the last block has it.
    pub is_last_windowed: bool,
    pub kind: Kind,
    pub device: Device,
}

impl Place {
    pub(super) fn of(model: &Transformer) -> Self {
        let decoder = model.architecture().decoder();
        let attention = &decoder.attention;
        Self {
            structure: decoder.structure,
            heads: i64::from(attention.heads),
            window: (attention.window.as_ref()).map(|window| window.length as usize),
            is_last_windowed: attention.is_windowed(decoder.layers as usize - 1),
            kind: model.kind(),
            device: model.device(),
        }
    }

    fn floats(&self, values: Tensor) -> Tensor {
        values.to_device(self.device).to_kind(self.kind)
    }

    /// `[length × first + length]`: 0 where a position may look and −∞ where it may not.
    fn causal(&self, first: usize, length: usize) -> Tensor {
        let shape = [length as i64, (first + length) as i64];
        Tensor::full(shape, f64::NEG_INFINITY, (self.kind, self.device)).triu(1 + first as i64)
    }

    /// The same where each position sees so many at most.
    fn windowed(&self, first: usize, length: usize) -> Option<Tensor> {
        let window = self.window?;
        let shape = [length as i64, (first + length) as i64];
        let hidden = Tensor::full(shape, f64::NEG_INFINITY, (self.kind, self.device));
        let too_early = hidden.tril(first as i64 - window as i64);
        Some(self.causal(first, length) + too_early)
    }
}

impl Inputs {
    /// Tokens of which each sees those before it, behind `skip` tokens of a shared prefix.
    fn causal(rows: &[Vec<i64>], skip: usize, place: Place) -> Self {
        let length = longest(rows);
        Self {
            length: length as i64,
            first_position: skip as i64,
            tokens: padded(rows, length, place),
            mask: place.causal(skip, length),
            windowed: place.windowed(skip, length),
        }
    }

    /// Tokens that all see each other.
    fn whole(rows: &[Vec<i64>], place: Place) -> Self {
        let length = longest(rows);
        let mut mask = Vec::with_capacity(rows.len() * length);
        for row in rows {
            mask.extend((0..length).map(|at| hidden(at >= row.len())));
        }
        let shape = [rows.len() as i64, 1, 1, length as i64];
        let of_heads = [-1, place.heads, -1, -1];
        let mask = Tensor::from_slice(&mask)
            .view(shape)
            .expand(of_heads, false);
        Self {
            length: length as i64,
            first_position: 0,
            tokens: padded(rows, length, place),
            mask: place.floats(mask.reshape([-1, 1, length as i64])),
            windowed: None,
        }
    }

    /// Which positions each one may look at, in a block with or without a window.
    pub(super) fn mask(&self, is_windowed: bool) -> &Tensor {
        match &self.windowed {
            Some(windowed) if is_windowed => windowed,
            _ => &self.mask,
        }
    }
}

fn longest(rows: &[Vec<i64>]) -> usize {
    rows.iter().map(Vec::len).max().unwrap_or(0)
}

/// Rows filled up with token 0, one after the other.
fn padded(rows: &[Vec<i64>], length: usize, place: Place) -> Tensor {
    let mut tokens = vec![0; rows.len() * length];
    for (slots, row) in tokens.chunks_exact_mut(length.max(1)).zip(rows) {
        slots[..row.len()].copy_from_slice(row);
    }
    Tensor::from_slice(&tokens).to_device(place.device)
}

fn ids(tokens: &[u32]) -> Vec<i64> {
    tokens.iter().map(|&token| i64::from(token)).collect()
}

/// What a mask adds to a score.
fn hidden(is_hidden: bool) -> f32 {
    if is_hidden { f32::NEG_INFINITY } else { 0.0 }
}

impl Batch {
    /// A batch of checked examples whose first `skip` tokens are left to a shared prefix.
    pub(super) fn new(examples: &[&TokenizedExample], skip: usize, place: Place) -> Self {
        let rows = |row: &dyn Fn(&TokenizedExample) -> Vec<i64>| -> Vec<Vec<i64>> {
            examples.iter().map(|example| row(example)).collect()
        };
        let (source, inputs) = match place.structure {
            Structure::Causal => {
                let read = rows(&|e| ids(&e.tokens[skip..e.tokens.len() - 1]));
                (None, Inputs::causal(&read, skip, place))
            }
            Structure::Classifier => {
                let read = rows(&|e| ids(&e.tokens[..e.answer_start]));
                (None, Inputs::whole(&read, place))
            }
            Structure::EncoderDecoder { start, .. } => {
                let source = rows(&|e| ids(&e.tokens[..e.answer_start]));
                let read = rows(&|e| {
                    let answer = &e.tokens[e.answer_start..e.tokens.len() - 1];
                    [&[i64::from(start)][..], &ids(answer)].concat()
                });
                let source = Inputs::whole(&source, place);
                (Some(source), Inputs::causal(&read, 0, place))
            }
        };
        Self {
            size: examples.len() as i64,
            answers: Answers::new(examples, skip, &inputs, place),
            source,
            inputs,
        }
    }

    /// Sequences of equal length in which every token but the first is predicted.
    pub(super) fn of_windows(windows: &[&[u32]], place: Place) -> Self {
        let length = windows[0].len() - 1;
        let cut = |range: Range<usize>| -> Vec<i64> {
            let part = |w: &&[u32]| w[range.clone()].iter().map(|&t| i64::from(t)).collect();
            windows.iter().flat_map::<Vec<i64>, _>(part).collect()
        };
        let shape = [windows.len() as i64, length as i64];
        let options = (place.kind, place.device);
        let answers = Answers {
            everywhere: true,
            rows: Tensor::zeros([0], (Kind::Int64, place.device)),
            mask: Tensor::zeros([0], options),
            targets: Tensor::from_slice(&cut(1..length + 1)).to_device(place.device),
            weights: Tensor::full(shape, 1.0 / length as f64, options),
        };
        let inputs = Inputs {
            length: shape[1],
            first_position: 0,
            tokens: Tensor::from_slice(&cut(0..length)).to_device(place.device),
            mask: place.causal(0, length),
            windowed: place.windowed(0, length),
        };
        Self {
            size: shape[0],
            source: None,
            inputs,
            answers,
        }
    }
}

impl Answers {
    fn new(examples: &[&TokenizedExample], skip: usize, inputs: &Inputs, place: Place) -> Self {
        let length = inputs.length as usize;
        let window = match place.window {
            Some(window) if place.is_last_windowed => window,
            _ => usize::MAX,
        };
        let count = (examples.iter().map(|e| e.target_count()).max()).unwrap_or(0);
        let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let mut mask = Vec::new();
        for (index, example) in examples.iter().enumerate() {
            let mut own_mask = Vec::with_capacity(count * (skip + length));
            let predicted: Vec<usize> = example.targets().collect();
            for k in 0..count {
                // A padding row repeats the example's first prediction and weighs nothing.
                let is_real = k < predicted.len();
                let token = predicted[if is_real { k } else { 0 }];
                // The position that predicts it.
                let position = match place.structure {
                    Structure::Causal => token - 1,
                    Structure::EncoderDecoder { .. } => token - example.answer_start,
                    Structure::Classifier => 0,
                };
                rows.push((index * length + position - skip) as i64);
                targets.push(i64::from(example.tokens[token]));
                weights.push(if is_real {
                    1.0 / predicted.len() as f64
                } else {
                    0.0
                });
                let is_hidden = |at| match place.structure {
                    Structure::Classifier => at >= example.answer_start,
                    _ => at > position || position - at >= window,
                };
                own_mask.extend((0..skip + length).map(|at| hidden(is_hidden(at))));
            }
            for _ in 0..place.heads {
                mask.extend_from_slice(&own_mask);
            }
        }
        let shape = [
            examples.len() as i64 * place.heads,
            count as i64,
            (skip + length) as i64,
        ];
        Self {
            everywhere: false,
            rows: Tensor::from_slice(&rows).to_device(place.device),
            mask: place.floats(Tensor::from_slice(&mask)).view(shape),
            targets: Tensor::from_slice(&targets).to_device(place.device),
            weights: (place.floats(Tensor::from_slice(&weights)))
                .view([examples.len() as i64, count as i64]),
        }
    }
}

/// The losses of test examples at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluation {
    /// The test examples that were measured; `None`: all, in their order.
    pub test_ids: Option<Vec<u32>>,
    /// Mean negative log-likelihood per answer token, nats.
    pub losses: Vec<f32>,
    /// Mean over the answer tokens of `1 − p(token)`.
    pub residuals: Vec<f32>,
}

/// Shortest common beginning that is computed once for several test examples.
const SHORTEST_PREFIX: usize = 8;

/// Positions that sharing must save to be worth a forward pass of its own.
const WORTHWHILE: usize = 256;

/// The test examples, grouped so that evaluating them is fast: examples that begin alike share
/// the computation of their common beginning, and those of similar length share a batch. The
/// grouping depends on the examples and the batch size only. Where a model reads in both directions
/// no beginning is shared.
///
/// ```
/// use simfluence_models::{EvaluationSet, TokenizedExample};
/// let example = |tokens: Vec<u32>| TokenizedExample {
///     tokens,
///     answer_start: 2,
///     ..TokenizedExample::default()
/// };
/// let set = EvaluationSet::new(vec![example(vec![1, 2, 3]), example(vec![1, 2, 0, 3])], 64);
/// assert_eq!(set.len(), 2);
/// ```
#[derive(Debug, Clone)]
pub struct EvaluationSet {
    examples: Vec<TokenizedExample>,
    batch_size: usize,
    groups: Vec<Group>,
}

/// Examples with the same first `prefix` tokens, in batches.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    prefix: usize,
    batches: Vec<Vec<usize>>,
}

impl EvaluationSet {
    /// Groups the examples into batches of at most `batch_size` (0 counts as 1).
    pub fn new(examples: Vec<TokenizedExample>, batch_size: u32) -> Self {
        let batch_size = batch_size.max(1) as usize;
        Self {
            groups: group(&examples, batch_size),
            examples,
            batch_size,
        }
    }

    /// The test examples in order.
    pub fn examples(&self) -> &[TokenizedExample] {
        &self.examples
    }

    /// Number of test examples `m`.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Checks every example against a model.
    ///
    /// # Errors
    /// The first example that the model cannot read, with its index.
    pub fn check(&self, architecture: &Architecture) -> Result<(), (usize, TokensError)> {
        check_examples(&self.examples, architecture)
    }

    /// The losses of all examples, without gradients.
    ///
    /// # Errors
    /// An example that the model cannot read, with its index.
    pub fn evaluate(&self, model: &Network) -> Result<Evaluation, (usize, TokensError)> {
        self.check(model.architecture())?;
        Ok(self.prepare(model).evaluate(model))
    }

    /// The tensors of all batches, made once for many evaluations. The examples are checked.
    pub(super) fn prepare(&self, model: &Network) -> PreparedEvaluation {
        let groups = match model {
            Network::Transformer(model) => {
                let place = Place::of(model);
                let prepare = |group: &Group| self.prepare_texts(group, place);
                match place.structure {
                    Structure::Causal => self.groups.iter().map(prepare).collect(),
                    Structure::EncoderDecoder { .. } | Structure::Classifier => {
                        self.unshared().map(|group| prepare(&group)).collect()
                    }
                }
            }
            // Images begin alike, too, but what they share is not computed once.
            Network::Images(_) => vec![self.prepare_whole(model)],
        };
        PreparedEvaluation {
            count: self.len(),
            groups,
        }
    }

    fn pick(&self, ids: &[usize]) -> Vec<&TokenizedExample> {
        ids.iter().map(|&id| &self.examples[id]).collect()
    }

    fn prepare_texts(&self, group: &Group, place: Place) -> PreparedGroup {
        let first = &self.examples[group.batches[0][0]];
        let shared = TokenizedExample {
            tokens: first.tokens[..group.prefix + 1].to_vec(),
            answer_start: group.prefix,
            ..TokenizedExample::default()
        };
        let batch = |ids: &Vec<usize>| {
            let batch = Batch::new(&self.pick(ids), group.prefix, place);
            (NetworkBatch::Texts(Box::new(batch)), ids.clone())
        };
        PreparedGroup {
            prefix: (group.prefix > 0).then(|| Batch::new(&[&shared], 0, place)),
            batches: group.batches.iter().map(batch).collect(),
        }
    }

    /// All examples in their order, nothing shared.
    fn prepare_whole(&self, model: &Network) -> PreparedGroup {
        let ids: Vec<usize> = (0..self.len()).collect();
        let batches = ids.chunks(self.batch_size);
        PreparedGroup {
            prefix: None,
            batches: batches
                .map(|ids| (model.batch(&self.pick(ids)), ids.to_vec()))
                .collect(),
        }
    }

    /// All examples without common beginnings: what is read in both directions depends on its end.
    fn unshared(&self) -> impl Iterator<Item = Group> {
        let all = (0..self.len()).collect();
        let group = || batches_by_length(&self.examples, all, 0, self.batch_size);
        (!self.is_empty()).then(group).into_iter()
    }
}

/// Checks every example against a model; an error names the example's index.
pub(super) fn check_examples(
    examples: &[TokenizedExample],
    architecture: &Architecture,
) -> Result<(), (usize, TokensError)> {
    for (index, example) in examples.iter().enumerate() {
        (architecture.check(example)).map_err(|problem| (index, problem))?;
    }
    Ok(())
}

fn group(examples: &[TokenizedExample], batch_size: usize) -> Vec<Group> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by(|&a, &b| examples[a].tokens.cmp(&examples[b].tokens).then(a.cmp(&b)));
    let mut groups = Vec::new();
    let mut alone = Vec::new();
    let mut rest = &order[..];
    while !rest.is_empty() {
        let (count, prefix) = run_of_similar(examples, rest);
        let (run, others) = rest.split_at(count);
        if (count - 1) * prefix >= WORTHWHILE {
            groups.push(batches_by_length(
                examples,
                run.to_vec(),
                prefix,
                batch_size,
            ));
        } else {
            alone.extend(run);
        }
        rest = others;
    }
    if !alone.is_empty() {
        groups.push(batches_by_length(examples, alone, 0, batch_size));
    }
    groups
}

/// How many of the first examples of a sorted list share a beginning, and its length. A run ends
/// where taking in one more would halve what is shared.
fn run_of_similar(examples: &[TokenizedExample], sorted: &[usize]) -> (usize, usize) {
    let first = &examples[sorted[0]];
    let mut shared = shareable(first);
    for (count, &next) in sorted.iter().enumerate().skip(1) {
        let next = &examples[next];
        let common = (first.tokens.iter().zip(&next.tokens))
            .take_while(|(a, b)| a == b)
            .count()
            .min(shared)
            .min(shareable(next));
        let enough = if count == 1 {
            SHORTEST_PREFIX
        } else {
            SHORTEST_PREFIX.max(shared / 2)
        };
        if common < enough {
            return (count, shared);
        }
        shared = common;
    }
    (sorted.len(), shared)
}

/// Tokens that lie before the position which predicts the first answer token.
fn shareable(example: &TokenizedExample) -> usize {
    example
        .answer_start
        .saturating_sub(1)
        .min(example.tokens.len().saturating_sub(2))
}

fn batches_by_length(
    examples: &[TokenizedExample],
    mut members: Vec<usize>,
    prefix: usize,
    batch_size: usize,
) -> Group {
    members.sort_by_key(|&i| (examples[i].tokens.len(), i));
    Group {
        prefix,
        batches: members.chunks(batch_size).map(<[usize]>::to_vec).collect(),
    }
}

/// An [`EvaluationSet`] as tensors.
pub(super) struct PreparedEvaluation {
    count: usize,
    groups: Vec<PreparedGroup>,
}

struct PreparedGroup {
    prefix: Option<Batch>,
    batches: Vec<(NetworkBatch, Vec<usize>)>,
}

impl PreparedEvaluation {
    /// The losses of all examples, without gradients.
    pub(super) fn evaluate(&self, model: &Network) -> Evaluation {
        let mut evaluation = Evaluation {
            test_ids: None,
            losses: vec![0.0; self.count],
            residuals: vec![0.0; self.count],
        };
        tch::no_grad(|| {
            for group in &self.groups {
                let prefix = match (model, &group.prefix) {
                    (Network::Transformer(model), Some(batch)) => Some(model.prefix(batch)),
                    _ => None,
                };
                for (batch, ids) in &group.batches {
                    evaluate_batch(model, batch, prefix.as_ref(), ids, &mut evaluation);
                }
            }
        });
        evaluation
    }
}

fn evaluate_batch(
    model: &Network,
    batch: &NetworkBatch,
    prefix: Option<&Prefix>,
    ids: &[usize],
    evaluation: &mut Evaluation,
) {
    let (position_losses, weights) = model.evaluate(batch, prefix);
    let mean = |values: &Tensor| to_vec(&(values * &weights).sum_dim_intlist(1, false, None));
    let losses = mean(&position_losses);
    let residuals = mean(&(1.0 - (-position_losses).exp()));
    for (k, &id) in ids.iter().enumerate() {
        evaluation.losses[id] = losses[k];
        evaluation.residuals[id] = residuals[k];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ModelSettings;
    use crate::torch::test_support::checkpoint;
    use crate::weights::Weights;

    fn model() -> Network {
        let settings = ModelSettings {
            layers: 3,
            heads: 2,
            width: 16,
            context: 64,
            ..ModelSettings::default()
        };
        let architecture = Architecture::new(settings, 10).unwrap();
        Network::with_kind(
            &Weights::random(&architecture, 2),
            Device::Cpu,
            Kind::Double,
        )
    }

    /// Questions that begin alike and end differently, and some that do not.
    fn examples() -> Vec<TokenizedExample> {
        let example = |i: usize| {
            let shared = if i.is_multiple_of(3) { 0 } else { 30 };
            let mut tokens: Vec<u32> = (0..shared).map(|p| (p * p % 7) as u32).collect();
            tokens.extend((0..8 + i % 5).map(|p| ((i * 3 + p * (i + 1)) % 10) as u32));
            TokenizedExample {
                answer_start: tokens.len() - 1 - i % 3,
                tokens,
                ..TokenizedExample::default()
            }
        };
        (0..40).map(example).collect()
    }

    #[test]
    fn sharing_beginnings_changes_no_loss() {
        let model = model();
        let set = EvaluationSet::new(examples(), 7);
        assert!(
            set.groups.iter().any(|g| g.prefix >= 30),
            "nothing is shared"
        );
        assert!(set.groups.iter().any(|g| g.prefix == 0), "all is shared");
        let together = set.evaluate(&model).unwrap();
        for (k, example) in examples().into_iter().enumerate() {
            let alone = EvaluationSet::new(vec![example], 1)
                .evaluate(&model)
                .unwrap();
            assert!((together.losses[k] - alone.losses[0]).abs() < 1e-6);
            assert!((together.residuals[k] - alone.residuals[0]).abs() < 1e-6);
        }
    }

    /// Rotary positions, heads that are shared, windows, positions with an offset.
    #[test]
    fn sharing_beginnings_changes_no_loss_of_a_checkpoint() {
        let example = |i: u32| {
            let start = (0..14).map(|p| p * p % 19);
            let end = (0..3 + i % 6).map(|p| (i * 7 + p * 3 + 1) % 19);
            TokenizedExample {
                tokens: start.chain(end).collect(),
                answer_start: 15 + (i % 2) as usize,
                ..TokenizedExample::default()
            }
        };
        let examples: Vec<TokenizedExample> = (0..30).map(example).collect();
        let set = EvaluationSet::new(examples.clone(), 7);
        assert!(
            set.groups.iter().any(|g| g.prefix >= 13),
            "nothing is shared"
        );
        for folder in [
            "opt_post_norm",
            "gpt_neox",
            "llama",
            "mistral",
            "qwen2",
            "phi3",
            // Reads in both directions, so that nothing may be shared.
            "t5",
        ] {
            let model = Network::with_kind(&checkpoint(folder), Device::Cpu, Kind::Double);
            let together = set.evaluate(&model).unwrap();
            for (k, example) in examples.iter().enumerate() {
                let batch = model.batch(&[example]);
                let alone = model.outputs(&batch, None).losses().double_value(&[0]);
                let difference = f64::from(together.losses[k]) - alone;
                assert!(difference.abs() < 1e-6, "{folder} {k}: {difference}");
            }
        }
    }

    #[test]
    fn every_example_stands_in_one_batch_and_prefixes_end_before_the_answers() {
        let examples = examples();
        let set = EvaluationSet::new(examples.clone(), 7);
        let mut seen: Vec<usize> = Vec::new();
        for group in &set.groups {
            for batch in &group.batches {
                assert!(batch.len() <= 7);
                for &i in batch {
                    assert!(group.prefix < examples[i].answer_start);
                    let first = &examples[batch[0]].tokens[..group.prefix];
                    assert_eq!(&examples[i].tokens[..group.prefix], first);
                }
                seen.extend(batch);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..examples.len()).collect::<Vec<_>>());
    }

    #[test]
    fn an_example_that_the_model_cannot_read_is_named() {
        let mut examples = examples();
        examples[4].tokens[2] = 10;
        let (index, problem) = EvaluationSet::new(examples, 7)
            .evaluate(&model())
            .unwrap_err();
        assert_eq!(index, 4);
        assert!(matches!(
            problem,
            TokensError::UnknownToken { token: 10, .. }
        ));
    }
}
