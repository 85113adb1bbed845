//! The way from a run set to tables and pictures, on runs whose truth is known.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simfluence_core::{
    Curriculum, Edit, EditKind, Fit, NoProgress, Progress, Run, RunInfo, RunStatus, SimulateError,
    Simulator, Split, Step, Trajectory, check_simulation_input,
};
use simfluence_evaluation::{
    BootstrapSettings, CompareError, CompareSettings, Comparison, HELD_OUT, Method, NO_EFFECT,
    SUITE, SplitRuns, SplitSettings, SuitePair, Union, compare, plots, simulate_run, split_runs,
    table,
};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

const TRAIN: usize = 12;
const TEST: usize = 9;
const DATASETS: usize = 3;

/// Pulls every test example towards 0 as its own dataset is trained, and slightly up as others
/// are: `L_t(j) = L_{t−1}(j) · (1 − gain · η_t · (x_t(own) − 0.2))`.
struct World {
    name: String,
    gain: f64,
    calls: AtomicUsize,
}

impl World {
    fn new(name: &str, gain: f64) -> Self {
        Self {
            name: name.into(),
            gain,
            calls: AtomicUsize::new(0),
        }
    }
}

impl Simulator for World {
    fn name(&self) -> &str {
        &self.name
    }

    fn train_count(&self) -> usize {
        TRAIN
    }

    fn test_count(&self) -> usize {
        TEST
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        check_simulation_input(curriculum, initial, TRAIN, TEST)?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut values = initial.to_vec();
        let mut state: Vec<f64> = initial.iter().map(|&l| f64::from(l)).collect();
        for (index, step) in curriculum.steps().iter().enumerate() {
            let rate = step.learning_rate.ok_or(SimulateError::NoLearningRate {
                step: index as u32 + 1,
                method: self.name.clone(),
            })?;
            for (test, loss) in state.iter_mut().enumerate() {
                let own = step
                    .exposures()
                    .filter(|(i, _)| *i as usize % DATASETS == test % DATASETS);
                let share: f64 = own.map(|(_, x)| x).sum();
                *loss *= 1.0 - self.gain * f64::from(rate) * (share - 0.2);
            }
            values.extend(state.iter().map(|&l| l as f32));
        }
        let steps = (0..=curriculum.len() as u32).collect();
        Trajectory::new(steps, TEST, values).map_err(|e| SimulateError::Other(e.to_string()))
    }
}

/// Keeps every loss where it was.
struct Still;

impl Simulator for Still {
    fn name(&self) -> &str {
        "no-learning"
    }

    fn train_count(&self) -> usize {
        TRAIN
    }

    fn test_count(&self) -> usize {
        TEST
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        let rows = curriculum.len() + 1;
        Trajectory::new((0..rows as u32).collect(), TEST, initial.repeat(rows))
            .map_err(|e| SimulateError::Other(e.to_string()))
    }
}

/// Really "trains": the world at gain 1 with noise of its own.
fn trained(id: &str, curriculum: Curriculum, seed: u64) -> Run {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let initial: Vec<f32> = (0..TEST)
        .map(|j| 2.5 + 0.3 * (j as f32 * 1.7).sin())
        .collect();
    let clean = World::new("real", 1.0)
        .simulate(&curriculum, &initial)
        .unwrap();
    let noisy = clean.values().iter().enumerate().map(|(at, &loss)| {
        let noise: f32 = rng.random::<f32>() - 0.5;
        if at < TEST {
            loss
        } else {
            loss * (1.0 + 0.1 * noise)
        }
    });
    Run {
        id: id.into(),
        info: RunInfo::new(RunStatus::Complete),
        batch_losses: vec![None; curriculum.len()],
        trajectory: Trajectory::new(clean.steps().to_vec(), TEST, noisy.collect()).unwrap(),
        curriculum,
    }
}

fn diversified(seed: u64, without: Option<usize>, blocked: bool) -> Curriculum {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rate = 0.05 + 0.1 * rng.random::<f32>();
    let mut batches: Vec<Vec<u32>> = (0..40)
        .map(|t| {
            let favourite = (t / 10 + seed as usize) % DATASETS;
            let draw = |rng: &mut ChaCha8Rng| loop {
                let example = rng.random_range(0..TRAIN as u32);
                let dataset = example as usize % DATASETS;
                let wanted = dataset == favourite || rng.random::<f32>() < 0.4;
                if Some(dataset) != without && (wanted || Some(favourite) == without) {
                    break example;
                }
            };
            (0..4).map(|_| draw(&mut rng)).collect()
        })
        .collect();
    if blocked {
        let mut all: Vec<u32> = batches.concat();
        all.sort_by_key(|&i| i as usize % DATASETS);
        batches = all.chunks(4).map(<[u32]>::to_vec).collect();
    }
    let steps = batches
        .into_iter()
        .map(|batch| Step::new(batch, Some(rate)));
    Curriculum::new(steps.collect(), TRAIN).unwrap()
}

fn edited(base: &str, id: &str, kind: EditKind, curriculum: Curriculum, seed: u64) -> Run {
    let mut run = trained(id, curriculum, seed);
    run.info.design.split = Some(Split::HeldOut);
    run.info.design.edit = Some(Edit {
        base_run: base.into(),
        kind,
        label: kind.name().into(),
    });
    run
}

/// 10 training runs, 6 held out with two edits each, and a diverged one.
fn run_set() -> Vec<Run> {
    let mut runs = Vec::new();
    for k in 0..16u64 {
        let id = format!("run-{k:03}");
        let mut run = trained(&id, diversified(k, None, false), 100 + k);
        run.info.design.split = Some(if k < 10 { Split::Train } else { Split::HeldOut });
        runs.push(run);
        if k >= 10 {
            let dropped = diversified(k, Some(k as usize % DATASETS), false);
            let name = |kind: EditKind| format!("{id}-{kind}");
            let kind = EditKind::Dropped;
            runs.push(edited(&id, &name(kind), kind, dropped, 200 + k));
            let blocked = diversified(k, None, true);
            let kind = EditKind::Blocked;
            runs.push(edited(&id, &name(kind), kind, blocked, 300 + k));
        }
    }
    let mut diverged = trained("run-diverged", diversified(99, None, false), 99);
    diverged.info.status = RunStatus::Diverged;
    diverged.info.design.split = Some(Split::Train);
    runs.push(diverged);
    runs
}

fn settings() -> CompareSettings {
    CompareSettings {
        bootstrap: BootstrapSettings::default(),
        unions: vec![Union {
            design: None,
            held_out: true,
            kinds: vec![EditKind::Dropped, EditKind::Blocked],
        }],
        focus: vec!["linear".into()],
    }
}

fn comparison(runs: &[Run]) -> Comparison {
    let split = split_runs(runs, &SplitSettings::default()).unwrap();
    let simulators = [
        World::new("linear", 0.9),
        World::new("half", 0.5),
        World::new("wrong way", -0.6),
    ];
    let mut methods = vec![Method::new(&Still)];
    methods.extend(simulators.iter().map(|s| Method::new(s)));
    methods[1].fit_seconds = Some(1.25);
    methods[1].peak_bytes = Some(3 << 20);
    compare(&methods, &split, &settings()).unwrap()
}

#[test]
fn the_nearer_method_wins_in_every_block_and_surely() {
    let comparison = comparison(&run_set());
    let union = "held-out + dropped + blocked";
    let names: Vec<&str> = comparison.blocks.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names, [HELD_OUT, SUITE, "dropped", "blocked", union]);
    for name in names {
        for against in ["no-learning", "half", "wrong way"] {
            let difference = comparison.difference("linear", against, name).unwrap();
            assert!(difference.is_surely_better(), "{difference:?}");
        }
    }
    // Every row of pairwise starts from the method in focus.
    assert!(comparison.pairwise.iter().all(|d| d.method == "linear"));
    let joint = comparison.block(union).unwrap();
    assert_eq!((joint.runs.len(), joint.unit_count), (18, 6));
    assert!(joint.row(NO_EFFECT).is_none());
    assert_eq!(comparison.left_out[0].run, "run-diverged");
}

#[test]
fn the_union_is_the_mean_over_its_runs() {
    let comparison = comparison(&run_set());
    let mse = |block: &str| {
        comparison
            .block(block)
            .unwrap()
            .row("half")
            .unwrap()
            .mse
            .unwrap()
            .value
    };
    let parts = mse(HELD_OUT) + mse("dropped") + mse("blocked");
    assert!((mse("held-out + dropped + blocked") - parts / 3.0).abs() < 1e-12);
}

#[test]
fn the_same_comparison_twice_is_the_same() {
    let runs = run_set();
    let (mut a, mut b) = (comparison(&runs), comparison(&runs));
    for cost in a.costs.iter_mut().chain(&mut b.costs) {
        cost.simulate_seconds = 0.0;
    }
    assert_eq!(table::json(&a).unwrap(), table::json(&b).unwrap());
}

/// One test example as in every closed form below: `L_0 = 4`, then a constant.
fn constant_run(id: &str, batch: u32, loss: f32) -> Run {
    let steps = vec![Step::new(vec![batch], Some(0.1)); 2];
    Run {
        id: id.into(),
        info: RunInfo::new(RunStatus::Complete),
        curriculum: Curriculum::new(steps, 4).unwrap(),
        trajectory: Trajectory::new(vec![0, 1, 2], 1, vec![4.0, loss, loss]).unwrap(),
        batch_losses: vec![None; 2],
    }
}

/// Predicts for each batch of the closed form a constant.
struct ByBatch([f32; 4]);

impl Simulator for ByBatch {
    fn name(&self) -> &str {
        "by-batch"
    }

    fn train_count(&self) -> usize {
        4
    }

    fn test_count(&self) -> usize {
        1
    }

    fn simulate(
        &self,
        curriculum: &Curriculum,
        initial: &[f32],
    ) -> Result<Trajectory, SimulateError> {
        let mut values = initial.to_vec();
        values.extend(
            curriculum
                .steps()
                .iter()
                .map(|s| self.0[s.batch[0] as usize]),
        );
        let steps = (0..values.len() as u32).collect();
        Trajectory::new(steps, 1, values).map_err(|e| SimulateError::Other(e.to_string()))
    }
}

#[test]
fn ref_errors_and_effects_by_hand() {
    let base = constant_run("base", 0, 2.0);
    let (up, down) = (constant_run("up", 1, 3.0), constant_run("down", 2, 1.5));
    let train = constant_run("train", 3, 1.0);
    let pair = |edited| SuitePair {
        base: &base,
        edited,
        kind: EditKind::Dropped,
    };
    let split = SplitRuns {
        train: vec![&train],
        held_out: vec![&base],
        suite: vec![pair(&up), pair(&down)],
        left_out: vec![],
    };
    // Base 0.5 too high; effects predicted +0.5 (real +1) and +0.25 (real −0.5).
    let simulator = ByBatch([2.5, 3.0, 2.75, 0.0]);
    let comparison = compare(
        &[Method::new(&simulator)],
        &split,
        &settings_without_focus(),
    )
    .unwrap();
    let value = |block: &str, method: &str| {
        let row = comparison.block(block).unwrap().row(method).unwrap();
        (
            row.mse.unwrap().value,
            row.mae.unwrap().value,
            row.effect_r2.map(|e| e.value),
        )
    };
    assert_eq!(value(HELD_OUT, "by-batch"), (0.25, 0.5, None));
    // Errors 0 and 1.25; squared effect errors 0.25 and 0.5625 of 1 + 0.25.
    let r2 = 1.0 - (0.25 + 0.5625) / 1.25;
    assert_eq!(value(SUITE, "by-batch"), (1.5625 / 2.0, 0.625, Some(r2)));
    assert_eq!(
        value(SUITE, NO_EFFECT),
        ((1.0 + 0.25) / 2.0, 0.75, Some(0.0))
    );
    let row = comparison
        .block(SUITE)
        .unwrap()
        .row("by-batch")
        .unwrap()
        .clone();
    assert_eq!(row.sign_agreement.unwrap().value, 0.5);
    // One test example has no ranks; one base run has no interval.
    assert_eq!(row.effect_spearman, None);
    assert_eq!(row.mse.unwrap().interval, None);
    let union = comparison.block("held-out + dropped + blocked").unwrap();
    assert_eq!((union.runs.len(), union.unit_count), (3, 1));
    let difference = comparison
        .difference("by-batch", NO_EFFECT, "dropped")
        .unwrap();
    assert_eq!(difference.difference, (1.5625 - 1.25) / 2.0);
}

#[test]
fn ref_the_noise_ceiling_of_an_edit_of_two_runs_by_hand() {
    let (first, second) = (
        constant_run("first", 0, 2.0),
        constant_run("second", 1, 2.5),
    );
    let edited = |id: &str, base: &Run, loss: f32| {
        let mut run = constant_run(id, 2, loss);
        run.info.design.edit = Some(Edit {
            base_run: base.id.clone(),
            kind: EditKind::Dropped,
            label: "dropped a".to_owned(),
        });
        run
    };
    let (up, further) = (edited("up", &first, 3.0), edited("further", &second, 4.5));
    let pair = |base, edited| SuitePair {
        base,
        edited,
        kind: EditKind::Dropped,
    };
    let mut split = SplitRuns {
        suite: vec![pair(&first, &up), pair(&second, &further)],
        ..SplitRuns::default()
    };
    let simulator = ByBatch([2.0, 2.5, 3.0, 0.0]);
    let of = |split: &SplitRuns<'_>| {
        let methods = [Method::new(&simulator)];
        let comparison = compare(&methods, split, &settings_without_focus()).unwrap();
        let text = simfluence_evaluation::table::text(&comparison, &[]);
        assert_eq!(
            comparison.block("dropped").unwrap().effect_r2_ceiling,
            comparison.block(SUITE).unwrap().effect_r2_ceiling
        );
        (comparison.block(SUITE).unwrap().effect_r2_ceiling, text)
    };
    // Effects 1 and 2: deviations of 0.5 from 1.5, doubled, of 1 + 4.
    let (ceiling, text) = of(&split);
    let ceiling = ceiling.unwrap();
    assert_eq!(
        (ceiling.r2, ceiling.edits, ceiling.runs),
        (1.0 - 1.0 / 5.0, 1, 2)
    );
    assert!(
        text.contains("noise ceiling") && text.contains("(0.80)"),
        "{text}"
    );
    split.suite.pop();
    let (ceiling, text) = of(&split);
    assert_eq!(ceiling, None);
    assert!(!text.contains("noise ceiling"), "{text}");
}

fn settings_without_focus() -> CompareSettings {
    CompareSettings {
        focus: vec![],
        ..settings()
    }
}

#[test]
fn every_run_is_simulated_once() {
    let runs = run_set();
    let split = split_runs(&runs, &SplitSettings::default()).unwrap();
    let world = World::new("linear", 1.0);
    compare(&[Method::new(&world)], &split, &settings()).unwrap();
    assert_eq!(world.calls.load(Ordering::Relaxed), 18);
}

#[test]
fn a_run_that_a_method_cannot_simulate_is_named() {
    let mut runs = run_set();
    let steps = vec![Step::new(vec![0], None); 40];
    let last = runs.iter_mut().find(|r| r.id == "run-015").unwrap();
    last.curriculum = Curriculum::new(steps, TRAIN).unwrap();
    let split = split_runs(&runs, &SplitSettings::default()).unwrap();
    let world = World::new("linear", 1.0);
    let error = compare(&[Method::new(&world)], &split, &settings()).unwrap_err();
    assert!(
        matches!(&error, CompareError::Simulate { run, .. } if run == "run-015"),
        "{error}"
    );
}

#[test]
fn names_must_be_unique_and_a_focus_must_exist() {
    let runs = run_set();
    let split = split_runs(&runs, &SplitSettings::default()).unwrap();
    let world = World::new("linear", 1.0);
    let twice = [Method::new(&world), Method::new(&world)];
    let error = compare(&twice, &split, &settings()).unwrap_err();
    assert_eq!(
        error,
        CompareError::DuplicateMethod {
            method: "linear".into()
        }
    );
    let other = [Method::new(&Still as &dyn Simulator)];
    let error = compare(&other, &split, &settings()).unwrap_err();
    assert_eq!(
        error,
        CompareError::UnknownFocus {
            method: "linear".into()
        }
    );
}

/// A fit that fails if it sees a run that it must not learn from.
struct Guarded {
    forbidden: HashSet<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("run {0:?} reached the fit")]
struct Leak(String);

impl Fit for Guarded {
    type Simulator = World;
    type Error = Leak;

    fn fit(&self, runs: &[&Run], _: usize, _: &dyn Progress) -> Result<World, Leak> {
        match runs.iter().find(|run| self.forbidden.contains(&run.id)) {
            Some(run) => Err(Leak(run.id.clone())),
            None => Ok(World::new("guarded", 1.0)),
        }
    }
}

#[test]
fn no_judged_run_reaches_a_fit() {
    let mut runs = run_set();
    let drawn = SplitSettings {
        seed: 3,
        ..Default::default()
    };
    for designed in [true, false] {
        if !designed {
            for run in &mut runs {
                run.info.design.split = None;
            }
        }
        let split = split_runs(&runs, &drawn).unwrap();
        let judged: Vec<&Run> = split
            .held_out
            .iter()
            .copied()
            .chain(split.suite.iter().flat_map(|pair| [pair.base, pair.edited]))
            .collect();
        assert!(!split.suite.is_empty());
        let twins = runs
            .iter()
            .filter(|r| judged.iter().any(|j| j.curriculum == r.curriculum));
        let fit = Guarded {
            forbidden: twins.map(|run| run.id.clone()).collect(),
        };
        let simulator = fit.fit(&split.train, TRAIN, &NoProgress).unwrap();
        compare(
            &[Method::new(&simulator)],
            &split,
            &settings_without_focus(),
        )
        .unwrap();
        // The guard does bite.
        assert!(fit.fit(&judged[..1], TRAIN, &NoProgress).is_err());
    }
}

#[test]
fn a_simulator_only_ever_sees_the_losses_before_the_first_step() {
    let runs = run_set();
    let mut disturbed = runs.clone();
    for run in &mut disturbed {
        let mut values = run.trajectory.values().to_vec();
        values[TEST..].iter_mut().for_each(|loss| *loss += 1.0);
        run.trajectory = Trajectory::new(run.trajectory.steps().to_vec(), TEST, values).unwrap();
    }
    let world = World::new("linear", 0.9);
    for (run, other) in runs.iter().zip(&disturbed) {
        let simulated = simulate_run(&world, run).unwrap();
        assert_eq!(simulated, simulate_run(&world, other).unwrap());
    }
}

#[test]
fn the_text_says_what_was_judged_and_marks_the_best() {
    let comparison = comparison(&run_set());
    let text = table::text(&comparison, &["linear".to_owned()]);
    println!("{text}");
    assert!(text.contains("10 training runs, 6 held-out runs, 12 edits"));
    assert!(text.contains("m = 9 test examples") && text.contains("T = 40 steps"));
    assert!(text.contains("nats²") && text.contains("Left out: run-diverged: it diverged"));
    let line = |from: &str, method: &str| {
        let block = &text[text.find(from).unwrap()..];
        let line = block.lines().find(|l| l.trim_start().starts_with(method));
        line.unwrap_or_else(|| panic!("no {method} after {from}"))
            .to_owned()
    };
    assert!(line("Held-out runs (6 runs, 6 units)", "linear").contains("]*"));
    assert!(!line("Held-out runs (6", "no-learning").contains('*'));
    assert!(line("Held-out runs (6", "no-learning").contains("n/a"));
    assert!(line("Kinds of edits", "no-effect").contains("(0.00)"));
    assert!(line("Difference of the MSE", "linear − half").contains("better"));
}

#[test]
fn csv_and_json_carry_every_block_and_method() {
    let comparison = comparison(&run_set());
    let mut reader =
        csv::Reader::from_reader(std::io::Cursor::new(table::csv(&comparison).unwrap()));
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let expected: usize = comparison.blocks.iter().map(|b| b.rows.len()).sum();
    assert_eq!(rows.len(), expected);
    let row = rows
        .iter()
        .find(|r| &r[0] == "dropped" && &r[3] == "linear")
        .unwrap();
    let block = comparison.block("dropped").unwrap();
    let mse: f64 = row[4].parse().unwrap();
    assert_eq!(mse, block.row("linear").unwrap().mse.unwrap().value);
    let json: serde_json::Value = serde_json::from_str(&table::json(&comparison).unwrap()).unwrap();
    assert_eq!(
        json["blocks"].as_array().unwrap().len(),
        comparison.blocks.len()
    );
    assert_eq!(
        json["blocks"][2]["rows"][1]["mse"]["value"].as_f64(),
        Some(mse)
    );
}

/// The pictures are left in cargo's folder for test output, to be looked at.
#[test]
fn every_picture_is_drawn() {
    let runs = run_set();
    let comparison = comparison(&runs);
    let find = |id: &str| runs.iter().find(|r| r.id == id).unwrap();
    let run = find("run-012");
    let near = simulate_run(&World::new("linear", 0.9), run).unwrap();
    let half = simulate_run(&World::new("half", 0.5), run).unwrap();
    let far = simulate_run(&World::new("wrong way", -3.0), run).unwrap();
    let keys: Vec<String> = (0..TEST)
        .map(|j| format!("Which word comes after {j}?"))
        .collect();
    let dataset = |j: usize| ["sports", "world", "science & technology"][j % DATASETS].to_owned();
    let datasets: Vec<String> = (0..TEST).map(dataset).collect();
    let curves = plots::curves(&plots::CurvesPlot {
        run: &run.id,
        real: &run.trajectory,
        simulated: &[
            ("linear", &near),
            ("half", &half),
            ("tracin-cp (natural gain)", &far),
        ],
        test_keys: &keys,
    });
    let mut points = Vec::new();
    for run in runs.iter().filter(|r| r.id.ends_with("dropped")) {
        let simulated = simulate_run(&World::new("linear", 0.9), run).unwrap();
        points.extend(plots::scatter_points(&run.trajectory, &simulated, &datasets).unwrap());
    }
    let scatter = plots::final_scatter(&plots::ScatterPlot {
        method: "linear",
        points: &points,
    });
    let edit = find("run-012-dropped");
    let simulated = simulate_run(&World::new("linear", 0.9), edit).unwrap();
    let what_if = plots::what_if(&plots::WhatIfPlot {
        band: None,
        title: "run-012 without sports",
        original: &run.trajectory,
        simulated: &simulated,
        retrained: Some(&edit.trajectory),
        datasets: &datasets[..DATASETS],
        dataset_of: &(0..TEST).map(|j| j % DATASETS).collect::<Vec<_>>(),
    });
    let mut close = comparison.block(SUITE).unwrap().clone();
    close.rows.retain(|row| row.method != "linear");
    close.rows[0].method = "an attribution method with a rather long name (calibrated)".into();
    let five: Vec<String> = (0..5)
        .map(|d| format!("dataset {d} with a name that is long"))
        .collect();
    let five_panels = plots::what_if(&plots::WhatIfPlot {
        band: None,
        title: "run-012 without sports",
        original: &run.trajectory,
        simulated: &far,
        retrained: None,
        datasets: &five,
        dataset_of: &(0..TEST).map(|j| j % 5).collect::<Vec<_>>(),
    });
    let pictures = [
        ("bars_linear", plots::mse_bars(&close)),
        ("what_if_five", five_panels),
        ("curves", curves),
        ("scatter", scatter),
        ("bars", plots::mse_bars(comparison.block(SUITE).unwrap())),
        ("what_if", what_if),
    ];
    for (name, svg) in pictures {
        let svg = svg.unwrap();
        assert!(
            svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
            "{name}"
        );
        assert!(svg.contains("nats") && !svg.contains("NaN"), "{name}");
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::write(folder.join(format!("{name}.svg")), svg).unwrap();
    }
}
