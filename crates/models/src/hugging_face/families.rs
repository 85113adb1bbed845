//! What the fields of `config.json` mean for each supported `model_type`.
//!
//! A field that is absent has the default of transformers; shapes have none.

use super::config::ConfigError;
use super::fields::Fields;
use super::rotary::{Defaults, SCALINGS, rotary};
use crate::decoder::{
    Activation, Attention, Decoder, DropoutRates, Gate, Mlp, Names, Norm, NormKind, NormPlace,
    Positions, Projection, RelativePositions, Structure, Window,
};
use serde_json::{Map, Value, json};

/// Supported model types.
const FAMILIES: &str = "gpt2, opt, gpt_neox, llama, mistral, qwen2, phi3, t5, bert";

/// Fields that change nothing in what a decoder computes from tokens.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "classifier_dropout",
    "do_sample",
    "dtype",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "n_ctx",
    "no_repeat_ngram_size",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
];

/// Reads the decoder; every field must have been understood.
pub(super) fn decoder(fields: &Fields) -> Result<Decoder, ConfigError> {
    let decoder = match fields.text("model_type")? {
        Some("gpt2") => gpt2(fields)?,
        Some("opt") => opt(fields)?,
        Some("gpt_neox") => gpt_neox(fields)?,
        Some("llama") => llama(fields)?,
        Some("mistral") => mistral(fields)?,
        Some("qwen2") => qwen2(fields)?,
        Some("phi3") => phi3(fields)?,
        Some("t5") => t5(fields)?,
        Some("bert") => bert(fields)?,
        Some(other) => {
            return Err(fields.unsupported("model_type", &Value::from(other), FAMILIES));
        }
        None => {
            return Err(ConfigError::Missing {
                field: "model_type".into(),
            });
        }
    };
    let has_encoder = matches!(decoder.structure, Structure::EncoderDecoder { .. });
    fields.only("is_encoder_decoder", &json!(has_encoder))?;
    fields.only("add_cross_attention", &json!(false))?;
    fields.only("pruned_heads", &json!({}))?;
    fields.only("chunk_size_feed_forward", &json!(0))?;
    fields.only("tie_encoder_decoder", &json!(false))?;
    fields.finish(WITHOUT_EFFECT)?;
    check(&decoder)?;
    Ok(decoder)
}

fn gpt2(fields: &Fields) -> Result<Decoder, ConfigError> {
    let width = fields.count("n_embd")?;
    let heads = fields.count("n_head")?;
    fields.only("scale_attn_by_inverse_layer_idx", &json!(false))?;
    Ok(Decoder {
        structure: Structure::Causal,
        labels: Vec::new(),
        token_types: 0,
        has_embedding_norm: false,
        vocabulary: fields.count("vocab_size")?,
        context: fields.count("n_positions")?,
        layers: fields.count("n_layer")?,
        width,
        embedding_width: width,
        positions: Positions::Learned { offset: 0 },
        norm: layer_norm(fields.positive_or("layer_norm_epsilon", 1e-5)?),
        norm_place: NormPlace::Before,
        has_final_norm: true,
        is_parallel: false,
        attention: Attention {
            projection: Projection::Fused,
            is_scaled: fields.flag_or("scale_attn_weights", true)?,
            ..attention(width, heads, true)
        },
        mlp: Mlp {
            width: fields.count_or_none("n_inner")?.unwrap_or(4 * width),
            activation: activation(fields, "activation_function", "gelu_new")?,
            gate: Gate::Absent,
            has_bias: true,
        },
        is_output_scaled: false,
        tied_output: fields.flag_or("tie_word_embeddings", true)?,
        dropout: DropoutRates {
            embedding: fields.probability_or("embd_pdrop", 0.1)?,
            residual: fields.probability_or("resid_pdrop", 0.1)?,
            attention: fields.probability_or("attn_pdrop", 0.1)?,
            ..DropoutRates::default()
        },
        adapters: None,
        names: Names::GPT2,
    })
}

fn opt(fields: &Fields) -> Result<Decoder, ConfigError> {
    let width = fields.count("hidden_size")?;
    let heads = fields.count("num_attention_heads")?;
    let is_before = fields.flag_or("do_layer_norm_before", true)?;
    let has_bias = fields.flag_or("enable_bias", true)?;
    let is_removed = fields.flag_or("_remove_final_layer_norm", false)?;
    fields.only("layer_norm_elementwise_affine", &json!(true))?;
    fields.only("layerdrop", &json!(0))?;
    fields.only("activation_dropout", &json!(0))?;
    Ok(Decoder {
        structure: Structure::Causal,
        labels: Vec::new(),
        token_types: 0,
        has_embedding_norm: false,
        vocabulary: fields.count("vocab_size")?,
        context: fields.count("max_position_embeddings")?,
        layers: fields.count("num_hidden_layers")?,
        width,
        embedding_width: fields
            .count_or_none("word_embed_proj_dim")?
            .unwrap_or(width),
        positions: Positions::Learned { offset: 2 },
        norm: layer_norm(1e-5),
        norm_place: if is_before {
            NormPlace::Before
        } else {
            NormPlace::After
        },
        has_final_norm: is_before && !is_removed,
        is_parallel: false,
        attention: attention(width, heads, has_bias),
        mlp: Mlp {
            width: fields.count("ffn_dim")?,
            activation: activation(fields, "activation_function", "relu")?,
            gate: Gate::Absent,
            has_bias,
        },
        is_output_scaled: false,
        tied_output: fields.flag_or("tie_word_embeddings", true)?,
        dropout: DropoutRates {
            embedding: 0.0,
            residual: fields.probability_or("dropout", 0.1)?,
            attention: fields.probability_or("attention_dropout", 0.0)?,
            ..DropoutRates::default()
        },
        adapters: None,
        names: Names::OPT,
    })
}

fn gpt_neox(fields: &Fields) -> Result<Decoder, ConfigError> {
    let width = fields.count("hidden_size")?;
    let context = fields.count("max_position_embeddings")?;
    let heads = fields.count("num_attention_heads")?;
    let attention = Attention {
        projection: Projection::FusedByHead,
        ..attention(width, heads, fields.flag_or("attention_bias", true)?)
    };
    let defaults = Defaults {
        base: "rotary_emb_base",
        share: "rotary_pct",
        default_share: 0.25,
        scalings: SCALINGS,
    };
    let hidden_dropout = fields.probability_or("hidden_dropout", 0.0)?;
    Ok(Decoder {
        structure: Structure::Causal,
        labels: Vec::new(),
        token_types: 0,
        has_embedding_norm: false,
        vocabulary: fields.count("vocab_size")?,
        context,
        layers: fields.count("num_hidden_layers")?,
        width,
        embedding_width: width,
        positions: Positions::Rotary(rotary(fields, attention.head_width, context, &defaults)?),
        norm: layer_norm(fields.positive_or("layer_norm_eps", 1e-5)?),
        norm_place: NormPlace::Before,
        has_final_norm: true,
        is_parallel: fields.flag_or("use_parallel_residual", true)?,
        attention,
        mlp: Mlp {
            width: fields.count("intermediate_size")?,
            activation: activation(fields, "hidden_act", "gelu")?,
            gate: Gate::Absent,
            has_bias: true,
        },
        is_output_scaled: false,
        tied_output: fields.flag_or("tie_word_embeddings", false)?,
        dropout: DropoutRates {
            embedding: hidden_dropout,
            residual: hidden_dropout,
            attention: fields.probability_or("attention_dropout", 0.0)?,
            ..DropoutRates::default()
        },
        adapters: None,
        names: Names::GPT_NEOX,
    })
}

fn llama(fields: &Fields) -> Result<Decoder, ConfigError> {
    fields.only("rope_interleaved", &json!(false))?;
    let has_bias = fields.flag_or("attention_bias", false)?;
    let mut decoder = llama_like(fields, None)?;
    decoder.attention.has_bias = has_bias;
    decoder.attention.has_output_bias = has_bias;
    decoder.mlp.has_bias = fields.flag_or("mlp_bias", false)?;
    Ok(decoder)
}

fn mistral(fields: &Fields) -> Result<Decoder, ConfigError> {
    let mut decoder = llama_like(fields, Some(8))?;
    // Without the field the window is 4096; `null` means none.
    let length = match fields.raw("sliding_window") {
        None => Some(4096),
        Some(_) => fields.count_or_none("sliding_window")?,
    };
    decoder.attention.window = length.map(|length| Window {
        length,
        layers: vec![true; decoder.layers as usize],
    });
    Ok(decoder)
}

fn qwen2(fields: &Fields) -> Result<Decoder, ConfigError> {
    fields.only("use_mrope", &json!(false))?;
    let mut decoder = llama_like(fields, Some(32))?;
    decoder.attention.has_bias = true;
    let layers = decoder.layers as usize;
    let length = fields.count_or_none("sliding_window")?.unwrap_or(4096);
    let first = fields.number_or("max_window_layers", 28.0)? as usize;
    let is_used = fields.flag_or("use_sliding_window", false)?;
    let limited = match layer_types(fields, layers)? {
        Some(limited) if !is_used && limited.contains(&true) => {
            let types = fields.raw("layer_types").expect("it was read");
            return Err(fields.unsupported(
                "layer_types",
                types,
                "\"full_attention\" only, as use_sliding_window is not true",
            ));
        }
        Some(limited) => limited,
        None => (0..layers).map(|layer| layer >= first).collect(),
    };
    if is_used {
        decoder.attention.window = Some(Window {
            length,
            layers: limited,
        });
    }
    Ok(decoder)
}

fn phi3(fields: &Fields) -> Result<Decoder, ConfigError> {
    fields.only("attention_bias", &json!(false))?;
    // Read with the rotary positions where they are scaled; transformers reads no `embd_pdrop`.
    fields.raw("original_max_position_embeddings");
    fields.raw("embd_pdrop");
    let mut decoder = llama_like(fields, None)?;
    decoder.attention.projection = Projection::Fused;
    decoder.mlp.gate = Gate::Fused;
    decoder.dropout.residual = fields.probability_or("resid_pdrop", 0.0)?;
    decoder.names = Names::PHI3;
    decoder.attention.window = (fields.count_or_none("sliding_window")?).map(|length| Window {
        length,
        layers: vec![true; decoder.layers as usize],
    });
    Ok(decoder)
}

fn t5(fields: &Fields) -> Result<Decoder, ConfigError> {
    let layers = fields.count("num_layers")?;
    let heads = fields.count("num_heads")?;
    let dropout = fields.probability_or("dropout_rate", 0.1)?;
    // transformers 5 writes `tie_word_embeddings` as true whatever it was, and what it was here.
    let is_tied = fields.flag_or("tie_word_embeddings", true)?;
    let is_tied = fields.flag_or("scale_decoder_outputs", is_tied)?;
    let structure = Structure::EncoderDecoder {
        layers,
        start: fields.token("decoder_start_token_id")?,
    };
    let (gate, activation) = t5_mlp(fields)?;
    Ok(Decoder {
        structure,
        labels: Vec::new(),
        token_types: 0,
        has_embedding_norm: false,
        vocabulary: fields.count("vocab_size")?,
        // Relative positions have no limit; this is the length that T5 was pre-trained with.
        context: fields.count_or_none("n_positions")?.unwrap_or(512),
        layers: fields
            .count_or_none("num_decoder_layers")?
            .unwrap_or(layers),
        width: fields.count("d_model")?,
        embedding_width: fields.count("d_model")?,
        positions: Positions::Relative(relative_positions(fields)?),
        norm: Norm {
            kind: NormKind::RmsNorm,
            eps: fields.positive_or("layer_norm_epsilon", 1e-6)?,
        },
        norm_place: NormPlace::Before,
        has_final_norm: true,
        is_parallel: false,
        attention: Attention {
            head_width: fields.count("d_kv")?,
            is_scaled: false,
            ..attention(heads, heads, false)
        },
        mlp: Mlp {
            width: fields.count("d_ff")?,
            activation,
            gate,
            has_bias: false,
        },
        tied_output: is_tied,
        is_output_scaled: is_tied,
        dropout: structure.dropout(dropout),
        adapters: None,
        names: match gate {
            Gate::Absent => Names::T5,
            _ => Names::T5_GATED,
        },
    })
}

/// `feed_forward_proj`: an activation, or `gated-` and one; `gated-gelu` is the one with tanh.
fn t5_mlp(fields: &Fields) -> Result<(Gate, Activation), ConfigError> {
    // What transformers writes besides follows from it.
    fields.raw("dense_act_fn");
    fields.raw("is_gated_act");
    let name = fields.text("feed_forward_proj")?.unwrap_or("relu");
    let (gate, activation) = match name.strip_prefix("gated-") {
        Some("gelu") => (Gate::Separate, Some(Activation::GeluTanh)),
        Some(activation) => (Gate::Separate, named(activation)),
        None => (Gate::Absent, named(name)),
    };
    let supported = format!("{ACTIVATIONS}, each with or without gated- before it");
    let wrong = || fields.unsupported("feed_forward_proj", &Value::from(name), &supported);
    Ok((gate, activation.ok_or_else(wrong)?))
}

fn relative_positions(fields: &Fields) -> Result<RelativePositions, ConfigError> {
    let (buckets, max_distance) = (
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
    );
    let positions = RelativePositions {
        buckets: fields.count_or_none(buckets)?.unwrap_or(32),
        max_distance: fields.count_or_none(max_distance)?.unwrap_or(128),
    };
    if !positions.buckets.is_multiple_of(4) {
        let got = Value::from(positions.buckets);
        return Err(fields.unsupported(buckets, &got, "a multiple of 4"));
    }
    if positions.max_distance <= positions.buckets / 2 {
        let got = Value::from(positions.max_distance);
        return Err(fields.unsupported(
            max_distance,
            &got,
            &format!("more than half of {buckets}"),
        ));
    }
    Ok(positions)
}

/// BERT with a classifier.
fn bert(fields: &Fields) -> Result<Decoder, ConfigError> {
    let width = fields.count("hidden_size")?;
    let heads = fields.count("num_attention_heads")?;
    check_is_classifier(fields)?;
    fields.only("position_embedding_type", &json!("absolute"))?;
    fields.only("is_decoder", &json!(false))?;
    // Of heads that a classifier does not have.
    fields.raw("tie_word_embeddings");
    for name in BERT_WITHOUT_EFFECT {
        fields.raw(name);
    }
    let residual = fields.probability_or("hidden_dropout_prob", 0.1)?;
    Ok(Decoder {
        structure: Structure::Classifier,
        labels: labels(fields)?,
        vocabulary: fields.count("vocab_size")?,
        context: fields.count("max_position_embeddings")?,
        layers: fields.count("num_hidden_layers")?,
        width,
        embedding_width: width,
        positions: Positions::Learned { offset: 0 },
        token_types: fields.count_or_none("type_vocab_size")?.unwrap_or(2),
        has_embedding_norm: true,
        norm: layer_norm(fields.positive_or("layer_norm_eps", 1e-12)?),
        norm_place: NormPlace::After,
        has_final_norm: false,
        is_parallel: false,
        attention: attention(width, heads, true),
        mlp: Mlp {
            width: fields.count("intermediate_size")?,
            activation: activation(fields, "hidden_act", "gelu")?,
            gate: Gate::Absent,
            has_bias: true,
        },
        tied_output: false,
        is_output_scaled: false,
        dropout: DropoutRates {
            embedding: residual,
            residual,
            attention: fields.probability_or("attention_probs_dropout_prob", 0.1)?,
            output: fields.probability_or("classifier_dropout", residual)?,
            ..DropoutRates::default()
        },
        adapters: None,
        names: Names::BERT,
    })
}

/// Fields of the configs of published models that nothing reads.
const BERT_WITHOUT_EFFECT: &[&str] = &[
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
];

/// Fails unless a config is that of a classifier of one class per text.
fn check_is_classifier(fields: &Fields) -> Result<(), ConfigError> {
    let classifier = "BertForSequenceClassification";
    let architectures = fields.raw("architectures").filter(|value| !value.is_null());
    let is_other = |list: &Value| {
        list.as_array()
            .is_none_or(|l| !l.contains(&json!(classifier)))
    };
    if let Some(other) = architectures.filter(|list| is_other(list)) {
        let supported = format!(
            "[\"{classifier}\"]; a BERT without classifier gets a random one by AutoModelForSequenceClassification.from_pretrained(…, num_labels=…) of transformers, and save_pretrained writes both"
        );
        return Err(fields.unsupported("architectures", other, &supported));
    }
    fields.only("problem_type", &json!("single_label_classification"))
}

/// `id2label`: the names of the classes, or `LABEL_0`, … of `num_labels` (2).
fn labels(fields: &Fields) -> Result<Vec<String>, ConfigError> {
    let count = fields.count_or_none("num_labels")?;
    let named = fields.object("id2label")?;
    let labels: Vec<String> = match &named {
        None => (0..count.unwrap_or(2))
            .map(|class| format!("LABEL_{class}"))
            .collect(),
        Some(named) => {
            let label = |class: usize| named.text(&class.to_string());
            let all = (0..)
                .map(label)
                .take_while(|label| !matches!(label, Ok(None)));
            let all: Result<Vec<&str>, ConfigError> = all
                .map(|label| label.map(Option::unwrap_or_default))
                .collect();
            named.finish(&[])?;
            all?.into_iter().map(str::to_owned).collect()
        }
    };
    let wrong = |field: &str, supported: &str| {
        let got = fields.raw(field).unwrap_or(&Value::Null);
        Err(fields.unsupported(field, got, supported))
    };
    if labels.len() < 2 {
        let field = if named.is_some() {
            "id2label"
        } else {
            "num_labels"
        };
        return wrong(field, "two classes or more (regression is not)");
    }
    if count.is_some_and(|count| count as usize != labels.len()) {
        return wrong(
            "num_labels",
            &format!("{}, as many as id2label has", labels.len()),
        );
    }
    let inverse: Map<String, Value> = labels.iter().cloned().zip((0..).map(Value::from)).collect();
    if inverse.len() != labels.len() {
        return wrong("id2label", "a name of its own for each class");
    }
    // Without names for the classes `label2id` is the other half of what is not there.
    if let (Some(_), Some(given)) = (&named, fields.object("label2id")?)
        && !given.is(&inverse)
    {
        return wrong("label2id", "the inverse of id2label");
    }
    Ok(labels)
}

/// RMSNorm, rotary positions, grouped-query attention, a gated MLP, no biases.
fn llama_like(fields: &Fields, key_value_heads: Option<u32>) -> Result<Decoder, ConfigError> {
    let width = fields.count("hidden_size")?;
    let context = fields.count("max_position_embeddings")?;
    let heads = fields.count("num_attention_heads")?;
    // `null` is as many as there are query heads, whatever the default is.
    let key_value_heads = match fields.raw("num_key_value_heads") {
        None => key_value_heads,
        Some(_) => fields.count_or_none("num_key_value_heads")?,
    };
    let plain = attention(width, heads, false);
    let attention = Attention {
        key_value_heads: key_value_heads.unwrap_or(heads),
        head_width: fields
            .count_or_none("head_dim")?
            .unwrap_or(plain.head_width),
        ..plain
    };
    let is_phi = fields.text("model_type")? == Some("phi3");
    let defaults = Defaults {
        base: "rope_theta",
        share: "partial_rotary_factor",
        default_share: 1.0,
        scalings: if is_phi { &["default"] } else { SCALINGS },
    };
    Ok(Decoder {
        structure: Structure::Causal,
        labels: Vec::new(),
        token_types: 0,
        has_embedding_norm: false,
        vocabulary: fields.count("vocab_size")?,
        context,
        layers: fields.count("num_hidden_layers")?,
        width,
        embedding_width: width,
        positions: Positions::Rotary(rotary(fields, attention.head_width, context, &defaults)?),
        norm: Norm {
            kind: NormKind::RmsNorm,
            eps: fields.positive_or("rms_norm_eps", if is_phi { 1e-5 } else { 1e-6 })?,
        },
        norm_place: NormPlace::Before,
        has_final_norm: true,
        is_parallel: false,
        attention,
        mlp: Mlp {
            width: fields.count("intermediate_size")?,
            activation: activation(fields, "hidden_act", "silu")?,
            gate: Gate::Separate,
            has_bias: false,
        },
        is_output_scaled: false,
        tied_output: fields.flag_or("tie_word_embeddings", false)?,
        dropout: DropoutRates {
            attention: fields.probability_or("attention_dropout", 0.0)?,
            ..DropoutRates::default()
        },
        adapters: None,
        names: Names::LLAMA,
    })
}

/// As many heads of keys and values as of queries, in three matrices.
fn attention(width: u32, heads: u32, has_bias: bool) -> Attention {
    Attention {
        heads,
        key_value_heads: heads,
        head_width: width / heads,
        projection: Projection::Separate,
        has_bias,
        has_output_bias: has_bias,
        is_scaled: true,
        window: None,
    }
}

fn layer_norm(eps: f64) -> Norm {
    Norm {
        kind: NormKind::LayerNorm,
        eps,
    }
}

/// Names of activations.
const ACTIVATIONS: &str = "relu, gelu, gelu_new, gelu_pytorch_tanh, silu, swish";

fn activation(fields: &Fields, name: &str, default: &str) -> Result<Activation, ConfigError> {
    let activation = fields.text(name)?.unwrap_or(default);
    named(activation).ok_or_else(|| fields.unsupported(name, &Value::from(activation), ACTIVATIONS))
}

fn named(activation: &str) -> Option<Activation> {
    match activation {
        "relu" => Some(Activation::Relu),
        "gelu" => Some(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
        "silu" | "swish" => Some(Activation::Silu),
        _ => None,
    }
}

/// `layer_types`: whether each block is limited to a window.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    let Some(value) = fields.raw("layer_types").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let limited = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let types: Option<Vec<bool>> =
        (value.as_array()).and_then(|types| types.iter().map(limited).collect());
    match types {
        Some(types) if types.len() == layers => Ok(Some(types)),
        _ => Err(fields.unsupported(
            "layer_types",
            value,
            &format!("{layers} of \"full_attention\" and \"sliding_attention\""),
        )),
    }
}

/// Sizes that must fit together.
fn check(decoder: &Decoder) -> Result<(), ConfigError> {
    let attention = &decoder.attention;
    let wrong = |problem: String| Err(ConfigError::Sizes { problem });
    if !attention.heads.is_multiple_of(attention.key_value_heads) {
        return wrong(format!(
            "{} attention heads cannot share {} heads of keys and values",
            attention.heads, attention.key_value_heads
        ));
    }
    // Only a head width of its own may differ from the residual stream's share.
    if attention.head_width == 0 || decoder.width < attention.heads {
        return wrong(format!(
            "a width of {} cannot have {} attention heads",
            decoder.width, attention.heads
        ));
    }
    let is_fixed = matches!(decoder.positions, Positions::Learned { .. })
        || attention.projection == Projection::FusedByHead;
    if is_fixed && attention.head_width * attention.heads != decoder.width {
        return wrong(format!(
            "the width {} is not divisible by {} attention heads",
            decoder.width, attention.heads
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::decoder::{Gate, Projection};
    use crate::hugging_face::{Config, ConfigError};
    use serde_json::{Value, json};

    fn config(folder: &str) -> Value {
        let path = format!(
            "{}/tests/data/{folder}/config.json",
            env!("CARGO_MANIFEST_DIR")
        );
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn message(config: &Value) -> String {
        let config = Config::parse(&config.to_string()).unwrap();
        config.decoder().unwrap_err().to_string()
    }

    #[test]
    fn what_would_change_the_forward_pass_and_is_not_implemented_is_refused_by_name() {
        for (folder, field, value) in [
            ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
            ("gpt2", "add_cross_attention", json!(true)),
            ("gpt2", "activation_function", json!("gelu_fast")),
            ("gpt2", "resid_pdrop", json!(1.0)),
            ("gpt2", "layer_norm_epsilon", json!(0.0)),
            ("opt", "layer_norm_elementwise_affine", json!(false)),
            ("opt", "layerdrop", json!(0.1)),
            ("gpt_neox", "rotary_pct", json!(1.5)),
            ("gpt_neox", "num_attention_heads", json!(0)),
            ("llama", "rope_interleaved", json!(true)),
            ("llama", "hidden_act", json!(3)),
            ("qwen2", "use_mrope", json!(true)),
            ("qwen2", "use_sliding_window", json!(false)),
            (
                "qwen2",
                "layer_types",
                json!(["chunked_attention", "full_attention"]),
            ),
            ("phi3", "attention_bias", json!(true)),
            ("phi3", "quantization_config", json!({"bits": 4})),
            ("t5", "feed_forward_proj", json!("gated-tanh")),
            ("t5", "is_encoder_decoder", json!(false)),
            ("t5", "relative_attention_num_buckets", json!(6)),
            ("t5", "relative_attention_max_distance", json!(4)),
            ("t5", "decoder_start_token_id", json!(-1)),
            ("t5", "decoder_start_token_id", Value::Null),
            ("bert", "problem_type", json!("regression")),
            ("bert", "id2label", json!({"0": "one"})),
            ("bert", "id2label", json!({"0": "a", "1": "a", "2": "b"})),
            ("bert", "id2label", json!({"0": "a", "2": "b"})),
            (
                "bert",
                "label2id",
                json!({"sports": 0, "world": 1, "business": 2}),
            ),
            ("bert", "num_labels", json!(4)),
            ("bert", "architectures", json!(["BertForMaskedLM"])),
            ("bert", "position_embedding_type", json!("relative_key")),
            ("bert", "is_decoder", json!(true)),
            ("bert", "model_type", json!("roberta")),
            ("llama", "model_type", json!("mamba")),
        ] {
            let mut config = config(folder);
            config[field] = value;
            if field == "rotary_pct" {
                config.as_object_mut().unwrap().remove("rope_parameters");
            }
            let message = message(&config);
            let named = if field == "use_sliding_window" {
                "layer_types"
            } else {
                field
            };
            assert!(message.contains(named), "{field}: {message}");
        }
    }

    #[test]
    fn a_field_that_is_missing_is_named() {
        let mut config = config("mistral");
        config.as_object_mut().unwrap().remove("intermediate_size");
        assert_eq!(message(&config), "there is no field intermediate_size");
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        let mut config = config("llama");
        config["num_key_value_heads"] = json!(3);
        assert!(message(&config).contains("3 heads of keys and values"));
        assert!(matches!(
            Config::parse("[]").unwrap_err(),
            ConfigError::Json { .. }
        ));
    }

    /// Counts as their authors publish them.
    #[test]
    fn ref_published_models_have_their_number_of_parameters() {
        let count = |config: Value| {
            let config = Config::parse(&config.to_string()).unwrap();
            config.decoder().unwrap().parameter_count()
        };
        let opt = |width: u32, layers: u32, heads: u32, embedding: u32, before: bool| {
            json!({
                "model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048,
                "hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": layers,
                "num_attention_heads": heads, "word_embed_proj_dim": embedding,
                "do_layer_norm_before": before, "layerdrop": 0.0, "prefix": "</s>",
            })
        };
        assert_eq!(count(opt(768, 12, 12, 768, true)), 125_239_296);
        assert_eq!(count(opt(1024, 24, 16, 512, false)), 331_196_416);
        // Pythia 70M, TinyLlama 1.1B, Qwen2.5 0.5B, Phi-3 mini.
        let pythia = json!({
            "model_type": "gpt_neox", "vocab_size": 50304, "max_position_embeddings": 2048,
            "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
            "num_attention_heads": 8, "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "use_parallel_residual": true, "hidden_act": "gelu",
        });
        assert_eq!(count(pythia), 70_426_624);
        let llama = json!({
            "model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048,
            "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
            "num_attention_heads": 32, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
            "rope_scaling": null, "pretraining_tp": 1,
        });
        assert_eq!(count(llama), 1_100_048_384);
        let qwen = json!({
            "model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768,
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": true,
            "use_sliding_window": false, "sliding_window": 32768, "max_window_layers": 21,
            "use_mrope": false, "rope_theta": 1000000.0,
        });
        assert_eq!(count(qwen), 494_032_768);
        let phi = json!({
            "model_type": "phi3", "vocab_size": 32064, "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096, "hidden_size": 3072,
            "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "rope_scaling": null, "sliding_window": 2047,
            "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_bias": false,
        });
        assert_eq!(count(phi), 3_821_079_552);
        // T5 small and flan-T5 small, with the fields of their own config.json.
        let t5 = json!({
            "model_type": "t5", "vocab_size": 32128, "n_positions": 512, "d_model": 512,
            "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
            "relative_attention_num_buckets": 32, "dropout_rate": 0.1,
            "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "is_encoder_decoder": true,
            "decoder_start_token_id": 0, "output_past": true,
        });
        assert_eq!(count(t5), 60_506_624);
        let flan = json!({
            "model_type": "t5", "vocab_size": 32128, "n_positions": 512, "d_model": 512,
            "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "dropout_rate": 0.1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
            "is_encoder_decoder": true, "decoder_start_token_id": 0,
        });
        assert_eq!(count(flan), 76_961_152);
        // BERT base with two classes.
        let bert = json!({
            "model_type": "bert", "vocab_size": 30522, "hidden_size": 768,
            "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
            "architectures": ["BertForSequenceClassification"], "layer_norm_eps": 1e-12,
        });
        assert_eq!(count(bert), 109_483_778);
    }

    #[test]
    fn the_output_of_a_t5_is_its_own_where_either_field_says_so() {
        let is_tied = |tied: Value, scaled: Value| {
            let mut config = config("t5");
            config["tie_word_embeddings"] = tied;
            config["scale_decoder_outputs"] = scaled;
            let decoder = Config::parse(&config.to_string()).unwrap().decoder();
            let decoder = decoder.unwrap();
            assert_eq!(decoder.tied_output, decoder.is_output_scaled);
            decoder.tied_output
        };
        assert!(is_tied(Value::Null, Value::Null));
        assert!(is_tied(json!(true), json!(true)));
        assert!(!is_tied(json!(false), Value::Null));
        // As transformers 5 writes it.
        assert!(!is_tied(json!(true), json!(false)));
    }

    #[test]
    fn mistral_has_a_window_unless_it_says_null() {
        let window = |change: &dyn Fn(&mut Value)| {
            let mut config = config("mistral");
            change(&mut config);
            let config = Config::parse(&config.to_string()).unwrap();
            config.decoder().unwrap().attention.window.map(|w| w.length)
        };
        assert_eq!(window(&|_| ()), Some(5));
        assert_eq!(window(&|c| c["sliding_window"] = Value::Null), None);
        let without = |c: &mut Value| {
            c.as_object_mut().unwrap().remove("sliding_window");
        };
        assert_eq!(window(&without), Some(4096));
    }

    #[test]
    fn phi3_has_fused_matrices() {
        let config = Config::parse(&config("phi3").to_string()).unwrap();
        let decoder = config.decoder().unwrap();
        assert_eq!(decoder.attention.projection, Projection::Fused);
        assert_eq!(decoder.mlp.gate, Gate::Fused);
    }
}
