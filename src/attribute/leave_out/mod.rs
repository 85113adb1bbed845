//! `simfluence attribute --method leave-out`: really train again without each unit.

mod report;

use super::{kept_scores, write_simulator};
use crate::cli::{AttributeArgs, AttributionMethod};
use crate::runs::OpenRuns;
use crate::truth::{Source, folder, reference_run, sign, subsets_path, truth_path};
use anyhow::{Context, Result, bail};
use simfluence_core::{Artifact, BoxError, Progress, Run, Scores, Tensor};
use simfluence_evaluation::SplitRuns;
use simfluence_recorder::{read_artifact, write_artifact};
use simfluence_simulators::attribution::Axes;
use simfluence_simulators::leave_out::{
    Cache, FinalLosses, LeaveOutError, LeaveOutParams, Retraining, SubsetParams, SubsetTruth,
    Truth, Unit, Work,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Kind and version of the file of one training.
const KIND: (&str, u32) = ("leave_out_training", 1);

/// What is measured.
pub struct Options {
    /// `example`, or a column of the training examples.
    pub unit: String,
    /// Seeds and jobs.
    pub params: LeaveOutParams,
    /// The random subsets, if they are wanted.
    pub subsets: Option<SubsetParams>,
    /// Where to train.
    pub device: String,
}

/// What retraining showed.
pub struct LeftOut {
    /// The effects.
    pub truth: Truth,
    /// Units that the run never trained on, so that there is nothing to leave out.
    pub untrained: Vec<String>,
    /// The scores, where the units cover the training examples.
    pub scores: Result<Scores, LeaveOutError>,
    /// What training on the subsets did.
    pub subsets: Option<SubsetTruth>,
    /// Trainings made now.
    pub trained: usize,
    /// Trainings that had been kept.
    pub kept: usize,
}

/// Measures leave-out truth of a run, keeping every finished training in the run set, and
/// writes the truth where `compare` finds it.
pub fn measure(
    open: &OpenRuns,
    reference: &Run,
    options: &Options,
    progress: &dyn Progress,
) -> Result<LeftOut> {
    let method = options.params.check()?;
    let subset_params = match &options.subsets {
        Some(params) => Some(params.check()?),
        None => None,
    };
    let (units, untrained) = units(open, reference, &options.unit)?;
    let source = Source::of(open, reference);
    let mut model = crate::train::fine_tuning(&open.set, reference, &options.device)?;
    // Only the losses at both ends are wanted; measuring does not change what is learned.
    model.settings.eval_every = u32::MAX;
    let device = model.device.to_string();
    let cache = FileCache::open(
        folder(open).join("trainings"),
        source.context(&device, simfluence_models::LIBTORCH_VERSION),
    )?;
    let work = Work {
        model: &model,
        curriculum: &reference.curriculum,
        train_count: open.train_count(),
        cache: &cache,
        progress,
    };
    let subset_count = options.subsets.map_or(0, |params| params.count as usize);
    eprintln!(
        "{} trainings of {} steps, less what is kept from before; interrupted, the same command goes on where it stopped",
        method.seeds().len() * (1 + units.len() + subset_count),
        reference.curriculum.len()
    );
    let truth = method.truth(&work, &units)?;
    let path = truth_path(open, reference, &options.unit);
    write(&path, truth.to_artifact(), &options.unit, &source)?;
    let subsets = match &subset_params {
        Some(params) => Some(method.subsets(&work, params)?),
        None => None,
    };
    if let Some(subsets) = &subsets {
        let path = subsets_path(open, reference);
        write(&path, subsets.to_artifact(), "subset", &source)?;
    }
    Ok(LeftOut {
        scores: scores(open, reference, &truth, &options.unit)?,
        truth,
        untrained,
        subsets,
        trained: cache.stored.into_inner(),
        kept: cache.loaded.into_inner(),
    })
}

/// The units that the run trained on, and the names of the others.
fn units(open: &OpenRuns, reference: &Run, unit: &str) -> Result<(Vec<Unit>, Vec<String>)> {
    let train = open.set.train_examples();
    let all = match unit {
        "example" => Unit::each_example(train),
        column => Unit::by_column(train, column),
    };
    if all.is_empty() {
        bail!(
            "--unit {unit}: no training example has such a column; write dataset, example or the name of a column"
        );
    }
    let exposure = reference.curriculum.total_exposure(train.len());
    let is_trained = |unit: &Unit| unit.members.iter().any(|&i| exposure[i as usize] > 0.0);
    let (trained, rest): (Vec<Unit>, Vec<Unit>) = all.into_iter().partition(is_trained);
    if trained.len() < 2 {
        bail!(
            "--unit {unit}: run {} trained on one such unit only; leaving it out would leave nothing to train on",
            reference.id
        );
    }
    Ok((trained, rest.into_iter().map(|unit| unit.name).collect()))
}

fn write(path: &Path, artifact: Artifact, unit: &str, source: &Source) -> Result<()> {
    make_folder(path.parent().context("the file is in a folder")?)?;
    Ok(write_artifact(path, &sign(artifact, unit, source))?)
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))
}

fn scores(
    open: &OpenRuns,
    reference: &Run,
    truth: &Truth,
    unit: &str,
) -> Result<Result<Scores, LeaveOutError>> {
    let rate = reference.curriculum.mean_learning_rate();
    let rate = rate.with_context(|| format!("run {} has no learning rates", reference.id))?;
    let axes = Axes {
        train_keys: open.set.train_examples().keys(),
        test_keys: open.set.test_examples().keys(),
    };
    Ok(truth.scores(&axes, rate).map(|mut scores| {
        let entries = [("reference_run", reference.id.as_str()), ("unit", unit)];
        for (name, value) in entries {
            scores.provenance.insert(name.to_owned(), value.into());
        }
        let steps = reference.curriculum.steps();
        let each: usize = steps.iter().map(|step| step.batch.len()).sum();
        let trainings = truth.seeds.len() * (truth.units.len() + 1);
        let count = (each * trainings) as u64;
        (scores.provenance).insert("gradient_evaluations".into(), count.into());
        scores
    }))
}

/// Keeps each training as a file named by its key.
struct FileCache {
    folder: PathBuf,
    context: String,
    loaded: AtomicUsize,
    stored: AtomicUsize,
}

impl FileCache {
    fn open(folder: PathBuf, context: String) -> Result<Self> {
        make_folder(&folder)?;
        Ok(Self {
            folder,
            context,
            loaded: AtomicUsize::new(0),
            stored: AtomicUsize::new(0),
        })
    }

    fn path(&self, retraining: &Retraining) -> PathBuf {
        let key = retraining.key(&self.context);
        self.folder.join(format!("{key}.safetensors"))
    }
}

impl Cache for FileCache {
    fn load(&self, retraining: &Retraining) -> Result<Option<FinalLosses>, BoxError> {
        let path = self.path(retraining);
        if !path.exists() {
            return Ok(None);
        }
        let artifact = read_artifact(&path)?;
        let read = || -> Result<FinalLosses, BoxError> {
            artifact.expect(KIND.0, KIND.1)?;
            let tests: usize = artifact.json("test_count")?;
            Ok(FinalLosses {
                initial: artifact.f32s("initial", &[tests])?.to_vec(),
                last: artifact.f32s("last", &[tests])?.to_vec(),
            })
        };
        let losses = read().map_err(|source| format!("{}: {source}", path.display()))?;
        self.loaded.fetch_add(1, Ordering::Relaxed);
        Ok(Some(losses))
    }

    fn store(&self, retraining: &Retraining, result: &FinalLosses) -> Result<(), BoxError> {
        let mut artifact = Artifact::new(KIND.0, KIND.1);
        for (name, text) in [("what", &retraining.what), ("context", &self.context)] {
            artifact.metadata.insert(name.to_owned(), text.clone());
        }
        artifact.set_json("seed", &retraining.seed);
        artifact.set_json("test_count", &result.last.len());
        for (name, values) in [("initial", &result.initial), ("last", &result.last)] {
            let tensor = Tensor::F32 {
                shape: vec![values.len()],
                values: values.clone(),
            };
            artifact.tensors.insert(name.to_owned(), tensor);
        }
        write_artifact(&self.path(retraining), &artifact)?;
        self.stored.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Runs the subcommand.
pub fn run(
    args: &AttributeArgs,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let reference = reference_run(open, split, args.reference_run.as_deref())?;
    let options = options(args);
    let left_out = measure(open, reference, &options, progress)?;
    report::print(open, reference, &options, &left_out);
    match left_out.scores {
        Ok(scores) => {
            let out = match &args.out {
                Some(path) => path.clone(),
                None => kept_scores(open, AttributionMethod::LeaveOut)?,
            };
            write_artifact(&out, &scores.to_artifact())?;
            println!("{}: the effects per unit exposure as scores", out.display());
            match &args.simulator {
                Some(path) => write_simulator(path, scores, open, split, progress),
                None => Ok(()),
            }
        }
        // Asked for by name it is an error.
        Err(error) if args.out.is_some() || args.simulator.is_some() => Err(error.into()),
        Err(error) => {
            eprintln!("no scores were written: {error}");
            Ok(())
        }
    }
}

fn options(args: &AttributeArgs) -> Options {
    let given = &args.leave_out;
    let defaults = LeaveOutParams::new();
    let params = defaults
        .seeds(given.seeds.unwrap_or(defaults.seeds))
        .first_seed(args.split.seed)
        .jobs(given.jobs.unwrap_or(1) as usize);
    let subsets = given.subsets.map(|count| SubsetParams {
        count,
        fraction: given.fraction.unwrap_or(SubsetParams::default().fraction),
        seed: args.split.seed,
    });
    Options {
        unit: given.unit.clone().unwrap_or_else(|| "dataset".to_owned()),
        params,
        subsets,
        device: args.device.clone(),
    }
}
