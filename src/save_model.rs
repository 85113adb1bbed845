//! `simfluence save-model`: a recorded checkpoint as a folder that transformers or PEFT reads.

use crate::cli::SaveModelArgs;
use crate::kept_models::{TOKENIZER_FILES, base_model_path, weights_in};
use anyhow::{Context, Result, bail};
use simfluence_models::{Tokenizer, Trainable, hugging_face};
use simfluence_recorder::{RunSet, read_artifact, write_atomically};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Runs the subcommand.
pub fn run(args: &SaveModelArgs) -> Result<()> {
    let set = RunSet::open(&args.run_set)?;
    if !set.has_run(&args.run) {
        let known = set.run_ids()?.join(", ");
        bail!("there is no run {:?}; the runs are: {known}", args.run);
    }
    let out = &args.out;
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: the folder is not empty", out.display());
    }
    let (step, path) = checkpoint_at(&set, &args.run, args.step)?;
    let weights = weights_in(&set, &path)?;
    let in_file = || format!("{}", path.display());
    if let Trainable::Lora(_) | Trainable::Ia3(_) = weights.architecture().trainable() {
        hugging_face::save_adapter(&weights, out).with_context(in_file)?;
    } else {
        hugging_face::save(&weights, out).with_context(in_file)?;
        let base = read_artifact(&base_model_path(&set))?;
        let tokenizer: Tokenizer = base.json("tokenizer")?;
        if let Some(json) = tokenizer.json() {
            write_atomically(&out.join(hugging_face::TOKENIZER), json.as_bytes())?;
        }
        // Run sets of earlier versions did not keep them.
        if base.metadata.contains_key(TOKENIZER_FILES) {
            let files: BTreeMap<String, String> = base.json(TOKENIZER_FILES)?;
            for (name, text) in files {
                write_atomically(&out.join(name), text.as_bytes())?;
            }
        }
    }
    println!("{}: run {} after step {step}", out.display(), args.run);
    Ok(())
}

/// The checkpoint after a step; without one the last.
fn checkpoint_at(set: &RunSet, run: &str, step: Option<u32>) -> Result<(u32, PathBuf)> {
    let all = set.checkpoints(run)?;
    let steps: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
    let found = match step {
        Some(step) => all.into_iter().find(|(s, _)| *s == step),
        None => all.into_iter().last(),
    };
    match (found, step) {
        (Some(found), _) => Ok(found),
        (None, Some(step)) => bail!(
            "run {run} has no checkpoint after step {step}; there are some after: {}",
            steps.join(", ")
        ),
        (None, None) => bail!(
            "run {run} has no checkpoint; record it with training.checkpoint_every in the task file"
        ),
    }
}
