//! `simfluence fit`: run set → simulator file.

use crate::cli::{
    DatasetsArg, DynamicsArgs, FitArgs, FitMethod, Format, ObjectiveArg, ShrinkTo, SolverArg,
};
use crate::linearise::{self, Where};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use simfluence_core::{Artifact, Fit, Progress, Run};
use simfluence_recorder::{read_features, write_artifact};
use simfluence_simulators::baselines::FitMeanRun;
use simfluence_simulators::linearised::{LinearisedReport, LinearisedSimulator};
use simfluence_simulators::optimizer_dynamics::{
    Ingredient, LearnedDatasets, OptimizerDynamicsParams, OptimizerDynamicsReport,
    OptimizerDynamicsSimulator, State,
};
use simfluence_simulators::simfluence::{
    FitReport, Lambda, Objective, Penalty, PenaltySearch, Shrinkage, SimfluenceParams,
    SimfluenceSimulator, Solver, Variant,
};

/// A Simfluence simulator with the default settings: shrunk to 1, strengths by leave-run-out
/// rollouts.
pub fn with_defaults(
    variant: Variant,
    open: &OpenRuns,
    train: &[&Run],
    progress: &dyn Progress,
) -> Result<SimfluenceSimulator> {
    let params = SimfluenceParams::new().variant(variant).check()?;
    Ok(params.fit(train, open.train_count(), progress)?)
}

/// The dataset of each training example that optimizer-dynamics is to go by, counted from 0.
pub fn datasets(
    open: &OpenRuns,
    train: &[&Run],
    which: &DynamicsArgs,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Vec<u32>> {
    let (names, groups) = open.set.train_examples().groups("dataset");
    let has_batch_losses = || {
        train
            .iter()
            .any(|run| run.batch_losses.iter().any(Option::is_some))
    };
    let learn = match which.datasets {
        DatasetsArg::Auto => names.len() < 2 && has_batch_losses(),
        DatasetsArg::Given => false,
        DatasetsArg::Learned => true,
    };
    if !learn {
        if which.features.is_some() {
            bail!("--features is for learned datasets: add --datasets learned");
        }
        return Ok(groups.into_iter().map(|g| g as u32).collect());
    }
    let mut learned = LearnedDatasets::learn(train, open.train_count(), seed, progress)?;
    if let Some(path) = &which.features {
        learned.place(&read_features(path, &open.set.train_examples().keys())?);
    }
    tell(open, &learned, &names, &groups);
    Ok(learned.groups)
}

/// How many examples are named at most that are learned with another dataset than their own.
const NAMED: usize = 20;

/// What was learned, and which examples are not learned with most of the dataset that they are
/// given in.
fn tell(open: &OpenRuns, learned: &LearnedDatasets, names: &[String], given: &[usize]) {
    let mut sizes = vec![0_usize; learned.count()];
    let mut together = vec![vec![0_usize; learned.count()]; names.len()];
    for (&group, &given) in learned.groups.iter().zip(given) {
        sizes[group as usize] += 1;
        together[given][group as usize] += 1;
    }
    let list = |parts: Vec<String>| parts.join(", ");
    eprintln!(
        "datasets learned from batch losses: {} (training examples: {}); error of left-out residuals {:.4} with one dataset, {:.4} with these",
        sizes.len(),
        list(sizes.iter().map(usize::to_string).collect()),
        learned.errors[0],
        learned.errors[sizes.len() - 1],
    );
    if !learned.unobserved.is_empty() {
        eprintln!(
            "note: {} training examples have no recorded batch loss; they count to the largest dataset (give --features to place them)",
            learned.unobserved.len()
        );
    }
    let most: Vec<usize> = (together.iter())
        .map(|counts| {
            (0..counts.len())
                .rev()
                .max_by_key(|&g| counts[g])
                .unwrap_or(0)
        })
        .collect();
    let keys = open.set.train_examples().keys();
    let apart: Vec<String> = (0..keys.len())
        .filter(|&i| names.len() > 1 && learned.groups[i] as usize != most[given[i]])
        .filter(|&i| learned.unobserved.binary_search(&(i as u32)).is_err())
        .map(|i| keys[i].clone())
        .collect();
    if !apart.is_empty() {
        let shown = apart.len().min(NAMED);
        let more = if shown < apart.len() { ", …" } else { "" };
        eprintln!(
            "note: {} of {} training examples are learned and forgotten with another dataset than most of the one they are given in: {}{more}",
            apart.len(),
            keys.len(),
            list(apart[..shown].to_vec()),
        );
    }
}

/// Optimiser dynamics with the default settings, with the linearised model where it is given, and
/// without one ingredient where asked; `groups[i]` is the dataset of training example `i`.
pub fn optimizer_dynamics(
    groups: &[u32],
    train: &[&Run],
    linearised: Option<LinearisedSimulator>,
    seed: u64,
    without: Option<Ingredient>,
    progress: &dyn Progress,
) -> Result<OptimizerDynamicsSimulator> {
    let mut params = OptimizerDynamicsParams::new(groups.to_vec()).seed(seed);
    if let Some(ingredient) = without {
        params = params.without(ingredient);
    }
    let mut params = params.check()?;
    if let Some(simulator) = linearised {
        params = params.with_linearised(simulator);
    }
    Ok(params.fit(train, groups.len(), progress)?)
}

/// How a fit went.
pub enum Report {
    /// The mean of this many training runs.
    MeanRun(usize),
    /// Optimiser dynamics.
    Dynamics(Box<OptimizerDynamicsReport>),
    /// The linearised model.
    Linearised(LinearisedReport),
    /// One of the variants of Simfluence.
    Simfluence(Box<FitReport>),
}

impl Report {
    /// The report as JSON.
    pub fn json(&self) -> Result<String> {
        Ok(match self {
            Self::MeanRun(runs) => serde_json::json!({ "training_runs": runs }).to_string(),
            Self::Dynamics(report) => serde_json::to_string_pretty(report)?,
            Self::Linearised(report) => serde_json::to_string_pretty(report)?,
            Self::Simfluence(report) => serde_json::to_string_pretty(report)?,
        })
    }
}

/// Runs the subcommand.
pub fn run(args: &FitArgs, progress: &dyn Progress) -> Result<()> {
    let (artifact, report) = fit(args, progress)?;
    write_artifact(&args.out, &artifact)?;
    match &report {
        Report::MeanRun(runs) => {
            println!("{}: mean of {runs} training runs", args.out.display());
            Ok(())
        }
        Report::Dynamics(report) => report_dynamics(args, report),
        Report::Linearised(report) => report_linearised(args, report),
        Report::Simfluence(report) => report_simfluence(args, report),
    }
}

/// Fits what the arguments ask for; `--out` is not looked at.
pub fn fit(args: &FitArgs, progress: &dyn Progress) -> Result<(Artifact, Report)> {
    if args.method != FitMethod::OptimizerDynamics {
        args.dynamics.refuse("--method is another")?;
    }
    let open = OpenRuns::read(&args.run_set, progress)?;
    let split = open.split(&args.split)?;
    let (train_keys, test_keys) = (
        open.set.train_examples().keys(),
        open.set.test_examples().keys(),
    );
    let at = Where {
        device: &args.device,
        memory: args.memory_limit,
    };
    let variant = match args.method {
        FitMethod::MeanRun => {
            let mean_run = FitMeanRun.fit(&split.train, open.train_count(), progress)?;
            let artifact = mean_run.to_artifact(&train_keys, &test_keys)?;
            return Ok((artifact, Report::MeanRun(split.train.len())));
        }
        FitMethod::OptimizerDynamics => {
            let (train, seed) = (&split.train, args.split.seed);
            let groups = datasets(&open, train, &args.dynamics, seed, progress)?;
            let member = linearise::member(&open, train, &args.dynamics, at, progress)?;
            let simulator = optimizer_dynamics(&groups, train, member, seed, None, progress)?;
            let artifact = simulator.to_artifact(&train_keys, &test_keys)?;
            let report = Report::Dynamics(Box::new(simulator.report().clone()));
            return Ok((artifact, report));
        }
        FitMethod::Linearised => {
            let simulator = linearise::fit(&open, &split.train, at, progress)?;
            let artifact = simulator.to_artifact(&train_keys, &test_keys)?;
            return Ok((artifact, Report::Linearised(simulator.report().clone())));
        }
        FitMethod::SimfluenceLinear => Variant::Linear,
        FitMethod::SimfluenceAdditive => Variant::Additive,
        FitMethod::SimfluenceMultiplicative => Variant::Multiplicative,
    };
    let params = params(args, variant)?.check()?;
    let simulator = params.fit(&split.train, open.train_count(), progress)?;
    let artifact = simulator.to_artifact(&train_keys, &test_keys)?;
    let report = Report::Simfluence(Box::new(simulator.report().clone()));
    Ok((artifact, report))
}

fn params(args: &FitArgs, variant: Variant) -> Result<SimfluenceParams> {
    let mut params = SimfluenceParams::new()
        .variant(variant)
        .objective(match args.objective {
            ObjectiveArg::TeacherForced => Objective::TeacherForced,
            ObjectiveArg::Rollout => Objective::Rollout,
        })
        .shrinkage(match args.shrink_to {
            ShrinkTo::One => Shrinkage::One,
            ShrinkTo::Zero => Shrinkage::Zero,
        })
        .lambda(lambda(args)?);
    if let Some(solver) = args.solver {
        params = params.solver(match solver {
            SolverArg::Exact => Solver::Exact,
            SolverArg::Cg => Solver::Cg,
            SolverArg::Lbfgs => Solver::Lbfgs,
        });
    }
    Ok(params)
}

fn lambda(args: &FitArgs) -> Result<Lambda> {
    if args.lambda == "auto" {
        return Ok(Lambda::LeaveRunOut(PenaltySearch {
            seed: args.split.seed,
            ..PenaltySearch::default()
        }));
    }
    let parts: Vec<f64> = args
        .lambda
        .split(',')
        .map(|part| part.trim().parse())
        .collect::<Result<_, _>>()
        .with_context(|| format!("--lambda {}: write auto, one number or A,B", args.lambda))?;
    match parts[..] {
        [both] => Ok(Lambda::Fixed(Penalty { a: both, b: both })),
        [a, b] => Ok(Lambda::Fixed(Penalty { a, b })),
        _ => bail!("--lambda {}: write auto, one number or A,B", args.lambda),
    }
}

fn report_linearised(args: &FitArgs, report: &LinearisedReport) -> Result<()> {
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(report)?),
        Format::Csv => {
            println!("gain,rate_exponent,mse");
            println!("{},{},{}", report.gain, report.rate_exponent, report.mse);
        }
        Format::Table => {
            println!(
                "{}: fitted on {} runs\n  gain {}, rate to the power {}; simulated training runs miss by {:.4} nats²",
                args.out.display(),
                report.training_runs.len(),
                report.gain,
                report.rate_exponent,
                report.mse
            );
            for left_out in &report.left_out {
                println!("  left out: {left_out}");
            }
        }
    }
    Ok(())
}

fn report_simfluence(args: &FitArgs, report: &FitReport) -> Result<()> {
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(report)?),
        Format::Csv => print_choice_csv(report)?,
        Format::Table => print_report(args, report),
    }
    Ok(())
}

fn print_report(args: &FitArgs, report: &FitReport) {
    println!(
        "{}: fitted on {} runs in {:.2} s",
        args.out.display(),
        report.training_runs.len(),
        report.seconds
    );
    println!(
        "  λ_A {}, λ_B {}; objective {:.6}; {} iterations, at most {} per test example",
        report.penalty.a,
        report.penalty.b,
        report.objective,
        report.iterations,
        report.most_iterations
    );
    if let Some(choice) = &report.choice {
        println!(
            "  chosen by leave-run-out rollouts in {} folds:",
            choice.folds
        );
        for score in &choice.table {
            let mse = score
                .mse
                .map_or("overflows".to_owned(), |mse| format!("{mse:.4} nats²"));
            println!(
                "    λ_A {:<8} λ_B {:<8} {mse}",
                score.penalty.a, score.penalty.b
            );
        }
    }
    for left_out in &report.left_out {
        println!("  left out: {left_out}");
    }
    if let Some(sentence) = report.identifiability.sentence() {
        println!("  {sentence}");
    }
}

fn print_choice_csv(report: &FitReport) -> Result<()> {
    let mut writer = csv::Writer::from_writer(std::io::stdout());
    writer.write_record(["lambda_a", "lambda_b", "leave_run_out_mse"])?;
    for score in report.choice.iter().flat_map(|c| &c.table) {
        writer.write_record([
            score.penalty.a.to_string(),
            score.penalty.b.to_string(),
            score.mse.map_or(String::new(), |mse| mse.to_string()),
        ])?;
    }
    Ok(writer.flush()?)
}

fn report_dynamics(args: &FitArgs, report: &OptimizerDynamicsReport) -> Result<()> {
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(report)?),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(std::io::stdout());
            writer.write_record(["state", "penalty", "exponent", "leave_run_out_mse"])?;
            for candidate in &report.candidates {
                let state = match candidate.state {
                    State::Residuals(reach) => format!("reach {reach}"),
                    State::None => "none".to_owned(),
                };
                writer.write_record([
                    state,
                    candidate.penalty.to_string(),
                    candidate.exponent.to_string(),
                    candidate.mse.to_string(),
                ])?;
            }
            writer.flush()?;
        }
        Format::Table => print_dynamics(args, report),
    }
    Ok(())
}

fn print_dynamics(args: &FitArgs, report: &OptimizerDynamicsReport) {
    println!(
        "{}: fitted on {} runs in {:.2} s",
        args.out.display(),
        report.training_runs.len(),
        report.seconds
    );
    for (chosen, weight) in report.chosen.iter().zip(&report.loop_weights) {
        println!(
            "  closed loop {} ({:.0} %): penalty {}, exponents of normalisation {} and rate {}, {} components, {}; error of left-out runs {:.4} nats²",
            match chosen.state {
                State::Residuals(reach) => format!("with a state that reaches {reach} nats"),
                State::None => "without a state".to_owned(),
            },
            100.0 * weight,
            chosen.penalty,
            chosen.exponent,
            chosen.rate_exponent,
            chosen.rank,
            match chosen.pull {
                Some(pull) => format!("second fit with a pull of {pull}"),
                None => "no second fit".to_owned(),
            },
            chosen.mse
        );
    }
    if let Some(member) = &report.linearised {
        println!(
            "  linearised model ({:.0} %): gain {}, rate to the power {}; error of simulated training runs {:.4} nats²",
            100.0 * member.weight,
            member.gain,
            member.rate_exponent,
            member.mse
        );
    }
    match &report.examples {
        Some(choice) => println!(
            "  effects of single examples: error of left-out runs {:.4} → {:.4} nats² (strength {}, {} directions)",
            choice.before, choice.after, choice.strength, choice.rank
        ),
        None => println!(
            "  no effects of single examples beside their datasets': none clearly lower the error of left-out runs"
        ),
    }
    match &report.correction {
        Some(choice) => println!(
            "  correction: error of left-out runs {:.4} → {:.4} nats² (length scales {} and {}, noise {})",
            choice.before, choice.after, choice.exposure_scale, choice.clock_scale, choice.noise
        ),
        None => println!("  no correction: none clearly lowers the error of left-out runs"),
    }
    println!(
        "  {} {:.0} %, mean run {:.0} %: error of left-out runs {:.4} nats²",
        match report.chosen.len() {
            1 => "closed loop",
            _ => "mean of these",
        },
        100.0 * report.closed_loop_weight,
        100.0 * (1.0 - report.closed_loop_weight),
        report.mse
    );
    if !report.batch_losses {
        println!(
            "  no run has losses of its batches: every dataset is taken to push at full strength; record batch_loss to have saturation"
        );
    }
    if report.sparse {
        println!("  losses between evaluations were filled in by the fit");
    }
    for left_out in &report.left_out {
        println!("  left out: {left_out}");
    }
}
