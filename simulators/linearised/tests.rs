//! Linear models train as their linearisation says, to rounding; the two numbers come back.

use super::softmax_regression::{CLASSES, Regression, TEST, TRAIN, run, sgd};
use super::*;
use simfluence_core::{Curriculum, Fit, NoProgress, Optimizer, Run, Simulator, Step, Trajectory};

fn fitted(kernel: TangentKernel, runs: &[Run]) -> Result<LinearisedSimulator, LinearisedError> {
    FitLinearised { kernel }.fit(&runs.iter().collect::<Vec<_>>(), TRAIN, &NoProgress)
}

#[test]
fn a_linear_model_is_trained_exactly() {
    for (others, momentum) in [(false, 0.0), (false, 0.9), (true, 0.9)] {
        let train = |c: &Curriculum| Regression::new(others).train(c, momentum);
        let runs: Vec<Run> = [0.1, 0.2, 0.4]
            .iter()
            .enumerate()
            .map(|(seed, &rate)| run(seed, rate, sgd(momentum), train))
            .collect();
        let simulator = fitted(Regression::new(others).kernel(false), &runs).unwrap();
        let report = simulator.report();
        assert_eq!((report.gain, report.rate_exponent), (1.0, 1.0));
        assert!(report.mse < 1e-10, "{}", report.mse);
        let unseen = run(11, 0.3, sgd(momentum), train);
        let initial = unseen.trajectory.at_step(0).unwrap();
        let simulated = simulator.simulate(&unseen.curriculum, initial).unwrap();
        let moved = (unseen
            .trajectory
            .values()
            .iter()
            .zip(initial.iter().cycle()))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
        assert!(moved > 0.3, "{moved}");
        for (real, simulated) in unseen.trajectory.values().iter().zip(simulated.values()) {
            assert!((real - simulated).abs() < 2e-5, "{real} {simulated}");
        }
    }
}

#[test]
fn the_first_step_of_an_optimiser_that_normalises_is_as_long_as_its_rate() {
    let rmsprop = Optimizer::Rmsprop {
        alpha: 0.99,
        eps: 1e-8,
        momentum: 0.5,
        weight_decay: 0.0,
    };
    // RMSProp's average begins with a hundredth of the first square and is not corrected.
    for (optimizer, expected) in [(Optimizer::default(), 1.0), (rmsprop, 10.0)] {
        let model = Regression::new(true);
        let (kernel, start) = (model.kernel(true), model.losses());
        let flat = |c: &Curriculum| start.repeat(c.len() + 1);
        let simulator = fitted(kernel.clone(), &[run(1, 0.02, optimizer, flat)]).unwrap();
        let (report, rate) = (simulator.report(), 0.01_f32);
        let step = Step::new(vec![2], Some(rate));
        let once = Curriculum::new(vec![step], TRAIN).unwrap();
        let simulated = simulator.simulate(&once, &start).unwrap();
        let residuals: Vec<f64> = (0..CLASSES)
            .map(|c| {
                let target = f64::from(u8::from(model.answers[2] as usize == c));
                model.probabilities(2)[c] - target
            })
            .collect();
        let columns = (TRAIN + TEST) * CLASSES;
        let entry = |c: usize, b: usize| f64::from(kernel.updates[(2 * CLASSES + c) * columns + b]);
        let along = |b: usize| {
            (0..CLASSES)
                .map(|c| residuals[c] * entry(c, b))
                .sum::<f64>()
        };
        let square: f64 = (0..CLASSES)
            .map(|c| residuals[c] * along(2 * CLASSES + c))
            .sum();
        let relative = f64::from(rate) / report.reference_rate;
        let pace = report.gain * report.reference_rate * relative.powf(report.rate_exponent);
        for (test, loss) in simulated.at_step(1).unwrap().iter().enumerate() {
            let of = |c: usize| {
                let place = (TRAIN + test) * CLASSES + c;
                let moved = pace * expected * along(place) / square.sqrt();
                f64::from(kernel.log_odds[place]) - moved
            };
            let sum: f64 = 1.0 + (0..CLASSES).map(|c| of(c).exp()).sum::<f64>();
            let by_hand = sum.ln() - of(model.answers[TRAIN + test] as usize);
            assert!(
                (by_hand - f64::from(*loss)).abs() < 1e-5,
                "{by_hand} {loss}"
            );
        }
    }
}

#[test]
fn gain_and_power_of_the_rate_come_back() {
    let mut kernel = Regression::new(false).kernel(false);
    let train = |c: &Curriculum| Regression::new(false).train(c, 0.9);
    let runs: Vec<Run> = (0..4)
        .map(|seed| run(seed, 0.1 * (1 + seed) as f32, sgd(0.9), train))
        .collect();
    kernel.updates.iter_mut().for_each(|k| *k *= 2.0);
    let simulator = fitted(kernel, &runs).unwrap();
    assert_eq!(simulator.report().gain, 0.5);
    assert_eq!(simulator.report().rate_exponent, 1.0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let kernel = || Regression::new(true).kernel(false);
    let train = |c: &Curriculum| Regression::new(true).train(c, 0.0);
    let runs = [run(1, 0.1, sgd(0.0), train)];
    let refused = |kernel: TangentKernel, runs: &[Run]| fitted(kernel, runs).unwrap_err();
    let mut other = kernel();
    other.log_odds.iter_mut().for_each(|u| *u *= 2.0);
    assert!(matches!(
        refused(other, &runs),
        LinearisedError::OtherModel { .. }
    ));
    let mut damaged = kernel();
    damaged.updates[3] = f32::NAN;
    assert_eq!(refused(damaged, &runs), LinearisedError::NotFinite);
    let mut short = kernel();
    short.answers.pop();
    assert!(matches!(
        refused(short, &runs),
        LinearisedError::Size {
            name: "answers",
            got: 9,
            expected: 10
        }
    ));
    let adam = [run(1, 0.1, Optimizer::default(), train)];
    assert_eq!(refused(kernel(), &adam), LinearisedError::NoSquares);
    let mixed = [runs[0].clone(), run(2, 0.1, sgd(0.9), train)];
    assert!(matches!(
        refused(kernel(), &mixed),
        LinearisedError::Optimizers { .. }
    ));
    assert_eq!(
        refused(kernel(), &[]),
        LinearisedError::NoUsableRun { given: 0 }
    );
    let still = [run(1, 0.0, sgd(0.0), train)];
    assert_eq!(refused(kernel(), &still), LinearisedError::ZeroRates);
    let mut late = run(1, 0.1, sgd(0.0), train);
    let (steps, values) = (late.trajectory.steps(), late.trajectory.values());
    late.trajectory = Trajectory::new(steps[1..].to_vec(), TEST, values[TEST..].to_vec()).unwrap();
    let id = late.id.clone();
    assert_eq!(refused(kernel(), &[late]), LinearisedError::NoStart(id));
    let simulator = fitted(kernel(), &runs).unwrap();
    let elsewhere = simulator.simulate(&runs[0].curriculum, &[9.0; TEST]);
    let message = elsewhere.unwrap_err().to_string();
    assert!(message.contains("base model"), "{message}");
}

#[test]
fn the_file_gives_the_same_simulator() {
    let train = |c: &Curriculum| Regression::new(true).train(c, 0.5);
    let runs = [run(1, 0.1, sgd(0.5), train)];
    let simulator = fitted(Regression::new(true).kernel(true), &runs).unwrap();
    let keys = |n: usize| (0..n).map(|i| format!("key-{i}")).collect::<Vec<_>>();
    let artifact = simulator.to_artifact(&keys(TRAIN), &keys(TEST)).unwrap();
    let bytes = artifact.to_bytes().unwrap();
    let read = simfluence_core::Artifact::from_bytes(&bytes).unwrap();
    assert_eq!(
        LinearisedSimulator::from_artifact(&read).unwrap(),
        simulator
    );
    assert_eq!(crate::load(&read).unwrap().name(), "linearised");
    assert!(simulator.to_artifact(&keys(TRAIN), &keys(TRAIN)).is_err());
}
