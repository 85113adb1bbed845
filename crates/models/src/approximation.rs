//! Gradients that are kept smaller than they are.

use serde::Serialize;

/// How the gradients behind inner products are kept.
///
/// ```
/// use simfluence_models::Approximation;
/// assert_eq!(Approximation::default(), Approximation::Exact);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Approximation {
    /// As they are. The default.
    #[default]
    Exact,
    /// Each matrix of a test gradient, in the inverse metric, as a product of two thin matrices by
    /// a randomised singular value decomposition; vectors (norms, position embeddings) as they
    /// are. Training gradients are not approximated.
    ///
    /// Exact where the gradient has no higher rank: that of a matrix is at most the number of
    /// positions.
    ///
    /// # Reference
    /// Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1; Grosse et al. 2023, section 3.2.2.
    LowRank {
        /// Rank of every matrix, at least 1.
        rank: usize,
        /// Seed of the test matrices.
        seed: u64,
    },
    /// Training and test gradients, each in the root of the inverse metric, projected to a few
    /// dimensions. The inner products are unbiased over seeds; the variance of one is at most
    /// `(‖g‖² ‖h‖² + ⟨g, h⟩²) / k`.
    ///
    /// # Reference
    /// Charikar, Chen & Farach-Colton 2002 (count sketch); Weinberger et al. 2009 (inner
    /// products).
    Projection {
        /// Dimensions `k` of the projection, at least 1.
        dimensions: usize,
        /// Seed of the signs and shifts.
        seed: u64,
    },
}
