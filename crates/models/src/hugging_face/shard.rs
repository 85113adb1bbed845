//! One safetensors file, read tensor by tensor.

use super::checkpoint::CheckpointError;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of the number that says how long the header is.
const PREFIX: u64 = 8;

/// Longest header that is read, as the format has it.
const LARGEST_HEADER: u64 = 100_000_000;

/// An open file whose header was checked against its size.
pub(super) struct Shard {
    path: PathBuf,
    file: File,
    /// First byte behind the header.
    data: u64,
    /// What it holds, by name.
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

impl Shard {
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let unreadable = |source: std::io::Error| CheckpointError::Unreadable {
            path: path.to_owned(),
            problem: source.to_string(),
        };
        let mut file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let header = |problem: String| CheckpointError::Header {
            path: path.to_owned(),
            problem,
        };
        if bytes < PREFIX {
            return Err(header(format!("a file of {bytes} bytes has no header")));
        }
        let mut length = [0; PREFIX as usize];
        file.read_exact(&mut length).map_err(unreadable)?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER || length > bytes - PREFIX {
            return Err(header(format!(
                "it says that it is {length} bytes long, in a file of {bytes}"
            )));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(unreadable)?;
        let tensors = tensors_of(&text, path)?;
        check_sizes(&tensors, path)?;
        let end = tensors.values().map(|info| info.data_offsets.1).max();
        let expected = PREFIX + length + end.unwrap_or(0) as u64;
        if expected != bytes {
            return Err(CheckpointError::Length {
                path: path.to_owned(),
                expected,
                got: bytes,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            data: PREFIX + length,
            tensors,
        })
    }

    /// The values of one tensor, as 32-bit floats.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let info = &self.tensors[name];
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let mut fill = || -> std::io::Result<()> {
            self.file.seek(SeekFrom::Start(self.data + start as u64))?;
            self.file.read_exact(&mut bytes)
        };
        fill().map_err(|source| CheckpointError::Unreadable {
            path: self.path.clone(),
            problem: format!("tensor {name}: {source}"),
        })?;
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => (bytes.chunks_exact(4))
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Dtype::F16 => (bytes.chunks_exact(2))
                .map(|b| of_half(u16::from_le_bytes([b[0], b[1]])))
                .collect(),
            Dtype::BF16 => (bytes.chunks_exact(2))
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            other => {
                return Err(CheckpointError::Type {
                    path: self.path.clone(),
                    tensor: name.to_owned(),
                    got: format!("{other:?}"),
                });
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(CheckpointError::NotFinite {
                path: self.path.clone(),
                tensor: name.to_owned(),
                index,
                got: values[index],
            }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn tensors_of(text: &[u8], path: &Path) -> Result<BTreeMap<String, TensorInfo>, CheckpointError> {
    let header = |problem: String| CheckpointError::Header {
        path: path.to_owned(),
        problem,
    };
    let mut fields: Map<String, Value> =
        serde_json::from_slice(text).map_err(|source| header(source.to_string()))?;
    fields.remove("__metadata__");
    let parse = |(name, value): (String, Value)| match serde_json::from_value(value) {
        Ok(info) => Ok((name, info)),
        Err(source) => Err(header(format!("tensor {name}: {source}"))),
    };
    fields.into_iter().map(parse).collect()
}

/// Every tensor takes as many bytes as its shape and type need, right behind the one before.
fn check_sizes(tensors: &BTreeMap<String, TensorInfo>, path: &Path) -> Result<(), CheckpointError> {
    let mut in_order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (name, info) in in_order {
        let bits = (info.shape.iter())
            .try_fold(info.dtype.bitsize(), |all, &length| all.checked_mul(length));
        let (start, stop) = info.data_offsets;
        let wanted = bits.and_then(|bits| usize::checked_add(end, bits.div_ceil(8)));
        if start != end || wanted != Some(stop) {
            return Err(CheckpointError::Header {
                path: path.to_owned(),
                problem: format!(
                    "tensor {name}: {:?} of shape {:?} was expected at bytes {end} to {}, the header says {start} to {stop}",
                    info.dtype,
                    info.shape,
                    wanted.map_or("beyond all memory".to_owned(), |stop| stop.to_string()),
                ),
            });
        }
        end = stop;
    }
    Ok(())
}

/// An IEEE 754 half-precision float.
fn of_half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from((bits >> 10) & 0x1f);
    let fraction = f32::from(bits & 0x3ff);
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        0x1f if fraction == 0.0 => sign * f32::INFINITY,
        0x1f => f32::NAN,
        _ => sign * (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::of_half;

    #[test]
    fn ref_half_precision_is_that_of_ieee_754() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(of_half(bits), value, "{bits:#x}");
        }
        assert!(of_half(0x7e00).is_nan());
    }
}
