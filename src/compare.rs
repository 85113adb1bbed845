//! `simfluence compare`: judge methods by how well they predict real runs.

use crate::attribute;
use crate::cli::{AttributionMethod, CompareArgs, CompareMethod, FitMethod, Format};
use crate::cost::{Cost, measured};
use crate::kept_models::base_model_path;
use crate::linearise::{self, Where};
use crate::program::Compared;
use crate::runs::{OpenRuns, split_settings};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;
use simfluence_core::design::DesignKind;
use simfluence_core::{Artifact, EditKind, Fit, NoProgress, Progress, Run, Scores, Simulator};
use simfluence_evaluation::plots::{
    CurvesPlot, ScatterPlot, curves, final_scatter, mse_bars, scatter_points,
};
use simfluence_evaluation::{
    BootstrapSettings, CompareSettings, Comparison, HELD_OUT, Method, SplitRuns, Union, compare,
    simulate_run, split_runs, table,
};
use simfluence_recorder::{read_artifact, write_atomically};
use simfluence_simulators::additive::{FitAdditive, FitCalibrated, Gain};
use simfluence_simulators::baselines::{FitMeanRun, NoLearning};
use simfluence_simulators::linearised::LinearisedSimulator;
use simfluence_simulators::optimizer_dynamics::Ingredient;
use simfluence_simulators::simfluence::Variant;
use std::path::Path;

/// Name of the mean run.
const MEAN_RUN: &str = "mean-run";
/// Name of Simfluence-Linear.
const LINEAR: &str = "simfluence-linear";
/// Names of the methods whose differences to all other methods are shown.
const FOCUS: [&str; 2] = ["optimizer-dynamics", LINEAR];

/// A simulator that takes part, with what its fit cost.
struct Fitted {
    name: String,
    simulator: Box<dyn Simulator>,
    cost: Option<Cost>,
    /// For the first row of an attribution method: its scores.
    scores: Option<Scores>,
    /// Gradients evaluated for scores.
    gradient_evaluations: Option<u64>,
}

/// Runs the subcommand.
pub fn run(args: &CompareArgs, progress: &dyn Progress) -> Result<()> {
    if !args.learning_curve.is_empty() {
        let open = OpenRuns::read(&args.run_set, progress)?;
        let split = open.split(&args.split)?;
        let thinned = thinned(&split.train, args);
        let fitting = for_fitting(&split, thinned.as_deref());
        return crate::learning_curve::run(args, &open, &fitting, progress);
    }
    let Judged {
        comparison,
        focus,
        fitted,
        open,
    } = judge(args, progress)?;
    match args.format {
        Format::Table => print!("{}", table::text(&comparison, &focus)),
        Format::Json => println!("{}", table::json(&comparison)?),
        Format::Csv => print!("{}", table::csv(&comparison)?),
    }
    if args.format == Format::Csv && comparison.leave_out.is_some() {
        eprintln!("note: agreement with leave-out truth is in --format table and json only");
    }
    if let Some(folder) = &args.plots {
        let split = split_runs(&open.runs, &split_settings(&args.split)?)?;
        draw(folder, &open, &split, &fitted, &comparison)?;
    }
    Ok(())
}

/// A comparison with what took part in it.
pub struct Judged {
    comparison: Comparison,
    focus: Vec<String>,
    fitted: Vec<Fitted>,
    open: OpenRuns,
}

impl Judged {
    /// The comparison in every format.
    pub fn formats(&self) -> Result<Compared> {
        Ok(Compared {
            table: table::text(&self.comparison, &self.focus),
            json: table::json(&self.comparison)?,
            csv: table::csv(&self.comparison)?,
        })
    }
}

/// Fits the methods and judges them; `--format` and `--plots` are not looked at.
pub fn judge(args: &CompareArgs, progress: &dyn Progress) -> Result<Judged> {
    let open = OpenRuns::read(&args.run_set, progress)?;
    let split = open.split(&args.split)?;
    let thinned = thinned(&split.train, args);
    let fitting = for_fitting(&split, thinned.as_deref());
    let fitted = fit_all(args, &open, &fitting, progress)?;
    let methods: Vec<Method> = fitted
        .iter()
        .map(|f| Method {
            name: f.name.clone(),
            simulator: f.simulator.as_ref(),
            fit_seconds: f.cost.map(|c| c.seconds),
            peak_bytes: f.cost.and_then(|c| c.peak_bytes),
            gradient_evaluations: f.gradient_evaluations,
        })
        .collect();
    let focus = focus(&fitted);
    let is_diversified = |run: &&Run| run.info.design.design == DesignKind::Diversified.name();
    let diversified = split.held_out.iter().any(is_diversified);
    let settings = CompareSettings {
        bootstrap: BootstrapSettings {
            resamples: args.resamples as usize,
            seed: args.split.seed,
            ..BootstrapSettings::default()
        },
        unions: vec![Union {
            held_out: true,
            design: diversified.then(|| DesignKind::Diversified.name().to_owned()),
            kinds: vec![EditKind::Dropped, EditKind::Blocked],
        }],
        focus: focus.clone(),
    };
    let mut comparison = compare(&methods, &split, &settings)?;
    let scores: Vec<Scores> = fitted.iter().filter_map(|f| f.scores.clone()).collect();
    if !scores.is_empty() {
        let wanted = args.reference_run.as_deref();
        let reference = crate::truth::reference_run(&open, &split, wanted)?;
        let report = crate::truth::report(&open, reference, &scores, &settings.bootstrap);
        comparison.leave_out = report?;
    }
    Ok(Judged {
        comparison,
        focus,
        fitted,
        open,
    })
}

/// The split with the thinned training runs in place of the recorded ones.
fn for_fitting<'a>(split: &SplitRuns<'a>, thinned: Option<&'a [Run]>) -> SplitRuns<'a> {
    let mut fitting = split.clone();
    if let Some(thinned) = thinned {
        fitting.train = thinned.iter().collect();
    }
    fitting
}

/// The training runs with the evaluations that `--thin-steps` and `--thin-tests` leave; `None`
/// where they leave all.
fn thinned(train: &[&Run], args: &CompareArgs) -> Option<Vec<Run>> {
    let (every, parts) = (args.thin_steps as usize, args.thin_tests as usize);
    if every == 1 && parts == 1 {
        return None;
    }
    let thin = |run: &&Run| Run {
        trajectory: run.trajectory.thinned(every, parts),
        ..(*run).clone()
    };
    Some(train.iter().map(thin).collect())
}

/// The methods whose differences to all others are shown.
fn focus(fitted: &[Fitted]) -> Vec<String> {
    let is_there = |name: &&str| fitted.iter().any(|f| f.name == **name);
    let there = FOCUS.iter().filter(|name| is_there(name));
    there.map(|name| (*name).to_owned()).collect()
}

/// Where gradients are taken.
fn at(args: &CompareArgs) -> Where<'_> {
    Where {
        device: &args.device,
        memory: args.memory_limit,
    }
}

/// Optimiser dynamics, and with `--ablate` without each of its ingredients.
fn fit_dynamics(
    args: &CompareArgs,
    open: &OpenRuns,
    train: &[&Run],
    progress: &dyn Progress,
) -> Result<Vec<Fitted>> {
    let seed = args.split.seed;
    let groups = crate::fit::datasets(open, train, &args.dynamics, seed, progress)?;
    let fit = |member: Option<LinearisedSimulator>, without| {
        crate::fit::optimizer_dynamics(&groups, train, member, seed, without, progress)
    };
    let (found, cost) = measured(|| {
        let member = linearise::member(open, train, &args.dynamics, at(args), progress)?;
        anyhow::Ok((fit(member.clone(), None)?, member))
    });
    let (whole, member) = found?;
    let mut rows = vec![named(Box::new(whole), cost)];
    if args.ablate {
        let worth_showing = |i: &Ingredient| *i != Ingredient::Linearised || member.is_some();
        for ingredient in Ingredient::ALL.into_iter().filter(worth_showing) {
            let (fit, cost) = measured(|| fit(member.clone(), Some(ingredient)));
            rows.push(Fitted {
                name: format!("without {}", ingredient.name()),
                ..named(Box::new(fit?), cost)
            });
        }
    }
    Ok(rows)
}

fn fit_all(
    args: &CompareArgs,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Fitted>> {
    let n = open.train_count();
    let m = open.set.test_examples().len();
    let mut fitted = vec![Fitted {
        name: "no-learning".to_owned(),
        simulator: Box::new(NoLearning::new(n, m)),
        cost: None,
        scores: None,
        gradient_evaluations: None,
    }];
    if !is_given(args, MEAN_RUN) {
        let (mean_run, cost) = measured(|| FitMeanRun.fit(&split.train, n, &NoProgress));
        fitted.push(named(Box::new(mean_run?), cost));
    }
    let method = CompareMethod::Fitted(FitMethod::OptimizerDynamics);
    if !wants(args, method, true) {
        let because = match is_given(args, &name(method)) {
            true => "--simulator gives it",
            false => "--methods does not name it",
        };
        if args.ablate {
            bail!(
                "--ablate shows what the ingredients of optimizer-dynamics are worth, but {because}"
            );
        }
        args.dynamics.refuse(because)?;
    } else {
        match fit_dynamics(args, open, &split.train, progress) {
            Ok(rows) => fitted.extend(rows),
            Err(error) if !is_named(args, method) => left_out(method, &error),
            Err(error) => return Err(error),
        }
    }
    for (variant, method) in SIMFLUENCE {
        let method = CompareMethod::Fitted(method);
        if wants(args, method, true) {
            let (fit, cost) =
                measured(|| crate::fit::with_defaults(variant, open, &split.train, progress));
            match fit {
                Ok(fit) => fitted.push(named(Box::new(fit), cost)),
                // As below: runs that were measured rarely still have their other rows.
                Err(error) if !is_named(args, method) => left_out(method, &error),
                Err(error) => return Err(error),
            }
        }
    }
    let method = CompareMethod::Fitted(FitMethod::Linearised);
    if wants(args, method, false) {
        let (fit, cost) = measured(|| linearise::fit(open, &split.train, at(args), progress));
        match fit {
            Ok(fit) => fitted.push(named(Box::new(fit), cost)),
            Err(error) if !is_named(args, method) => left_out(method, &error),
            Err(error) => return Err(error),
        }
    }
    for &method in AttributionMethod::value_variants() {
        let named = CompareMethod::Attribution(method);
        if !wants(args, named, BY_DEFAULT.contains(&method)) {
            continue;
        }
        // Retraining takes long, so that "all" means it only where it has been done.
        let is_kept = || attribute::kept_scores(open, method).is_ok_and(|path| path.exists());
        if method == AttributionMethod::LeaveOut && !is_named(args, named) && !is_kept() {
            continue;
        }
        if SLOW.contains(&method) && m > SLOW_TESTS && !is_named(args, named) && !is_kept() {
            eprintln!(
                "{}, or keep its scores with `simfluence attribute` first",
                slow(named, m)
            );
            continue;
        }
        let (scores, cost) = measured(|| attribute::cached(args, open, split, method, progress));
        match scores {
            // What scores cost that were kept from before stands in their file, if anywhere.
            Ok((scores, kept)) => {
                let cost = if kept { kept_cost(&scores) } else { Some(cost) };
                fitted.extend(additive(&scores, &split.train, n, cost)?);
            }
            // Asked for by name it is an error; as a part of "all" it is left out, and said so. Of a
            // run set without a model nobody expects gradients.
            Err(error) if !is_named(args, named) => {
                if args.methods.contains(&CompareMethod::All) || base_model_path(&open.set).exists()
                {
                    left_out(named, &error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    let oracle = CompareMethod::TracinIdeal;
    if wants(args, oracle, false) && m > SLOW_TESTS && !is_named(args, oracle) {
        eprintln!("{}", slow(oracle, m));
    } else if wants(args, oracle, false) {
        match ideal(args, open, split, progress) {
            Ok(rows) => fitted.extend(rows),
            Err(error) if !is_named(args, oracle) => left_out(oracle, &error),
            Err(error) => return Err(error),
        }
    }
    for path in &args.scores {
        let artifact = read_artifact(path)?;
        refuse_judging_runs(path, &artifact, split)?;
        let scores =
            Scores::from_artifact(&artifact).with_context(|| format!("{}", path.display()))?;
        open.check_keys(path, &scores.train_keys, &scores.test_keys)?;
        fitted.extend(additive(&scores, &split.train, n, None)?);
    }
    for path in &args.simulator {
        refuse_judging_runs(path, &read_artifact(path)?, split)?;
        fitted.push(Fitted {
            name: stem(path),
            simulator: open.load_simulator(path)?,
            cost: None,
            scores: None,
            gradient_evaluations: None,
        });
    }
    Ok(fitted)
}

/// Fails if a file was made from a run that judges here.
fn refuse_judging_runs(path: &Path, artifact: &Artifact, split: &SplitRuns<'_>) -> Result<()> {
    let provenance: Value = artifact.json("provenance").unwrap_or_default();
    let own: Value = artifact.json("training_runs").unwrap_or_default();
    let made_from: Vec<&str> = [&own, &provenance["training_runs"]]
        .into_iter()
        .filter_map(Value::as_array)
        .flatten()
        .chain([&provenance["reference_run"]])
        .filter_map(Value::as_str)
        .collect();
    let judges = split.held_out.iter().copied();
    let edits = split.suite.iter().map(|pair| pair.edited);
    let judges: Vec<&Run> = judges.chain(edits).collect();
    match judges
        .iter()
        .find(|run| made_from.contains(&run.id.as_str()))
    {
        None => Ok(()),
        Some(run) => bail!(
            "{}: it was made from run {}, which judges here; make it from training runs only, or choose other runs with --train-runs and --test-runs",
            path.display(),
            run.id
        ),
    }
}

/// The variants of Simfluence with their names on the command line.
const SIMFLUENCE: [(Variant, FitMethod); 3] = [
    (Variant::Linear, FitMethod::SimfluenceLinear),
    (Variant::Additive, FitMethod::SimfluenceAdditive),
    (Variant::Multiplicative, FitMethod::SimfluenceMultiplicative),
];

/// Attribution methods that are compared unless others are named.
const BY_DEFAULT: [AttributionMethod; 4] = [
    AttributionMethod::Graddot,
    AttributionMethod::Gradcos,
    AttributionMethod::TracinCp,
    AttributionMethod::LeaveOut,
];

/// Attribution methods that minimise or solve a system for every test example (or, PBRF, for every
/// unit), so that "all" means them only with few test examples or where that has been done.
const SLOW: [AttributionMethod; 3] = [
    AttributionMethod::HifCg,
    AttributionMethod::HifLissa,
    AttributionMethod::Pbrf,
];

/// Most test examples with which "all" means the slow methods, too.
const SLOW_TESTS: usize = 16;

/// Whether a method is to be made here: a simulator that was given stands for the one of its name.
fn wants(args: &CompareArgs, method: CompareMethod, by_default: bool) -> bool {
    let all = args.methods.contains(&CompareMethod::All);
    (all || is_named(args, method) || (args.methods.is_empty() && by_default))
        && !is_given(args, &name(method))
}

fn is_given(args: &CompareArgs, name: &str) -> bool {
    args.simulator.iter().any(|path| stem(path) == name)
}

/// The name of a simulator that was given: that of its file.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}

fn name(method: CompareMethod) -> String {
    let value = method.to_possible_value();
    value.expect("no method is skipped").get_name().to_owned()
}

fn is_named(args: &CompareArgs, method: CompareMethod) -> bool {
    args.methods.contains(&method)
}

fn slow(method: CompareMethod, tests: usize) -> String {
    format!(
        "note: {} is left out: with {tests} test examples it takes long; name it with --methods to have it",
        name(method)
    )
}

fn left_out(method: CompareMethod, error: &anyhow::Error) {
    eprintln!("left out: {}: {error:#}", name(method));
}

/// What scores cost when they were made, as their file says.
fn kept_cost(scores: &Scores) -> Option<Cost> {
    let note = scores.provenance.get("cost")?;
    Some(Cost {
        seconds: note["seconds"].as_f64()?,
        peak_bytes: note["peak_bytes"].as_u64(),
    })
}

#[cfg(not(feature = "torch"))]
fn ideal(
    _: &CompareArgs,
    _: &OpenRuns,
    _: &SplitRuns<'_>,
    _: &dyn Progress,
) -> Result<Vec<Fitted>> {
    bail!(crate::needs_torch("compare --methods tracin-ideal"))
}

/// The rows of TracIn-Ideal: every run that judges, replayed.
#[cfg(feature = "torch")]
fn ideal(
    args: &CompareArgs,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Fitted>> {
    let judges: Vec<&Run> = (split.held_out.iter().copied())
        .chain(split.suite.iter().flat_map(|pair| [pair.base, pair.edited]))
        .collect();
    let (rows, cost) = measured(|| attribute::ideal::simulators(args, open, &judges, progress));
    let (rows, kept) = rows?;
    Ok((rows.into_iter())
        .map(|row| named(Box::new(row), (!kept).then_some(cost)))
        .collect())
}

fn named(simulator: Box<dyn Simulator>, cost: impl Into<Option<Cost>>) -> Fitted {
    Fitted {
        name: simulator.name().to_owned(),
        simulator,
        cost: cost.into(),
        scores: None,
        gradient_evaluations: None,
    }
}

/// The rows of an attribution method: fitted gain, natural gain where it has a unit, calibrated.
fn additive(scores: &Scores, train: &[&Run], n: usize, cost: Option<Cost>) -> Result<Vec<Fitted>> {
    let with_gain = |gain| FitAdditive {
        scores: scores.clone(),
        gain,
    };
    let fitted = with_gain(Gain::Fitted).fit(train, n, &NoProgress)?;
    let mut rows = vec![Fitted {
        scores: Some(scores.clone()),
        ..named(Box::new(fitted), cost)
    }];
    if scores.has_natural_unit {
        let natural = with_gain(Gain::Natural).fit(train, n, &NoProgress)?;
        let name = format!("{} (gain 1)", scores.method);
        rows.push(named(Box::new(natural.with_name(name)), cost));
    }
    let calibrated = FitCalibrated {
        scores: scores.clone(),
        gain: Gain::Fitted,
    };
    rows.push(named(
        Box::new(calibrated.fit(train, n, &NoProgress)?),
        cost,
    ));
    let count = scores.provenance.get("gradient_evaluations");
    let count = count.and_then(Value::as_u64);
    rows.iter_mut()
        .for_each(|row| row.gradient_evaluations = count);
    Ok(rows)
}

/// Curves of one held-out run and one edit, a scatter of final losses, MSE by method.
fn draw(
    folder: &Path,
    open: &OpenRuns,
    split: &SplitRuns<'_>,
    fitted: &[Fitted],
    comparison: &Comparison,
) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let mut pictures: Vec<(String, String)> = Vec::new();
    let shown: Vec<&Fitted> = shown_in_curves(fitted);
    let edits = split.suite.iter().map(|pair| pair.edited);
    for run in split.held_out.iter().copied().take(1).chain(edits.take(1)) {
        pictures.push((
            format!("curves-{}.svg", run.id),
            draw_curves(run, &shown, open)?,
        ));
    }
    if let Some(first) = shown.first() {
        pictures.push((
            "final-losses.svg".to_owned(),
            draw_scatter(first, split, open)?,
        ));
    }
    for block in &comparison.blocks {
        if block.name == HELD_OUT || block.name == simfluence_evaluation::SUITE {
            pictures.push((format!("mse-{}.svg", block.name), mse_bars(block)?));
        }
    }
    for (name, picture) in pictures {
        let path = folder.join(name);
        write_atomically(&path, picture.as_bytes())?;
        eprintln!("picture: {}", path.display());
    }
    Ok(())
}

/// Simfluence-Linear (or the first method that learned), the mean run, and TracIn-CP.
fn shown_in_curves(fitted: &[Fitted]) -> Vec<&Fitted> {
    let by_name = |name: &str| fitted.iter().find(|f| f.name == name);
    let first = by_name(LINEAR).or_else(|| fitted.get(2));
    [first, by_name(MEAN_RUN), by_name("tracin-cp")]
        .into_iter()
        .flatten()
        .collect()
}

fn draw_curves(run: &Run, shown: &[&Fitted], open: &OpenRuns) -> Result<String> {
    let trajectories = shown
        .iter()
        .map(|f| simulate_run(f.simulator.as_ref(), run))
        .collect::<Result<Vec<_>, _>>()?;
    let named: Vec<_> = shown
        .iter()
        .map(|f| f.name.as_str())
        .zip(&trajectories)
        .collect();
    Ok(curves(&CurvesPlot {
        run: &run.id,
        real: &run.trajectory,
        simulated: &named,
        test_keys: &open.set.test_examples().keys(),
    })?)
}

fn draw_scatter(method: &Fitted, split: &SplitRuns<'_>, open: &OpenRuns) -> Result<String> {
    let test = open.set.test_examples().as_slice();
    let datasets: Vec<String> = test.iter().map(|e| e.dataset.clone()).collect();
    let mut points = Vec::new();
    for run in &split.held_out {
        let simulated = simulate_run(method.simulator.as_ref(), run)?;
        points.extend(scatter_points(&run.trajectory, &simulated, &datasets)?);
    }
    Ok(final_scatter(&ScatterPlot {
        method: &method.name,
        points: &points,
    })?)
}
