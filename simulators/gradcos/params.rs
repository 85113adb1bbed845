//! Settings of GradCos.

use crate::attribution::{AttributionError, GradientParams};

/// The method with checked settings.
///
/// ```
/// use simfluence_simulators::{attribution::GradientParams, gradcos::GradCos};
/// assert!(GradCos::new(GradientParams::new(1e-3)).is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradCos {
    pub(super) params: GradientParams,
}

impl GradCos {
    /// Checks the settings.
    ///
    /// # Errors
    /// See [`GradientParams::check`].
    pub fn new(params: GradientParams) -> Result<Self, AttributionError> {
        Ok(Self {
            params: params.check()?,
        })
    }
}
