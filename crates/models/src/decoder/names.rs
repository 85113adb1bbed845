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
    mlp_norm: "",
    gate: "",
    up: "",
    down: "",
    final_norm: "",
    output: "",
    embeddings_have_suffix: true,
    input_first: &[],
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
}
