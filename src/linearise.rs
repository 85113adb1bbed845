//! The linearised simulator of the model that the runs of a run set start from, alone or as a member
//! of optimizer-dynamics.

use crate::cli::DynamicsArgs;
use crate::kept_models::base_model_path;
use crate::runs::OpenRuns;
use anyhow::{Context, Result, anyhow};
use simfluence_core::{Fit, Progress, Run};
use simfluence_recorder::read_artifact;
use simfluence_simulators::linearised::{
    FitLinearised, LinearisedError, LinearisedSimulator, Memory, SecondMoment, TangentKernel,
};
use std::path::PathBuf;

/// Where gradients are taken.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "torch"), expect(dead_code))]
pub struct Where<'a> {
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: &'a str,
    /// Memory for gradients (bytes; `None`: the default).
    pub memory: Option<usize>,
}

/// Most multiplications that a kernel may take without being asked for.
const UNASKED: f64 = 5e12;

/// The tangent kernel of the base model, kept in the run set or made now, with gain and power of the
/// rate fitted on the runs.
pub fn fit(
    open: &OpenRuns,
    train: &[&Run],
    at: Where<'_>,
    progress: &dyn Progress,
) -> Result<LinearisedSimulator> {
    fit_at_most(open, train, at, f64::INFINITY, progress)
}

/// The linearised model for optimizer-dynamics: where the run set keeps its kernel, or the base model
/// is at hand, its answers are a few classes and the kernel does not take long. Tells why there is
/// none, unless nobody would expect one.
pub fn member(
    open: &OpenRuns,
    train: &[&Run],
    args: &DynamicsArgs,
    at: Where<'_>,
    progress: &dyn Progress,
) -> Option<LinearisedSimulator> {
    let kept = kept_kernel(open, second_moment(train)).exists();
    let can_be_made = cfg!(feature = "torch") && base_model_path(&open.set).exists();
    if args.no_linearised || !(kept || can_be_made) {
        return None;
    }
    let error = match fit_at_most(open, train, at, UNASKED, progress) {
        Ok(simulator) => return Some(simulator),
        Err(error) => error,
    };
    use LinearisedError::{Classes, NoLearningRate, SeveralTargets};
    let not_for_it = matches!(
        error.downcast_ref(),
        Some(SeveralTargets { .. } | Classes { .. } | NoLearningRate)
    );
    if !not_for_it {
        eprintln!("note: optimizer-dynamics goes without the linearised model: {error:#}");
    }
    None
}

fn second_moment(train: &[&Run]) -> SecondMoment {
    let optimizer = train.first().and_then(|run| run.info.optimizer.as_ref());
    Memory::of(optimizer).second
}

/// Where the run set keeps the kernel for optimisers with such a second moment.
fn kept_kernel(open: &OpenRuns, second: SecondMoment) -> PathBuf {
    let name = match second {
        SecondMoment::None => "plain",
        _ => "normalised",
    };
    let file = format!("{name}.safetensors");
    open.set.path().join("kernels").join(file)
}

fn fit_at_most(
    open: &OpenRuns,
    train: &[&Run],
    at: Where<'_>,
    most: f64,
    progress: &dyn Progress,
) -> Result<LinearisedSimulator> {
    let second = second_moment(train);
    let path = kept_kernel(open, second);
    let kernel = if path.exists() {
        let artifact = read_artifact(&path)?;
        let keys = |name: &str| artifact.json::<Vec<String>>(name);
        open.check_keys(&path, &keys("train_keys")?, &keys("test_keys")?)?;
        TangentKernel::from_artifact(&artifact).with_context(|| format!("{}", path.display()))?
    } else {
        let kernel = make(open, second, at, most, progress)?;
        let (train, test) = (open.set.train_examples(), open.set.test_examples());
        keep(&path, &kernel.to_artifact(&train.keys(), &test.keys())?);
        kernel
    };
    Ok(FitLinearised { kernel }.fit(train, open.train_count(), progress)?)
}

/// Writes a kernel where the next fit finds it; a run set that cannot be written to is no failure.
fn keep(path: &std::path::Path, artifact: &simfluence_core::Artifact) {
    let folder = path.parent().expect("it is in a folder");
    let written = std::fs::create_dir_all(folder)
        .map_err(|error| anyhow!(error))
        .and_then(|()| Ok(simfluence_recorder::write_artifact(path, artifact)?));
    match written {
        Ok(()) => eprintln!("tangent kernel: {}", path.display()),
        Err(error) => eprintln!("note: the tangent kernel is not kept: {error:#}"),
    }
}

#[cfg(feature = "torch")]
fn make(
    open: &OpenRuns,
    second: SecondMoment,
    at: Where<'_>,
    most: f64,
    progress: &dyn Progress,
) -> Result<TangentKernel> {
    use crate::train::BaseModel;
    use simfluence_models::{GradientSettings, Model, Network};
    let base = BaseModel::load(&open.set)?;
    let tokens = |examples| base.tokens(examples);
    let (inputs, tests) = (
        tokens(open.set.train_examples())?,
        tokens(open.set.test_examples())?,
    );
    let classes = TangentKernel::count_classes(&inputs, &tests)?;
    let network = Network::open(&base.weights, at.device.parse()?)?;
    let parameters: usize = (network.parameters().iter())
        .map(|parameter| parameter.numel())
        .sum();
    let rows = inputs.len() * classes;
    let outputs = rows + tests.len() * classes;
    let products = rows as f64 * outputs as f64 * parameters as f64;
    if products > most {
        anyhow::bail!(
            "the tangent kernel of {parameters} parameters and {outputs} outputs takes long; make it once with `simfluence fit {} --method linearised`, or say --no-linearised",
            open.set.path().display()
        );
    }
    let defaults = GradientSettings::default();
    let settings = GradientSettings {
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: at.memory.unwrap_or(defaults.memory),
        ..defaults
    };
    Ok(TangentKernel::of_model(
        &network, &inputs, &tests, second, &settings, progress,
    )?)
}

/// Without LibTorch there are no gradients.
#[cfg(not(feature = "torch"))]
fn make(
    _: &OpenRuns,
    _: SecondMoment,
    _: Where<'_>,
    _: f64,
    _: &dyn Progress,
) -> Result<TangentKernel> {
    Err(anyhow!(crate::needs_torch("fit --method linearised")))
}
