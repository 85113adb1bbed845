//! What a decoder-only transformer is made of, and where its parameters stand.
//!
//! A [`Decoder`] says everything that the forward pass needs to know besides the values of the
//! parameters: the models that are pre-trained here and those of Hugging Face checkpoints are
//! settings of the same one.
//!
//! With `N₁`, `N₂` the norms of a block, `A` its attention and `M` its MLP, a block is
//!
//! - [`NormPlace::Before`]: `h ← h + A(N₁(h))`, `h ← h + M(N₂(h))`,
//! - the same with [`Decoder::is_parallel`]: `h ← h + A(N₁(h)) + M(N₂(h))`,
//! - [`NormPlace::After`]: `h ← N₁(h + A(h))`, `h ← N₂(h + M(h))`.

mod layout;
mod names;

pub use layout::{Adapter, Affine, LayerPlaces, Linear, MlpPlaces, Places, QkvPlaces, layout};
pub use names::Names;

use serde::Serialize;

/// A decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decoder {
    /// Number of tokens.
    pub vocabulary: u32,
    /// Longest input in tokens.
    pub context: u32,
    /// Number of blocks.
    pub layers: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Width of the token embedding. Where it is not `width`, matrices without bias lead to the
    /// residual stream and, before the output, back.
    pub embedding_width: u32,
    /// How a token knows where it stands.
    pub positions: Positions,
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
    /// Dropout in training.
    pub dropout: DropoutRates,
    /// Parameters that stand beside its own and change what its matrices do.
    pub adapters: Option<Adapters>,
    /// What the parameters are called.
    pub names: Names,
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
}

impl DropoutRates {
    /// Whether there is any.
    pub fn is_active(&self) -> bool {
        self.embedding > 0.0 || self.residual > 0.0 || self.attention > 0.0
    }
}

impl Attention {
    /// Whether block `layer` sees the last positions only.
    pub fn is_windowed(&self, layer: usize) -> bool {
        (self.window.as_ref()).is_some_and(|window| window.layers[layer])
    }
}

impl Decoder {
    /// Names of the matrices that can have an adapter, with `{}` for the block: all of the blocks.
    pub fn adaptable(&self) -> Vec<&'static str> {
        let names = &self.names;
        let all = [
            names.qkv,
            names.query,
            names.key,
            names.value,
            names.attention_output,
            names.gate,
            names.up,
            names.down,
        ];
        all.into_iter().filter(|name| !name.is_empty()).collect()
    }

    /// Number of values in the parameters.
    pub fn parameter_count(&self) -> usize {
        layout(self).0.parameter_count()
    }
}
