//! The linearised simulator of the model that the runs of a run set start from, alone or as a member
//! of optimizer-dynamics.

use crate::cli::DynamicsArgs;
use crate::kept_models::base_model_path;
use crate::runs::OpenRuns;
use anyhow::{Context, Result, anyhow, bail};
use simfluence_core::{Artifact, Fit, Progress, Run};
use simfluence_recorder::{read_artifact, write_artifact};
use simfluence_simulators::linearised::{
    FitLinearised, LinearisedError, LinearisedSimulator, Memory, SecondMoment, TangentKernel,
};
use std::path::{Path, PathBuf};

/// Where gradients are taken.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "torch"), expect(dead_code))]
pub struct Where<'a> {
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: &'a str,
    /// Memory for gradients (bytes; `None`: the default).
    pub memory: Option<usize>,
}

/// Key of the fingerprint of the base model in a kernel's metadata.
const BASE_MODEL: &str = "base_model";
/// Most operations that a kernel may take without being asked for: a minute or two on two cores.
const UNASKED: f64 = 2e12;

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
/// is at hand, there are few different answers and the kernel does not take long. Tells why there is
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
    use LinearisedError::{Alternatives, NoAnswer, NoLearningRate};
    let not_for_it = matches!(
        error.downcast_ref(),
        Some(NoAnswer { .. } | Alternatives { .. } | NoLearningRate)
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
    let kernel = match path.exists().then(|| read(open, train, &path)) {
        Some(Ok(kernel)) => kernel,
        unusable => {
            if let Some(Err(error)) = unusable {
                eprintln!("note: {error:#}; the kernel has to be made again");
            }
            let (kernel, base_model) = make(open, second, at, most, progress)?;
            let (train, test) = (open.set.train_examples(), open.set.test_examples());
            let mut artifact = kernel.to_artifact(&train.keys(), &test.keys())?;
            artifact.metadata.insert(BASE_MODEL.to_owned(), base_model);
            keep(&path, &artifact);
            kernel
        }
    };
    Ok(FitLinearised { kernel }.fit(train, open.train_count(), progress)?)
}

/// A kept kernel, if it is of these examples and of the model that the runs start from.
fn read(open: &OpenRuns, train: &[&Run], path: &Path) -> Result<TangentKernel> {
    let artifact = read_artifact(path)?;
    let keys = |name: &str| artifact.json::<Vec<String>>(name);
    open.check_keys(path, &keys("train_keys")?, &keys("test_keys")?)?;
    let recorded = train.first().and_then(|run| run.info.base_model.as_ref());
    let of = artifact.metadata.get(BASE_MODEL);
    if let (Some(of), Some(recorded)) = (of, recorded)
        && of != recorded
    {
        bail!(
            "{} is of another base model than that of the runs",
            path.display()
        );
    }
    TangentKernel::from_artifact(&artifact).with_context(|| format!("{}", path.display()))
}

/// Writes a kernel where the next fit finds it; a run set that cannot be written to is no failure.
fn keep(path: &Path, artifact: &Artifact) {
    let folder = path.parent().expect("it is in a folder");
    let written = std::fs::create_dir_all(folder)
        .map_err(|error| anyhow!(error))
        .and_then(|()| Ok(write_artifact(path, artifact)?));
    match written {
        Ok(()) => eprintln!("tangent kernel: {}", path.display()),
        Err(error) => eprintln!("note: the tangent kernel is not kept: {error:#}"),
    }
}

/// The kernel, and the fingerprint of the base model.
#[cfg(feature = "torch")]
fn make(
    open: &OpenRuns,
    second: SecondMoment,
    at: Where<'_>,
    most: f64,
    progress: &dyn Progress,
) -> Result<(TangentKernel, String)> {
    use crate::train::BaseModel;
    use simfluence_models::{GradientSettings, Model, Network, TokenizedExample};
    let base = BaseModel::load(&open.set)?;
    let tokens = |examples| base.tokens(examples);
    let (inputs, tests) = (
        tokens(open.set.train_examples())?,
        tokens(open.set.test_examples())?,
    );
    let alternatives: usize = TangentKernel::choices(&inputs, &tests)?.iter().sum();
    let network = Network::open(&base.weights, at.device.parse()?)?;
    let trained: usize = (network.parameters().iter())
        .map(|parameter| parameter.numel())
        .sum();
    let rows = (inputs.len() * alternatives) as f64;
    let outputs = rows + (tests.len() * alternatives) as f64;
    // Forward and backward through all parameters for every token, and the products of gradients.
    let examples = inputs.iter().chain(&inputs).chain(&tests);
    let length = |e: &TokenizedExample| match base.weights.architecture().images() {
        // Pixels are read at once.
        Some(_) => 1,
        None => e.tokens.len(),
    };
    let tokens: usize = examples.map(|e| length(e) * alternatives).sum();
    let through = 6.0 * base.weights.layout().parameter_count() as f64 * tokens as f64;
    if through + rows * outputs * trained as f64 > most {
        bail!(
            "the tangent kernel of {outputs} outputs and {trained} trained parameters takes long; make it once with `simfluence fit {} --method linearised`, or say --no-linearised",
            open.set.path().display()
        );
    }
    let defaults = GradientSettings::default();
    let settings = GradientSettings {
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: at.memory.unwrap_or(defaults.memory),
        ..defaults
    };
    let kernel = TangentKernel::of_model(&network, &inputs, &tests, second, &settings, progress)?;
    Ok((kernel, base.weights.fingerprint()))
}

/// Without LibTorch there are no gradients.
#[cfg(not(feature = "torch"))]
fn make(
    _: &OpenRuns,
    _: SecondMoment,
    _: Where<'_>,
    _: f64,
    _: &dyn Progress,
) -> Result<(TangentKernel, String)> {
    Err(anyhow!(crate::needs_torch("fit --method linearised")))
}
