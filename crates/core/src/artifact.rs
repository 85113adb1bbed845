//! Named arrays with text metadata, as safetensors bytes: the file form of simulators and scores.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap};

/// One array, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// 32-bit floats.
    F32 {
        /// Length per axis.
        shape: Vec<usize>,
        /// Values, row-major.
        values: Vec<f32>,
    },
    /// 64-bit floats.
    F64 {
        /// Length per axis.
        shape: Vec<usize>,
        /// Values, row-major.
        values: Vec<f64>,
    },
    /// 32-bit unsigned integers.
    U32 {
        /// Length per axis.
        shape: Vec<usize>,
        /// Values, row-major.
        values: Vec<u32>,
    },
}

impl Tensor {
    /// Length per axis.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32 { shape, .. } | Self::F64 { shape, .. } | Self::U32 { shape, .. } => shape,
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32 { .. } => Dtype::F32,
            Self::F64 { .. } => Dtype::F64,
            Self::U32 { .. } => Dtype::U32,
        }
    }

    fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32 { values, .. } => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F64 { values, .. } => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::U32 { values, .. } => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// Arrays and metadata of one file.
///
/// Values travel bit for bit: what [`Artifact::to_bytes`] wrote, [`Artifact::from_bytes`] gives
/// back, NaN payloads included.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Artifact {
    /// Text metadata; structured values are JSON.
    pub metadata: BTreeMap<String, String>,
    /// Arrays by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Artifact {
    /// An artifact whose metadata says what it is (`kind`, for example `simulator`) and in which
    /// version of that format.
    pub fn new(kind: &str, version: u32) -> Self {
        let metadata = BTreeMap::from([
            ("kind".to_owned(), kind.to_owned()),
            ("format_version".to_owned(), version.to_string()),
        ]);
        Self {
            metadata,
            tensors: BTreeMap::new(),
        }
    }

    /// Stores a value as JSON under `name`.
    pub fn set_json<T: serde::Serialize>(&mut self, name: &str, value: &T) {
        let text = serde_json::to_string(value).expect("metadata values serialise to JSON");
        self.metadata.insert(name.to_owned(), text);
    }

    /// Reads a JSON value stored under `name`.
    ///
    /// # Errors
    /// The entry is absent or is not what is expected.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, ArtifactError> {
        let text = self.text(name)?;
        serde_json::from_str(text).map_err(|source| ArtifactError::Metadata {
            name: name.to_owned(),
            problem: source.to_string(),
        })
    }

    /// The metadata entry `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn text(&self, name: &str) -> Result<&str, ArtifactError> {
        self.metadata
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| ArtifactError::Metadata {
                name: name.to_owned(),
                problem: "the entry is missing".to_owned(),
            })
    }

    /// Fails unless the artifact is of this kind and version.
    ///
    /// # Errors
    /// Another kind or version, with what was expected and found.
    pub fn expect(&self, kind: &str, version: u32) -> Result<(), ArtifactError> {
        let got_kind = self.metadata.get("kind").cloned().unwrap_or_default();
        let got_version = self
            .metadata
            .get("format_version")
            .cloned()
            .unwrap_or_default();
        if got_kind == kind && got_version == version.to_string() {
            return Ok(());
        }
        Err(ArtifactError::Kind {
            expected: format!("{kind} version {version}"),
            got: format!("{got_kind:?} version {got_version:?}"),
        })
    }

    /// The array `name` of 64-bit floats with exactly this shape.
    ///
    /// # Errors
    /// It is absent, of another type or of another shape.
    pub fn f64s(&self, name: &str, shape: &[usize]) -> Result<&[f64], ArtifactError> {
        match self.tensor(name, shape)? {
            Tensor::F64 { values, .. } => Ok(values),
            other => Err(wrong_dtype(name, Dtype::F64, other)),
        }
    }

    /// The array `name` of 32-bit floats with exactly this shape.
    ///
    /// # Errors
    /// It is absent, of another type or of another shape.
    pub fn f32s(&self, name: &str, shape: &[usize]) -> Result<&[f32], ArtifactError> {
        match self.tensor(name, shape)? {
            Tensor::F32 { values, .. } => Ok(values),
            other => Err(wrong_dtype(name, Dtype::F32, other)),
        }
    }

    /// The array `name` of 32-bit unsigned integers with exactly this shape.
    ///
    /// # Errors
    /// It is absent, of another type or of another shape.
    pub fn u32s(&self, name: &str, shape: &[usize]) -> Result<&[u32], ArtifactError> {
        match self.tensor(name, shape)? {
            Tensor::U32 { values, .. } => Ok(values),
            other => Err(wrong_dtype(name, Dtype::U32, other)),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor, ArtifactError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| ArtifactError::MissingTensor {
                name: name.to_owned(),
            })?;
        if tensor.shape() != shape {
            return Err(ArtifactError::Shape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                got: tensor.shape().to_vec(),
            });
        }
        Ok(tensor)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// A tensor whose values do not fill its shape.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ArtifactError> {
        let raw: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, t)| (name.clone(), t.dtype(), t.shape().to_vec(), t.to_le_bytes()))
            .collect();
        let mut views = BTreeMap::new();
        for (name, dtype, shape, bytes) in &raw {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(format_error)?;
            views.insert(name.clone(), view);
        }
        let metadata: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(format_error)?;
        Ok(with_sorted_header(bytes))
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Anything malformed: header longer than the file, offsets that overlap or lie outside,
    /// types other than f32, f64 and u32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format_error)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(bytes).map_err(format_error)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            tensors.insert(name.clone(), read_tensor(&name, &view)?);
        }
        Ok(Self {
            metadata: metadata.into_iter().collect(),
            tensors,
        })
    }
}

/// The crate writes metadata in the random order of a hash map; the same content shall give the
/// same bytes, so the header is written again in sorted order (which is as long as before).
fn with_sorted_header(mut bytes: Vec<u8>) -> Vec<u8> {
    type Sorted = BTreeMap<String, BTreeMap<String, serde_json::Value>>;
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Sorted =
        serde_json::from_slice(&bytes[8..8 + length]).expect("the crate wrote a JSON header");
    let sorted = serde_json::to_vec(&header).expect("what was read as JSON can be written");
    bytes[8..8 + length].fill(b' ');
    bytes[8..8 + sorted.len()].copy_from_slice(&sorted);
    bytes
}

fn read_tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, ArtifactError> {
    let shape = view.shape().to_vec();
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(Tensor::F32 {
            shape,
            values: words(data).map(f32::from_le_bytes).collect(),
        }),
        Dtype::F64 => Ok(Tensor::F64 {
            shape,
            values: words(data).map(f64::from_le_bytes).collect(),
        }),
        Dtype::U32 => Ok(Tensor::U32 {
            shape,
            values: words(data).map(u32::from_le_bytes).collect(),
        }),
        other => Err(ArtifactError::Dtype {
            name: name.to_owned(),
            expected: "F32, F64 or U32".to_owned(),
            got: format!("{other:?}"),
        }),
    }
}

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    data.chunks_exact(N)
        .map(|chunk| chunk.try_into().expect("chunks have exactly N bytes"))
}

fn format_error(source: safetensors::SafeTensorError) -> ArtifactError {
    ArtifactError::Format {
        problem: source.to_string(),
    }
}

fn wrong_dtype(name: &str, expected: Dtype, got: &Tensor) -> ArtifactError {
    ArtifactError::Dtype {
        name: name.to_owned(),
        expected: format!("{expected:?}"),
        got: format!("{:?}", got.dtype()),
    }
}

/// What is wrong with an artifact.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ArtifactError {
    /// Not a well-formed safetensors file.
    #[error("not a valid safetensors file: {problem}")]
    Format {
        /// What the parser says.
        problem: String,
    },
    /// Another kind of file than expected.
    #[error("expected a file of kind {expected}, got {got}")]
    Kind {
        /// Kind and version wanted.
        expected: String,
        /// Kind and version found.
        got: String,
    },
    /// A metadata entry that is absent or unreadable.
    #[error("metadata entry {name:?}: {problem}")]
    Metadata {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// An array that should be there.
    #[error("the array {name:?} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// An array of another shape.
    #[error("the array {name:?} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape wanted.
        expected: Vec<usize>,
        /// Shape found.
        got: Vec<usize>,
    },
    /// An array of another type.
    #[error("the array {name:?} has type {got}, expected {expected}")]
    Dtype {
        /// Its name.
        name: String,
        /// Type wanted.
        expected: String,
        /// Type found.
        got: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bits_come_back_as_they_went(bits in prop::collection::vec(any::<u64>(), 0..40)) {
            let values: Vec<f64> = bits.iter().map(|&b| f64::from_bits(b)).collect();
            let mut artifact = Artifact::new("test", 1);
            artifact.set_json("axis", &vec!["a", "ü"]);
            artifact.tensors.insert(
                "x".into(),
                Tensor::F64 { shape: vec![values.len()], values },
            );
            let back = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
            let got: Vec<u64> =
                back.f64s("x", &[bits.len()]).unwrap().iter().map(|v| v.to_bits()).collect();
            prop_assert_eq!(got, bits);
            prop_assert_eq!(back.metadata, artifact.metadata);
        }
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let mut artifact = Artifact::new("test", 1);
        artifact.tensors.insert(
            "x".into(),
            Tensor::F32 {
                shape: vec![4],
                values: vec![1.0; 4],
            },
        );
        let bytes = artifact.to_bytes().unwrap();
        for cut in [0, 4, 8, 20, bytes.len() - 1] {
            assert!(matches!(
                Artifact::from_bytes(&bytes[..cut]),
                Err(ArtifactError::Format { .. })
            ));
        }
    }

    #[test]
    fn another_kind_is_named() {
        let error = Artifact::new("scores", 1)
            .expect("simulator", 1)
            .unwrap_err();
        assert!(error.to_string().contains("simulator version 1"));
        assert!(error.to_string().contains("scores"));
    }

    #[test]
    fn the_same_artifact_gives_the_same_bytes() {
        let mut artifact = Artifact::new("test", 1);
        for name in ["a", "b", "c", "d"] {
            artifact.metadata.insert(name.into(), name.into());
            artifact.tensors.insert(
                name.into(),
                Tensor::U32 {
                    shape: vec![1],
                    values: vec![7],
                },
            );
        }
        assert_eq!(artifact.to_bytes().unwrap(), artifact.to_bytes().unwrap());
    }
}
