//! `simfluence attribute`: score training examples with an attribution method.

use crate::cli::{AttributeArgs, AttributionMethod, CompareArgs, MethodSettings};
#[cfg(feature = "torch")]
use crate::cost::measured;
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use simfluence_core::{Fit, Progress, Run, Scores};
use simfluence_evaluation::SplitRuns;
use simfluence_recorder::{read_artifact, write_artifact};
use simfluence_simulators::additive::{FitAdditive, Gain};
use std::path::{Path, PathBuf};

pub mod given;
#[cfg(feature = "torch")]
pub mod ideal;
#[cfg(feature = "torch")]
pub mod leave_out;
#[cfg(feature = "torch")]
mod replay;
#[cfg(feature = "torch")]
pub mod scoring;
mod settings;
#[cfg(feature = "torch")]
mod tokens;

/// Name of a method, as in files and tables.
pub fn name(method: AttributionMethod) -> String {
    let value = method.to_possible_value();
    value.expect("no method is skipped").get_name().to_owned()
}

/// What is to be scored and how.
#[cfg_attr(not(feature = "torch"), allow(dead_code))]
pub struct Request<'a> {
    /// The method.
    pub method: AttributionMethod,
    /// Its settings.
    pub settings: &'a MethodSettings,
    /// What a unit of training examples is.
    pub unit: Option<&'a str>,
    /// Bytes for gradients.
    pub memory: Option<usize>,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Where to compute.
    pub device: &'a str,
    /// LibTorch threads; `None`: as many as there are cores.
    pub threads: Option<u32>,
}

/// Runs the subcommand.
pub fn run(args: &AttributeArgs, progress: &dyn Progress) -> Result<()> {
    settings::check(args)?;
    let open = OpenRuns::read(&args.run_set, progress)?;
    let split = open.split(&args.split)?;
    if args.method == AttributionMethod::LeaveOut {
        return run_leave_out(args, &open, &split, progress);
    }
    let reference = reference_run(&open, &split, args.reference_run.as_deref())?;
    let request = Request {
        method: args.method,
        settings: &args.settings,
        unit: args.leave_out.unit.as_deref(),
        memory: args.memory_limit,
        seed: args.split.seed,
        device: &args.device,
        threads: None,
    };
    let scores = compute(&request, &open, reference, progress)?;
    let out = match &args.out {
        Some(path) => path.clone(),
        None => kept_scores(&open, args.method)?,
    };
    write_artifact(&out, &scores.to_artifact())?;
    if let Some(path) = &args.settings.tokens {
        println!("{}: the same by target token", path.display());
    }
    let left_out = open.train_count() - scores.train_keys.len();
    if left_out > 0 {
        println!(
            "{left_out} of {} training examples have no score: {}",
            open.train_count(),
            match args.settings.prefilter {
                Some(_) => "they are no candidate of any test example",
                None => "the reference run never trained on them",
            }
        );
    }
    println!(
        "{}: {} of {} training × {} test examples, from run {}; larger = training on it lowers the loss more",
        out.display(),
        scores.method,
        scores.train_keys.len(),
        scores.test_keys.len(),
        reference.id
    );
    if let Some(path) = &args.simulator {
        write_simulator(path, scores, &open, &split, progress)?;
    }
    Ok(())
}

/// Writes the additive simulator of scores, its gain fitted on the training runs.
pub fn write_simulator(
    path: &Path,
    scores: Scores,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    let fit = FitAdditive {
        scores,
        gain: Gain::Fitted,
    };
    let simulator = fit.fit(&split.train, open.train_count(), progress)?;
    write_artifact(path, &simulator.to_artifact())?;
    println!(
        "{}: additive simulator, gain {:.4}",
        path.display(),
        simulator.gain()
    );
    Ok(())
}

#[cfg(feature = "torch")]
use leave_out::run as run_leave_out;

#[cfg(not(feature = "torch"))]
fn run_leave_out(
    _: &AttributeArgs,
    _: &OpenRuns,
    _: &SplitRuns<'_>,
    _: &dyn Progress,
) -> Result<()> {
    bail!(crate::needs_torch("attribute --method leave-out"))
}

/// The scores kept in the run set if they are of the same reference run, else computed and kept;
/// and whether they had been kept.
pub fn cached(
    args: &CompareArgs,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    method: AttributionMethod,
    progress: &dyn Progress,
) -> Result<(Scores, bool)> {
    let reference = match method {
        AttributionMethod::LeaveOut => {
            crate::truth::reference_run(open, split, args.reference_run.as_deref())?
        }
        _ => reference_run(open, split, args.reference_run.as_deref())?,
    };
    let path = kept_scores(open, method)?;
    if path.exists() {
        let mut scores = Scores::from_artifact(&read_artifact(&path)?)
            .with_context(|| format!("{}", path.display()))?;
        open.check_keys(&path, &scores.train_keys, &scores.test_keys)?;
        let made_from = scores.provenance.get("reference_run");
        if made_from.and_then(|v| v.as_str()) == Some(&reference.id) {
            let others = other_settings(&scores, method);
            if !others.is_empty() {
                scores.method = format!("{} [{}]", scores.method, others.join(", "));
            }
            return Ok((scores, true));
        }
    }
    if method == AttributionMethod::LeaveOut {
        // It takes many trainings: never without being asked for.
        bail!(
            "the run set has no leave-out scores of run {}; make them with `simfluence attribute {} --method leave-out --reference-run {}`",
            reference.id,
            open.set.path().display(),
            reference.id
        );
    }
    let request = Request {
        method,
        settings: &MethodSettings::default(),
        unit: None,
        memory: args.memory_limit,
        seed: args.split.seed,
        device: &args.device,
        threads: None,
    };
    let scores = compute(&request, open, reference, progress)?;
    write_artifact(&path, &scores.to_artifact())?;
    Ok((scores, false))
}

/// The settings of kept scores that differ from the method's defaults, so that a row that was made
/// with them says so.
fn other_settings(scores: &Scores, method: AttributionMethod) -> Vec<String> {
    #[cfg(feature = "torch")]
    let defaults = scoring::settings_note(method, &MethodSettings::default(), None);
    #[cfg(not(feature = "torch"))]
    let defaults = {
        let _ = method;
        serde_json::Value::Null
    };
    let options = scores.provenance.get("options").and_then(|o| o.as_object());
    let entries = options.into_iter().flatten();
    let others = entries.filter(|(name, value)| defaults.get(name.as_str()) != Some(*value));
    others
        .map(|(name, value)| match value.as_str() {
            Some(text) => format!("{name} {text}"),
            None => format!("{name} {value}"),
        })
        .collect()
}

/// Where `compare` finds the scores of a method.
pub fn kept_scores(open: &OpenRuns, method: AttributionMethod) -> Result<PathBuf> {
    let folder = open.set.path().join("scores");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder.join(format!("{}.safetensors", name(method))))
}

/// The run named, or the first training run with checkpoints; never a held-out one.
pub fn reference_run<'a>(
    open: &'a OpenRuns,
    split: &SplitRuns<'a>,
    wanted: Option<&str>,
) -> Result<&'a Run> {
    let has_checkpoints =
        |run: &Run| -> Result<bool> { Ok(!open.set.checkpoints(&run.id)?.is_empty()) };
    if let Some(id) = wanted {
        let run = split.train.iter().find(|r| r.id == id).with_context(|| {
            format!("the reference run {id:?} must be one of the training runs")
        })?;
        if !has_checkpoints(run)? {
            anyhow::bail!("the reference run {id:?} was recorded without checkpoints");
        }
        return Ok(run);
    }
    for run in &split.train {
        if has_checkpoints(run)? {
            return Ok(run);
        }
    }
    anyhow::bail!(
        "no training run has checkpoints; record with training.checkpoint_every in the task file"
    )
}

#[cfg(not(feature = "torch"))]
fn compute(request: &Request<'_>, _: &OpenRuns, _: &Run, _: &dyn Progress) -> Result<Scores> {
    bail!(crate::needs_torch(&format!(
        "attribute --method {}",
        name(request.method)
    )))
}

/// The scores, with what computing them cost.
#[cfg(feature = "torch")]
pub fn compute(
    request: &Request<'_>,
    open: &OpenRuns,
    reference: &Run,
    progress: &dyn Progress,
) -> Result<Scores> {
    let (scores, cost) = measured(|| scoring::scores(request, open, reference, progress));
    let mut scores = scores?;
    let note = serde_json::json!({"seconds": cost.seconds, "peak_bytes": cost.peak_bytes});
    scores.provenance.insert("cost".into(), note);
    Ok(scores)
}
