//! Tests of the whole simulator on runs whose truth is known.

use super::filling::fill;
use super::inputs::Inputs;
use super::model::{Model, Prepared, Shape};
use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simfluence_core::{
    Curriculum, Fit, NoProgress, Optimizer, Run, RunInfo, RunStatus, Simulator, Step, Trajectory,
};

/// Training examples: 4 of each of three datasets.
const GROUPS: [u32; 12] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
const TESTS: usize = 3;
const STEPS: usize = 40;
const MOMENTUM: Optimizer = Optimizer::Sgd {
    momentum: 0.8,
    dampening: 0.0,
    nesterov: false,
    weight_decay: 0.0,
};

/// Segments, each mostly of one dataset, at varying rates.
fn curriculum(rng: &mut ChaCha8Rng) -> Curriculum {
    let mut steps = Vec::new();
    let rate = 1e-3 * (0.5 + 1.5 * rng.random::<f32>());
    while steps.len() < STEPS {
        let main = rng.random_range(0..3_u32);
        for _ in 0..rng.random_range(4..12) {
            let batch = (0..4)
                .map(|_| {
                    let group = if rng.random::<f64>() < 0.7 {
                        main
                    } else {
                        rng.random_range(0..3)
                    };
                    4 * group + rng.random_range(0..4_u32)
                })
                .collect();
            steps.push(Step::new(batch, Some(rate)));
        }
    }
    steps.truncate(STEPS);
    Curriculum::new(steps, GROUPS.len()).unwrap()
}

fn run(id: usize, curriculum: Curriculum, losses: Vec<f32>) -> Run {
    let steps = (0..=curriculum.len() as u32).collect();
    let mut info = RunInfo::new(RunStatus::Complete);
    info.optimizer = Some(MOMENTUM);
    Run {
        id: format!("run-{id:03}"),
        info,
        batch_losses: vec![None; curriculum.len()],
        trajectory: Trajectory::new(steps, TESTS, losses).unwrap(),
        curriculum,
    }
}

/// Every test example learns from its own dataset, in proportion to its residual, through a
/// momentum of 0.8; dataset 2 also hurts test example 0.
fn real(curriculum: &Curriculum, noise: f64, rng: &mut ChaCha8Rng) -> Vec<f32> {
    real_with(curriculum, noise, &[0.0; GROUPS.len()], rng)
}

/// The same where examples besides push test example 0 up, each with a strength of its own.
fn real_with(
    curriculum: &Curriculum,
    noise: f64,
    bad: &[f64; GROUPS.len()],
    rng: &mut ChaCha8Rng,
) -> Vec<f32> {
    let mut losses = [4.0_f64, 3.5, 3.0];
    let mut momentum = [0.0; 3];
    let mut bad_momentum = 0.0;
    let mut out: Vec<f32> = losses.iter().map(|&l| l as f32).collect();
    for (t, step) in curriculum.steps().iter().enumerate() {
        let mut share = [0.0; 3];
        bad_momentum *= 0.8;
        for (example, exposure) in step.exposures() {
            share[GROUPS[example as usize] as usize] += exposure;
            bad_momentum += 0.2 * exposure * bad[example as usize];
        }
        let rate = f64::from(step.learning_rate.unwrap()) / 1e-3;
        for c in 0..3 {
            momentum[c] = 0.8 * momentum[c] + 0.2 * share[c];
        }
        let corrected = momentum.map(|m| m / (1.0 - 0.8_f64.powi(t as i32 + 1)));
        for j in 0..TESTS {
            let residual = 1.0 - (-losses[j]).exp();
            let hurt = if j == 0 {
                0.03 * corrected[2] + bad_momentum / (1.0 - 0.8_f64.powi(t as i32 + 1))
            } else {
                0.0
            };
            let shock = noise * (rng.random::<f64>() - 0.5);
            losses[j] += rate * (hurt - 0.25 * corrected[j] * residual) + shock;
            losses[j] = losses[j].max(0.0);
        }
        out.extend(losses.iter().map(|&l| l as f32));
    }
    out
}

fn runs(count: usize, noise: f64, seed: u64) -> Vec<Run> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|id| {
            let curriculum = curriculum(&mut rng);
            let losses = real(&curriculum, noise, &mut rng);
            run(id, curriculum, losses)
        })
        .collect()
}

fn params() -> OptimizerDynamicsParams {
    OptimizerDynamicsParams::new(GROUPS.to_vec())
}

fn fitted(params: OptimizerDynamicsParams, runs: &[Run]) -> OptimizerDynamicsSimulator {
    let runs: Vec<&Run> = runs.iter().collect();
    (params.check().unwrap())
        .fit(&runs, GROUPS.len(), &NoProgress)
        .unwrap()
}

fn shape(saturation: bool) -> Shape {
    Shape {
        memory: Memory::of(Some(&MOMENTUM)),
        exponent: 0.0,
        rate_exponent: 1.0,
        rank: TESTS,
        groups: 3,
        saturation,
        state: State::Residuals(1.0),
    }
}

fn prepared(runs: &[Run]) -> Vec<Prepared> {
    let prepare = |run: &Run| {
        let inputs = Inputs::new(&run.curriculum, &GROUPS.into(), 3, Some(1e-3), "test");
        Prepared::new(run, inputs.unwrap(), &GROUPS, 3)
    };
    runs.iter().map(prepare).collect()
}

/// Mean squared error over all steps of all runs.
fn mse(simulator: &dyn Simulator, runs: &[Run]) -> f64 {
    let errors = runs.iter().flat_map(|run| {
        let simulated = simulator
            .simulate(&run.curriculum, run.trajectory.initial().unwrap())
            .unwrap();
        let pairs = simulated.values().to_vec().into_iter();
        pairs
            .zip(run.trajectory.values().to_vec())
            .skip(TESTS)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .collect::<Vec<_>>()
    });
    let errors: Vec<f64> = errors.collect();
    errors.iter().sum::<f64>() / errors.len() as f64
}

/// How much the real losses of runs vary around their mean.
fn spread(runs: &[Run]) -> f64 {
    let count = runs.len() as f64;
    let values: Vec<&[f32]> = runs.iter().map(|run| run.trajectory.values()).collect();
    let mean = |p: usize| values.iter().map(|v| f64::from(v[p])).sum::<f64>() / count;
    let points = TESTS..values[0].len();
    let square = |p: usize| {
        let mean = mean(p);
        let sum: f64 = values
            .iter()
            .map(|v| (f64::from(v[p]) - mean).powi(2))
            .sum();
        sum / count
    };
    points.clone().map(square).sum::<f64>() / points.len() as f64
}

#[test]
fn runs_that_it_has_not_seen_are_simulated_far_better_than_by_their_mean() {
    let simulator = fitted(params(), &runs(24, 0.02, 1));
    let held_out = runs(8, 0.0, 2);
    let (error, spread) = (mse(&simulator, &held_out), spread(&held_out));
    assert!(error < 0.05 * spread, "{error} of {spread}");
    assert_eq!(simulator.report().training_runs.len(), 24);
    assert!(!simulator.report().sparse && !simulator.report().batch_losses);
}

/// Runs made by the closed loop itself, so that a fit without noise and (next to) no penalty
/// must find it again.
fn own_runs(count: usize) -> Vec<Run> {
    let mut teacher = fitted(
        params()
            .without(Ingredient::Correction)
            .without(Ingredient::Ensemble)
            .rank(TESTS),
        &runs(24, 0.0, 3),
    );
    // What lies beyond the recorded range cannot be learned from these runs.
    teacher.ensemble.loops[0].space.low.fill(f64::NEG_INFINITY);
    teacher.ensemble.loops[0].space.high.fill(f64::INFINITY);
    teacher.ensemble.loops[0].ceiling.fill(f64::INFINITY);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    (0..count)
        .map(|id| {
            let curriculum = curriculum(&mut rng);
            let simulated = teacher.simulate(&curriculum, &[4.0, 3.5, 3.0]).unwrap();
            run(id, curriculum, simulated.values().to_vec())
        })
        .collect()
}

#[test]
fn what_it_made_itself_is_found_again_also_from_few_evaluations() {
    let all = own_runs(32);
    let (train, held_out) = all.split_at(24);
    let exact = || {
        params()
            .without(Ingredient::Correction)
            .rank(TESTS)
            .penalties(vec![1e-7])
    };
    let simulator = fitted(exact(), train);
    // Of the three loops one is the right one, and stacking finds it.
    assert_eq!(simulator.report().chosen[0].state, State::Residuals(1.0));
    let weights = &simulator.report().loop_weights;
    assert!(weights[0] > 0.99, "{weights:?}");
    let found = mse(&simulator, held_out);
    // The spread of these runs is about 1; what remains is where held-out runs leave the range of
    // the recorded ones.
    assert!(found < 1e-5, "{found}");
    for (every, parts) in [(2, 1), (4, 1), (1, 3)] {
        let thin: Vec<Run> = train
            .iter()
            .map(|run| Run {
                trajectory: run.trajectory.thinned(every, parts),
                ..run.clone()
            })
            .collect();
        let simulator = fitted(exact(), &thin);
        assert!(simulator.report().sparse);
        let error = mse(&simulator, held_out);
        assert!(error < 1e-5, "every {every}, {parts} parts: {error}");
    }
}

#[test]
fn bands_hold_what_they_promise_on_new_runs_and_wider_ones_hold_more() {
    let simulator = fitted(params(), &runs(24, 0.2, 5));
    let held = |level: f64| {
        let (mut held, mut count) = (0, 0);
        for run in runs(40, 0.2, 6) {
            let initial = run.trajectory.initial().unwrap();
            let banded = simulator.simulate_banded(&run.curriculum, initial, level);
            let banded = banded.unwrap().unwrap();
            let real = run.trajectory.values();
            for (p, loss) in real.iter().enumerate().skip(TESTS) {
                let band = banded.low.values()[p]..=banded.high.values()[p];
                held += usize::from(band.contains(loss));
                count += 1;
            }
        }
        held as f64 / f64::from(count)
    };
    let (half, most) = (held(0.5), held(0.9));
    assert!((0.86..0.97).contains(&most), "{most}");
    assert!((0.40..0.68).contains(&half), "{half}");
}

#[test]
fn a_curriculum_unlike_any_recorded_one_is_far() {
    let simulator = fitted(params(), &runs(24, 0.02, 7));
    let distance = |curriculum: &Curriculum| {
        let banded = simulator.simulate_banded(curriculum, &[4.0, 3.5, 3.0], 0.9);
        banded.unwrap().unwrap().distance
    };
    let usual = distance(&runs(1, 0.0, 8)[0].curriculum);
    let steps = vec![Step::new(vec![0, 1, 2, 3], Some(8e-3)); STEPS];
    let far = distance(&Curriculum::new(steps, GROUPS.len()).unwrap());
    assert!(usual < 2.0, "{usual}");
    assert!(far > 3.0 * usual, "{far} against {usual}");
}

#[test]
fn its_file_comes_back_bit_for_bit() {
    let simulator = fitted(params(), &runs(12, 0.05, 9));
    let keys = |prefix: &str, count: usize| -> Vec<String> {
        (0..count).map(|k| format!("{prefix}{k}")).collect()
    };
    let artifact = simulator
        .to_artifact(&keys("i", GROUPS.len()), &keys("j", TESTS))
        .unwrap();
    let bytes = artifact.to_bytes().unwrap();
    let read = simfluence_core::Artifact::from_bytes(&bytes).unwrap();
    let back = crate::load(&read).unwrap();
    let curriculum = &runs(1, 0.0, 10)[0].curriculum;
    for level in [0.5, 0.9] {
        assert_eq!(
            back.simulate_banded(curriculum, &[4.0, 3.5, 3.0], level)
                .unwrap(),
            simulator
                .simulate_banded(curriculum, &[4.0, 3.5, 3.0], level)
                .unwrap()
        );
    }
    let wrong = simulator.to_artifact(&keys("i", 3), &keys("j", TESTS));
    assert!(wrong.unwrap_err().to_string().contains("3 training keys"));
}

#[test]
fn every_ingredient_can_be_left_out_and_the_rest_still_comes_back_from_its_file() {
    let curriculum = &runs(1, 0.0, 16)[0].curriculum;
    let initial = [4.0, 3.5, 3.0];
    let keys = |count: usize| -> Vec<String> { (0..count).map(|k| k.to_string()).collect() };
    // These runs are SGD's, have no batch losses and no linearised model, and the mean run may weigh
    // nothing.
    let idle = [
        Ingredient::Linearised,
        Ingredient::Normalisation,
        Ingredient::Saturation,
        Ingredient::Stacking,
        Ingredient::Examples,
    ];
    for (given, left_out, idle) in [
        (runs(12, 0.05, 15), &Ingredient::ALL[..], &idle[..]),
        (runs_with_bad_examples(16, 15), &[Ingredient::Examples], &[]),
    ] {
        let whole = fitted(params(), &given);
        let whole = whole.simulate(curriculum, &initial).unwrap();
        for &ingredient in left_out {
            let simulator = fitted(params().without(ingredient), &given);
            let simulated = simulator.simulate(curriculum, &initial).unwrap();
            if !idle.contains(&ingredient) {
                assert_ne!(simulated, whole, "{ingredient:?}");
            }
            let artifact = simulator.to_artifact(&keys(12), &keys(TESTS)).unwrap();
            let back = crate::load(&artifact).unwrap();
            assert_eq!(back.simulate(curriculum, &initial).unwrap(), simulated);
        }
    }
}

#[test]
fn the_same_runs_and_seed_give_the_same_simulator() {
    let of = || {
        let simulator = fitted(params(), &runs(12, 0.05, 11));
        let curriculum = &runs(1, 0.0, 12)[0].curriculum;
        simulator.simulate(curriculum, &[4.0, 3.5, 3.0]).unwrap()
    };
    assert_eq!(of(), of());
}

#[test]
fn a_run_of_another_optimiser_and_a_missing_rate_are_refused_by_name() {
    let mut given = runs(6, 0.0, 13);
    let simulator = fitted(params(), &given);
    given[4].info.optimizer = Some(Optimizer::default());
    let refs: Vec<&Run> = given.iter().collect();
    let error = (params().check().unwrap())
        .fit(&refs, GROUPS.len(), &NoProgress)
        .unwrap_err();
    assert!(error.to_string().contains("run-004"), "{error}");
    let bare = Curriculum::new(vec![Step::new(vec![0], None)], GROUPS.len()).unwrap();
    let error = simulator.simulate(&bare, &[4.0, 3.5, 3.0]).unwrap_err();
    assert!(error.to_string().contains("learning rate"), "{error}");
    let error = params().check().unwrap().fit(&refs[..4], 3, &NoProgress);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("12 training examples")
    );
}

#[test]
fn runs_measured_only_before_training_are_refused() {
    // Test example 0 is measured before the first step and never again.
    let given: Vec<Run> = runs(6, 0.0, 17)
        .into_iter()
        .map(|run| {
            let measured = |p: usize| p < TESTS || !p.is_multiple_of(TESTS);
            let values = run.trajectory.values().to_vec();
            let measured = (0..values.len()).map(measured).collect();
            let steps = run.trajectory.steps().to_vec();
            Run {
                trajectory: Trajectory::with_missing(steps, TESTS, values, measured).unwrap(),
                ..run
            }
        })
        .collect();
    let given: Vec<&Run> = given.iter().collect();
    let error = (params().check().unwrap())
        .fit(&given, GROUPS.len(), &NoProgress)
        .unwrap_err();
    assert_eq!(error, OptimizerDynamicsError::NotMeasured);
}

#[test]
fn each_optimiser_has_its_own_memory() {
    let of = |optimizer: Optimizer| Memory::of(Some(&optimizer));
    assert_eq!(of(MOMENTUM).first, 0.8);
    assert_eq!(of(MOMENTUM).second, SecondMoment::None);
    let adam = of(Optimizer::default());
    assert_eq!(adam.first, 0.9);
    assert_eq!(
        adam.second,
        SecondMoment::Decay {
            beta: 0.999,
            corrected: true
        }
    );
    assert_eq!(Memory::of(None), adam);
}

#[test]
fn the_pushes_of_a_constant_gradient_are_the_optimisers_own_updates() {
    use super::pushes::Pushes;
    use super::readout::Readout;
    use super::space::ResidualSpace;
    let space = ResidualSpace {
        reach: 1.0,
        rank: 1,
        mean: vec![0.0],
        axes: vec![0.0],
        low: vec![0.0],
        high: vec![0.0],
    };
    let readout = Readout {
        groups: 1,
        weights: Vec::new(),
    };
    let pushes = |second, exponent| {
        let memory = Memory { first: 0.9, second };
        let mut pushes = Pushes::new(memory, exponent, &space, &readout);
        let mut out = vec![0.0; 6];
        let mut all = Vec::new();
        for _ in 0..3 {
            pushes.step(&[1.0], &[1.0], 2.0, &mut out);
            all.push(out[..3].to_vec());
        }
        all
    };
    // SGD: the gradient itself at twice the reference rate, whatever the memory.
    for push in pushes(SecondMoment::None, 0.5).concat() {
        assert!((push - 2.0).abs() < 1e-12, "{push}");
    }
    // Adam: divided by the root of the corrected average of its square, which is 1 (and a floor).
    let adam = SecondMoment::Decay {
        beta: 0.999,
        corrected: true,
    };
    for push in pushes(adam, 0.5).concat() {
        assert!((push - 2.0 / 1.05_f64.sqrt()).abs() < 1e-12, "{push}");
    }
    // RMSProp does not correct its start: the first step is 1/√(1 − α) times as large.
    let rmsprop = SecondMoment::Decay {
        beta: 0.99,
        corrected: false,
    };
    let first = pushes(rmsprop, 0.5)[0][0];
    assert!(
        (first - 2.0 / (1.05 * 0.01_f64).sqrt()).abs() < 1e-9,
        "{first}"
    );
}

#[test]
fn datasets_that_are_no_longer_badly_predicted_push_less() {
    // Batch losses say that dataset 0 is learned as soon as test example 0 is.
    let mut given = runs(16, 0.0, 14);
    for run in &mut given {
        let losses = run.trajectory.values().to_vec();
        for (t, step) in run.curriculum.steps().iter().enumerate() {
            let member = |&i: &u32| losses[t * TESTS + GROUPS[i as usize] as usize];
            run.batch_losses[t] = Some(step.batch.iter().map(member).collect());
        }
    }
    let simulator = fitted(params(), &given);
    assert!(simulator.report().batch_losses);
    let shape = shape(true);
    let prepared = prepared(&given);
    let all: Vec<&Prepared> = prepared.iter().collect();
    let models = Model::fit(&all, &fill(&all, shape, 1.0), shape, &[1.0]);
    let rho = |losses: [f64; 3]| {
        let (mut z, mut rho) = (vec![0.0; 3], vec![0.0; 3]);
        models[0].space.project(&losses, &mut z);
        models[0].readout.residuals(&z, &mut rho);
        rho
    };
    let truth = 1.0 - (-1.0_f64).exp();
    let read = rho([1.0, 3.0, 3.0])[0];
    assert!((read - truth).abs() < 0.05, "{read} for {truth}");
}

#[test]
fn the_second_fit_learns_nothing_from_perfect_rollouts_and_helps_imperfect_ones() {
    let shape = shape(false);
    let refitted = |runs: &[Run]| {
        let prepared = prepared(runs);
        let all: Vec<&Prepared> = prepared.iter().collect();
        let paths = fill(&all, shape, 1e-6);
        let models = Model::fit(&all, &paths, shape, &[1e-6]);
        let mut again = models[0].refit(&all, &paths, 1e-6, &[0.0, 0.3]);
        let pulled = again.pop().unwrap();
        (models[0].clone(), again.pop().unwrap(), pulled)
    };
    // Its own runs are simulated as they were recorded: the same rows twice, the same solution.
    let own = own_runs(12);
    let (first, again, pulled) = refitted(&own);
    let roll = |model: &Model, run: &Prepared| model.roll(&run.inputs, run.path.row(0));
    for run in &prepared(&own) {
        let losses = roll(&first, run);
        for other in [roll(&again, run), roll(&pulled, run)] {
            let pairs = losses.iter().zip(&other);
            let square = pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / losses.len() as f64;
            assert!(square < 1e-5, "{square}");
        }
    }
    // A loss that wanders is simulated ever more wrongly; a pull makes errors fade.
    let noisy = runs(12, 0.6, 31);
    let (first, _, pulled) = refitted(&noisy);
    let miss = |model: &Model| -> f64 {
        let of_run = |run: &Prepared| {
            let simulated = roll(model, run);
            let last = simulated.len() - TESTS;
            let pairs = simulated[last..].iter().zip(run.path.row(STEPS));
            pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
        };
        prepared(&noisy).iter().map(of_run).sum()
    };
    assert!(
        miss(&pulled) < miss(&first),
        "{} {}",
        miss(&pulled),
        miss(&first)
    );
}

/// Runs of constant batches whose rate falls linearly; what a step changes grows with the rate to
/// the power `exponent`.
fn runs_with_falling_rates(exponent: f64) -> Vec<Run> {
    let mut rng = ChaCha8Rng::seed_from_u64(41);
    (0..16)
        .map(|id| {
            let mut steps = curriculum(&mut rng).steps().to_vec();
            let mut losses = vec![4.0_f32, 3.5, 3.0];
            for (t, step) in steps.iter_mut().enumerate() {
                let rate = 2e-3 * (1.0 - t as f32 / STEPS as f32);
                step.learning_rate = Some(rate);
                let strength = 0.05 * (f64::from(rate) / 1e-3).powf(exponent);
                for j in 0..TESTS {
                    let own = step
                        .batch
                        .iter()
                        .filter(|&&i| GROUPS[i as usize] == j as u32);
                    let share = own.count() as f64 / step.batch.len() as f64;
                    let last = losses[t * TESTS + j];
                    losses.push(last * (1.0 - strength * share) as f32);
                }
            }
            let mut run = run(id, Curriculum::new(steps, GROUPS.len()).unwrap(), losses);
            run.info.optimizer = Some(Optimizer::Sgd {
                momentum: 0.0,
                dampening: 0.0,
                nesterov: false,
                weight_decay: 0.0,
            });
            run
        })
        .collect()
}

#[test]
fn the_exponent_of_the_rate_is_found() {
    for exponent in [0.5, 1.0] {
        let params = params().penalties(vec![1e-3]).rank(TESTS);
        let simulator = fitted(params, &runs_with_falling_rates(exponent));
        let report = simulator.report();
        let found = report.chosen[0].rate_exponent;
        assert_eq!(found, exponent, "{:?}", report.candidates);
    }
}

#[test]
fn another_rate_moves_the_clock_not_what_was_trained_on() {
    let mut rng = ChaCha8Rng::seed_from_u64(51);
    let slow = curriculum(&mut rng);
    let steps = slow.steps().iter().map(|step| {
        let rate = step.learning_rate.map(|rate| 2.0 * rate);
        Step::new(step.batch.clone(), rate)
    });
    let fast = Curriculum::new(steps.collect(), GROUPS.len()).unwrap();
    let exposed = |curriculum: &Curriculum| {
        let inputs = Inputs::new(curriculum, &GROUPS.into(), 3, Some(1e-3), "test").unwrap();
        let mut exposed = super::inputs::Exposed::new(&[f64::INFINITY, 8.0], 3);
        for step in 0..inputs.len() {
            exposed.step(inputs.shares(step), inputs.rate(step, 1.0));
        }
        (exposed.values().collect::<Vec<_>>(), exposed.clock())
    };
    let ((slow, slow_clock), (fast, fast_clock)) = (exposed(&slow), exposed(&fast));
    for (a, b) in slow.iter().zip(&fast) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    assert!((slow[..3].iter().sum::<f64>() - STEPS as f64).abs() < 1e-6);
    assert_eq!(slow_clock[0], fast_clock[0]);
    let moved = fast_clock[1] - slow_clock[1];
    assert!((moved - 2.0_f64.ln()).abs() < 0.02, "{moved}");
}

#[test]
fn next_runs_depend_on_curricula_not_on_what_came_out() {
    let recorded = runs(8, 0.05, 21);
    let otherwise: Vec<Run> = (recorded.iter())
        .map(|run| {
            let losses = run.trajectory.values().iter();
            let losses = losses.map(|l| 0.5 * l + 0.2 * (7.0 * l).sin().abs());
            let steps = run.trajectory.steps().to_vec();
            Run {
                trajectory: Trajectory::new(steps, TESTS, losses.collect()).unwrap(),
                ..run.clone()
            }
        })
        .collect();
    let drawn = runs(20, 0.0, 22);
    let curricula = |runs: &[Run]| -> Vec<Curriculum> {
        runs.iter().map(|run| run.curriculum.clone()).collect()
    };
    let choose = |runs: &[Run], candidates: &[Curriculum], settings: &NextRunsSettings| {
        let params = params().without(Ingredient::Correction).check().unwrap();
        let fitted = params
            .fit(&runs.iter().collect::<Vec<_>>(), GROUPS.len(), &NoProgress)
            .unwrap();
        fitted.next_runs(
            &curricula(runs).iter().collect::<Vec<_>>(),
            &candidates.iter().collect::<Vec<_>>(),
            &curricula(&drawn[14..]).iter().collect::<Vec<_>>(),
            settings,
        )
    };
    // A copy of a recorded run is among the candidates.
    let mut candidates = curricula(&drawn[..14]);
    candidates[3] = recorded[0].curriculum.clone();
    let settings = NextRunsSettings::default();
    let chosen = choose(&recorded, &candidates, &settings).unwrap();
    assert_eq!(chosen, choose(&recorded, &candidates, &settings).unwrap());
    let places = |next: &NextRuns| next.picks.iter().map(|p| p.candidate).collect::<Vec<_>>();
    let others = choose(&otherwise, &candidates, &settings).unwrap();
    assert_eq!(places(&chosen), places(&others));
    assert_ne!(chosen.before(), others.before());
    assert_eq!(chosen.picks.len(), settings.runs + settings.further);
    assert!(!places(&chosen)[..settings.runs].contains(&3));
    assert!(chosen.picks[settings.runs - 1].after() < chosen.random);
    assert!(chosen.random < chosen.before());

    let none = choose(&recorded, &[], &settings).unwrap_err().to_string();
    assert!(none.contains("candidate"), "{none}");
    let few = choose(&recorded, &candidates[..3], &settings).unwrap_err();
    assert!(few.to_string().contains("4 runs cannot be chosen of 3"));
}

/// Runs in which two examples of dataset 0 and one of dataset 1 hurt test example 0.
fn runs_with_bad_examples(count: usize, seed: u64) -> Vec<Run> {
    let mut bad = [0.0; GROUPS.len()];
    (bad[1], bad[2], bad[6]) = (0.3, 0.3, 0.4);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|id| {
            let curriculum = curriculum(&mut rng);
            let losses = real_with(&curriculum, 0.02, &bad, &mut rng);
            run(id, curriculum, losses)
        })
        .collect()
}

#[test]
fn examples_that_differ_from_their_dataset_are_found() {
    let train = runs_with_bad_examples(24, 11);
    let simulator = fitted(params(), &train);
    let choice = simulator.report().examples.expect("they matter");
    assert!(choice.after < 0.6 * choice.before, "{choice:?}");
    let unseen = runs_with_bad_examples(8, 12);
    let without = fitted(params().without(Ingredient::Examples), &train);
    assert!(without.report().examples.is_none());
    let (with, without) = (mse(&simulator, &unseen), mse(&without, &unseen));
    assert!(with < 0.5 * without, "{with} with, {without} without");
    // What if a bad example had been a good one of the same dataset?
    let base = &unseen[0];
    let last = |from: u32, to: u32| {
        let swap = |&i: &u32| if i == from { to } else { i };
        let steps = base.curriculum.steps().iter().map(|step| Step {
            batch: step.batch.iter().map(swap).collect(),
            ..step.clone()
        });
        let edited = Curriculum::new(steps.collect(), GROUPS.len()).unwrap();
        let initial = base.trajectory.initial().unwrap();
        simulator
            .simulate(&edited, initial)
            .unwrap()
            .last()
            .unwrap()[0]
    };
    assert!(last(1, 0) < last(1, 1) - 0.1);
    assert!((last(3, 0) - last(3, 3)).abs() < 0.1);
}

#[test]
fn examples_that_act_as_their_datasets_do_have_no_effects_of_their_own() {
    let simulator = fitted(params(), &runs(24, 0.2, 13));
    assert_eq!(simulator.report().examples, None);
}
