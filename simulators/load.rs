//! Any simulator from its file.

use crate::additive::{AdditiveError, AdditiveSimulator, CalibratedSimulator};
use crate::baselines::{BaselineError, MeanRun, NoLearning};
use crate::linearised::{LinearisedError, LinearisedSimulator};
use crate::optimizer_dynamics::{OptimizerDynamicsError, OptimizerDynamicsSimulator};
use crate::simfluence::{SimfluenceError, SimfluenceSimulator};
use simfluence_core::{Artifact, ArtifactError, Simulator};

/// Reads a simulator of any kind: the metadata entry `simulator` says which.
///
/// # Errors
/// A kind that is not known, or whatever the simulator's own `from_artifact` refuses.
pub fn load(artifact: &Artifact) -> Result<Box<dyn Simulator>, LoadError> {
    Ok(match artifact.text("simulator")? {
        "simfluence" => Box::new(SimfluenceSimulator::from_artifact(artifact)?),
        "optimizer-dynamics" => Box::new(OptimizerDynamicsSimulator::from_artifact(artifact)?),
        "linearised" => Box::new(LinearisedSimulator::from_artifact(artifact)?),
        "additive" => Box::new(AdditiveSimulator::from_artifact(artifact)?),
        "calibrated" => Box::new(CalibratedSimulator::from_artifact(artifact)?),
        "no-learning" => Box::new(NoLearning::from_artifact(artifact)?),
        "mean-run" => Box::new(MeanRun::from_artifact(artifact)?),
        other => {
            return Err(LoadError::Unknown {
                got: other.to_owned(),
            });
        }
    })
}

/// Why a file gives no simulator.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A kind of simulator that is not known.
    #[error(
        "unknown simulator {got:?}; known are simfluence, optimizer-dynamics, linearised, additive, calibrated, no-learning and mean-run"
    )]
    Unknown {
        /// What the file says.
        got: String,
    },
    /// The file says nothing of a simulator.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A Simfluence simulator.
    #[error(transparent)]
    Simfluence(#[from] SimfluenceError),
    /// An optimiser-dynamics simulator.
    #[error(transparent)]
    OptimizerDynamics(#[from] OptimizerDynamicsError),
    /// A linearised simulator.
    #[error(transparent)]
    Linearised(#[from] LinearisedError),
    /// An additive simulator.
    #[error(transparent)]
    Additive(#[from] AdditiveError),
    /// A baseline.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_comes_back_under_its_name() {
        let keys = |prefix: &str, n: usize| -> Vec<String> {
            (0..n).map(|i| format!("{prefix}{i}")).collect()
        };
        let artifact = NoLearning::new(2, 3)
            .to_artifact(&keys("i", 2), &keys("j", 3))
            .unwrap();
        let simulator = load(&artifact).unwrap();
        assert_eq!(simulator.name(), "no-learning");
        assert_eq!((simulator.train_count(), simulator.test_count()), (2, 3));
    }

    #[test]
    fn an_unknown_simulator_is_named() {
        let mut artifact = Artifact::new("simulator", 1);
        artifact
            .metadata
            .insert("simulator".into(), "oracle".into());
        let message = load(&artifact).err().unwrap().to_string();
        assert!(message.contains("oracle"), "{message}");
    }
}
