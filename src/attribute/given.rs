//! Attribution scores that were computed elsewhere, as simulators.

use crate::cli::FitArgs;
use crate::program::{Additive, GivenScores};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use simfluence_core::{Fit, Progress, Scores};
use simfluence_simulators::additive::{FitAdditive, FitCalibrated, Gain};
use std::collections::BTreeMap;

/// The simulators of scores, their gains fitted on the training runs.
pub fn simulators(given: GivenScores, args: &FitArgs, progress: &dyn Progress) -> Result<Additive> {
    let open = OpenRuns::read(&args.run_set, progress)?;
    let split = open.split(&args.split)?;
    let (train, test) = (open.set.train_examples(), open.set.test_examples());
    if given.values.len() != train.len() * test.len() {
        bail!(
            "{}: {} scores, but {} has {} training and {} test examples; give a [train × test] array in the order of its examples",
            given.method,
            given.values.len(),
            args.run_set.display(),
            train.len(),
            test.len()
        );
    }
    let first = split.train.first().context("there is no training run")?;
    let rate = given.reference_learning_rate;
    let rate = rate.or_else(|| first.curriculum.mean_learning_rate());
    let training_runs: Vec<&str> = split.train.iter().map(|run| run.id.as_str()).collect();
    let scores = Scores {
        method: given.method,
        train_keys: train.keys(),
        test_keys: test.keys(),
        reference_learning_rate: rate.unwrap_or(1.0),
        has_natural_unit: given.has_natural_unit,
        values: given.values,
        layers: Vec::new(),
        provenance: BTreeMap::from([("training_runs".to_owned(), training_runs.into())]),
    };
    scores.check()?;
    let fitted = FitAdditive {
        scores: scores.clone(),
        gain: Gain::Fitted,
    };
    let calibrated = FitCalibrated {
        scores: scores.clone(),
        gain: Gain::Fitted,
    };
    let count = open.train_count();
    Ok(Additive {
        simulator: (fitted.fit(&split.train, count, progress)?).to_artifact(),
        calibrated: (calibrated.fit(&split.train, count, progress)?).to_artifact(),
        scores: scores.to_artifact(),
    })
}
