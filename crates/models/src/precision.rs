//! Which floats training computes with.

use serde::{Deserialize, Serialize};

/// Which floats the matrix products of training are computed with (`training.precision` of a task
/// file). Parameters, gradients, the optimiser's state and all that is no matrix product are 32-bit
/// floats either way, and so is attribution.
///
/// ```
/// use simfluence_models::Precision;
/// #[derive(serde::Deserialize)]
/// struct Table { precision: Precision }
/// let table: Table = toml::from_str("precision = \"bf16\"")?;
/// assert_eq!(table.precision, Precision::Bf16);
/// # Ok::<(), toml::de::Error>(())
/// ```
///
/// # Reference
/// Micikevicius et al. 2018, "Mixed precision training", for master weights; Kalamkar et al. 2019,
/// "A study of BFLOAT16 for deep learning training".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16: 8 bits of exponent as 32-bit floats, 8 significant bits. Both factors of a product
    /// are rounded to it, and the product is; sums inside of a product are the library's.
    Bf16,
}
