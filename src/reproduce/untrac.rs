//! The fine-tuning experiment of the UnTrac paper.
//!
//! ```text
//! OUT/four.toml, OUT/four/          the task and its run set: runs, truth, influences
//! OUT/eight.toml, OUT/eight/        the same with eight training datasets, where --data is given
//! OUT/results.{txt,json,csv}        what came out
//! OUT/SETTING-influence.svg         the paper's figure 2
//! OUT/SETTING-agreement.svg         the paper's figure 3
//! ```

use super::curves::{InfluenceCurves, curve_every};
use super::experiment::{EIGHT, EIGHT_TASK, FOUR, FOUR_TASK, Setting, plan, run_id};
use super::pictures::{self, Unlearned};
use super::report::{Outcome, Report, SettingReport, setting_report};
use super::rows::{Row, default_methods, rows, sweep};
use super::text;
use super::values::{Groups, Influences, Work};
use crate::attribute::leave_out;
use crate::cli::{AttributionMethod, Format, RecordArgs, ReproduceArgs};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use simfluence_core::{Progress, Run};
use simfluence_models::Task;
use simfluence_recorder::{read_artifact, write_atomically, write_plan};
use simfluence_simulators::curves::LossCurves;
use simfluence_simulators::leave_out::LeaveOutParams;
use simfluence_simulators::units::Unit;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs the experiment.
pub fn run(args: &ReproduceArgs, progress: &dyn Progress) -> Result<()> {
    if args.methods.contains(&AttributionMethod::LeaveOut) {
        bail!("leave-out is the truth here, and always measured; leave it out of --methods");
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let four = match &args.task {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?
        }
        None => FOUR_TASK.to_owned(),
    };
    let mut settings = of_group(args, "four", &four, None, &FOUR, progress)?;
    if let Some(data) = &args.data {
        settings.extend(of_group(
            args,
            "eight",
            EIGHT_TASK,
            Some(data),
            &EIGHT,
            progress,
        )?);
    }
    let report = Report {
        experiment: "untrac-finetuning",
        reference: "Isonuma & Titov, Unlearning Traces the Influential Training Data of Language Models, section 4",
        settings,
    };
    let forms = [
        ("txt", text::text(&report)),
        ("json", serde_json::to_string_pretty(&report)? + "\n"),
        ("csv", text::csv(&report)?),
    ];
    for (extension, form) in &forms {
        write_atomically(
            &args.out.join(format!("results.{extension}")),
            form.as_bytes(),
        )?;
    }
    let wanted = match args.format {
        Format::Table => 0,
        Format::Json => 1,
        Format::Csv => 2,
    };
    print!("{}", forms[wanted].1);
    Ok(())
}

/// Records the runs of a task, retrains, attributes, draws.
fn of_group(
    args: &ReproduceArgs,
    name: &str,
    task: &str,
    data: Option<&PathBuf>,
    settings: &[Setting],
    progress: &dyn Progress,
) -> Result<Vec<SettingReport>> {
    let folder = record(args, name, task, data, settings, progress)?;
    let open = OpenRuns::read(&folder, progress)?;
    settings
        .iter()
        .map(|setting| of_setting(args, &open, setting, progress))
        .collect()
}

/// Records what is not there yet, and gives the folder of the run set.
fn record(
    args: &ReproduceArgs,
    name: &str,
    task: &str,
    data: Option<&PathBuf>,
    settings: &[Setting],
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let task_file = args.out.join(format!("{name}.toml"));
    write_atomically(&task_file, task.as_bytes())?;
    let task = Task::load(&task_file)?;
    let prepared = task.prepare(data.map(PathBuf::as_path))?;
    let mut planned = Vec::new();
    let mut wanted = Vec::new();
    for setting in settings {
        planned.extend(plan(setting, &prepared.train, &task.training)?);
        wanted.extend((0..args.seeds).map(|seed| run_id(setting, seed)));
    }
    let plan_file = args.out.join(format!("{name}-plan.parquet"));
    write_plan(&plan_file, &planned)?;
    let out = args.out.join(name);
    let record = RecordArgs {
        task: task_file,
        out: out.clone(),
        data: data.cloned(),
        plan: Some(plan_file),
        runs: wanted,
        jobs: args.jobs,
        device: "cpu".to_owned(),
        resume_every: None,
    };
    crate::record::run(&record, progress)?;
    Ok(out)
}

fn of_setting(
    args: &ReproduceArgs,
    open: &OpenRuns,
    setting: &Setting,
    progress: &dyn Progress,
) -> Result<SettingReport> {
    let runs: Vec<&Run> = (0..args.seeds)
        .map(|seed| open.run(&run_id(setting, seed)))
        .collect::<Result<_>>()?;
    eprintln!("setting {}: leave-one-out", setting.name);
    let options = leave_out::Options {
        unit: "dataset".to_owned(),
        params: LeaveOutParams::new()
            .seeds(args.seeds)
            .jobs(args.jobs as usize),
        subsets: None,
        device: "cpu".to_owned(),
    };
    let truth = leave_out::measure(open, runs[0], &options, progress)?.truth;
    let groups = Groups::of(open);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let work = Work {
        open,
        groups: &groups,
        threads: (cores / args.jobs).max(1),
    };
    let sizes: Vec<usize> = truth
        .units
        .iter()
        .map(|unit| trained(unit, runs[0]))
        .collect();
    let rows = rows_of(args, setting, groups.tests.len(), curve_every(&sizes));
    eprintln!("setting {}: {} methods", setting.name, rows.len());
    let outcomes = attribute(&work, &runs, &rows, args.jobs as usize, progress)?;
    let report = setting_report(setting, open, &runs, &groups, &truth, &outcomes)?;
    draw(args, &work, &runs, &rows, &report)?;
    Ok(report)
}

/// Examples of a unit that a run trained on.
fn trained(unit: &Unit, run: &Run) -> usize {
    let most = unit.members.iter().max().map_or(0, |&id| id as usize + 1);
    let steps = run.curriculum.steps().iter();
    let most = steps
        .flat_map(|step| &step.batch)
        .fold(most, |most, &id| most.max(id as usize + 1));
    let exposure = run.curriculum.total_exposure(most);
    let examples = unit.members.iter();
    examples.filter(|&&id| exposure[id as usize] > 0.0).count()
}

/// What is computed in a setting.
fn rows_of(args: &ReproduceArgs, setting: &Setting, tests: usize, curve_every: u32) -> Vec<Row> {
    let methods = if args.methods.is_empty() {
        default_methods(tests)
    } else {
        args.methods.clone()
    };
    let mut all = rows(&methods, curve_every);
    if setting.is_swept {
        use AttributionMethod::{Untrac, UntracInv};
        let unlearning = methods.iter().filter(|m| matches!(m, Untrac | UntracInv));
        all.extend(unlearning.flat_map(|&method| sweep(method)));
    }
    all
}

/// The influences of every row and run: those that were kept, and the others computed, several at
/// a time. A row that fails in one run gives nothing; the others go on.
fn attribute(
    work: &Work<'_>,
    runs: &[&Run],
    rows: &[Row],
    jobs: usize,
    progress: &dyn Progress,
) -> Result<Vec<Outcome>> {
    let mut found: HashMap<(usize, usize), Result<Influences, String>> = HashMap::new();
    let mut missing = Vec::new();
    for (r, row) in rows.iter().enumerate() {
        for (k, run) in runs.iter().enumerate() {
            match work.kept(run, row)? {
                Some(influences) => {
                    found.insert((r, k), Ok(influences));
                }
                None => missing.push((r, k)),
            }
        }
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(found);
    progress.begin("methods × runs", missing.len() as u64);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(missing.len()) {
            scope.spawn(|| {
                while let Some(&(r, k)) = missing.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let influences = work.compute(runs[k], &rows[r]);
                    let influences = influences.map_err(|error| crate::message(&error));
                    done.lock()
                        .expect("no panic with it")
                        .insert((r, k), influences);
                    progress.advance(1);
                }
            });
        }
    });
    progress.end();
    let mut found = done.into_inner().expect("no panic with it");
    let outcome = |(r, row): (usize, &Row)| Outcome {
        name: row.name.clone(),
        swept: row.swept,
        influences: (0..runs.len())
            .map(|k| found.remove(&(r, k)).expect("every row has every run"))
            .collect(),
    };
    Ok(rows.iter().enumerate().map(outcome).collect())
}

/// Figures 2 and 3 for the first test dataset.
fn draw(
    args: &ReproduceArgs,
    work: &Work<'_>,
    runs: &[&Run],
    rows: &[Row],
    report: &SettingReport,
) -> Result<()> {
    let mut methods = Vec::new();
    for (method, name) in [
        (AttributionMethod::Untrac, "UnTrac"),
        (AttributionMethod::UntracInv, "UnTrac-Inv"),
    ] {
        let row = rows
            .iter()
            .find(|r| r.method == method && r.swept.is_none());
        let Some(row) = row else { continue };
        if has_failed(report, &row.name) {
            continue;
        }
        let of_run = |run: &&Run| -> Result<InfluenceCurves> {
            let path = work.curves_file(run, row);
            let curves = LossCurves::from_artifact(&read_artifact(&path)?)
                .with_context(|| format!("{}", path.display()))?;
            let exposure = run.curriculum.total_exposure(work.open.train_count());
            InfluenceCurves::of(&curves, work.groups, 0, &exposure)
        };
        methods.push(Unlearned {
            method: name,
            runs: runs.iter().map(of_run).collect::<Result<_>>()?,
        });
    }
    if methods.is_empty() {
        return Ok(());
    }
    let test = &report.tests[0];
    let title = format!("{}: influence on {}", report.about, test.test);
    let picture = pictures::influences(&title, &report.datasets, &methods)?;
    save(&args.out, report.name, "influence", &picture)?;
    // Exposure is the same share of a step for every example.
    let weights: Vec<f64> = report.sizes.iter().map(|&size| size as f64).collect();
    let title = format!("{}: agreement with leave-one-out", report.about);
    let picture = pictures::agreement(&title, &weights, &test.truth.mean, &methods)?;
    save(&args.out, report.name, "agreement", &picture)
}

fn has_failed(report: &SettingReport, name: &str) -> bool {
    let methods = &report.tests[0].methods;
    methods
        .iter()
        .any(|m| m.name == name && m.failure.is_some())
}

fn save(folder: &Path, setting: &str, what: &str, picture: &str) -> Result<()> {
    let path = folder.join(format!("{setting}-{what}.svg"));
    Ok(write_atomically(&path, picture.as_bytes())?)
}
