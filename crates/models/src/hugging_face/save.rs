//! Writing a model folder.

use super::checkpoint::{CONFIG, CheckpointError, WEIGHTS, is_transposed, transpose};
use crate::weights::{ParameterSpec, Weights};
use safetensors::{Dtype, View};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Writes `model.safetensors` (32-bit floats) and `config.json` into a folder, which is created,
/// as transformers reads them. Files of these names are replaced. Adapters are not written
/// ([`save_adapter`](super::save_adapter)).
///
/// # Errors
/// Weights of a model that did not come from such a folder; a file that cannot be written.
pub fn save(weights: &Weights, folder: &Path) -> Result<(), CheckpointError> {
    let config = (weights.architecture().config()).ok_or(CheckpointError::NoConfig)?;
    let own = weights.layout().specs().iter();
    let tensors = own
        .filter(|spec| !is_adapter(&spec.name))
        .map(|spec| (spec.name.clone(), Stored::new(weights, spec)));
    write_tensors(tensors, folder, WEIGHTS)?;
    let mut fields = config.fields().clone();
    for name in ["dtype", "torch_dtype"] {
        if let Some(value) = fields.get_mut(name) {
            *value = Value::from("float32");
        }
    }
    write_json(&Value::Object(fields), folder, CONFIG)
}

/// Files of a model folder, beside `tokenizer.json`, that say how its tokens are used.
const TOKENIZER_FILES: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// What stands beside `tokenizer.json` in a model folder and says how tokens are used (special
/// tokens, the chat template), by file name, so that it can be written beside a model fine-tuned
/// from there.
///
/// # Errors
/// A file that is there and cannot be read.
pub fn tokenizer_files(folder: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let there = TOKENIZER_FILES.iter().map(|name| (name, folder.join(name)));
    there
        .filter(|(_, path)| path.exists())
        .map(|(name, path)| match std::fs::read_to_string(&path) {
            Ok(text) => Ok(((*name).to_owned(), text)),
            Err(source) => Err(CheckpointError::Unreadable {
                path,
                problem: source.to_string(),
            }),
        })
        .collect()
}

/// Whether a parameter belongs to an adapter.
pub(super) fn is_adapter(name: &str) -> bool {
    let ends = [".lora_A.weight", ".lora_B.weight", ".ia3_l"];
    ends.iter().any(|end| name.ends_with(end))
}

/// Writes a safetensors file into a folder, which is created.
pub(super) fn write_tensors<'a>(
    tensors: impl Iterator<Item = (String, Stored<'a>)>,
    folder: &Path,
    name: &str,
) -> Result<(), CheckpointError> {
    std::fs::create_dir_all(folder).map_err(|e| unwritable(folder, e.to_string()))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join(name);
    safetensors::serialize_to_file(tensors, Some(metadata), &path)
        .map_err(|e| unwritable(&path, e.to_string()))
}

/// Writes a JSON file into a folder.
pub(super) fn write_json(value: &Value, folder: &Path, name: &str) -> Result<(), CheckpointError> {
    let text = serde_json::to_string_pretty(value).expect("it is JSON");
    let path = folder.join(name);
    std::fs::write(&path, text + "\n").map_err(|e| unwritable(&path, e.to_string()))
}

fn unwritable(path: &Path, problem: String) -> CheckpointError {
    CheckpointError::Unwritable {
        path: path.to_owned(),
        problem,
    }
}

/// One parameter as the checkpoint has it; its bytes are made when they are written.
pub(super) struct Stored<'a> {
    weights: &'a Weights,
    spec: &'a ParameterSpec,
    is_transposed: bool,
    shape: Vec<usize>,
}

impl<'a> Stored<'a> {
    pub(super) fn new(weights: &'a Weights, spec: &'a ParameterSpec) -> Self {
        let names = &weights.architecture().decoder().names;
        let is_transposed = is_transposed(names, &spec.name);
        let mut shape = spec.shape.clone();
        if is_transposed {
            shape.reverse();
        }
        Self {
            weights,
            spec,
            is_transposed,
            shape,
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = &self.weights.flat()[self.spec.offset..][..self.spec.len()];
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        if !self.is_transposed {
            return Cow::Owned(bytes(values));
        }
        let mut turned = vec![0.0; values.len()];
        transpose(values, self.shape[1], &mut turned);
        Cow::Owned(bytes(&turned))
    }

    fn data_len(&self) -> usize {
        4 * self.spec.len()
    }
}
