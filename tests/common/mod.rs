//! What the end-to-end tests share: the program.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in `folder`.
pub fn simfluence(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simfluence"))
        .args(args)
        .current_dir(folder)
        .output()
        .expect("the program can be started")
}

/// Runs the program, which must succeed, and gives what it printed.
pub fn succeed(folder: &Path, args: &[&str]) -> String {
    let output = simfluence(folder, args);
    assert!(
        output.status.success(),
        "simfluence {} failed:\n{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the output is text")
}

/// Runs the program, which must fail with exit code 1, and gives its error message.
pub fn fail(folder: &Path, args: &[&str]) -> String {
    let output = simfluence(folder, args);
    assert_eq!(
        output.status.code(),
        Some(1),
        "simfluence {}",
        args.join(" ")
    );
    String::from_utf8(output.stderr).expect("the error is text")
}
