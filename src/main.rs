//! The simfluence program.

mod attribute;
mod check;
mod cli;
mod compare;
mod cost;
mod edits;
#[cfg(feature = "torch")]
mod environment;
mod fit;
mod import;
mod kept_models;
mod learning_curve;
mod next_runs;
mod plan;
mod preview;
mod progress;
mod record;
mod report;
mod reproduce;
mod runs;
mod save_model;
mod simulate;
#[cfg(feature = "torch")]
mod train;
mod truth;
mod whatif;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "torch")]
    environment::let_threads_sleep();
    end_quietly_on_closed_pipe();
    let cli = Cli::parse();
    let progress = progress::TerminalProgress::default();
    let result = match &cli.command {
        Command::Plan(args) => plan::run(args, &progress),
        Command::Preview(args) => preview::run(args),
        Command::Record(args) => record::run(args, &progress),
        Command::SaveModel(args) => save_model::run(args),
        Command::Import(args) => import::run(args),
        Command::Check(args) => check::run(args),
        Command::Fit(args) => fit::run(args, &progress),
        Command::Attribute(args) => attribute::run(args, &progress),
        Command::Report(args) => report::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Whatif(args) => whatif::run(args, &progress),
        Command::Compare(args) => compare::run(args, &progress),
        Command::Reproduce(args) => reproduce::run(args, &progress),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::from(CLOSED_PIPE),
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}

/// Exit status of programs that SIGPIPE ends, as shells report it.
const CLOSED_PIPE: u8 = 141;

/// `simfluence … | head` closes the pipe early. `println!` panics then; that is no fault of ours.
fn end_quietly_on_closed_pipe() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        if message.is_some_and(|m| m.contains("stdout") && m.contains("Broken pipe")) {
            std::process::exit(i32::from(CLOSED_PIPE));
        }
        report(panic);
    }));
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// An error with its causes; a cause that the message before it already tells is not repeated.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}

/// What a command that trains says in a build that cannot.
#[cfg(not(feature = "torch"))]
fn needs_torch(command: &str) -> String {
    format!(
        "`simfluence {command}` trains a model or takes its gradients, and this build has no LibTorch. \
         Build one that has: in a checkout `make build`, or `cargo build --release --features torch` \
         with LIBTORCH set to a LibTorch {TORCH_VERSION} (or LIBTORCH_USE_PYTORCH=1 for the torch \
         {TORCH_VERSION} of your python3)"
    )
}

/// The LibTorch that the bindings expect.
#[cfg(not(feature = "torch"))]
const TORCH_VERSION: &str = "2.13.0";

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn a_cause_is_told_once() {
        let inner = anyhow::anyhow!("the disk is full");
        assert_eq!(
            message(&inner.context("run a: the disk is full")),
            "run a: the disk is full"
        );
        let inner = anyhow::anyhow!("the disk is full");
        assert_eq!(message(&inner.context("run a")), "run a: the disk is full");
    }
}
