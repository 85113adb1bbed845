//! Run sets recorded in different places become one.

use simfluence_core::{Artifact, Example, Examples, NoProgress, RunInfo, RunStatus, Step};
use simfluence_recorder::{
    LOSS, Losses, Recorder, RecorderError, RecorderOptions, RunSet, StepRecord, check, merge,
};
use std::path::{Path, PathBuf};

fn examples(keys: &[&str]) -> Examples {
    Examples::new(keys.iter().map(|key| Example::new(*key, "all")).collect()).unwrap()
}

fn state() -> Artifact {
    Artifact::new("checkpoint", 1)
}

fn recorded(path: &Path, train: &[&str], test: &[&str], run: &str) -> PathBuf {
    let set = RunSet::create(path, &examples(train), &examples(test)).unwrap();
    let info = RunInfo::new(RunStatus::Recording);
    let mut recorder = Recorder::create(&set, run, info, RecorderOptions::default()).unwrap();
    let losses = |start: f32| {
        (0..test.len())
            .map(|j| start + j as f32)
            .collect::<Vec<_>>()
    };
    recorder.log_initial(&losses(10.0)).unwrap();
    let batch = vec![0, train.len() as u32 - 1];
    let second = StepRecord {
        losses: Some(Losses::All(losses(1.0))),
        metrics: vec![("accuracy".into(), Losses::All(losses(0.0)))],
        batch_loss: Some(vec![2.0, 3.0]),
        ..StepRecord::new(Step::new(batch.clone(), Some(0.5)))
    };
    recorder
        .log_step(&StepRecord::new(Step::new(batch, Some(0.25))))
        .unwrap();
    recorder.log_step(&second).unwrap();
    recorder.save_checkpoint(2, &state()).unwrap();
    recorder.finish().unwrap();
    path.to_owned()
}

#[test]
fn runs_keep_what_was_recorded_under_the_new_ids() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sources = [
        recorded(&at("one"), &["a", "b"], &["x", "y"], "first"),
        recorded(&at("two"), &["b", "c"], &["y", "z"], "second"),
    ];
    assert_eq!(
        merge(&sources, &at("all"), &NoProgress).unwrap(),
        ["first", "second"]
    );
    assert!(check(&at("all")).unwrap().is_whole());
    let set = RunSet::open(&at("all")).unwrap();
    assert_eq!(set.train_examples().keys(), ["a", "b", "c"]);
    assert_eq!(set.test_examples().keys(), ["x", "y", "z"]);
    let second = set.read_run("second").unwrap();
    assert_eq!(second.info.status, RunStatus::Complete);
    assert_eq!(second.curriculum.steps()[1].batch, [1, 2]);
    assert_eq!(second.batch_losses[1], Some(vec![2.0, 3.0]));
    let row = |metric: &str, index: usize| -> Vec<Option<f32>> {
        let trajectory = set.read_metric("second", metric).unwrap();
        (0..3).map(|test| trajectory.get(index, test)).collect()
    };
    assert_eq!(row(LOSS, 0), [None, Some(10.0), Some(11.0)]);
    assert_eq!(row(LOSS, 1), [None, Some(1.0), Some(2.0)]);
    assert_eq!(row("accuracy", 0), [None, Some(0.0), Some(1.0)]);
    let checkpoints = set.checkpoints("second").unwrap();
    let kept = std::fs::read(&checkpoints[0].1).unwrap();
    assert_eq!(Artifact::from_bytes(&kept).unwrap(), state());
}

#[test]
fn a_run_set_merged_alone_holds_the_same_runs() {
    let folder = tempfile::tempdir().unwrap();
    let source = recorded(&folder.path().join("one"), &["a", "b"], &["x"], "run");
    let target = folder.path().join("copy");
    merge(std::slice::from_ref(&source), &target, &NoProgress).unwrap();
    let (before, after) = (
        RunSet::open(&source).unwrap(),
        RunSet::open(&target).unwrap(),
    );
    assert_eq!(
        before.read_run("run").unwrap(),
        after.read_run("run").unwrap()
    );
    assert_eq!(before.fingerprints(), after.fingerprints());
}

#[test]
fn the_same_key_with_other_content_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = recorded(&at("one"), &["a"], &["x"], "first");
    let other = Examples::new(vec![Example::new("a", "another dataset")]).unwrap();
    RunSet::create(&at("two"), &other, &examples(&["x"])).unwrap();
    let error = merge(&[one, at("two")], &at("all"), &NoProgress).unwrap_err();
    assert!(matches!(&error, RecorderError::ConflictingExample { key, .. } if key == "a"));
    assert!(!at("all").exists());
}

#[test]
fn two_runs_of_one_id_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sources = [
        recorded(&at("one"), &["a"], &["x"], "run"),
        recorded(&at("two"), &["a"], &["x"], "run"),
    ];
    let error = merge(&sources, &at("all"), &NoProgress).unwrap_err();
    assert!(matches!(&error, RecorderError::RunTwice { run, .. } if run == "run"));
}

#[test]
fn nothing_to_merge_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = merge(&[], &folder.path().join("all"), &NoProgress).unwrap_err();
    assert!(matches!(error, RecorderError::NothingToMerge));
}
