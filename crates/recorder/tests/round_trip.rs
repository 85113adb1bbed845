//! What was recorded comes back bit for bit.

mod common;

use common::*;
use proptest::prelude::*;
use simfluence_core::{
    Edit, EditKind, NoProgress, Optimizer, RunDesign, RunInfo, RunStatus, Schedule, Split, Step,
};
use simfluence_recorder::{LOSS, Losses, Recorder, RecorderOptions, RunSet, StepRecord};
use std::time::Duration;

/// Any 32 bits as a float, NaN payloads included.
fn bits() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

fn step_record() -> impl Strategy<Value = StepRecord> {
    let batch = prop::collection::vec(0..TRAIN as u32, 1..6);
    batch.prop_flat_map(|batch| {
        let length = batch.len();
        let weights = prop::option::of(Just(vec![1.0 / length as f32; length]));
        let rate = prop::option::of(0.0f32..1.0);
        let micro = prop::option::of(prop::collection::vec(any::<u16>(), length));
        let batch_loss = prop::option::of(prop::collection::vec(bits(), length));
        let all = prop::collection::vec(bits(), TESTS).prop_map(Losses::All);
        let subset = (0..TESTS as u32, bits()).prop_map(|(id, value)| Losses::Subset {
            test_ids: vec![id],
            values: vec![value],
        });
        let none = Just(Losses::Subset {
            test_ids: vec![],
            values: vec![],
        });
        let losses = prop::option::of(prop_oneof![4 => all, 2 => subset, 1 => none]);
        let metric = prop::collection::vec(bits(), TESTS);
        let metrics = prop::option::of(metric);
        let norm = prop::option::of(bits());
        (weights, rate, micro, batch_loss, losses, metrics, norm).prop_map(
            move |(weights, learning_rate, micro, batch_loss, losses, metrics, grad_norm)| {
                StepRecord {
                    number: None,
                    step: Step {
                        batch: batch.clone(),
                        weights,
                        learning_rate,
                    },
                    micro,
                    batch_loss,
                    grad_norm,
                    losses,
                    metrics: metrics
                        .map(|m| ("accuracy".to_owned(), Losses::All(m)))
                        .into_iter()
                        .collect(),
                }
            },
        )
    })
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_bits_and_any_batch_come_back(
        initial in prop::option::of(prop::collection::vec(bits(), TESTS)),
        records in prop::collection::vec(step_record(), 0..14),
        rows in 1usize..6,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let set = new_set(folder.path());
        let options = RecorderOptions { segment_rows: rows, ..RecorderOptions::default() };
        let info = RunInfo::new(RunStatus::Recording);
        let mut recorder = Recorder::create(&set, "a", info, options).unwrap();
        if let Some(initial) = &initial {
            recorder.log_initial(initial).unwrap();
        }
        for record in &records {
            recorder.log_step(record).unwrap();
        }
        let status = recorder.finish().unwrap();

        let run = set.read_run("a").unwrap();
        prop_assert_eq!(run.info.status, status);
        let back = set.read_step_records("a").unwrap();
        prop_assert_eq!(back.len(), records.len());
        for (t, (back, record)) in back.iter().zip(&records).enumerate() {
            prop_assert_eq!(back.number, Some(t as u32 + 1));
            prop_assert_eq!(&back.step.batch, &record.step.batch);
            prop_assert_eq!(&back.step.weights, &record.step.weights);
            prop_assert_eq!(back.step.learning_rate, record.step.learning_rate);
            prop_assert_eq!(&back.micro, &record.micro);
            prop_assert_eq!(back.grad_norm.map(f32::to_bits), record.grad_norm.map(f32::to_bits));
            prop_assert_eq!(
                back.batch_loss.as_deref().map(bits_of),
                record.batch_loss.as_deref().map(bits_of)
            );
        }
        for metric in [LOSS, "accuracy"] {
            let trajectory = set.read_metric("a", metric).unwrap();
            let mut expected: Vec<(u32, Losses)> = Vec::new();
            if metric == LOSS && let Some(initial) = &initial {
                expected.push((0, Losses::All(initial.clone())));
            }
            for (t, record) in (1..).zip(&records) {
                let found = record.evaluations().find(|(name, _)| *name == metric);
                expected.extend(found.map(|(_, losses)| (t, losses.clone())));
            }
            let steps: Vec<u32> = expected.iter().map(|(t, _)| *t).collect();
            prop_assert_eq!(trajectory.steps(), steps);
            for (index, (_, losses)) in expected.iter().enumerate() {
                for test in 0..TESTS {
                    let value = match losses.test_ids() {
                        None => Some(losses.values()[test]),
                        Some(ids) => ids.iter().position(|&id| id as usize == test).map(|k| losses.values()[k]),
                    };
                    prop_assert_eq!(trajectory.get(index, test).map(f32::to_bits), value.map(f32::to_bits));
                }
            }
        }
    }
}

#[test]
fn every_setting_of_a_run_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut info = RunInfo::new(RunStatus::Recording);
    info.seed = Some(u64::MAX);
    info.base_model = Some("abc".into());
    info.optimizer = Some(Optimizer::Adamw {
        beta1: 0.9,
        beta2: 0.1 + 0.2,
        eps: 1e-8,
        weight_decay: 0.01,
    });
    info.schedule = Some(Schedule::default());
    info.batch_size = Some(4);
    info.planned_steps = Some(96);
    info.trainable_parameters = Some(1 << 40);
    info.design = RunDesign {
        design: "suite".into(),
        split: Some(Split::HeldOut),
        edit: Some(Edit {
            base_run: "b".into(),
            kind: EditKind::KeptOnly,
            label: "only x".into(),
        }),
    };
    info.software.insert("libtorch".into(), "2.13.0".into());
    info.extra
        .insert("note".into(), serde_json::json!({"a": [1, 2.5]}));
    let recorder = Recorder::create(&set, "a", info.clone(), small_segments()).unwrap();
    recorder.finish().unwrap();
    info.status = RunStatus::Complete;
    assert_eq!(set.read_info("a").unwrap(), info);
    assert_eq!(set.read_run("a").unwrap().info, info);
    assert_eq!(set.base_models().unwrap(), vec!["abc"]);

    info.extra.clear();
    set.write_info("a", &info).unwrap();
    assert_eq!(set.read_run("a").unwrap().info, info);
}

#[test]
fn several_runs_come_back_in_the_order_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    for (id, steps) in [("b", 3), ("a", 9), ("c", 0)] {
        record_run(&set, id, steps);
        assert_recorded(&set, id, steps);
    }
    assert_eq!(set.run_ids().unwrap(), vec!["a", "b", "c"]);
    let runs = set.read_runs(&["c", "a", "b"], &NoProgress).unwrap();
    let lengths: Vec<usize> = runs.iter().map(|r| r.curriculum.len()).collect();
    assert_eq!(lengths, vec![0, 9, 3]);
}

#[test]
fn a_run_set_opens_again_with_the_same_examples_only() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    record_run(&set, "a", 2);
    let again = new_set(folder.path());
    assert_eq!(again.run_ids().unwrap(), vec!["a"]);
    let (train, test) = (examples("train", TRAIN), examples("other", TESTS));
    let message = RunSet::create_or_open(folder.path(), &train, &test)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("its test examples are not the given ones"),
        "{message}"
    );
    let message = RunSet::create(folder.path(), &train, &test)
        .unwrap_err()
        .to_string();
    assert!(message.contains("is a run set already"), "{message}");
}

#[test]
fn a_segment_closes_at_its_limits_of_rows_bytes_and_age() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let none = RecorderOptions {
        segment_rows: usize::MAX,
        segment_bytes: usize::MAX,
        segment_age: Duration::MAX,
    };
    let limits = [
        ("none", none, 0),
        (
            "rows",
            RecorderOptions {
                segment_rows: 2,
                ..none
            },
            2,
        ),
        (
            "bytes",
            RecorderOptions {
                segment_bytes: 1,
                ..none
            },
            4,
        ),
        (
            "age",
            RecorderOptions {
                segment_age: Duration::ZERO,
                ..none
            },
            4,
        ),
    ];
    for (id, options, expected) in limits {
        let info = RunInfo::new(RunStatus::Recording);
        let mut recorder = Recorder::create(&set, id, info, options).unwrap();
        for step in 1..=4 {
            recorder.log_step(&record(step)).unwrap();
        }
        let names = std::fs::read_dir(folder.path().join("runs").join(id)).unwrap();
        let segments = names
            .filter(|n| {
                n.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("steps-")
            })
            .count();
        assert_eq!(segments, expected, "{id}");
        recorder.finish().unwrap();
        assert_eq!(set.read_run(id).unwrap().curriculum.len(), 4);
    }
}

#[test]
fn a_nan_loss_is_recorded_and_marks_the_run_diverged() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    recorder.log_initial(&losses(0)).unwrap();
    let mut broken = record(1);
    broken.losses = Some(Losses::All(vec![1.0, f32::NAN, f32::INFINITY]));
    recorder.log_step(&broken).unwrap();
    assert_eq!(recorder.finish().unwrap(), RunStatus::Diverged);
    let run = set.read_run("a").unwrap();
    assert_eq!(run.info.status, RunStatus::Diverged);
    assert!(run.trajectory.at_step(1).unwrap()[1].is_nan());
    let report = simfluence_recorder::check(folder.path()).unwrap();
    assert!(report.is_whole(), "{:?}", report.problems);
    assert!(
        report.warnings[0].contains("diverged"),
        "{:?}",
        report.warnings
    );
}

#[test]
fn a_recorder_that_is_dropped_leaves_an_aborted_run() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    recorder.log_initial(&losses(0)).unwrap();
    recorder.log_step(&record(1)).unwrap();
    assert_eq!(set.read_info("a").unwrap().status, RunStatus::Recording);
    drop(recorder);
    assert_eq!(set.read_info("a").unwrap().status, RunStatus::Aborted);
    assert_recorded(&set, "a", 1);
}

#[test]
fn a_run_that_is_being_recorded_reads_as_far_as_its_closed_segments() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    recorder.log_initial(&losses(0)).unwrap();
    for step in 1..=5 {
        recorder.log_step(&record(step)).unwrap();
    }
    let run = set.read_run("a").unwrap();
    assert_eq!(run.info.status, RunStatus::Recording);
    assert_recorded(&set, "a", 3);
    recorder.finish().unwrap();
    assert_recorded(&set, "a", 5);
}

#[test]
fn the_report_of_a_check_counts_and_serialises() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    record_run(&set, "a", 5);
    record_run(&set, "b", 2);
    let mut info = set.read_info("b").unwrap();
    info.design.design = "diversified".into();
    info.design.split = Some(Split::Train);
    info.optimizer = Some(Optimizer::default());
    set.write_info("b", &info).unwrap();
    let report = simfluence_recorder::check(folder.path()).unwrap();
    assert!(
        report.is_whole() && report.warnings.is_empty(),
        "{report:?}"
    );
    assert_eq!(
        (report.train_examples, report.test_examples),
        (TRAIN, TESTS)
    );
    assert_eq!(report.train_datasets, vec![("numbers".to_owned(), TRAIN)]);
    assert_eq!(report.by_status["complete"], 2);
    assert_eq!(report.by_design["diversified"], 1);
    assert_eq!(report.by_split["train"], 1);
    assert_eq!(report.by_optimizer["adamw"], 1);
    assert_eq!(report.steps.map(|s| (s.min, s.max)), Some((2, 5)));
    assert_eq!(report.runs[0].evaluations, 6);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["runs"][1]["id"], "b");
    assert_eq!(json["learning_rate"]["max"], 1e-3f32);
}
