//! Where a model computes: `cpu`, `cuda` or `cuda:1`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A place to compute.
///
/// ```
/// use simfluence_models::Device;
/// assert_eq!("cuda:1".parse(), Ok(Device::Cuda(1)));
/// assert_eq!(Device::default().to_string(), "cpu");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The graphics card of this number, counted from 0.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown {
            got: text.to_owned(),
        };
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => index.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(feature = "torch")]
impl Device {
    /// The device for LibTorch, its CUDA part loaded where that is needed.
    ///
    /// # Errors
    /// LibTorch has no CUDA, finds no such card, or its CUDA libraries cannot be loaded.
    pub fn open(self) -> Result<tch::Device, DeviceError> {
        let Self::Cuda(index) = self else {
            return Ok(tch::Device::Cpu);
        };
        if let Err(problem) = crate::native::load_cuda() {
            return Err(DeviceError::NoCuda { problem });
        }
        let count = tch::Cuda::device_count().max(0) as usize;
        if !tch::Cuda::is_available() || index >= count {
            return Err(DeviceError::NoCard { index, count });
        }
        Ok(tch::Device::Cuda(index))
    }
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("unknown device {got:?}; use cpu, cuda or cuda:NUMBER")]
    Unknown {
        /// What was given.
        got: String,
    },
    /// LibTorch computes on the processor only.
    #[error(
        "this LibTorch has no usable CUDA ({problem}); build against a CUDA build of PyTorch (LIBTORCH_USE_PYTORCH=1 or LIBTORCH) or use --device cpu"
    )]
    NoCuda {
        /// What the loader says.
        problem: String,
    },
    /// No such card.
    #[error("cuda:{index} does not exist; LibTorch sees {count} CUDA device(s)")]
    NoCard {
        /// Number asked for.
        index: usize,
        /// Cards there are.
        count: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_by_name() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
    }

    #[test]
    fn an_unknown_device_is_named() {
        for text in ["gpu", "cuda:", "cuda:x", "cpu:0", "mps"] {
            let error = text.parse::<Device>().unwrap_err();
            assert_eq!(error, DeviceError::Unknown { got: text.into() });
        }
    }
    #[cfg(feature = "torch")]
    #[test]
    fn a_card_that_does_not_exist_is_an_error_that_says_why() {
        let error = Device::Cuda(9_999).open().unwrap_err();
        let message = error.to_string();
        match error {
            DeviceError::NoCuda { .. } => assert!(message.contains("--device cpu"), "{message}"),
            _ => assert!(message.contains("cuda:9999 does not exist"), "{message}"),
        }
        assert_eq!(Device::Cpu.open(), Ok(tch::Device::Cpu));
    }
}
