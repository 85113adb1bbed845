//! Tests of the linearised model as a member of the mean.

use super::*;
use crate::linearised::softmax_regression::{Regression, TEST, TRAIN, run, sgd};
use crate::linearised::{FitLinearised, LinearisedError, LinearisedSimulator};
use simfluence_core::{Artifact, Curriculum, Fit, NoProgress, Run, Simulator};

/// Two training examples of each of three datasets.
const GROUPS: [u32; TRAIN] = [0, 0, 1, 1, 2, 2];

/// Runs of a model that is linear in its parameters, at different rates.
fn runs(seeds: std::ops::Range<usize>) -> Vec<Run> {
    let train = |c: &Curriculum| Regression::new(true).train(c, 0.8);
    seeds
        .map(|seed| run(seed, 0.1 + 0.03 * (seed * 5 % 7) as f32, sgd(0.8), train))
        .collect()
}

fn linearised(runs: &[Run], change: impl Fn(usize, f32) -> f32) -> LinearisedSimulator {
    let mut kernel = Regression::new(true).kernel(false);
    for (place, update) in kernel.updates.iter_mut().enumerate() {
        *update = change(place, *update);
    }
    let runs: Vec<&Run> = runs.iter().collect();
    let fit = FitLinearised { kernel };
    fit.fit(&runs, TRAIN, &NoProgress).unwrap()
}

fn fitted(
    params: OptimizerDynamicsParams,
    runs: &[Run],
    member: Option<LinearisedSimulator>,
) -> Result<OptimizerDynamicsSimulator, OptimizerDynamicsError> {
    let mut params = params.check()?;
    if let Some(member) = member {
        params = params.with_linearised(member);
    }
    params.fit(&runs.iter().collect::<Vec<_>>(), TRAIN, &NoProgress)
}

fn params() -> OptimizerDynamicsParams {
    OptimizerDynamicsParams::new(GROUPS.to_vec())
}

fn from_file(simulator: &OptimizerDynamicsSimulator) -> (Artifact, Box<dyn Simulator>) {
    let keys = |n: usize| (0..n).map(|i| format!("key-{i}")).collect::<Vec<_>>();
    let artifact = simulator.to_artifact(&keys(TRAIN), &keys(TEST)).unwrap();
    let artifact = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
    let back = crate::load(&artifact).unwrap();
    (artifact, back)
}

#[test]
fn a_linearised_model_that_knows_the_truth_gets_all_the_weight() {
    let given = runs(0..12);
    let member = linearised(&given, |_, update| update);
    let without = fitted(params(), &given, None).unwrap();
    let with = fitted(params(), &given, Some(member.clone())).unwrap();
    let report = with.report().linearised.unwrap();
    assert!(report.weight > 0.99, "{report:?}");
    assert_eq!((report.gain, report.rate_exponent), (1.0, 1.0));
    let weights = with.report().loop_weights.iter().sum::<f64>() + report.weight;
    assert!((weights - 1.0).abs() < 1e-12, "{weights}");
    let unseen = &runs(20..21)[0];
    let initial = unseen.trajectory.initial().unwrap();
    let error = |simulator: &dyn Simulator| {
        let simulated = simulator.simulate(&unseen.curriculum, initial).unwrap();
        let pairs = simulated.values().iter().zip(unseen.trajectory.values());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let (worse, better) = (error(&without), error(&with));
    assert!(better < 1e-3 && better < 0.05 * worse, "{better} {worse}");
    // In the file it is whole.
    let (_, back) = from_file(&with);
    let banded = |simulator: &dyn Simulator| {
        simulator
            .simulate_banded(&unseen.curriculum, initial, 0.9)
            .unwrap()
            .unwrap()
    };
    assert_eq!(banded(back.as_ref()), banded(&with));
    // Left out it is as if it had not been given.
    let left_out = params().without(Ingredient::Linearised);
    let left_out = fitted(left_out, &given, Some(member)).unwrap();
    assert_eq!(left_out.report().linearised, None);
    assert_eq!(error(&left_out), worse);
}

#[test]
fn the_mean_is_that_of_its_members() {
    let given = runs(0..12);
    let member = linearised(&given, |place, update| {
        update * (1.0 + 0.4 * (place as f32).sin())
    });
    let simulator = fitted(params(), &given, Some(member.clone())).unwrap();
    let report = simulator.report().linearised.unwrap();
    assert!(report.weight > 0.05 && report.weight < 0.95, "{report:?}");
    let unseen = &runs(20..21)[0];
    let initial = unseen.trajectory.initial().unwrap();
    let inputs = simulator.inputs(&unseen.curriculum).unwrap();
    let as_f64: Vec<f64> = initial.iter().map(|&l| f64::from(l)).collect();
    let rate = simulator.report().reference_rate;
    let mean = simulator.ensemble.roll(&inputs, rate, &as_f64);
    let alone = member.simulate(&unseen.curriculum, initial).unwrap();
    let mut by_hand: Vec<f64> = (alone.values().iter())
        .map(|&loss| report.weight * f64::from(loss))
        .collect();
    for (model, weight) in (simulator.ensemble.loops.iter()).zip(&simulator.report().loop_weights) {
        for (sum, loss) in by_hand.iter_mut().zip(model.roll(&inputs, &as_f64)) {
            *sum += weight * loss;
        }
    }
    for (a, b) in mean.iter().zip(&by_hand) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
}

#[test]
fn a_worthless_one_gets_no_weight_and_no_place_in_the_file() {
    let given = runs(0..12);
    // Losses that go far up and down at every step.
    let member = linearised(&given, |place, update| 1e3 * (place as f32).sin() * update);
    let simulator = fitted(params(), &given, Some(member)).unwrap();
    assert_eq!(simulator.report().linearised.unwrap().weight, 0.0);
    let (artifact, back) = from_file(&simulator);
    assert!(!artifact.tensors.keys().any(|k| k.starts_with("linearised")));
    // So that also losses that are not its base model's can be started from.
    let simulated = back.simulate(&given[0].curriculum, &[3.0; TEST]).unwrap();
    assert_eq!(
        simulated,
        simulator
            .simulate(&given[0].curriculum, &[3.0; TEST])
            .unwrap()
    );
}

#[test]
fn one_of_other_runs_or_of_another_model_is_refused() {
    let given = runs(0..12);
    let member = linearised(&given, |_, update| update);
    let others = fitted(params(), &runs(1..12), Some(member.clone()));
    assert_eq!(others.unwrap_err(), OptimizerDynamicsError::LinearisedRuns);
    let mut elsewhere = given.clone();
    for run in &mut elsewhere {
        let moved = run.trajectory.values().iter().map(|l| l + 0.5).collect();
        let steps = run.trajectory.steps().to_vec();
        run.trajectory = simfluence_core::Trajectory::new(steps, TEST, moved).unwrap();
    }
    let error = fitted(params(), &elsewhere, Some(member)).unwrap_err();
    assert!(matches!(
        error,
        OptimizerDynamicsError::Linearised(LinearisedError::OtherModel { .. })
    ));
}

#[test]
fn from_other_losses_the_loops_simulate_alone() {
    let given = runs(0..12);
    let member = linearised(&given, |place, update| {
        update * (1.0 + 0.4 * (place as f32).sin())
    });
    let mut simulator = fitted(params(), &given, Some(member)).unwrap();
    let weights = simulator.ensemble.weights.clone();
    let simulate = |simulator: &OptimizerDynamicsSimulator| {
        let simulated = simulator.simulate(&given[0].curriculum, &[1.5; TEST]);
        simulated.unwrap().values().to_vec()
    };
    let with = simulate(&simulator);
    let sum: f64 = weights[..weights.len() - 1].iter().sum();
    simulator.ensemble.linearised = None;
    simulator.ensemble.weights = weights[..weights.len() - 1]
        .iter()
        .map(|w| w / sum)
        .collect();
    for (a, b) in with.iter().zip(simulate(&simulator)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}
