//! What the parameters of a decoder are called.

use serde::Serialize;

/// The names of the parameters, each without its `.weight` or `.bias`. `{}` stands for the block's
/// number; a part that a decoder does not have is the empty text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Names {
    /// Token embedding.
    pub token_embedding: &'static str,
    /// Learned positions.
    pub position_embedding: &'static str,
    /// From the token embedding to the residual stream.
    pub project_in: &'static str,
    /// From the residual stream to the width of the token embedding.
    pub project_out: &'static str,
    /// Norm of the attention.
    pub attention_norm: &'static str,
    /// Queries, keys and values in one.
    pub qkv: &'static str,
    /// Queries.
    pub query: &'static str,
    /// Keys.
    pub key: &'static str,
    /// Values.
    pub value: &'static str,
    /// Output of the attention.
    pub attention_output: &'static str,
    /// Norm of the attention to what the encoder gives.
    pub cross_norm: &'static str,
    /// Queries of that attention.
    pub cross_query: &'static str,
    /// Its keys.
    pub cross_key: &'static str,
    /// Its values.
    pub cross_value: &'static str,
    /// Its output.
    pub cross_output: &'static str,
    /// Numbers that relative positions add to the attention's scores.
    pub relative_bias: &'static str,
    /// Norm of the MLP.
    pub mlp_norm: &'static str,
    /// Gate of the MLP; of a fused one, gate and `up` in one.
    pub gate: &'static str,
    /// First matrix of the MLP.
    pub up: &'static str,
    /// Last matrix of the MLP.
    pub down: &'static str,
    /// Norm behind the last block.
    pub final_norm: &'static str,
    /// Output matrix, where it is not the token embedding.
    pub output: &'static str,
    /// Whether the embeddings' names end in `.weight` as those of other matrices do.
    pub embeddings_have_suffix: bool,
    /// Ends of the names of matrices that checkpoints have as `[input × output]`.
    pub input_first: &'static [&'static str],
    /// Names of tensors that checkpoints may hold besides and that are the token embedding again.
    pub copies: &'static [&'static str],
    /// Of the blocks of an encoder, with the norm behind them.
    pub encoder: Option<&'static Names>,
}

/// No part at all.
const NONE: Names = Names {
    token_embedding: "",
    position_embedding: "",
    project_in: "",
    project_out: "",
    attention_norm: "",
    qkv: "",
    query: "",
    key: "",
    value: "",
    attention_output: "",
    cross_norm: "",
    cross_query: "",
    cross_key: "",
    cross_value: "",
    cross_output: "",
    relative_bias: "",
    mlp_norm: "",
    gate: "",
    up: "",
    down: "",
    final_norm: "",
    output: "",
    embeddings_have_suffix: true,
    input_first: &[],
    copies: &[],
    encoder: None,
};

impl Names {
    /// Of the models made from [`ModelSettings`](crate::ModelSettings).
    pub const OWN: Self = Self {
        token_embedding: "token_embedding",
        position_embedding: "position_embedding",
        attention_norm: "layers.{}.attention_norm",
        qkv: "layers.{}.attention.qkv",
        attention_output: "layers.{}.attention.output",
        mlp_norm: "layers.{}.mlp_norm",
        up: "layers.{}.mlp.up",
        down: "layers.{}.mlp.down",
        final_norm: "final_norm",
        output: "output",
        embeddings_have_suffix: false,
        ..NONE
    };

    /// Of GPT-2.
    pub const GPT2: Self = Self {
        token_embedding: "transformer.wte",
        position_embedding: "transformer.wpe",
        attention_norm: "transformer.h.{}.ln_1",
        qkv: "transformer.h.{}.attn.c_attn",
        attention_output: "transformer.h.{}.attn.c_proj",
        mlp_norm: "transformer.h.{}.ln_2",
        up: "transformer.h.{}.mlp.c_fc",
        down: "transformer.h.{}.mlp.c_proj",
        final_norm: "transformer.ln_f",
        output: "lm_head",
        input_first: &[".c_attn", ".c_proj", ".c_fc"],
        ..NONE
    };

    /// Of OPT.
    pub const OPT: Self = Self {
        token_embedding: "model.decoder.embed_tokens",
        position_embedding: "model.decoder.embed_positions",
        project_in: "model.decoder.project_in",
        project_out: "model.decoder.project_out",
        attention_norm: "model.decoder.layers.{}.self_attn_layer_norm",
        query: "model.decoder.layers.{}.self_attn.q_proj",
        key: "model.decoder.layers.{}.self_attn.k_proj",
        value: "model.decoder.layers.{}.self_attn.v_proj",
        attention_output: "model.decoder.layers.{}.self_attn.out_proj",
        mlp_norm: "model.decoder.layers.{}.final_layer_norm",
        up: "model.decoder.layers.{}.fc1",
        down: "model.decoder.layers.{}.fc2",
        final_norm: "model.decoder.final_layer_norm",
        output: "lm_head",
        ..NONE
    };

    /// Of GPT-NeoX and Pythia.
    pub const GPT_NEOX: Self = Self {
        token_embedding: "gpt_neox.embed_in",
        attention_norm: "gpt_neox.layers.{}.input_layernorm",
        qkv: "gpt_neox.layers.{}.attention.query_key_value",
        attention_output: "gpt_neox.layers.{}.attention.dense",
        mlp_norm: "gpt_neox.layers.{}.post_attention_layernorm",
        up: "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        down: "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        final_norm: "gpt_neox.final_layer_norm",
        output: "embed_out",
        ..NONE
    };

    /// Of Llama, Mistral and Qwen2.
    pub const LLAMA: Self = Self {
        token_embedding: "model.embed_tokens",
        attention_norm: "model.layers.{}.input_layernorm",
        query: "model.layers.{}.self_attn.q_proj",
        key: "model.layers.{}.self_attn.k_proj",
        value: "model.layers.{}.self_attn.v_proj",
        attention_output: "model.layers.{}.self_attn.o_proj",
        mlp_norm: "model.layers.{}.post_attention_layernorm",
        gate: "model.layers.{}.mlp.gate_proj",
        up: "model.layers.{}.mlp.up_proj",
        down: "model.layers.{}.mlp.down_proj",
        final_norm: "model.norm",
        output: "lm_head",
        ..NONE
    };

    /// Of Phi-3.
    pub const PHI3: Self = Self {
        qkv: "model.layers.{}.self_attn.qkv_proj",
        gate: "model.layers.{}.mlp.gate_up_proj",
        query: "",
        key: "",
        value: "",
        up: "",
        ..Self::LLAMA
    };

    /// Of the encoder of T5.
    const T5_ENCODER: Self = Self {
        relative_bias: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        attention_norm: "encoder.block.{}.layer.0.layer_norm",
        query: "encoder.block.{}.layer.0.SelfAttention.q",
        key: "encoder.block.{}.layer.0.SelfAttention.k",
        value: "encoder.block.{}.layer.0.SelfAttention.v",
        attention_output: "encoder.block.{}.layer.0.SelfAttention.o",
        mlp_norm: "encoder.block.{}.layer.1.layer_norm",
        up: "encoder.block.{}.layer.1.DenseReluDense.wi",
        down: "encoder.block.{}.layer.1.DenseReluDense.wo",
        final_norm: "encoder.final_layer_norm",
        ..NONE
    };

    /// Of T5.
    pub const T5: Self = Self {
        token_embedding: "shared",
        relative_bias: "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        attention_norm: "decoder.block.{}.layer.0.layer_norm",
        query: "decoder.block.{}.layer.0.SelfAttention.q",
        key: "decoder.block.{}.layer.0.SelfAttention.k",
        value: "decoder.block.{}.layer.0.SelfAttention.v",
        attention_output: "decoder.block.{}.layer.0.SelfAttention.o",
        cross_norm: "decoder.block.{}.layer.1.layer_norm",
        cross_query: "decoder.block.{}.layer.1.EncDecAttention.q",
        cross_key: "decoder.block.{}.layer.1.EncDecAttention.k",
        cross_value: "decoder.block.{}.layer.1.EncDecAttention.v",
        cross_output: "decoder.block.{}.layer.1.EncDecAttention.o",
        mlp_norm: "decoder.block.{}.layer.2.layer_norm",
        up: "decoder.block.{}.layer.2.DenseReluDense.wi",
        down: "decoder.block.{}.layer.2.DenseReluDense.wo",
        final_norm: "decoder.final_layer_norm",
        output: "lm_head",
        copies: &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
        encoder: Some(&Self::T5_ENCODER),
        ..NONE
    };

    /// Of the encoder of T5 with a gated MLP.
    const T5_GATED_ENCODER: Self = Self {
        gate: "encoder.block.{}.layer.1.DenseReluDense.wi_0",
        up: "encoder.block.{}.layer.1.DenseReluDense.wi_1",
        ..Self::T5_ENCODER
    };

    /// Of T5 with a gated MLP.
    pub const T5_GATED: Self = Self {
        gate: "decoder.block.{}.layer.2.DenseReluDense.wi_0",
        up: "decoder.block.{}.layer.2.DenseReluDense.wi_1",
        encoder: Some(&Self::T5_GATED_ENCODER),
        ..Self::T5
    };
}
