//! Reading the weights of a model folder.

use super::config::{Config, ConfigError};
use super::shard::Shard;
use crate::decoder::{Decoder, Names, layout};
use crate::weights::{Architecture, ArchitectureError, ParameterSpec, Weights, WeightsError};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the settings.
pub(super) const CONFIG: &str = "config.json";

/// Name of the weights in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// Name of the list of several files.
const INDEX: &str = "model.safetensors.index.json";

/// Ends of the names of tensors that older checkpoints hold and that are computed anew or not used.
const BUFFERS: &[&str] = &[
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    // T5 has no positions between decoder and encoder; older checkpoints hold a table all the same.
    ".EncDecAttention.relative_attention_bias.weight",
];

/// Other names of an output matrix.
const OUTPUTS: &[&str] = &["lm_head.weight", "embed_out.weight"];

/// Reads the weights of a folder with `config.json` and `model.safetensors`, or
/// `model.safetensors.index.json` and the files that it names. Values stored in 16 bits become
/// 32-bit floats. At any moment one tensor is held besides the weights.
///
/// - `dropout`, in `[0, 1)`: replaces the probabilities of `config.json`.
///
/// Matrices that the checkpoint has as `[input × output]` (the `Conv1D` of GPT-2) are transposed;
/// otherwise parameters have the names and shapes of the checkpoint. Names without the first part
/// (`wte.weight` for `transformer.wte.weight`) are understood, and buffers of older versions
/// (`attn.bias`, `rotary_emb.inv_freq`, …) are passed over.
///
/// # Errors
/// See [`CheckpointError`].
pub fn load(folder: &Path, dropout: Option<f64>) -> Result<Weights, CheckpointError> {
    let architecture = architecture(folder, dropout)?;
    let decoder = architecture.decoder();
    let mut shards = open_shards(folder)?;
    let (layout, _) = layout(decoder);
    let stored = Stored::new(&shards, decoder)?;
    let places = (layout.specs().iter())
        .map(|spec| stored.place(spec, decoder, &shards, folder))
        .collect::<Result<Vec<(usize, String)>, CheckpointError>>()?;
    stored.check_others(&places, decoder, &shards)?;
    let mut flat = vec![0.0; layout.flat_len()];
    for (spec, (shard, name)) in layout.specs().iter().zip(&places) {
        let values = shards[*shard].read(name)?;
        let slot = &mut flat[spec.offset..spec.offset + spec.len()];
        if is_transposed(&decoder.names, &spec.name) {
            transpose(&values, spec.shape[1], slot);
        } else {
            slot.copy_from_slice(&values);
        }
    }
    check_tied(&mut shards, &stored, decoder, &flat)?;
    Ok(Weights::from_flat(&architecture, flat)?)
}

/// The architecture of a folder.
///
/// # Errors
/// A `config.json` that cannot be read or is not understood.
pub fn architecture(folder: &Path, dropout: Option<f64>) -> Result<Architecture, CheckpointError> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| CheckpointError::Unreadable {
        path: path.clone(),
        problem: source.to_string(),
    })?;
    let config = |source: ConfigError| CheckpointError::Architecture {
        path: path.clone(),
        source: source.into(),
    };
    let parsed = Config::parse(&text).map_err(config)?;
    Architecture::of_config(parsed, dropout).map_err(|source| CheckpointError::Architecture {
        path: path.clone(),
        source,
    })
}

/// Whether a matrix stands as `[input × output]` in checkpoints.
pub(super) fn is_transposed(names: &Names, name: &str) -> bool {
    let stem = name.strip_suffix(".weight").unwrap_or_default();
    (names.input_first.iter()).any(|end| stem.ends_with(end))
}

/// `[rows × columns]` row by row → `[columns × rows]`; `rows` is the length of a row of `out`.
pub(super) fn transpose(values: &[f32], rows: usize, out: &mut [f32]) {
    let columns = values.len() / rows;
    for (row, part) in values.chunks_exact(columns).enumerate() {
        for (column, &value) in part.iter().enumerate() {
            out[column * rows + row] = value;
        }
    }
}

fn open_shards(folder: &Path) -> Result<Vec<Shard>, CheckpointError> {
    let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    if single.exists() {
        return Ok(vec![Shard::open(&single)?]);
    }
    if !index.exists() {
        return Err(CheckpointError::NoWeights {
            folder: folder.to_owned(),
        });
    }
    let files = files_of(&index)?;
    let names: BTreeSet<&String> = files.values().collect();
    let shards = (names.iter())
        .map(|name| Shard::open(&folder.join(name)))
        .collect::<Result<Vec<Shard>, CheckpointError>>()?;
    for (tensor, file) in &files {
        let position = names.iter().position(|name| *name == file);
        let shard = &shards[position.expect("every file was opened")];
        if !shard.tensors.contains_key(tensor) {
            return Err(CheckpointError::Index {
                path: index.clone(),
                problem: format!("tensor {tensor} is not in {file}"),
            });
        }
    }
    Ok(shards)
}

/// `weight_map`: the file of each tensor.
fn files_of(index: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let wrong = |problem: String| CheckpointError::Index {
        path: index.to_owned(),
        problem,
    };
    let text = std::fs::read_to_string(index).map_err(|source| CheckpointError::Unreadable {
        path: index.to_owned(),
        problem: source.to_string(),
    })?;
    let mut fields: Map<String, Value> =
        serde_json::from_str(&text).map_err(|source| wrong(source.to_string()))?;
    let map = fields.remove("weight_map").unwrap_or_default();
    let files: BTreeMap<String, String> =
        serde_json::from_value(map).map_err(|source| wrong(format!("weight_map: {source}")))?;
    let outside = |file: &&String| Path::new(file).file_name() != Some(file.as_ref());
    match files.values().find(outside) {
        Some(file) => Err(wrong(format!("{file:?} is no file name"))),
        None if files.is_empty() => Err(wrong("weight_map has no tensor".into())),
        None => Ok(files),
    }
}

/// Where each tensor of a checkpoint is.
struct Stored {
    /// Shard by name.
    shards: BTreeMap<String, usize>,
    /// The first part of a model's names where the checkpoint's lack it, such as `transformer.`.
    lacking: Option<String>,
}

impl Stored {
    fn new(shards: &[Shard], decoder: &Decoder) -> Result<Self, CheckpointError> {
        let mut by_name = BTreeMap::new();
        for (index, shard) in shards.iter().enumerate() {
            for name in shard.tensors.keys() {
                if let Some(first) = by_name.insert(name.clone(), index) {
                    return Err(CheckpointError::Twice {
                        tensor: name.clone(),
                        first: shards[first].path().to_owned(),
                        second: shard.path().to_owned(),
                    });
                }
            }
        }
        let embedding = decoder.names.token_embedding;
        let first_part = embedding.split_inclusive('.').next().unwrap_or_default();
        let is_lacking = !by_name.keys().any(|name| name.starts_with(first_part));
        Ok(Self {
            shards: by_name,
            lacking: is_lacking.then(|| first_part.to_owned()),
        })
    }

    /// Shard and name of a parameter, whose shape is checked.
    fn place(
        &self,
        spec: &ParameterSpec,
        decoder: &Decoder,
        shards: &[Shard],
        folder: &Path,
    ) -> Result<(usize, String), CheckpointError> {
        let shortened = (self.lacking.as_ref()).and_then(|part| spec.name.strip_prefix(part));
        let plain = [shortened.unwrap_or(&spec.name)];
        let others = match OUTPUTS.contains(&&spec.name[..]) {
            true => OUTPUTS,
            false => &[],
        };
        let name = (plain.iter().chain(others)).find(|name| self.shards.contains_key(**name));
        let Some(name) = name else {
            return Err(CheckpointError::Missing {
                folder: folder.to_owned(),
                tensor: plain[0].to_owned(),
            });
        };
        let shard = self.shards[*name];
        let got = &shards[shard].tensors[*name].shape;
        let mut expected = spec.shape.clone();
        if is_transposed(&decoder.names, &spec.name) {
            expected.reverse();
        }
        if *got == expected {
            return Ok((shard, (*name).to_owned()));
        }
        Err(CheckpointError::Shape {
            path: shards[shard].path().to_owned(),
            tensor: (*name).to_owned(),
            expected,
            got: got.clone(),
        })
    }

    /// Fails if there is a tensor that the model does not have and that matters.
    fn check_others(
        &self,
        places: &[(usize, String)],
        decoder: &Decoder,
        shards: &[Shard],
    ) -> Result<(), CheckpointError> {
        let known: BTreeSet<&String> = places.iter().map(|(_, name)| name).collect();
        let is_expected = |name: &&String| {
            known.contains(name)
                || BUFFERS.iter().any(|end| name.ends_with(end))
                || embeddings_again(decoder).any(|again| again == &name[..])
        };
        match self.shards.keys().find(|name| !is_expected(name)) {
            None => Ok(()),
            Some(name) => Err(CheckpointError::Extra {
                path: shards[self.shards[name]].path().to_owned(),
                tensor: name.clone(),
            }),
        }
    }
}

/// Names of tensors that are the token embedding again.
fn embeddings_again(decoder: &Decoder) -> impl Iterator<Item = &'static str> {
    let outputs = OUTPUTS.iter().filter(|_| decoder.tied_output);
    outputs.chain(decoder.names.copies).copied()
}

/// What is stored although it is the token embedding again must be it.
fn check_tied(
    shards: &mut [Shard],
    stored: &Stored,
    decoder: &Decoder,
    flat: &[f32],
) -> Result<(), CheckpointError> {
    for name in embeddings_again(decoder) {
        let Some(&shard) = stored.shards.get(name) else {
            continue;
        };
        let values = shards[shard].read(name)?;
        // The token embedding is the first parameter.
        if flat.get(..values.len()) != Some(&values[..]) {
            return Err(CheckpointError::NotTied {
                path: shards[shard].path().to_owned(),
                tensor: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// Why a model folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that cannot be read.
    #[error("cannot read {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: String,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {problem}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// A `config.json` that is not understood.
    #[error("{}: {source}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ArchitectureError,
    },
    /// No weights.
    #[error(
        "{} has neither {WEIGHTS} nor {INDEX}; weights in another format (pytorch_model.bin) have to be saved again as safetensors",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A malformed list of files.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A malformed header.
    #[error("{}: its header is wrong: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file of another size than its header says.
    #[error(
        "{} has {got} bytes, by its header it should have {expected}; it was not copied whole",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes by the header.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
    /// The same tensor in two files.
    #[error("tensor {tensor} is in {} and in {}", first.display(), second.display())]
    Twice {
        /// Its name.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A parameter that is not there.
    #[error("{} has no tensor {tensor}, which its config.json asks for", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor that no parameter is.
    #[error(
        "{}: the tensor {tensor} belongs to no part of the model that its config.json describes",
        path.display()
    )]
    Extra {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor of another shape.
    #[error(
        "{}: tensor {tensor} has shape {got:?}, by config.json it should have {expected:?}",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// By the config.
        expected: Vec<usize>,
        /// In the file.
        got: Vec<usize>,
    },
    /// A tensor of a type that is not read.
    #[error(
        "{}: tensor {tensor} is stored as {got}; F32, F16 and BF16 are supported",
        path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// Its type.
        got: String,
    },
    /// A value that is NaN or infinite.
    #[error("{}: value {index} of tensor {tensor} is {got}; it must be finite", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// Which value.
        index: usize,
        /// The value.
        got: f32,
    },
    /// A matrix that is not the token embedding although it should be.
    #[error(
        "{}: tensor {tensor} differs from the token embedding, but by config.json the two are the same (tie_word_embeddings)",
        path.display()
    )]
    NotTied {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A model without adapter.
    #[error("the model has no adapter (LoRA, (IA)³)")]
    NoAdapter,
    /// Weights that came from no `config.json`.
    #[error("only models that came from a Hugging Face folder can be saved as one")]
    NoConfig,
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
