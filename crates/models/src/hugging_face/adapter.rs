//! Adapters, LoRA and (IA)³, in the folder format of PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.

use super::checkpoint::CheckpointError;
use super::config::ConfigError;
use super::fields::Fields;
use super::save::{Stored, write_json, write_tensors};
use super::shard::Shard;
use crate::decoder::{Adapters, Decoder, Structure};
use crate::trainable::{Ia3Settings, LoraSettings, Trainable};
use crate::weights::{ArchitectureError, ParameterSpec, Weights};
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
    "init_ia3_weights",
    "megatron_core",
    "peft_version",
    "revision",
    "task_type",
];

/// A model with the adapter of a folder, which is then what is trained.
///
/// # Errors
/// A file that cannot be read or is malformed; an adapter of another kind than plain LoRA or (IA)³,
/// with the field that says so; matrices that the model does not have, tensors that are missing, too
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
    let decoder = base.architecture().decoder();
    let trainable = trainable(&text, decoder).map_err(|source| wrong(source.into()))?;
    let weights = base
        .with_trainable(trainable)
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
    let decoder = weights.architecture().decoder();
    let Some(adapters) = &decoder.adapters else {
        return Err(CheckpointError::NoAdapter);
    };
    let tensors = self::adapters(weights).map(|spec| {
        let name = format!("{PREFIX}{}", spec.name);
        (name, Stored::new(weights, spec))
    });
    write_tensors(tensors, folder, VALUES)?;
    let mut config = match adapters {
        Adapters::Lora(lora) => json!({
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": lora.scale * f64::from(lora.rank),
            "lora_dropout": decoder.dropout.adapter,
            "target_modules": lora.targets,
            "bias": "none",
        }),
        Adapters::Ia3(ia3) => {
            // PEFT wants no name here that is not a target, too.
            let is_target = |end: &&String| ia3.targets.contains(end);
            let feedforward: Vec<&String> = ia3.feedforward.iter().filter(is_target).collect();
            json!({
                "peft_type": "IA3",
                "target_modules": ia3.targets,
                "feedforward_modules": feedforward,
            })
        }
    };
    config["task_type"] = json!(match decoder.structure {
        Structure::Causal => "CAUSAL_LM",
        Structure::EncoderDecoder { .. } => "SEQ_2_SEQ_LM",
        Structure::Classifier => "SEQ_CLS",
    });
    if weights.architecture().trainable().has_classifier(decoder) {
        config["modules_to_save"] = json!(CLASSIFIERS);
    }
    config["base_model_name_or_path"] = Value::Null;
    config["fan_in_fan_out"] = json!(!decoder.names.input_first.is_empty());
    config["inference_mode"] = json!(true);
    write_json(&config, folder, CONFIG)
}

/// The parameters that stand in an adapter's file: its own, and the classifier trained with it.
fn adapters(weights: &Weights) -> impl Iterator<Item = &ParameterSpec> {
    let architecture = weights.architecture();
    let chosen = architecture.chosen();
    let specs = weights.layout().specs().iter().zip(chosen);
    specs
        .filter(|(_, is_chosen)| *is_chosen)
        .map(|(spec, _)| spec)
}

/// The modules beside adapters that PEFT trains and saves for sequence classification.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// Reads `adapter_config.json`; every field must have been understood.
fn trainable(text: &str, decoder: &Decoder) -> Result<Trainable, ConfigError> {
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|source| ConfigError::Json {
            problem: source.to_string(),
        })?;
    let fields = Fields::new(&object, "");
    let kind = fields.raw("peft_type").unwrap_or(&Value::Null);
    let classifier = has_classifier(&fields, decoder)?;
    let trainable = match kind.as_str() {
        Some("LORA") => Trainable::Lora(LoraSettings {
            classifier,
            ..lora(&fields)?
        }),
        Some("IA3") => Trainable::Ia3(Ia3Settings {
            classifier,
            ..ia3(&fields)?
        }),
        _ => return Err(fields.unsupported("peft_type", kind, "\"LORA\" or \"IA3\"")),
    };
    fields.finish(WITHOUT_EFFECT)?;
    Ok(trainable)
}

fn lora(fields: &Fields) -> Result<LoraSettings, ConfigError> {
    for (field, supported) in [
        ("bias", json!("none")),
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
    // How quantised layers would be grouped.
    fields.raw("qalora_group_size");
    starts_from_the_base_model(fields)?;
    Ok(LoraSettings {
        rank: fields.count("r")?,
        alpha: fields.positive_or("lora_alpha", 8.0)?,
        targets: Some(names(fields, "target_modules")?),
        dropout: fields.probability_or("lora_dropout", 0.0)?,
        ..LoraSettings::default()
    })
}

/// Some ways to start an adapter change the base model as well, and PEFT does so again when it loads
/// one; the others have no effect on an adapter with values.
fn starts_from_the_base_model(fields: &Fields) -> Result<(), ConfigError> {
    let name = "init_lora_weights";
    match fields.raw(name) {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(start)) if ["gaussian", "eva", "orthogonal"].contains(&&**start) => {
            Ok(())
        }
        Some(other) => Err(fields.unsupported(
            name,
            other,
            "true, false, \"gaussian\", \"eva\" or \"orthogonal\", which leave the base model as it is; save the adapter with path_initial_model_for_weight_conversion of PEFT to turn it into such a one",
        )),
    }
}

fn ia3(fields: &Fields) -> Result<Ia3Settings, ConfigError> {
    Ok(Ia3Settings {
        targets: Some(names(fields, "target_modules")?),
        feedforward: Some(names(fields, "feedforward_modules")?),
        ..Ia3Settings::default()
    })
}

/// `modules_to_save`: whether the classifier is trained, too.
fn has_classifier(fields: &Fields, decoder: &Decoder) -> Result<bool, ConfigError> {
    let name = "modules_to_save";
    let Some(value) = fields.raw(name).filter(|value| !value.is_null()) else {
        return Ok(false);
    };
    let is_known = |module: &Value| CLASSIFIERS.iter().any(|known| module == known);
    let list = value.as_array().filter(|list| list.iter().all(is_known));
    match list.filter(|_| decoder.structure == Structure::Classifier) {
        Some(list) => Ok(list.contains(&json!(decoder.names.output))),
        None => Err(fields.unsupported(name, value, "null, or \"classifier\" of a classifier")),
    }
}

fn names(fields: &Fields, name: &str) -> Result<Vec<String>, ConfigError> {
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
