//! The linearised simulator of the model that the runs of a run set start from.

use crate::runs::OpenRuns;
use anyhow::Result;
use simfluence_core::{Progress, Run};
use simfluence_simulators::linearised::LinearisedSimulator;

/// Takes the tangent kernel of the base model on `device` (`cpu`, `cuda` or `cuda:N`) with that much
/// memory for gradients (bytes; `None`: the default), and fits gain and power of the rate.
#[cfg(feature = "torch")]
pub fn fit(
    open: &OpenRuns,
    train: &[&Run],
    device: &str,
    memory: Option<usize>,
    progress: &dyn Progress,
) -> Result<LinearisedSimulator> {
    use crate::train::BaseModel;
    use simfluence_core::Fit;
    use simfluence_models::{GradientSettings, Network};
    use simfluence_simulators::linearised::{FitLinearised, Memory, TangentKernel};
    let base = BaseModel::load(&open.set)?;
    let tokens = |examples| base.tokens(examples);
    let (inputs, tests) = (
        tokens(open.set.train_examples())?,
        tokens(open.set.test_examples())?,
    );
    let network = Network::open(&base.weights, device.parse()?)?;
    let defaults = GradientSettings::default();
    let settings = GradientSettings {
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: memory.unwrap_or(defaults.memory),
        ..defaults
    };
    let optimizer = train.first().and_then(|run| run.info.optimizer.as_ref());
    let second = Memory::of(optimizer).second;
    let kernel = TangentKernel::of_model(&network, &inputs, &tests, second, &settings, progress)?;
    Ok(FitLinearised { kernel }.fit(train, open.train_count(), progress)?)
}

/// Without LibTorch there are no gradients.
#[cfg(not(feature = "torch"))]
pub fn fit(
    _: &OpenRuns,
    _: &[&Run],
    _: &str,
    _: Option<usize>,
    _: &dyn Progress,
) -> Result<LinearisedSimulator> {
    anyhow::bail!(crate::needs_torch("fit --method linearised"))
}
