//! Runs that are killed, resumed, or recorded by two at once.

mod common;

use common::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simfluence_core::{Artifact, RunInfo, RunStatus};
use simfluence_recorder::{Losses, Recorder, RecorderOptions, RunSet, check};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Tells the child tests below what to do, and where.
const TASK: &str = "SIMFLUENCE_TEST_TASK";
const FOLDER: &str = "SIMFLUENCE_TEST_FOLDER";

fn child(task: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_process", "--nocapture"])
        .env(TASK, task)
        .env(FOLDER, folder)
        .stdout(Stdio::piped());
    command
}

/// Not a test of its own: what a child process does. Without a task it does nothing.
#[test]
fn child_process() {
    let (Ok(task), Ok(folder)) = (std::env::var(TASK), std::env::var(FOLDER)) else {
        return;
    };
    let set = RunSet::open(Path::new(&folder)).unwrap();
    let mut recorder = match task.as_str() {
        "create" => {
            let mut recorder = recorder(&set, "a");
            recorder.log_initial(&losses(0)).unwrap();
            recorder
        }
        "limited" => {
            let options = RecorderOptions {
                segment_rows: 10_000,
                ..small_segments()
            };
            Recorder::resume_with(&set, "a", 9, options).unwrap()
        }
        step => Recorder::resume_with(&set, "a", step.parse().unwrap(), small_segments()).unwrap(),
    };
    let mut out = std::io::stdout();
    for step in recorder.steps() + 1..=100_000 {
        if let Err(error) = recorder.log_step(&record(step)) {
            writeln!(out, "\nerror {error}").unwrap();
            writeln!(
                out,
                "error {}",
                recorder.log_step(&record(step)).unwrap_err()
            )
            .unwrap();
            return;
        }
        writeln!(out, "\nstep {step}").unwrap();
    }
}

/// When a child is killed.
enum After {
    /// This long after its start.
    Start(Duration),
    /// This long after it recorded its first step.
    FirstStep(Duration),
}

/// Kills a child, gives the last step that it had recorded.
fn kill(mut child: Child, after: After) -> u32 {
    let out = BufReader::new(child.stdout.take().unwrap());
    let (began, first_step) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut last = 0;
        for line in out.lines().map_while(Result::ok) {
            if let Some(step) = line
                .strip_prefix("step ")
                .and_then(|step| step.parse().ok())
            {
                last = step;
                // Nobody listens any more after the first.
                let _ = began.send(());
            }
        }
        last
    });
    match after {
        After::Start(time) => std::thread::sleep(time),
        After::FirstStep(time) => {
            first_step.recv().expect("the child records a step");
            std::thread::sleep(time);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// Fails unless a killed run is whole but for its open segment; gives its steps.
fn assert_killed_cleanly(set: &RunSet, logged: u32) -> Option<u32> {
    let report = check(set.path()).unwrap();
    assert_eq!(report.problems, vec![]);
    let Some(run) = report.runs.first() else {
        assert_eq!(logged, 0);
        return None;
    };
    assert_eq!(run.status, RunStatus::Aborted);
    assert_eq!(
        report.warnings,
        vec![format!("run a: aborted after step {}", run.steps)]
    );
    assert!(
        run.steps + 4 > logged,
        "{} of {logged} steps are left",
        run.steps
    );
    if run.evaluations > 0 {
        assert_recorded(set, "a", run.steps);
    }
    Some(run.steps)
}

#[test]
fn a_recorder_killed_at_any_moment_loses_at_most_the_open_segment() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut most = 0;
    for attempt in 0..50 {
        let folder = tempfile::tempdir().unwrap();
        let set = new_set(folder.path());
        let child = child("create", folder.path()).spawn().unwrap();
        let time = Duration::from_micros(rng.random_range(0..30_000));
        // Every fifth is killed while it may still be starting.
        let after = if attempt % 5 == 0 {
            After::Start(time)
        } else {
            After::FirstStep(time)
        };
        let logged = kill(child, after);
        let Some(steps) = assert_killed_cleanly(&set, logged) else {
            continue;
        };
        most = most.max(steps);
        let at_step = rng.random_range(0..=steps);
        let mut recorder = Recorder::resume_with(&set, "a", at_step, small_segments()).unwrap();
        if !recorder.has_initial() {
            recorder.log_initial(&losses(0)).unwrap();
        }
        for step in at_step + 1..=steps + 6 {
            recorder.log_step(&record(step)).unwrap();
        }
        assert_eq!(recorder.finish().unwrap(), RunStatus::Complete);
        assert_recorded(&set, "a", steps + 6);
        assert!(check(folder.path()).unwrap().is_whole());
    }
    assert!(
        most > 4,
        "no child recorded more than a segment before it was killed"
    );
}

#[test]
fn a_resume_killed_at_any_moment_leaves_a_whole_run() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let set = new_set(folder.path());
        record_run(&set, "a", 41);
        let child = child("6", folder.path()).spawn().unwrap();
        kill(
            child,
            After::Start(Duration::from_micros(rng.random_range(0..30_000))),
        );
        let report = check(folder.path()).unwrap();
        assert_eq!(report.problems, vec![]);
        let steps = report.runs[0].steps;
        assert!(steps >= 6, "{steps}");
        assert_recorded(&set, "a", steps);
        let mut recorder = Recorder::resume(&set, "a", 6).unwrap();
        recorder.log_step(&record(7)).unwrap();
        recorder.finish().unwrap();
        assert_recorded(&set, "a", 7);
    }
}

#[test]
fn a_disk_that_is_full_is_named_and_what_was_recorded_stays() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    record_run(&set, "a", 9);
    // Files of more than 32 KiB cannot be written; the signal that says so is ignored, as the
    // error of a full disk has none either.
    let command = child("limited", folder.path());
    let mut limited = Command::new("sh");
    limited
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"")
        .arg(command.get_program())
        .args(command.get_args())
        .env(TASK, "limited")
        .env(FOLDER, folder.path());
    let output = limited.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut errors = text.lines().filter_map(|line| line.strip_prefix("error "));
    let first = errors.next().expect("the write fails");
    assert!(first.contains("cannot write"), "{first}");
    assert!(first.contains("runs/a/losses-00003.parquet"), "{first}");
    assert!(
        first.contains("what was recorded before is untouched"),
        "{first}"
    );
    let second = errors.next().unwrap();
    assert!(second.contains("after an earlier error"), "{second}");
    assert_killed_cleanly(&set, 9);
    assert_recorded(&set, "a", 9);
    // Nothing half-written is left behind.
    let names = std::fs::read_dir(folder.path().join("runs/a")).unwrap();
    assert!(
        !names
            .into_iter()
            .any(|n| n.unwrap().file_name().to_string_lossy().ends_with(".tmp"))
    );
}

#[test]
fn what_follows_the_resumed_step_is_kept_but_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    recorder.log_initial(&losses(0)).unwrap();
    for step in 1..=10 {
        recorder.log_step(&record(step)).unwrap();
        if step % 5 == 0 {
            recorder
                .save_checkpoint(step, &Artifact::new("checkpoint", 1))
                .unwrap();
        }
    }
    let mut other = record(11);
    other.losses = Some(Losses::All(vec![f32::NAN; TESTS]));
    recorder.log_step(&other).unwrap();
    assert_eq!(recorder.finish().unwrap(), RunStatus::Diverged);

    let mut recorder = Recorder::resume(&set, "a", 5).unwrap();
    assert_eq!(recorder.steps(), 5);
    assert!(recorder.has_initial() && !recorder.diverged());
    assert_eq!(recorder.checkpoints().unwrap().len(), 1);
    recorder.log_step(&record(6)).unwrap();
    assert_eq!(recorder.finish().unwrap(), RunStatus::Complete);
    assert_recorded(&set, "a", 6);
    let attempt = folder.path().join("runs/a/attempt-01");
    assert!(
        attempt
            .join("checkpoints/step-000010.safetensors")
            .is_file()
    );
    let kept = std::fs::read_dir(&attempt).unwrap().count();
    assert!(kept >= 3, "{kept}");
    assert!(check(folder.path()).unwrap().is_whole());

    Recorder::resume(&set, "a", 2).unwrap().finish().unwrap();
    assert!(folder.path().join("runs/a/attempt-02").is_dir());
    assert_recorded(&set, "a", 2);
}

#[test]
fn resuming_at_the_end_moves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    record_run(&set, "a", 6);
    let mut recorder = Recorder::resume(&set, "a", 6).unwrap();
    recorder.log_step(&record(7)).unwrap();
    recorder.finish().unwrap();
    assert_recorded(&set, "a", 7);
    assert!(!folder.path().join("runs/a/attempt-01").exists());
}

#[test]
fn resuming_after_the_last_step_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    record_run(&set, "a", 6);
    let message = Recorder::resume(&set, "a", 7).unwrap_err().to_string();
    assert!(
        message.contains("after step 7: only 6 steps are recorded"),
        "{message}"
    );
    assert_recorded(&set, "a", 6);
    let message = Recorder::resume(&set, "b", 0).unwrap_err().to_string();
    assert!(message.contains("has no run \"b\""), "{message}");
}

#[test]
fn a_second_writer_gets_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let first = recorder(&set, "a");
    let info = RunInfo::new(RunStatus::Recording);
    let second = Recorder::create(&set, "a", info.clone(), RecorderOptions::default());
    let message = second.unwrap_err().to_string();
    assert!(
        message.contains("\"a\" is being recorded by another writer"),
        "{message}"
    );
    let message = Recorder::resume(&set, "a", 0).unwrap_err().to_string();
    assert!(message.contains("another writer"), "{message}");
    let message = set.write_info("a", &info).unwrap_err().to_string();
    assert!(message.contains("another writer"), "{message}");
    first.finish().unwrap();
    let message = Recorder::create(&set, "a", info, RecorderOptions::default()).unwrap_err();
    assert!(message.to_string().contains("exists already"), "{message}");
}

#[test]
fn checkpoints_are_listed_in_order_and_need_their_step() {
    let folder = tempfile::tempdir().unwrap();
    let set = new_set(folder.path());
    let mut recorder = recorder(&set, "a");
    let message = recorder
        .save_checkpoint(1, &Artifact::new("x", 1))
        .unwrap_err()
        .to_string();
    assert!(message.contains("step-000001.safetensors"), "{message}");
    recorder.save_checkpoint(0, &Artifact::new("x", 1)).unwrap();
    recorder.log_step(&record(1)).unwrap();
    recorder.save_checkpoint_bytes(1, b"bytes").unwrap();
    recorder.finish().unwrap();
    let steps: Vec<u32> = set
        .checkpoints("a")
        .unwrap()
        .into_iter()
        .map(|c| c.0)
        .collect();
    assert_eq!(steps, vec![0, 1]);
}
