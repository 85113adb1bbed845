//! The program, for whoever wants to run it or its subcommands inside another process.
//!
//! [`run`] is the whole command line. [`fit`], [`simulate`], [`what_if`] and [`compare`] do the
//! work of the subcommands of these names and give back what those print; they take the same
//! arguments, so that a question asked here means what it means on the command line.

use crate::cli::{Cli, Command, CompareArgs, FitArgs, SimulateArgs, WhatifArgs};
use crate::progress::TerminalProgress;
use crate::{
    attribute, check, compare as comparing, fit as fitting, import, merge, plan, preview, record,
    report, reproduce, save_model, simulate as simulating, whatif,
};
use clap::Parser;
use simfluence_core::{Artifact, Banded, Progress, Trajectory};
use std::ffi::OsString;
use std::io::Write;

/// Why a subcommand has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The arguments are not those of the subcommand; the text says what is wrong with them.
    #[error("{0}")]
    Usage(String),
    /// The input or the work failed.
    #[error("{0}")]
    Failed(String),
}

impl From<anyhow::Error> for ProgramError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(message(&error))
    }
}

/// Runs the program with the arguments of a command line, the name of the program first, and gives
/// its exit status: 0 fine, 1 the input or the run failed, 2 wrong usage, 141 standard output was
/// closed by its reader.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    end_quietly_on_closed_pipe();
    let status = match Cli::try_parse_from(arguments) {
        Ok(cli) => finish(dispatch(&cli.command)),
        Err(error) => {
            // A closed pipe is the only thing that can go wrong here.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(2)
        }
    };
    // Inside another program nobody else empties the buffer of standard output.
    match std::io::stdout().flush() {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => CLOSED_PIPE,
        _ => status,
    }
}

fn dispatch(command: &Command) -> anyhow::Result<()> {
    let progress = TerminalProgress::default();
    match command {
        Command::Plan(args) => plan::run(args, &progress),
        Command::Preview(args) => preview::run(args),
        Command::Record(args) => record::run(args, &progress),
        Command::SaveModel(args) => save_model::run(args),
        Command::Import(args) => import::run(args),
        Command::Merge(args) => merge::run(args, &progress),
        Command::Check(args) => check::run(args),
        Command::Fit(args) => fitting::run(args, &progress),
        Command::Attribute(args) => attribute::run(args, &progress),
        Command::Report(args) => report::run(args),
        Command::Simulate(args) => simulating::run(args, &progress),
        Command::Whatif(args) => whatif::run(args, &progress),
        Command::Compare(args) => comparing::run(args, &progress),
        Command::Reproduce(args) => reproduce::run(args, &progress),
    }
}

fn finish(result: anyhow::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) if is_closed_pipe(&error) => CLOSED_PIPE,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            1
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

/// A simulator that was fitted, as its file.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The file; [`simfluence_simulators::load`] makes a simulator of it.
    pub artifact: Artifact,
    /// How the fit went, as JSON.
    pub report: String,
}

/// `simfluence fit`, without writing the file: `arguments` are its arguments but for `--out`.
///
/// # Errors
/// Wrong arguments; whatever the subcommand fails with.
pub fn fit(arguments: &[String], progress: &dyn Progress) -> Result<Fitted, ProgramError> {
    // The command line asks for a file; nothing is written to it here.
    let out = ["--out".to_owned(), "none".to_owned()];
    let Command::Fit(args) = parse("fit", arguments.iter().chain(&out))? else {
        unreachable!("the first argument names the subcommand");
    };
    Ok(fit_with(&args, progress)?)
}

fn fit_with(args: &FitArgs, progress: &dyn Progress) -> anyhow::Result<Fitted> {
    let (artifact, report) = fitting::fit(args, progress)?;
    Ok(Fitted {
        artifact,
        report: report.json()?,
    })
}

/// Attribution scores that were computed elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenScores {
    /// Name of the method.
    pub method: String,
    /// Scores, row-major `[train × test]`, in the order of the run set's examples; larger =
    /// training on the example lowers the test loss more.
    pub values: Vec<f32>,
    /// Learning rate at which they hold; by default the mean rate of the first training run, or 1
    /// where it has no rates.
    pub reference_learning_rate: Option<f64>,
    /// Whether they are in nats per step whose batch is only the training example.
    pub has_natural_unit: bool,
}

/// Scores from elsewhere as files.
#[derive(Debug, Clone)]
pub struct Additive {
    /// The scores, as `simfluence attribute` writes them.
    pub scores: Artifact,
    /// Their additive simulator, its gain fitted on the training runs.
    pub simulator: Artifact,
    /// The same added to the mean of the training runs.
    pub calibrated: Artifact,
}

/// Makes simulators of attribution scores. `arguments` are a run set and which of its runs are for
/// training, as `fit` takes them.
///
/// # Errors
/// Wrong arguments; another number of scores than training times test examples; a score that is
/// not finite; no training run to fit the gain on.
pub fn additive(
    scores: GivenScores,
    arguments: &[String],
    progress: &dyn Progress,
) -> Result<Additive, ProgramError> {
    let out = ["--out".to_owned(), "none".to_owned()];
    let Command::Fit(args) = parse("fit", arguments.iter().chain(&out))? else {
        unreachable!("the first argument names the subcommand");
    };
    Ok(attribute::given::simulators(scores, &args, progress)?)
}

/// A simulated run.
#[derive(Debug, Clone)]
pub struct Simulated {
    /// Name of the simulator.
    pub simulator: String,
    /// Losses after every step, step 0 first.
    pub trajectory: Trajectory,
    /// The same with its bands, where the simulator has them.
    pub banded: Option<Banded>,
}

/// `simfluence simulate`, without writing or printing.
///
/// # Errors
/// Wrong arguments; whatever the subcommand fails with.
pub fn simulate(arguments: &[String], progress: &dyn Progress) -> Result<Simulated, ProgramError> {
    let Command::Simulate(args) = parse("simulate", arguments)? else {
        unreachable!("the first argument names the subcommand");
    };
    Ok(simulate_with(&args, progress)?)
}

fn simulate_with(args: &SimulateArgs, progress: &dyn Progress) -> anyhow::Result<Simulated> {
    Ok(simulating::simulate(args, progress)?.1)
}

/// The answer to a what-if.
#[derive(Debug, Clone)]
pub struct WhatIf {
    /// What `simfluence whatif --format json` prints.
    pub answer: String,
    /// Test losses of the unedited run, as recorded.
    pub real: Trajectory,
    /// The real losses plus the predicted effect, at every step that was evaluated; where the edit
    /// changes the number of steps, the simulated edited run.
    pub predicted: Trajectory,
    /// Ends of the band around `predicted`, where the simulator has bands.
    pub band: Option<(Trajectory, Trajectory)>,
    /// The simulated unedited run.
    pub simulated_now: Trajectory,
    /// The simulated edited run.
    pub simulated_then: Trajectory,
}

/// `simfluence whatif`, without printing or drawing.
///
/// # Errors
/// Wrong arguments; whatever the subcommand fails with.
pub fn what_if(arguments: &[String], progress: &dyn Progress) -> Result<WhatIf, ProgramError> {
    let Command::Whatif(args) = parse("whatif", arguments)? else {
        unreachable!("the first argument names the subcommand");
    };
    Ok(what_if_with(&args, progress)?)
}

fn what_if_with(args: &WhatifArgs, progress: &dyn Progress) -> anyhow::Result<WhatIf> {
    let answered = whatif::answer(args, progress)?;
    let predicted = answered.predicted()?;
    let band = answered.band()?;
    Ok(WhatIf {
        answer: serde_json::to_string(&answered.answer)?,
        predicted,
        band,
        real: answered.base.trajectory,
        simulated_now: answered.simulated_now,
        simulated_then: answered.simulated_then,
    })
}

/// How methods compare, in the three formats of the subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// As text.
    pub table: String,
    /// As JSON.
    pub json: String,
    /// As CSV.
    pub csv: String,
}

/// `simfluence compare`, without printing or drawing.
///
/// # Errors
/// Wrong arguments, `--learning-curve` and `--plots` among them, which only the program knows;
/// whatever the subcommand fails with.
pub fn compare(arguments: &[String], progress: &dyn Progress) -> Result<Compared, ProgramError> {
    let Command::Compare(args) = parse("compare", arguments)? else {
        unreachable!("the first argument names the subcommand");
    };
    if !args.learning_curve.is_empty() || args.plots.is_some() {
        let text = "--learning-curve and --plots belong to the program: simfluence compare";
        return Err(ProgramError::Usage(text.to_owned()));
    }
    Ok(compare_with(&args, progress)?)
}

fn compare_with(args: &CompareArgs, progress: &dyn Progress) -> anyhow::Result<Compared> {
    comparing::judge(args, progress)?.formats()
}

fn parse<'a>(
    subcommand: &str,
    arguments: impl IntoIterator<Item = &'a String>,
) -> Result<Command, ProgramError> {
    let head = ["simfluence".to_owned(), subcommand.to_owned()];
    let all = head.into_iter().chain(arguments.into_iter().cloned());
    match Cli::try_parse_from(all) {
        Ok(cli) => Ok(cli.command),
        Err(error) => Err(ProgramError::Usage(error.render().to_string())),
    }
}

/// An error with its causes; a cause that the message before it already tells is not repeated.
pub(crate) fn message(error: &anyhow::Error) -> String {
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
pub(crate) fn needs_torch(command: &str) -> String {
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
    use super::*;
    use simfluence_core::NoProgress;

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

    #[test]
    fn wrong_arguments_are_told_from_failed_work() {
        let wrong = fit(&["runs".into(), "--methode".into()], &NoProgress).unwrap_err();
        assert!(matches!(&wrong, ProgramError::Usage(text) if text.contains("--method")));
        let failed = fit(&["no-such-folder".into()], &NoProgress).unwrap_err();
        assert!(matches!(&failed, ProgramError::Failed(text) if text.contains("no-such-folder")));
    }
}
