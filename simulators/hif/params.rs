//! Settings of influence functions.

use crate::attribution::{AttributionError, GradientParams};
use serde::Serialize;

/// Which matrix stands for the curvature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curved {
    /// The Gauss-Newton matrix: never negative. The default.
    GaussNewton,
    /// The Hessian: may be indefinite where the reference run has not converged.
    Hessian,
}

/// What is added to the curvature's eigenvalues.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DampingParam {
    /// This much, above 0.
    Absolute(f64),
    /// Relative, above 0: times the largest eigenvalue (or Ritz value), default 0.01; for factored
    /// curvature times the mean eigenvalue of each block, default 0.1.
    Relative(f64),
}

/// How `(C + δI)⁻¹ v` is computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// The matrix written out: for at most 8 192 parameters.
    Exact,
    /// Conjugate gradients per test example.
    ConjugateGradients(ConjugateGradientSettings),
    /// The Neumann series with mini-batches.
    Lissa(LissaSettings),
    /// The dominant Ritz pairs of one Krylov space for all examples.
    Arnoldi(Arnoldi),
    /// EK-FAC, K-FAC or diagonal.
    Factored(Factored),
}

/// Settings of conjugate gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ConjugateGradientSettings {
    /// Largest relative residual, default 1e-3, between 0 and 1.
    pub tolerance: f64,
    /// Most iterations, default 200, at least 1.
    pub iterations: usize,
}

/// Settings of LiSSA.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LissaSettings {
    /// Terms of the series, default 500, at least 1.
    pub depth: usize,
    /// Averaged recursions, default 1, at least 1.
    pub repeats: usize,
    /// Training examples per term; default `None`: all.
    pub batch_size: Option<usize>,
    /// `σ`; default `None`: 1.1 times the largest Ritz value of the whole curvature (twice that for
    /// mini-batches), plus the damping; with deflation from what is left of the spectrum.
    pub scale: Option<f64>,
    /// Whether the directions of the converged Ritz pairs are solved at once, so that far fewer
    /// terms lead to the same solution; only with all examples per term and without `scale`.
    /// Default true; false is the published recursion.
    pub deflation: bool,
    /// Largest relative residual that is accepted, measured with the whole curvature, default
    /// 0.01, between 0 and 1.
    pub tolerance: f64,
}

/// Settings of Arnoldi's iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Arnoldi {
    /// Products with the curvature, default 30, at least 1.
    pub iterations: usize,
    /// Ritz pairs that are kept, those of largest absolute value, default 20, at least 1, at most
    /// the iterations.
    pub rank: usize,
    /// Whether the curvature outside of their space counts as 0, so that its damped inverse is
    /// `1/δ`. Default false: what lies outside is left out, as in the paper.
    pub complement: bool,
}

/// Settings of factored curvature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Factored {
    /// Eigenvalue-corrected Kronecker factors.
    Ekfac(Drawn),
    /// Kronecker factors.
    Kfac(Drawn),
    /// The diagonal of the second moments.
    Diagonal(Drawn),
}

/// Whose targets the gradients behind factored curvature have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drawn {
    /// Drawn from the model's predictions, so many times per example (default 1): the Fisher
    /// matrix.
    Sampled(u32),
    /// The examples' own: the empirical Fisher matrix.
    Given,
    /// The expectation taken exactly.
    Expected,
}

impl Factored {
    /// Whose targets.
    pub fn drawn(self) -> Drawn {
        match self {
            Self::Ekfac(drawn) | Self::Kfac(drawn) | Self::Diagonal(drawn) => drawn,
        }
    }
}

impl Solver {
    /// Name of the method with this solver.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Exact => "hif-exact",
            Self::ConjugateGradients(_) => "hif-cg",
            Self::Lissa(_) => "hif-lissa",
            Self::Arnoldi(_) => "hif-arnoldi",
            Self::Factored(Factored::Ekfac(_)) => "hif-ekfac",
            Self::Factored(Factored::Kfac(_)) => "hif-kfac",
            Self::Factored(Factored::Diagonal(_)) => "hif-diagonal",
        }
    }

    /// Conjugate gradients with their defaults.
    pub fn conjugate_gradients() -> Self {
        Self::ConjugateGradients(ConjugateGradientSettings {
            tolerance: 1e-3,
            iterations: 200,
        })
    }

    /// LiSSA with its defaults.
    pub fn lissa() -> Self {
        Self::Lissa(LissaSettings {
            depth: 500,
            repeats: 1,
            batch_size: None,
            scale: None,
            deflation: true,
            tolerance: 0.01,
        })
    }

    /// Arnoldi with its defaults.
    pub fn arnoldi() -> Self {
        Self::Arnoldi(Arnoldi {
            iterations: 30,
            rank: 20,
            complement: false,
        })
    }
}

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HifParams {
    /// Reference rate, memory, threads.
    pub gradients: GradientParams,
    /// Which curvature, default Gauss-Newton.
    pub curvature: Curved,
    /// Damping; default relative, see [`DampingParam`].
    pub damping: DampingParam,
    /// The solver.
    pub solver: Solver,
    /// Training examples that the curvature is taken over, drawn from all that were trained on;
    /// default `None`: all. At least 1.
    pub curvature_examples: Option<usize>,
    /// Seed of everything drawn: those examples, labels, start of Krylov spaces, mini-batches; default 0.
    pub seed: u64,
}

impl HifParams {
    /// Defaults with a solver.
    pub fn new(gradients: GradientParams, solver: Solver) -> Self {
        let relative = match solver {
            Solver::Factored(_) => 0.1,
            _ => 0.01,
        };
        Self {
            gradients,
            curvature: Curved::GaussNewton,
            damping: DampingParam::Relative(relative),
            solver,
            curvature_examples: None,
            seed: 0,
        }
    }
}

/// The method with checked settings.
///
/// ```
/// use simfluence_simulators::attribution::GradientParams;
/// use simfluence_simulators::hif::{DampingParam, Hif, HifParams, Solver};
/// let mut params = HifParams::new(GradientParams::new(1e-3), Solver::arnoldi());
/// assert!(Hif::new(params).is_ok());
/// params.damping = DampingParam::Absolute(-1.0);
/// assert!(Hif::new(params).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hif {
    pub(super) params: HifParams,
}

impl Hif {
    /// Checks the settings.
    ///
    /// # Errors
    /// A setting outside its range; factored curvature of the Hessian.
    pub fn new(params: HifParams) -> Result<Self, HifError> {
        params.gradients.check()?;
        let (DampingParam::Absolute(damping) | DampingParam::Relative(damping)) = params.damping;
        let positive = |setting: &'static str, got: f64| {
            if got.is_finite() && got > 0.0 {
                return Ok(());
            }
            let expected = "positive and finite";
            Err(HifError::Setting {
                setting,
                got,
                expected,
            })
        };
        let share = |setting: &'static str, got: f64| {
            if got > 0.0 && got < 1.0 {
                return Ok(());
            }
            let expected = "between 0 and 1";
            Err(HifError::Setting {
                setting,
                got,
                expected,
            })
        };
        let count = |setting: &'static str, got: usize| {
            if got > 0 {
                return Ok(());
            }
            let (got, expected) = (got as f64, "at least 1");
            Err(HifError::Setting {
                setting,
                got,
                expected,
            })
        };
        positive("damping", damping)?;
        let examples = params.curvature_examples.unwrap_or(1);
        count("examples for the curvature", examples)?;
        match params.solver {
            Solver::Exact => {}
            Solver::ConjugateGradients(settings) => {
                share("tolerance", settings.tolerance)?;
                count("iterations", settings.iterations)?;
            }
            Solver::Lissa(settings) => {
                share("tolerance", settings.tolerance)?;
                count("depth", settings.depth)?;
                count("repeats", settings.repeats)?;
                count("batch size", settings.batch_size.unwrap_or(1))?;
                positive("scale", settings.scale.unwrap_or(1.0))?;
            }
            Solver::Arnoldi(settings) => {
                count("iterations", settings.iterations)?;
                count("rank", settings.rank)?;
                if settings.rank > settings.iterations {
                    return Err(HifError::Setting {
                        setting: "rank",
                        got: settings.rank as f64,
                        expected: "at most the iterations",
                    });
                }
            }
            Solver::Factored(factored) => {
                if let Drawn::Sampled(draws) = factored.drawn() {
                    count("draws", draws as usize)?;
                }
                if params.curvature == Curved::Hessian {
                    return Err(HifError::FactoredHessian {
                        method: params.solver.method(),
                    });
                }
            }
        }
        Ok(Self { params })
    }
}

/// Why influence cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum HifError {
    /// A setting outside its range.
    #[error("{setting} is {got}; it must be {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What was given.
        got: f64,
        /// What is allowed.
        expected: &'static str,
    },
    /// Factored curvature stands for the Gauss-Newton matrix.
    #[error(
        "{method} approximates the Gauss-Newton matrix; the Hessian needs the solver exact, cg, lissa or arnoldi"
    )]
    FactoredHessian {
        /// Name of the method.
        method: &'static str,
    },
    /// Exposures of another number or of no step.
    #[error(
        "exposures for {got} training examples over {steps} steps; there are {expected} training examples"
    )]
    Exposures {
        /// Training examples.
        expected: usize,
        /// Exposures.
        got: usize,
        /// Steps.
        steps: usize,
    },
    /// What only factored curvature gives.
    #[error("{method} gives no {what}; hif-ekfac, hif-kfac and hif-diagonal do")]
    OnlyFactored {
        /// Name of the method.
        method: &'static str,
        /// What it does not give.
        what: &'static str,
    },
    /// What all methods share.
    #[error(transparent)]
    Attribution(#[from] AttributionError),
    /// The solver.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Solve(#[from] super::solvers::SolveError),
    /// Factored curvature.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Factors(#[from] simfluence_models::FactorsError),
}

#[cfg(feature = "torch")]
impl From<simfluence_models::GradientError> for HifError {
    fn from(source: simfluence_models::GradientError) -> Self {
        Self::Attribution(AttributionError::Gradients(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut HifParams)) -> String {
        let mut params = HifParams::new(GradientParams::new(1e-3), Solver::arnoldi());
        change(&mut params);
        Hif::new(params).unwrap_err().to_string()
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let message = refused(|p| p.damping = DampingParam::Relative(0.0));
        assert!(message.contains("damping is 0"), "{message}");
        let message = refused(|p| {
            p.solver = Solver::Arnoldi(Arnoldi {
                iterations: 3,
                rank: 4,
                complement: false,
            });
        });
        assert!(
            message.contains("rank is 4; it must be at most the iterations"),
            "{message}"
        );
        let message = refused(|p| {
            p.solver = Solver::Factored(Factored::Ekfac(Drawn::Given));
            p.curvature = Curved::Hessian;
        });
        assert!(message.contains("hif-ekfac"), "{message}");
        let message = refused(|p| {
            p.solver = Solver::ConjugateGradients(ConjugateGradientSettings {
                tolerance: 2.0,
                iterations: 3,
            });
        });
        assert!(message.contains("tolerance is 2"), "{message}");
    }
}
