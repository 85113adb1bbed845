//! What a transformer is made of, and where its parameters stand.
//!
//! A [`Decoder`] says everything that the forward pass needs to know besides the values of the
//! parameters: the models that are pre-trained here and those of Hugging Face checkpoints are
//! settings of the same one. Most are decoders alone; [`Structure`] says what else there is.
//!
//! With `N₁`, `N₂` the norms of a block, `A` its attention and `M` its MLP, a block is
//!
//! - [`NormPlace::Before`]: `h ← h + A(N₁(h))`, `h ← h + M(N₂(h))`,
//! - the same with [`Decoder::is_parallel`]: `h ← h + A(N₁(h)) + M(N₂(h))`,
//! - [`NormPlace::After`]: `h ← N₁(h + A(h))`, `h ← N₂(h + M(h))`.
//!
//! A decoder behind an encoder has between the two `h ← h + C(N₃(h), e)`: attention whose keys and
//! values are made of what the encoder gives, `e`.

mod layout;
mod names;

pub use layout::{
    Adapter, Affine, CrossPlaces, LayerPlaces, Linear, MlpPlaces, Places, QkvPlaces, StackPlaces,
    layout,
};
pub use names::Names;

use serde::Serialize;

/// A transformer: a decoder, alone or behind an encoder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decoder {
    /// What it reads and what it predicts.
    pub structure: Structure,
    /// Names of the classes, of a classifier.
    pub labels: Vec<String>,
    /// Number of tokens.
    pub vocabulary: u32,
    /// Longest input in tokens; of an encoder and its decoder, of each.
    pub context: u32,
    /// Number of blocks, without those of an encoder.
    pub layers: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Width of the token embedding. Where it is not `width`, matrices without bias lead to the
    /// residual stream and, before the output, back.
    pub embedding_width: u32,
    /// How a token knows where it stands.
    pub positions: Positions,
    /// Rows of the embedding of token types, of which all tokens have the first; 0: there is none.
    pub token_types: u32,
    /// Whether the embeddings have a norm.
    pub has_embedding_norm: bool,
    /// The norms.
    pub norm: Norm,
    /// Where the norms of a block stand.
    pub norm_place: NormPlace,
    /// Whether the last block is followed by a norm.
    pub has_final_norm: bool,
    /// Whether attention and MLP of a block read the same residual stream.
    pub is_parallel: bool,
    /// The attention of a block.
    pub attention: Attention,
    /// The MLP of a block.
    pub mlp: Mlp,
    /// Whether the output matrix is the token embedding.
    pub tied_output: bool,
    /// Whether what the output matrix reads is divided by `√width`.
    pub is_output_scaled: bool,
    /// Dropout in training.
    pub dropout: DropoutRates,
    /// Parameters that stand beside its own and change what its matrices do.
    pub adapters: Option<Adapters>,
    /// What the parameters are called.
    pub names: Names,
}

/// What a transformer reads and what it predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Structure {
    /// A text from left to right, each next token predicted from those before.
    Causal,
    /// An encoder, of the same kind of blocks, reads the prompt in both directions; the decoder
    /// sees all of it and predicts the answer from left to right.
    EncoderDecoder {
        /// Blocks of the encoder.
        layers: u32,
        /// The token that the decoder reads before the answer.
        start: u32,
    },
    /// A text in both directions; its class is predicted from its first token, by way of a pooler,
    /// `tanh(W h + b)`.
    Classifier,
}

impl Structure {
    /// Dropout with one probability wherever models of this structure have some.
    pub fn dropout(self, probability: f64) -> DropoutRates {
        let everywhere = DropoutRates {
            embedding: probability,
            residual: probability,
            attention: probability,
            activation: probability,
            output: probability,
            adapter: 0.0,
        };
        match self {
            Self::Causal => DropoutRates {
                activation: 0.0,
                output: 0.0,
                ..everywhere
            },
            Self::EncoderDecoder { .. } => everywhere,
            Self::Classifier => DropoutRates {
                activation: 0.0,
                ..everywhere
            },
        }
    }
}

/// Parameters beside those of a decoder's matrices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Adapters {
    /// Matrices of low rank.
    Lora(Lora),
    /// Factors.
    Ia3(Ia3),
}

/// Factors `l` of what some matrices give, `l ∘ (W x + b)`, or of what they read, `W (l ∘ x) + b`.
///
/// # Reference
/// Liu et al. 2022, "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context
/// learning", section 3.3.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ia3 {
    /// Ends of the names of the matrices that have factors.
    pub targets: Vec<String>,
    /// Ends of the names of those among them that have them at their input.
    pub feedforward: Vec<String>,
}

/// Low-rank adapters: `W x + scale · B A x` in place of `W x`.
///
/// # Reference
/// Hu et al. 2021, "LoRA: low-rank adaptation of large language models".
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lora {
    /// Rows of `A`, columns of `B`.
    pub rank: u32,
    /// What `B A` is multiplied by.
    pub scale: f64,
    /// Ends of the names of the matrices that have one.
    pub targets: Vec<String>,
}

/// How a token knows where it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Positions {
    /// A learned vector for each position, added to the token's; position 0 has row `offset`.
    Learned {
        /// Rows that no position uses.
        offset: u32,
    },
    /// Queries and keys are rotated.
    Rotary(Rotary),
    /// Each head adds a learned number to the attention's scores, by how far the key stands from the
    /// query; all blocks of a stack add the same.
    Relative(RelativePositions),
}

/// Relative positions in buckets: small distances have one each, larger ones share them evenly by
/// their logarithm, those from `max_distance` on the last.
///
/// # Reference
/// Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text
/// transformer", section 2.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RelativePositions {
    /// Number of buckets; an encoder has half of them for keys behind the query.
    pub buckets: u32,
    /// Distances that are told apart.
    pub max_distance: u32,
}

impl RelativePositions {
    /// The bucket of a key that stands `distance` positions behind the query, or before it where
    /// that is negative. `is_causal`: keys behind the query have no bucket of their own.
    pub fn bucket(&self, distance: i64, is_causal: bool) -> i64 {
        let all = i64::from(self.buckets);
        let (buckets, first, distance) = match is_causal {
            true => (all, 0, (-distance).max(0)),
            false => (all / 2, (all / 2) * i64::from(distance > 0), distance.abs()),
        };
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        let share = (distance as f64 / exact as f64).ln()
            / (f64::from(self.max_distance) / exact as f64).ln();
        let shared = (share * (buckets - exact) as f64) as i64;
        first + (exact + shared).min(buckets - 1)
    }
}

/// Rotary positions: of the first `2 · frequencies` values of each query and key, the pair
/// `(x_k, x_{k + frequencies})` is turned by the angle `position · frequency_k` and multiplied by
/// `amplitude`.
///
/// # Reference
/// Su et al. 2021, "RoFormer", section 3.2.2, in the pairing of GPT-NeoX.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rotary {
    /// Radians per position, one for each pair.
    pub frequencies: Vec<f64>,
    /// What rotated pairs are multiplied by; 1 but for YaRN.
    pub amplitude: f64,
}

/// A norm over the residual stream's width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// `ε` under the root.
    pub eps: f64,
}

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NormKind {
    /// `(x − mean) / √(variance + ε) ∘ gain + bias`.
    LayerNorm,
    /// `x / √(mean of x² + ε) ∘ gain`.
    RmsNorm,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NormPlace {
    /// On what attention and MLP read.
    Before,
    /// On the sum of the residual stream and what they give.
    After,
}

/// The attention of a block: `softmax(q kᵀ · scale + mask) v` in every head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: u32,
    /// Heads of keys and values; divides `heads`, each serves as many consecutive query heads.
    pub key_value_heads: u32,
    /// Width of one head.
    pub head_width: u32,
    /// How queries, keys and values are stored.
    pub projection: Projection,
    /// Whether queries, keys and values have biases.
    pub has_bias: bool,
    /// Whether the output matrix has a bias.
    pub has_output_bias: bool,
    /// Whether the scale is `1/√head_width`; else 1.
    pub is_scaled: bool,
    /// Attention to the last positions only.
    pub window: Option<Window>,
}

/// Attention to the last positions only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// Number of positions that a token sees, its own included.
    pub length: u32,
    /// Whether each block is so limited.
    pub layers: Vec<bool>,
}

/// How the matrices of queries, keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Projection {
    /// Three matrices.
    Separate,
    /// One, with the rows of all queries first, then those of keys, then values.
    Fused,
    /// One, with the rows of queries, keys and values of each head together.
    FusedByHead,
}

/// The MLP of a block: `W₂ f(W₁ x)`, or with a gate `W₂ (f(W_g x) ∘ W₁ x)`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mlp {
    /// Width between the matrices.
    pub width: u32,
    /// `f`.
    pub activation: Activation,
    /// Whether there is a gate, and how it is stored.
    pub gate: Gate,
    /// Whether the matrices have biases.
    pub has_bias: bool,
}

/// The gate of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Gate {
    /// None.
    Absent,
    /// A matrix of its own.
    Separate,
    /// The first rows of the matrix whose last rows are `W₁`.
    Fused,
}

/// What stands between the matrices of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Activation {
    /// `max(0, x)`.
    Relu,
    /// `x Φ(x)`.
    Gelu,
    /// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x / (1 + e^(−x))`.
    Silu,
}

/// Dropout probabilities, each in `[0, 1)`; active in fine-tuning and pre-training only.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct DropoutRates {
    /// Of what enters the first block.
    pub embedding: f64,
    /// Of what attention and MLP add to the residual stream.
    pub residual: f64,
    /// Of the attention weights.
    pub attention: f64,
    /// Of what the last matrix of an MLP reads.
    pub activation: f64,
    /// Of what a stack of blocks, or a pooler, gives.
    pub output: f64,
    /// Of what the first matrix of a low-rank adapter reads; the matrix beside it reads all.
    pub adapter: f64,
}

impl DropoutRates {
    /// Whether there is any.
    pub fn is_active(&self) -> bool {
        let rates = [
            self.embedding,
            self.residual,
            self.attention,
            self.activation,
            self.output,
            self.adapter,
        ];
        rates.iter().any(|rate| *rate > 0.0)
    }
}

impl Attention {
    /// Whether block `layer` sees the last positions only.
    pub fn is_windowed(&self, layer: usize) -> bool {
        (self.window.as_ref()).is_some_and(|window| window.layers[layer])
    }
}

/// Which of the names.
type NameOf = fn(&Names) -> &'static str;

impl Decoder {
    /// Names of the matrices that can have an adapter, with `{}` for the block: all of the blocks,
    /// those with the same task together.
    pub fn adaptable(&self) -> Vec<Vec<&'static str>> {
        let names = &self.names;
        let tasks: [(NameOf, &'static str); 8] = [
            (|names| names.qkv, ""),
            (|names| names.query, names.cross_query),
            (|names| names.key, names.cross_key),
            (|names| names.value, names.cross_value),
            (|names| names.attention_output, names.cross_output),
            (|names| names.gate, ""),
            (|names| names.up, ""),
            (|names| names.down, ""),
        ];
        let of_task = |(name, cross): (NameOf, &'static str)| {
            let stacks = names.encoder.into_iter().chain([names]);
            let all = stacks.map(name).chain([cross]);
            all.filter(|name| !name.is_empty()).collect::<Vec<_>>()
        };
        let all = tasks.into_iter().map(of_task);
        all.filter(|names| !names.is_empty()).collect()
    }

    /// Number of values in the parameters.
    pub fn parameter_count(&self) -> usize {
        layout(self).0.parameter_count()
    }
}

#[cfg(test)]
mod tests {
    use super::RelativePositions;

    #[derive(serde::Deserialize)]
    struct Case {
        buckets: u32,
        max_distance: u32,
        is_causal: bool,
        first: i64,
        expected: Vec<i64>,
    }

    /// Numbers by `tests/data/make.py` (transformers 5.23).
    #[test]
    fn ref_buckets_of_relative_positions_are_those_of_transformers() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/data/buckets.json")).unwrap();
        assert_eq!(cases.len(), 8);
        for case in cases {
            let positions = RelativePositions {
                buckets: case.buckets,
                max_distance: case.max_distance,
            };
            for (distance, expected) in (case.first..).zip(&case.expected) {
                let got = positions.bucket(distance, case.is_causal);
                assert_eq!(got, *expected, "{positions:?} {distance}");
            }
        }
    }
}
