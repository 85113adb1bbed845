//! Folders that are read, written, and refused.

use super::{CheckpointError, load, save};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Type, shape and bytes of a tensor.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn data(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{folder}"))
}

fn tensors(path: &Path) -> BTreeMap<String, Stored> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |view: TensorView<'_>| (view.dtype(), view.shape().into(), view.data().into());
    (file.tensors().into_iter())
        .map(|(name, view)| (name, stored(view)))
        .collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, Stored>) {
    let views = tensors.iter().map(|(name, (kind, shape, bytes))| {
        (name, TensorView::new(*kind, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A copy of a model folder, changed.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(folder: &str) -> Self {
        let copy = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(data(folder).join(name), copy.path().join(name)).unwrap();
        }
        Self(copy)
    }

    fn weights(&self) -> PathBuf {
        self.0.path().join("model.safetensors")
    }

    fn with_tensors(self, change: impl FnOnce(&mut BTreeMap<String, Stored>)) -> Self {
        let mut all = tensors(&self.weights());
        change(&mut all);
        write(&self.weights(), &all);
        self
    }

    fn with_config(self, field: &str, value: Value) -> Self {
        let path = self.0.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(path, config.to_string()).unwrap();
        self
    }

    fn with_bytes(self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = std::fs::read(self.weights()).unwrap();
        change(&mut bytes);
        std::fs::write(self.weights(), bytes).unwrap();
        self
    }

    fn error(&self) -> CheckpointError {
        load(self.0.path(), None).unwrap_err()
    }
}

#[track_caller]
fn assert_says(copy: &Copy, parts: &[&str]) {
    let message = copy.error().to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn every_folder_is_read_and_written_back_bit_for_bit() {
    for folder in [
        "gpt2",
        "opt",
        "opt_post_norm",
        "gpt_neox",
        "gpt_neox_sequential",
        "llama",
        "mistral",
        "qwen2",
        "phi3",
    ] {
        let weights = load(&data(folder), None).unwrap();
        let out = tempfile::tempdir().unwrap();
        save(&weights, out.path()).unwrap();
        let before = tensors(&data(folder).join("model.safetensors"));
        assert_eq!(
            before,
            tensors(&out.path().join("model.safetensors")),
            "{folder}"
        );
        assert_eq!(load(out.path(), None).unwrap(), weights);
    }
}

#[test]
fn values_of_16_bits_become_32_bit_floats() {
    let original = load(&data("llama"), None).unwrap();
    let bf16 = |bytes: &[u8]| -> Vec<u8> { bytes.chunks(4).flat_map(|b| [b[2], b[3]]).collect() };
    let copy = Copy::of("llama").with_tensors(|all| {
        for (kind, _, bytes) in all.values_mut() {
            *kind = Dtype::BF16;
            *bytes = bf16(bytes);
        }
        let (kind, shape, bytes) = all.get_mut("model.norm.weight").unwrap();
        *kind = Dtype::F16;
        *bytes = [0x00, 0x3e].repeat(shape[0]);
    });
    let weights = load(copy.0.path(), None).unwrap();
    assert!((weights.parameter("model.norm.weight").unwrap().iter()).all(|v| *v == 1.5));
    let name = "model.layers.1.mlp.up_proj.weight";
    let pairs = (weights.parameter(name).unwrap().iter()).zip(original.parameter(name).unwrap());
    for (got, whole) in pairs {
        assert_eq!(got.to_bits(), whole.to_bits() & 0xffff_0000);
    }
}

/// Cut into two files.
fn sharded() -> Copy {
    let copy = Copy::of("llama");
    let all = tensors(&copy.weights());
    let mut files = [BTreeMap::new(), BTreeMap::new()];
    let mut map = BTreeMap::new();
    for (k, (name, stored)) in all.into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", k % 2));
        files[k % 2].insert(name, stored);
    }
    for (k, file) in files.iter().enumerate() {
        write(&copy.0.path().join(format!("model-{k}.safetensors")), file);
    }
    std::fs::remove_file(copy.weights()).unwrap();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    let path = copy.0.path().join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    copy
}

#[test]
fn shards_are_read_by_their_index() {
    let copy = sharded();
    let whole = load(&data("llama"), None).unwrap();
    assert_eq!(load(copy.0.path(), None).unwrap(), whole);
    std::fs::remove_file(copy.0.path().join("model-1.safetensors")).unwrap();
    assert_says(&copy, &["model-1.safetensors"]);
}

#[test]
fn an_index_that_is_wrong_is_refused() {
    let copy = sharded();
    let path = copy.0.path().join("model.safetensors.index.json");
    let index = std::fs::read_to_string(&path).unwrap();
    let change = |from: &str, to: &str| {
        std::fs::write(&path, index.replacen(from, to, 1)).unwrap();
    };
    change("model.norm.weight", "model.no.weight");
    assert_says(&copy, &["index.json", "model.no.weight"]);
    change("model-0.safetensors", "../model-0.safetensors");
    assert_says(&copy, &["no file name"]);
    change("weight_map", "weights");
    assert_says(&copy, &["weight_map"]);
    std::fs::remove_file(&path).unwrap();
    assert_says(&copy, &["neither model.safetensors nor"]);
}

#[test]
fn names_without_their_first_part_and_old_buffers_are_understood() {
    let copy = Copy::of("gpt2").with_tensors(|all| {
        *all = std::mem::take(all)
            .into_iter()
            .map(|(name, stored)| (name["transformer.".len()..].to_owned(), stored))
            .collect();
        let buffer = (Dtype::U8, vec![1, 1, 2, 2], vec![1, 0, 1, 1]);
        all.insert("h.0.attn.bias".into(), buffer);
        let embedding = all["wte.weight"].clone();
        all.insert("lm_head.weight".into(), embedding);
    });
    let whole = load(&data("gpt2"), None).unwrap();
    assert_eq!(load(copy.0.path(), None).unwrap(), whole);
    let copy = copy.with_tensors(|all| all.get_mut("lm_head.weight").unwrap().2[0] ^= 1);
    assert_says(&copy, &["lm_head.weight", "tie_word_embeddings"]);
}

#[test]
fn a_t5_may_hold_its_embedding_again_and_a_table_that_is_not_used() {
    let copy = Copy::of("t5").with_tensors(|all| {
        let embedding = all["shared.weight"].clone();
        for name in ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"] {
            all.insert(format!("{name}.weight"), embedding.clone());
        }
        let unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
        let table =
            all["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].clone();
        all.insert(unused.into(), table);
    });
    let whole = load(&data("t5"), None).unwrap();
    assert_eq!(load(copy.0.path(), None).unwrap(), whole);
    let name = "decoder.embed_tokens.weight";
    let copy = copy.with_tensors(|all| all.get_mut(name).unwrap().2[0] ^= 1);
    assert_says(&copy, &[name, "token embedding"]);
    // One of its own that the config promises must be there.
    let copy = Copy::of("t5").with_config("tie_word_embeddings", json!(false));
    let copy = copy.with_config("scale_decoder_outputs", Value::Null);
    assert_says(&copy, &["has no tensor lm_head.weight"]);
}

#[test]
fn tensors_that_are_missing_or_too_many_are_named() {
    let name = "model.layers.1.self_attn.k_proj.weight";
    let copy = Copy::of("mistral").with_tensors(|all| {
        all.remove(name);
    });
    assert_says(&copy, &["has no tensor", name]);
    let copy = Copy::of("mistral").with_tensors(|all| {
        let stored = all[name].clone();
        all.insert("model.layers.2.self_attn.k_proj.weight".into(), stored);
    });
    assert_says(
        &copy,
        &["model.layers.2.self_attn.k_proj.weight", "no part"],
    );
    // A bias that the config does not have is too many as well.
    let copy = Copy::of("qwen2").with_config("model_type", json!("llama"));
    let copy = copy.with_config("use_sliding_window", Value::Null);
    assert!(matches!(copy.error(), CheckpointError::Architecture { .. }));
}

#[test]
fn shapes_and_types_that_are_wrong_are_named_with_what_was_expected() {
    let copy = Copy::of("llama").with_config("vocab_size", json!(20));
    assert_says(&copy, &["model.embed_tokens.weight", "[19, 8]", "[20, 8]"]);
    let copy = Copy::of("gpt2").with_config("n_inner", json!(10));
    assert_says(&copy, &["mlp.c_fc.weight", "[8, 12]", "[8, 10]"]);
    let copy = Copy::of("llama").with_tensors(|all| {
        let (kind, _, bytes) = all.get_mut("model.norm.weight").unwrap();
        *kind = Dtype::I64;
        *bytes = vec![0; 64];
    });
    assert_says(&copy, &["model.norm.weight", "I64", "BF16"]);
    let copy = Copy::of("llama").with_tensors(|all| {
        let bytes = &mut all.get_mut("model.norm.weight").unwrap().2;
        bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert_says(&copy, &["value 1", "model.norm.weight", "NaN"]);
}

#[test]
fn files_that_are_cut_off_or_lie_about_sizes_are_refused() {
    let copy = Copy::of("llama").with_bytes(|bytes| bytes.truncate(bytes.len() - 5));
    assert_says(&copy, &["not copied whole", "8779", "8784"]);
    let copy = Copy::of("llama").with_bytes(|bytes| bytes.truncate(100));
    assert_says(&copy, &["header", "in a file of 100"]);
    let copy = Copy::of("llama").with_bytes(|bytes| bytes.truncate(3));
    assert_says(&copy, &["3 bytes"]);
    let copy = Copy::of("llama").with_bytes(|bytes| bytes[..8].fill(0xff));
    assert_says(&copy, &["header", "18446744073709551615"]);
    let copy = Copy::of("llama").with_bytes(|bytes| bytes[8] = b'[');
    assert_says(&copy, &["header is wrong"]);
    let lie = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        Copy::of("llama").with_bytes(|bytes| {
            let place = (bytes.windows(from.len())).position(|part| part == from.as_bytes());
            let place = place.unwrap();
            bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
        })
    };
    let embedding = r#""model.embed_tokens.weight":{"dtype":"F32","shape":[19,8],"#;
    assert_says(
        &lie(embedding, &embedding.replace("[19,8]", "[18,8]")),
        &["model.embed_tokens.weight", "[18, 8]"],
    );
    assert_says(
        &lie(embedding, &embedding.replace("F32", "F16")),
        &["model.embed_tokens.weight", "F16"],
    );
}

#[test]
fn dropout_of_the_config_can_be_replaced() {
    let rates = |dropout| {
        let weights = load(&data("gpt2"), dropout).unwrap();
        weights.architecture().decoder().dropout
    };
    assert_eq!(rates(None).attention, 0.1);
    assert!(!rates(Some(0.0)).is_active());
    assert!(load(&data("gpt2"), Some(1.0)).is_err());
}
