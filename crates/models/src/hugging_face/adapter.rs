//! LoRA adapters in the folder format of PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.

use super::checkpoint::CheckpointError;
use super::config::ConfigError;
use super::fields::Fields;
use super::save::{Stored, write_json, write_tensors};
use super::shard::Shard;
use crate::trainable::{LoraSettings, Trainable};
use crate::weights::{ArchitectureError, Weights};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Name of the settings.
const CONFIG: &str = "adapter_config.json";

/// Name of the values.
const VALUES: &str = "adapter_model.safetensors";

/// What stands before the names of parameters.
const PREFIX: &str = "base_model.model.";

/// Fields that change nothing in what an adapter computes.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "peft_version",
    "revision",
    "task_type",
];

/// A model with the adapter of a folder, which is then what is trained.
///
/// # Errors
/// A file that cannot be read or is malformed; an adapter of another kind than plain LoRA, with
/// the field that says so; matrices that the model does not have, tensors that are missing, too
/// many, misshapen or not finite.
///
/// # Reference
/// <https://huggingface.co/docs/peft/developer_guides/checkpoint>
pub fn load_adapter(base: &Weights, folder: &Path) -> Result<Weights, CheckpointError> {
    let path = folder.join(CONFIG);
    let wrong = |source: ArchitectureError| CheckpointError::Architecture {
        path: path.clone(),
        source,
    };
    let text = std::fs::read_to_string(&path).map_err(|source| CheckpointError::Unreadable {
        path: path.clone(),
        problem: source.to_string(),
    })?;
    let settings = settings(&text).map_err(|source| wrong(source.into()))?;
    let weights = base
        .with_trainable(Trainable::Lora(settings))
        .map_err(|source| wrong(source.into()))?;
    let mut shard = Shard::open(&folder.join(VALUES))?;
    let mut flat = weights.flat().to_vec();
    let mut known = Vec::new();
    for spec in adapters(&weights) {
        let name = format!("{PREFIX}{}", spec.name);
        let Some(info) = shard.tensors.get(&name) else {
            return Err(CheckpointError::Missing {
                folder: folder.to_owned(),
                tensor: name,
            });
        };
        if info.shape != spec.shape {
            return Err(CheckpointError::Shape {
                path: shard.path().to_owned(),
                tensor: name,
                expected: spec.shape.clone(),
                got: info.shape.clone(),
            });
        }
        let values = shard.read(&name)?;
        flat[spec.offset..spec.offset + spec.len()].copy_from_slice(&values);
        known.push(name);
    }
    if let Some(extra) = shard.tensors.keys().find(|name| !known.contains(name)) {
        return Err(CheckpointError::Extra {
            path: shard.path().to_owned(),
            tensor: extra.clone(),
        });
    }
    Ok(Weights::from_flat(weights.architecture(), flat)?)
}

/// Writes the adapter of a model into a folder, which is created, as PEFT reads it. The model that
/// it belongs to is not written.
///
/// # Errors
/// A model without adapter; a file that cannot be written.
pub fn save_adapter(weights: &Weights, folder: &Path) -> Result<(), CheckpointError> {
    let architecture = weights.architecture();
    let Some(lora) = &architecture.decoder().adapters else {
        return Err(CheckpointError::NoAdapter);
    };
    let tensors = adapters(weights).map(|spec| {
        let name = format!("{PREFIX}{}", spec.name);
        (name, Stored::new(weights, spec))
    });
    write_tensors(tensors, folder, VALUES)?;
    let has_input_first = !architecture.decoder().names.input_first.is_empty();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "r": lora.rank,
        "lora_alpha": lora.scale * f64::from(lora.rank),
        "lora_dropout": 0.0,
        "target_modules": lora.targets,
        "bias": "none",
        "fan_in_fan_out": has_input_first,
        "inference_mode": true,
    });
    write_json(&config, folder, CONFIG)
}

fn adapters(weights: &Weights) -> impl Iterator<Item = &crate::weights::ParameterSpec> {
    let is_adapter =
        |name: &str| name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
    (weights.layout().specs().iter()).filter(move |spec| is_adapter(&spec.name))
}

/// Reads `adapter_config.json`; every field must have been understood.
fn settings(text: &str) -> Result<LoraSettings, ConfigError> {
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|source| ConfigError::Json {
            problem: source.to_string(),
        })?;
    let fields = Fields::new(&object, "");
    for (field, supported) in [
        ("peft_type", json!("LORA")),
        ("bias", json!("none")),
        ("lora_dropout", json!(0)),
        ("use_rslora", json!(false)),
        ("use_dora", json!(false)),
        ("use_qalora", json!(false)),
        ("lora_bias", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("loftq_config", json!({})),
        ("megatron_config", json!({})),
        ("ensure_weight_tying", json!(false)),
    ] {
        fields.only(field, &supported)?;
    }
    let settings = LoraSettings {
        rank: fields.count("r")?,
        alpha: fields.positive_or("lora_alpha", 8.0)?,
        targets: Some(targets(&fields)?),
        seed: 0,
    };
    // How quantised layers would be grouped.
    fields.raw("qalora_group_size");
    fields.finish(WITHOUT_EFFECT)?;
    Ok(settings)
}

fn targets(fields: &Fields) -> Result<Vec<String>, ConfigError> {
    let name = "target_modules";
    let Some(value) = fields.raw(name).filter(|value| !value.is_null()) else {
        return Err(ConfigError::Missing { field: name.into() });
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list: Option<Vec<String>> =
        (value.as_array()).and_then(|list| list.iter().map(text).collect());
    let mut list =
        list.ok_or_else(|| fields.unsupported(name, value, "a list of names of matrices"))?;
    // PEFT writes a set, in any order.
    list.sort();
    Ok(list)
}
