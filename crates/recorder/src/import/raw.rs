//! Runs as they stand in somebody's logs, and how they become recorded runs.

use super::{ImportReport, wrong};
use crate::error::{Place, Problem, RecorderError, Result};
use crate::record::{LOSS, Losses, StepRecord, check_step};
use crate::recorder::{Recorder, RecorderOptions};
use crate::run_set::RunSet;
use simfluence_core::{Examples, RunInfo, Step};
use std::collections::BTreeMap;
use std::path::Path;

/// One step of a log.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct RawStep {
    pub batch: Vec<u32>,
    pub learning_rate: Option<f32>,
    pub batch_loss: Option<Vec<f32>>,
}

/// A run of a log, its steps counted as the log counts them.
#[derive(Debug, Clone)]
pub(super) struct RawRun {
    pub id: String,
    pub info: RunInfo,
    /// Where its steps come from.
    pub steps_place: Place,
    /// Where its losses come from.
    pub losses_place: Place,
    pub steps: BTreeMap<i64, RawStep>,
    pub losses: BTreeMap<i64, Vec<(u32, f32)>>,
}

/// A run that can be recorded.
struct ReadyRun {
    id: String,
    info: RunInfo,
    initial: Option<Losses>,
    records: Vec<StepRecord>,
}

/// Share of repeated values above which they are mentioned.
const NOTABLE_REPEATS: f64 = 0.2;

/// Checks all runs, then records them; nothing is written if one of them cannot be recorded.
pub(super) fn record_all(
    out: &Path,
    train: &Examples,
    test: &Examples,
    runs: Vec<RawRun>,
    mut warnings: Vec<String>,
) -> Result<ImportReport> {
    let mut ready = Vec::with_capacity(runs.len());
    for run in runs {
        ready.push(prepare(run, train.len(), test, &mut warnings)?);
    }
    let set = RunSet::create_or_open(out, train, test)?;
    let mut ids = Vec::with_capacity(ready.len());
    for run in ready {
        let options = RecorderOptions::default();
        let mut recorder = Recorder::create(&set, &run.id, run.info, options)?;
        if let Some(initial) = &run.initial {
            recorder.log_initial_metric(LOSS, initial)?;
        }
        for record in &run.records {
            recorder.log_step(record)?;
        }
        recorder.finish()?;
        ids.push(run.id);
    }
    ids.sort();
    Ok(ImportReport {
        runs: ids,
        train_examples: train.len(),
        test_examples: test.len(),
        warnings,
    })
}

fn prepare(
    mut run: RawRun,
    train_count: usize,
    test: &Examples,
    warnings: &mut Vec<String>,
) -> Result<ReadyRun> {
    count_from_one(&mut run, warnings);
    check_contiguous(&run)?;
    let mut evaluations = BTreeMap::new();
    for (step, values) in std::mem::take(&mut run.losses) {
        let place = run
            .losses_place
            .at_step(u32::try_from(step).unwrap_or(u32::MAX));
        evaluations.insert(
            step,
            single_values(values, &place, &run.id, step, test, warnings)?,
        );
    }
    let last = run.steps.len() as i64;
    if let Some((&step, _)) = evaluations.range(last + 1..).next() {
        let problem = Problem::EvaluationBeyondEnd {
            step: u32::try_from(step).unwrap_or(u32::MAX),
            steps: last as u32,
        };
        return Err(RecorderError::invalid(run.losses_place, problem));
    }
    if let Some((step, _)) = evaluations.first_key_value().filter(|(step, _)| **step < 0) {
        let message =
            format!("losses at step {step}; steps count from 1, and 0 is before any step");
        return Err(wrong(&run.losses_place, message));
    }
    leave_out_stale(&run.id, &mut evaluations, warnings);
    warn_about_initial(&run.id, &evaluations, test.len(), warnings);
    let mut losses = |step: i64| evaluations.remove(&step).map(|v| as_losses(v, test.len()));
    let initial = losses(0);
    let mut records = Vec::with_capacity(run.steps.len());
    for (number, raw) in run.steps {
        let record = StepRecord {
            batch_loss: raw.batch_loss,
            losses: losses(number),
            ..StepRecord::new(Step::new(raw.batch, raw.learning_rate))
        };
        let problems = check_step(&record, number as u32, train_count);
        if let Some(problem) = problems.into_iter().next() {
            let place = run.steps_place.at_step(number as u32);
            return Err(RecorderError::invalid(place, problem));
        }
        records.push(record);
    }
    Ok(ReadyRun {
        id: run.id,
        info: run.info,
        initial,
        records,
    })
}

/// Logs that count from 0: the batch of log step `s` is that of step `s + 1`. The losses of log
/// step `s` are those after that batch, as in GPTfluence's reader, so they move along; unless there
/// are losses after the last batch, which only a log has that counts finished updates.
fn count_from_one(run: &mut RawRun, warnings: &mut Vec<String>) {
    let (Some((&0, _)), Some((&last, _))) =
        (run.steps.first_key_value(), run.steps.last_key_value())
    else {
        return;
    };
    let id = &run.id;
    run.steps = std::mem::take(&mut run.steps)
        .into_iter()
        .map(|(step, raw)| (step + 1, raw))
        .collect();
    let counts_updates = run
        .losses
        .last_key_value()
        .is_some_and(|(&step, _)| step > last);
    if counts_updates || run.losses.is_empty() {
        warnings.push(format!(
            "run {id}: its batches count from 0; they are now steps 1 to {}, the steps of its losses stay as they are",
            last + 1
        ));
        return;
    }
    run.losses = std::mem::take(&mut run.losses)
        .into_iter()
        .map(|(step, values)| (step + 1, values))
        .collect();
    warnings.push(format!(
        "run {id}: its steps count from 0; batches and losses are now at steps 1 to {}, the losses being those after the batch of the same step",
        last + 1
    ));
}

fn check_contiguous(run: &RawRun) -> Result<()> {
    if run.steps.is_empty() {
        return Err(wrong(
            &run.steps_place,
            "there are no steps for this run, only losses",
        ));
    }
    for (expected, &got) in (1..).zip(run.steps.keys()) {
        if got != expected {
            let message = format!(
                "step {expected} is missing (the next one is step {got}); every step that was trained must be there, with its batch"
            );
            return Err(wrong(&run.steps_place, message));
        }
    }
    Ok(())
}

/// Sorts the values of one evaluation by test id; the same value twice is mentioned, two values are
/// an error.
fn single_values(
    mut values: Vec<(u32, f32)>,
    place: &Place,
    run: &str,
    step: i64,
    test: &Examples,
    warnings: &mut Vec<String>,
) -> Result<Vec<(u32, f32)>> {
    values.sort_by_key(|&(id, _)| id);
    for pair in values.windows(2) {
        if pair[0].0 == pair[1].0 && pair[0].1.to_bits() != pair[1].1.to_bits() {
            let key = test.get(pair[0].0).map_or("", |e| e.key.as_str());
            let message = format!("two different losses, {} and {}", pair[0].1, pair[1].1);
            return Err(wrong(
                &place.at_example(format!("test example {key:?}")),
                message,
            ));
        }
    }
    let before = values.len();
    values.dedup_by_key(|&mut (id, _)| id);
    if values.len() < before {
        warnings.push(format!(
            "run {run}, step {step}: {} losses stand there twice; once is kept",
            before - values.len()
        ));
    }
    Ok(values)
}

/// Leaves out evaluations that only repeat the one before.
///
/// Where evaluation was rarer than logging, logs carry the last losses forward. Such a point is no
/// measurement: if at least two test examples were measured, and every one of them has bit for bit
/// the finite loss of the evaluation before, it is left out; the first of the stretch stays.
fn leave_out_stale(
    run: &str,
    evaluations: &mut BTreeMap<i64, Vec<(u32, f32)>>,
    warnings: &mut Vec<String>,
) {
    let mut stale = Vec::new();
    let (mut pairs, mut repeated) = (0usize, 0usize);
    let mut before: Option<&Vec<(u32, f32)>> = None;
    for (&step, values) in evaluations.iter() {
        if let Some(before) = before {
            let same = |(a, b): &(&(u32, f32), &(u32, f32))| {
                a.0 == b.0 && a.1.to_bits() == b.1.to_bits() && a.1.is_finite()
            };
            let equal = before.iter().zip(values).filter(same).count();
            if equal == values.len() && equal == before.len() && equal >= 2 {
                stale.push(step);
                continue;
            }
            pairs += values.len().min(before.len());
            repeated += equal;
        }
        before = Some(values);
    }
    for step in &stale {
        evaluations.remove(step);
    }
    if let Some(first) = stale.first() {
        warnings.push(format!(
            "run {run}: {} of its points only repeat the losses before them (first at step {first}), as where evaluation is rarer than logging; they are left out as evaluations",
            stale.len()
        ));
    }
    if repeated as f64 > NOTABLE_REPEATS * pairs as f64 {
        warnings.push(format!(
            "run {run}: {repeated} of {pairs} losses are exactly those of the point before, though others at the same step changed; they are kept, but may be rounded or carried forward"
        ));
    }
}

fn warn_about_initial(
    run: &str,
    evaluations: &BTreeMap<i64, Vec<(u32, f32)>>,
    test_count: usize,
    warnings: &mut Vec<String>,
) {
    let what = match evaluations.first_key_value() {
        None => "no losses at all".to_owned(),
        Some((0, values)) if values.len() == test_count => return,
        Some((0, values)) => format!(
            "losses before the first step (L_0) for only {} of {test_count} test examples",
            values.len()
        ),
        Some((step, _)) => {
            format!("no losses before the first step (L_0); its first ones are after step {step}")
        }
    };
    warnings.push(format!(
        "run {run}: it has {what}, and a simulation needs L_0 to start from"
    ));
}

fn as_losses(values: Vec<(u32, f32)>, test_count: usize) -> Losses {
    if values.len() == test_count {
        return Losses::All(values.into_iter().map(|(_, loss)| loss).collect());
    }
    let (test_ids, values) = values.into_iter().unzip();
    Losses::Subset { test_ids, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluations(rows: &[(i64, &[f32])]) -> BTreeMap<i64, Vec<(u32, f32)>> {
        rows.iter()
            .map(|(step, values)| (*step, (0..).zip(values.iter().copied()).collect()))
            .collect()
    }

    #[test]
    fn whole_repeats_are_left_out_and_their_first_stays() {
        let mut all = evaluations(&[
            (0, &[3.0, 4.0]),
            (1, &[3.0, 4.0]),
            (2, &[3.0, 4.0]),
            (3, &[2.0, 4.0]),
            (4, &[2.0, 4.0]),
        ]);
        let mut warnings = Vec::new();
        leave_out_stale("a", &mut all, &mut warnings);
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), vec![0, 3]);
        assert!(warnings[0].contains("3 of its points") && warnings[0].contains("step 1"));
    }

    #[test]
    fn a_diverged_run_is_not_stale() {
        let mut all = evaluations(&[(0, &[f32::NAN, f32::NAN]), (1, &[f32::NAN, f32::NAN])]);
        let mut warnings = Vec::new();
        leave_out_stale("a", &mut all, &mut warnings);
        assert_eq!((all.len(), warnings.len()), (2, 0));
    }

    #[test]
    fn single_values_that_repeat_are_kept_and_mentioned() {
        let mut all = evaluations(&[(0, &[3.0, 4.0]), (1, &[3.0, 3.5]), (2, &[3.0, 3.0])]);
        let mut warnings = Vec::new();
        leave_out_stale("a", &mut all, &mut warnings);
        assert_eq!(all.len(), 3);
        assert!(warnings[0].contains("2 of 4 losses"), "{warnings:?}");
    }
}
