//! The command line: what can be asked for, with its help texts.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A training-run simulator engine: what if the model had been fine-tuned on other data?
///
/// Records real fine-tuning runs, learns from them how each training example moves the loss of
/// each test example, and answers what-ifs without training.
#[derive(Debug, Parser)]
#[command(name = "simfluence", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw the curricula of a run set as a file, so that any trainer can run them.
    Plan(PlanArgs),
    /// Show the tokens of a task's examples, and which of them carry loss.
    Preview(PreviewArgs),
    /// Fine-tune and record the runs of a task.
    Record(RecordArgs),
    /// Write a recorded checkpoint as a Hugging Face folder, or its adapter as a PEFT folder.
    SaveModel(SaveModelArgs),
    /// Turn logs from elsewhere into a run set.
    Import(ImportArgs),
    /// Make one run set of several that were recorded in different places.
    Merge(MergeArgs),
    /// Is this run set whole, and what is in it?
    Check(CheckArgs),
    /// Learn a simulator from the training runs of a run set.
    Fit(FitArgs),
    /// Score training examples with an attribution method.
    Attribute(AttributeArgs),
    /// Show what is in a file of scores: distribution, layers, probes, extremes.
    Report(ReportArgs),
    /// Simulate a curriculum.
    Simulate(SimulateArgs),
    /// Edit a recorded run's curriculum and show what would have happened.
    Whatif(WhatifArgs),
    /// Judge methods by how well they predict real runs.
    Compare(CompareArgs),
    /// Do a published experiment again and show it beside the published numbers.
    Reproduce(ReproduceArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence plan data/tasks/numbers.toml --out plan.parquet\n  simfluence plan --after number-runs --runs 4 --out next.parquet\n  simfluence plan --after number-runs --out next.parquet --question \"--drop dataset:length-words\" --question mine.parquet\n\nThe runs of a plan made with --after join the run set with:\n  simfluence record data/tasks/numbers.toml --plan next.parquet --out number-runs"
)]
pub struct PlanArgs {
    /// Task file (TOML) with a [design]; with --after the one kept in the run set, unless given.
    #[arg(required_unless_present = "after")]
    pub task: Option<PathBuf>,
    /// Where the plan goes (Parquet: run, seed, design, … and the columns of `steps`).
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The task's examples, where the task file reads a table; of images the folder that they are
    /// looked for in.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Which runs next? Chooses those that make the answers to questions surest, after what this
    /// run set has recorded.
    #[arg(long, value_name = "RUN_SET")]
    pub after: Option<PathBuf>,
    /// How many runs to choose.
    #[arg(long, default_value_t = 4, requires = "after", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// How many candidates to draw and choose from.
    #[arg(long, default_value_t = 200, requires = "after", value_parser = clap::value_parser!(u32).range(1..))]
    pub pool: u32,
    /// A question: edits of the base run as `whatif` has them, in quotes, or a curriculum file
    /// (repeatable; default: the base run, the edits that a counterfactual suite makes of it, and
    /// diversified runs).
    #[arg(
        long,
        value_name = "EDITS|FILE",
        requires = "after",
        allow_hyphen_values = true
    )]
    pub question: Vec<String>,
    /// The recorded run that questions edit (default: an ordinary one drawn from the design).
    #[arg(long, value_name = "RUN", requires = "after")]
    pub base: Option<String>,
    /// The runs that are learned from: ids, globs, ranges, with commas (default: as designed).
    #[arg(long, value_name = "RUNS", value_delimiter = ',', requires = "after")]
    pub train_runs: Vec<String>,
    /// Seed of candidates and questions (default: 0).
    #[arg(long, requires = "after")]
    pub seed: Option<u64>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `preview`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence preview my_task.toml --data my_data.parquet\n  simfluence preview my_task.toml --test --examples 20 --format json\n\nTokens that carry loss stand in brackets (in a terminal in colour), the others between bars; images are drawn. No weights are read and nothing is trained."
)]
pub struct PreviewArgs {
    /// Task file (TOML).
    pub task: PathBuf,
    /// The task's examples, where the task file reads a table; of images the folder that they are
    /// looked for in.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// How many examples to show, from the first on.
    #[arg(long, default_value_t = 3)]
    pub examples: usize,
    /// Show test examples instead of training examples.
    #[arg(long)]
    pub test: bool,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `record`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence record data/tasks/numbers.toml --out number-runs --jobs 2\n  simfluence record data/tasks/ag_news.toml --data ag_news.csv --out news-runs\n\nInterrupted (Ctrl-C or killed), the same command goes on where it stopped."
)]
pub struct RecordArgs {
    /// Task file (TOML).
    pub task: PathBuf,
    /// Folder of the run set; made if it is not there.
    #[arg(long, value_name = "RUN_SET")]
    pub out: PathBuf,
    /// The task's examples, where the task file reads a table; of images the folder that they are
    /// looked for in.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Record the runs of this plan instead of those of the task's own design.
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Record only these runs (ids, globs, ranges; several with commas).
    #[arg(long, value_name = "RUNS", value_delimiter = ',')]
    pub runs: Vec<String>,
    /// How many runs at once; each has training.threads threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: u32,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Save a checkpoint to go on from every so many steps (default: training.checkpoint_every).
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    pub resume_every: Option<u32>,
}

/// Arguments of `save-model`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence save-model my-runs --run train-000 --out fine-tuned\n  simfluence save-model my-runs --run train-000 --step 40 --out at-40\n\nFor run sets of a task with model.path and training.checkpoint_every. transformers reads the folder; of a run with [trainable] method = \"lora\" it holds the adapter, which PEFT reads."
)]
pub struct SaveModelArgs {
    /// Folder of the run set.
    pub run_set: PathBuf,
    /// The run.
    #[arg(long, value_name = "RUN")]
    pub run: String,
    /// The step of the checkpoint (default: the last).
    #[arg(long)]
    pub step: Option<u32>,
    /// Folder to write; made if it is not there, refused if there is something in it.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The kind of logs.
    #[command(subcommand)]
    pub source: ImportSource,
}

/// Kinds of logs that can be imported.
#[derive(Debug, Subcommand)]
pub enum ImportSource {
    /// The folder layout of GPTDynamics/GPTfluence: per run `train_samples_id.json` and
    /// `all_loss_trajectory.out`.
    #[command(
        after_help = "Example:\n  simfluence import gptdynamics GPTDynamics/rte --out rte-runs"
    )]
    Gptdynamics {
        /// Folder with one folder per run.
        folder: PathBuf,
        /// Folder of the new run set.
        #[arg(long, value_name = "RUN_SET")]
        out: PathBuf,
    },
    /// Plain long tables, Parquet or CSV.
    #[command(
        after_help = "Columns:\n  steps   run, step, batch, learning_rate?, batch_loss?\n  losses  run, step, test_id, loss\n  train/test examples  id, key, dataset, …\n  runs    run, optimizer, its constants\n\nExample:\n  simfluence import tables --steps steps.csv --losses losses.parquet --out my-runs"
    )]
    Tables(ImportTablesArgs),
}

/// Arguments of `import tables`.
#[derive(Debug, Args)]
pub struct ImportTablesArgs {
    /// What was trained: one row per run and step.
    #[arg(long, value_name = "FILE")]
    pub steps: PathBuf,
    /// What was measured: one row per run, step and test example.
    #[arg(long, value_name = "FILE")]
    pub losses: PathBuf,
    /// The training examples.
    #[arg(long, value_name = "FILE")]
    pub train_examples: Option<PathBuf>,
    /// The test examples.
    #[arg(long, value_name = "FILE")]
    pub test_examples: Option<PathBuf>,
    /// The runs' optimisers.
    #[arg(long, value_name = "FILE")]
    pub runs: Option<PathBuf>,
    /// Another name of a column, as OURS=THEIRS (repeatable), for example `test_id=example`.
    #[arg(long = "column", value_name = "OURS=THEIRS")]
    pub columns: Vec<String>,
    /// Folder of the new run set.
    #[arg(long, value_name = "RUN_SET")]
    pub out: PathBuf,
}

/// Arguments of `merge`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  simfluence merge runs-of-machine-1 runs-of-machine-2 --out all-runs\n\nExamples are the same if their keys are; the ids of runs must differ."
)]
pub struct MergeArgs {
    /// Folders of the run sets.
    #[arg(required = true, value_name = "RUN_SET")]
    pub run_sets: Vec<PathBuf>,
    /// Folder of the new run set.
    #[arg(long, value_name = "RUN_SET")]
    pub out: PathBuf,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  simfluence check number-runs")]
pub struct CheckArgs {
    /// Folder of the run set.
    pub run_set: PathBuf,
    /// Also fail unless fine-tuning lowered the mean test loss by this share (0.5: by half).
    #[arg(long, value_name = "SHARE")]
    pub learned: Option<f64>,
    /// Test datasets that `--learned` looks at, with commas (default: all). A probe asks questions
    /// whose losses are not meant to fall: `--learned-on fact` looks at the trained facts.
    #[arg(
        long,
        value_name = "DATASETS",
        value_delimiter = ',',
        requires = "learned"
    )]
    pub learned_on: Vec<String>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Which runs may be learned from and which are for judging.
#[derive(Debug, Args)]
pub struct SplitArgs {
    /// Runs to learn from: ids, globs, ranges (`train-*`, `train-000..train-007`), with commas.
    #[arg(long, value_name = "RUNS", value_delimiter = ',')]
    pub train_runs: Vec<String>,
    /// Runs to judge by, in the same form.
    #[arg(long, value_name = "RUNS", value_delimiter = ',')]
    pub test_runs: Vec<String>,
    /// Seed of everything drawn (the split, folds, bootstrap).
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Simulators that `fit` learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FitMethod {
    /// Losses driven by the optimiser's own filtered and normalised updates, dataset by dataset.
    OptimizerDynamics,
    /// `L_t = α_t L_{t-1} + β_t`.
    #[default]
    SimfluenceLinear,
    /// `L_t = L_{t-1} + β_t`.
    SimfluenceAdditive,
    /// `L_t = α_t L_{t-1}`.
    SimfluenceMultiplicative,
    /// Training of the base model linearised (neural tangent kernel), for a few different answers.
    Linearised,
    /// Per step the mean of the training runs.
    MeanRun,
}

/// Which datasets optimizer-dynamics goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DatasetsArg {
    /// Those of the training examples where there are several, learned ones otherwise.
    #[default]
    Auto,
    /// Those of the training examples.
    Given,
    /// Learned from the losses of recorded batches.
    Learned,
}

/// What optimizer-dynamics is fitted with.
#[derive(Debug, Clone, Default, Args)]
pub struct DynamicsArgs {
    /// The datasets that optimizer-dynamics goes by.
    #[arg(long, value_enum, default_value_t)]
    pub datasets: DatasetsArg,
    /// Features of the training examples (Parquet or CSV with a column `key`, and `features` or
    /// columns of numbers): learned datasets take up never recorded examples by them.
    #[arg(long, value_name = "FILE")]
    pub features: Option<PathBuf>,
    /// Leave the linearised model out of optimizer-dynamics (default: it is a member where there are
    /// a few different answers and the run set keeps its tangent kernel or the base model).
    #[arg(long)]
    pub no_linearised: bool,
}

impl DynamicsArgs {
    /// Fails if something is set, where no optimizer-dynamics is fitted; `because` says why not.
    pub fn refuse(&self, because: &str) -> anyhow::Result<()> {
        if self.datasets == DatasetsArg::Auto && self.features.is_none() && !self.no_linearised {
            return Ok(());
        }
        anyhow::bail!(
            "--datasets, --features and --no-linearised are for fitting optimizer-dynamics, but {because}"
        )
    }
}

/// What a fit minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ObjectiveArg {
    /// The error of each step from the true loss before it.
    #[default]
    TeacherForced,
    /// The error of whole simulated curves.
    Rollout,
}

/// How the minimum is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SolverArg {
    /// The normal equations, by preconditioned conjugate gradients refined to rounding.
    Exact,
    /// Conjugate gradients (argmin).
    Cg,
    /// L-BFGS (argmin).
    Lbfgs,
}

/// What multiplicative factors are shrunk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ShrinkTo {
    /// "This example changes nothing".
    #[default]
    One,
    /// As in the paper.
    Zero,
}

/// Arguments of `fit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence fit number-runs --out linear.safetensors\n  simfluence fit number-runs --out linear.safetensors --lambda 0.1 --solver cg\n  simfluence fit number-runs --out rolled.safetensors --objective rollout"
)]
pub struct FitArgs {
    /// Folder of the run set.
    pub run_set: PathBuf,
    /// Where the simulator goes (safetensors).
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What to learn.
    #[arg(long, value_enum, default_value_t)]
    pub method: FitMethod,
    /// What optimizer-dynamics is fitted with.
    #[command(flatten)]
    pub dynamics: DynamicsArgs,
    /// What to minimise.
    #[arg(long, value_enum, default_value_t)]
    pub objective: ObjectiveArg,
    /// How (default: exact; rollout: lbfgs).
    #[arg(long, value_enum)]
    pub solver: Option<SolverArg>,
    /// What factors are shrunk to.
    #[arg(long, value_enum, default_value_t)]
    pub shrink_to: ShrinkTo,
    /// `auto` (leave-run-out rollouts), one strength, or `A,B` for factors and offsets.
    #[arg(long, default_value = "auto")]
    pub lambda: String,
    /// Which runs.
    #[command(flatten)]
    pub split: SplitArgs,
    /// `cpu`, `cuda` or `cuda:N`, for the gradients of the linearised model.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Memory for what is held of gradients at once, such as 512MiB or 2GiB (default: 1GiB).
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub memory_limit: Option<usize>,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Attribution methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttributionMethod {
    /// Inner product of gradients at the end of the reference run.
    Graddot,
    /// The same in the metric of the reference run's optimiser (Adam, AdamW, RMSProp).
    GraddotPreconditioned,
    /// Cosine of gradients at the end of the reference run.
    Gradcos,
    /// The same in the metric of the reference run's optimiser.
    GradcosPreconditioned,
    /// Learning-rate weighted inner products over the reference run's checkpoints.
    TracinCp,
    /// The same in the metric of the reference run's optimiser at each checkpoint.
    TracinCpPreconditioned,
    /// Influence functions, curvature written out (at most 8 192 parameters).
    HifExact,
    /// Influence functions by conjugate gradients.
    HifCg,
    /// Influence functions by LiSSA.
    HifLissa,
    /// Influence functions in the dominant Krylov space.
    HifArnoldi,
    /// Influence functions by eigenvalue-corrected Kronecker factors.
    HifEkfac,
    /// Influence functions by Kronecker factors.
    HifKfac,
    /// Influence functions by the diagonal of the curvature.
    HifDiagonal,
    /// Gradient ascent on training units, measured on the test examples.
    Untrac,
    /// Gradient ascent on test units, measured on the training examples.
    UntracInv,
    /// Training on each example alone.
    Empirical,
    /// Proximal Bregman response: what influence functions approximate, really minimised.
    Pbrf,
    /// Ground truth: the reference run really trained again without each unit, several seeds.
    LeaveOut,
}

/// Arguments of `attribute`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence attribute number-runs --method tracin-cp --out tracin.safetensors\n  simfluence attribute number-runs --method leave-out --unit dataset --seeds 4 --jobs 2\n  simfluence attribute number-runs --method leave-out --subsets 32"
)]
pub struct AttributeArgs {
    /// Folder of the run set, recorded with checkpoints.
    pub run_set: PathBuf,
    /// The method.
    #[arg(long, value_enum)]
    pub method: AttributionMethod,
    /// Where the scores go (safetensors, train × test; larger = lowers the loss more); default:
    /// `scores/METHOD.safetensors` in the run set, where `compare` finds them.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Also write the additive simulator, its gain fitted on the training runs.
    #[arg(long, value_name = "FILE")]
    pub simulator: Option<PathBuf>,
    /// The run whose checkpoints are used (default: the first training run that has some).
    #[arg(long, value_name = "RUN")]
    pub reference_run: Option<String>,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Memory for what is held of gradients at once, such as 512MiB or 2GiB (default: 1GiB).
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub memory_limit: Option<usize>,
    /// Which runs.
    #[command(flatten)]
    pub split: SplitArgs,
    /// Of the methods.
    #[command(flatten)]
    pub settings: MethodSettings,
    /// Of leave-out truth.
    #[command(flatten)]
    pub leave_out: LeaveOutArgs,
}

/// Bytes from `1073741824`, `512MiB`, `2GiB`, `1.5GB`, ….
fn memory_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => return Err(format!("unknown unit {other:?}; write B, KiB, MiB or GiB")),
    };
    let number: f64 = digits
        .trim()
        .parse()
        .map_err(|_| format!("{digits:?} is no number"))?;
    let bytes = number * factor;
    if bytes >= 1.0 && bytes < usize::MAX as f64 {
        Ok(bytes as usize)
    } else {
        Err("it must be at least 1 byte".to_owned())
    }
}

/// Which matrix stands for the curvature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CurvatureArg {
    /// Never negative.
    GaussNewton,
    /// May be indefinite where the run has not converged.
    Hessian,
}

/// Whose labels the gradients behind factored curvature have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LabelsArg {
    /// Drawn from the model: the Fisher matrix.
    Sampled,
    /// The examples' own: the empirical Fisher matrix.
    Given,
    /// The expectation over all labels.
    Expected,
}

/// Optimisers of unlearning and of training on single examples, with PyTorch's constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizerArg {
    /// Gradient descent.
    Sgd,
    /// Gradient descent with momentum 0.9.
    Momentum,
    /// RMSProp.
    Rmsprop,
    /// Adam without weight decay.
    Adam,
    /// Adafactor.
    Adafactor,
}

/// Settings of the attribution methods; each belongs to some of them only.
#[derive(Debug, Clone, Args, PartialEq, Default)]
#[command(next_help_heading = "Settings of methods")]
pub struct MethodSettings {
    /// graddot, tracin-cp, hif: also keep the scores of each layer.
    #[arg(long)]
    pub layers: bool,
    /// graddot, tracin-cp, hif-ekfac, -kfac, -diagonal: also write the scores of every target token
    /// of the training examples here (safetensors); they sum to the scores.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["layers", "prefilter"])]
    pub tokens: Option<PathBuf>,
    /// With --tokens: for every target token of the test examples, too.
    #[arg(long, requires = "tokens")]
    pub test_tokens: bool,
    /// graddot, tracin-cp, hif-ekfac, -kfac, -diagonal: keep each matrix of a test gradient in this
    /// rank (randomised singular value decomposition; default: whole), so that more test examples
    /// fit into memory at once.
    #[arg(long, value_name = "RANK", conflicts_with = "projection",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub query_rank: Option<u32>,
    /// graddot, tracin-cp, hif-ekfac, -kfac, -diagonal: project all gradients to this many random
    /// dimensions (default: none), drawn with --seed; a score is then off by about
    /// ‖g_i‖ ‖g_j‖ / √K.
    #[arg(long, value_name = "K", conflicts_with = "layers",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub projection: Option<u32>,
    /// graddot, gradcos, tracin-cp, hif-ekfac, -kfac, -diagonal: score only training examples whose
    /// text is among the N most similar (TF-IDF) of some test example. The others have no score, so
    /// that there is no simulator; needs --out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prefilter: Option<u32>,
    /// hif-exact, -cg, -lissa, -arnoldi: the curvature (default: gauss-newton).
    #[arg(long, value_enum)]
    pub curvature: Option<CurvatureArg>,
    /// hif, pbrf: what is added to the curvature's eigenvalues (default of pbrf: 0.1).
    #[arg(long, value_name = "DELTA", conflicts_with = "relative_damping")]
    pub damping: Option<f64>,
    /// hif: damping relative to the largest eigenvalue (default 0.01), for ekfac, kfac and
    /// diagonal to the mean eigenvalue of each layer (default 0.1).
    #[arg(long, value_name = "FACTOR")]
    pub relative_damping: Option<f64>,
    /// pbrf: the extra weight of a unit, above 0 (default: one over the number of training
    /// examples that were trained on).
    #[arg(long, value_name = "EPSILON")]
    pub epsilon: Option<f64>,
    /// hif-cg, hif-lissa, pbrf: largest relative residual (defaults 1e-3, 0.01, 1e-4).
    #[arg(long, value_name = "RESIDUAL")]
    pub tolerance: Option<f64>,
    /// hif-cg, hif-arnoldi, pbrf: most iterations (defaults 200, 30, 2000).
    #[arg(long, value_name = "N")]
    pub iterations: Option<u32>,
    /// hif-arnoldi: Ritz pairs kept (default 20).
    #[arg(long, value_name = "N")]
    pub rank: Option<u32>,
    /// hif-arnoldi: count the curvature outside of the Ritz pairs' space as 0 instead of leaving
    /// what lies there out.
    #[arg(long)]
    pub complement: bool,
    /// hif-lissa: terms of the series (default 500).
    #[arg(long, value_name = "N")]
    pub depth: Option<u32>,
    /// hif-lissa: averaged recursions (default 1).
    #[arg(long, value_name = "N")]
    pub repeats: Option<u32>,
    /// hif-lissa: divisor of the curvature (default: from its largest Ritz value).
    #[arg(long, value_name = "SIGMA")]
    pub scale: Option<f64>,
    /// hif-lissa: the published recursion, without solving the dominant directions at once.
    #[arg(long)]
    pub no_deflation: bool,
    /// hif: take the curvature over so many of the training examples only, drawn (default: 256
    /// for hif-cg, hif-lissa and hif-arnoldi, else all).
    #[arg(long, value_name = "N")]
    pub curvature_examples: Option<u32>,
    /// hif-ekfac, -kfac, -diagonal: labels of the gradients (default: sampled).
    #[arg(long, value_enum)]
    pub labels: Option<LabelsArg>,
    /// hif-ekfac, -kfac, -diagonal: draws per example with sampled labels (default 1).
    #[arg(long, value_name = "N")]
    pub draws: Option<u32>,
    /// untrac, untrac-inv, empirical: the optimiser (default: adam).
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerArg>,
    /// untrac, untrac-inv, empirical: learning rate (defaults 5e-5, 5e-5, the reference run's
    /// mean).
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// untrac, untrac-inv: examples per step (defaults 1, all); hif-lissa: training examples per
    /// term (default all).
    #[arg(long, value_name = "N")]
    pub batch_size: Option<u32>,
    /// untrac, untrac-inv: passes over the unit (defaults 1, 5).
    #[arg(long, value_name = "N")]
    pub epochs: Option<u32>,
    /// empirical: steps on each example (default 1).
    #[arg(long, value_name = "K")]
    pub steps: Option<u32>,
    /// empirical: start from the base model instead of the end of the reference run.
    #[arg(long)]
    pub from_base: bool,
    /// untrac-inv: `dataset` (default) unlearns each test dataset as one, `example` each test
    /// example alone. hif: `dataset` solves for the mean loss of each test dataset, `example`
    /// (default) for each test example.
    #[arg(long, value_name = "UNIT")]
    pub test_unit: Option<String>,
    /// untrac, untrac-inv: measure the losses after every so many steps and the last (default 1);
    /// changes what it costs, not the scores.
    #[arg(long, value_name = "STEPS")]
    pub curve_every: Option<u32>,
    /// untrac, empirical, pbrf: units hold only examples that the reference run trained on;
    /// others get no score.
    #[arg(long)]
    pub trained_only: bool,
    /// untrac, untrac-inv: where the losses along the ascent go (safetensors).
    #[arg(long, value_name = "FILE")]
    pub curves: Option<PathBuf>,
}

/// Settings of leave-out truth.
#[derive(Debug, Args, PartialEq, Default)]
#[command(next_help_heading = "Leave-out (--method leave-out)")]
pub struct LeaveOutArgs {
    /// What is left out at a time: `dataset` (default), `example`, or any column of the training
    /// examples. Also what untrac unlearns and pbrf weighs (default `dataset`), and what empirical
    /// trains on (default `example`).
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// How often everything is trained, each time in another order of the run's examples
    /// (default: 4).
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub seeds: Option<u32>,
    /// Trainings at a time, each with training.threads threads (default: 1).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// Also train on this many random subsets, for the linear datamodeling score (without a
    /// number: 16).
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "16",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub subsets: Option<u32>,
    /// Share of the run's training examples that a subset keeps (default: 0.5).
    #[arg(long, value_name = "SHARE", requires = "subsets")]
    pub fraction: Option<f64>,
}

/// Arguments of `report`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence report number-runs number-runs/scores/tracin-cp.safetensors\n  simfluence report number-runs number-runs/scores/hif-ekfac.safetensors --plots pictures"
)]
pub struct ReportArgs {
    /// Folder of the run set whose examples the scores are of.
    pub run_set: PathBuf,
    /// The scores (safetensors), as `attribute` writes them.
    pub scores: PathBuf,
    /// Group examples by this column.
    #[arg(long, value_name = "COLUMN", default_value = "dataset")]
    pub group_by: String,
    /// Folder for the pictures.
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
    /// Seed of the bootstrap.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How the report is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence simulate linear.safetensors --run-set number-runs --run held-out-000 --out curve.csv\n  simfluence simulate linear.safetensors --run-set number-runs --curriculum mine.parquet --out curve.parquet"
)]
pub struct SimulateArgs {
    /// The simulator.
    pub simulator: PathBuf,
    /// The run set it was learned from: names of the examples, and the losses to start from.
    #[arg(long, value_name = "RUN_SET")]
    pub run_set: PathBuf,
    /// Simulate the curriculum of this run.
    #[arg(long, value_name = "RUN", conflicts_with = "curriculum")]
    pub run: Option<String>,
    /// Simulate this curriculum (Parquet with the columns of `steps`).
    #[arg(long, value_name = "FILE", required_unless_present = "run")]
    pub curriculum: Option<PathBuf>,
    /// Start from the recorded `L_0` of this run (default: --run, else the first run).
    #[arg(long, value_name = "RUN")]
    pub initial_from: Option<String>,
    /// Share of real losses that bands are to hold, where the simulator has bands.
    #[arg(long, default_value_t = 0.9, value_parser = level)]
    pub level: f64,
    /// Where the trajectory goes (.parquet, .csv or .json); default: standard output, as CSV.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// How a curriculum is edited.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct EditArgs {
    /// Train without these: `dataset:NAME`, `key:K`, `id:3`, `id:3-9`, `tag:T`, `COLUMN:VALUE` or
    /// a bare name (repeatable).
    #[arg(long, value_name = "SELECTION")]
    pub drop: Vec<String>,
    /// Train on these only (repeatable).
    #[arg(long, value_name = "SELECTION")]
    pub keep: Vec<String>,
    /// Train on these more often: `SELECTION=TIMES` (repeatable).
    #[arg(long, value_name = "SELECTION=TIMES")]
    pub repeat: Vec<String>,
    /// Put other examples in their place: `SELECTION=SELECTION` (repeatable).
    #[arg(long, value_name = "OLD=NEW")]
    pub replace: Vec<String>,
    /// The same examples in another order: `dataset` or `dataset:A,B,C`, `random`, `reversed`, or
    /// `given:FILE` with one id or key per line.
    #[arg(long, value_name = "ORDER")]
    pub reorder: Option<String>,
    /// Every learning rate times this factor.
    #[arg(long, value_name = "FACTOR")]
    pub learning_rate: Option<f64>,
}

/// What happens to batches that lose or gain members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FillArg {
    /// Step count and batch sizes stay; free places go to random other members of the run.
    #[default]
    Resample,
    /// Batches become smaller or larger.
    Shrink,
    /// The run becomes shorter or longer.
    Shorten,
}

/// Arguments of `whatif`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence whatif number-runs --run ordinary-000 --drop length-words\n  simfluence whatif number-runs --run ordinary-000 --repeat dataset:succeed-digits=3 --picture repeat.svg\n  simfluence whatif number-runs --run ordinary-000 --reorder dataset --verify"
)]
pub struct WhatifArgs {
    /// Folder of the run set.
    pub run_set: PathBuf,
    /// The recorded run to edit.
    #[arg(long, value_name = "RUN")]
    pub run: String,
    /// The edits, made in the order drop, keep, repeat, replace, reorder, learning rate.
    #[command(flatten)]
    pub edits: EditArgs,
    /// What happens to batches that lose or gain members.
    #[arg(long, value_enum, default_value_t)]
    pub fill: FillArg,
    /// A simulator file (default: optimizer-dynamics, fitted now on the training runs;
    /// simfluence-linear where there is one dataset only and the runs tell no others apart).
    #[arg(long, value_name = "FILE")]
    pub simulator: Option<PathBuf>,
    /// What optimizer-dynamics is fitted with.
    #[command(flatten)]
    pub dynamics: DynamicsArgs,
    /// Share of real losses that bands are to hold, where the simulator has bands.
    #[arg(long, default_value_t = 0.9, value_parser = level)]
    pub level: f64,
    /// Really retrain with the run's seed and show simulated against true.
    #[arg(long)]
    pub verify: bool,
    /// Group the answer by this column of the test examples.
    #[arg(long, value_name = "COLUMN", default_value = "dataset")]
    pub group_by: String,
    /// Show every test example, not only those that change most.
    #[arg(long)]
    pub all: bool,
    /// Where the picture goes (default: `whatif.svg` in the current folder).
    #[arg(long, value_name = "FILE", default_value = "whatif.svg")]
    pub picture: PathBuf,
    /// Where the edited curriculum goes (Parquet).
    #[arg(long, value_name = "FILE")]
    pub curriculum_out: Option<PathBuf>,
    /// `cpu`, `cuda` or `cuda:N`, for --verify and the gradients of the linearised model.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Which runs.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Methods that `compare` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareMethod {
    /// Every one.
    All,
    /// What `fit` learns.
    Fitted(FitMethod),
    /// First-order changes along each run itself.
    TracinIdeal,
    /// The scores of an attribution method.
    Attribution(AttributionMethod),
}

impl ValueEnum for CompareMethod {
    fn value_variants<'a>() -> &'a [Self] {
        use AttributionMethod::*;
        const {
            &[
                Self::All,
                Self::Fitted(FitMethod::OptimizerDynamics),
                Self::Fitted(FitMethod::SimfluenceLinear),
                Self::Fitted(FitMethod::SimfluenceAdditive),
                Self::Fitted(FitMethod::SimfluenceMultiplicative),
                Self::Fitted(FitMethod::Linearised),
                Self::Attribution(Graddot),
                Self::Attribution(GraddotPreconditioned),
                Self::Attribution(Gradcos),
                Self::Attribution(GradcosPreconditioned),
                Self::Attribution(TracinCp),
                Self::Attribution(TracinCpPreconditioned),
                Self::TracinIdeal,
                Self::Attribution(HifExact),
                Self::Attribution(HifCg),
                Self::Attribution(HifLissa),
                Self::Attribution(HifArnoldi),
                Self::Attribution(HifEkfac),
                Self::Attribution(HifKfac),
                Self::Attribution(HifDiagonal),
                Self::Attribution(Untrac),
                Self::Attribution(UntracInv),
                Self::Attribution(Empirical),
                Self::Attribution(Pbrf),
                Self::Attribution(LeaveOut),
            ]
        }
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::All => Some(
                clap::builder::PossibleValue::new("all")
                    .help("every method; hif-cg, hif-lissa, pbrf and tracin-ideal only with at most 16 test examples, leave-out only where its scores are kept"),
            ),
            Self::Fitted(method) => method.to_possible_value(),
            Self::TracinIdeal => Some(
                clap::builder::PossibleValue::new("tracin-ideal")
                    .help("an oracle: first-order changes along each judged run itself, replayed"),
            ),
            Self::Attribution(method) => method.to_possible_value(),
        }
    }
}

/// A level of bands.
fn level(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(level) if level > 0.0 && level < 1.0 => Ok(level),
        _ => Err("write a number above 0 and below 1, such as 0.9".to_owned()),
    }
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence compare number-runs --plots pictures\n  simfluence compare number-runs --methods simfluence-linear,tracin-cp --format json\n\nThe baselines no-learning, mean-run and (on the suite) no-effect stand in every table. Where the same edit was made of several base runs, the noise ceiling of the final effect's R² is given: what predictions could reach that do not know which run is edited."
)]
pub struct CompareArgs {
    /// Folder of the run set.
    pub run_set: PathBuf,
    /// The methods (default: optimizer-dynamics, Simfluence, graddot, gradcos, tracin-cp and kept leave-out scores, as
    /// far as this run set and this build allow).
    #[arg(long, value_enum, value_delimiter = ',')]
    pub methods: Vec<CompareMethod>,
    /// Simulator files to compare besides, already fitted.
    #[arg(long, value_name = "FILE")]
    pub simulator: Vec<PathBuf>,
    /// Score files to compare besides, as additive simulators.
    #[arg(long, value_name = "FILE")]
    pub scores: Vec<PathBuf>,
    /// The run whose checkpoints gradient methods use.
    #[arg(long, value_name = "RUN")]
    pub reference_run: Option<String>,
    /// `cpu`, `cuda` or `cuda:N`, for gradient methods and the linearised model.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Memory for what is held of gradients at once, such as 512MiB or 2GiB (default: 1GiB).
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub memory_limit: Option<usize>,
    /// Folder for the pictures.
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
    /// Bootstrap resamples of the intervals.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..))]
    pub resamples: u32,
    /// Instead of the tables: the error of what `fit` learns against the number of training runs,
    /// such as 6,12,24.
    #[arg(
        long, value_name = "RUNS", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(2..),
        conflicts_with_all = ["plots", "ablate", "simulator", "scores"]
    )]
    pub learning_curve: Vec<u32>,
    /// What optimizer-dynamics is fitted with.
    #[command(flatten)]
    pub dynamics: DynamicsArgs,
    /// Show what each ingredient of optimizer-dynamics is worth: a row without each.
    #[arg(long)]
    pub ablate: bool,
    /// Fit as if training runs had been measured only at every K-th of their evaluations.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub thin_steps: u32,
    /// Fit as if each evaluation of training runs had measured only one of K parts of the test
    /// examples in turn.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub thin_tests: u32,
    /// Which runs.
    #[command(flatten)]
    pub split: SplitArgs,
    /// How the table is printed.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Published experiments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// Isonuma & Titov 2024: which of four fine-tuning tasks lower the loss of a fifth, by
    /// leave-one-out, UnTrac, UnTrac-Inv and the methods that they are compared with.
    UntracFinetuning,
}

/// Arguments of `reproduce`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  simfluence reproduce untrac-finetuning --out untrac --jobs 2\n  simfluence reproduce untrac-finetuning --out untrac --jobs 2 --data ag_news_test.csv\n\nEverything is kept in the folder: interrupted, or asked for more seeds or methods, the same command does only what is new."
)]
pub struct ReproduceArgs {
    /// The experiment.
    #[arg(value_enum)]
    pub experiment: Experiment,
    /// Folder for run sets, results, tables and pictures; made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// News with the columns class, title and description and no header line (AG News): also with
    /// eight training datasets, four of them news.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Runs that methods are applied to, and retrainings behind the truth (2 to 16).
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=16))]
    pub seeds: u32,
    /// Trainings, and attributions, at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: u32,
    /// The methods (default: all but hif-exact and pbrf, and with --data, for the eight datasets,
    /// all but hif-cg and hif-lissa besides: they would take too long). With untrac or untrac-inv their optimisers and learning rates are swept, too (setting four).
    #[arg(long, value_enum, value_delimiter = ',')]
    pub methods: Vec<AttributionMethod>,
    /// Another task file for the number tasks than the built-in one, a smaller one for instance.
    #[arg(long, value_name = "FILE")]
    pub task: Option<PathBuf>,
    /// How the result is printed; the folder gets it in all three forms.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_sizes_are_read_with_their_units() {
        assert_eq!(memory_size("1073741824"), Ok(1 << 30));
        assert_eq!(memory_size("1.5GiB"), Ok(3 << 29));
        assert_eq!(memory_size("512MiB"), Ok(512 << 20));
        assert_eq!(memory_size("2 GB"), Ok(2_000_000_000));
        for wrong in ["", "GiB", "3 bytes", "-1", "0"] {
            assert!(memory_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_method_of_compare_has_a_name_of_its_own() {
        let names: Vec<String> = (CompareMethod::value_variants().iter())
            .map(|m| m.to_possible_value().expect("a name").get_name().to_owned())
            .collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        let attribution = AttributionMethod::value_variants().len();
        // "all", TracIn-Ideal, and what `fit` learns but the mean run, which is in every table.
        let fitted = FitMethod::value_variants().len() - 1;
        assert_eq!(names.len(), 2 + fitted + attribution);
    }

    #[test]
    fn a_whatif_needs_an_edit() {
        assert!(Cli::try_parse_from(["simfluence", "whatif", "runs", "--run", "a"]).is_err());
        let with = ["simfluence", "whatif", "runs", "--run", "a", "--drop", "x"];
        assert!(Cli::try_parse_from(with).is_ok());
    }
}
