//! The linearised simulator of the model that the runs of a run set start from, alone or as a member
//! of optimizer-dynamics.

use crate::cli::DynamicsArgs;
use crate::kept_models::base_model_path;
use crate::runs::OpenRuns;
use anyhow::{Context, Result, anyhow, bail};
use simfluence_core::{Artifact, Fit, Progress, Run};
use simfluence_models::Device;
use simfluence_recorder::{read_artifact, write_artifact};
use simfluence_simulators::linearised::{
    ALTERNATIVES, FitLinearised, LinearisedError, LinearisedSimulator, SecondMoment, TangentKernel,
};
use std::collections::{BTreeMap, BTreeSet};
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

/// What a kernel may take.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "torch"), expect(dead_code))]
struct Limit {
    /// Operations.
    operations: f64,
    /// Entries, of 4 bytes each.
    entries: f64,
}

/// What a kernel may take without being asked for: a minute or two on two cores, and 64 MiB.
const UNASKED: Limit = Limit {
    operations: 2e12,
    entries: 16.0 * 1024.0 * 1024.0,
};

/// The tangent kernel of the base model, kept in the run set or made now, with gain and power of the
/// rate fitted on the runs.
pub fn fit(
    open: &OpenRuns,
    train: &[&Run],
    at: Where<'_>,
    progress: &dyn Progress,
) -> Result<LinearisedSimulator> {
    fit_at_most(open, train, at, None, progress)
}

/// The linearised model for optimizer-dynamics: where the run set keeps its kernel, or the base model
/// is at hand, there are few different answers and the kernel does not take long. Tells why there is
/// none, unless nobody would expect one.
///
/// # Errors
/// A device that is not one.
pub fn member(
    open: &OpenRuns,
    train: &[&Run],
    args: &DynamicsArgs,
    at: Where<'_>,
    progress: &dyn Progress,
) -> Result<Option<LinearisedSimulator>> {
    at.device.parse::<Device>()?;
    let is_expected = base_model_path(&open.set).exists() || folder(open).exists();
    if args.no_linearised || !is_expected {
        return Ok(None);
    }
    let error = match fit_at_most(open, train, at, Some(UNASKED), progress) {
        Ok(simulator) => return Ok(Some(simulator)),
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
    Ok(None)
}

/// Where the run set keeps kernels.
fn folder(open: &OpenRuns) -> PathBuf {
    open.set.path().join("kernels")
}

/// What a kernel is of: it is made again where that has changed.
fn source(open: &OpenRuns, train: &[&Run]) -> Result<BTreeMap<String, String>> {
    let (train_examples, test_examples) = open.set.fingerprints();
    let mut source = BTreeMap::from([
        ("train_examples".to_owned(), train_examples.to_owned()),
        ("test_examples".to_owned(), test_examples.to_owned()),
    ]);
    let base_models: BTreeSet<&str> = (train.iter())
        .filter_map(|run| run.info.base_model.as_deref())
        .collect();
    if base_models.len() > 1 {
        bail!(
            "the runs start from {} different base models",
            base_models.len()
        );
    }
    if let Some(base_model) = base_models.first() {
        source.insert("base_model".to_owned(), (*base_model).to_owned());
    }
    Ok(source)
}

fn fit_at_most(
    open: &OpenRuns,
    train: &[&Run],
    at: Where<'_>,
    most: Option<Limit>,
    progress: &dyn Progress,
) -> Result<LinearisedSimulator> {
    let second = FitLinearised::memory(train)?.second;
    // Each different answer has an alternative of its own; counted before the model is read.
    let sides = [open.set.train_examples(), open.set.test_examples()];
    let all = sides.iter().flat_map(|side| side.as_slice());
    let answers: BTreeSet<&str> = all.filter_map(|e| e.column("answer")).collect();
    if answers.len() > ALTERNATIVES {
        let got = answers.len();
        return Err(LinearisedError::Alternatives { got }.into());
    }
    let name = match second {
        SecondMoment::None => "plain",
        _ => "normalised",
    };
    let path = folder(open).join(format!("{name}.safetensors"));
    let source = source(open, train)?;
    let kernel = match read(&path, &source)? {
        Some(kernel) => kernel,
        None => {
            let can_keep = std::fs::create_dir_all(folder(open));
            if let (Some(_), Err(error)) = (most, can_keep) {
                bail!(
                    "its kernel could not be kept in {} ({error}), and would be made for every answer anew",
                    folder(open).display()
                );
            }
            let kernel = make(open, train, second, at, most, progress)?;
            let [train, test] = sides.map(|side| side.keys());
            let mut artifact = kernel.to_artifact(&train, &test)?;
            artifact.metadata.extend(source);
            keep(&path, &artifact);
            kernel
        }
    };
    Ok(FitLinearised { kernel }.fit(train, open.train_count(), progress)?)
}

/// The kept kernel, if there is one of this source.
fn read(path: &Path, source: &BTreeMap<String, String>) -> Result<Option<TangentKernel>> {
    if !path.exists() {
        return Ok(None);
    }
    let artifact = read_artifact(path)?;
    let differs = |(name, value): (&String, &String)| artifact.metadata.get(name) != Some(value);
    if source.iter().any(differs) {
        eprintln!(
            "note: {} is of other examples or of another base model and is not used",
            path.display()
        );
        return Ok(None);
    }
    let kernel = TangentKernel::from_artifact(&artifact);
    Ok(Some(kernel.with_context(|| format!("{}", path.display()))?))
}

/// Writes a kernel where the next fit finds it; a run set that cannot be written to is no failure.
fn keep(path: &Path, artifact: &Artifact) {
    let folder = path.parent().expect("it is in a folder");
    let written = std::fs::create_dir_all(folder)
        .map_err(|error| anyhow!(error))
        .and_then(|()| Ok(write_artifact(path, artifact)?));
    match written {
        Ok(()) => eprintln!("tangent kernel: {}", path.display()),
        Err(error) => eprintln!(
            "note: the tangent kernel is not kept in {}: {error:#}",
            path.display()
        ),
    }
}

#[cfg(feature = "torch")]
fn make(
    open: &OpenRuns,
    train: &[&Run],
    second: SecondMoment,
    at: Where<'_>,
    most: Option<Limit>,
    progress: &dyn Progress,
) -> Result<TangentKernel> {
    use crate::train::BaseModel;
    use simfluence_models::{GradientSettings, Network, TokenizedExample};
    let base = BaseModel::load(&open.set)?;
    let fingerprint = base.weights.fingerprint();
    let is_other = |run: &&Run| (run.info.base_model.as_ref()).is_some_and(|of| *of != fingerprint);
    if let Some(run) = train.iter().find(|run| is_other(run)) {
        bail!(
            "run {} started from another base model than {}",
            run.id,
            base_model_path(&open.set).display()
        );
    }
    let tokens = |examples| base.tokens(examples);
    let (inputs, tests) = (
        tokens(open.set.train_examples())?,
        tokens(open.set.test_examples())?,
    );
    let alternatives: usize = TangentKernel::choices(&inputs, &tests)?.iter().sum();
    let architecture = base.weights.architecture();
    let rows = (inputs.len() * alternatives) as f64;
    let outputs = rows + (tests.len() * alternatives) as f64;
    // Forward and backward through all parameters for every token, and the products of gradients.
    let examples = inputs.iter().chain(&inputs).chain(&tests);
    let length = |e: &TokenizedExample| match architecture.images() {
        // Pixels are read at once.
        Some(_) => 1,
        None => e.tokens.len(),
    };
    let tokens: usize = examples.map(|e| length(e) * alternatives).sum();
    let through = 6.0 * architecture.parameter_count() as f64 * tokens as f64;
    let operations = through + rows * outputs * architecture.trainable_count() as f64;
    if most.is_some_and(|most| operations > most.operations || rows * outputs > most.entries) {
        bail!(
            "its kernel of {rows} × {outputs} outputs and {} trained parameters takes long or much memory; make it once with `simfluence fit {} --method linearised --out linearised.safetensors`, or say --no-linearised",
            architecture.trainable_count(),
            open.set.path().display()
        );
    }
    let network = Network::open(&base.weights, at.device.parse()?)?;
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
    _: &[&Run],
    _: SecondMoment,
    _: Where<'_>,
    _: Option<Limit>,
    _: &dyn Progress,
) -> Result<TangentKernel> {
    Err(anyhow!(crate::needs_torch("fit --method linearised")))
}
