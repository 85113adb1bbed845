//! `simfluence whatif`: edit a recorded run's curriculum and show what would have happened.

use crate::cli::{Format, WhatifArgs};
use crate::edits::{apply_all, parse};
use crate::linearise::{self, Where};
use crate::runs::OpenRuns;
use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, LineStyle, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;
use simfluence_core::{
    Banded, Curriculum, Example, Examples, Progress, Run, Simulator, Trajectory,
};
use simfluence_evaluation::plots::{WhatIfPlot, what_if};
use simfluence_recorder::{write_atomically, write_curriculum};
use simfluence_simulators::simfluence::Variant;

/// Test examples shown without `--all`.
const SHOWN: usize = 10;

/// The answer to a what-if.
#[derive(Debug, Serialize)]
pub struct Answer {
    run: String,
    edits: Vec<String>,
    simulator: String,
    steps_now: usize,
    steps_then: usize,
    unit: &'static str,
    /// Share of real losses that the bands are to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<f64>,
    /// How far the edited curriculum lies from the recorded ones, over how far they lie from each
    /// other.
    #[serde(skip_serializing_if = "Option::is_none")]
    distance: Option<f64>,
    group_by: String,
    groups: Vec<Row>,
    test_examples: Vec<Row>,
}

/// Losses of one test example, or their means over a group, after the last step.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: String,
    group: String,
    /// Really trained, unedited.
    loss_now: f64,
    /// `loss_now + change`.
    loss_then: f64,
    /// Predicted effect: simulated edited minus simulated unedited.
    change: f64,
    /// Ends of the band around `loss_then`: as far from it as those of the simulated edited run
    /// are from that.
    #[serde(skip_serializing_if = "Option::is_none")]
    low: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<f64>,
    /// The simulated loss of the edited run as it is.
    simulated_then: f64,
    /// Really retrained (`--verify`).
    #[serde(skip_serializing_if = "Option::is_none")]
    true_then: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    true_change: Option<f64>,
}

/// Runs the subcommand.
pub fn run(args: &WhatifArgs, progress: &dyn Progress) -> Result<()> {
    let answered = answer(args, progress)?;
    if let Some(path) = &args.curriculum_out {
        write_curriculum(path, &answered.edited)?;
        eprintln!("edited curriculum: {}", path.display());
    }
    print(&answered.answer, args)?;
    answered.draw(args)?;
    eprintln!("picture: {}", args.picture.display());
    Ok(())
}

/// Answers what the arguments ask; writes nothing.
pub fn answer(args: &WhatifArgs, progress: &dyn Progress) -> Result<Answered> {
    if args.simulator.is_some() {
        args.dynamics.refuse("--simulator gives one")?;
    }
    // A fit needs all runs; a simulator that is there needs none but the edited one.
    let open = match args.simulator {
        Some(_) => OpenRuns::read_only(&args.run_set, &[&args.run], progress)?,
        None => OpenRuns::read(&args.run_set, progress)?,
    };
    let base = open.run(&args.run)?;
    let has_group = |example: &Example| example.column(&args.group_by).is_some();
    if !open.set.test_examples().as_slice().iter().any(has_group) {
        bail!(
            "--group-by {}: no test example has such a column",
            args.group_by
        );
    }
    let initial = base
        .trajectory
        .initial()
        .with_context(|| format!("run {} has no losses before the first step", base.id))?;
    let edits = parse(&args.edits, open.set.train_examples())?;
    let edited = apply_all(&base.curriculum, &edits, args.fill, args.split.seed)?;
    let simulator = match &args.simulator {
        Some(path) => open.load_simulator(path)?,
        None => {
            let split = open.split(&args.split)?;
            default_simulator(args, &open, &split.train, progress)?
        }
    };
    let banded = simulator.simulate_banded(&edited, initial, args.level)?;
    let (simulated_now, simulated_then) = match &banded {
        Some(banded) => (
            simulator.simulate(&base.curriculum, initial)?,
            banded.simulated.clone(),
        ),
        None => {
            let both = simulator.simulate_many(&[&base.curriculum, &edited], initial)?;
            let [now, then] = <[Trajectory; 2]>::try_from(both)
                .map_err(|_| anyhow::anyhow!("a simulation per curriculum"))?;
            (now, then)
        }
    };
    let really = if args.verify {
        Some(verify(args, &open, base, &edited, progress)?)
    } else {
        None
    };
    let compared = Compared {
        base,
        simulated_now: &simulated_now,
        simulated_then: &simulated_then,
        banded: banded.as_ref(),
        really: really.as_ref(),
    };
    let labels: Vec<String> = edits.iter().map(|e| e.label.clone()).collect();
    let answer = compared.answer(args, &open, simulator.as_ref(), labels, edited.len());
    Ok(Answered {
        answer,
        base: base.clone(),
        edited,
        simulated_now,
        simulated_then,
        banded,
        really,
        test: open.set.test_examples().clone(),
    })
}

/// An answer with the curves that it was read off.
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// The unedited run.
    pub base: Run,
    /// The edited curriculum.
    pub edited: Curriculum,
    /// The simulated unedited run.
    pub simulated_now: Trajectory,
    /// The simulated edited run.
    pub simulated_then: Trajectory,
    banded: Option<Banded>,
    really: Option<Trajectory>,
    test: Examples,
}

impl Answered {
    /// The predicted losses of the edited run beside the real ones of the unedited run.
    pub fn predicted(&self) -> Result<Trajectory> {
        self.compared().predicted()
    }

    /// Ends of the band around the predicted losses.
    pub fn band(&self) -> Result<Option<(Trajectory, Trajectory)>> {
        self.compared().band()
    }

    fn compared(&self) -> Compared<'_> {
        Compared {
            base: &self.base,
            simulated_now: &self.simulated_now,
            simulated_then: &self.simulated_then,
            banded: self.banded.as_ref(),
            really: self.really.as_ref(),
        }
    }

    fn draw(&self, args: &WhatifArgs) -> Result<()> {
        let title = format!("{}: {}", self.base.id, self.answer.edits.join("; "));
        self.compared().draw(&title, args, &self.test)
    }
}

/// Optimiser dynamics, which sees datasets first; Simfluence-Linear, which sees examples, where all
/// training examples are of one dataset.
fn default_simulator(
    args: &WhatifArgs,
    open: &OpenRuns,
    train: &[&Run],
    progress: &dyn Progress,
) -> Result<Box<dyn Simulator>> {
    let seed = args.split.seed;
    let groups = crate::fit::datasets(open, train, &args.dynamics, seed, progress)?;
    if groups.iter().all(|&group| group == groups[0]) {
        let linear = crate::fit::with_defaults(Variant::Linear, open, train, progress)?;
        return Ok(Box::new(linear));
    }
    let at = Where {
        device: &args.device,
        memory: None,
    };
    let member = linearise::member(open, train, &args.dynamics, at, progress)?;
    let fit = crate::fit::optimizer_dynamics(&groups, train, member, seed, None, progress)?;
    let edits = &args.edits;
    let mut named =
        (edits.drop.iter().chain(&edits.keep)).chain(edits.repeat.iter().chain(&edits.replace));
    if fit.report().examples.is_none()
        && named.any(|edit| edit.starts_with("id:") || edit.starts_with("key:"))
    {
        eprintln!(
            "note: the recorded runs show no effects of single examples beside their datasets': an edit of single examples changes only how much of their dataset is trained on"
        );
    }
    Ok(Box::new(fit))
}

#[cfg(feature = "torch")]
fn verify(
    args: &WhatifArgs,
    open: &OpenRuns,
    base: &Run,
    edited: &Curriculum,
    progress: &dyn Progress,
) -> Result<Trajectory> {
    crate::train::retrain(&open.set, base, edited, &args.device, progress)
}

#[cfg(not(feature = "torch"))]
fn verify(
    _: &WhatifArgs,
    _: &OpenRuns,
    _: &Run,
    _: &Curriculum,
    _: &dyn Progress,
) -> Result<Trajectory> {
    anyhow::bail!(crate::needs_torch("whatif --verify"))
}

/// Everything the answer is read off.
struct Compared<'a> {
    base: &'a Run,
    simulated_now: &'a Trajectory,
    simulated_then: &'a Trajectory,
    banded: Option<&'a Banded>,
    really: Option<&'a Trajectory>,
}

impl Compared<'_> {
    fn answer(
        &self,
        args: &WhatifArgs,
        open: &OpenRuns,
        simulator: &dyn Simulator,
        edits: Vec<String>,
        steps_then: usize,
    ) -> Answer {
        let test_examples = self.rows(open.set.test_examples(), &args.group_by);
        Answer {
            run: self.base.id.clone(),
            edits,
            simulator: simulator.name().to_owned(),
            steps_now: self.base.curriculum.len(),
            steps_then,
            unit: "nats per target token",
            level: self.banded.map(|banded| banded.level),
            distance: self.banded.map(|banded| banded.distance),
            group_by: args.group_by.clone(),
            groups: groups(&test_examples),
            test_examples,
        }
    }

    /// One row per test example that was measured at the end of the unedited run.
    fn rows(&self, test: &Examples, group_by: &str) -> Vec<Row> {
        let (names, group_of) = test.groups(group_by);
        let last = self.base.trajectory.steps().len() - 1;
        let final_loss = |t: &Trajectory, j: usize| t.last().map_or(f64::NAN, |l| f64::from(l[j]));
        (0..test.len())
            .filter_map(|j| {
                let loss_now = f64::from(self.base.trajectory.get(last, j)?);
                let simulated_then = final_loss(self.simulated_then, j);
                let change = simulated_then - final_loss(self.simulated_now, j);
                let true_then = self.really.map(|t| final_loss(t, j));
                let end = |end: &dyn Fn(&Banded) -> &Trajectory| {
                    let width = |banded| final_loss(end(banded), j) - simulated_then;
                    (self.banded).map(|banded| (loss_now + change + width(banded)).max(0.0))
                };
                Some(Row {
                    name: test.as_slice()[j].key.clone(),
                    group: names[group_of[j]].clone(),
                    loss_now,
                    loss_then: loss_now + change,
                    change,
                    low: end(&|banded| &banded.low),
                    high: end(&|banded| &banded.high),
                    simulated_then,
                    true_then,
                    true_change: true_then.map(|t| t - loss_now),
                })
            })
            .collect()
    }

    /// What the table calls "loss then", at every step: the real loss of the unedited run plus the
    /// predicted effect. A run of another length has no real loss to add to at each of its steps,
    /// so there it is the simulated loss.
    fn predicted(&self) -> Result<Trajectory> {
        self.beside_real(self.simulated_then)
    }

    /// A simulation of the edited run, or an end of its band, moved by as much as the simulation
    /// of the unedited run is away from the real one; as it is where the edited run is of another
    /// length.
    fn beside_real(&self, simulated: &Trajectory) -> Result<Trajectory> {
        if self.simulated_then.steps() != self.simulated_now.steps() {
            return Ok(simulated.clone());
        }
        let real = &self.base.trajectory;
        let mut values = Vec::with_capacity(real.values().len());
        let mut measured = Vec::with_capacity(real.values().len());
        for (index, &step) in real.steps().iter().enumerate() {
            let now = self
                .simulated_now
                .at_step(step)
                .context("a simulation has every step")?;
            let then = simulated
                .at_step(step)
                .context("a simulation has every step")?;
            let row = real.row(index).iter().zip(now).zip(then);
            values.extend(row.map(|((real, now), then)| real + (then - now)));
            measured.extend((0..real.test_count()).map(|j| real.get(index, j).is_some()));
        }
        let steps = real.steps().to_vec();
        Ok(Trajectory::with_missing(
            steps,
            real.test_count(),
            values,
            measured,
        )?)
    }

    /// Ends of the band around [`Compared::predicted`].
    fn band(&self) -> Result<Option<(Trajectory, Trajectory)>> {
        let Some(banded) = self.banded else {
            return Ok(None);
        };
        let (low, high) = (&banded.low, &banded.high);
        Ok(Some((self.beside_real(low)?, self.beside_real(high)?)))
    }

    fn draw(&self, title: &str, args: &WhatifArgs, test: &Examples) -> Result<()> {
        let (datasets, dataset_of) = test.groups(&args.group_by);
        let ends = self.band()?;
        let picture = what_if(&WhatIfPlot {
            band: ends.as_ref().map(|(low, high)| (low, high)),
            title,
            original: &self.base.trajectory,
            simulated: &self.predicted()?,
            retrained: self.really,
            datasets: &datasets,
            dataset_of: &dataset_of,
        })?;
        write_atomically(&args.picture, picture.as_bytes())?;
        Ok(())
    }
}

/// Means over each group, then over all.
fn groups(rows: &[Row]) -> Vec<Row> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.group.as_str()) {
            names.push(&row.group);
        }
    }
    let mut means: Vec<Row> = names
        .iter()
        .map(|name| {
            let members: Vec<&Row> = rows.iter().filter(|r| r.group == *name).collect();
            mean(name, &members)
        })
        .collect();
    if names.len() > 1 {
        means.push(mean("all", &rows.iter().collect::<Vec<_>>()));
    }
    means
}

fn mean(name: &str, rows: &[&Row]) -> Row {
    let of = |value: &dyn Fn(&Row) -> f64| {
        rows.iter().map(|r| value(r)).sum::<f64>() / rows.len() as f64
    };
    let of_some = |value: &dyn Fn(&Row) -> Option<f64>| {
        let values: Option<Vec<f64>> = rows.iter().map(|r| value(r)).collect();
        values.map(|v| v.iter().sum::<f64>() / v.len() as f64)
    };
    Row {
        name: name.to_owned(),
        group: name.to_owned(),
        loss_now: of(&|r| r.loss_now),
        loss_then: of(&|r| r.loss_then),
        change: of(&|r| r.change),
        low: of_some(&|r| r.low),
        high: of_some(&|r| r.high),
        simulated_then: of(&|r| r.simulated_then),
        true_then: of_some(&|r| r.true_then),
        true_change: of_some(&|r| r.true_change),
    }
}

/// Tells where an answer says less than it seems to.
fn caution(answer: &Answer) {
    if let Some(distance) = answer.distance {
        crate::simulate::caution_distance(distance);
    }
    let rows = &answer.test_examples;
    if rows.iter().all(|row| row.change == 0.0) {
        eprintln!(
            "note: {} predicts no change at all: it cannot see this edit",
            answer.simulator
        );
    }
    let impossible = rows.iter().filter(|row| row.loss_then < 0.0).count();
    if impossible > 0 {
        eprintln!(
            "note: {impossible} of {} predicted losses are below 0, which no loss is: the edit lies outside of what {} can answer",
            rows.len(),
            answer.simulator
        );
    }
}

fn print(answer: &Answer, args: &WhatifArgs) -> Result<()> {
    caution(answer);
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(answer)?),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(std::io::stdout());
            writer.write_record(header(answer))?;
            for row in &answer.test_examples {
                writer.write_record(cells(row, |v| v.to_string()))?;
            }
            writer.flush()?;
        }
        Format::Table => print_table(answer, args.all),
    }
    Ok(())
}

fn header(answer: &Answer) -> Vec<&'static str> {
    let mut names = vec!["name", "group", "loss now", "loss then", "change"];
    if answer.level.is_some() {
        names.extend(["low", "high"]);
    }
    names.push("simulated then");
    if answer.test_examples.iter().any(|r| r.true_then.is_some()) {
        names.extend(["true then", "true change"]);
    }
    names
}

fn cells(row: &Row, number: impl Fn(f64) -> String) -> Vec<String> {
    let mut cells = vec![row.name.clone(), row.group.clone()];
    let numbers = [row.loss_now, row.loss_then, row.change];
    cells.extend(numbers.into_iter().map(&number));
    cells.extend([row.low, row.high].into_iter().flatten().map(&number));
    cells.push(number(row.simulated_then));
    cells.extend(
        [row.true_then, row.true_change]
            .into_iter()
            .flatten()
            .map(&number),
    );
    cells
}

fn print_table(answer: &Answer, all: bool) {
    println!(
        "{}: {} ({} → {} steps), {}",
        answer.run,
        answer.edits.join("; "),
        answer.steps_now,
        answer.steps_then,
        answer.simulator
    );
    println!("Losses after the last step, {}.", answer.unit);
    println!("loss then = loss now + change; change = simulated edited − simulated unedited.\n");
    if let (Some(level), Some(distance)) = (answer.level, answer.distance) {
        println!(
            "low and high: the {:.0} % band of loss then (of a group: the mean of its members' ends); distance from the recorded runs {distance:.1} times the usual one.\n",
            100.0 * level
        );
    }
    println!("Mean per {}", answer.group_by);
    println!("{}", table(answer, &answer.groups));
    let mut rows = answer.test_examples.clone();
    if !all {
        rows.sort_by(|a, b| b.change.abs().total_cmp(&a.change.abs()));
        rows.truncate(SHOWN);
        println!(
            "\nThe {} test examples that change most (of {}; --all shows every one)",
            rows.len(),
            answer.test_examples.len()
        );
    } else {
        println!("\nEvery test example");
    }
    println!("{}", table(answer, &rows));
}

fn table(answer: &Answer, rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(header(answer));
    for row in rows {
        table.add_row(cells(row, |v| format!("{v:.3}")));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
