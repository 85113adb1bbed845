//! `simfluence fit`: run set → simulator file.

use crate::cli::{FitArgs, FitMethod, Format, ObjectiveArg, ShrinkTo, SolverArg};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use simfluence_core::{Fit, Progress, Run};
use simfluence_recorder::write_artifact;
use simfluence_simulators::baselines::FitMeanRun;
use simfluence_simulators::optimizer_dynamics::{
    Ingredient, OptimizerDynamicsParams, OptimizerDynamicsReport, OptimizerDynamicsSimulator,
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

/// Optimiser dynamics with the default settings, without one ingredient where asked; datasets are those of the training examples.
pub fn optimizer_dynamics(
    open: &OpenRuns,
    train: &[&Run],
    seed: u64,
    without: Option<Ingredient>,
    progress: &dyn Progress,
) -> Result<OptimizerDynamicsSimulator> {
    let (_, groups) = open.set.train_examples().groups("dataset");
    let groups = groups.into_iter().map(|g| g as u32).collect();
    let mut params = OptimizerDynamicsParams::new(groups).seed(seed);
    if let Some(ingredient) = without {
        params = params.without(ingredient);
    }
    let params = params.check()?;
    Ok(params.fit(train, open.train_count(), progress)?)
}

/// Runs the subcommand.
pub fn run(args: &FitArgs, progress: &dyn Progress) -> Result<()> {
    let open = OpenRuns::read(&args.run_set)?;
    let split = open.split(&args.split)?;
    let (train_keys, test_keys) = (
        open.set.train_examples().keys(),
        open.set.test_examples().keys(),
    );
    let variant = match args.method {
        FitMethod::MeanRun => {
            let mean_run = FitMeanRun.fit(&split.train, open.train_count(), progress)?;
            write_artifact(&args.out, &mean_run.to_artifact(&train_keys, &test_keys)?)?;
            println!(
                "{}: mean of {} training runs",
                args.out.display(),
                split.train.len()
            );
            return Ok(());
        }
        FitMethod::OptimizerDynamics => {
            let simulator =
                optimizer_dynamics(&open, &split.train, args.split.seed, None, progress)?;
            write_artifact(&args.out, &simulator.to_artifact(&train_keys, &test_keys)?)?;
            return report_dynamics(args, simulator.report());
        }
        FitMethod::SimfluenceLinear => Variant::Linear,
        FitMethod::SimfluenceAdditive => Variant::Additive,
        FitMethod::SimfluenceMultiplicative => Variant::Multiplicative,
    };
    let params = params(args, variant)?.check()?;
    let simulator = params.fit(&split.train, open.train_count(), progress)?;
    write_artifact(&args.out, &simulator.to_artifact(&train_keys, &test_keys)?)?;
    report(args, &simulator)
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

fn report(args: &FitArgs, simulator: &SimfluenceSimulator) -> Result<()> {
    let report = simulator.report();
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
            writer.write_record(["penalty", "exponent", "leave_run_out_mse"])?;
            for candidate in &report.candidates {
                writer.write_record([
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
    println!(
        "  penalty {}, exponents of normalisation {} and rate {}, {} components, {}; error of left-out runs {:.4} nats²",
        report.chosen.penalty,
        report.chosen.exponent,
        report.chosen.rate_exponent,
        report.chosen.rank,
        match report.chosen.pull {
            Some(pull) => format!("second fit with a pull of {pull}"),
            None => "no second fit".to_owned(),
        },
        report.chosen.mse
    );
    match &report.correction {
        Some(choice) => println!(
            "  correction: error of left-out runs {:.4} → {:.4} nats² (length scales {} and {}, noise {})",
            choice.before, choice.after, choice.exposure_scale, choice.clock_scale, choice.noise
        ),
        None => println!("  no correction: none clearly lowers the error of left-out runs"),
    }
    println!(
        "  closed loop {:.0} %, mean run {:.0} %: error of left-out runs {:.4} nats²",
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
